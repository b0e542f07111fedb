"""HTTP requests, and the checks before a resource handles them."""

import io
import re
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import parse_qs

from gateway.auth.principal import EVERYBODY, Principal, Scope
from gateway.runtime.limited_log import LimitedLog, shown
from gateway.runtime.metrics import Counters
from gateway.web.http.answers import Refusal, common_headers, refuse, refuse_method
from gateway.web.http.channel import GatewayChannel
from gateway.web.http.client_checks import ClientChecks
from gateway.web.http.gate import Gate
from gateway.web.http.host_checks import HostChecks, HostPort, host_of
from gateway.web.http.root import is_utf8
from gateway.web.http.twisted_internals import OpenRequest

log = Logger()

#: Maximum bytes by which a body may exceed its bound and is still read, so that its client can read the answer.
MAX_DISCARDED_BODY: Final = 8 * 1024 * 1024

#: Errors that are not logged: until there is a first weight, clients that poll get nothing else, and the store logs a
#: commit that the database rejects.
_EXPECTED: Final = frozenset({"no_data", "rejected_by_database"})

_ALLOWED_METHODS: Final = b"GET, HEAD, POST, OPTIONS"

_ALLOWED_HEADERS: Final = b"Content-Type, Idempotency-Key, Authorization, Last-Event-ID"

_EXPOSED_HEADERS: Final = b"Retry-After, Allow, WWW-Authenticate"

#: Header names that a page may ask for (RFC 9110, 5.6.2), at most 2,000 bytes.
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")

#: A request target that includes the gateway's name, as proxies send it (RFC 9112, 3.2.2).
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


class AnswerTimes:
    """Times from a complete request to the end of its answer, by path."""

    def __init__(self, counters: Counters) -> None:
        latest, commit, stat, api, other = map(
            counters.http_seconds.labels, ("latest", "commit", "stat", "api", "other")
        )
        #: By whole path, else by its first part, else the last one: clients choose paths, and labels are bounded.
        self._by_path = {
            b"/api/scale-gateway/latest": latest,
            b"/api/scale-gateway/latest/": latest,
            b"/api/scale-gateway/commit": commit,
            b"/api/scale-gateway/commit/": commit,
        }
        self._by_part = {b"api": api, b"stat": stat}
        self._other = other

    def observe(self, path: bytes, seconds: float) -> None:
        """Count an answer."""
        histogram = self._by_path.get(path)
        if histogram is None:
            histogram = self._by_part.get(path[1:].partition(b"/")[0], self._other)
        histogram.observe(seconds)


