"""What arrives on the port of DAQ programs and is no frame: said in words for somebody who looks for the reason."""

import re
from typing import Final, NamedTuple

from gateway.wire.errors import MAX_SHOWN, shown_text

#: Bytes of a frame's beginning that are looked at.
HEAD: Final = 64

#: What a pickle of a message begins with, or JSON.
_FRAME_STARTS: Final = frozenset(b"\x80(]}[{")

_HTTP: Final = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI) ")

#: How a pickle of protocol 0 begins that names a class or a function: whatever the name is, it is no text.
_GLOBAL: Final = re.compile(rb"c[A-Za-z_][A-Za-z0-9_.]*\n[A-Za-z_][A-Za-z0-9_.]*\n")
_SCALE: Final = re.compile(
    rb"\s*(?:(?:ST|US|OL|HD|QT|NT|GS|TR)[ \t]*,|[A-Z, \t]*[-+]?[ \t]*[0-9]+(?:[.,][0-9]+)?[ \t]*_?(?:kg|g|t|lb)\b)",
    re.IGNORECASE,
)
_TLS: Final = b"\x16"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

#: Bytes of text that are enough to call it that.
_LEAST_TEXT: Final = 4


class Places(NamedTuple):
    """Where strangers belong, as the end of a sentence: ``; HTTP is served on port 8080``."""

    http: str = ""
    scale: str = ""


NOWHERE: Final = Places()


def is_scale_line(head: bytes) -> bool:
    """Return whether what begins so is a line of a scale: ``US,`` is also a pickle's text of 83 bytes, most of them to
    come.
    """
    return bool(head) and head[0] not in _FRAME_STARTS and _SCALE.match(head) is not None


def stranger(head: bytes, places: Places) -> str | None:
    """Return what a frame is that cannot be read; ``None`` where its beginning does not tell.

    :param head: its beginning, as far as it is there.
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
