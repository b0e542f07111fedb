"""Check of the scales: dialled, on a serial line, or listened for."""

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any, Final
from urllib.parse import quote

from gateway.config.endpoints import tcp_address
from gateway.config.scale_settings import ScaleConnection
from gateway.doctor.findings import Finding, error, ok, results_in_time, warning
from gateway.doctor.http import ask
from gateway.doctor.plant import PATIENCE, Plant
from gateway.wire.errors import WireError
from gateway.wire.lines import MAX_LINE, LineReader
from gateway.wire.scale import parse_line, prefix_form

#: Maximum seconds of the check: a name is looked up, and the scale is dialled and heard.
MAX_SECONDS: Final = 3 * PATIENCE

#: Number of lines to show.
_LINES: Final = 3

#: Maximum characters of a line to show.
_SHOWN: Final = 50

_TOKEN: Final = "CYNOW_GATEWAY_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(slots=True)
class Heard:
    """Bytes of one connection, and the last lines in them.

    :ivar count: number of lines.
    :ivar readings: number of lines that are readings.
    :ivar size: number of bytes.
    :ivar has_ended: whether the peer has closed the connection.
    :ivar prefix: text that the converter puts before each line; ``None`` for none.
    :ivar is_polled: whether the scale answers only when asked.
    :ivar other: the usual cause if the peer closes the connection without a line.
    :ivar problem: why the connection cannot be used.
    """

    reader: LineReader = field(default_factory=LineReader)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    count: int = 0
    readings: int = 0
    size: int = 0
    has_ended: bool = False
    other: str = "another program is connected: many converters have room for one"
    problem: str = ""
    prefix: str | None = None
    is_polled: bool = False

    def receive_data(self, data: bytes) -> None:
        self.size += len(data)
        try:
            complete = self.reader.receive_data(data)
        except WireError as problem:
            self.problem = str(problem)
            return
        if len(self.reader.rest) > MAX_LINE:
            self.reader.skip_rest()
        for line in complete.replace(b"\r", b"\n").split(b"\n"):
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        self.count += 1
        shown = ascii(line.decode("latin-1")[:_SHOWN])
        if self.prefix is not None and (found_prefix := prefix_form(self.prefix.encode()).match(line)) is not None:
            line = line[found_prefix.end() :]
        try:
            found = parse_line(line)
        except WireError as problem:
            self.last.append(f"{shown}: {problem}")
            return
        self.readings += 1
        weight = "no weight" if found.weight is None else f"{found.weight.normalize():f} kg"
        self.last.append(f"{shown} = {found.status} {weight} {found.kind}")

    def finding(self, key: str, where: str, seconds: float) -> Finding:
        """Return what was heard on an open connection.

        :param where: peer or device.
        """
        if self.problem:
            return error(key, f"{where} sends {self.problem}", "connect a scale; HTTP is served on server.port")
        if not self.size and self.has_ended:
            seen = f"{where} closed the connection without a line"
            return error(key, seen, f"look whether {self.other}")
        if not self.size:
            remedy = "set the scale to send continuously (stream mode), and check the cable behind the converter"
            if self.is_polled:
                remedy = "check poll.command and the addresses against the scale's manual, and the cable"
            return error(key, f"connected to {where}, but silent for {seconds:g} s", remedy)
        if not self.count:
            seen = f"{where} sent {self.size} bytes, and no end of a line"
            return error(key, seen, "set baud rate, parity and the end of lines (CR LF) of scale and converter")
        seen = f"{where}: {'; '.join(self.last)}"
        if not self.readings:
            remedy = "set the scale to A&D's standard format; torn lines mean a wrong baud rate or parity"
            return error(key, seen, remedy)
        return ok(key, seen)


class Asker:
    """Commands to a scale that answers only when asked.

    :param send: sends bytes.
    """

    def __init__(self, line: ScaleConnection, send: Callable[[bytes], object]) -> None:
        self._send = send
        poll, addresses = line.poll, line.addresses or ()
        self._interval = 0.0 if poll is None else poll.interval_ms / 1000
        self._greeting = b"" if poll is None else poll.greeting(addresses)
        self._commands = None if poll is None else cycle(poll.commands(addresses))
        self._next = 0.0

    def ask(self) -> None:
        """Send the next command, if it is time for it."""
        now = time.monotonic()
        if self._commands is None or now < self._next:
            return
        self._next = now + self._interval
        if self._greeting:
            self._send(self._greeting)
            self._greeting = b""
        else:
            self._send(next(self._commands))


def hear(
    receive: Callable[[], bytes], heard: Heard, deadline: float, ask: Callable[[], None], *, enough: bool = True
) -> None:
    """Receive lines until there are enough, the connection ends, or the time has passed.

    :param receive: returns bytes; nothing at the end. It raises :class:`TimeoutError` if it has to wait long.
    :param ask: sends a command to a scale that answers only when asked, if it is time for it.
    :param enough: whether to stop after the lines that are shown.
    """
    while time.monotonic() < deadline and not heard.problem and not (enough and heard.count >= _LINES):
        ask()
        with contextlib.suppress(TimeoutError):
            data = receive()
            if not data:
                heard.has_ended = True
                return
            heard.receive_data(data)


