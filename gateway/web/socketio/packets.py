"""Packets of Engine.IO 4 and Socket.IO 5: bytes and texts in, values out, and back. No input, no output.

https://socket.io/docs/v4/engine-io-protocol/ and https://socket.io/docs/v4/socket-io-protocol/ say how they look.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import orjson

from gateway.web.clients.deflate import framed

#: What stands between the packets of one polling answer or request.
_SEPARATOR: Final = b"\x1e"

#: Binary attachments of one event; Socket.IO's own parser allows as many.
_MOST_ATTACHMENTS: Final = 10

#: How deep a placeholder of an attachment may stand in an event.
_DEEPEST: Final = 32

#: Names that clients use for themselves.
_RESERVED: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)

#: Type, number of attachments, namespace, number of the acknowledgement; the rest is JSON. A query after the namespace
#: may contain commas: it ends at the comma before the rest.
_SOCKET: Final = re.compile(
    r"([0-6])(?:([0-9]{1,3})-)?"
    r"(?:(/[^,?]*)(?:,|$|\?(?:[^,]|,(?![0-9]{0,100}+[\[{]|$))*+(?:,|$)))?"
    r"([0-9]{1,100})?(.*)",
    re.DOTALL,
)


class PacketError(Exception):
    """Error for input that is not a packet, or a packet that a client may not send; it closes the session."""


class IgnoredPacket(PacketError):
    """Error for such input that the old server ignored; the gateway ignores it too."""


class EnginePacketType(IntEnum):
    """Types of Engine.IO packets."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


class SocketPacketType(IntEnum):
    """Types of Socket.IO packets."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class Outgoing:
    """An Engine.IO packet on its way out; made once and framed once, however many clients get it.

    :param content: of the packet, its type included, or what makes that when it is the packet's turn.
    :param cost: bytes that it holds until then, where it is not made yet.
    """

    __slots__ = ("_content", "_frame", "binary", "cost")

    def __init__(self, content: bytes | Callable[[], bytes], *, binary: bool = False, cost: int | None = None) -> None:
        self._content = content
        self._frame: bytes | None = None
        self.binary = binary
        self.cost = len(content) if isinstance(content, bytes) else cost or 0

    @property
    def content(self) -> bytes:
        if not isinstance(self._content, bytes):
            self._content = self._content()
        return self._content

    @property
    def frame(self) -> bytes:
        """As a WebSocket frame."""
        if self._frame is None:
            self._frame = framed(self.content, binary=self.binary)
        return self._frame

    @property
    def polled(self) -> bytes:
        """As a part of a polling answer."""
        return b"b" + base64.b64encode(self.content) if self.binary else self.content


def control(kind: EnginePacketType, text: bytes = b"") -> Outgoing:
    """An Engine.IO packet of the transport's own."""
    return Outgoing(b"%d%b" % (kind, text))


def payload(packets: Iterable[Outgoing]) -> bytes:
    """The body of a polling answer."""
    return _SEPARATOR.join(packet.polled for packet in packets)


def packets_of(
    body: bytes, ignored: Callable[[IgnoredPacket], object] | None = None
) -> Iterator[tuple[EnginePacketType, str | bytes]]:
    """Read the packets in the body of a polling request; an empty one holds none.

    :param ignored: called for each ignored packet; without it, :class:`IgnoredPacket` is raised too.
    :raises PacketError: at the first packet that closes the session.
    """
    for part in body.split(_SEPARATOR) if body else ():
        try:
            packet = _attachment_of(part) if part.startswith(b"b") else packet_of(part)
        except IgnoredPacket as error:
            if ignored is None:
                raise
            ignored(error)
        else:
            yield packet


def _attachment_of(part: bytes) -> tuple[EnginePacketType, bytes]:
    try:
        return EnginePacketType.MESSAGE, base64.b64decode(part[1:], validate=True)
    except binascii.Error as error:
        raise IgnoredPacket("not base64") from error


def packet_of(text: bytes) -> tuple[EnginePacketType, str]:
    """Read the type and the rest of one packet of text.

    :raises IgnoredPacket: its type does not exist, or it is not UTF-8.
    :raises PacketError: it does not begin with a type.
    """
    kind = text[:1]
    if not kind.isdigit():
        raise PacketError("a packet without a type")
    if kind > b"6":
        raise IgnoredPacket("an unknown type of packet")
    try:
        return EnginePacketType(int(kind)), text[1:].decode()
    except UnicodeDecodeError as error:
        raise IgnoredPacket("not UTF-8") from error


@dataclass(slots=True)
class SocketMessage:
    """One Socket.IO packet.

    :ivar data: what it carries: an object or nothing (connect), a list (event, acknowledgement).
    :ivar ack: the number under which an acknowledgement is waited for.
    :ivar missing: attachments that have not come yet; the packet is not whole without them.
    """

    kind: SocketPacketType
    namespace: str = "/"
    data: Any = None
    ack: int | None = None
    missing: int = 0
    attachments: list[bytes] = field(default_factory=list)

    def attach(self, content: bytes) -> None:
        """Take the next attachment; with the last one, the packet is whole.

        :raises PacketError: a placeholder stands for none of them.
        """
        self.attachments.append(content)
        self.missing -= 1
        if not self.missing:
            self.data = _filled(self.data, self.attachments, _DEEPEST)


