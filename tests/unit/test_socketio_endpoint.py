"""Namespaces of machines: names, members and events."""

import json
from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gateway.model.records import Fault, Presence, Update
from gateway.runtime.clock import WallClock
from gateway.web.push.socketio_endpoint import MachineNamespaces
from gateway.web.socketio.packets import Outgoing
from gateway.web.socketio.server import NamespaceClient
from tests.support.runtime import make_runtime

NOW = datetime(2025, 12, 18, 10, 12, tzinfo=UTC)


class FakeSession:
    def __init__(self) -> None:
        self.packets: list[Outgoing] = []

    def send(self, packet: Outgoing) -> None:
        self.packets.append(packet)

    def events(self, name: str) -> list[Any]:
        """Return the events of a namespace."""
        begin = f"42{name},"
        return [json.loads(packet.content.decode().removeprefix(begin)) for packet in self.packets]


class MachineNamespaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        clock = WallClock(UTC, NOW.timestamp, Clock().seconds)
        runtime = make_runtime(Clock(), clock)
        self.counters, self.bus, self.live = runtime.counters, runtime.bus, runtime.live
        self.namespaces = MachineNamespaces(self.bus, self.live)

    def join(self, name: str) -> tuple[FakeSession, NamespaceClient]:
        namespace = self.namespaces.find(name)
        assert namespace is not None
        session = FakeSession()
        member = NamespaceClient(session, name, namespace)  # type: ignore[arg-type]  # a fake
        namespace.on_join(member, {})
        return session, member

    def update(self, machine: str, sensor: str, mean: float) -> dict[str, Any]:
        update = Update(machine, sensor, mean, NOW)
        self.bus.publish(update)
        return update.payload()

    def test_find_accepts_only_valid_names_of_machines(self) -> None:
        for name in ("/", "/sio/M", "/sio/한글 기계", "/sio/%ED%95%9C%EA%B8%80%20%EA%B8%B0%EA%B3%84", "/sio/a.b:c-d_e"):
            self.assertIsNotNone(self.namespaces.find(name), name)
        for name in (
            "",
            "/sio",
            "/sio/",
            "/sio/..",
            "/sio/.",
            "/sio/a/b",
            "/sio/%2F",
            "/other",
            "/SIO/M",
            "/sio/" + "a" * 65,
        ):
            self.assertIsNone(self.namespaces.find(name), name)

    def test_members_receive_the_events_of_their_machine(self) -> None:
        session, _ = self.join("/sio/M")
        escaped, _ = self.join("/sio/%4D")
        update = self.update("M", "v", 0.5)
        self.update("N", "v", 0.5)
        self.bus.publish(Fault("M", 0.5, 1.0, NOW))
        self.bus.publish(Presence("machine", "M", connected=True))
        expected = [["update", update], ["anomaly", {"score": 0.5, "threshold": 1.0}]]
        self.assertEqual(session.events("/sio/M"), expected)
        self.assertEqual(escaped.events("/sio/%4D"), expected)

    def test_event_is_encoded_once_for_all_members(self) -> None:
        sessions = [self.join("/sio/M")[0] for _ in range(3)]
        self.update("M", "v", 0.5)
        self.assertEqual(len({id(session.packets[0]) for session in sessions}), 1)

    def test_initialize_sends_the_last_sixty_updates_of_each_sensor_once(self) -> None:
        updates = [self.update("M", "v", float(number)) for number in range(70)]
        others = [self.update("M", "w", 0.5)]
        self.update("N", "v", 0.5)
        session, member = self.join("/sio/M")
        for arguments in ([], [None], [{"any": "argument"}, 2]):
            session.packets.clear()
            self.assertEqual(member.namespace.on_event(member, "initialize", arguments), ())
            # It is encoded when it is sent, with the state at the time of the request.
            later = self.update("M", "v", 100.0)
            self.assertEqual(
                session.events("/sio/M"), [["initialize", updates[-60:]], ["initialize", others], ["update", later]]
            )
            updates.append(later)

    def test_initialize_of_an_unknown_machine_sends_nothing(self) -> None:
        session, member = self.join("/sio/Nobody")
        self.assertEqual(member.namespace.on_event(member, "initialize", []), ())
        self.assertEqual(member.namespace.on_event(member, "other", []), ())
        self.assertEqual(session.packets, [])

    def test_member_that_has_left_receives_nothing_and_is_removed(self) -> None:
        first, member = self.join("/sio/M")
        second, other = self.join("/sio/M")
        member.namespace.on_leave(member)
        self.update("M", "v", 0.5)
        self.assertEqual((len(first.packets), len(second.packets)), (0, 1))
        other.namespace.on_leave(other)
        self.assertEqual(self.counters.subscribers._value.get(), 0)
        self.namespaces.find("/sio/N")
        self.assertEqual(list(self.namespaces._namespaces), ["/sio/N"])

    def test_member_may_leave_during_an_event(self) -> None:
        first, member = self.join("/sio/M")
        second, _ = self.join("/sio/M")
        send = first.send

        def send_and_leave(packet: Outgoing) -> None:
            send(packet)
            member.namespace.on_leave(member)

        first.send = send_and_leave  # type: ignore[method-assign]  # leaves
        self.update("M", "v", 0.5)
        self.update("M", "v", 1.5)
        self.assertEqual((len(first.packets), len(second.packets)), (1, 2))
