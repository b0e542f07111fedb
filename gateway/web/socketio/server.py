"""Socket.IO on Engine.IO: namespaces, events and acknowledgements."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.auth.principal import Principal
from gateway.web.socketio.packets import (
    IgnoredPacket,
    Outgoing,
    PacketError,
    SocketMessage,
    SocketPacketType,
    encode,
    parse_message,
)
from gateway.web.socketio.session import EngineSession

log = Logger()

#: Maximum seconds until a client joins a namespace, as in Socket.IO's own server.
_CONNECT: Final = 45.0

#: Maximum namespaces of one client.
_MAX_NAMESPACES: Final = 1000


class Namespace(Protocol):
    """Part of an application that clients can join."""

    def on_join(self, member: "NamespaceClient", auth: dict[str, Any]) -> None:
        """Handle a new member.

        :param auth: object that the client sent with its request.
        """

    def on_event(self, member: "NamespaceClient", event: str, arguments: list[Any]) -> Sequence[Any]:
        """Handle an event of a member; return the values of the acknowledgement, which is sent if it asked for one."""

    def on_leave(self, member: "NamespaceClient") -> None:
        """Handle the loss of a member."""


class NamespaceClient:
    """Client in one namespace.

    :ivar name: name of the namespace, as the client wrote it.
    """

    __slots__ = ("_session", "name", "namespace", "sid")

    def __init__(self, session: EngineSession, name: str, namespace: Namespace) -> None:
        self.sid = secrets.token_urlsafe(15)
        self.name = name
        self.namespace = namespace
        self._session = session

    def emit(self, event: str, *arguments: Any) -> None:
        """Send an event."""
        self.send(event_packets(self.name, event, *arguments))

    def send(self, packets: Iterable[Outgoing]) -> None:
        """Send packets, which may be shared with other members of the namespace."""
        for packet in packets:
            self._session.send(packet)


class _Client:
    """A session, the namespaces that it has joined, and an event whose attachments have not all arrived."""

    def __init__(self, join_deadline: IDelayedCall) -> None:
        self.members: dict[str, NamespaceClient] = {}
        #: Packet whose attachments are awaited, and bytes of those that have arrived.
        self.incomplete: SocketMessage | None = None
        self.attached_bytes = 0
        self._join_deadline: IDelayedCall | None = join_deadline

    def cancel_deadline(self) -> None:
        """Stop waiting for the first namespace: the client has joined one, or has left."""
        if self._join_deadline is not None:
            self._join_deadline.cancel()
            self._join_deadline = None

    def deadline_passed(self) -> None:
        self._join_deadline = None


class SocketServer:
    """Engine.IO application that speaks Socket.IO.

    :param find: function that returns the namespace with a name, or ``None``.
    :param identify: function that returns the rights of a CONNECT; its arguments are the rights of the session's own
        request, and the object that the client sent with the CONNECT.
    :param connect_timeout: maximum seconds until a client joins its first namespace.
    :param max_attached: maximum bytes of the attachments of one event.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        find: Callable[[str], Namespace | None],
        *,
        identify: Callable[[Principal, dict[str, Any]], Principal] = lambda principal, _: principal,
        connect_timeout: float = _CONNECT,
        max_attached: int = 1_000_000,
    ) -> None:
        self._reactor = reactor
        self._find = find
        self._identify = identify
        self._connect_timeout = connect_timeout
        self.max_attached = max_attached
        self._clients: dict[EngineSession, _Client] = {}

    def on_open(self, session: EngineSession) -> None:
        deadline = self._reactor.callLater(self._connect_timeout, self._close_idle, session)
        self._clients[session] = _Client(deadline)

    def _close_idle(self, session: EngineSession) -> None:
        self._clients[session].deadline_passed()
        session.close()

    def on_close(self, session: EngineSession) -> None:
        client = self._clients.pop(session)
        client.cancel_deadline()
        for member in client.members.values():
            self._remove(member)

    def on_message(self, session: EngineSession, data: str | bytes) -> None:
        client = self._clients[session]
        if isinstance(data, bytes):
            message = self._attach(client, data)
        elif client.incomplete is not None:
            raise PacketError("an attachment is missing")
        else:
            message = parse_message(data)
            if message.missing:
                client.incomplete = message
        if client.incomplete is None and message is not None:
            self._process(session, client, message)

    def _attach(self, client: _Client, content: bytes) -> SocketMessage | None:
        """Add an attachment to the incomplete packet; return the packet once it is complete."""
        message = client.incomplete
        if message is None:
            raise IgnoredPacket("an attachment without an event")
        client.attached_bytes += len(content)
        if client.attached_bytes > self.max_attached:
            raise PacketError(f"attachments of more than {self.max_attached} bytes")
        message.attach(content)
        if message.missing:
            return None
        client.incomplete = None
        client.attached_bytes = 0
        return message

    def _process(self, session: EngineSession, client: _Client, message: SocketMessage) -> None:
        member = client.members.get(message.namespace)
        if message.kind is SocketPacketType.CONNECT:
            if member is not None:
                _refuse(session, message.namespace, "Unable to connect")
                raise IgnoredPacket("a second CONNECT to a namespace")
            self._join(session, client, message)
        elif member is None:
            raise IgnoredPacket("a packet for a namespace that the client has not joined")
        elif message.kind is SocketPacketType.DISCONNECT:
            del client.members[message.namespace]
            self._remove(member)
        elif message.kind is SocketPacketType.EVENT:
            event, *arguments = message.data
            try:
                answer = member.namespace.on_event(member, event, arguments)
            except Exception:  # the session must survive any error of the application
                log.failure("Socket.IO namespace {name}: cannot handle an event of a client", name=member.name)
                return
            if message.ack is not None:
                member.send(encode(SocketPacketType.ACK, member.name, list(answer), message.ack))

    def _join(self, session: EngineSession, client: _Client, message: SocketMessage) -> None:
        principal = self._identify(session.principal, message.data or {})
        if "read" not in principal.scopes:
            _refuse(session, message.namespace, "unauthorized")
            return
        namespace = self._find(message.namespace) if len(client.members) < _MAX_NAMESPACES else None
        if namespace is None:
            _refuse(session, message.namespace, "Invalid namespace")
            return
        client.cancel_deadline()
        session.joined_as.add(principal)
        member = client.members[message.namespace] = NamespaceClient(session, message.namespace, namespace)
        member.send(encode(SocketPacketType.CONNECT, member.name, {"sid": member.sid}))
        try:
            namespace.on_join(member, message.data or {})
        except Exception:  # the session must survive any error of the application
            log.failure("Socket.IO namespace {name}: cannot add a client", name=member.name)

    def _remove(self, member: NamespaceClient) -> None:
        try:
            member.namespace.on_leave(member)
        except Exception:  # the other namespaces must be left too
            log.failure("Socket.IO namespace {name}: cannot remove a client", name=member.name)


def _refuse(session: EngineSession, namespace: str, reason: str) -> None:
    """Answer a CONNECT with an error for its namespace."""
    for packet in encode(SocketPacketType.CONNECT_ERROR, namespace, {"message": reason}):
        session.send(packet)


def event_packets(name: str, event: str, *arguments: Any) -> list[Outgoing]:
    """Return the packets of an event, which all members of a namespace share."""
    return encode(SocketPacketType.EVENT, name, [event, *arguments])
