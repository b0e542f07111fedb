"""Live events as server-sent events at ``/events``, for curl and for proxies that do not support WebSocket.

The format is that of the HTML standard, 9.2.
"""

from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from gateway.auth.principal import Principal
from gateway.bus.event import Event
from gateway.web.clients.registry import LiveClients
from gateway.web.http.answers import Refusal, argument, refuse, refuse_method
from gateway.web.http.request import GatewayRequest
from gateway.web.push.subscription import Patterns, Subscription, SubscriptionContext, parse_topics

#: Seconds between comments: proxies close connections on which nothing arrives.
_COMMENT: Final = 15.0

#: Milliseconds after which a browser reconnects.
_RETRY: Final = 2000


@implementer(IPushProducer)
class SseResponse:
    """Answer that sends events to one client until it leaves."""

    def __init__(self, request: GatewayRequest, context: SubscriptionContext, clients: LiveClients) -> None:
        self._request = request
        self._context = context
        self._clients = clients
        self._is_finished = False
        self._subscription = Subscription(context, self)
        self._comments = LoopingCall(self._comment)
        self._comments.clock = context.reactor

    def begin(self, patterns: Patterns, since: int | None) -> None:
        """Send the missed events or the current state, then live events."""
        request = self._request
        request.exclude_from_shutdown(self._context.counters.subscribers_slow.inc)
        request.notifyFinish().addBoth(self._finished)
        self._clients.add(self, "events")
        request.registerProducer(self, True)
        request.write(b"retry: %d\n\n" % _RETRY)
        if since is not None and self._subscription.can_resume(patterns, since):
            self._subscription.resume(patterns, since)
        else:
            self._subscription.follow(patterns)
        self._comments.start(_COMMENT, now=False)

    def _finished(self, _: object) -> None:
        self._is_finished = True
        if self._comments.running:
            self._comments.stop()
        self._subscription.close()
        self._clients.remove(self)

    def _comment(self) -> None:
        if self._subscription.outbox.is_clear:
            self._request.write(b":\n\n")

    # -- messages to the client

    def send_answer(self, text: bytes) -> None:
        self._request.write(b"data: %b\n\n" % text)

    def send_snapshot(self, seq: int, text: bytes) -> None:
        self._write(seq, text)

    def send_event(self, event: Event) -> None:
        self._write(event.seq, event.text())

    def _write(self, seq: int, text: bytes) -> None:
        if not self._is_finished:
            # The gateway's JSON has no line ends.
            self._request.write(b"id: %d\ndata: %b\n\n" % (seq, text))

    def close_slow(self) -> None:
        # The client reconnects with the number of the last event that it read.
        self._request.channel.transport.abortConnection()

    @property
    def principals(self) -> tuple[Principal, ...]:
        return (self._request.principal,)

    def close_unauthorized(self) -> None:
        self.close_for_shutdown()

    def close_for_shutdown(self) -> None:
        if not self._is_finished:
            self._request.unregisterProducer()
            self._request.finish()

    # -- flow control of the transport

    def pauseProducing(self) -> None:
        self._subscription.outbox.pause()

    def resumeProducing(self) -> None:
        self._subscription.outbox.resume()

    def stopProducing(self) -> None:
        self._subscription.outbox.pause()


class SseResource(Resource):
    """``/events?topics=scale/default,machine/*``."""

    isLeaf = True

    def __init__(self, context: SubscriptionContext, clients: LiveClients) -> None:
        super().__init__()
        self._context = context
        self._clients = clients

    def render(self, request: Any) -> Any:
        if request.method not in {b"GET", b"HEAD"}:
            return refuse_method(request, "GET, HEAD")
        try:
            patterns, since = _parse_query(request)
        except ValueError as error:
            return refuse(request, Refusal(400, "invalid_request", str(error)))
        refusal = request.page_refusal()
        if refusal is not None:
            # The page could not read the answer, but would count as a subscriber.
            return refuse(request, refusal)
        if not self._clients.has_room():
            return refuse(request, Refusal(503, "too_many_subscribers"))
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")
        # nginx would collect events until its buffer is full.
        request.setHeader(b"x-accel-buffering", b"no")
        if request.method == b"HEAD":
            return b""
        response = SseResponse(request, self._context, self._clients)
        response.begin(patterns, since)
        return NOT_DONE_YET


def _parse_query(request: GatewayRequest) -> tuple[Patterns, int | None]:
    """Return the topics and the number of the last event that the client has.

    :raises ValueError: a topic or the number is not valid.
    """
    topics = b",".join(request.args.get(b"topics", [])).decode("utf-8", "replace")
    patterns = parse_topics([topic for topic in topics.split(",") if topic])
    since = request.getHeader("last-event-id") or argument(request, "since")
    if not since:
        return patterns, None
    if not (since.isascii() and since.isdigit() and len(since) < 20):
        raise ValueError("since is the seq of an event")
    return patterns, int(since)
