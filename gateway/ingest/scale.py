"""Weighing scales: lines in, readings out, for scales that dial in, are dialled, or use a serial port."""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.ingest.transport import end_reason, host_of, peer_of, prepare
from gateway.model.records import Presence, Reading
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog, shown
from gateway.runtime.metrics import Counters
from gateway.weighing.registry import Guards
from gateway.wire.errors import WireError
from gateway.wire.lines import MAX_LINE, LineReader
from gateway.wire.scale import ScaleLine, is_tls_handshake, parse_line, read_lines

#: Seconds within which a dialled connection or serial line that ends without a reading counts as a failed attempt.
_GOOD_AFTER: Final = 5.0

#: Maximum log lines a minute about connections of one scale and host; only endless reconnecting exceeds it.
_CONNECTION_LINES: Final = 30

#: Maximum log lines about failed attempts of one scale for one reason, and the period in which they count, in seconds.
_RETRY_LINES: Final = 5
_RETRY_PERIOD: Final = 600.0


class ScaleLineProtocol(LineReceiver):
    """One connection of one scale.

    A :class:`~gateway.wire.lines.LineReader` splits the lines, because :class:`LineReceiver` takes them out of its
    buffer one by one, which costs more than parsing them.

    :param peer: name for log lines; by default the transport's peer.
    :param lost: called when the connection has ended, with true if it was good: it sent a reading, or lasted for some
        seconds.
    """

    transport: Any

    def __init__(
        self,
        scale: "ScaleFactory",
        peer: str = "",
        lost: Callable[[bool], None] | None = None,
    ) -> None:
        self.peer = peer
        self._scale = scale
        self._lost = lost
        #: Handler of whole lines; a different one until the first reading.
        self.take = scale.take_first_lines
        self._reader = LineReader()
        self._refused = False

    def connectionMade(self) -> None:
        prepare(self.transport)
        self.peer = self.peer or peer_of(self.transport)
        self._scale.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        was_good = self._scale.left(self, reason)
        if self._lost is not None:
            self._lost(was_good)

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            return
        reader = self._reader
        if reader.is_skipping:
            self._scale.note_activity(self)
        try:
            lines = reader.receive_data(data)
        except WireError as error:
            # A web page can make a browser send any bytes with its request, so the whole read is discarded.
            self.refuse(str(error))
            return
        if lines:
            self.take(self, lines)
        if reader.rest and not self._refused:
            self._check_rest(is_first=not lines)

    def _check_rest(self, *, is_first: bool) -> None:
        """Check an incomplete line for a TLS handshake, and for its length.

        :param is_first: whether the read held no complete line.
        """
        reader, scale = self._reader, self._scale
        is_overlong = len(reader.rest) > MAX_LINE
        if (is_first or is_overlong) and scale.is_tls(self, reader.rest):
            return
        if is_overlong:
            scale.overlong(self.peer, reader.rest)
            reader.skip_rest()

    def refuse(self, what: str) -> None:
        """Close the connection, and read nothing more from it.

        :param what: input that came instead of a scale's line.
        """
        self._refused = True
        self._scale.refused(self.peer, what)
        self.transport.loseConnection()


