"""Origins of web pages (RFC 6454), in the one form that browsers send."""

import ipaddress
import re
from typing import Final

_ORIGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[^\]/?#@]*\]|[^:/?#@\[\]]*)(?::([0-9]*))?(.*)", re.DOTALL)

#: A host's name: labels of letters, digits, hyphens and underscores.
_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")

#: Ports that an origin leaves out.
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

#: What browsers send for pages that have no origin of their own, and for files.
_SPECIAL: Final = frozenset({"*", "null", "file://"})


def normal_origin(text: str) -> str:
    """Return an origin as browsers send it: ``http://plant.example:9090``, ``null``, ``file://`` or, for any, ``*``.

    Scheme and host are in lower case, a name that is not ASCII is punycode, the default port and a final slash are
    left out.

    :raises ValueError: no page can have this origin; the text says why, and what to write.
    """
    if text.lower() in _SPECIAL:
        return text.lower()
    if text.lower() == "file:///":
        return "file://"
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise ValueError("an origin is a scheme, a host and a port, such as http://plant.example:8080; or null or *")
    scheme, host, port, rest = found[1].lower(), found[2], found[3] or "", found[4]
    if "@" in text:
        raise ValueError("an origin has no user; leave it out")
    if rest not in {"", "/"}:
        raise ValueError(f"an origin has no path; write {scheme}://{host}{f':{port}' if port else ''}")
    if scheme in {"ws", "wss"}:
        raise ValueError(f"a page's scheme is http or https; write http{scheme[2:]}://...")
    if "*" in host:
        raise ValueError("names cannot be left open; list every origin, or write * alone for any")
    host = _normal_host(host)
    if not port:
        return f"{scheme}://{host}"
    if not 1 <= int(port[:6]) <= 65535:
        raise ValueError("a port is 1 to 65535")
    number = int(port)
    return f"{scheme}://{host}" if number == DEFAULT_PORTS.get(scheme) else f"{scheme}://{host}:{number}"


def _normal_host(host: str) -> str:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise ValueError("not an IPv6 address in brackets") from None
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name.removesuffix(".")):
        raise ValueError("not a host's name or address")
    return name
