"""Engine.IO sessions and Socket.IO servers with a fake clock and no connection."""

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gateway.web.clients.outbox import Outbox
from gateway.web.socketio.packets import EnginePacketType, IgnoredPacket, Outgoing, PacketError
from gateway.web.socketio.server import NamespaceClient, SocketServer
from gateway.web.socketio.session import EngineSession, EngineSettings

BOUND = 10_000


class FakePoll:
    def __init__(self) -> None:
        self.body: bytes | None = None

    def answer(self, body: bytes) -> None:
        self.body = body


class FakePipe:
    def __init__(self) -> None:
        self.outbox: Outbox[Outgoing] | None = None
        self.sent: list[bytes] = []
        self.hung_up: list[int] = []

    def pace(self, outbox: Outbox[Outgoing]) -> None:
        self.outbox = outbox
        outbox.resume()

    def send_frame(self, frame: bytes) -> None:
        assert len(frame) < 128, "a frame of these tests is short"
        self.sent.append(frame[2:])

    def hang_up(self, code: int = 1000) -> None:
        self.hung_up.append(code)


class FakeOwner:
    """Server of a session and its application."""

    settings = EngineSettings(max_payload=1000, max_waiting=BOUND)

    def __init__(self, clock: Clock) -> None:
        self.reactor: Any = clock
        self.application: Any = self
        self.calls: list[Any] = []

    def remove(self, session: EngineSession, code: int) -> None:
        self.calls.append({1000: "ended", 4008: "too slow"}[code])

    def on_open(self, session: EngineSession) -> None:
        self.calls.append("opened")

    def on_message(self, session: EngineSession, data: str | bytes) -> None:
        self.calls.append(data)

    def on_close(self, session: EngineSession) -> None:
        self.calls.append("closed")


class SessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.owner = FakeOwner(self.clock)
        self.pipe = FakePipe()

    def piped(self) -> EngineSession:
        session = EngineSession(self.owner, self.pipe)
        session.start()
        self.pipe.sent.clear()
        return session

    def polled(self) -> EngineSession:
        session = EngineSession(self.owner, None)
        session.start()
        hello = self.poll(session)
        assert hello.body is not None
        self.assertEqual(hello.body[:1], b"0")
        return session

    def poll(self, session: EngineSession) -> FakePoll:
        poll = FakePoll()
        self.assertTrue(session.add_poll(poll))
        return poll

    def assert_closed(self, session: EngineSession) -> None:
        self.assertFalse(session.is_open)
        self.assertEqual(self.owner.calls[-2:], ["ended", "closed"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- heartbeat

    def test_session_stays_open_while_pings_are_answered(self) -> None:
        session = self.piped()
        for number in range(1, 5):
            self.clock.advance(24.5)
            self.assertEqual(len(self.pipe.sent), number - 1)
            self.clock.advance(0.5)
            self.assertEqual(self.pipe.sent, [b"2"] * number)
            self.clock.advance(19.5)
            session.receive(EnginePacketType.PONG, "")
        self.assertTrue(session.is_open)

    def test_session_without_an_answer_to_a_ping_is_closed(self) -> None:
        session = self.piped()
        self.clock.advance(25)
        self.clock.advance(20)
        self.assertEqual(self.pipe.hung_up, [1000])
        self.assert_closed(session)

    def test_waiting_poll_gets_the_ping_and_then_the_close_packet(self) -> None:
        session = self.polled()
        poll = self.poll(session)
        self.clock.advance(25)
        self.assertEqual(poll.body, b"2")
        poll = self.poll(session)
        self.assertFalse(session.has_expired)
        self.clock.advance(20)
        self.assertEqual(poll.body, b"1")
        self.assert_closed(session)

    def test_has_expired_does_not_depend_on_timers(self) -> None:
        session = self.polled()
        self.clock.rightNow += 44.9
        self.assertFalse(session.has_expired)
        self.clock.rightNow += 0.1
        self.assertTrue(session.has_expired)
        session.close()

    # -- packets

    def test_messages_reach_the_application(self) -> None:
        session = self.piped()
        session.receive(EnginePacketType.MESSAGE, "text")
        session.receive(EnginePacketType.MESSAGE, b"bytes")
        for kind in (EnginePacketType.OPEN, EnginePacketType.NOOP, EnginePacketType.UPGRADE, EnginePacketType.PING):
            for data in ("", "probe", "x"):
                session.receive(kind, data)
        self.assertEqual(self.owner.calls, ["opened", "text", b"bytes"])
        self.assertEqual(self.pipe.sent, [])
        self.assertTrue(session.is_open)
        session.close()
        session.receive(EnginePacketType.MESSAGE, "late")
        self.assertEqual(self.owner.calls[-1], "closed")

    def test_packets_between_polls_arrive_in_order(self) -> None:
        session = self.polled()
        for number in range(3):
            session.send(Outgoing(b"4%d" % number))
        self.assertEqual(self.poll(session).body, b"40\x1e41\x1e42")
        poll = self.poll(session)
        self.assertIsNone(poll.body)
        session.send(Outgoing(b"\0", binary=True))
        self.assertEqual(poll.body, b"bAA==")
        session.close()

    def test_answer_to_a_poll_is_bounded(self) -> None:
        session = self.polled()
        for _ in range(5):
            session.send(Outgoing(b"4" + b"x" * 299))
        sizes = [len(self.poll(session).body or b"") for _ in range(3)]
        self.assertEqual(sizes, [601, 601, 300])
        session.close()

    def test_session_of_a_client_that_does_not_poll_is_closed(self) -> None:
        session = self.polled()
        for _ in range(20):
            session.send(Outgoing(b"x" * 500))
        self.clock.advance(2)
        self.assertFalse(session.is_open)
        self.assertEqual(self.owner.calls, ["opened", "too slow", "closed"])

    def test_session_of_a_client_that_does_not_read_is_closed(self) -> None:
        session = self.piped()
        assert self.pipe.outbox is not None
        self.pipe.outbox.pause()
        for _ in range(100):
            session.send(Outgoing(b"x" * 500))
        self.assertEqual(self.pipe.hung_up, [4008])
        self.assertEqual(self.owner.calls, ["opened", "too slow", "closed"])
        self.assertEqual(self.pipe.sent, [])

    # -- upgrade

    def test_upgrade_moves_waiting_packets_to_the_websocket(self) -> None:
        session = self.polled()
        waiting = self.poll(session)
        self.assertTrue(session.add_probe(self.pipe))
        self.assertTrue(session.receive_probe(self.pipe, EnginePacketType.PING, "probe"))
        self.assertEqual((waiting.body, self.pipe.sent), (b"6", [b"3probe"]))
        # Polls are answered until then, but none waits.
        session.send(Outgoing(b"4a"))
        self.assertEqual(self.poll(session).body, b"4a")
        self.assertEqual(self.poll(session).body, b"6")
        session.send(Outgoing(b"4b"))
        self.assertTrue(session.receive_probe(self.pipe, EnginePacketType.UPGRADE, ""))
        session.send(Outgoing(b"4c"))
        self.assertEqual(self.pipe.sent, [b"3probe", b"4b", b"4c"])
        self.assertFalse(session.can_poll)
        self.assertFalse(session.receive_probe(self.pipe, EnginePacketType.MESSAGE, "x"))
        self.assertFalse(session.add_probe(FakePipe()))
        session.on_pipe_lost(self.pipe)
        self.assert_closed(session)

    def test_lost_upgrade_leaves_the_session_polling(self) -> None:
        session = self.polled()
        session.add_probe(self.pipe)
        session.receive_probe(self.pipe, EnginePacketType.PING, "probe")
        session.on_pipe_lost(self.pipe)
        self.assertIsNone(self.poll(session).body)
        self.assertTrue(session.can_poll)
        session.close()
        self.assert_closed(session)

    def test_upgrade_is_dropped_at_its_deadline(self) -> None:
        session = self.polled()
        session.add_probe(self.pipe)
        self.assertFalse(session.add_probe(FakePipe()))
        self.clock.advance(10)
        self.assertEqual(self.pipe.hung_up, [1000])
        self.assertTrue(session.can_poll)
        self.assertTrue(session.add_probe(FakePipe()))
        session.close()

    def test_upgrade_without_a_probe_is_refused(self) -> None:
        for kind, data in (
            (EnginePacketType.UPGRADE, ""),
            (EnginePacketType.MESSAGE, "x"),
            (EnginePacketType.PING, ""),
        ):
            session = self.polled()
            session.add_probe(self.pipe)
            with self.assertRaises(PacketError):
                session.receive_probe(self.pipe, kind, data)
            self.assertTrue(session.can_poll)
            session.close()

    # -- end

    def test_close_packet_closes_the_session(self) -> None:
        session = self.polled()
        poll = self.poll(session)
        session.receive(EnginePacketType.CLOSE, "")
        self.assertEqual(poll.body, b"6")
        self.assert_closed(session)

    def test_lost_poll_closes_the_session(self) -> None:
        session = self.polled()
        poll = self.poll(session)
        session.on_poll_lost(FakePoll())
        self.assertTrue(session.is_open)
        session.on_poll_lost(poll)
        self.assert_closed(session)

    def test_second_poll_closes_the_session(self) -> None:
        session = self.polled()
        poll = self.poll(session)
        self.assertFalse(session.add_poll(FakePoll()))
        self.assertEqual(poll.body, b"1")
        self.assert_closed(session)

    def test_error_of_the_application_at_the_end_is_logged(self) -> None:
        session = self.piped()

        def on_close(session: EngineSession) -> None:
            raise RuntimeError

        self.owner.on_close = on_close  # type: ignore[method-assign]  # fails
        session.close()
        self.assertFalse(session.is_open)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class Namespace:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fails = False

    def on_join(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        self.calls.append(("joined", member.name, auth))
        self.fail()

    def on_event(self, member: NamespaceClient, event: str, arguments: list[Any]) -> list[Any]:
        self.calls.append((event, arguments))
        self.fail()
        return arguments

    def on_leave(self, member: NamespaceClient) -> None:
        self.calls.append(("left", member.name))
        self.fail()

    def fail(self) -> None:
        if self.fails:
            raise RuntimeError


class ServerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.owner = FakeOwner(self.clock)
        self.namespace = Namespace()

        def find(name: str) -> Namespace | None:
            return None if name == "/unknown" else self.namespace

        self.server = SocketServer(self.clock, find, max_attached=100)
        self.owner.application = self.server
        self.pipe = FakePipe()
        self.session = EngineSession(self.owner, self.pipe)
        self.session.start()
        self.addCleanup(self.session.close)
        self.pipe.sent.clear()

    def say(self, data: str | bytes) -> None:
        self.session.receive(EnginePacketType.MESSAGE, data)

    def test_client_without_a_namespace_is_disconnected(self) -> None:
        self.say("0/unknown,")
        self.assertEqual(self.pipe.sent, [b'44/unknown,{"message":"Invalid namespace"}'])
        for _ in range(2):
            self.session.receive(EnginePacketType.PONG, "")
            self.clock.advance(22.5)
        self.assertFalse(self.session.is_open)

    def test_client_that_joins_in_time_stays_connected(self) -> None:
        self.clock.advance(20)
        self.say("0/a,")
        for _ in range(10):
            self.clock.advance(20)
            self.session.receive(EnginePacketType.PONG, "")
        self.assertTrue(self.session.is_open)

    def test_namespaces_are_joined_and_left_separately(self) -> None:
        self.say('0/a,{"token":"x"}')
        self.say("0/b,")
        self.say("1/a,")
        self.say('2/b,5["event",1]')
        self.session.close()
        self.assertEqual(
            self.namespace.calls,
            [
                ("joined", "/a", {"token": "x"}),
                ("joined", "/b", {}),
                ("left", "/a"),
                ("event", [1]),
                ("left", "/b"),
            ],
        )
        self.assertEqual(self.pipe.sent[-1], b"43/b,5[1]")

    def test_error_of_the_application_does_not_close_the_session(self) -> None:
        self.namespace.fails = True
        self.say("0/a,")
        self.say('2/a,5["event"]')
        self.say("1/a,")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)
        self.assertTrue(self.session.is_open)
        # The failed event is not acknowledged.
        self.assertEqual(len(self.pipe.sent), 1)

    def test_namespaces_are_bounded(self) -> None:
        for number in range(1001):
            self.say(f"0/{number},")
        self.assertEqual(self.pipe.sent[-1], b'44/1000,{"message":"Invalid namespace"}')
        self.assertEqual(sum(packet.startswith(b"40") for packet in self.pipe.sent), 1000)

    def test_attachments_are_bounded(self) -> None:
        self.say("0/a,")
        self.say('52-/a,["event",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
        self.say(b"x" * 60)
        with self.assertRaises(PacketError):
            self.say(b"x" * 41)
        self.assertFalse(self.session.is_open)

    def test_ignored_packets_leave_the_session_open(self) -> None:
        self.say("0/a,")
        for data in ("0/a,", "1/b,", '2/b,["event"]', "3/b,1[]", b"stray", "7", "4{}", "2[]"):
            with self.assertRaises(IgnoredPacket):
                self.say(data)
        self.assertEqual(self.pipe.sent[1:], [b'44/a,{"message":"Unable to connect"}'])
        self.say('2/a,["event"]')
        self.assertEqual(self.namespace.calls, [("joined", "/a", {}), ("event", [])])

    def test_attachments_of_an_ignored_event_are_dropped(self) -> None:
        self.say("0/a,")
        self.say('51-/b,["event",{"_placeholder":true,"num":0}]')
        with self.assertRaises(IgnoredPacket):
            self.say(b"x")
        self.say('51-/a,["event",{"_placeholder":true,"num":0}]')
        self.say(b"y")
        self.assertEqual(self.namespace.calls[1:], [("event", [b"y"])])

    def test_attachments_without_an_event_are_not_counted(self) -> None:
        self.say("0/a,")
        for _ in range(3):
            with self.assertRaises(IgnoredPacket):
                self.say(b"x" * 60)
        self.say('51-/a,["event",{"_placeholder":true,"num":0}]')
        self.say(b"x" * 60)
        self.assertEqual(self.namespace.calls[1:], [("event", [b"x" * 60])])

    def test_attachments_are_counted_for_each_event(self) -> None:
        self.say("0/a,")
        for _ in range(3):
            self.say('51-/a,["event",{"_placeholder":true,"num":0}]')
            self.say(b"x" * 60)
        self.assertEqual(self.namespace.calls[1:], [("event", [b"x" * 60])] * 3)
