"""Protocols of scales and DAQ programs on transports in memory, with a simulated clock."""

import random
from array import array
from datetime import UTC
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gateway.bus.bus import Bus
from gateway.config.settings import DaqSettings
from gateway.ingest import daq as daq_module
from gateway.ingest.daq import DaqFactory
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.serial import SerialLine, SerialService
from gateway.ingest.takeovers import HOLD
from gateway.model.records import Batch, Fault, Presence, Reading, SensorBatch
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.lines import MAX_LINE
from gateway.wire.messages import DataUpdate, split_update
from gateway.wire.scale import parse_line
from tests.support.frames import frame


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str, **fields: object) -> None:
        self.lines.append(message.format(**fields))

    info = warn


class Ingest(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()
        self.clock = WallClock(UTC, self.reactor.seconds, self.reactor.seconds)
        self.counters = Counters()
        self.bus = Bus(self.clock, self.counters)
        self.log = Lines()
        self.warnings = LimitedLog(self.log, self.clock, self.counters)  # type: ignore[arg-type]  # a fake
        self.records: list[Any] = []
        for record_type in (Reading, Batch, Fault, Presence):
            self.bus.attach(record_type, "test", self.records.append)

    def connect(self, factory: Factory) -> tuple[Any, StringTransport]:
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def lose(self, protocol: Any) -> None:
        protocol.connectionLost(Failure(ConnectionDone()))


class ScaleTests(Ingest):
    def setUp(self) -> None:
        super().setUp()
        self.factory = ScaleFactory("dock", self.bus, self.clock, self.counters, self.warnings, 2)

    def weights(self) -> list[float]:
        return [float(record.weight or 0) for record in self.records if isinstance(record, Reading)]

    def test_scale_any_line_end_at_any_cut_gives_all_readings(self) -> None:
        stream = b"ST,+1 kg\rST,+2 kg\nST,+3 kg\r\n\r\n  \nST,+4 kg\r\nST,+5"
        for cut in range(len(stream)):
            self.records.clear()
            protocol, _ = self.connect(self.factory)
            protocol.dataReceived(stream[:cut])
            protocol.dataReceived(stream[cut:])
            self.lose(protocol)
            self.assertEqual(self.weights(), [1.0, 2.0, 3.0, 4.0], cut)
        self.assertEqual(self.counters.scale_rejected.labels("dock")._value.get(), 0)

    def test_scale_overlong_line_at_any_cut_is_skipped(self) -> None:
        stream = b"ST,+1 kg\n" + b"x" * (MAX_LINE + 1) + b"\rST,+2 kg\n" + b"y" * 3 * MAX_LINE + b"\r\nST,+3 kg\n"
        for cut in range(0, len(stream), 7):
            self.records.clear()
            protocol, _ = self.connect(self.factory)
            before = self.counters.scale_overlong.labels("dock")._value.get()
            protocol.dataReceived(stream[:cut])
            protocol.dataReceived(stream[cut:])
            self.lose(protocol)
            self.assertEqual(self.weights(), [1.0, 2.0, 3.0], cut)
            self.assertEqual(self.counters.scale_overlong.labels("dock")._value.get(), before + 2)

    def test_scale_line_of_max_length_is_read(self) -> None:
        protocol, _ = self.connect(self.factory)
        line = b"ST,+1 kg"
        protocol.dataReceived(line + b" " * (MAX_LINE - len(line)) + b"\n")
        self.assertEqual(self.weights(), [1.0])
        protocol.dataReceived(line + b" " * (MAX_LINE + 1 - len(line)) + b"\n")
        self.assertEqual(self.weights(), [1.0])

    def test_scale_line_without_end_is_not_kept(self) -> None:
        protocol, _ = self.connect(self.factory)
        for _ in range(1000):
            protocol.dataReceived(b"x" * 1000)
        self.assertLess(len(protocol._reader.rest), 2 * MAX_LINE)

    def test_scale_presence_follows_first_and_last_connection(self) -> None:
        first, _ = self.connect(self.factory)
        second, _ = self.connect(self.factory)
        self.lose(first)
        self.lose(second)
        self.assertEqual([record.connected for record in self.records], [True, False])
        self.assertEqual(self.counters.connections.labels("scale")._value.get(), 0)

    def test_close(self) -> None:
        _, transport = self.connect(self.factory)
        self.factory.close()
        self.assertTrue(transport.disconnecting)

    def test_scale_bad_lines_are_all_counted_and_few_logged(self) -> None:
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"bad line, of more than fifty bytes, which nobody wants to read whole\n" * 100)
        self.assertEqual(self.counters.scale_rejected.labels("dock")._value.get(), 100)
        lines = [line for line in self.log.lines if "bad line" in line]
        self.assertEqual(len(lines), 5)
        self.assertIn("b'bad line, of more than fifty bytes, which nobody w'...", lines[0])
        self.assertIn("192.168.1.1:54321", lines[0])

    def test_scale_stream_at_any_cut_gives_the_same_readings(self) -> None:
        chance = random.Random(1)
        good = [b"ST,+%d.50 kg" % number for number in range(20)] + [b" US , NT , -1 _KG ", b"\x02OL,+9E+19 kg\x03"]
        bad = [b"ST,+1 pc", b"x" * MAX_LINE, b"\xff\x85", b"GET /"]
        long = [b"y" * (MAX_LINE + 1), b"ST,+1" + b" " * MAX_LINE + b"kg", b"z" * 5000]
        blank = [b"", b" \t "]
        lines = chance.choices([*good, *bad, *long, *blank], k=300)
        stream = b"".join(line + chance.choice((b"\r\n", b"\n", b"\r", b"\n\r")) for line in lines) + b"ST,+7 kg"
        says = [parse_line(line) for line in lines if line in good]
        cuttings = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
        for longest in (2, 10, 100, 1500, 20_000):
            pieces = []
            at = 0
            while at < len(stream):
                pieces.append(stream[at : at + chance.randint(1, longest)])
                at += len(pieces[-1])
            cuttings.append(pieces)
        for pieces in cuttings:
            self.assertEqual(b"".join(pieces), stream)
            self.records.clear()
            rejected = self.counters.scale_rejected.labels("dock")._value.get()
            overlong = self.counters.scale_overlong.labels("dock")._value.get()
            protocol, _ = self.connect(self.factory)
            for piece in pieces:
                protocol.dataReceived(piece)
            self.lose(protocol)
            found = [record for record in self.records if isinstance(record, Reading)]
            self.assertEqual([(each.status, each.weight, each.kind, each.raw, each.unit) for each in found], says)
            self.assertEqual(
                self.counters.scale_rejected.labels("dock")._value.get() - rejected,
                sum(line in bad for line in lines),
            )
            self.assertEqual(
                self.counters.scale_overlong.labels("dock")._value.get() - overlong,
                sum(line in long for line in lines),
            )
        for status in ("ST", "US", "OL"):
            counted = self.counters.scale_readings.labels("dock", status).value
            self.assertEqual(counted, len(cuttings) * sum(line.status == status for line in says), status)

    def test_scale_lines_after_a_close_are_not_read(self) -> None:
        protocol, transport = self.connect(self.factory)
        self.bus.attach(Reading, "closes", lambda reading: self.factory.close() if reading.weight == 2 else None)
        protocol.dataReceived(b"ST,+1 kg\nST,+2 kg\nST,+3 kg\nST,+4")
        protocol.dataReceived(b" kg\nST,+5 kg\n")
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.weights(), [1.0, 2.0])

    def test_scale_reading_has_the_time_of_its_line_end(self) -> None:
        protocol, _ = self.connect(self.factory)
        for data in (b"ST,+1 kg\nST,+2", b" kg\nST,+3 kg\n", b"ST,+4 kg\n"):
            protocol.dataReceived(data)
            self.reactor.advance(1)
        times = [record.received_at.timestamp() for record in self.records if isinstance(record, Reading)]
        self.assertEqual(times, [0.0, 1.0, 1.0, 2.0])
        (events,) = [self.bus.missed(1, frozenset({("scale", "dock")}))]
        self.assertEqual([event.time.timestamp() for event in events], times)


