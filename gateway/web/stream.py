"""Live events by WebSocket, at ``/ws``; the messages are described in ``docs/events.rst``."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson
from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from gateway import __version__
from gateway.bus import Bus, Event, event_text, parse_topic
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.live import Live
from gateway.logs import LimitedLog
from gateway.model import Presence, Reading, Record, Update
from gateway.web.answers import Refusal, refuse
from gateway.web.site import GatewayRequest

#: A client's message, in bytes, and the topics it may follow.
_MOST_MESSAGE: Final = 64 * 1024
_MOST_TOPICS: Final = 1000

#: Seconds between pings, and until an answer is missed.
_PING: Final = 20
_PONG: Final = 20

#: Seconds that a client has to answer a close; a slow one has to read up to it first.
_CLOSE: Final = 10

#: Past events that are fetched at a time.
_FETCH: Final = 100

#: Bytes that may wait in the transport itself before it asks for a pause.
_BUFFER: Final = 64 * 1024

#: What an entry in a client's queue is counted as, beside its text: a tuple and its place.
_ENTRY: Final = 100

#: And what a client's own request makes wait: its answer, its topics.
_REQUEST: Final = 1000

#: Seconds that more than its bound may wait for a client: a burst of one moment is none of its fault.
_GRACE: Final = 2.0

#: So many times its bound may wait for a client within that.
_HARD_LIMIT: Final = 4

#: Close codes: RFC 6455, 7.4.1, and the contract's own.
GOING_AWAY: Final = 1001
TOO_SLOW: Final = 4008


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The present state of a source, made when the client has read what comes before it.

    :ivar seq: the last event before the subscription. What comes after and is in the snapshot already is left out, but
        a client that comes back with this number misses nothing.
    """

    source: str
    name: str
    seq: int


@dataclass(slots=True)
class _Replay:
    """Past events up to one, fetched from the backlog as the client reads.

    :ivar since: the last of them that was sent, or passed over.
    """

    since: int
    until: int
    patterns: frozenset[tuple[str, ...]]


_Item: TypeAlias = bytes | Event | _Snapshot | _Replay


