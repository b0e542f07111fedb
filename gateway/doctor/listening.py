"""Check of the scales that dial the gateway: listens in its place while it does not run."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from gateway.config.scale_settings import ScaleConnection
from gateway.doctor.findings import Finding, ok, warning
from gateway.doctor.plant import ListeningPort, Plant, listening_ports
from gateway.doctor.ports import bind
from gateway.doctor.scales import Asker, Heard, hear
from gateway.doctor.tls import server_context

#: Maximum connections to one port.
_MAX_CONNECTIONS = 16


def check_listening(plant: Plant) -> Iterator[Finding]:
    """Listen for all scales at once, and show the lines of each connection."""
    if plant.gateway is not None or plant.listen_seconds <= 0:
        return
    lines = plant.settings.lines()
    ports = {port.key: port for port in listening_ports(plant.settings) if not port.key.startswith("server.")}
    ears = []
    for scale_id, line in lines.items():
        key = plant.scale_key(scale_id)
        if line.listen is None:
            continue
        if key not in ports or line.listen.lower().startswith("ssl:"):
            yield ok(key, f"{line.listen}: not listened on; start the gateway and look at /healthz")
            continue
        try:
            ears.append(_Ear(plant, ports[key], line))
        except OSError:
            # The check of the ports has said why, or that of the TLS files.
            continue
    for ear in ears:
        ear.start()
    for ear in ears:
        yield from ear.findings(plant.listen_seconds)


class _Ear:
    """Listener on the port of one scale.

    :raises OSError: the port cannot be bound, or the TLS files cannot be used.
    """

    def __init__(self, plant: Plant, port: ListeningPort, line: ScaleConnection) -> None:
        self._port = port
        self._line = line
        self._context = None if line.tls is None else server_context(plant, line.tls)
        self._deadline = time.monotonic() + plant.listen_seconds
        self._socket = bind(port)
        self._heard: dict[str, Heard] = {}
        self._thread = threading.Thread(target=self._accept, name=port.key, daemon=True)

    def start(self) -> None:
        """Start to listen."""
        self._socket.listen()
        self._socket.settimeout(0.1)
        self._thread.start()

    def findings(self, seconds: float) -> Iterator[Finding]:
        """Wait until the end, and yield a finding for each connection."""
        self._thread.join()
        for peer, heard in list(self._heard.items()):
            yield heard.finding(self._port.key, peer, seconds)
        if not self._heard:
            seen = f"no scale has connected to {self._port} within {seconds:g} s"
            remedy = "switch the scale on, let its converter dial this address and port, and open the firewall"
            yield warning(self._port.key, seen, remedy)

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        with contextlib.closing(self._socket):
            while time.monotonic() < self._deadline:
                try:
                    connection, address = self._socket.accept()
                except TimeoutError:
                    continue
                if len(threads) == _MAX_CONNECTIONS:
                    connection.close()
                    continue
                heard = self._heard[f"{address[0]}:{address[1]}"] = Heard(
                    other="a scale has that address",
                    prefix=self._line.prefix,
                    is_polled=self._line.poll is not None,
                )
                threads.append(threading.Thread(target=self._hear, args=(connection, heard), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _hear(self, connection: socket.socket, heard: Heard) -> None:
        with contextlib.closing(connection):
            connection.settimeout(max(0.1, self._deadline - time.monotonic()))
            try:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                connection.settimeout(0.1)
                asker = Asker(self._line, connection.sendall)
                hear(lambda: connection.recv(4096), heard, self._deadline, asker.ask, enough=False)
            except OSError as problem:
                if not heard.size:
                    heard.problem = f"nothing that can be read ({type(problem).__name__})"
