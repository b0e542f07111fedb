"""Connections of DAQ programs: holding, takeovers, limits, and left-out sensors."""

import pickle
import select
from typing import Any, ClassVar

from twisted.internet.testing import StringTransport

from gateway.config.settings import DaqSettings
from gateway.ingest import daq as daq_module
from gateway.ingest.daq import MAX_TURN_MESSAGES, DaqFactory
from gateway.ingest.takeovers import HOLD, MAX_HOLD, REPEATED
from gateway.model.records import Batch, Presence
from gateway.wire.other_protocols import ServedPorts
from tests.support.frames import frame
from tests.unit.test_ingest import Ingest, update


class Connections(Ingest):
    def factory(self, max_connections: int = 10, **limits: int) -> DaqFactory:
        settings = DaqSettings.model_validate(
            {
                "max_frame_bytes": 10**7,
                "max_machines": 3,
                "max_sensors": 50,
                "max_machine_sensors": 30,
                "max_new_sensors_per_minute": 1000,
                **limits,
            }
        )
        return DaqFactory(self.reactor, self.bus, self.clock, self.counters, self.warnings, settings, max_connections)

    def named(self, factory: DaqFactory, machine: str) -> tuple[Any, StringTransport]:
        protocol, transport = self.connect(factory)
        protocol.dataReceived(frame("name", machine))
        return protocol, transport

    def presence(self) -> list[tuple[str, bool]]:
        return [(record.name, record.connected) for record in self.records if isinstance(record, Presence)]

    def batches(self) -> list[list[str]]:
        return [list(record.sensors) for record in self.records if isinstance(record, Batch)]

    def value(self, counter: Any) -> float:
        return float(counter._value.get())


class UnreadTests(Connections):
    def test_end_with_unread_bytes_is_logged(self) -> None:
        factory = self.factory()
        waiting, transport = self.connect(factory)
        waiting.dataReceived(b'["name", "A"]\n')
        self.reactor.advance(factory.name_timeout)
        self.assertTrue(transport.disconnecting)
        self.lose(waiting)
        nameless, _ = self.connect(factory)
        nameless.dataReceived(b'["name"')
        self.lose(nameless)
        named, _ = self.named(factory, "M")
        named.dataReceived(update(1.0)[:-10])
        self.lose(named)
        size = len(update(1.0)) - 10
        timed_out, ended, connected, disconnected = self.log.lines
        self.assertIn("60 s; 14 bytes were left unread: JSON without its separator", timed_out)
        self.assertIn("before it sent a machine's name; 7 bytes of an unfinished frame were left unread", ended)
        self.assertIn("machine M: connected from", connected)
        self.assertEqual(disconnected, f"machine M: disconnected; {size} bytes of an unfinished frame were left unread")

    def test_end_without_unread_bytes_or_after_refusal_logs_none(self) -> None:
        factory = self.factory()
        silent, _ = self.connect(factory)
        self.lose(silent)
        named, _ = self.named(factory, "M")
        self.lose(named)
        refused, _ = self.connect(factory)
        refused.dataReceived(frame("name", "M") + b"GET / HTTP/1.1\r\n\r\n")
        self.lose(refused)
        self.assertFalse([line for line in self.log.lines if "unread" in line])


