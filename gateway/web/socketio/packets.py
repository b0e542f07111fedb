"""Codec for the packets of Engine.IO 4 and Socket.IO 5, without input and output.

The formats: https://socket.io/docs/v4/engine-io-protocol/ and https://socket.io/docs/v4/socket-io-protocol/.
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

from gateway.web.clients.deflate import frame_message

#: Separator of the packets in one polling answer or request.
_SEPARATOR: Final = b"\x1e"

#: Maximum binary attachments of one event, as in Socket.IO's own parser.
_MAX_ATTACHMENTS: Final = 10

#: Maximum depth of a placeholder for an attachment in an event.
_MAX_DEPTH: Final = 32

#: Event names that client libraries use for themselves.
_RESERVED: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)

#: Type, number of attachments, namespace, number of the acknowledgement, JSON. A query after the namespace may contain
#: commas: it ends at the comma before the JSON.
_SOCKET: Final = re.compile(
    r"([0-6])(?:([0-9]{1,3})-)?"
    r"(?:(/[^,?]*)(?:,|$|\?(?:[^,]|,(?![0-9]{0,100}+[\[{]|$))*+(?:,|$)))?"
    r"([0-9]{1,100})?(.*)",
    re.DOTALL,
)


class PacketError(Exception):
    """Error for an invalid packet, or one that a client may not send; it closes the session."""


class IgnoredPacket(PacketError):
    """Error for an invalid packet that the old server ignored; the gateway ignores it too."""


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
    """Engine.IO packet to clients, encoded once and framed once for all of them.

    :param content: content of the packet including its type, or a function that makes it when the packet is sent.
    :param cost: bytes that the packet holds until then; by default the length of ``content``.
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
        """The packet as a WebSocket frame."""
        if self._frame is None:
            self._frame = frame_message(self.content, binary=self.binary)
        return self._frame

    @property
    def polled(self) -> bytes:
        """The packet as a part of a polling answer."""
        return b"b" + base64.b64encode(self.content) if self.binary else self.content


def control(kind: EnginePacketType, text: bytes = b"") -> Outgoing:
    """Return an Engine.IO packet that controls the session."""
    return Outgoing(b"%d%b" % (kind, text))


def payload(packets: Iterable[Outgoing]) -> bytes:
    """Return the body of a polling answer."""
    return _SEPARATOR.join(packet.polled for packet in packets)


def parse_packets(
    body: bytes, ignored: Callable[[IgnoredPacket], object] | None = None
) -> Iterator[tuple[EnginePacketType, str | bytes]]:
    """Parse the packets in the body of a polling request, which may be empty.

    :param ignored: called for each ignored packet; without it, :class:`IgnoredPacket` is raised too.
    :raises PacketError: at the first packet that closes the session.
    """
    for part in body.split(_SEPARATOR) if body else ():
        try:
            packet = _parse_attachment(part) if part.startswith(b"b") else parse_packet(part)
        except IgnoredPacket as error:
            if ignored is None:
                raise
            ignored(error)
        else:
            yield packet


def _parse_attachment(part: bytes) -> tuple[EnginePacketType, bytes]:
    try:
        return EnginePacketType.MESSAGE, base64.b64decode(part[1:], validate=True)
    except binascii.Error as error:
        raise IgnoredPacket("not base64") from error


def parse_packet(text: bytes) -> tuple[EnginePacketType, str]:
    """Parse one packet of text; return its type and its content.

    :raises IgnoredPacket: the type does not exist, or the packet is not UTF-8.
    :raises PacketError: the packet does not begin with a type.
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

    :ivar data: an object or ``None`` (connect), a list (event, acknowledgement).
    :ivar ack: number of the acknowledgement that the client expects.
    :ivar missing: number of attachments that have not arrived yet.
    """

    kind: SocketPacketType
    namespace: str = "/"
    data: Any = None
    ack: int | None = None
    missing: int = 0
    attachments: list[bytes] = field(default_factory=list)

    def attach(self, content: bytes) -> None:
        """Add the next attachment; the last one completes the packet.

        :raises PacketError: a placeholder refers to an attachment that does not exist.
        """
        self.attachments.append(content)
        self.missing -= 1
        if not self.missing:
            self.data = _insert_attachments(self.data, self.attachments, _MAX_DEPTH)


