"""Subscribers by WebSocket on a transport in memory, with a fake clock."""

import json
from array import array
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gateway.bus.bus import Bus
from gateway.bus.event import Event
from gateway.model.records import Batch, Fault, Presence, Reading, SensorBatch, Update
from gateway.web.clients.outbox import Outbox
from gateway.web.push.subscription import Subscription, SubscriptionContext
from gateway.web.push.ws_endpoint import EventsWebSocketFactory, EventsWebSocketProtocol
from tests.support.access import open_clients
from tests.support.logs import silent_log
from tests.support.runtime import make_runtime

#: Maximum bytes that wait for a client.
BOUND = 10_000


class EventsWebSocketTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()
        runtime = make_runtime(self.reactor)
        self.clock, self.counters, self.bus, self.live = runtime.clock, runtime.counters, runtime.bus, runtime.live
        warnings = silent_log(self.clock, self.counters)
        self.context = SubscriptionContext(self.reactor, self.bus, self.live, self.clock, self.counters, BOUND)
        self.factory = EventsWebSocketFactory(self.context, open_clients(self.reactor, self.counters, 10), warnings)
        self.closed: list[int] = []
        self.protocol = self.open()

    def open(self) -> EventsWebSocketProtocol:
        """Return a protocol after its handshake."""
        protocol = EventsWebSocketProtocol()
        protocol.factory = self.factory
        protocol.transport = StringTransport()
        # As after HTTP.
        protocol.transport.registerProducer(object(), True)
        protocol.peer = "tcp4:127.0.0.1:1"
        protocol.state = WebSocketProtocol.STATE_OPEN
        protocol.websocket_extensions_in_use = []
        self.patch(protocol, "sendCloseFrame", lambda code, reason: self.closed.append(code))
        protocol.onOpen()
        return protocol

    @property
    def messages(self) -> list[Any]:
        """Messages sent to the client."""
        return [json.loads(payload) for opcode, payload in self.frames() if opcode == 1]

    def frames(self) -> Iterator[tuple[int, bytes]]:
        data = self.protocol.transport.value()
        while data:
            extended = {126: 2, 127: 8}.get(data[1], 0)
            size = int.from_bytes(data[2 : 2 + extended]) if extended else data[1]
            yield data[0] & 0x0F, data[2 + extended : 2 + extended + size]
            data = data[2 + extended + size :]

    def say(self, **message: Any) -> None:
        self.protocol.onMessage(json.dumps(message).encode(), False)

    def update(self, count: int = 1, machine: str = "M") -> None:
        for number in range(count):
            self.bus.publish(Update(machine, "v", float(number), self.clock.now()))

    def pass_turns(self) -> None:
        for _ in range(20):
            self.reactor.advance(0)

    def seqs(self) -> list[int]:
        return [message["seq"] for message in self.messages if message.get("event") not in (None, "snapshot")]

    @property
    def subscription(self) -> Subscription:
        assert self.protocol.subscription is not None
        return self.protocol.subscription

    @property
    def outbox(self) -> Outbox[Any]:
        return self.subscription.outbox

    def test_waiting_events_arrive_in_order_when_the_client_reads(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        self.protocol.pauseProducing()
        self.update(3)
        self.assertEqual(self.seqs(), [])
        self.protocol.resumeProducing()
        self.assertEqual(self.seqs(), [1, 2, 3])
        self.update()
        self.assertEqual(self.seqs(), [1, 2, 3, 4])

    def test_burst_that_is_read_in_time_does_not_close(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        for _ in range(5):
            self.protocol.pauseProducing()
            self.update(60)
            self.assertGreater(self.outbox.held, BOUND)
            self.reactor.advance(1.9)
            self.protocol.resumeProducing()
            self.reactor.advance(5)
        self.assertEqual(self.seqs(), list(range(1, 301)))
        self.assertEqual(self.closed, [])

    def test_client_without_rights_any_more_has_little_time_to_answer_the_close(self) -> None:
        self.protocol.close_unauthorized()
        self.assertEqual(self.closed, [4401])
        # Its connection must end within five seconds, whatever it does.
        self.assertLess(self.protocol.closeHandshakeTimeout, 4)

    def test_client_above_the_bound_for_too_long_is_closed(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        self.protocol.pauseProducing()
        self.update(60)
        self.reactor.advance(2)
        self.assertEqual(self.closed, [4008])
        self.assertEqual(self.counters.subscribers_slow._value.get(), 1)
        # It is removed at once, and receives nothing more.
        self.update(10)
        self.protocol.resumeProducing()
        self.assertEqual(self.seqs(), [])
        self.assertEqual(self.bus.patterns_of(self.subscription), frozenset())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_client_far_above_the_bound_is_closed_at_once(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        self.protocol.pauseProducing()
        self.update(1000)
        self.assertEqual(self.closed, [4008])

    def test_late_snapshot_drops_only_events_that_it_includes(self) -> None:
        self.protocol.pauseProducing()
        self.say(type="subscribe", topics=["scale/default", "machine/M"])
        now = self.clock.now()
        self.bus.publish(Reading("default", "OL", None, "gross", "OL", now))
        self.bus.publish(Reading("default", "ST", Decimal(1), "gross", "ST", now))
        self.bus.publish(Fault("M", 2.0, 1.0, now))
        self.protocol.resumeProducing()
        self.assertEqual([message["event"] for message in self.messages[1:3]], ["snapshot", "snapshot"])
        # The stable weight is in the snapshot; the others are events only.
        self.assertEqual([message["seq"] for message in self.messages[3:]], [1, 3])

    def test_waiting_replays_and_answers_count_for_the_bound(self) -> None:
        self.update(100)
        self.protocol.pauseProducing()
        for _ in range(200):
            self.say(type="subscribe", topics=["machine/M"], since=0)
        self.assertEqual(self.closed, [4008])

    def test_replay_is_fetched_as_the_client_reads(self) -> None:
        self.update(1000)
        self.say(type="subscribe", topics=["machine/M"], since=10)
        # A hundred in each turn of the reactor, so that other clients are served too.
        self.assertEqual(self.seqs(), list(range(11, 111)))
        self.pass_turns()
        self.assertEqual(self.seqs(), list(range(11, 1001)))
        self.protocol.transport.clear()
        # A client that reads ten at a time, while further events arrive.
        write = self.protocol.transport.write

        def write_ten(frame: bytes) -> None:
            write(frame)
            if len(self.messages) % 10 == 0:
                self.protocol.pauseProducing()

        self.protocol.transport.write = write_ten
        self.say(type="subscribe", topics=["machine/M"], since=900)
        self.update(5)
        while self.outbox:
            self.protocol.resumeProducing()
            self.reactor.advance(0)
        self.assertEqual(self.seqs(), list(range(901, 1006)))
        self.assertEqual(self.outbox.held, 0)
        self.assertEqual(self.closed, [])

    def test_topics_of_a_waiting_replay_count_for_the_bound(self) -> None:
        self.update()
        self.protocol.pauseProducing()
        self.say(type="subscribe", topics=[f"machine/{number}" for number in range(990)], since=0)
        self.assertEqual(self.closed, [4008])

    def test_uncompressed_event_is_one_frame_for_all_windows(self) -> None:
        self.say(type="subscribe", topics=["machine/M", "machine/M/samples"])
        other = self.open()
        other.window = 12
        other.onMessage(b'{"type": "subscribe", "topics": ["machine/M", "machine/M/samples"]}', False)
        events: list[Event] = []

        class Spy:
            def deliver(self, event: Event) -> None:
                events.append(event)

        self.bus.subscribe(Spy(), frozenset({("machine", "*"), ("machine", "*", "samples")}))
        self.update()
        samples = array("d", [0.5] * 100)
        self.bus.publish(Batch("M", {"v": SensorBatch("VIB", samples)}, self.clock.now()))
        self.assertEqual([sorted(event.frames) for event in events], [[0], [0, 12]])

    def test_replay_that_left_the_backlog_closes_the_client(self) -> None:
        self.bus = Bus(self.clock, self.counters, backlog_events=1000)
        self.context.bus = self.bus
        self.protocol = self.open()
        self.update(1000)
        self.protocol.pauseProducing()
        self.say(type="subscribe", topics=["machine/M"], since=0)
        self.update(1, machine="N")
        self.protocol.resumeProducing()
        self.assertEqual(self.seqs(), [])
        self.assertEqual(self.closed, [4008])

    def test_late_snapshot_includes_waiting_events_once(self) -> None:
        self.bus.publish(Presence("machine", "M", connected=True))
        self.protocol.pauseProducing()
        self.say(type="subscribe", topics=["machine/*"])
        self.update(2)
        self.update(1, machine="N")
        self.protocol.resumeProducing()
        subscribed, snapshot, other = self.messages
        self.assertEqual(subscribed["seq"], 1)
        # A client that reconnects with this number misses nothing.
        self.assertEqual(snapshot["seq"], 1)
        self.assertEqual([update["data"] for update in snapshot["data"]["sensors"]["v"]], [0.0, 1.0])
        self.assertEqual((other["topic"], other["seq"]), ("machine/N", 4))
        self.update()
        self.assertEqual(self.messages[-1]["seq"], 5)

    def test_closing_client_receives_nothing(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        self.protocol.state = WebSocketProtocol.STATE_CLOSING
        self.update()
        self.assertEqual(self.seqs(), [])

    def test_lost_connection_is_removed_everywhere(self) -> None:
        self.say(type="subscribe", topics=["machine/M"])
        self.protocol.pauseProducing()
        self.update(60)
        self.protocol.onClose(False, None, None)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.bus.patterns_of(self.subscription), frozenset())
        self.assertEqual(self.counters.connections.labels("websocket")._value.get(), 0)

    def test_failed_handshake_is_not_counted_as_a_client(self) -> None:
        EventsWebSocketProtocol.onClose(self.other(), False, None, None)
        self.assertEqual(self.counters.connections.labels("websocket")._value.get(), 1)

    def other(self) -> EventsWebSocketProtocol:
        protocol = EventsWebSocketProtocol()
        protocol.factory = self.factory
        return protocol