class Traffic:
    """Requests in flight, and the settings that they share.

    :param warnings: rate-limited log.
    :param visitors: checks of origins and hosts.
    :param gate: checks of access.
    :param clients: checks of the clients' addresses and rates.
    :param max_body: maximum bytes of a request's body.
    :param seconds: monotonic clock.
    """

    def __init__(
        self,
        counters: Counters,
        warnings: LimitedLog,
        visitors: HostChecks,
        gate: Gate,
        clients: ClientChecks,
        max_body: int,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answers = counters.http_requests
        self._times = AnswerTimes(counters)
        self.seconds = seconds
        self._warnings = warnings
        self.visitors = visitors
        self.gate = gate
        self.clients = clients
        self.max_body = max_body
        self._in_flight: set[GatewayRequest] = set()
        self._idle: Deferred[None] | None = None

    def count_answer(self, request: "GatewayRequest") -> None:
        """Count an answer, and log a request that was refused."""
        self._answers.labels(str(request.code)).inc()
        if request.received is not None:
            self._times.observe(request.path, self.seconds() - request.received)
        refusal = request.refusal
        if request.code >= 400 and not request.is_probe and (refusal is None or refusal.error not in _EXPECTED):
            self._warnings.warn(
                f"http {request.code} {request.client_address}",
                "HTTP request from {peer} refused with {code}: {request}: {reason}",
                peer=request.client_address,
                code=request.code,
                # Without the query, which may hold private data.
                request=shown(b"%b %b" % (request.method, request.path), 100),
                reason="invalid request" if refusal is None else refusal.detail,
            )

    def report_refused(self, peer: IAddress | None, refusal: Refusal) -> None:
        """Count and log the refusal of an incomplete request."""
        self._answers.labels(str(refusal.status)).inc()
        self._warnings.warn(
            f"http {refusal.status} {_name_of(peer)}",
            "HTTP connection from {peer} closed with {code}: {reason}",
            peer=_name_of(peer),
            code=refusal.status,
            reason=refusal.detail,
        )

    def log_closed(self, peer: IAddress | None, reason: str) -> None:
        """Log a connection that is closed without an answer."""
        self._warnings.warn(
            f"http closed {_name_of(peer)}",
            "HTTP connection from {peer} closed: {reason}",
            peer=_name_of(peer),
            reason=reason,
        )

    def add(self, request: "GatewayRequest") -> None:
        self._in_flight.add(request)

    def remove(self, request: "GatewayRequest") -> None:
        """Remove a request that does not delay the shutdown: it is answered, lost, or lasts as long as its client."""
        self._in_flight.discard(request)
        if self._idle is not None and not self._in_flight:
            idle, self._idle = self._idle, None
            idle.callback(None)

    def drained(self) -> "Deferred[None]":
        """Return a Deferred that fires when no request is in flight."""
        if self._idle is None:
            self._idle = Deferred()
            if not self._in_flight:
                idle, self._idle = self._idle, None
                idle.callback(None)
                return idle
        return self._idle


def _name_of(address: Any) -> str:
    return str(getattr(address, "host", address))


def _ignore() -> None:
    """Do nothing."""


class GatewayRequest(OpenRequest):
    """A request with a bounded body, whose origin and host are checked before it is processed.

    :ivar refusal: refusal of the request, for the log.
    :ivar named_host: host by which it addresses the gateway; ``None`` without a host.
    :ivar principal: rights of its client.
    :ivar is_probe: whether it asks for a state, so that an answer that is an error says nothing about the request.
    :ivar received: monotonic time at which it was complete, in seconds; ``None`` for an answer that lasts until its
        client leaves.
    """

    channel: Any
    refusal: Refusal | None = None
    named_host: HostPort | None = None
    principal: Principal = EVERYBODY
    is_probe = False
    received: float | None = None

    def __init__(self, traffic: Traffic, channel: GatewayChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self._traffic = traffic
        self._body = 0
        self._abandoned: Callable[[], object] = _ignore
        self._invalid: Refusal | None = None

    def gotLength(self, length: int | None) -> None:
        # Twisted's method creates a file on the disk for a body that may exceed 100 kB.
        self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._body += len(data)
        if self._body <= self._traffic.max_body:
            super().handleContentChunk(data)
        elif self._body > self._traffic.max_body + MAX_DISCARDED_BODY and self.channel is not None:
            self.channel.close_with(Refusal(413, "body_too_large", detail=f"a body of more than {self._body} bytes"))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.received = self._traffic.seconds()
        # Twisted's method also parses the body's type, to find forms; that takes longer than the rest of a commit.
        self.method, self.clientproto = command, version
        hosts = self.requestHeaders.getRawHeaders(b"host", ())
        host: bytes | None = hosts[0] if hosts else None
        if not path.startswith(b"/") and path != b"*":
            absolute = _ABSOLUTE.fullmatch(path)
            if absolute is None or not absolute[1]:
                self._invalid = Refusal(400, "invalid_url", "요청 대상은 경로나 http URL이어야 합니다")
            else:
                # RFC 9112, 3.2.2: the target overrides the Host header.
                host, path = absolute[1], absolute[2] or b"/"
                path = path if path.startswith(b"/") else b"/" + path
        self.uri = path
        self.path, _, query = path.partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        if len(hosts) != 1 and (hosts or version != b"HTTP/1.0"):
            self._invalid = Refusal(400, "bad_request", detail=f"{len(hosts)} Host headers; one is needed")
        elif host:
            self.named_host = host_of(host)
            if self.named_host is None:
                self._invalid = Refusal(400, "bad_request", detail=f"Host {shown(host)} is not a name or an address")
        if self.content is not None:
            self.content.seek(0)
        self.process()

    @property
    def client_address(self) -> str:
        """Address of the client: the peer's, or the one that a trusted proxy forwarded."""
        return self._traffic.clients.address_of(self)

    @property
    def is_gone(self) -> bool:
        """Return whether the client has left."""
        return getattr(self, "channel", None) is None

    def process(self) -> None:
        traffic = self._traffic
        traffic.add(self)
        for name, value in common_headers():
            self.setHeader(name, value)
        origin = b", ".join(self.requestHeaders.getRawHeaders(b"origin", ()))
        self._allow_origin(origin)
        refusal = self._invalid or self._find_refusal(origin)
        if refusal is not None:
            self._refuse(refusal)
        elif self._is_preflight():
            self.setResponseCode(204)
            self.finish()
        else:
            self._find_and_render()

    def _find_refusal(self, origin: bytes) -> Refusal | None:
        """Return the refusal of this request, if it must be refused regardless of its path."""
        fetch_site = b""
        if self.method not in {b"GET", b"HEAD"}:
            fetch_site = self.requestHeaders.getRawHeaders(b"sec-fetch-site", (b"",))[0]
        traffic = self._traffic
        refusal = traffic.visitors.refusal(self.method, self.named_host, origin, fetch_site)
        if refusal is None:
            # A request without a valid token counts too, so that nobody tries tokens fast.
            denied = traffic.gate.refusal(self)
            refusal = traffic.clients.refusal(self) or denied
        if refusal is not None:
            return refusal
        if self._body > self._traffic.max_body:
            return Refusal(413, "body_too_large", detail=f"a body of {self._body} bytes")
        if self._body:
            encoding = b", ".join(self.requestHeaders.getRawHeaders(b"content-encoding", ()))
            if encoding.strip().lower() not in {b"", b"identity"}:
                self.setHeader(b"accept-encoding", b"identity")
                return Refusal(415, "unsupported_encoding", detail=f"Content-Encoding {shown(encoding)}")
        if not is_utf8(self.path):
            return Refusal(400, "invalid_url", detail="the path is not UTF-8")
        return None

    def _find_and_render(self) -> None:
        # Like Twisted's process(), which would set the headers of every answer again.
        self.site = self.channel.site
        self.prepath = []
        self.postpath = list(map(unquote_to_bytes, self.path[1:].split(b"/")))
        if self.path == b"*":
            if self.method == b"OPTIONS":
                self.answer_star()
            else:
                self.write(refuse_method(self, "OPTIONS"))
                self.finish()
            return
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:  # the client gets an answer, whatever a resource raises
            self.processingFailed(Failure())

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.channel is not None:
            self.channel.send_head()

    def finish(self) -> None:
        self._traffic.count_answer(self)
        super().finish()
        self._traffic.remove(self)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._traffic.remove(self)

    def require(self, scope: Scope) -> None:
        """Check that the client has a scope.

        :raises Refusal: ``forbidden``.
        """
        if scope not in self.principal.scopes:
            self._traffic.gate.count_forbidden()
            challenge = f'Bearer realm="cynow-gateway", error="insufficient_scope", scope="{scope}"'
            raise Refusal(403, "forbidden", detail=f"the scope {scope} is needed", challenge=challenge.encode())

    def page_refusal(self) -> Refusal | None:
        """Return the refusal if the page may not receive live events, being neither the gateway's own nor listed.

        Browsers do not ask for permission before they open a WebSocket.
        """
        origin = b", ".join(self.requestHeaders.getRawHeaders(b"origin", ()))
        if not origin or self._traffic.visitors.is_admitted(origin, self.named_host):
            return None
        return HostChecks.not_listed(origin)

    def exclude_from_shutdown(self, abandoned: Callable[[], object] = _ignore) -> None:
        """Let the shutdown not wait for the answer, which lasts until the client leaves.

        :param abandoned: called if the connection is closed because the client reads too slowly.
        """
        self._abandoned = abandoned
        self.received = None
        self._traffic.remove(self)

    def abandoned(self) -> None:
        """Report that the connection is being closed because the client reads too slowly."""
        self._abandoned()

    def leave_http(self) -> None:
        """Stop counting the connection as HTTP: it is used for another protocol from now on."""
        self.received = None
        self._traffic.remove(self)
        self.channel.leave()

    def _refuse(self, refusal: Refusal) -> None:
        self.write(refuse(self, refusal))
        self.finish()

    def _allow_origin(self, origin: bytes) -> None:
        self.setHeader(b"vary", b"Origin")
        if origin and self._traffic.visitors.is_listed(origin):
            self.setHeader(b"access-control-allow-origin", origin)
            self.setHeader(b"access-control-allow-credentials", b"true")
            self.setHeader(b"access-control-expose-headers", _EXPOSED_HEADERS)

    def _is_preflight(self) -> bool:
        if self.method != b"OPTIONS" or not self.requestHeaders.hasHeader(b"access-control-request-method"):
            return False
        if self.responseHeaders.hasHeader(b"access-control-allow-origin"):
            requested = b", ".join(self.requestHeaders.getRawHeaders(b"access-control-request-headers", ()))
            self.setHeader(b"access-control-allow-methods", _ALLOWED_METHODS)
            # The old server allowed every header that was asked for.
            are_valid = _HEADER_NAMES.fullmatch(requested) is not None
            self.setHeader(b"access-control-allow-headers", requested if are_valid else _ALLOWED_HEADERS)
            self.setHeader(b"access-control-max-age", b"600")
            if self.requestHeaders.hasHeader(b"access-control-request-private-network"):
                self.setHeader(b"access-control-allow-private-network", b"true")
        return True