class HeldTests(Connections):
    def test_refused_connection_is_held_unread_for_a_second(self) -> None:
        factory = self.factory()
        protocol, transport = self.named(factory, "Press#1")
        self.assertEqual(transport.producerState, "paused")
        self.assertFalse(transport.disconnecting)
        self.reactor.advance(HOLD - 0.01)
        self.assertFalse(transport.disconnecting)
        # Data read by mistake is ignored, and the end of a pause does not resume reading.
        factory.pause(True)
        factory.pause(False)
        self.assertEqual(transport.producerState, "paused")
        self.reactor.advance(0.01)
        self.assertTrue(transport.disconnecting)
        self.lose(protocol)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.value(self.counters.daq_refused), 1)
        (line,) = self.log.lines
        self.assertIn("machine name 'Press#1': '#' is not allowed", line)
        self.assertNotIn("None", line)

    def test_takeover_holds_the_old_connection_and_reads_the_new_one(self) -> None:
        factory = self.factory()
        first, first_transport = self.named(factory, "M")
        first.dataReceived(update(1.0))
        second, second_transport = self.named(factory, "M")
        second.dataReceived(update(2.0))
        first.dataReceived(update(3.0))
        samples = [record.sensors["v"].samples[0] for record in self.records if isinstance(record, Batch)]
        self.assertEqual(samples, [1.0, 2.0])
        self.assertEqual((first_transport.producerState, first_transport.disconnecting), ("paused", False))
        self.assertEqual(second_transport.producerState, "producing")
        self.reactor.advance(HOLD)
        self.assertTrue(first_transport.disconnecting)
        self.lose(first)
        self.assertEqual(self.presence(), [("M", True)])
        self.assertEqual(self.value(self.counters.daq_takeovers), 1)

    def test_takeover_repeated_holds_longer(self) -> None:
        factory = self.factory()
        current = self.named(factory, "M")
        self.reactor.advance(1)
        waits = []
        for _ in range(8):
            before = current
            current = self.named(factory, "M")
            began = self.reactor.seconds()
            while not before[1].disconnecting:
                self.reactor.advance(0.25)
            waits.append(round(self.reactor.seconds() - began, 1))
            self.lose(before[0])
        self.assertEqual(waits, [1.0, 2.0, 4.0, 8.0, MAX_HOLD, MAX_HOLD, MAX_HOLD, MAX_HOLD])
        self.assertEqual(self.value(self.counters.daq_takeovers), 8)
        warned = [line for line in self.log.lines if "in a row" in line]
        self.assertTrue(warned)
        self.assertEqual(warned[0].count("192.168.1.1:54321"), 2)
        # Under five connections a second, and few lines.
        self.assertLess(8 / sum(waits), 5)
        self.assertLess(len(self.log.lines), 20)

    def test_takeover_after_a_while_holds_shortly(self) -> None:
        factory = self.factory()
        for wait in (HOLD, 2 * HOLD, HOLD):
            first, transport = self.named(factory, "M")
            second, _ = self.named(factory, "M")
            self.reactor.advance(wait - 0.01)
            self.assertFalse(transport.disconnecting, wait)
            self.reactor.advance(0.01)
            self.assertTrue(transport.disconnecting, wait)
            for protocol in (first, second):
                self.lose(protocol)
            if wait == 2 * HOLD:
                self.reactor.advance(REPEATED)

    def test_takeover_counts_are_separate_for_each_machine(self) -> None:
        factory = self.factory()
        for machine in ("A", "B"):
            _, transport = self.named(factory, machine)
            self.named(factory, machine)
            self.reactor.advance(HOLD)
            self.assertTrue(transport.disconnecting)

    def test_held_connections_count_and_close_with_the_daemon(self) -> None:
        factory = self.factory(max_connections=3)
        held = [self.named(factory, "M")]
        held.append(self.named(factory, "M"))
        held.append(self.named(factory, "M"))
        self.assertIsNone(factory.buildProtocol(None))
        factory.close()
        for protocol, transport in held:
            self.assertTrue(transport.disconnecting)
            self.lose(protocol)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.counters.connections.labels("daq")._value.get(), 0)

    def test_held_connection_lost_is_forgotten(self) -> None:
        factory = self.factory(max_connections=1)
        protocol, _ = self.named(factory, "Press#1")
        self.lose(protocol)
        self.assertIsNotNone(factory.buildProtocol(None))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_held_connection_closed_by_peer_is_noticed(self) -> None:
        class Polled:
            def register(self, fileno: int, events: int) -> None:
                files.append(fileno)

            def poll(self, timeout: int) -> list[tuple[int, int]]:
                return [(fileno, 1) for fileno in files if fileno in gone]

        files: list[int] = []
        gone: set[int] = set()
        self.patch(select, "poll", Polled)
        factory = self.factory()
        transports = []
        for number in (5, 6):
            _, transport = self.named(factory, "Press#1")
            transport.fileno = lambda number=number: number  # type: ignore[attr-defined]  # a socket's
            transports.append(transport)
        self.reactor.advance(0.1)
        self.assertEqual([transport.disconnecting for transport in transports], [False, False])
        gone.add(6)
        self.reactor.advance(0.1)
        self.assertEqual([transport.disconnecting for transport in transports], [False, True])

    def test_connection_limit_evicts_unnamed_connections(self) -> None:
        factory = self.factory(max_connections=3)
        _, talks = self.named(factory, "M")
        first, silent = self.connect(factory)
        self.reactor.advance(1)
        _, younger = self.connect(factory)
        self.assertIsNotNone(factory.buildProtocol(None))
        self.assertTrue(silent.disconnected or silent.disconnecting)
        self.assertFalse(younger.disconnecting or talks.disconnecting)
        self.lose(first)
        self.assertEqual(self.value(self.counters.daq_refused), 1)

    def test_connection_limit_evicted_refused_connection_is_counted_once(self) -> None:
        factory = self.factory(max_connections=1)
        wrong, silent = self.connect(factory)
        wrong.dataReceived(b"nonsense\0")
        self.assertEqual(self.value(self.counters.daq_refused), 1)
        self.assertIsNotNone(factory.buildProtocol(None))
        self.assertTrue(silent.disconnected or silent.disconnecting)
        self.assertEqual(self.value(self.counters.daq_refused), 1)

    def test_connection_limit_keeps_named_connections(self) -> None:
        factory = self.factory(max_connections=2)
        for machine in ("A", "B"):
            self.named(factory, machine)
        self.assertIsNone(factory.buildProtocol(None))
        self.assertEqual(self.counters.connections_refused.labels("daq")._value.get(), 1)

    def test_foreign_protocol_is_told_its_port(self) -> None:
        factory = self.factory()
        factory.find_ports = lambda: ServedPorts("; HTTP is served on port 8080", ": its port is 4001")
        for stream, words in (
            (b"GET / HTTP/1.1\r\n\r\n", "HTTP request; HTTP is served on port 8080"),
            (b"ST,GS,+1.0kg\r\n", "line of a scale: its port is 4001"),
        ):
            protocol, _ = self.connect(factory)
            protocol.dataReceived(stream)
            self.assertIn(words, self.log.lines[-1])


