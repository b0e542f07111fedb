"""Access control of requests: their tokens, and the paths that need none."""

import hmac
from collections.abc import Collection
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.auth.access import AccessControl, Fault
from gateway.auth.principal import NOBODY, Principal
from gateway.runtime.metrics import Counters
from gateway.web.http.answers import Refusal

_REALM: Final = b'Bearer realm="cynow-gateway"'

#: Prefix of the WebSocket subprotocol that carries a token: pages cannot set headers of a WebSocket.
SUBPROTOCOL: Final = b"bearer."

_DETAILS: Final[dict[Fault, str]] = {"invalid": "the token is not known", "expired": "the token has expired"}


class KnownHeader(NamedTuple):
    """Header that gave a connection the scope ``read``: its next requests with the same one need no search.

    :ivar version: version of the access control that it was checked with.
    :ivar until: time at which its token expires, in seconds since 1970.
    """

    header: bytes
    version: int
    until: float
    principal: Principal


class Gate:
    """Access checks of all requests, before a resource handles them.

    Every path needs the scope ``read``, whether it exists or not; a route may need more.

    :param open_paths: paths that need no token, without a slash at the end.
    :param open_trees: first segments of further such paths, whose resources check access themselves if they need to.
    """

    def __init__(
        self, access: AccessControl, counters: Counters, open_paths: Collection[str], open_trees: Collection[str]
    ) -> None:
        self.access = access
        self._refused = counters.auth_refused
        self._open_paths = frozenset(path.encode() for path in open_paths)
        self._open_trees = frozenset(word.encode() for word in open_trees)

    def refusal(self, request: Any) -> Refusal | None:
        """Set the principal of a request; return the refusal if it may not even read."""
        access = self.access
        if not access.is_on:
            return None
        headers = request.requestHeaders.getRawHeaders(b"authorization")
        known: KnownHeader | None = request.channel.known_header
        # Several clients may share the connection of a proxy, so this comparison takes constant time too.
        if (
            known is not None
            and headers is not None
            and len(headers) == 1
            and hmac.compare_digest(headers[0], known.header)
            and access.version == known.version
            and access.wall() < known.until
        ):
            request.principal = known.principal
            return None
        return self._check(request, headers or [])

    def _check(self, request: Any, headers: list[bytes]) -> Refusal | None:
        """Do the same for a request that does not repeat the header of the last one of its connection."""
        tree = unquote_to_bytes(request.path[1:].partition(b"/")[0])
        in_header = _token_in(headers)
        token = _token_elsewhere(request, tree) if in_header is None else in_header
        found: Principal | Fault = self.access.anonymous if token is None else self.access.identify(token)
        is_known = isinstance(found, Principal)
        request.principal = found if isinstance(found, Principal) else NOBODY
        is_open = tree in self._open_trees or request.path.removesuffix(b"/") in self._open_paths
        may_read = is_known and "read" in request.principal.scopes
        # Only a token of the header itself: one of the query gives nothing to the next request.
        if may_read and in_header is not None and request.principal.digest:
            until = self.access.until(request.principal)
            request.channel.known_header = KnownHeader(headers[0], self.access.version, until, request.principal)
        if is_open or may_read or _is_preflight(request):
            return None
        if isinstance(found, str):
            self._refused.labels(found).inc()
            return Refusal(401, "unauthorized", detail=_DETAILS[found], challenge=_REALM + b', error="invalid_token"')
        self._refused.labels("missing").inc()
        return Refusal(401, "unauthorized", detail="no token", challenge=_REALM)

    def count_forbidden(self) -> None:
        """Count a request whose token lacks the scope of its route."""
        self._refused.labels("forbidden").inc()


def _token_in(headers: list[bytes]) -> bytes | None:
    """Return the token in the ``Authorization`` headers of a request; ``None`` without one."""
    if len(headers) > 1:
        # Which of them counts would depend on the reader.
        return b""
    for header in headers:
        scheme, _, value = header.partition(b" ")
        if scheme.lower() == b"bearer":
            return bytes(value.strip())
    return None


def _token_elsewhere(request: Any, tree: bytes) -> bytes | None:
    """Return the token of a request for live events without ``Authorization``; ``None`` without one.

    :param tree: first segment of its path.
    """
    if tree == b"ws":
        for protocol in b",".join(request.requestHeaders.getRawHeaders(b"sec-websocket-protocol", ())).split(b","):
            if protocol.strip().startswith(SUBPROTOCOL):
                return protocol.strip().removeprefix(SUBPROTOCOL)
    if tree in {b"ws", b"events"}:
        # An EventSource of a page cannot set headers either.
        given: list[bytes] = request.args.get(b"access_token", [])
        return given[-1] if given else None
    return None


def _is_preflight(request: Any) -> bool:
    # Browsers send it without a token, and it is answered before any resource.
    return request.method == b"OPTIONS" and bool(request.requestHeaders.hasHeader(b"access-control-request-method"))
