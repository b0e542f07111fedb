"""Machines by Socket.IO, as the old monitoring server's clients know them: ``/sio/<machine>``."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from gateway.bus.bus import Bus
from gateway.bus.event import Event
from gateway.live.state import LiveState
from gateway.model.names import name_of
from gateway.model.records import Fault, Update
from gateway.web.socketio.packets import Outgoing
from gateway.web.socketio.server import Namespace, NamespaceClient, event_packets

_PREFIX: Final = "/sio/"

#: What a list of updates that is not encoded yet is counted as, in bytes: references.
_REFERENCES: Final = 1000


class Lobby:
    """The namespace ``/``, which the old server let everybody join: nothing happens there."""

    def joined(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        """Nobody is told."""

    def received(self, member: NamespaceClient, event: str, arguments: list[Any]) -> Sequence[Any]:
        return ()

    def left(self, member: NamespaceClient) -> None:
        """Nobody is told."""


class MachineNamespace:
    """The clients of one machine; a subscriber of the bus while there are any.

    :param name: of the namespace, as its clients write it.
    :param emptied: is called when the last of them has left.
    """

    def __init__(self, name: str, machine: str, bus: Bus, live: LiveState, emptied: Callable[[], object]) -> None:
        self._name = name
        self._machine = machine
        self._bus = bus
        self._live = live
        self._emptied = emptied
        #: In the order of their coming.
        self.members: dict[NamespaceClient, None] = {}

    def joined(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        self.members[member] = None
        self._bus.subscribe(self, frozenset({("machine", self._machine)}))

    def left(self, member: NamespaceClient) -> None:
        del self.members[member]
        if not self.members:
            self._bus.unsubscribe(self)
            self._emptied()

    def received(self, member: NamespaceClient, event: str, arguments: list[Any]) -> Sequence[Any]:
        if event == "initialize":
            for updates in self._live.recent(self._machine).values():
                member.send([self._initialize(tuple(updates))])
        return ()

    def _initialize(self, updates: tuple[Update, ...]) -> Outgoing:
        # Encoded when it is its turn: a machine may have a thousand sensors, and a client that asks again and again.
        return Outgoing(partial(_encoded, self._name, updates), cost=_REFERENCES)

    def deliver(self, event: Event) -> None:
        record = event.record
        if isinstance(record, Update):
            packets = event_packets(self._name, "update", record.payload())
        elif isinstance(record, Fault):
            packets = event_packets(self._name, "anomaly", {"score": record.score, "threshold": record.threshold})
        else:
            return
        # Sending may close one.
        for member in tuple(self.members):
            member.send(packets)


class MachineNamespaces:
    """Finds the namespace of a machine, which may never have connected."""

    def __init__(self, bus: Bus, live: LiveState) -> None:
        self._bus = bus
        self._live = live
        self._lobby = Lobby()
        self._namespaces: dict[str, MachineNamespace] = {}

    def find(self, name: str) -> Namespace | None:
        if name == "/":
            return self._lobby
        # Some clients percent-encode a name as in a URL, and some systems send letters and their marks decomposed.
        machine = name_of(unquote(name.removeprefix(_PREFIX)))
        if not name.startswith(_PREFIX) or machine is None:
            return None
        found = self._namespaces.get(name)
        if found is None:
            # Only those that somebody has joined are kept.
            emptied = partial(self._namespaces.pop, name, None)
            found = self._namespaces[name] = MachineNamespace(name, machine, self._bus, self._live, emptied)
        return found


def _encoded(name: str, updates: Iterable[Update]) -> bytes:
    (packet,) = event_packets(name, "initialize", [update.payload() for update in updates])
    return packet.content
