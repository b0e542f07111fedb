"""Origins of web pages, in the form that browsers send, so that they can be compared as text."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

#: Matches pages of any origin.
ANY: Final = "*"

#: The origin that browsers send for pages without one: sandboxed frames, and in most browsers files.
NULL: Final = "null"

#: The origin that some browsers and apps send for pages opened from a file.
FILE: Final = "file://"

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

#: Characters that host names in URLs cannot have (those the URL standard forbids, and `*` and `,`, which never match).
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\"#%*,/:<>?@\[\\\]^`{|}]")

#: A last label that makes browsers read the host as an IPv4 address.
_NUMERIC: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)


def normal_origin(text: str) -> str:
    """Return an origin as browsers send it: lower case, punycode, no default port, no slash at the end.

    ``*`` (any), ``null`` and ``file://`` are returned as they are.

    :raises ValueError: browsers never send such an origin; the text says why, and what to write instead.
    """
    given = text.strip()
    lower = given.lower()
    if not given:
        raise ValueError("blank; write an origin such as https://plant.example, or leave it out")
    if lower in {ANY, NULL}:
        return lower
    if lower in {FILE, FILE + "/"}:
        return FILE
    if re.search(r"[\s,]", given):
        raise ValueError("blanks or commas in an origin; write each origin as an entry of its own")
    scheme, separator, rest = given.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"no scheme; write {_suggested('http', given)}")
    if not _SCHEME.fullmatch(scheme):
        raise ValueError(f"not a valid scheme; write {_suggested('http', rest)}")
    if scheme == "file":
        raise ValueError("a page from a file has no path in its origin; write file://, and null for other browsers")
    if scheme in {"ws", "wss"}:
        # A WebSocket request carries the origin of its page.
        raise ValueError(f"a page has no {scheme}:// origin; write {_suggested('http' + scheme[2:], rest)}")
    authority, tail = re.fullmatch(r"([^/?#\\]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # matches any text
    if tail not in {"", "/"}:
        raise ValueError(f"an origin has no path, query or fragment; write {_suggested(scheme, authority)}")
    if "@" in authority:
        raise ValueError(f"an origin has no user; write {_suggested(scheme, authority)}")
    host, port = _split_port(authority)
    name = normal_host(host)
    number = _port_number(port)
    return f"{scheme}://{name}" + ("" if number in {None, _DEFAULT_PORTS.get(scheme)} else f":{number}")


def normal_origins(texts: Iterable[str]) -> frozenset[str]:
    """Return the entries of ``server.cors_origins`` that can match an origin, each as browsers send it."""
    normal = set()
    for text in texts:
        try:
            normal.add(normal_origin(text))
        except ValueError:
            # `--check` and the start report it.
            continue
    return frozenset(normal)


def normal_host(text: str) -> str:
    """Return a host as browsers send it: lower case, non-ASCII names in punycode, IPv6 addresses short, in brackets.

    :param text: host without a port; an IPv6 address is in brackets.
    :raises ValueError: not a valid host; the text says why.
    """
    if not text:
        raise ValueError("no host; write one, such as https://plant.example")
    if text.startswith("["):
        return _ipv6(text)
    if "*" in text:
        raise ValueError("a wildcard inside an origin matches nothing; write each origin, or * alone for any")
    if _FORBIDDEN.search(text):
        raise ValueError("not a valid host name")
    host = text.lower() if text.isascii() else _punycode(text)
    labels = host.removesuffix(".").split(".")
    if not all(labels):
        raise ValueError("not a valid host name: an empty label")
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise ValueError("not a valid IPv4 address; write four decimal numbers, such as 192.0.2.7") from error
    return host


def _split_port(authority: str) -> tuple[str, str]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("not a valid IPv6 address; write it in brackets, such as http://[2001:db8::7]:9090")
        return host + bracket, rest[1:]
    host, _, port = authority.partition(":")
    if ":" in port:
        raise ValueError("an IPv6 address stands in brackets; write it such as http://[2001:db8::7]:9090")
    return host, port


def _port_number(port: str) -> int | None:
    """Return the number of a port; ``None`` if the port is empty."""
    if not port:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError(f"not a valid port: {port}; write a number from 1 to 65535")
    return int(port)


def _ipv6(text: str) -> str:
    try:
        # Browsers do not accept a zone, such as %eth0.
        address = ipaddress.IPv6Address(text[1:].removesuffix("]") if "%" not in text else "")
    except ValueError as error:
        raise ValueError("not a valid IPv6 address; write it such as http://[2001:db8::7]:9090") from error
    mapped = address.ipv4_mapped
    if mapped is not None:
        # Python's form of these addresses depends on its version; browsers write hexadecimal digits.
        return f"[::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}]"
    return f"[{address.compressed}]"


def _punycode(text: str) -> str:
    import idna  # takes 5 ms, and is needed only for non-ASCII host names

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError(f"not a valid host name: {error}") from error


def _suggested(scheme: str, rest: str) -> str:
    """Return the origin that was probably meant, or an example if that is unclear."""
    authority = re.split(r"[/?#\\]", rest.lstrip("/"), maxsplit=1)[0].rpartition("@")[2]
    try:
        return normal_origin(f"{scheme}://{authority}")
    except ValueError:
        return "an origin such as https://plant.example"