def parse_message(text: str) -> SocketMessage:
    """Parse a Socket.IO packet from a client; it is incomplete until its attachments arrive.

    :raises IgnoredPacket: a client may not send this packet.
    :raises PacketError: the packet has no type, or is an event without a list; Socket.IO's own server closes too.
    """
    if not text or text[0] in "789":
        raise IgnoredPacket("an unknown type of Socket.IO packet")
    match = _SOCKET.fullmatch(text)
    if match is None:
        raise PacketError("a Socket.IO packet without a type")
    kind = SocketPacketType(int(match[1]))
    is_binary = kind in {SocketPacketType.BINARY_EVENT, SocketPacketType.BINARY_ACK}
    if is_binary != (match[2] is not None) or kind is SocketPacketType.CONNECT_ERROR:
        raise IgnoredPacket(f"a Socket.IO packet of type {kind} that a client may not send")
    missing = int(match[2] or 0)
    if missing > _MAX_ATTACHMENTS:
        raise IgnoredPacket(f"more than {_MAX_ATTACHMENTS} attachments")
    if is_binary:
        kind = SocketPacketType.EVENT if kind is SocketPacketType.BINARY_EVENT else SocketPacketType.ACK
    data = _parse_data(kind, match[5])
    ack = None if match[4] is None else int(match[4])
    if missing == 0 and is_binary:
        data = _insert_attachments(data, (), _MAX_DEPTH)
    # A query after the namespace is an old way to pass credentials.
    return SocketMessage(kind, match[3] or "/", data, ack, missing)


def _parse_data(kind: SocketPacketType, text: str) -> Any:
    """Parse the JSON of a packet.

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
        raise IgnoredPacket("an event without a name, or with a reserved one")
    return data


def _loads(text: str) -> Any:
    """Parse JSON like the old server, with ``NaN``, numbers that overflow, and halves of surrogate pairs.

    :raises IgnoredPacket: nested too deep.
    :raises ValueError: not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise IgnoredPacket("JSON that is nested too deep") from error


def _insert_attachments(data: Any, attachments: Sequence[bytes], max_depth: int) -> Any:
    """Return data with each placeholder replaced by its attachment."""
    if not isinstance(data, list | dict):
        return data
    if max_depth == 0:
        raise PacketError("an event with attachments that is nested too deep")
    if isinstance(data, list):
        return [_insert_attachments(item, attachments, max_depth - 1) for item in data]
    if data.get("_placeholder") is True:
        number = data.get("num")
        if type(number) is not int or not 0 <= number < len(attachments):
            raise PacketError("a placeholder without an attachment")
        return attachments[number]
    return {key: _insert_attachments(value, attachments, max_depth - 1) for key, value in data.items()}


def encode(kind: SocketPacketType, namespace: str, data: Any = None, ack: int | None = None) -> list[Outgoing]:
    """Return a Socket.IO packet as Engine.IO messages: its text, then each ``bytes`` value as an attachment.

    :raises TypeError: a value cannot be written as JSON.
    """
    attachments: list[bytes] = []

    def placeholder(value: Any) -> Any:
        if not isinstance(value, bytes | bytearray):
            raise TypeError(f"{type(value).__name__} cannot be written as JSON")
        attachments.append(bytes(value))
        return {"_placeholder": True, "num": len(attachments) - 1}

    text = b"" if data is None else orjson.dumps(data, default=placeholder)
    count = b""
    if attachments:
        kind = SocketPacketType.BINARY_EVENT if kind is SocketPacketType.EVENT else SocketPacketType.BINARY_ACK
        count = b"%d-" % len(attachments)
    prefix = b"" if namespace == "/" else namespace.encode() + b","
    number = b"" if ack is None else b"%d" % ack
    packet = b"%d%d%b%b%b%b" % (EnginePacketType.MESSAGE, kind, count, prefix, number, text)
    return [Outgoing(packet), *(Outgoing(content, binary=True) for content in attachments)]
