"""Site with bounds and deadlines for all its connections."""

from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Site

from gateway.runtime.metrics import Counters
from gateway.web.http.answers import Refusal
from gateway.web.http.channel import Deadlines, GatewayChannel
from gateway.web.http.request import MAX_DISCARDED_BODY, GatewayRequest, Traffic

log = Logger()

#: Seconds between two checks of the deadlines, and maximum seconds that one check counts: a delay of the gateway itself
#: must not count against a client.
_CHECK_INTERVAL: Final = 1.0
_MAX_INTERVAL: Final = 2.0

#: Maximum seconds for waiting requests, or for checks of deadlines, in one turn of the reactor.
_TURN_SECONDS: Final = 0.01

#: Maximum connections that are searched for an idle one to close.
_MAX_SEARCHED: Final = 64


class GatewaySite(Site):
    """Site of all resources.

    :param max_connections: maximum open connections. At this bound, an idle one is closed in favour of a new one.
    """

    noisy = False
    protocol: Any = GatewayChannel

    def __init__(
        self,
        reactor: IReactorTime,
        root: IResource,
        traffic: Traffic,
        counters: Counters,
        max_connections: int,
        deadlines: Deadlines | None = None,
    ) -> None:
        super().__init__(root, requestFactory=partial(GatewayRequest, traffic), timeout=None, reactor=reactor)
        self.traffic = traffic
        #: They may be replaced, for open connections too.
        self.deadlines = deadlines or Deadlines()
        self._max_connections = max_connections
        self._open: dict[GatewayChannel, None] = {}
        self._connections = counters.connections.labels("http")
        self._refused = counters.connections_refused.labels("http")
        self._slow = {phase: counters.http_slow.labels(phase) for phase in ("head", "body", "reader", "idle")}
        #: Connections with waiting requests, in the order of their turns.
        self._queue: dict[GatewayChannel, None] = {}
        self._to_check: list[GatewayChannel] = []
        self._checked_at = reactor.seconds()
        self._checks = LoopingCall(self._check_deadlines)
        self._checks.clock = reactor

    @property
    def max_refused_body(self) -> int:
        """Maximum bytes of a refused body that is still read to its end."""
        return self.traffic.max_body + MAX_DISCARDED_BODY

    def update(self, max_connections: int, deadlines: Deadlines) -> None:
        """Change the maximum of open connections, for new ones, and the deadlines of all."""
        self._max_connections = max_connections
        self.deadlines = deadlines

    def startFactory(self) -> None:
        super().startFactory()
        if not self._checks.running:
            self._checked_at = self.reactor.seconds()
            self._checks.start(_CHECK_INTERVAL, now=False)

    def stopFactory(self) -> None:
        super().stopFactory()
        if self._checks.running:
            self._checks.stop()

    def _check_deadlines(self) -> None:
        """Enforce the deadlines of all connections."""
        if self._to_check:
            # The previous check has not ended yet.
            return
        now = self.reactor.seconds()
        seconds, self._checked_at = min(now - self._checked_at, _MAX_INTERVAL), now
        self._to_check = list(self._open)
        self._check_part(seconds)

    def _check_part(self, seconds: float) -> None:
        until = self.reactor.seconds() + _TURN_SECONDS
        while self._to_check:
            channel = self._to_check.pop()
            if channel.counted:
                try:
                    channel.tick(seconds)
                except Exception:  # the other connections have deadlines too
                    log.failure("cannot check the deadlines of an HTTP connection")
            if self.reactor.seconds() > until:
                self.reactor.callLater(0, self._check_part, seconds)
                return

    def queue_turn(self, channel: GatewayChannel) -> None:
        """Queue a connection that has several requests, so that the next one is answered in a later turn.

        Other connections are served in between.
        """
        if not self._queue:
            self.reactor.callLater(0, self._give_turns)
        self._queue[channel] = None

    def _give_turns(self) -> None:
        queue, self._queue = self._queue, {}
        until = self.reactor.seconds() + _TURN_SECONDS
        while queue:
            channel = next(iter(queue))
            del queue[channel]
            try:
                channel.answer_next()
            except Exception:  # the other connections have turns too
                log.failure("cannot answer a waiting HTTP request")
                channel.transport.abortConnection()
            if self.reactor.seconds() > until:
                break
        if queue and not self._queue:
            self.reactor.callLater(0, self._give_turns)
        # Connections that got no turn come before those that got one.
        self._queue = queue | self._queue

    def count_slow(self, phase: str) -> None:
        """Count a connection closed at the deadline of its ``head``, ``body``, ``reader`` or ``idle`` phase."""
        self._slow[phase].inc()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self._open) >= self._max_connections and not self._close_idle():
            return self.refuse_connection(addr, f"limits.connections ({self._max_connections}) is reached")
        channel = super().buildProtocol(addr)
        if channel is not None:
            self._open[channel] = None
            self._connections.inc()
        return channel

    def refuse_connection(self, addr: IAddress | None, limit: str) -> Protocol:
        """Count and log a connection above a limit; return the protocol that answers it.

        :param limit: the limit, for the log.
        """
        self._refused.inc()
        self.traffic.report_refused(addr, Refusal(503, "too_many_connections", detail=limit))
        return _RefusedConnection()

    def remove(self, channel: GatewayChannel) -> None:
        """Stop counting a connection that is lost, or is used for another protocol."""
        del self._open[channel]
        self._connections.dec()

    def _close_idle(self) -> bool:
        """Close an idle connection among the oldest; return whether there was one."""
        for channel in [channel for channel, _ in zip(self._open, range(_MAX_SEARCHED), strict=False)]:
            if channel.is_idle and channel.transport is not None:
                channel.close_idle()
                return True
            # Move it to the end, so that it is checked again only after all others.
            del self._open[channel]
            self._open[channel] = None
        return False

    def log(self, request: object) -> None:
        """Log nothing: requests are counted instead."""


def plain_http_answer() -> bytes:
    """Return the answer to a request without TLS on a port with TLS."""
    return Refusal(400, "bad_request", "TLS 포트입니다. https://로 접속하세요").whole_answer()


class _RefusedConnection(Protocol):
    """Connection above the bound, which gets an error answer at once and is closed."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(Refusal(503, "too_many_connections").whole_answer())
        self.transport.loseConnection()
