"""Live events as server-sent events, at ``/events``: for curl, and for proxies that know no WebSocket.

The HTML standard, 9.2, says what goes over the line.
"""

from typing import Any, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from gateway.bus.event import Event
from gateway.web.clients.registry import LiveClients
from gateway.web.http.answers import Refusal, argument, refuse, refuse_method
from gateway.web.http.request import GatewayRequest
from gateway.web.push.subscription import Patterns, Subscription, SubscriptionContext, patterns_of

#: Seconds between comments: proxies give up connections on which nothing comes.
_COMMENT: Final = 15.0

#: Milliseconds after which a browser comes back.
_RETRY: Final = 2000


@implementer(IPushProducer)
class SseResponse:
    """One client."""

    def __init__(self, request: GatewayRequest, feed: SubscriptionContext, audience: LiveClients) -> None:
        self._request = request
        self._feed = feed
        self._audience = audience
        self._gone = False
        self._follower = Subscription(feed, self)
        self._comments = LoopingCall(self._comment)
        self._comments.clock = feed.reactor

    def begin(self, patterns: Patterns, since: int | None) -> None:
        """Send what there is to send."""
        request = self._request
        request.lasts(self._feed.counters.subscribers_slow.inc)
        request.notifyFinish().addBoth(self._finished)
        self._audience.join(self, "events")
        request.registerProducer(self, True)
        request.write(b"retry: %d\n\n" % _RETRY)
        self._follower.follow(patterns, since)
        self._comments.start(_COMMENT, now=False)

    def _finished(self, _: object) -> None:
        self._gone = True
        if self._comments.running:
            self._comments.stop()
        self._follower.close()
        self._audience.leave(self)

    def _comment(self) -> None:
        if self._follower.outbox.is_clear:
            self._request.write(b":\n\n")

    # -- what it is told

    def tell(self, text: bytes) -> None:
        self._request.write(b"data: %b\n\n" % text)

    def tell_snapshot(self, seq: int, text: bytes) -> None:
        self._write(seq, text)

    def tell_event(self, event: Event) -> None:
        self._write(event.seq, event.text())

    def _write(self, seq: int, text: bytes) -> None:
        if not self._gone:
            # JSON of ours has no line ends in it.
            self._request.write(b"id: %d\ndata: %b\n\n" % (seq, text))

    def give_up(self) -> None:
        # It comes back with the number of the last event that it read.
        self._request.channel.transport.abortConnection()

    def dismiss(self) -> None:
        if not self._gone:
            self._request.unregisterProducer()
            self._request.finish()

    # -- the transport's wishes

    def pauseProducing(self) -> None:
        self._follower.outbox.pause()

    def resumeProducing(self) -> None:
        self._follower.outbox.resume()

    def stopProducing(self) -> None:
        self._follower.outbox.pause()


class SseResource(Resource):
    """``/events?topics=scale/default,machine/*``."""

    isLeaf = True

    def __init__(self, feed: SubscriptionContext, audience: LiveClients) -> None:
        super().__init__()
        self._feed = feed
        self._audience = audience

    def render(self, request: Any) -> Any:
        if request.method not in {b"GET", b"HEAD"}:
            return refuse_method(request, "GET, HEAD")
        try:
            patterns, since = _asked(request)
        except ValueError as error:
            return refuse(request, Refusal(400, "invalid_request", str(error)))
        refusal = request.page_refusal()
        if refusal is not None:
            # The page could not read the answer, but would hold a place.
            return refuse(request, refusal)
        if not self._audience.has_room():
            return refuse(request, Refusal(503, "too_many_subscribers"))
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")
        # nginx would collect events until its buffer is full.
        request.setHeader(b"x-accel-buffering", b"no")
        if request.method == b"HEAD":
            return b""
        response = SseResponse(request, self._feed, self._audience)
        response.begin(patterns, since)
        return NOT_DONE_YET


def _asked(request: GatewayRequest) -> tuple[Patterns, int | None]:
    """The topics and the last event that a client has.

    :raises ValueError: a topic or the number is none.
    """
    topics = b",".join(request.args.get(b"topics", [])).decode("utf-8", "replace")
    patterns = patterns_of([topic for topic in topics.split(",") if topic])
    given = request.getHeader("last-event-id") or argument(request, "since")
    if not given:
        return patterns, None
    if not (given.isascii() and given.isdigit() and len(given) < 20):
        raise ValueError("since is the seq of an event")
    return patterns, int(given)
