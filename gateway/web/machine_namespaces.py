"""Machines by Socket.IO, as the old monitoring server's clients know them: ``/sio/<machine>``."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from gateway.bus import Bus, Event
from gateway.live import Live
from gateway.model import Fault, Update, is_name
from gateway.web.socketio.packets import Outgoing
from gateway.web.socketio.server import Member, Namespace, event_packets

_PREFIX: Final = "/sio/"

#: What a list of updates that is not encoded yet is counted as, in bytes: references.
_REFERENCES: Final = 1000


class Lobby:
    """The namespace ``/``, which the old server let everybody join: nothing happens there."""

    def joined(self, member: Member, auth: dict[str, Any]) -> None:
        """Nobody is told."""

    def received(self, member: Member, event: str, arguments: list[Any]) -> Sequence[Any]:
        return ()

    def left(self, member: Member) -> None:
        """Nobody is told."""


class MachineNamespace:
    """The clients of one machine; a subscriber of the bus while there are any.

    :param name: of the namespace, as its clients write it.
    """

    def __init__(self, name: str, machine: str, bus: Bus, live: Live) -> None:
        self._name = name
        self._machine = machine
        self._bus = bus
        self._live = live
        #: In the order of their coming; a new tuple with each, for somebody may be going through the old one.
        self.members: tuple[Member, ...] = ()

    def joined(self, member: Member, auth: dict[str, Any]) -> None:
        self.members = (*self.members, member)
        self._bus.subscribe(self, frozenset({("machine", self._machine)}))

    def left(self, member: Member) -> None:
        self.members = tuple(other for other in self.members if other is not member)
        if not self.members:
            self._bus.unsubscribe(self)

    def received(self, member: Member, event: str, arguments: list[Any]) -> Sequence[Any]:
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
        for member in self.members:
            member.send(packets)


class MachineNamespaces:
    """Finds the namespace of a machine, which may never have connected."""

    def __init__(self, bus: Bus, live: Live) -> None:
        self._bus = bus
        self._live = live
        self._lobby = Lobby()
        self._namespaces: dict[str, MachineNamespace] = {}

    def find(self, name: str) -> Namespace | None:
        if name == "/":
            return self._lobby
        # Some clients write a name as it stands in a URL.
        machine = unquote(name.removeprefix(_PREFIX))
        if not name.startswith(_PREFIX) or not is_name(machine):
            return None
        found = self._namespaces.get(name)
        if found is None:
            # There are only as many as are joined.
            for other in [other for other, its in self._namespaces.items() if not its.members]:
                del self._namespaces[other]
            found = self._namespaces[name] = MachineNamespace(name, machine, self._bus, self._live)
        return found


def _encoded(name: str, updates: Iterable[Update]) -> bytes:
    (packet,) = event_packets(name, "initialize", [update.payload() for update in updates])
    return packet.content
