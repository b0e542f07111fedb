"""One Site for everything: its requests, and which resource answers what."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import parse_qs
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from gateway.counters import Counters
from gateway.logs import LimitedLog, shown
from gateway.web.answers import Refusal, refuse
from gateway.web.channel import GatewayChannel

#: A body beyond its bound is read no further than this, in bytes; up to there it gets its answer in peace.
_PATIENCE: Final = 8 * 1024 * 1024

#: Answers that tell of no mistake: there is no weight yet, it is too old, the path is a WebSocket's.
_EXPECTED: Final = frozenset({404, 409, 426})

#: Ports that URLs leave out.
_DEFAULT_PORTS: Final = {b"http": b":80", b"https": b":443"}

_ALLOWED_METHODS: Final = b"GET, HEAD, POST, OPTIONS"
_ALLOWED_HEADERS: Final = b"Content-Type, Idempotency-Key, Authorization, Last-Event-ID"


class Traffic:
    """The requests in flight, and what holds for all of them.

    :param origins: ``server.cors_origins``; ``*`` is any.
    :param max_body: of a request, in bytes.
    """

    def __init__(self, counters: Counters, warnings: LimitedLog, origins: Iterable[str], max_body: int) -> None:
        self._answers = counters.http_requests
        self._warnings = warnings
        self.max_body = max_body
        self._origins = frozenset(origin.encode() for origin in origins)
        self._in_flight: set[GatewayRequest] = set()
        self._idle: Deferred[None] | None = None

    def allows(self, origin: bytes) -> bool:
        return origin in self._origins or b"*" in self._origins

    def answered(self, request: "GatewayRequest") -> None:
        """Count an answer, and log a request that was wrong."""
        self._answers.labels(str(request.code)).inc()
        if 400 <= request.code < 500 and request.code not in _EXPECTED:
            address = request.getClientAddress()
            peer = getattr(address, "host", str(address))
            # Without the query: what it holds is nobody's business.
            self._warnings.warn(
                f"http {peer}",
                "HTTP request of {peer} is refused: {code} {method} {path}",
                peer=peer,
                code=request.code,
                method=shown(request.method),
                path=shown(request.path),
            )

    def began(self, request: "GatewayRequest") -> None:
        self._in_flight.add(request)

    def ended(self, request: "GatewayRequest") -> None:
        """A request is answered, its client has left, or its connection has become something else."""
        self._in_flight.discard(request)
        if self._idle is not None and not self._in_flight:
            idle, self._idle = self._idle, None
            idle.callback(None)

    def drained(self) -> "Deferred[None]":
        """Fires when no request is in flight."""
        if self._idle is None:
            self._idle = Deferred()
            if not self._in_flight:
                idle, self._idle = self._idle, None
                idle.callback(None)
                return idle
        return self._idle


class GatewayRequest(Request):
    """A request with a bounded body, whose every answer allows the configured origins."""

    channel: Any

    def __init__(self, traffic: Traffic, channel: GatewayChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self._traffic = traffic
        self._body = 0

    def handleContentChunk(self, data: bytes) -> None:
        self._body += len(data)
        if self._body <= self._traffic.max_body:
            super().handleContentChunk(data)
        elif self._body > self._traffic.max_body + _PATIENCE:
            self.channel.loseConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        # Twisted's also reads a body as a form where its type may be one's, and takes longer for the type of a commit
        # than for the rest of it.
        self.method, self.uri, self.clientproto = command, path, version
        self.path, _, query = path.partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        if self.content is not None:
            self.content.seek(0)
        self.process()

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return getattr(self, "channel", None) is None

    def process(self) -> None:
        self._traffic.began(self)
        self._allow_origin()
        if self._body > self._traffic.max_body:
            self._refuse(Refusal(413, "body_too_large"))
        elif self._is_preflight():
            self.setResponseCode(204)
            self.finish()
        elif not _is_utf8(self.path):
            self._refuse(Refusal(400, "invalid_url"))
        else:
            super().process()

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.channel is not None:
            self.channel.send_head()

    def finish(self) -> None:
        self._traffic.answered(self)
        super().finish()
        self._traffic.ended(self)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._traffic.ended(self)

    def is_admitted(self) -> bool:
        """Whether its page may open a WebSocket: none, one of ours, or one of a configured origin.

        Browsers ask nobody before they open one.
        """
        origin = self.requestHeaders.getRawHeaders(b"origin", [b""])[0]
        host = self.requestHeaders.getRawHeaders(b"host", [b""])[0]
        if not origin or self._traffic.allows(origin):
            return True
        scheme, _, its_host = origin.lower().partition(b"://")
        # A proxy may have ended TLS: what the port is left out for is told by the page's scheme.
        port = _DEFAULT_PORTS.get(scheme, b"")
        return bool(its_host) and its_host.removesuffix(port) == host.lower().removesuffix(port)

    def lasts(self) -> None:
        """Its answer has no end of its own: the end of the daemon does not wait for it."""
        self._traffic.ended(self)

    def taken_over(self) -> None:
        """Its connection becomes something else."""
        self._traffic.ended(self)
        self.channel.leave()

    def _refuse(self, refusal: Refusal) -> None:
        self.write(refuse(self, refusal))
        self.finish()

    def _allow_origin(self) -> None:
        origin = self.requestHeaders.getRawHeaders(b"origin", [b""])[0]
        self.setHeader(b"vary", b"Origin")
        if origin and self._traffic.allows(origin):
            self.setHeader(b"access-control-allow-origin", origin)
            self.setHeader(b"access-control-expose-headers", b"Retry-After, Allow")

    def _is_preflight(self) -> bool:
        if self.method != b"OPTIONS" or not self.requestHeaders.hasHeader(b"access-control-request-method"):
            return False
        if self.responseHeaders.hasHeader(b"access-control-allow-origin"):
            self.setHeader(b"access-control-allow-methods", _ALLOWED_METHODS)
            self.setHeader(b"access-control-allow-headers", _ALLOWED_HEADERS)
            self.setHeader(b"access-control-max-age", b"600")
        return True


class GatewaySite(Site):
    """The site.

    :param most: connections that may be open at a time.
    """

    noisy = False
    protocol: Any = GatewayChannel

    def __init__(self, reactor: IReactorTime, root: IResource, traffic: Traffic, counters: Counters, most: int) -> None:
        super().__init__(root, requestFactory=partial(GatewayRequest, traffic), timeout=60, reactor=reactor)
        self._most = most
        self._open = 0
        self._connections = counters.connections.labels("http")
        self._refused = counters.connections_refused.labels("http")

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._open >= self._most:
            self._refused.inc()
            return None
        self._open += 1
        self._connections.inc()
        return super().buildProtocol(addr)

    def left(self) -> None:
        """One connection less."""
        self._open -= 1
        self._connections.dec()

    def log(self, request: object) -> None:
        """No line a request: they are counted."""


class Root(Resource):
    """What each first word of a path leads to; everything else goes to one resource."""

    def __init__(self, children: dict[str, IResource], rest: IResource) -> None:
        super().__init__()
        self._rest = rest
        for word, child in children.items():
            self.putChild(word.encode(), child)

    def render(self, request: Any) -> Any:
        return self._rest.render(request)

    def getChild(self, path: bytes, request: Any) -> IResource:
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self._rest


def _is_utf8(path: bytes) -> bool:
    if b"%" not in path and path.isascii():
        return True
    try:
        unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
