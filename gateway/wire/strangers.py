"""Identification of other protocols on the port of DAQ programs, in words for an operator."""

import re
from typing import Final, NamedTuple

from gateway.wire.errors import MAX_SHOWN, shown_text

#: Number of leading bytes of a frame that are inspected.
HEAD: Final = 64

#: First bytes of a message, in a pickle or in JSON.
_FRAME_STARTS: Final = frozenset(b"\x80(]}[{")

_HTTP: Final = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI) ")

#: Beginning of a protocol 0 pickle that names a class or a function; it must not be mistaken for text.
_GLOBAL: Final = re.compile(rb"c[A-Za-z_][A-Za-z0-9_.]*\n[A-Za-z_][A-Za-z0-9_.]*\n")
_SCALE: Final = re.compile(
    rb"\s*(?:(?:ST|US|OL|HD|QT|NT|GS|TR)[ \t]*,|[A-Z, \t]*[-+]?[ \t]*[0-9]+(?:[.,][0-9]+)?[ \t]*_?(?:kg|g|t|lb)\b)",
    re.IGNORECASE,
)
_TLS: Final = b"\x16"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

#: Minimum bytes that are identified as text.
_LEAST_TEXT: Final = 4


class Places(NamedTuple):
    """Ports where other protocols are served, as the end of a sentence: ``; HTTP is served on port 8080``."""

    http: str = ""
    scale: str = ""


NOWHERE: Final = Places()


def is_scale_line(head: bytes) -> bool:
    """Return whether a frame is a scale's line.

    ``US,`` also begins a pickled text of 83 bytes, so the reader would otherwise wait for more.

    :param head: first bytes of the frame, as far as they have come.
    """
    return bool(head) and head[0] not in _FRAME_STARTS and _SCALE.match(head) is not None


def stranger(head: bytes, places: Places) -> str | None:
    """Identify a frame that cannot be read; return ``None`` if its beginning is not recognised.

    :param head: first bytes of the frame, as far as they have come.
    """
    if not head or head[0] in _FRAME_STARTS or _GLOBAL.match(head):
        return None
    if _HTTP.match(head):
        return f"this is an HTTP request{places.http}"
    if is_scale_line(head):
        return f"this is a line of a scale{places.scale}"
    if head.startswith(_TLS):
        return "this is a TLS handshake; frames are sent without TLS"
    if head.startswith(_UTF_16):
        return "this is text in UTF-16; JSON is sent in UTF-8"
    text = head.decode("utf-8", "replace")
    shown = text.partition("\r")[0].partition("\n")[0][:MAX_SHOWN]
    if len(shown) >= _LEAST_TEXT and shown.rstrip("\ufffd").isprintable():
        return f"this is text, neither a pickle nor JSON: {shown_text(text)}"
    return None
