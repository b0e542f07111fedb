"""Events of machines by Socket.IO at ``/sio/<machine>``, compatible with clients of the old monitoring server."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from gateway.auth.access import AccessControl
from gateway.auth.principal import NOBODY, Principal
from gateway.bus.bus import Bus
from gateway.bus.event import Event
from gateway.live.state import LiveState
from gateway.model.names import name_of
from gateway.model.records import Fault, Update
from gateway.web.socketio.packets import Outgoing
from gateway.web.socketio.server import Namespace, NamespaceClient, event_packets

_PREFIX: Final = "/sio/"

#: Bytes that a list of updates counts for before it is encoded.
_UNENCODED_UPDATES: Final = 1000


class RootNamespace:
    """Namespace ``/`` without events: the old server let every client join it."""

    def on_join(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        """Do nothing."""

    def on_event(self, member: NamespaceClient, event: str, arguments: list[Any]) -> Sequence[Any]:
        return ()

    def on_leave(self, member: NamespaceClient) -> None:
        """Do nothing."""


class MachineNamespace:
    """Clients of one machine; a subscriber of the bus while it has members.

    :param name: name of the namespace, as its clients write it.
    :param emptied: called when the last member has left.
    """

    def __init__(self, name: str, machine: str, bus: Bus, live: LiveState, emptied: Callable[[], object]) -> None:
        self._name = name
        self._machine = machine
        self._bus = bus
        self._live = live
        self._emptied = emptied
        #: Members in the order in which they joined.
        self.members: dict[NamespaceClient, None] = {}

    def on_join(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        self.members[member] = None
        self._bus.subscribe(self, frozenset({("machine", self._machine)}))

    def on_leave(self, member: NamespaceClient) -> None:
        del self.members[member]
        if not self.members:
            self._bus.unsubscribe(self)
            self._emptied()

    def on_event(self, member: NamespaceClient, event: str, arguments: list[Any]) -> Sequence[Any]:
        if event == "initialize":
            for updates in self._live.recent(self._machine).values():
                member.send([self._recent_packet(tuple(updates))])
        return ()

    def _recent_packet(self, updates: tuple[Update, ...]) -> Outgoing:
        # Encoded only when it is sent: a machine may have a thousand sensors, and a client may ask repeatedly.
        return Outgoing(partial(_encode_recent, self._name, updates), cost=_UNENCODED_UPDATES)

    def deliver(self, event: Event) -> None:
        record = event.record
        if isinstance(record, Update):
            packets = event_packets(self._name, "update", record.payload())
        elif isinstance(record, Fault):
            packets = event_packets(self._name, "anomaly", {"score": record.score, "threshold": record.threshold})
        else:
            return
        # Sending may remove a member.
        for member in tuple(self.members):
            member.send(packets)


class MachineNamespaces:
    """Namespaces of machines, including those that have never connected."""

    def __init__(self, bus: Bus, live: LiveState) -> None:
        self._bus = bus
        self._live = live
        self._root = RootNamespace()
        self._namespaces: dict[str, MachineNamespace] = {}

    def find(self, name: str) -> Namespace | None:
        """Return a namespace by the name that a client sent; ``None`` if it does not exist."""
        if name == "/":
            return self._root
        # Some clients percent-encode a name as in a URL, and some systems send letters and their marks decomposed.
        machine = name_of(unquote(name.removeprefix(_PREFIX)))
        if not name.startswith(_PREFIX) or machine is None:
            return None
        namespace = self._namespaces.get(name)
        if namespace is None:
            # An empty namespace is not kept.
            emptied = partial(self._namespaces.pop, name, None)
            namespace = self._namespaces[name] = MachineNamespace(name, machine, self._bus, self._live, emptied)
        return namespace


def identify_connect(access: AccessControl, principal: Principal, auth: dict[str, Any]) -> Principal:
    """Return the rights of a CONNECT: those of the token that it carries, otherwise those of the session's request.

    :param principal: rights of the session's request.
    :param auth: object that the client sent with the CONNECT.
    """
    token = auth.get("token")
    if token is None:
        return access.current(principal)
    found = access.identify(token.encode("utf-8", "replace")) if isinstance(token, str) else "invalid"
    return found if isinstance(found, Principal) else NOBODY


def _encode_recent(name: str, updates: Iterable[Update]) -> bytes:
    (packet,) = event_packets(name, "initialize", [update.payload() for update in updates])
    return packet.content
