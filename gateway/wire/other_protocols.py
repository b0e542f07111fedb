"""Identification of other protocols on the port of DAQ programs, for log lines."""

import re
from typing import Final, NamedTuple

from gateway.wire.errors import MAX_SHOWN, shown_text
from gateway.wire.scale import ADDRESS, FRAMING, has_http_request

#: Number of leading bytes of a frame that are inspected.
HEAD: Final = 64

#: First bytes of a message, in a pickle or in JSON.
_FRAME_STARTS: Final = frozenset(b"\x80(]}[{")

#: Beginning of an HTTP request whose line exceeds the inspected bytes, is incomplete, or has no version.
_HTTP_START: Final = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE|CONNECT|PRI)[ \t]|[A-Z-]{3,}[ \t]+(?:/|\*[ \t]|https?://)",
    re.IGNORECASE,
)

#: Beginning of a protocol 0 pickle that names a class or a function; it must not be mistaken for text.
_GLOBAL: Final = re.compile(rb"c[A-Za-z_][A-Za-z0-9_.]*\n[A-Za-z_][A-Za-z0-9_.]*\n")
_SCALE: Final = re.compile(
    rf"{FRAMING}{ADDRESS}"
    r"(?:(?:ST|US|OL|HD|QT|NT|GS|TR)[ \t]*,|OL\b|[A-Z, \t]*[-+]?[ \t]*[0-9]+(?:[.,][0-9]+)?[ \t]*_?(?:kg|g|t|lb)\b)",
    re.ASCII | re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
#: A telnet command with its option, which converters send when they are connected.
_TELNET: Final = re.compile(rb"\xff[\xfb-\xfe][\x00-\x1f]")
_TLS: Final = b"\x16"
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

#: Minimum bytes that are identified as text.
_MIN_TEXT: Final = 4


class ServedPorts(NamedTuple):
    """The ports where other protocols are served, as the end of a sentence: ``; HTTP is served on port 8080``."""

    http: str = ""
    scale: str = ""


NO_PORTS: Final = ServedPorts()


def is_scale_line(head: bytes) -> bool:
    """Return whether a frame is a scale's line.

    ``US,`` also begins a pickled text of 83 bytes, so the reader would otherwise wait for more.

    :param head: first bytes of the frame, as far as they have arrived.
    """
    return bool(head) and head[0] not in _FRAME_STARTS and _SCALE.match(head.decode("latin-1")) is not None


def identify_protocol(head: bytes, ports: ServedPorts) -> str | None:
    """Identify a frame that cannot be read; return ``None`` if its beginning is not recognised.

    :param head: first bytes of the frame, as far as they have arrived.
    """
    if not head or head[0] in _FRAME_STARTS or _GLOBAL.match(head):
        return None
    if has_http_request(head) or _HTTP_START.match(head):
        return f"this is an HTTP request{ports.http}"
    if head.startswith(_TLS):
        return "this is a TLS handshake; frames are sent without TLS"
    if is_scale_line(head):
        return f"this is a line of a scale{ports.scale}"
    if _TELNET.match(head):
        return f"this is telnet, perhaps from the converter of a scale{ports.scale}"
    if head.startswith(_UTF_16):
        return "this is text in UTF-16; JSON is sent in UTF-8"
    text = head.decode("utf-8", "replace")
    shown = text.partition("\r")[0].partition("\n")[0][:MAX_SHOWN]
    if len(shown) >= _MIN_TEXT and shown.rstrip("\ufffd").isprintable():
        return f"this is text, neither a pickle nor JSON: {shown_text(text)}"
    return None
