"""Weighing scales: lines in, readings out, for scales that dial in, are dialled, or use a serial port."""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.ingest.line_options import LineOptions
from gateway.ingest.line_pattern import LinePattern
from gateway.ingest.line_problems import LineProblems
from gateway.ingest.line_readings import LineReadings
from gateway.ingest.polling import Poller
from gateway.ingest.readings import ScaleReadings
from gateway.ingest.transport import end_reason, host_of, peer_of, prepare
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError
from gateway.wire.lines import MAX_LINE, LineReader
from gateway.wire.scale import is_tls_handshake

#: Seconds within which a dialled connection or serial line that ends without a reading counts as a failed attempt.
_GOOD_AFTER: Final = 5.0

#: Maximum log lines a minute about connections of one scale and host; only endless reconnecting exceeds it.
_CONNECTION_LINES: Final = 30


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
        self.take: Callable[[ScaleLineProtocol, bytes], None] = scale.take_first_lines
        self.patterns: dict[str, LinePattern] = {}
        self._reader = LineReader()
        self._refused = False
        self._poller: Poller | None = None
        self._discarding: IDelayedCall | None = None

    def connectionMade(self) -> None:
        prepare(self.transport)
        self.peer = self.peer or peer_of(self.transport)
        self._scale.joined(self)
        discard_sec, reactor = self._scale.options.discard_sec, self._scale.reactor
        if discard_sec and reactor is not None:
            self.take = self._scale.discard_lines
            self._discarding = reactor.callLater(discard_sec, self._end_discarding)
        self.poll(is_new=True)

    def poll(self, *, is_new: bool = False) -> None:
        """Send the commands that the scale needs, instead of those before.

        :param is_new: whether the connection has just been made.
        """
        if self._poller is not None:
            self._poller.stop()
            self._poller = None
        options, reactor = self._scale.options, self._scale.reactor
        if options.poll is not None and reactor is not None:
            self._poller = Poller(self.transport, options.poll, options.addresses or (), reactor, self._stuck)
            self._poller.start(is_new=is_new)

    def _stuck(self) -> None:
        self._scale.problems.stuck(self.peer)
        # A serial line cannot be aborted, but it has no peer that could stop to read either.
        getattr(self.transport, "abortConnection", self.transport.loseConnection)()

    def _end_discarding(self) -> None:
        """Read the lines from now on; one that has begun is skipped up to its end."""
        self._discarding = None
        self.take = self._scale.take_first_lines
        if self._reader.rest:
            self._scale.discard_lines(self, self._reader.rest)
            self._reader.skip_rest()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._poller is not None:
            self._poller.stop()
        if self._discarding is not None:
            self._discarding.cancel()
            self._discarding = None
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
            scale.lines.overlong(self.peer, reader.rest)
            reader.skip_rest()

    def refuse(self, what: str) -> None:
        """Close the connection, and read nothing more from it.

        :param what: input that came instead of a scale's line.
        """
        self._refused = True
        self._scale.problems.not_a_scale(self.peer, what)
        self.transport.loseConnection()


class ScaleFactory(Factory):
    """All connections of one scale, or of the scales behind one line.

    :ivar lines: readings of the scale, or of the scales behind the line.
    :ivar reactor: clock of commands and of ``discard_ms``; ``None`` without either.

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
        self.options = LineOptions()
        self.reactor: IReactorTime | None = None
        self.lines = LineReadings(scale_id, bus, clock, counters, warnings)
        self._clock = clock
        self.problems = LineProblems(scale_id, counters, warnings)
        self._connection_log = warnings.limited(_CONNECTION_LINES)
        self._max_connections = max_connections
        #: Open connections, and the monotonic time at which each was made.
        self._open: dict[ScaleLineProtocol, float] = {}
        #: Connections that have never sent a reading, the longest silent first.
        self._unproven: dict[ScaleLineProtocol, None] = {}
        #: Connections that are being closed in favour of a new one.
        self._evicted: set[ScaleLineProtocol] = set()
        self._waiting: list[Deferred[None]] = []
        self._connections = counters.connections.labels("scale")

    def buildProtocol(self, addr: IAddress | None) -> ScaleLineProtocol | None:
        return self.admit()

    def admit(self, lost: Callable[[bool], None] | None = None) -> ScaleLineProtocol | None:
        """Return the protocol of a new connection, or ``None`` if the scale has too many.

        :param lost: see :class:`ScaleLineProtocol`.
        """
        if len(self._open) - len(self._evicted) >= self._max_connections and not self._close_silent():
            self.problems.connection_refused(self._max_connections)
            return None
        return ScaleLineProtocol(self, lost=lost)

    def _close_silent(self) -> bool:
        """Close the longest silent connection that has never sent a reading; return whether there was one."""
        silent = next(iter(self._unproven), None)
        if silent is None:
            return False
        del self._unproven[silent]
        self._evicted.add(silent)
        self.problems.silent_closed(silent.peer, self._max_connections)
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

    def use(self, options: LineOptions, reactor: IReactorTime) -> None:
        """Use other options, also for the open connections.

        :param reactor: clock of commands and of ``discard_ms``.
        """
        before, self.options, self.reactor = self.options, options, reactor
        for scale in self.lines.use(options):
            scale.set_connected(False)
        self._set_connected()
        for protocol in self._open:
            if before.locked != options.locked:
                protocol.patterns.clear()
            if (before.poll, before.addresses) != (options.poll, options.addresses):
                protocol.poll()

    def _set_connected(self) -> None:
        """Publish the presence of each scale, if it has changed."""
        for scale in self.scales:
            scale.set_connected(bool(self._open))

    @property
    def scales(self) -> list[ScaleReadings]:
        """Return the scale, or the scales behind the line."""
        return self.lines.scales

    @property
    def is_connected(self) -> bool:
        """Return whether the line has a connection to this gateway."""
        return bool(self._open)

    @property
    def peers(self) -> list[str]:
        """Return the addresses or devices of the open connections."""
        return [protocol.peer for protocol in self._open]

    @property
    def line_age(self) -> float | None:
        """Return the seconds since the last line of any scale, valid or not; ``None`` before the first line."""
        return min((age for scale in self.scales if (age := scale.line_age) is not None), default=None)

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
            self._set_connected()

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
            self._set_connected()
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
        before = self._count()
        self.lines.take(protocol, data)
        if self._count() > before:
            protocol.take = self.lines.take
            self._unproven.pop(protocol, None)
        else:
            self.note_activity(protocol)

    def _count(self) -> float:
        return sum(scale.count for scale in self.scales)

    def discard_lines(self, protocol: ScaleLineProtocol, data: bytes) -> None:
        """Discard lines that came too soon after connecting: a converter may have stored them for hours."""
        if not self.is_tls(protocol, data):
            self.lines.discard(data)
