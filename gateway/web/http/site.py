"""One Site for everything: its requests, and which resource answers what."""

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


#: Seconds between two checks of the deadlines of all connections, and the maximum that one check counts: a delay of the
#: gateway itself must not count against a client.
_LOOK: Final = 1.0


_LONGEST_LOOK: Final = 2.0


#: Maximum seconds of one turn of the reactor for answers to requests sent at once, or for checks of deadlines.
_TURN_SECONDS: Final = 0.01


#: Maximum seconds by which a body, or the reading of an answer, may fall behind 1 KiB/s.
GRACE: Final = 10.0


#: Maximum connections that are searched for one to close in favour of a new one.
_SEARCH: Final = 64


class GatewaySite(Site):
    """The site.

    :param most: maximum open connections. At this bound, an idle one is closed in favour of a new one.
    """

    noisy = False
    protocol: Any = GatewayChannel

    def __init__(
        self,
        reactor: IReactorTime,
        root: IResource,
        traffic: Traffic,
        counters: Counters,
        most: int,
        deadlines: Deadlines | None = None,
    ) -> None:
        super().__init__(root, requestFactory=partial(GatewayRequest, traffic), timeout=None, reactor=reactor)
        self.traffic = traffic
        self.deadlines = deadlines or Deadlines(grace=GRACE)
        #: Maximum bytes of a refused body that is still read to its end.
        self.max_refused_body = traffic.max_body + MAX_DISCARDED_BODY
        self._most = most
        self._open: dict[GatewayChannel, None] = {}
        self._connections = counters.connections.labels("http")
        self._refused = counters.connections_refused.labels("http")
        self._slow = {what: counters.http_slow.labels(what) for what in ("head", "body", "reader", "idle")}
        #: Connections with waiting requests, in the order of their turns.
        self._queue: dict[GatewayChannel, None] = {}
        self._to_look: list[GatewayChannel] = []
        self._looked = reactor.seconds()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def startFactory(self) -> None:
        super().startFactory()
        if not self._looking.running:
            self._looked = self.reactor.seconds()
            self._looking.start(_LOOK, now=False)

    def stopFactory(self) -> None:
        super().stopFactory()
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        """Enforce the deadlines of all connections."""
        if self._to_look:
            # The previous check has not ended yet.
            return
        now = self.reactor.seconds()
        seconds, self._looked = min(now - self._looked, _LONGEST_LOOK), now
        self._to_look = list(self._open)
        self._look_on(seconds)

    def _look_on(self, seconds: float) -> None:
        until = self.reactor.seconds() + _TURN_SECONDS
        while self._to_look:
            channel = self._to_look.pop()
            if channel.counted:
                try:
                    channel.tick(seconds)
                except Exception:  # the other connections have deadlines too
                    log.failure("the deadlines of a connection cannot be checked")
            if self.reactor.seconds() > until:
                self.reactor.callLater(0, self._look_on, seconds)
                return

    def queue_turn(self, channel: GatewayChannel) -> None:
        """Queue a connection with several waiting requests to answer the next one in a later turn.

        Other connections are served between these answers, however many such connections there are.
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
                channel.go_on()
            except Exception:  # the other connections have turns too
                log.failure("a waiting request cannot be answered")
                channel.transport.abortConnection()
            if self.reactor.seconds() > until:
                break
        if queue and not self._queue:
            self.reactor.callLater(0, self._give_turns)
        # Connections that got no turn come before those that got one.
        self._queue = queue | self._queue

    def count_slow(self, what: str) -> None:
        """Count a connection that was closed at the deadline of a ``head``, a ``body``, its ``reader`` or ``idle``."""
        self._slow[what].inc()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self._open) >= self._most and not self._close_idle():
            self._refused.inc()
            self.traffic.refused(addr, Refusal(503, "too_many_connections", detail="limits.connections is reached"))
            return _TooMany()
        channel = super().buildProtocol(addr)
        if channel is not None:
            self._open[channel] = None
            self._connections.inc()
        return channel

    def left(self, channel: GatewayChannel) -> None:
        """Forget a connection that is lost, or is used for another protocol."""
        del self._open[channel]
        self._connections.dec()

    def _close_idle(self) -> bool:
        """Close an idle connection among the oldest; return whether there was one."""
        for channel in [channel for channel, _ in zip(self._open, range(_SEARCH), strict=False)]:
            if channel.is_idle and channel.transport is not None:
                channel.give_way()
                return True
            # Move it to the end, so that it is checked again only after all others.
            del self._open[channel]
            self._open[channel] = None
        return False

    def log(self, request: object) -> None:
        """Log nothing: requests are counted instead."""


class _TooMany(Protocol):
    """A connection beyond the bound, which gets an error answer at once and is closed."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(Refusal(503, "too_many_connections").whole_answer())
        self.transport.loseConnection()