@implementer(IPushProducer)
class StreamProtocol(WebSocketServerProtocol):
    """One subscriber."""

    factory: "StreamFactory"
    transport: Any

    def onConnect(self, request: ConnectionRequest) -> None:
        """Accept; subprotocols are none of ours."""

    def failHandshake(self, reason: str, *args: Any, **kwargs: Any) -> None:
        self.factory.counters.websocket_errors.inc()
        self.factory.warnings.warn(
            "websocket handshake", "WebSocket handshake of {peer} is refused: {reason}", peer=self.peer, reason=reason
        )
        super().failHandshake(reason, *args, **kwargs)

    def onOpen(self) -> None:
        #: What waits for the client to read, and how many bytes that is. A snapshot is not made yet, and what was
        #: missed is not fetched yet: they count as entries only.
        self._waiting: deque[tuple[int, _Item]] = deque()
        self._held = 0
        self._judgement: IDelayedCall | None = None
        self._paused = False
        self._leaving = False
        #: Sources whose snapshot was sent late, and the event that it included last.
        self._covered: dict[str, int] = {}
        # The HTTP channel was the transport's producer.
        self.transport.unregisterProducer()
        self.transport.bufferSize = _BUFFER
        self.transport.registerProducer(self, True)
        self.factory.opened(self)

    def onClose(self, *_: Any) -> None:
        if self.factory.closed(self):
            self._stop_judging()

    def onPing(self, payload: bytes) -> None:
        # Who does not read gets no pongs either: they would wait in the transport without a bound.
        if not self._paused:
            super().onPing(payload)

    # -- what the client says

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._leaving:
            return
        try:
            self._understand(payload, isBinary)
        except ValueError as error:
            self.factory.warnings.warn(
                f"websocket {self.peer}", "WebSocket message of {peer} is refused: {error}", peer=self.peer, error=error
            )
            self.factory.counters.websocket_errors.inc()
            self._say({"type": "error", "error": "invalid_request", "message": str(error)})

    def _understand(self, payload: bytes, is_binary: bool) -> None:
        try:
            message = None if is_binary else orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise ValueError("the message is not JSON") from error
        match message:
            case {"type": "subscribe", "topics": topics, **rest}:
                self._subscribe(topics, rest.get("since"))
            case {"type": "unsubscribe", "topics": topics}:
                patterns = _patterns(topics)
                self.factory.bus.unsubscribe(self, frozenset(patterns))
                self._say({"type": "unsubscribed", "topics": topics})
            case {"type": "subscribe" | "unsubscribe"}:
                raise ValueError("topics are missing")
            case _:
                raise ValueError("a message is a JSON object of type subscribe or unsubscribe")

    def _subscribe(self, topics: Any, since: Any) -> None:
        bus = self.factory.bus
        patterns = frozenset(_patterns(topics))
        if since is not None and (type(since) is not int or since < 0):
            raise ValueError("since is the seq of an event")
        if len(bus.patterns_of(self) | patterns) > _MOST_TOPICS:
            raise ValueError(f"more than {_MOST_TOPICS} topics")
        bus.subscribe(self, patterns)
        self._say({"type": "subscribed", "topics": topics, "seq": bus.seq})
        if since is not None and bus.holds(since, patterns):
            self._queue(_REQUEST, _Replay(since, bus.seq, patterns))
        else:
            for source, name in self.factory.sources(patterns):
                self._queue(_ENTRY, _Snapshot(source, name, bus.seq))

    # -- what it is told

    def deliver(self, event: Event) -> None:
        if self._paused or self._waiting:
            self._queue(_ENTRY + len(event.text()), event)
        else:
            self._tell(event)

    def _say(self, message: dict[str, Any]) -> None:
        text = orjson.dumps(message)
        self._queue(_REQUEST + len(text), text)

    def _queue(self, cost: int, item: _Item) -> None:
        if self._leaving:
            return
        self._waiting.append((cost, item))
        self._held += cost
        self._drain()
        most = self.factory.max_waiting
        if self._held > _HARD_LIMIT * most:
            self._too_slow()
        elif self._held > most and self._judgement is None:
            self._judgement = self.factory.reactor.callLater(_GRACE, self._judge)

    def _judge(self) -> None:
        self._judgement = None
        if self._held > self.factory.max_waiting:
            self._too_slow()

    def _too_slow(self) -> None:
        self.factory.counters.subscribers_slow.inc()
        self.leave(TOO_SLOW, "read too slowly; come back with since")

    def _drain(self) -> None:
        while self._waiting and not self._paused:
            cost, item = self._waiting[0]
            if isinstance(item, _Replay) and not self._replay(item):
                continue
            self._waiting.popleft()
            self._held -= cost
            if not isinstance(item, _Replay):
                self._tell(item)
        if not self._waiting:
            self._covered.clear()

    def _replay(self, replay: _Replay) -> bool:
        """Send what the client reads of what it missed; whether that was all."""
        bus = self.factory.bus
        if not bus.holds(replay.since, replay.patterns):
            self._too_slow()
            # It has left, and nothing waits any more.
            return False
        for event in bus.missed(replay.since, replay.patterns, replay.until, _FETCH):
            self._tell(event)
            replay.since = event.seq
            if self._paused:
                return False
        return not bus.missed(replay.since, replay.patterns, replay.until, 1)

    def _tell(self, item: bytes | Event | _Snapshot) -> None:
        if self.state != self.STATE_OPEN:
            # The client has said that it closes.
            return
        if isinstance(item, Event):
            if item.seq > self._covered.get(item.topic, 0) or not _is_in_snapshot(item.record):
                self.sendPreparedMessage(self.factory.framed(item))
        elif isinstance(item, _Snapshot):
            text = self.factory.snapshot(item)
            self._covered[f"{item.source}/{item.name}"] = self.factory.bus.seq
            self.sendMessage(text)
        else:
            self.sendMessage(item)

    def leave(self, code: int, reason: str) -> None:
        """Close, and forget what waits."""
        self._leaving = True
        self._stop_judging()
        self.factory.bus.unsubscribe(self)
        self._waiting.clear()
        self._held = 0
        # Not sendClose: it lets a program say 1000 and 3000 to 4999 only.
        self.sendCloseFrame(code, reason.encode())

    def _stop_judging(self) -> None:
        if self._judgement is not None:
            self._judgement.cancel()
            self._judgement = None

    # -- the transport's wishes

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._drain()

    def stopProducing(self) -> None:
        self._paused = True