class SerialTests(Ingest):
    def test_serial_service_failed_open_is_repeated(self) -> None:
        factory = ScaleFactory("bench", self.bus, self.clock, self.counters, self.warnings, 2)
        opened: list[Any] = []
        problems: list[Exception] = [OSError("no such device"), ValueError("no such parity")]

        def open_port(protocol: Any, line: SerialLine) -> None:
            if problems:
                raise problems.pop(0)
            protocol.makeConnection(StringTransport())
            opened.append(protocol)

        line = SerialLine("/dev/ttyUSB0", 2400, 7, "E", 1)
        service = SerialService(line, factory, self.reactor, open_port)
        service.startService()
        self.assertEqual(opened, [])
        self.reactor.pump([1.0] * 10)
        self.assertEqual(len(opened), 1)
        self.lose(opened[0])
        self.assertEqual([record.connected for record in self.records], [True, False])
        self.reactor.pump([1.0] * 10)
        self.assertEqual(len(opened), 2)
        service.stopService()
        self.assertTrue(opened[1].transport.disconnecting)
        self.lose(opened[1])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_serial_service_stopped_while_waiting_does_not_open(self) -> None:
        factory = ScaleFactory("bench", self.bus, self.clock, self.counters, self.warnings, 2)

        def open_port(protocol: Any, line: SerialLine) -> None:
            raise OSError("no such device")

        service = SerialService(SerialLine("x", 1, 8, "N", 1), factory, self.reactor, open_port)
        service.startService()
        service.stopService()
        self.assertEqual(self.reactor.getDelayedCalls(), [])