class PlacesTests(Connections):
    def test_machine_without_data_is_forgotten_at_its_end(self) -> None:
        factory = self.factory()
        for number in range(50):
            protocol, _ = self.named(factory, f"junk {number}")
            self.lose(protocol)
        protocol, _ = self.named(factory, "M")
        protocol.dataReceived(update(1.0))
        self.assertEqual(self.batches(), [["v"]])
        self.assertEqual(factory.problems(), [])

    def test_sensor_without_samples_does_not_count(self) -> None:
        factory = self.factory(max_machine_sensors=2)
        protocol, _ = self.named(factory, "M")
        protocol.dataReceived(frame("DataUpdate", {f"junk {n}": {"type": "VIB", "data": []} for n in range(20)}))
        for sensor in "ab":
            protocol.dataReceived(update(1.0, sensor=sensor))
        self.assertEqual(self.batches(), [[], ["a"], ["b"]])
        # A known sensor may be sent without samples.
        protocol.dataReceived(update(sensor="a"))
        self.assertEqual(self.batches()[-1], ["a"])
        self.lose(protocol)
        self.named(factory, "N")
        self.assertEqual(factory.problems(), [])

    def test_machine_with_stored_data_is_always_admitted(self) -> None:
        factory = self.factory(max_machines=2, max_sensors=2, max_machine_sensors=1, max_new_sensors_per_minute=1)
        for machine in "ABCD":
            factory.machines.remember(machine, ["v", "w"])
        connected = [self.named(factory, machine) for machine in "ABCD"]
        for protocol, transport in connected:
            self.assertEqual(transport.producerState, "producing")
            protocol.dataReceived(frame("DataUpdate", {n: {"type": "VIB", "data": [1.0]} for n in "vw"}))
        self.assertEqual(self.batches(), [["v", "w"]] * 4)
        _, transport = self.named(factory, "E")
        self.assertEqual(transport.producerState, "paused")
        self.assertEqual(factory.problems(), ["daq.max_machines (2) is reached: machine 'E' was refused"])
        self.assertIn("machine 'E' is refused: daq.max_machines (2) is reached", self.log.lines[-1])
        self.reactor.advance(301)
        self.assertEqual(factory.problems(), [])

    def test_machine_with_data_stays_registered(self) -> None:
        factory = self.factory(max_machines=1)
        protocol, _ = self.named(factory, "M")
        protocol.dataReceived(update(1.0))
        self.lose(protocol)
        _, transport = self.named(factory, "N")
        self.assertEqual(transport.producerState, "paused")

    def test_machine_with_anomalies_only_stays_registered(self) -> None:
        factory = self.factory(max_machines=1)
        for score, kept in ((0.5, False), (1.5, True)):
            protocol, _ = self.named(factory, f"M{score}")
            protocol.dataReceived(frame("FaultDetect", {"score": score, "threshold": 1.0}))
            self.lose(protocol)
            _, transport = self.named(factory, "N")
            self.assertEqual(transport.producerState == "paused", kept)
            self.lose(_)

    def test_machine_with_decomposed_stored_name_is_the_same(self) -> None:
        factory = self.factory(max_machines=1)
        factory.machines.remember("\u110c\u1175\u11ab", ["\u110c\u1175\u11ab"])
        protocol, _ = self.named(factory, "진")
        protocol.dataReceived(update(1.0, sensor="\u110c\u1175\u11ab"))
        self.assertEqual(self.batches(), [["진"]])

    def test_new_sensors_beyond_limit_are_admitted_in_the_next_minute(self) -> None:
        factory = self.factory(max_new_sensors_per_minute=3)
        protocol, _ = self.named(factory, "M")
        message = frame("DataUpdate", {n: {"type": "VIB", "data": [1.0]} for n in "abcde"})
        protocol.dataReceived(message)
        self.reactor.advance(59)
        protocol.dataReceived(message)
        self.assertEqual(self.batches(), [["a", "b", "c"]] * 2)
        self.assertEqual(self.value(self.counters.daq_left_out), 4)
        (problem,) = factory.problems()
        self.assertIn("daq.max_new_sensors_per_minute (3)", problem)
        self.assertIn("of sensor 'e' are left out: daq.max_new_sensors_per_minute (3) is reached", problem)
        self.reactor.advance(1)
        protocol.dataReceived(message)
        self.assertEqual(self.batches()[-1], ["a", "b", "c", "d", "e"])
        self.assertEqual(factory.problems(), [])
        self.assertEqual(self.counters.daq_samples.value, 3 + 3 + 5)

    def test_sensors_beyond_limits_are_left_out_and_known_ones_kept(self) -> None:
        factory = self.factory(max_sensors=3, max_machine_sensors=2)
        for machine, taken in (("M", ["a", "b"]), ("N", ["a"])):
            protocol, _ = self.named(factory, machine)
            for _ in range(2):
                protocol.dataReceived(frame("DataUpdate", {n: {"type": "VIB", "data": [1.0]} for n in "abc"}))
                self.assertEqual(self.batches()[-1], taken)
        self.assertIn("daq.max_machine_sensors (2)", factory.problems()[0])
        self.assertIn("daq.max_sensors (3)", factory.problems()[1])


