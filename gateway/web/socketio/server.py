"""Socket.IO on Engine.IO: namespaces, events, acknowledgements."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.web.socketio.packets import (
    IgnoredPacket,
    Outgoing,
    PacketError,
    SocketMessage,
    SocketPacketType,
    encode,
    message_of,
)
from gateway.web.socketio.session import EngineSession

log = Logger()

#: Seconds in which a client must have joined a namespace; Socket.IO's own server gives as many.
_CONNECT: Final = 45.0

#: Namespaces that one client may join.
_MOST_NAMESPACES: Final = 1000


class Namespace(Protocol):
    """An application's part that clients can join."""

    def joined(self, member: "NamespaceClient", auth: dict[str, Any]) -> None:
        """Somebody has joined.

        :param auth: what it said to that.
        """

    def received(self, member: "NamespaceClient", event: str, arguments: list[Any]) -> Sequence[Any]:
        """It has sent an event; the answer goes back where it asked for an acknowledgement."""

    def left(self, member: "NamespaceClient") -> None:
        """It has gone."""


class NamespaceClient:
    """A client in one namespace.

    :ivar name: of the namespace, as the client wrote it.
    """

    __slots__ = ("_session", "name", "namespace", "sid")

    def __init__(self, session: EngineSession, name: str, namespace: Namespace) -> None:
        self.sid = secrets.token_urlsafe(15)
        self.name = name
        self.namespace = namespace
        self._session = session

    def emit(self, event: str, *arguments: Any) -> None:
        """Send it an event."""
        self.send(event_packets(self.name, event, *arguments))

    def send(self, packets: Iterable[Outgoing]) -> None:
        """Send it what was encoded for everybody in its namespace."""
        for packet in packets:
            self._session.send(packet)


class _Client:
    """A session and the namespaces it has joined."""

    def __init__(self, late: IDelayedCall) -> None:
        self.members: dict[str, NamespaceClient] = {}
        #: The packet whose attachments are awaited, and how many bytes of them have come.
        self.pending: SocketMessage | None = None
        self.attached = 0
        self._late: IDelayedCall | None = late

    def is_in_time(self) -> None:
        """It has joined a namespace, or has gone."""
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def is_late(self) -> None:
        self._late = None


class SocketServer:
    """The application of an Engine.IO server that speaks Socket.IO.

    :param find: the namespace of a name; ``None`` where there is none.
    :param connect_timeout: seconds in which a client must have joined one.
    :param max_attached: bytes of attachments of one event.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        find: Callable[[str], Namespace | None],
        *,
        connect_timeout: float = _CONNECT,
        max_attached: int = 1_000_000,
    ) -> None:
        self._reactor = reactor
        self._find = find
        self._connect_timeout = connect_timeout
        self._max_attached = max_attached
        self._clients: dict[EngineSession, _Client] = {}

    def opened(self, session: EngineSession) -> None:
        self._clients[session] = _Client(self._reactor.callLater(self._connect_timeout, self._late, session))

    def _late(self, session: EngineSession) -> None:
        self._clients[session].is_late()
        session.close()

    def closed(self, session: EngineSession) -> None:
        client = self._clients.pop(session)
        client.is_in_time()
        for member in client.members.values():
            self._left(member)

    def received(self, session: EngineSession, data: str | bytes) -> None:
        client = self._clients[session]
        if isinstance(data, bytes):
            message = self._attached(client, data)
        elif client.pending is not None:
            raise PacketError("an attachment is missing")
        else:
            message = message_of(data)
            if message.missing:
                client.pending = message
        if client.pending is None and message is not None:
            self._take(session, client, message)

    def _attached(self, client: _Client, content: bytes) -> SocketMessage | None:
        message = client.pending
        if message is None:
            raise IgnoredPacket("an attachment of no event")
        client.attached += len(content)
        if client.attached > self._max_attached:
            raise PacketError("attachments that are too long")
        message.attach(content)
        if message.missing:
            return None
        client.pending = None
        client.attached = 0
        return message

    def _take(self, session: EngineSession, client: _Client, message: SocketMessage) -> None:
        member = client.members.get(message.namespace)
        if message.kind is SocketPacketType.CONNECT:
            if member is not None:
                _refuse(session, message.namespace, "Unable to connect")
                raise IgnoredPacket("a second CONNECT to a namespace")
            self._join(session, client, message)
        elif member is None:
            raise IgnoredPacket("a packet for a namespace that was not joined")
        elif message.kind is SocketPacketType.DISCONNECT:
            del client.members[message.namespace]
            self._left(member)
        elif message.kind is SocketPacketType.EVENT:
            event, *arguments = message.data
            try:
                answer = member.namespace.received(member, event, arguments)
            except Exception:  # whatever an application raises, the client goes on
                log.failure("an application failed on an event")
                return
            if message.ack is not None:
                member.send(encode(SocketPacketType.ACK, member.name, list(answer), message.ack))

    def _join(self, session: EngineSession, client: _Client, message: SocketMessage) -> None:
        namespace = self._find(message.namespace) if len(client.members) < _MOST_NAMESPACES else None
        if namespace is None:
            _refuse(session, message.namespace, "Invalid namespace")
            return
        client.is_in_time()
        member = client.members[message.namespace] = NamespaceClient(session, message.namespace, namespace)
        member.send(encode(SocketPacketType.CONNECT, member.name, {"sid": member.sid}))
        try:
            namespace.joined(member, message.data or {})
        except Exception:  # the same
            log.failure("an application failed on who has joined")

    def _left(self, member: NamespaceClient) -> None:
        try:
            member.namespace.left(member)
        except Exception:  # the same
            log.failure("an application failed on who has left")


def _refuse(session: EngineSession, namespace: str, reason: str) -> None:
    """Answer a CONNECT with an error for its namespace."""
    for packet in encode(SocketPacketType.CONNECT_ERROR, namespace, {"message": reason}):
        session.send(packet)


def event_packets(name: str, event: str, *arguments: Any) -> list[Outgoing]:
    """An event as packets for every member of a namespace."""
    return encode(SocketPacketType.EVENT, name, [event, *arguments])