class ScaleFactory(Factory):
    """All connections of one scale.

    :param warnings: log for lines about bad input; lines about connections and failed attempts have limits of their
        own.
    :param max_connections: maximum open connections. When it is reached, the connection that has been silent the
        longest and has never sent a reading is closed in favour of a new one.
    """

    noisy = False

    def __init__(
        self, scale_id: str, bus: Bus, clock: WallClock, counters: Counters, warnings: LimitedLog, max_connections: int
    ) -> None:
        self.scale_id = scale_id
        self._bus = bus
        self._clock = clock
        self._warnings = warnings
        self._connection_log = warnings.limited(_CONNECTION_LINES)
        self._retry_log = warnings.limited(_RETRY_LINES, _RETRY_PERIOD)
        self._max_connections = max_connections
        #: Guard of the scale's commits, which judges each line.
        self.guard = Guards({}).of(scale_id)
        #: Open connections, and the monotonic time at which each was made.
        self._open: dict[ScaleLineProtocol, float] = {}
        #: Connections that have never sent a reading, the longest silent first.
        self._unproven: dict[ScaleLineProtocol, None] = {}
        #: Connections that are being closed in favour of a new one.
        self._evicted: set[ScaleLineProtocol] = set()
        self._waiting: list[Deferred[None]] = []
        #: Monotonic time of the last line, in seconds; ``None`` before the first line.
        self._last_line: float | None = None
        self._connections = counters.connections.labels("scale")
        self._refused = counters.connections_refused.labels("scale")
        self._readings = {
            status: counters.scale_readings.labels(scale_id, status) for status in ("ST", "US", "HD", "OL")
        }
        self._rejected = counters.scale_rejected.labels(scale_id)
        self._overlong = counters.scale_overlong.labels(scale_id)
        self._http_requests = counters.scale_http_requests.labels(scale_id)
        self._silent_closed = counters.scale_silent_closed.labels(scale_id)
        self._failed_attempts = counters.scale_failed_attempts.labels(scale_id)

    def buildProtocol(self, addr: IAddress | None) -> ScaleLineProtocol | None:
        return self.admit()

    def admit(self, lost: Callable[[bool], None] | None = None) -> ScaleLineProtocol | None:
        """Return the protocol of a new connection, or ``None`` if the scale has too many.

        :param lost: see :class:`ScaleLineProtocol`.
        """
        if len(self._open) - len(self._evicted) >= self._max_connections and not self._close_silent():
            self._refused.inc()
            self._warnings.warn(
                f"connections {self.scale_id}",
                "scale {scale_id}: connection refused: limits.connections ({max_connections}) is reached, and all have "
                "sent readings",
                scale_id=self.scale_id,
                max_connections=self._max_connections,
            )
            return None
        return ScaleLineProtocol(self, lost=lost)

    def _close_silent(self) -> bool:
        """Close the longest silent connection that has never sent a reading; return whether there was one."""
        silent = next(iter(self._unproven), None)
        if silent is None:
            return False
        del self._unproven[silent]
        self._evicted.add(silent)
        self._silent_closed.inc()
        self._warnings.warn(
            f"silent {self.scale_id}",
            "scale {scale_id}: {peer} is closed for a new connection: limits.connections ({max_connections}) is "
            "reached, and it has not sent a reading",
            scale_id=self.scale_id,
            peer=silent.peer,
            max_connections=self._max_connections,
        )
        silent.transport.loseConnection()
        return True

    def close(self) -> None:
        """Close every connection."""
        for protocol in list(self._open):
            protocol.transport.loseConnection()

    def closed(self) -> "Deferred[None]":
        """Return a Deferred that fires when no connection is open."""
        closed: Deferred[None] = Deferred()
        self._waiting.append(closed)
        self._tell_closed()
        return closed

    def _tell_closed(self) -> None:
        if not self._open:
            waiting, self._waiting = self._waiting, []
            for closed in waiting:
                closed.callback(None)

    def update(self, max_connections: int) -> None:
        """Change the maximum of open connections, for new ones."""
        self._max_connections = max_connections

    @property
    def is_connected(self) -> bool:
        """Return whether the scale has a connection to this gateway."""
        return bool(self._open)

    @property
    def peers(self) -> list[str]:
        """Return the addresses or devices of the open connections."""
        return [protocol.peer for protocol in self._open]

    @property
    def line_age(self) -> float | None:
        """Return the seconds since the last line, valid or not; ``None`` before the first line."""
        return None if self._last_line is None else self._clock.monotonic() - self._last_line

    # -- events of the connections

    def joined(self, protocol: ScaleLineProtocol) -> None:
        """Register a connection that was made."""
        others = list(self._open)
        self._open[protocol] = self._clock.monotonic()
        self._unproven[protocol] = None
        self._connections.inc()
        kind = f"connection {self.scale_id} {host_of(protocol.peer)}"
        if others:
            self._connection_log.warn(
                kind,
                "scale {scale_id}: {peer} connected while {others} connected too: the newest reading of all wins",
                scale_id=self.scale_id,
                peer=protocol.peer,
                others=f"{others[-1].peer} is"
                if len(others) == 1
                else f"{others[-1].peer} and {len(others) - 1} more are",
            )
        else:
            self._connection_log.info(
                kind, "scale {scale_id}: {peer} connected", scale_id=self.scale_id, peer=protocol.peer
            )
            self._bus.publish(Presence("scale", self.scale_id, connected=True))

    def left(self, protocol: ScaleLineProtocol, reason: Failure) -> bool:
        """Forget a connection that has ended; return whether it was good."""
        is_ours = protocol.transport.disconnecting
        age = self._clock.monotonic() - self._open.pop(protocol)
        was_good = protocol not in self._unproven or age >= _GOOD_AFTER
        self._unproven.pop(protocol, None)
        self._evicted.discard(protocol)
        self._connections.dec()
        self._connection_log.info(
            f"connection {self.scale_id} {host_of(protocol.peer)}",
            "scale {scale_id}: {peer} disconnected ({reason})",
            scale_id=self.scale_id,
            peer=protocol.peer,
            reason="closed by the gateway" if is_ours else end_reason(reason.value),
        )
        if not self._open:
            self._bus.publish(Presence("scale", self.scale_id, connected=False))
        self._tell_closed()
        return was_good

    def note_activity(self, protocol: ScaleLineProtocol) -> None:
        """Note that a connection has sent bytes, but no reading yet."""
        if protocol in self._unproven:
            del self._unproven[protocol]
            self._unproven[protocol] = None

    def is_tls(self, protocol: ScaleLineProtocol, data: bytes) -> bool:
        """Close a connection that begins with a TLS handshake; return whether it did.

        :param data: bytes that have not given a reading yet.
        """
        if protocol not in self._unproven:
            return False
        if is_tls_handshake(data):
            protocol.refuse("a TLS handshake")
            return True
        self.note_activity(protocol)
        return False

    def take_first_lines(self, protocol: ScaleLineProtocol, data: bytes) -> None:
        """Process whole lines of a connection that has not sent a reading yet."""
        if self.is_tls(protocol, data):
            return
        # A DAQ program on the wrong port: a pickle may have its secret in a line of its own, which would be logged.
        head, secret, _ = data.partition(b"secret")
        data = head + secret + b"\n" if secret else data
        before = sum(counter.value for counter in self._readings.values())
        self.take_lines(protocol, data)
        if sum(counter.value for counter in self._readings.values()) > before:
            protocol.take = self.take_lines
            self._unproven.pop(protocol, None)
        else:
            self.note_activity(protocol)

    def take_lines(self, protocol: ScaleLineProtocol, data: bytes) -> None:
        """Process whole lines from one read of a connection, until the connection is being closed."""
        transport = protocol.transport
        self._last_line = self._clock.monotonic()
        # Lines of one read have the same time.
        now = self._clock.now()
        for line in read_lines(data):
            if transport.disconnecting:
                return
            fields = self._parse(protocol.peer, line) if isinstance(line, bytes) else line
            if fields is not None:
                status, weight, kind, raw = fields
                self._readings[status].inc()
                marks = self.guard.receive(status, weight, kind, "kg", self._last_line)
                reading = Reading(self.scale_id, status, weight, kind, raw, now, "kg", *marks)
                self._bus.publish(reading, time=now)

    def _parse(self, peer: str, line: bytes) -> ScaleLine | None:
        """Parse a line that is not in the most common form; count and log it if it is not a valid reading."""
        if len(line) > MAX_LINE:
            self.overlong(peer, line)
            return None
        # A blank line is ignored.
        if not line.strip():
            return None
        try:
            parsed = parse_line(line)
        except WireError as error:
            self._rejected.inc()
            self._warnings.warn(
                f"line {host_of(peer)}",
                "scale {scale_id}, {peer}: {error}: {line}",
                scale_id=self.scale_id,
                peer=peer,
                error=error,
                line=shown(line),
            )
            return None
        if parsed.status == "OL":
            self._warnings.warn(f"OL {self.scale_id}", "scale {scale_id}: overload", scale_id=self.scale_id)
        return parsed

    def overlong(self, peer: str, line: bytes) -> None:
        """Count and log a line that is too long."""
        self._overlong.inc()
        self._warnings.warn(
            f"line {host_of(peer)}",
            "scale {scale_id}, {peer}: a line of more than {max_line} bytes is skipped: {line}",
            scale_id=self.scale_id,
            peer=peer,
            max_line=MAX_LINE,
            line=shown(line),
        )

    def refused(self, peer: str, what: str) -> None:
        """Count and log a connection that is closed because a web browser's input came."""
        self._http_requests.inc()
        self._warnings.warn(
            f"http {host_of(peer)}",
            "scale {scale_id}, {peer}: connection closed and its data discarded: this is {what}, not a scale",
            scale_id=self.scale_id,
            peer=peer,
            what=what,
        )

    # -- attempts to reach the scale

    def attempt_failed(self, problem: str, delay: float) -> None:
        """Count and log a failed attempt to reach the scale.

        :param problem: address or device, and reason.
        :param delay: seconds until the next attempt.
        """
        self._failed_attempts.inc()
        self._retry_log.warn(
            f"retry {self.scale_id} {problem}",
            "scale {scale_id}: {problem}; retrying in {delay:.0f} s",
            scale_id=self.scale_id,
            problem=problem,
            delay=delay,
        )
