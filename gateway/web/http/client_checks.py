"""Addresses of clients, and the networks and the rate of requests that they are held to."""

import math
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final

from gateway.config.settings import LimitSettings, ServerSettings
from gateway.runtime.metrics import Counters
from gateway.runtime.networks import NetworkSet, plain_host
from gateway.web.http.answers import Refusal
from gateway.web.http.forwarded import forwarded_client
from gateway.web.http.request_rate import RequestRate

#: Paths without a limit: a supervisor must always get an answer.
_EXEMPT: Final = frozenset({b"/healthz", b"/healthz/", b"/readyz", b"/readyz/"})

#: Maximum bytes of ``X-Forwarded-For`` that are read, from its end, and maximum contents that are remembered.
_MAX_FORWARDED: Final = 500
_MAX_REMEMBERED: Final = 2000


class ClientChecks:
    """Checks of the clients of all requests; off until :meth:`update` turns them on.

    :param seconds: monotonic clock.
    """

    def __init__(self, counters: Counters, seconds: Callable[[], float]) -> None:
        self._limited = counters.http_limited
        self._rate = RequestRate(seconds)
        self._proxies = NetworkSet()
        # A client sends the same header with each request.
        self._find_client = lru_cache(_MAX_REMEMBERED)(forwarded_client)
        self._allowed = NetworkSet()
        self._max_rate: float | None = None
        #: Whether any check is configured.
        self.is_on = False

    def update(self, server: ServerSettings, limits: LimitSettings) -> None:
        """Replace the settings, for the next requests of all connections."""
        self._proxies = NetworkSet(server.trusted_proxies)
        self._find_client.cache_clear()
        self._allowed = NetworkSet(server.allow)
        self._max_rate = limits.requests_per_second
        self._rate.update(limits.requests_per_second, limits.request_burst)
        self.is_on = bool(self._proxies) or self._rate.is_on

    def address_of(self, request: Any) -> str:
        """Return the address of the client of a request: its peer's, or the one that a trusted proxy forwarded."""
        peer = request.client
        host = str(getattr(peer, "host", peer))
        if self._proxies and host in self._proxies:
            headers = b",".join(request.requestHeaders.getRawHeaders(b"x-forwarded-for", ()))
            return self._find_client(host, headers[-_MAX_FORWARDED:], self._proxies)
        return host

    def refusal(self, request: Any) -> Refusal | None:
        """Return the refusal of a request whose client is not admitted, or sends too many; ``None`` to admit it."""
        if not self.is_on:
            return None
        if self._proxies and self._allowed:
            # The network of the peer itself was checked when it connected.
            address, peer = request.client_address, request.client.host
            if address not in self._allowed and peer in self._proxies:
                return Refusal(403, "forbidden", detail=f"{address} behind the proxy {peer} is not in server.allow")
        if self._max_rate is None or request.path in _EXEMPT:
            return None
        # A hash is not an address.
        wait = self._rate.take(request.principal.digest or _client_of(request.client_address))
        if not wait:
            return None
        self._limited.inc()
        detail = f"more than limits.requests_per_second ({self._max_rate:g})"
        return Refusal(429, "too_many_requests", detail=detail, retry_after=math.ceil(wait))


def _client_of(address: str) -> str:
    """Return the client that an address belongs to: with IPv6, one client has all addresses of a network."""
    client = plain_host(address)
    if ":" in client:
        known = ip_address(client)
        if isinstance(known, IPv6Address) and not known.is_link_local:
            return str(ip_network((int(known), 64), strict=False))
    return client
