"""Live events by WebSocket, at ``/ws``: JSON texts, topics, resume. See ``docs/events.rst``."""

from functools import partial
from typing import Any, Final

import orjson
from twisted.web.resource import Resource

from gateway.bus.event import Event
from gateway.runtime.limited_log import LimitedLog
from gateway.web.clients.deflate import acceptance, framed, is_worth_compressing
from gateway.web.clients.registry import LiveClients
from gateway.web.clients.websocket import (
    GOING_AWAY,
    TOO_SLOW,
    PacedFactory,
    PacedWebSocket,
    asks_for_websocket,
    take_over,
)
from gateway.web.http.answers import Refusal, refuse
from gateway.web.http.request import GatewayRequest
from gateway.web.push.subscription import Subscription, SubscriptionContext, patterns_of

#: A client's message, in bytes.
_MOST_MESSAGE: Final = 64 * 1024

#: Seconds between pings, and until an answer is missed.
_PING: Final = 20


class EventsWebSocketProtocol(PacedWebSocket):
    """One subscriber."""

    factory: "EventsWebSocketFactory"

    #: What it follows; ``None`` before the connection is open.
    follower: Subscription | None = None

    def onOpen(self) -> None:
        super().onOpen()
        self.follower = Subscription(self.factory.feed, self)
        self.pace(self.follower.outbox)
        self.factory.audience.join(self, "websocket")

    def onClose(self, *_: Any) -> None:
        # A handshake that failed was never open.
        if self.factory.audience.leave(self) and self.follower is not None:
            self.follower.close()

    # -- what the client says

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.leaving or self.follower is None:
            return
        try:
            self._understand(self.follower, payload, isBinary)
        except ValueError as error:
            self.refused(error)
            self._say({"type": "error", "error": "invalid_request", "message": str(error)})

    def _understand(self, follower: Subscription, payload: bytes, is_binary: bool) -> None:
        try:
            message = None if is_binary else orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise ValueError("the message is not JSON") from error
        match message:
            case {"type": "subscribe", "topics": topics, **rest}:
                patterns = patterns_of(topics)
                since = rest.get("since")
                if since is not None and (type(since) is not int or since < 0):
                    raise ValueError("since is the seq of an event")
                follower.check(patterns)
                bus = self.factory.feed.bus
                answer = {"type": "subscribed", "topics": topics, "seq": bus.seq}
                if since is not None:
                    answer["recovered"] = bus.holds(since, patterns)
                self._say(answer)
                follower.follow(patterns, since)
            case {"type": "unsubscribe", "topics": topics}:
                follower.unfollow(patterns_of(topics))
                self._say({"type": "unsubscribed", "topics": topics})
            case {"type": "subscribe" | "unsubscribe"}:
                raise ValueError("topics are missing")
            case _:
                raise ValueError("a message is a JSON object of type subscribe or unsubscribe")

    def _say(self, message: dict[str, Any]) -> None:
        if self.follower is not None:
            self.follower.say(orjson.dumps(message))

    # -- what it is told

    def tell(self, text: bytes) -> None:
        self.send_text(text)

    def tell_snapshot(self, seq: int, text: bytes) -> None:
        self.send_text(text)

    def tell_event(self, event: Event) -> None:
        """An event; framed and compressed once, however many subscribers it has."""
        text = event.text()
        # What goes uncompressed is the same frame for every window.
        window = self.window if is_worth_compressing(text) else 0
        frame = event.frames.get(window)
        if frame is None:
            frame = event.frames[window] = framed(text, window)
        self.send_frame(frame)

    def give_up(self) -> None:
        self.leave(TOO_SLOW, "read too slowly; come back with since")

    def dismiss(self) -> None:
        self.leave(GOING_AWAY, "the gateway is stopping")

    def leave(self, code: int, reason: str) -> None:
        """Close, and forget what waits."""
        if self.follower is not None:
            self.follower.close()
        super().leave(code, reason)


class EventsWebSocketFactory(PacedFactory):
    """What all subscribers share."""

    protocol: Any = EventsWebSocketProtocol

    def __init__(self, feed: SubscriptionContext, audience: LiveClients, warnings: LimitedLog) -> None:
        super().__init__(
            feed.reactor, feed.counters, warnings, _MOST_MESSAGE, _PING, partial(acceptance, _MOST_MESSAGE)
        )
        self.feed = feed
        self.audience = audience


class EventsWebSocketResource(Resource):
    """``/ws``: what does not ask for a WebSocket is told to."""

    isLeaf = True

    def __init__(self, factory: EventsWebSocketFactory) -> None:
        super().__init__()
        self._factory = factory

    def render(self, request: Any) -> Any:
        if not asks_for_websocket(request):
            return _upgrade_required(request)
        if not self._factory.audience.has_room():
            return refuse(request, Refusal(503, "too_many_subscribers"))
        return take_over(request, self._factory, EventsWebSocketProtocol())


def _upgrade_required(request: GatewayRequest) -> bytes:
    request.setHeader(b"upgrade", b"websocket")
    return refuse(request, Refusal(426, "upgrade_required"))
