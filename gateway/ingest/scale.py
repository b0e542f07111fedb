"""Weighing scales: lines in, readings out, whichever way the line comes."""

import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.ingest.transport import peer_of, prepare
from gateway.logs import LimitedLog, shown
from gateway.model import Presence, Reading
from gateway.wire.errors import WireError
from gateway.wire.scale import ScaleLine, parse_line, read_lines

log = Logger()

#: A line's longest, in bytes; A&D's are 20.
MAX_LINE: Final = 1024

#: Waits between tries to dial out or to open a serial line: 1 s, then longer, 30 s at most, spread a little.
_RETRY: Final = backoffPolicy(initialDelay=1.0, maxDelay=30.0, factor=1.5)


class ScaleLineProtocol(LineReceiver):
    """One line of one scale.

    :param peer: for log lines; by default what the transport says.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE
    transport: Any

    def __init__(self, scale: "ScaleFactory", peer: str = "") -> None:
        self.peer = peer
        self._scale = scale
        #: In a line that is too long, up to its end.
        self._skipping = False

    def connectionMade(self) -> None:
        prepare(self.transport)
        self.peer = self.peer or peer_of(self.transport)
        self._scale.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._scale.left(self)

    def dataReceived(self, data: bytes) -> None:
        if self._skipping:
            _, end, data = data.replace(b"\r", b"\n").partition(b"\n")
            if not end:
                return
            self._skipping = False
        data = self.clearLineBuffer() + data
        end_of_lines = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if end_of_lines:
            self._scale.lines(self, data[:end_of_lines])
        # LineReceiver takes lines out of its buffer one by one, which costs more than to read them. So it only gets
        # what is no whole line yet, to keep it and to see to its length.
        if end_of_lines < len(data):
            super().dataReceived(data[end_of_lines:])

    def lineLengthExceeded(self, line: bytes) -> None:
        self._skipping = True
        self._scale.overlong(self.peer, line)


class ScaleFactory(Factory):
    """All connections of one scale.

    :param most: connections that may be open at a time.
    """

    noisy = False

    def __init__(
        self, scale_id: str, bus: Bus, clock: WallClock, counters: Counters, warnings: LimitedLog, most: int
    ) -> None:
        self.scale_id = scale_id
        self._bus = bus
        self._clock = clock
        self._warnings = warnings
        self._most = most
        self._open: set[ScaleLineProtocol] = set()
        self._connections = counters.connections.labels("scale")
        self._refused = counters.connections_refused.labels("scale")
        self._readings = {status: counters.scale_readings.labels(scale_id, status) for status in ("ST", "US", "OL")}
        self._rejected = counters.scale_rejected.labels(scale_id)
        self._overlong = counters.scale_overlong.labels(scale_id)

    def buildProtocol(self, addr: IAddress | None) -> ScaleLineProtocol | None:
        if len(self._open) >= self._most:
            self._refused.inc()
            self._warnings.warn("connections", "scale {scale_id}: too many connections", scale_id=self.scale_id)
            return None
        return ScaleLineProtocol(self)

    def close(self) -> None:
        """Close every connection."""
        for protocol in list(self._open):
            protocol.transport.loseConnection()

    # -- what its lines say

    def joined(self, protocol: ScaleLineProtocol) -> None:
        self._open.add(protocol)
        self._connections.inc()
        if len(self._open) == 1:
            self._bus.publish(Presence("scale", self.scale_id, connected=True))

    def left(self, protocol: ScaleLineProtocol) -> None:
        self._open.remove(protocol)
        self._connections.dec()
        if not self._open:
            self._bus.publish(Presence("scale", self.scale_id, connected=False))

    def lines(self, protocol: ScaleLineProtocol, data: bytes) -> None:
        """Take the whole lines of one read of a connection, as far as it is not being closed."""
        transport = protocol.transport
        # What was read together has come together.
        now = self._clock.now()
        for found in read_lines(data):
            if transport.disconnecting:
                return
            says = self._parse(protocol.peer, found) if isinstance(found, bytes) else found
            if says is not None:
                status, weight, kind, raw = says
                self._readings[status].inc()
                self._bus.publish(Reading(self.scale_id, status, weight, kind, raw, now), time=now)

    def _parse(self, peer: str, line: bytes) -> ScaleLine | None:
        """What a line says; one that says nothing is counted and logged."""
        if len(line) > MAX_LINE:
            self.overlong(peer, line)
            return None
        # A blank line is nothing at all.
        if not line.strip():
            return None
        try:
            found = parse_line(line)
        except WireError as error:
            self._rejected.inc()
            self._warnings.warn(
                peer.rpartition(":")[0],
                "scale {scale_id}, {peer}: {error}: {line}",
                scale_id=self.scale_id,
                peer=peer,
                error=error,
                line=shown(line),
            )
            return None
        if found.status == "OL":
            self._warnings.warn(f"OL {self.scale_id}", "scale {scale_id}: overload", scale_id=self.scale_id)
        return found

    def overlong(self, peer: str, line: bytes) -> None:
        self._overlong.inc()
        self._warnings.warn(
            peer.rpartition(":")[0],
            "scale {scale_id}, {peer}: a line beyond {most} bytes is skipped: {line}",
            scale_id=self.scale_id,
            peer=peer,
            most=MAX_LINE,
            line=shown(line),
        )


def dialled(endpoint: IStreamClientEndpoint, factory: ScaleFactory, reactor: IReactorTime) -> ClientService:
    """A service that dials out to a serial-to-Ethernet converter, again and again."""
    service: ClientService = ClientService(endpoint, factory, retryPolicy=_RETRY, clock=reactor)
    return service


@dataclass(frozen=True, slots=True)
class SerialLine:
    """A serial port and its settings, in pyserial's words."""

    device: str
    baudrate: int
    bytesize: int
    parity: str
    stopbits: float


class SerialService(Service):
    """Keeps a serial line open: waits while it cannot be opened, and opens it again when it is lost.

    :param open_port: makes a Twisted serial port of a protocol and a :class:`SerialLine`.
    """

    def __init__(
        self,
        line: SerialLine,
        factory: ScaleFactory,
        reactor: IReactorTime,
        open_port: Callable[[Any, SerialLine], Any],
    ) -> None:
        self._line = line
        self._factory = factory
        self._reactor = reactor
        self._open_port = open_port
        self._failed = 0
        self._retry: IDelayedCall | None = None
        self._protocol: _SerialProtocol | None = None

    def startService(self) -> None:
        super().startService()
        self._open()

    def stopService(self) -> None:
        super().stopService()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._protocol is not None:
            self._protocol.transport.loseConnection()

    def _open(self) -> None:
        self._retry = None
        protocol = _SerialProtocol(self._factory, self._line.device, self._lost)
        try:
            self._open_port(protocol, self._line)
        except (OSError, ValueError, termios.error) as error:  # pyserial's own is an OSError
            if self._failed == 0:
                log.warn("serial line {device} cannot be opened: {error}", device=self._line.device, error=error)
            self._try_again()
            return
        log.info("serial line {device} is open", device=self._line.device)
        self._failed = 0
        self._protocol = protocol

    def _lost(self) -> None:
        self._protocol = None
        if self.running:
            log.warn("serial line {device} is lost", device=self._line.device)
            self._try_again()

    def _try_again(self) -> None:
        self._retry = self._reactor.callLater(_RETRY(self._failed), self._open)
        self._failed += 1


class _SerialProtocol(ScaleLineProtocol):
    def __init__(self, scale: ScaleFactory, device: str, lost: Callable[[], None]) -> None:
        super().__init__(scale, device)
        self._lost = lost

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._lost()
