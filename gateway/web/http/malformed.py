"""Explanations, for the log, of requests that Twisted's parser refuses without a reason.

Only valid header names are quoted from the request: text in the wrong place may be a token, or the body of a commit.
"""

import re
from typing import Final

#: RFC 9110, 5.6.2.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_VERSION: Final = re.compile(rb"HTTP/[0-9.]{1,5}")


def request_line_fault(line: bytes) -> str:
    """Return the fault of a request line (RFC 9112, 3)."""
    parts = line.split(b" ")
    if len(parts) != 3:
        return f"a request line has three parts, not {len(parts)}: METHOD TARGET HTTP/1.1"
    method, target, version = parts
    if not _TOKEN.fullmatch(method):
        return "the method is not a valid name"
    if not target or re.search(rb"[\0-\x20]", target):
        return "the target is empty, or has a control character"
    if _VERSION.fullmatch(version):
        return f"{version.decode()} is not supported; use HTTP/1.1 or HTTP/1.0"
    return "the request line does not end with HTTP/1.1"


def is_unsupported_coding(name: bytes, value: bytes) -> bool:
    """Return whether a header is a ``Transfer-Encoding`` other than ``chunked`` (RFC 9112, 6.1).

    :param value: content of the header, with or without the blanks around it.
    """
    return name.lower() == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked"


def header_fault(line: bytes) -> str:
    """Return the fault of a header line (RFC 9112, 5 and 6)."""
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon:
        return "a header line without a colon"
    if not _TOKEN.fullmatch(name):
        return "the name of a header is not valid"
    if re.search(rb"[\0\r\n]", value):
        return f"header {name[:50].decode()}: a control character in its value"
    if is_unsupported_coding(name, value):
        return "a Transfer-Encoding other than chunked"
    if name.lower() == b"content-length" and not value.isdigit():
        return "a Content-Length that is not a number"
    return "the length of the body is sent twice"
