"""Checks of the page and of the gateway's name in requests.

Browsers let any page send requests to any address, but they reveal the page's origin in ``Origin`` and
``Sec-Fetch-Site``. For the browser, a page that has made its own name resolve to the gateway's address (DNS rebinding)
has the same origin as the gateway; only the ``Host`` header reveals it.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.config.origins import normal_origin, normal_origins
from gateway.web.http.answers import Refusal

#: RFC 9110, 7.2: a name, an IPv4 address or an IPv6 address in brackets, and an optional port.
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(?::([0-9]{0,5}))?")

#: Methods that change nothing.
_READING: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class HostPort(NamedTuple):
    """Content of a ``Host`` header: the name or address in lower case, and the port, which may be empty."""

    host: str
    port: str


@lru_cache(maxsize=1024)
def host_of(header: bytes) -> HostPort | None:
    """Return the content of a ``Host`` header; ``None`` if it is not valid."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    return HostPort(match[1].decode("ascii").lower(), (match[2] or b"").decode("ascii"))


class HostChecks:
    """Checks of the origins and hosts of all requests.

    :param origins: ``server.cors_origins``; ``*`` is any.
    :param names: ``server.names``: names of the gateway in addition to the machine's name.
    :param machine: name of this machine, with or without a domain.
    """

    def __init__(self, origins: Iterable[str], names: Iterable[str] = (), machine: str = "") -> None:
        self._origins = normal_origins(origins)
        self._any = "*" in self._origins
        configured = {name.lower().removesuffix(".") for name in names}
        machine = machine.lower().removesuffix(".")
        short = machine.partition(".")[0]
        self._names = configured | {"localhost"} | ({machine, short, f"{short}.local"} if short else set())
        self._has_names = bool(configured)

    def is_listed(self, origin: bytes) -> bool:
        """Return whether ``server.cors_origins`` lists the origin of an ``Origin`` header."""
        return self._any or (bool(self._origins) and _normal(origin) in self._origins)

    def is_own_name(self, host: str) -> bool:
        """Return whether a host is an IP address, ``localhost``, the machine's name or in ``server.names``."""
        return host.removesuffix(".") in self._names or _is_address(host)

    def is_admitted(self, origin: bytes, host: HostPort | None) -> bool:
        """Return whether a page may do more than read, being listed or the gateway's own.

        :param origin: content of the ``Origin`` header.
        """
        if self.is_listed(origin):
            return True
        if host is None or not self.is_own_name(host.host):
            return False
        # A proxy may have terminated TLS, so the page's scheme decides which default port is left out.
        scheme = origin.partition(b"://")[0]
        own = b"%b://%b:%b" % (scheme, host.host.encode(), host.port.encode())
        return bool(_normal(origin)) and _normal(origin) == _normal(own)

    def refusal(self, method: bytes, host: HostPort | None, origin: bytes, fetch_site: bytes) -> Refusal | None:
        """Return the refusal of a request because of its origin or host, or ``None``.

        :param host: host by which the request addresses the gateway; ``None`` without a host.
        :param origin: content of the ``Origin`` header; empty without one.
        :param fetch_site: content of the ``Sec-Fetch-Site`` header; likewise.
        """
        is_own = host is None or self.is_own_name(host.host)
        if not origin:
            if not is_own and self._has_names:
                return Refusal(421, "misdirected_request", detail=f"host {_quoted(host)} is not in server.names")
            if method not in _READING and fetch_site.lower() == b"cross-site" and not self._any:
                return Refusal(403, "origin_not_allowed", detail="a cross-site request without an Origin")
            return None
        if self.is_listed(origin):
            return None
        if not is_own:
            detail = (
                f"origin {_shown(origin)} is not in server.cors_origins, and host {_quoted(host)} not in server.names"
            )
            return Refusal(403, "origin_not_allowed", detail=detail)
        if method not in _READING and not self.is_admitted(origin, host):
            return self.not_listed(origin)
        return None

    @staticmethod
    def not_listed(origin: bytes) -> Refusal:
        """Return the refusal of a page that ``server.cors_origins`` does not list."""
        return Refusal(403, "origin_not_allowed", detail=f"origin {_shown(origin)} is not in server.cors_origins")


@lru_cache(maxsize=1024)
def _normal(origin: bytes) -> str:
    try:
        return normal_origin(origin.decode("ascii"))
    except ValueError:
        return ""


@lru_cache(maxsize=1024)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _quoted(host: HostPort | None) -> str:
    return repr("" if host is None else host.host[:100])


def _shown(origin: bytes) -> str:
    return repr(origin[:100].decode("latin-1"))