def check_scales(plant: Plant) -> Iterator[Finding]:
    """Hear every scale that the gateway dials or reads from a serial line, and ask a running gateway for the others.

    All are heard at once: a plant may have many, and each silent one takes seconds.
    """
    checks: dict[str, Callable[[], Finding]] = {}
    for scale_id, line in plant.settings.lines().items():
        key = plant.scale_key(scale_id)
        behind = {key: scale_id}
        if line.addresses is not None:
            behind = {f"scales.{scale_id}.addresses.{address}": each for address, each in line.addresses.items()}
        is_connected = any(_is_connected(plant, each) for each in behind.values())
        if plant.gateway is not None and (line.connect is None or is_connected):
            # A second reader would take bytes from the gateway, and many converters have room for one client only.
            checks |= {place: partial(_ask_gateway, plant, place, each) for place, each in behind.items()}
        elif line.connect is not None:
            checks[key] = partial(_dial, key, line.connect, line)
        elif line.serial is not None:
            checks[key] = partial(_open_serial, key, line)
    for key, result in results_in_time(checks, MAX_SECONDS).items():
        if isinstance(result, Exception):
            reason = str(result) if isinstance(result, TimeoutError) else f"cannot be read: {type(result).__name__}"
            yield error(key, reason, f"check the device, and correct {key}")
        else:
            yield result


def _is_connected(plant: Plant, scale_id: str) -> bool:
    health = None if plant.gateway is None else plant.gateway.health
    return health is not None and bool(health["scales"].get(scale_id))


def _ask_gateway(plant: Plant, key: str, scale_id: str) -> Finding:
    """Return the latest weight that the running gateway has."""
    token = plant.environment.get(_TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    path = f"/api/scale-gateway/latest/?scale_id={quote(scale_id)}"
    try:
        status, answer = ask(plant.settings, path, headers)
    except (OSError, ValueError, http.client.HTTPException) as problem:
        return warning(key, f"the running gateway does not answer: {type(problem).__name__}", "look at its log")
    if status in {401, 403}:
        remedy = f"set {_TOKEN} to a token that may read" if not token else f"check the token in {_TOKEN}"
        return warning(key, f"the running gateway refuses to show the weight ({status})", remedy)
    if status == 404 and answer.get("error") == "no_data":
        state = "connected" if _is_connected(plant, scale_id) else "not connected"
        seen = f"{state}; the running gateway has no stable weight of it"
        return warning(key, seen, "check power, cable and address of the scale, and the gateway's log")
    if status != 200:
        return warning(key, f"the running gateway answers with status {status}", "look at its log")
    seen = f"the running gateway has {answer['raw']!r} = {answer['weight']} kg of {answer['received_at']}"
    if answer["stale"]:
        return warning(key, f"{seen}, which is stale", "check power, cable and address of the scale")
    return ok(key, seen)


def _dial(key: str, endpoint: str, line: ScaleConnection) -> Finding:
    address = tcp_address("connect", endpoint)
    where = endpoint if address is None else f"{address[0]}:{address[1]}"
    try:
        connection = _connected(endpoint, address)
    except (OSError, UnicodeError) as problem:
        reason = "timed out" if isinstance(problem, TimeoutError) else getattr(problem, "strerror", None) or "failed"
        reason = f"{reason[:1].lower()}{reason[1:]}"
        remedy = f"switch the converter on, or correct {key}"
        return error(key, f"cannot connect to {where}: {reason}", remedy)
    heard = Heard(prefix=line.prefix, is_polled=line.poll is not None)
    with contextlib.closing(connection):
        connection.settimeout(0.2)
        asker = Asker(line, connection.sendall)
        with contextlib.suppress(ConnectionError):
            hear(lambda: connection.recv(4096), heard, time.monotonic() + PATIENCE, asker.ask)
    return heard.finding(key, where, PATIENCE)


def _connected(endpoint: str, address: tuple[str, int] | None) -> socket.socket:
    scheme, _, rest = endpoint.partition(":")
    if address is None:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(rest.partition(":")[0])
        return connection
    connection = socket.create_connection(address, PATIENCE)
    if scheme.lower() not in {"ssl", "tls"}:
        return connection
    context = ssl.create_default_context()
    if scheme.lower() == "ssl":
        # As Twisted's endpoint does, which checks certificates only if it is told to.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname=address[0])


def _open_serial(key: str, line: ScaleConnection) -> Finding:
    device = line.serial or ""
    remedy = f"plug it in, correct {key}, or add the user to the group of the device (usually dialout)"
    try:
        import serial  # an optional package

        port: Any = serial.Serial(
            device,
            baudrate=line.baudrate,
            bytesize=line.bytesize,
            parity=line.parity,
            stopbits=line.stopbits,
            timeout=0.2,
            exclusive=True,
        )
    except ImportError:
        return error(key, "pyserial is not installed", "pip install 'cynow-gateway[serial]'")
    except (OSError, ValueError) as problem:
        number = getattr(problem, "errno", None)
        reason = os.strerror(number).lower() if isinstance(number, int) else type(problem).__name__
        return error(key, f"{device} cannot be opened: {reason}", remedy)
    heard = Heard(prefix=line.prefix, is_polled=line.poll is not None)

    def receive() -> bytes:
        data: bytes = port.read(max(1, port.in_waiting))
        if not data:
            raise TimeoutError
        return data

    with contextlib.closing(port):
        try:
            hear(receive, heard, time.monotonic() + PATIENCE, Asker(line, port.write).ask)
        except OSError:
            return error(key, f"{device} was lost", remedy)
    return heard.finding(key, device, PATIENCE)
