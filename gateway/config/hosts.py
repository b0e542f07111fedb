"""Validation of host names and addresses, without resolving them."""

import ipaddress
import re
from typing import Final

#: ASCII characters that neither names nor IPv4 addresses contain; names of containers may have underscores.
_FORBIDDEN: Final = re.compile(r"[\x00-,/:-@\[-^`{-\x7f]")

_MAX_NAME: Final = 253


def host_problem(text: str) -> str:
    """Return why a text cannot be a host; an empty string if it can. An empty host means every address."""
    if not text:
        return ""
    if ":" in text:
        return _problem_of(ipaddress.IPv6Address, text, "IPv6 address; write it without brackets and port, such as ::1")
    if _FORBIDDEN.search(text):
        return f"not a valid host name: {text!r}; for every address write 0.0.0.0 or ::"
    if not text.strip("0123456789."):
        return _problem_of(ipaddress.IPv4Address, text, "IPv4 address; write four decimal numbers, such as 192.0.2.7")
    try:
        ascii_name = text.encode("idna").decode("ascii").removesuffix(".")
    except UnicodeError:
        ascii_name = ""
    if not ascii_name:
        return f"not a valid host name: {text!r}; each part between dots has 1 to 63 characters"
    if len(ascii_name) > _MAX_NAME:
        return f"not a valid host name: more than {_MAX_NAME} characters"
    return ""


def _problem_of(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], text: str, what: str) -> str:
    try:
        kind(text)
    except ValueError:
        return f"{text!r} is not a valid {what}"
    return ""