class LeftOutTests(Connections):
    bad: ClassVar[Any] = {"vib1": {"type": "VIB", "data": [1.0]}, "온도 #2": {"type": "TEMP", "data": [20.0]}}

    def test_left_out_sensor_is_counted_logged_and_reported(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        for _ in range(100):
            protocol.dataReceived(frame("DataUpdate", self.bad))
        self.assertEqual(self.batches(), [["vib1"]] * 100)
        self.assertEqual(self.value(self.counters.daq_left_out), 100)
        self.assertEqual(self.value(self.counters.daq_dropped), 0)
        lines = [line for line in self.log.lines if "left out" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn("machine M", lines[0])
        self.assertIn("sensor '온도 #2' is left out: its name is not allowed: '#' is not allowed", lines[0])
        (problem,) = factory.problems()
        self.assertIn("machine M: samples of sensor '온도 #2' are left out: its name is not allowed", problem)
        self.reactor.advance(299)
        self.assertEqual(len(factory.problems()), 1)
        self.reactor.advance(2)
        self.assertEqual(factory.problems(), [])

    def test_left_out_sensors_are_named_with_their_own_reasons(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        bad = {"a#": {"type": "V", "data": [1.0]}, "b": {"type": "V", "data": [None]}, "c": {"data": [1.0]}}
        reasons = {"'a#'": "'#' is not allowed", "'b'": "sample 0 is None", "'c'": "its type is missing"}
        for _ in range(10):
            protocol.dataReceived(frame("DataUpdate", {**self.bad, **bad}))
        (problem,) = factory.problems()
        for sensor, reason in reasons.items():
            (line,) = [line for line in self.log.lines if f"sensor {sensor} is left out" in line]
            self.assertIn(reason, line)
            self.assertIn(reason, problem.partition(f"sensor {sensor} are left out: ")[2])
        self.reactor.advance(60)
        protocol.dataReceived(frame("DataUpdate", bad))
        self.assertEqual(len([line for line in self.log.lines if "sensor 'c' is left out" in line]), 2)

    def test_left_out_sensors_beyond_line_limit_are_named_later(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        bad = frame("DataUpdate", {f"s{n}": {"type": "V", "data": [None]} for n in range(30)})
        for minute in range(2):
            self.reactor.advance(60 * minute)
            for _ in range(5):
                protocol.dataReceived(bad)
        self.assertEqual([n for n in range(30) if f"sensor 's{n}' is left out" not in "".join(self.log.lines)], [])
        # Twenty lines a minute, and the number of the others.
        self.assertLess(len([line for line in self.log.lines if "DataUpdate" in line or "is left out" in line]), 45)

    def test_left_out_thousands_of_names_need_few_lines_and_little_memory(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        for number in range(20):
            names = [f"#{number}.{n}" for n in range(500)]
            protocol.dataReceived(frame("DataUpdate", {name: {"type": "V", "data": [1.0]} for name in names}))
            self.reactor.advance(30)
        self.assertLess(len(self.log.lines), 20 * 12)
        (machine,) = factory.messages._left_out._machines.values()
        self.assertLessEqual(len(machine.sensors), 20)
        self.assertLessEqual(len(machine.named), 200)

    def test_left_out_sensor_that_becomes_valid_is_forgotten(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        name = "s" * 60
        protocol.dataReceived(frame("DataUpdate", {name: {"type": "VIB", "data": [1.0, None]}, "w": {"type": 5}}))
        self.assertIn("sample 1 is None", factory.problems()[0])
        protocol.dataReceived(update(1.0, sensor=name))
        self.assertEqual(len(factory.problems()), 1)
        self.assertNotIn(name[:50], factory.problems()[0])
        protocol.dataReceived(update(1.0, sensor="w"))
        self.assertEqual(factory.problems(), [])

    def test_message_without_valid_sensor_is_dropped_and_counted(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        protocol.dataReceived(frame("DataUpdate", {"s": {"type": "VIB", "data": [None]}}))
        self.assertEqual(self.batches(), [])
        self.assertEqual(self.value(self.counters.daq_dropped), 1)
        self.assertEqual(self.value(self.counters.daq_left_out), 1)
        self.assertEqual(len(factory.problems()), 1)

    def test_left_out_problems_are_bounded(self) -> None:
        factory = self.factory(max_connections=100, max_machines=100)
        for number in range(30):
            protocol, _ = self.named(factory, f"M{number}")
            for start in range(0, 200, 100):
                sensors = {f"#{start + n}" * 15: {"type": "VIB", "data": [1.0]} for n in range(100)}
                protocol.dataReceived(frame("DataUpdate", sensors))
        problems = factory.problems()
        self.assertEqual(len(problems), 11)
        self.assertIn("20 more machines", problems[-1])
        self.assertIn("; and of 110 more sensors", problems[0])
        self.assertLess(max(map(len, problems)), 2000)
        self.assertEqual(self.value(self.counters.daq_left_out), 30 * 200)

    def test_left_out_sensor_of_a_large_message_is_logged_once(self) -> None:
        self.patch(daq_module, "MAX_TURN_SAMPLES", 10)
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        protocol.dataReceived(
            frame("DataUpdate", {"v": {"type": "VIB", "data": [1.0] * 35}, "w": {"type": "VIB", "data": [None]}})
        )
        self.reactor.pump([0] * 5)
        self.assertEqual(len(self.batches()), 4)
        self.assertEqual(self.value(self.counters.daq_left_out), 1)


class TurnTests(Connections):
    def test_many_messages_of_one_read_are_processed_in_turns_in_order(self) -> None:
        factory = self.factory()
        protocol, transport = self.named(factory, "M")
        count = 2 * MAX_TURN_MESSAGES + 10
        protocol.dataReceived(b"".join(frame("FaultDetect", {"score": n, "threshold": 0}) for n in range(count)))
        scores = lambda: [record.score for record in self.records if not isinstance(record, Presence)]  # noqa: E731
        self.assertEqual(scores(), list(range(MAX_TURN_MESSAGES)))
        self.assertEqual(transport.producerState, "paused")
        self.reactor.advance(0)
        self.assertEqual(scores(), list(range(count)))
        self.assertEqual(transport.producerState, "producing")

    def test_end_between_turns_processes_all_messages(self) -> None:
        protocol, _ = self.named(self.factory(), "M")
        count = 2 * MAX_TURN_MESSAGES + 10
        protocol.dataReceived(b"".join(frame("FaultDetect", {"score": n, "threshold": 0}) for n in range(count)))
        self.lose(protocol)
        self.assertEqual(len([record for record in self.records if not isinstance(record, Presence)]), count)

    def test_slow_frames_reduce_the_read_size(self) -> None:
        factory = self.factory()
        protocol, _ = self.named(factory, "M")
        sizes = []
        for cost in (0.001, 0.001, 0.001, 0.2, 0.001, 0.001):
            factory.cpu_seconds = iter((1.0, 1.0 + cost)).__next__
            protocol.dataReceived(b" " * protocol._read.size)
            sizes.append(protocol._read.size)
        self.assertEqual(sizes, [16384, 65536, 65536, 4096, 4096, 4096])


def test_frame_helper_sends_a_pickle() -> None:
    assert pickle.loads(frame("name", "M")[:-2]) == ("name", "M")