class StreamFactory(WebSocketServerFactory):
    """All subscribers.

    :param max_waiting: bytes of events that may wait for one client to read.
    :param most: subscribers at a time.
    """

    protocol: Any = StreamProtocol
    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        live: Live,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        max_waiting: int,
        most: int,
    ) -> None:
        super().__init__(reactor=reactor, server=f"cynow-gateway/{__version__}")
        self.setProtocolOptions(
            webStatus=False,
            failByDrop=False,
            maxFramePayloadSize=_MOST_MESSAGE,
            maxMessagePayloadSize=_MOST_MESSAGE,
            autoPingInterval=_PING,
            autoPingTimeout=_PONG,
            # Who talks but does not read has to answer too.
            autoPingRestartOnAnyTraffic=False,
            closeHandshakeTimeout=_CLOSE,
        )
        self.bus = bus
        self.counters = counters
        self.warnings = warnings
        self.max_waiting = max_waiting
        self._live = live
        self._clock = clock
        self._most = most
        self._open: set[StreamProtocol] = set()
        self._emptied: Deferred[None] | None = None
        self._connections = counters.connections.labels("websocket")

    def has_room(self) -> bool:
        return len(self._open) < self._most

    def opened(self, protocol: StreamProtocol) -> None:
        self._open.add(protocol)
        self._connections.inc()

    def closed(self, protocol: StreamProtocol) -> bool:
        """One connection less, if it was open: a handshake that failed was not."""
        was_open = protocol in self._open
        if was_open:
            self._open.remove(protocol)
            self._connections.dec()
            self.bus.unsubscribe(protocol)
        if self._emptied is not None and not self._open:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
        return was_open

    async def close(self) -> None:
        """Tell every client that the daemon goes; done when all have gone."""
        for protocol in list(self._open):
            protocol.leave(GOING_AWAY, "the gateway is stopping")
        if self._open:
            self._emptied = Deferred()
            await self._emptied

    def framed(self, event: Event) -> Any:
        """The event as a WebSocket frame; framed once, however many subscribers it has."""
        if event.frame is None:
            event.frame = self.prepareMessage(event.text())
        return event.frame

    def sources(self, patterns: frozenset[tuple[str, ...]]) -> list[tuple[str, str]]:
        """The scales and machines whose state these topics are about."""
        sources: dict[tuple[str, str], None] = {}
        for pattern in patterns:
            if len(pattern) != 2:
                continue
            source, name = pattern
            if source != "machine":
                sources.update(
                    {("scale", scale_id): None for scale_id in self._live.scale_ids() if name in {scale_id, "*"}}
                )
            if source != "scale" and name == "*":
                sources.update({("machine", machine): None for machine in self._live.machines()})
            elif source == "machine" or name in self._live.machines():
                # A machine may be named before it has ever connected.
                sources["machine", name] = None
        return list(sources)

    def snapshot(self, asked: _Snapshot) -> bytes:
        is_scale = asked.source == "scale"
        data = self._live.scale_snapshot(asked.name) if is_scale else self._live.machine_snapshot(asked.name)
        return event_text(asked.seq, f"{asked.source}/{asked.name}", "snapshot", data, self._clock.now())


class StreamResource(WebSocketResource):
    """``/ws``: what does not ask for a WebSocket is told to."""

    def __init__(self, factory: StreamFactory) -> None:
        super().__init__(factory)
        self._stream = factory

    def render(self, request: GatewayRequest) -> Any:
        upgrade = b",".join(request.requestHeaders.getRawHeaders(b"upgrade", []))
        if b"websocket" not in upgrade.lower() or request.method != b"GET" or request.channel.transport is None:
            request.setHeader(b"upgrade", b"websocket")
            return refuse(request, Refusal(426, "upgrade_required"))
        if not self._stream.has_room():
            return refuse(request, Refusal(503, "too_many_subscribers", "구독자가 너무 많습니다"))
        request.taken_over()
        return super().render(request)


def _is_in_snapshot(record: Record) -> bool:
    """Whether what a record says can be seen in a later snapshot of its source."""
    return isinstance(record, Update | Presence) or (isinstance(record, Reading) and record.settled)


def _patterns(topics: Any) -> list[tuple[str, ...]]:
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
        raise ValueError("topics is a list of texts, at least one")
    return [parse_topic(topic) for topic in topics]