def message_of(text: str) -> SocketMessage:
    """Read a Socket.IO packet from a client; it is incomplete while attachments are still to come.

    :raises IgnoredPacket: a client may not send this packet.
    :raises PacketError: it has no type, or is an event without a list; Socket.IO's own server closes for these.
    """
    if not text or text[0] in "789":
        raise IgnoredPacket("an unknown type of Socket.IO packet")
    match = _SOCKET.fullmatch(text)
    if match is None:
        raise PacketError("a Socket.IO packet without a type")
    kind = SocketPacketType(int(match[1]))
    is_binary = kind in {SocketPacketType.BINARY_EVENT, SocketPacketType.BINARY_ACK}
    if is_binary != (match[2] is not None) or kind is SocketPacketType.CONNECT_ERROR:
        raise IgnoredPacket(f"a wrong Socket.IO packet of type {kind}")
    missing = int(match[2] or 0)
    if missing > _MOST_ATTACHMENTS:
        raise IgnoredPacket(f"more than {_MOST_ATTACHMENTS} attachments")
    if is_binary:
        kind = SocketPacketType.EVENT if kind is SocketPacketType.BINARY_EVENT else SocketPacketType.ACK
    data = _sound(kind, match[5])
    ack = None if match[4] is None else int(match[4])
    if missing == 0 and is_binary:
        data = _filled(data, (), _DEEPEST)
    # A query after the namespace is an old way to pass credentials.
    return SocketMessage(kind, match[3] or "/", data, ack, missing)


def _sound(kind: SocketPacketType, text: str) -> Any:
    """Read the content of a packet.

    :raises IgnoredPacket: a client may not send this content.
    :raises PacketError: an event does not have a list.
    """
    if kind is SocketPacketType.DISCONNECT:
        return None
    try:
        data = _loads(text) if text else None
    except ValueError as error:
        raise (PacketError if kind is SocketPacketType.EVENT else IgnoredPacket)("not JSON") from error
    if kind is SocketPacketType.CONNECT:
        return data if isinstance(data, dict) else None
    if not isinstance(data, list):
        raise (PacketError if kind is SocketPacketType.EVENT else IgnoredPacket)(
            f"a Socket.IO packet of type {kind} without a list"
        )
    if kind is SocketPacketType.EVENT and not (data and isinstance(data[0], str) and data[0] not in _RESERVED):
        raise IgnoredPacket("an event without a name of its own")
    return data


def _loads(text: str) -> Any:
    """Read JSON as the old server did: with ``NaN``, numbers that overflow, and halves of surrogate pairs.

    :raises IgnoredPacket: it is nested too deep.
    :raises ValueError: it is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise IgnoredPacket("JSON that is nested too deep") from error


def _filled(data: Any, attachments: Sequence[bytes], deep: int) -> Any:
    """Data with attachments in the place of their placeholders."""
    if not isinstance(data, list | dict):
        return data
    if deep == 0:
        raise PacketError("attachments that lie too deep")
    if isinstance(data, list):
        return [_filled(each, attachments, deep - 1) for each in data]
    if data.get("_placeholder") is True:
        number = data.get("num")
        if type(number) is not int or not 0 <= number < len(attachments):
            raise PacketError("a placeholder of no attachment")
        return attachments[number]
    return {key: _filled(value, attachments, deep - 1) for key, value in data.items()}


def encode(kind: SocketPacketType, namespace: str, data: Any = None, ack: int | None = None) -> list[Outgoing]:
    """A Socket.IO packet as Engine.IO messages: its text, then each ``bytes`` in it as an attachment.

    :raises TypeError: JSON has no word for something in it.
    """
    attachments: list[bytes] = []

    def placeholder(value: Any) -> Any:
        if not isinstance(value, bytes | bytearray):
            raise TypeError(f"{type(value).__name__} is no JSON")
        attachments.append(bytes(value))
        return {"_placeholder": True, "num": len(attachments) - 1}

    text = b"" if data is None else orjson.dumps(data, default=placeholder)
    count = b""
    if attachments:
        kind = SocketPacketType.BINARY_EVENT if kind is SocketPacketType.EVENT else SocketPacketType.BINARY_ACK
        count = b"%d-" % len(attachments)
    where = b"" if namespace == "/" else namespace.encode() + b","
    number = b"" if ack is None else b"%d" % ack
    packet = b"%d%d%b%b%b%b" % (EnginePacketType.MESSAGE, kind, count, where, number, text)
    return [Outgoing(packet), *(Outgoing(content, binary=True) for content in attachments)]
