"""Live events by WebSocket at ``/ws``: JSON texts, topics, resume. See ``docs/reference/events.rst``."""

from functools import partial
from typing import Any, Final

import orjson
from twisted.web.resource import Resource

from gateway.auth.principal import Principal
from gateway.bus.event import Event
from gateway.runtime.limited_log import LimitedLog
from gateway.web.clients.deflate import accept_offer, frame_message, is_worth_compressing
from gateway.web.clients.registry import LiveClients
from gateway.web.clients.websocket import (
    GOING_AWAY,
    TOO_SLOW,
    UNAUTHORIZED,
    PacedFactory,
    PacedWebSocket,
    is_websocket_request,
    upgrade_to_websocket,
)
from gateway.web.http.answers import Refusal, refuse
from gateway.web.http.request import GatewayRequest
from gateway.web.push.subscription import Subscription, SubscriptionContext, parse_topics

#: Maximum bytes of a client's message.
_MAX_MESSAGE: Final = 64 * 1024

#: Seconds between pings, and maximum seconds until an answer.
_PING: Final = 20


class EventsWebSocketProtocol(PacedWebSocket):
    """WebSocket of one subscriber."""

    factory: "EventsWebSocketFactory"

    #: Topics of the client; ``None`` before the connection is open.
    subscription: Subscription | None = None

    def onOpen(self) -> None:
        super().onOpen()
        self.subscription = Subscription(self.factory.context, self)
        self.pace(self.subscription.outbox)
        self.factory.clients.add(self, "websocket")

    def onClose(self, *_: Any) -> None:
        # After a failed handshake, the client was never added.
        if self.factory.clients.remove(self) and self.subscription is not None:
            self.subscription.close()

    # -- messages of the client

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.is_closing or self.subscription is None:
            return
        try:
            self._process(self.subscription, payload, isBinary)
        except ValueError as error:
            self.report_invalid(error)
            _answer(self.subscription, {"type": "error", "error": "invalid_request", "message": str(error)})

    def _process(self, subscription: Subscription, payload: bytes, is_binary: bool) -> None:
        try:
            message = None if is_binary else orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise ValueError("the message is not JSON") from error
        match message:
            case {"type": "subscribe", "topics": topics, **rest}:
                patterns = parse_topics(topics)
                since = rest.get("since")
                if since is not None and (type(since) is not int or since < 0):
                    raise ValueError("since is the seq of an event")
                subscription.check_topics(patterns)
                answer = {"type": "subscribed", "topics": topics, "seq": self.factory.context.bus.seq}
                if since is not None:
                    answer["recovered"] = subscription.can_resume(patterns, since)
                _answer(subscription, answer)
                if since is not None and answer["recovered"]:
                    subscription.resume(patterns, since)
                else:
                    subscription.follow(patterns)
            case {"type": "unsubscribe", "topics": topics}:
                subscription.unfollow(parse_topics(topics))
                _answer(subscription, {"type": "unsubscribed", "topics": topics})
            case {"type": "subscribe" | "unsubscribe"}:
                raise ValueError("topics are missing")
            case _:
                raise ValueError("a message is a JSON object of type subscribe or unsubscribe")

    # -- messages to the client

    def send_answer(self, text: bytes) -> None:
        self.send_text(text)

    def send_snapshot(self, seq: int, text: bytes) -> None:
        self.send_text(text)

    def send_event(self, event: Event) -> None:
        """Send an event; it is framed and compressed once for all subscribers."""
        text = event.text()
        # An uncompressed frame is the same for every window.
        window = self.window if is_worth_compressing(text) else 0
        frame = event.frames.get(window)
        if frame is None:
            frame = event.frames[window] = frame_message(text, window)
        self.send_frame(frame)

    def close_slow(self) -> None:
        self.close_with_code(TOO_SLOW, "read too slowly; come back with since")

    @property
    def principals(self) -> tuple[Principal, ...]:
        return (self.principal,)

    def close_unauthorized(self) -> None:
        self.close_with_code(UNAUTHORIZED, "the token is no longer valid")

    def close_for_shutdown(self) -> None:
        self.close_with_code(GOING_AWAY, "the gateway is stopping")

    def close_with_code(self, code: int, reason: str) -> None:
        if self.subscription is not None:
            self.subscription.close()
        super().close_with_code(code, reason)


class EventsWebSocketFactory(PacedFactory):
    """State that all subscribers by WebSocket share."""

    protocol: Any = EventsWebSocketProtocol

    def __init__(self, context: SubscriptionContext, clients: LiveClients, warnings: LimitedLog) -> None:
        super().__init__(
            context.reactor, context.counters, warnings, _MAX_MESSAGE, _PING, partial(accept_offer, _MAX_MESSAGE)
        )
        self.context = context
        self.clients = clients


class EventsWebSocketResource(Resource):
    """``/ws``; a request that does not ask for a WebSocket is refused."""

    isLeaf = True

    def __init__(self, factory: EventsWebSocketFactory) -> None:
        super().__init__()
        self._factory = factory

    def render(self, request: Any) -> Any:
        if not is_websocket_request(request):
            return _refuse_without_upgrade(request)
        if not self._factory.clients.has_room():
            return refuse(request, Refusal(503, "too_many_subscribers"))
        return upgrade_to_websocket(request, self._factory, EventsWebSocketProtocol())


def _answer(subscription: Subscription, message: dict[str, Any]) -> None:
    subscription.answer(orjson.dumps(message))


def _refuse_without_upgrade(request: GatewayRequest) -> bytes:
    request.setHeader(b"upgrade", b"websocket")
    return refuse(request, Refusal(426, "upgrade_required"))