def update(*samples: float, sensor: str = "v") -> bytes:
    return frame("DataUpdate", {sensor: {"type": "VIB", "data": list(samples)}})


class DaqTests(Ingest):
    def factory(self) -> DaqFactory:
        settings = DaqSettings(max_frame_bytes=10**7, max_machines=3, max_sensors=5, max_machine_sensors=3)
        return DaqFactory(self.reactor, self.bus, self.clock, self.counters, self.warnings, settings, 10)

    def events(self) -> list[Any]:
        return [
            [list(sensor.samples) for sensor in record.sensors.values()]
            if isinstance(record, Batch)
            else record.connected
            if isinstance(record, Presence)
            else record.score
            for record in self.records
        ]

    def test_daq_connection_without_name_is_closed_after_timeout(self) -> None:
        factory = self.factory()
        _, silent = self.connect(factory)
        named, talks = self.connect(factory)
        named.dataReceived(frame("name", "M"))
        self.reactor.advance(factory.name_timeout - 1)
        self.assertFalse(silent.disconnecting)
        self.reactor.advance(1)
        self.assertTrue(silent.disconnecting)
        self.assertFalse(talks.disconnecting)

    def test_daq_connection_end_cancels_its_timer(self) -> None:
        factory = self.factory()
        protocol, _ = self.connect(factory)
        self.lose(protocol)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.counters.connections.labels("daq")._value.get(), 0)

    def test_daq_frames_after_a_refusal_are_not_read(self) -> None:
        protocol, transport = self.connect(self.factory())
        protocol.dataReceived(frame("name", "M") + update(1.0) + b"c" + update(2.0))
        protocol.dataReceived(update(3.0))
        self.reactor.advance(HOLD)
        self.assertTrue(transport.disconnecting)
        protocol.dataReceived(update(4.0))
        self.assertEqual(self.events(), [True, [[1.0]]])
        self.assertEqual(self.counters.daq_refused._value.get(), 1)
        (line,) = [line for line in self.log.lines if "closed" in line]
        self.assertIn("192.168.1.1:54321", line)

    def test_daq_takeover_replaces_connection(self) -> None:
        factory = self.factory()
        first, first_transport = self.connect(factory)
        first.dataReceived(frame("name", "M"))
        second, _ = self.connect(factory)
        second.dataReceived(frame("name", "M"))
        self.reactor.advance(HOLD)
        self.assertTrue(first_transport.disconnecting)
        self.lose(first)
        second.dataReceived(update(1.0))
        self.lose(second)
        self.assertEqual(self.events(), [True, [[1.0]], False])

    def test_daq_limits_leave_out_machines_and_sensors(self) -> None:
        factory = self.factory()
        protocols = [self.connect(factory) for _ in range(4)]
        for number, (protocol, _) in enumerate(protocols):
            protocol.dataReceived(frame("name", f"M{number}"))
        self.reactor.advance(HOLD)
        self.assertEqual([transport.disconnecting for _, transport in protocols], [False, False, False, True])
        # Three sensors of a machine, five of all machines.
        for protocol, _ in protocols[:2]:
            for name in "abcd":
                protocol.dataReceived(update(1.0, sensor=name))
        batches = [record for record in self.records if isinstance(record, Batch)]
        self.assertEqual([(b.machine, *b.sensors) for b in batches], [
            ("M0", "a"), ("M0", "b"), ("M0", "c"), ("M1", "a"), ("M1", "b"),
        ])  # fmt: skip
        self.assertEqual(self.counters.daq_dropped._value.get(), 3)

    def test_daq_pause_stops_reading(self) -> None:
        factory = self.factory()
        _, before = self.connect(factory)
        factory.pause(True)
        _, after = self.connect(factory)
        self.assertEqual((before.producerState, after.producerState), ("paused", "paused"))
        factory.pause(False)
        self.assertEqual((before.producerState, after.producerState), ("producing", "producing"))
        self.assertEqual(self.counters.daq_pauses._value.get(), 1)

    def test_daq_large_message_is_processed_in_turns_in_order(self) -> None:
        self.patch(daq_module, "MAX_TURN_SAMPLES", 10)
        factory = self.factory()
        protocol, transport = self.connect(factory)
        numbers = [float(number) for number in range(35)]
        protocol.dataReceived(frame("name", "M") + update(*numbers) + update(-1.0))
        self.assertEqual(self.events(), [True, [numbers[:10]]])
        self.assertEqual(transport.producerState, "paused")
        # Some transports deliver this although they are paused.
        protocol.dataReceived(update(-2.0))
        for turn in range(1, 4):
            self.reactor.advance(0)
            self.assertEqual(self.events()[1 + turn], [numbers[10 * turn : 10 * turn + 10]])
        self.assertEqual(self.events()[5:], [[[-1.0]], [[-2.0]]])
        self.assertEqual(transport.producerState, "producing")

    def test_daq_end_between_turns_processes_everything(self) -> None:
        self.patch(daq_module, "MAX_TURN_SAMPLES", 10)
        for number, end in enumerate((self.lose, lambda protocol: protocol.close())):
            self.records.clear()
            protocol, _ = self.connect(self.factory())
            numbers = [float(each) for each in range(95)]
            protocol.dataReceived(frame("name", f"M{number}") + update(*numbers) + update(-1.0))
            protocol.dataReceived(update(-2.0))
            end(protocol)
            batches = [record.sensors["v"].samples for record in self.records if isinstance(record, Batch)]
            self.assertEqual([sample for batch in batches for sample in batch], [*numbers, -1.0, -2.0])
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_daq_pause_between_turns_stops_reading(self) -> None:
        self.patch(daq_module, "MAX_TURN_SAMPLES", 10)
        factory = self.factory()
        protocol, transport = self.connect(factory)
        protocol.dataReceived(frame("name", "M") + update(*range(15)))
        factory.pause(True)
        self.reactor.advance(0)
        self.assertEqual(transport.producerState, "paused")
        factory.pause(False)
        self.assertEqual(transport.producerState, "producing")

    def test_split_update_keeps_all_samples_in_order(self) -> None:

        def sensor(first: int, count: int) -> SensorBatch:
            return SensorBatch("VIB", array("d", range(first, first + count)))

        for counts in ((), (0,), (10,), (11,), (3, 4), (9, 1, 1), (25, 0, 7), (10, 10), (1, 100)):
            whole = {f"s{index}": sensor(100 * index, count) for index, count in enumerate(counts)}
            pieces = list(
                split_update(DataUpdate(whole, sum(map(len, (sensor.samples for sensor in whole.values())))), 10)
            )
            joined: dict[str, array[float]] = {}
            for piece in pieces:
                self.assertLessEqual(sum(len(its.samples) for its in piece.sensors.values()), 10)
                for name, its in piece.sensors.items():
                    joined.setdefault(name, array("d")).extend(its.samples)
            self.assertEqual(joined, {name: its.samples for name, its in whole.items()}, counts)
            self.assertEqual(list(joined), list(whole))
