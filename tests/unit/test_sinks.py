"""Sinks of the bus, with a simulated clock: writer, raw log, statistics, live state."""

import errno
import os
from array import array
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from gateway.bus.bus import Bus
from gateway.live.state import LiveState
from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Batch, Fault, Presence, Reading, SensorBatch, Update
from gateway.raw import log as raw_log
from gateway.raw.damage import DamageLog
from gateway.raw.log import RawLog, add_lines
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.stats.rollup import Rollup
from gateway.stats.statistics import Statistics
from gateway.store.event_numbers import SEQ_BLOCK, EventNumberReserve
from gateway.store.writer import HIGH_WATER, LOW_WATER, Writer
from gateway.timeseries.bucket import MIN_NUMPY_SAMPLES, Bucket
from tests.support.logs import collect_lines
from tests.support.runtime import make_runtime
from tests.support.trial import new_folder

#: 2025-12-18 10:11:00 UTC.
START = datetime(2025, 12, 18, 10, 11, tzinfo=UTC).timestamp()


class Parts(SynchronousTestCase):
    """Clock, counters and bus, which every sink needs."""

    def setUp(self) -> None:
        self.reactor = Clock()
        self.reactor.rightNow = START
        self.runtime = make_runtime(self.reactor)
        self.clock, self.counters, self.bus = self.runtime.clock, self.runtime.counters, self.runtime.bus

    def batch(self, machine: str = "M", sensor: str = "v", *samples: float, kind: str = "VIB") -> Batch:
        return Batch(machine, {sensor: SensorBatch(kind, array("d", samples))}, self.clock.now())

    def fault(self, machine: str = "M", score: float = 2.0) -> Fault:
        return Fault(machine, score, 1.0, self.clock.now())


class FakeStore:
    """A store that refuses the entries that a test chooses; the suite of stores verifies the real ones."""

    def __init__(self) -> None:
        self.first_seq = 1
        self.reserved = SEQ_BLOCK
        self.written: list[StoreEntry] = []
        self.refuse = 0
        self.stuck: set[str] = set()
        self.hang: list[Deferred[list[StoreEntry]]] | None = None
        self.asked: list[int] = []
        self.fail = False

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        if self.hang is not None:
            self.hang.append(Deferred())
            return await self.hang[-1]
        if self.fail:
            raise RuntimeError("a store must not raise, but if it does")
        refused = [entry for index, entry in enumerate(entries) if index < self.refuse or entry.machine in self.stuck]
        self.written += [entry for entry in entries if entry not in refused]
        return refused

    async def reserve(self, up_to: int) -> None:
        self.asked.append(up_to)
        await Deferred()


class WriterTests(Parts):
    def setUp(self) -> None:
        super().setUp()
        self.store = FakeStore()
        self.pressure: list[bool] = []
        self.writer = Writer(self.reactor, self.bus, self.counters, self.store, self.pressure.append)  # type: ignore[arg-type]  # a fake

    def test_a_sensor_is_written_when_it_is_first_seen(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        self.bus.publish(self.batch("M", "v", 1.0))
        self.bus.publish(self.batch("M", "w", 1.0))
        self.assertEqual(self.store.written, [Sighting("M", "v", "VIB"), Sighting("M", "w", "VIB")])

    def test_sensor_is_known_once_its_type_is_written(self) -> None:
        self.assertFalse(self.writer.knows("M", "v"))
        self.store.hang = []
        self.bus.publish(self.batch("M", "v", 1.0))
        self.assertFalse(self.writer.knows("M", "v"))
        self.store.hang[0].callback([Sighting("M", "v", "VIB")])
        self.assertFalse(self.writer.knows("M", "v"))
        self.store.hang = None
        self.reactor.advance(0.5)
        self.assertTrue(self.writer.knows("M", "v"))
        self.assertFalse(self.writer.knows("N", "v"))
        # Its type has changed.
        self.store.hang = []
        self.bus.publish(self.batch("M", "v", 1.0, kind="TEMP"))
        self.assertFalse(self.writer.knows("M", "v"))
        self.store.hang[0].callback([])
        self.assertTrue(self.writer.knows("M", "v"))

    def test_an_anomaly_is_written_other_faults_are_not(self) -> None:
        for score in (1.0, 1.5, 0.5):
            self.bus.publish(self.fault("M", score))
        self.assertEqual([entry.score for entry in self.store.written if isinstance(entry, Fault)], [1.5])

    def test_refused_entries_are_retried_in_order_with_growing_delays(self) -> None:
        self.store.refuse = 100
        faults = [self.fault("M", 2.0 + number) for number in range(5)]
        self.writer.add(faults[:3])
        waits = []
        for _ in range(7):
            (call,) = self.reactor.getDelayedCalls()
            waits.append(call.getTime() - self.reactor.seconds())
            self.reactor.advance(waits[-1])
        self.assertEqual(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0])
        self.writer.add(faults[3:])
        self.assertEqual(self.store.written, [])
        self.store.refuse = 0
        self.reactor.advance(10)
        self.assertEqual(self.store.written, faults)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.counters.store_retries._value.get(), 8 * 3)

    def test_store_that_raises_loses_no_entries(self) -> None:
        self.store.fail = True
        self.writer.add([self.fault()])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.store.fail = False
        self.reactor.advance(0.5)
        self.assertEqual(len(self.store.written), 1)

    def test_pressure(self) -> None:
        self.store.hang = []
        fault = self.fault()
        self.writer.add([fault])
        self.writer.add([fault] * (HIGH_WATER - 1))
        self.assertEqual(self.pressure, [])
        self.writer.add([fault])
        self.assertEqual(self.pressure, [True])
        hanging, self.store.hang = self.store.hang, None
        hanging[0].callback([])
        self.assertEqual(self.pressure, [True, False])
        self.assertEqual(len(self.store.written), HIGH_WATER)

    def test_pressure_lasts_until_few_entries_wait(self) -> None:
        self.store.hang = []
        self.writer.add([self.fault()] * (HIGH_WATER + 2000))
        self.assertEqual(self.pressure, [True])
        waiting = self.counters.store_waiting._value.get()
        while waiting > LOW_WATER:
            self.assertEqual(self.pressure, [True])
            self.store.hang.pop().callback([])
            waiting = self.counters.store_waiting._value.get()
        self.assertEqual(self.pressure, [True, False])

    def test_new_sensors_cause_no_pressure(self) -> None:
        self.store.hang = []
        self.writer.add(Sighting("M", f"v{number}", "VIB") for number in range(HIGH_WATER + 2000))
        self.assertEqual(self.pressure, [])

    def test_failed_machine_delays_no_other(self) -> None:
        self.store.stuck = {"A"}
        self.writer.add([self.fault("A", 2.0 + number) for number in range(1500)])
        self.writer.add([self.fault("B", 2.0), self.fault("A", 9000.0), self.fault("B", 3.0)])
        written = [(entry.machine, entry.score) for entry in self.store.written if isinstance(entry, Fault)]
        self.assertEqual(written, [("B", 2.0), ("B", 3.0)])
        self.reactor.pump([1.0] * 30)
        self.writer.add([self.fault("B", 4.0)])
        self.assertEqual(len(self.store.written), 3)
        self.store.stuck = set()
        self.reactor.pump([1.0] * 10)
        scores = [entry.score for entry in self.store.written if isinstance(entry, Fault) and entry.machine == "A"]
        self.assertEqual(scores, [*(2.0 + number for number in range(1500)), 9000.0])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_drain_tries_each_entry_once(self) -> None:
        self.store.stuck = {"A"}
        self.writer.add([self.fault("A") for _ in range(1500)])
        self.store.hang = []
        self.writer.add([self.fault("B")])
        self.writer.add([self.fault("B"), self.fault("C")])
        drained = Deferred.fromCoroutine(self.writer.drain())
        hanging, self.store.hang = self.store.hang, None
        for each in hanging:
            each.callback([])
        self.successResultOf(drained)
        self.assertEqual({entry.machine for entry in self.store.written}, {"B", "C"})
        self.assertEqual(self.counters.store_lost._value.get(), 1500)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_drain_writes_waiting_entries(self) -> None:
        self.store.refuse = 1
        self.writer.add([self.fault()])
        self.store.refuse = 0
        self.successResultOf(Deferred.fromCoroutine(self.writer.drain()))
        self.assertEqual(len(self.store.written), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_drain_does_not_try_for_ever(self) -> None:
        self.store.refuse = 1
        self.writer.add([self.fault()])
        self.successResultOf(Deferred.fromCoroutine(self.writer.drain()))
        self.assertEqual(self.counters.store_lost._value.get(), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_sensor_is_written_with_each_new_type(self) -> None:
        for kind in ("VIB", "VIB", "TEMP", "TEMP", "VIB"):
            self.bus.publish(self.batch("M", "v", 1.0, kind=kind))
        self.assertEqual(self.store.written, [Sighting("M", "v", kind) for kind in ("VIB", "TEMP", "VIB")])

    def test_sensor_is_written_with_its_current_type(self) -> None:
        self.store.hang = []
        self.writer.add([self.fault()])
        for kind in ("A", "B", "C"):
            self.bus.publish(self.batch("M", "v", 1.0, kind=kind))
        self.assertEqual(self.counters.store_waiting._value.get(), 1)
        hanging, self.store.hang = self.store.hang, None
        hanging[0].callback([])
        self.assertEqual(self.store.written, [Sighting("M", "v", "C")])

    def test_type_that_changes_while_writes_of_its_machine_fail_is_queued_once(self) -> None:
        self.store.stuck = {"M"}
        for number in range(5000):
            self.bus.publish(self.batch("M", "v", 1.0, kind=f"T{number}"))
            self.reactor.advance(0.1)
        self.assertLessEqual(self.counters.store_waiting._value.get(), 2)
        self.store.stuck = set()
        self.reactor.pump([1.0] * 20)
        self.assertEqual(self.store.written[-1], Sighting("M", "v", "T4999"))
        self.assertEqual(self.counters.store_waiting._value.get(), 0)
        self.assertEqual(self.pressure, [])

    def test_type_that_changes_during_failing_writes_is_queued_once(self) -> None:
        class SlowStore(FakeStore):
            """A store whose answers take some time."""

            async def write(its, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
                refused = await super().write(entries)
                await deferLater(self.reactor, 0.3)
                return refused

        store = SlowStore()
        store.stuck = {"M"}
        writer = Writer(self.reactor, bus := Bus(self.clock, self.counters), self.counters, store, self.pressure.append)  # type: ignore[arg-type]  # a fake
        for number in range(5000):
            bus.publish(self.batch("M", "v", 1.0, kind=f"T{number}"))
            self.reactor.advance(0.1)
        self.assertLessEqual(self.counters.store_waiting._value.get(), 3)
        store.stuck = set()
        self.reactor.pump([0.1] * 200)
        self.assertEqual(store.written[-1], Sighting("M", "v", "T4999"))
        self.successResultOf(writer.settled())

    def test_settled_when_each_entry_was_tried_once(self) -> None:
        self.successResultOf(self.writer.settled())
        self.store.hang = []
        self.writer.add([self.fault("A")] * 700)
        self.writer.add([self.fault("B")])
        first, second = self.writer.settled(), self.writer.settled()
        self.store.hang.pop().callback([])
        self.assertNoResult(first)
        (hanging,), self.store.hang = self.store.hang, None
        hanging.callback([])
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.counters.store_waiting._value.get(), 0)

    def test_settled_with_failed_entries(self) -> None:
        self.store.stuck = {"A"}
        self.writer.add([self.fault("A"), self.fault("B")])
        self.successResultOf(self.writer.settled())
        self.writer.add([self.fault("A")])
        self.successResultOf(self.writer.settled())
        self.assertEqual(self.counters.store_waiting._value.get(), 2)

    def test_settled_though_the_store_fails(self) -> None:
        self.store.fail = True
        self.writer.add([self.fault()])
        self.successResultOf(self.writer.settled())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_closed_periods_keep_their_order(self) -> None:
        start = datetime(2025, 12, 18, 10, tzinfo=UTC)
        entries: list[StoreEntry] = []
        for number in range(1200):
            bucket = Bucket.of(array("d", [float(number)]), str)
            entries += [ClosedHour("M", "v", start, bucket, "REAL"), ClosedPeriod("day", "M", "v", start, "REAL")]
        self.store.stuck = {"M"}
        self.writer.add(entries[:1000])
        self.reactor.advance(0.5)
        self.writer.add(entries[1000:])
        self.store.stuck = set()
        self.reactor.pump([1.0] * 10)
        self.assertEqual(self.store.written, entries)


class EventNumberReserveTests(Parts):
    def test_reserve_when_half_is_used_reserves_more(self) -> None:
        store = FakeStore()
        reserve = EventNumberReserve(store)  # type: ignore[arg-type]  # a fake
        reserve.used(SEQ_BLOCK // 2)
        self.assertEqual(store.asked, [])
        reserve.used(SEQ_BLOCK // 2 + 1)
        reserve.used(SEQ_BLOCK // 2 + 2)
        self.assertEqual(store.asked, [SEQ_BLOCK // 2 + 1 + SEQ_BLOCK])


class RawLogTests(Parts):
    def setUp(self) -> None:
        super().setUp()
        self.folder = new_folder(self, "raw")
        self.known = {("M", "v")}
        damage = DamageLog(self.clock, self.counters)
        self.rawlog = RawLog(
            self.reactor, self.clock, self.counters, str(self.folder), lambda *sensor: sensor in self.known, damage
        )
        self.bus.attach(Batch, self.rawlog.name, self.rawlog.write)
        self.rawlog.startService()
        self.addCleanup(self.rawlog.stopService)

    def lines(self, name: str = "20251218_v.csv") -> list[str]:
        return (self.folder / "M" / name).read_text("ascii").splitlines()

    def test_raw_log_writes_lines_within_half_a_second(self) -> None:
        self.bus.publish(self.batch("M", "v", 0.5, -1.0))
        self.assertFalse((self.folder / "M").exists())
        self.reactor.advance(0.5)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,0.5", "10:11:00,-1.0"])

    def test_raw_log_has_a_file_per_day(self) -> None:
        self.reactor.rightNow = datetime(2025, 12, 18, 23, 59, 59, tzinfo=UTC).timestamp()
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(1)
        self.bus.publish(self.batch("M", "v", 2.0))
        self.rawlog.stopService()
        self.assertEqual(self.lines(), ["time,data", "23:59:59,1.0"])
        self.assertEqual(self.lines("20251219_v.csv"), ["time,data", "00:00:00,2.0"])

    def test_raw_log_closes_the_files_of_yesterday(self) -> None:
        self.reactor.rightNow = datetime(2025, 12, 18, 23, 59, 59, tzinfo=UTC).timestamp()
        for number in range(20):
            self.bus.publish(self.batch("M", f"v{number}", 1.0))
        self.reactor.advance(0.5)
        many = len(os.listdir("/proc/self/fd"))
        self.reactor.advance(0.5)
        self.bus.publish(self.batch("M", "v", 2.0))
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), many - 19)

    def test_raw_log_writes_each_sensor_when_it_is_due(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.3)
        self.bus.publish(self.batch("M", "w", 2.0))
        self.reactor.advance(0.2)
        self.assertEqual(len(self.lines()), 2)
        self.assertFalse((self.folder / "M" / "20251218_w.csv").exists())
        self.reactor.advance(0.3)
        self.assertEqual(len(self.lines("20251218_w.csv")), 2)

    def test_raw_log_continues_a_slow_flush_in_later_turns(self) -> None:
        started = []

        def flush(path: str) -> None:
            started.append(path)
            del self.rawlog._waiting[path]
            # The disk is slow.
            self.reactor.rightNow += 0.02

        self.patch(self.rawlog, "_flush", flush)
        for number in range(50):
            self.bus.publish(self.batch("M", f"v{number}", 1.0))
        self.reactor.advance(0.5)
        while len(started) < 50:
            before = len(started)
            self.reactor.advance(0.1)
            # The next check continues what was postponed to this turn.
            self.assertLessEqual(len(started) - before, 1)

    def test_raw_log_gives_the_whole_buffer_to_the_only_failing_file(self) -> None:
        self.patch(raw_log, "_MAX_WAITING_BYTES", 2000)
        (self.folder / "M").write_bytes(b"in the way")
        for _ in range(20):
            for number in range(50):
                self.bus.publish(self.batch("N", f"v{number}", 1.0))
            self.bus.publish(self.batch("M", "v", 1.0))
            self.reactor.advance(0.5)
        self.assertEqual(self.counters.raw_lost._value.get(), 0)

    def test_raw_log_problem_ends_while_other_lines_wait(self) -> None:
        (self.folder / "M").write_bytes(b"in the way")
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.5)
        self.assertIsNotNone(self.rawlog.problem)
        (self.folder / "M").unlink()
        self.reactor.advance(0.3)
        self.bus.publish(self.batch("M", "w", 2.0))
        self.reactor.advance(0.2)
        self.assertIsNone(self.rawlog.problem)
        self.assertFalse((self.folder / "M" / "20251218_w.csv").exists())

    def test_raw_log_appends_and_separates_a_torn_line(self) -> None:
        (self.folder / "M").mkdir()
        for before, kept in (
            (b"", ["time,data"]),
            (b"time,da", ["time,data"]),
            (b"time,data", ["time,data"]),
            (b"time,data\n", ["time,data"]),
            (b"time,data\n10:00:00,1.5\n10:00:01,2.", ["time,data", "10:00:00,1.5", "10:00:01,2. torn"]),
            (b"time,data\n10:00:00,1.5\n10:00:0", ["time,data", "10:00:00,1.5", "10:00:0"]),
        ):
            (self.folder / "M" / "20251218_v.csv").write_bytes(before)
            self.bus.publish(self.batch("M", "v", 3.0))
            self.rawlog.stopService()
            self.assertEqual(self.lines(), [*kept, "10:11:00,3.0"])
            self.rawlog.startService()

    def test_raw_log_creates_a_removed_file_again(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.5)
        (self.folder / "M" / "20251218_v.csv").unlink()
        self.bus.publish(self.batch("M", "v", 2.0))
        self.reactor.advance(0.5)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,2.0"])

    def test_raw_log_creates_a_moved_file_again(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.5)
        (self.folder / "M" / "20251218_v.csv").rename(self.folder / "M" / "kept.csv")
        self.bus.publish(self.batch("M", "v", 2.0))
        self.reactor.advance(0.5)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,2.0"])
        self.assertEqual(self.lines("kept.csv"), ["time,data", "10:11:00,1.0"])

    def test_raw_log_does_not_follow_links(self) -> None:
        (self.folder / "M").mkdir()
        (self.folder / "elsewhere").write_bytes(b"")
        (self.folder / "M" / "20251218_v.csv").symlink_to(self.folder / "elsewhere")
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.5)
        self.assertEqual((self.folder / "elsewhere").read_bytes(), b"")
        self.assertGreater(self.counters.raw_failures._value.get(), 0)

    def test_raw_log_keeps_waiting_lines_in_order(self) -> None:
        (self.folder / "M").write_bytes(b"in the way")
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.pump([0.5] * 3)
        self.assertEqual(self.counters.raw_failures._value.get(), 3)
        self.bus.publish(self.batch("M", "v", 2.0))
        (self.folder / "M").unlink()
        self.reactor.advance(0.5)
        self.assertEqual([line.partition(",")[2] for line in self.lines()[1:]], ["1.0", "2.0"])
        self.assertEqual(self.counters.raw_lost._value.get(), 0)

    def test_raw_log_drops_whole_lines_above_the_bound(self) -> None:
        self.patch(raw_log, "_MAX_WAITING_BYTES", 100)
        (self.folder / "M").write_bytes(b"in the way")
        for number in range(50):
            self.bus.publish(self.batch("M", "v", float(number)))
            self.reactor.advance(0.5)
        (self.folder / "M").unlink()
        self.reactor.advance(0.5)
        kept = [float(line.partition(",")[2]) for line in self.lines()[1:]]
        self.assertEqual(kept, [float(number) for number in range(50 - len(kept), 50)])
        self.assertTrue(3 < len(kept) < 10, kept)
        lost = sum(len(f"10:11:00,{float(number)}\n") for number in range(50 - len(kept)))
        self.assertEqual(self.counters.raw_lost._value.get(), lost)

    def test_raw_log_writes_whole_lines_to_a_full_disk(self) -> None:
        write = os.write
        room = [len("time,data\n"), 15]

        def full(file: int, data: bytes) -> int:
            return write(file, bytes(data)[: room.pop(0)]) if room else write(file, data)

        self.patch(os, "write", full)
        self.bus.publish(self.batch("M", "v", 1.0, 2.0, 3.0))
        self.reactor.advance(0.5)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,1.0"])
        self.reactor.advance(0.5)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,1.0", "10:11:00,2.0", "10:11:00,3.0"])

    def test_raw_log_writes_many_samples_immediately(self) -> None:
        self.bus.publish(self.batch("M", "v", *[0.123456789] * 10_000))
        self.assertEqual(len(self.lines()), 10_001)

    def test_raw_log_waits_shortly_for_the_type_of_a_sensor(self) -> None:
        self.known.clear()
        much = self.batch("M", "v", *[0.123456789] * 10_000)
        self.bus.publish(much)
        self.bus.publish(much)
        self.assertFalse((self.folder / "M").exists())
        self.known.add(("M", "v"))
        self.bus.publish(self.batch("M", "v", 1.0))
        self.assertEqual(len(self.lines()), 20_002)
        self.known.clear()
        self.bus.publish(much)
        self.assertEqual(len(self.lines()), 20_002)
        self.reactor.advance(0.5)
        self.assertEqual(len(self.lines()), 30_002)

    def test_raw_log_bounds_its_open_files(self) -> None:
        self.rawlog._max_files = 3
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            for number in range(20):
                self.bus.publish(self.batch("M", f"v{number}", 1.0))
            self.reactor.advance(0.5)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 3)
        self.assertEqual(len(self.lines("20251218_v19.csv")), 3)

    def test_raw_log_lines_read_back_as_the_same_doubles(self) -> None:
        samples = array("d", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, 123456789.123456789, 3.0])
        self.reads_back(samples)
        # Many samples are converted by numpy.
        self.reads_back(samples * MIN_NUMPY_SAMPLES)

    def reads_back(self, samples: "array[float]") -> None:
        text = self.text_of(samples)
        read = array("d", [float(line.partition(b",")[2]) for line in text.splitlines()])
        self.assertEqual(read.tobytes(), samples.tobytes())
        # repr gives the shortest digits that read back.
        for line, sample in zip(text.decode().splitlines(), samples, strict=True):
            digits = line.partition(",")[2]
            self.assertLessEqual(len(digits), len(repr(sample)))

    def test_raw_log_writes_nan_and_infinities(self) -> None:
        lines = b"10:11:00,1.0\n10:11:00,nan\n10:11:00,inf\n10:11:00,-inf\n"
        samples = array("d", [1.0, float("nan"), float("inf"), float("-inf")])
        self.assertEqual(self.text_of(samples), lines)
        self.assertEqual(self.text_of(samples * MIN_NUMPY_SAMPLES), lines * MIN_NUMPY_SAMPLES)
        self.assertEqual(self.text_of(array("d")), b"")

    def text_of(self, samples: "array[float]") -> bytes:
        text = bytearray()
        add_lines(text, b"10:11:00,", samples)
        return bytes(text)

    def test_raw_log_end_is_after_all_samples(self) -> None:
        now = self.clock.now()
        self.assertIsNone(self.rawlog.end("M", "v", now))
        self.bus.publish(self.batch("M", "v", 1.0))
        first = len(b"time,data\n10:11:00,1.0\n")
        self.assertEqual(self.rawlog.end("M", "v", now), first)
        self.assertEqual((self.folder / "M" / "20251218_v.csv").stat().st_size, first)
        self.bus.publish(self.batch("M", "v", 2.0))
        self.bus.publish(self.batch("M", "w", 2.0))
        self.assertEqual(self.rawlog.end("M", "v", now), first + len(b"10:11:00,2.0\n"))
        self.assertEqual(self.rawlog.end("M", "v", now), first + len(b"10:11:00,2.0\n"))
        self.assertFalse((self.folder / "M" / "20251218_w.csv").exists(), "another's lines go with the timer")

    def test_raw_log_end_of_an_earlier_file(self) -> None:
        (self.folder / "M").mkdir()
        (self.folder / "M" / "20251218_v.csv").write_bytes(b"time,data\n10:00:00,1.5\n")
        self.assertEqual(self.rawlog.end("M", "v", self.clock.now()), 23)

    def test_raw_log_end_is_unknown_while_lines_wait(self) -> None:
        (self.folder / "M").write_bytes(b"in the way")
        self.bus.publish(self.batch("M", "v", 1.0))
        self.assertIsNone(self.rawlog.end("M", "v", self.clock.now()))
        (self.folder / "M").unlink()
        self.assertEqual(self.rawlog.end("M", "v", self.clock.now()), 23)

    def test_raw_log_end_is_unknown_while_a_part_of_a_line_waits(self) -> None:
        write = os.write
        room = [len("time,data\n"), 15]

        def full(file: int, data: bytes) -> int:
            return write(file, bytes(data)[: room.pop(0)]) if room else write(file, data)

        self.patch(os, "write", full)
        self.bus.publish(self.batch("M", "v", 1.0, 2.0, 3.0))
        self.assertIsNone(self.rawlog.end("M", "v", self.clock.now()))
        self.assertEqual(self.rawlog.end("M", "v", self.clock.now()), 10 + 3 * 13)

    def test_raw_log_problem_lasts_until_all_lines_are_written(self) -> None:
        self.assertIsNone(self.rawlog.problem)
        (self.folder / "M").write_bytes(b"in the way")
        (self.folder / "N").write_bytes(b"in the way")
        for machine in "MNO":
            self.bus.publish(self.batch(machine, "v", 1.0))
        self.reactor.advance(0.5)
        # The file instead of the folder, or the raw file in it.
        self.assertRegex(str(self.rawlog.problem), rf"^{self.folder}/M.*: .* \(and 1 more\)$")
        (self.folder / "M").unlink()
        self.reactor.advance(0.5)
        self.assertRegex(str(self.rawlog.problem), rf"^{self.folder}/N\S*: [A-Z][a-z ]+$")
        (self.folder / "N").unlink()
        self.reactor.advance(0.5)
        self.assertIsNone(self.rawlog.problem)
        for machine in "MNO":
            self.assertEqual(len((self.folder / machine / "20251218_v.csv").read_bytes().splitlines()), 2)

    def test_raw_log_reports_a_directory_instead_of_a_file(self) -> None:
        path = self.folder / "M" / "20251218_v.csv"
        path.mkdir(parents=True)
        with capturedLogs() as events:
            self.bus.publish(self.batch("M", "v", 1.0))
            self.reactor.advance(0.5)
        self.assertEqual(self.rawlog.problem, f"{path}: {os.strerror(errno.EISDIR)}")
        self.assertIn(str(self.rawlog.problem), str([event.get("problem") for event in events]))

    def test_raw_log_reports_a_full_disk(self) -> None:
        write, room = os.write, ["none"]
        self.patch(os, "write", lambda file, data: write(file, bytes(data)[:0]) if room else write(file, data))
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.advance(0.5)
        self.assertEqual(self.rawlog.problem, f"{self.folder / 'M' / '20251218_v.csv'}: {os.strerror(errno.ENOSPC)}")
        room.clear()
        self.reactor.advance(0.5)
        self.assertIsNone(self.rawlog.problem)
        self.assertEqual(self.lines(), ["time,data", "10:11:00,1.0"])


class StatisticsTests(Parts):
    def setUp(self) -> None:
        super().setUp()
        self.updates: list[Update] = []
        self.entries: list[StoreEntry] = []
        self.broken = False
        self.folder = new_folder(self, "raw")
        damage = DamageLog(self.clock, self.counters)
        self.rawlog = RawLog(self.reactor, self.clock, self.counters, str(self.folder), lambda *sensor: True, damage)
        rollup = Rollup(UTC, {"vib": "ABS"})
        self.statistics = Statistics(
            self.reactor, self.bus, self.clock, self.counters, rollup, self.rawlog, self.store_entries
        )
        self.bus.attach(Batch, self.rawlog.name, self.rawlog.write)
        self.statistics.startService()
        self.addCleanup(self.statistics.stopService)
        self.rawlog.startService()
        self.addCleanup(self.rawlog.stopService)
        self.bus.attach(Update, "test", self.updates.append)

    def store_entries(self, entries: Iterable[StoreEntry]) -> None:
        new = list(entries)
        if self.broken and new:
            raise RuntimeError("no store")
        self.entries += new

    def hours(self) -> list[ClosedHour]:
        return [entry for entry in self.entries if isinstance(entry, ClosedHour)]

    def file(self, name: str = "20251218_v.csv") -> bytes:
        return (self.folder / "M" / name).read_bytes()

    def test_minute_closes_on_time_without_data(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0, -3.0))
        self.reactor.pump([0.25] * (4 * 60 - 1))
        self.assertEqual(self.updates, [])
        self.reactor.pump([0.25] * 4)
        (update,) = self.updates
        self.assertEqual(update.payload(), {"sensor_name": "v", "data": 2.0, "time": "2025-12-18 10:12:00.000000"})
        self.reactor.pump([0.25] * 4 * 120)
        self.assertEqual(len(self.updates), 1)

    def test_samples_after_a_minute_do_not_count_in_it(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        # After the boundary, before the next tick.
        self.reactor.rightNow = START + 60.1
        self.bus.publish(self.batch("M", "v", 5.0))
        self.assertEqual([update.mean for update in self.updates], [1.0])
        self.reactor.pump([0.25] * 4 * 61)
        self.assertEqual([update.mean for update in self.updates], [1.0, 5.0])

    def test_hour_is_stored_when_it_ends(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0, 2.0, kind="TEMP"))
        self.reactor.pump([1.0] * 600)
        self.bus.publish(self.batch("M", "v", 9.0, kind="TEMP"))
        self.reactor.pump([1.0] * (49 * 60 - 600))
        (hour,) = self.hours()
        self.assertEqual((hour.machine, hour.sensor, hour.start), ("M", "v", datetime(2025, 12, 18, 10, tzinfo=UTC)))
        self.assertEqual((hour.bucket.count, hour.bucket.mean(hour.mode), hour.mode), (3, 4.0, "REAL"))
        self.reactor.pump([1.0] * 3600)
        self.assertEqual(len(self.entries), 1)

    def test_update_is_published_after_its_samples_are_written(self) -> None:
        seen: list[bytes] = []
        self.bus.attach(Update, "reader", lambda _: seen.append(self.file()))
        self.reactor.rightNow = START + 59.9
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.rightNow = START + 60.1
        # No timer has run since, so the update has caused the write.
        self.bus.publish(self.batch("M", "v", 2.0))
        self.assertEqual(seen, [b"time,data\n10:11:59,1.0\n"])

    def test_hour_has_the_raw_end_of_its_samples(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.rightNow = START + 49 * 60 + 0.1
        # The batch that ends the hour is not part of it.
        self.bus.publish(self.batch("M", "v", 2.0, 3.0))
        (hour,) = self.hours()
        self.assertEqual(hour.raw_end, len(b"time,data\n10:11:00,1.0\n"))
        self.reactor.pump([1.0] * 3600)
        self.assertEqual(self.hours()[1].raw_end, len(self.file()))

    def test_last_hour_of_a_day_has_the_raw_end_of_its_file(self) -> None:
        self.reactor.rightNow = datetime(2025, 12, 18, 23, 59, 59, tzinfo=UTC).timestamp()
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.rightNow += 1.1
        self.bus.publish(self.batch("M", "v", 2.0))
        self.reactor.pump([1.0] * 3600)
        self.assertEqual([hour.raw_end for hour in self.hours()], [len(self.file()), len(self.file("20251219_v.csv"))])
        (day,) = [entry for entry in self.entries if isinstance(entry, ClosedPeriod)]
        self.assertEqual((day.period, day.start), ("day", datetime(2025, 12, 18, tzinfo=UTC)))
        self.assertIs(self.entries[1], day)

    def test_hour_has_no_raw_end_while_its_file_cannot_be_written(self) -> None:
        (self.folder / "M").write_bytes(b"in the way")
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.pump([1.0] * 50 * 60)
        self.assertEqual([hour.raw_end for hour in self.hours()], [None])

    def test_step_of_the_clock_is_logged(self) -> None:
        monotonic = [0.0]
        clock = WallClock(UTC, self.reactor.seconds, lambda: monotonic[0])
        statistics = Statistics(
            self.reactor, self.bus, clock, self.counters, Rollup(UTC, {}), self.rawlog, self.store_entries
        )
        statistics.startService()
        self.addCleanup(statistics.stopService)
        lines = collect_lines(self)
        for _ in range(20):
            monotonic[0] += 0.25
            self.reactor.advance(0.25)
        self.assertEqual([line for line in lines if "clock" in line], [])
        for step in (3600.0, -7200.0, 0.4):
            self.reactor.rightNow += step
            for call in self.reactor.getDelayedCalls():
                call.reset(0.25)
            monotonic[0] += 0.25
            self.reactor.advance(0.25)
        jumps = [f"the wall clock jumped by {step} s" for step in ("+3600.0", "-7200.0")]
        self.assertEqual([line for line in lines if "clock" in line], jumps)

    def test_infinite_samples_are_counted_and_left_out(self) -> None:
        self.bus.publish(self.batch("M", "v", 1.0, float("nan"), float("inf")))
        self.bus.publish(self.batch("M", "w", float("nan")))
        self.reactor.pump([0.25] * 4 * 61)
        self.assertEqual([(update.sensor, update.mean) for update in self.updates], [("v", 1.0)])
        self.assertEqual(self.counters.daq_nonfinite._value.get(), 3)

    def test_samples_with_a_sum_that_exceeds_a_double_are_logged(self) -> None:
        lines = collect_lines(self)
        self.bus.publish(self.batch("M", "v", 1e308, 1e308, 0.0))
        self.reactor.pump([0.25] * 4 * 61)
        self.assertEqual(self.updates, [])
        self.assertEqual(self.counters.daq_nonfinite._value.get(), 3)
        (line,) = lines
        self.assertIn("machine M: 3 samples of sensor v are left out of its means, because their sum", line)
        # Each of the next minutes has a mean, but their hour has none.
        for _ in range(2):
            self.bus.publish(self.batch("M", "w", 1.7e308))
            self.reactor.pump([0.25] * 4 * 61)
        self.assertEqual([update.mean for update in self.updates], [1.7e308] * 2)
        self.assertEqual(self.counters.daq_nonfinite._value.get(), 4)
        self.assertIn("machine M: 1 samples of sensor w", lines[-1])

    def test_timer_survives_an_exception(self) -> None:
        self.broken = True
        self.bus.publish(self.batch("M", "v", 1.0))
        self.reactor.pump([1.0] * 3600)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.bus.publish(self.batch("M", "v", 2.0))
        self.reactor.pump([1.0] * 61)
        self.assertEqual(self.updates[-1].mean, 2.0)


class LiveTests(Parts):
    def setUp(self) -> None:
        super().setUp()
        self.live = LiveState(self.bus, self.clock, {"default": 10.0})

    def reading(self, weight: str, status: str = "ST", kind: str = "gross") -> Reading:
        return Reading("default", status, Decimal(weight), kind, "raw", self.clock.now())

    def test_reading_becomes_stale_by_the_monotonic_clock(self) -> None:
        monotonic = [100.0]
        live = LiveState(self.bus, WallClock(UTC, self.reactor.seconds, lambda: monotonic[0]), {"default": 10.0})
        self.bus.publish(self.reading("1"))
        self.reactor.rightNow += 1_000_000
        self.assertFalse(live.is_stale("default"))
        monotonic[0] += 9.9
        self.assertFalse(live.is_stale("default"))
        monotonic[0] += 0.1
        self.assertTrue(live.is_stale("default"))

    def test_only_settled_readings_become_the_latest(self) -> None:
        self.bus.publish(self.reading("1"))
        for status, kind in (("US", "gross"), ("ST", "net"), ("ST", "tare")):
            self.bus.publish(self.reading("2", status, kind))
        latest = self.live.latest("default")
        assert latest is not None
        self.assertEqual(latest.weight, 1)

    def test_snapshot_has_the_last_sixty_updates_oldest_first(self) -> None:
        for number in range(70):
            self.bus.publish(Update("M", "v", float(number), self.clock.now()))
        sensors = self.live.machine_snapshot("M")["sensors"]
        self.assertEqual([update["data"] for update in sensors["v"]], [float(number) for number in range(10, 70)])

    def test_presence_sets_the_connected_machines(self) -> None:
        self.bus.publish(Presence("machine", "M", connected=True))
        self.bus.publish(Presence("machine", "N", connected=True))
        self.bus.publish(Presence("machine", "M", connected=False))
        self.assertEqual(self.live.connected_machines(), ["N"])
        self.assertEqual(list(self.live.machines()), ["M", "N"])
        self.bus.publish(Presence("scale", "default", connected=True))
        snapshot = self.live.scale_snapshot("default")
        self.assertEqual((snapshot["latest"], snapshot["connected"]), (None, True))

    def test_restored_updates_precede_new_ones(self) -> None:
        self.live.restore(Update("M", "v", float(number), self.clock.now()) for number in range(70))
        self.live.restore([Update("M", "w", 1.0, self.clock.now())])
        self.bus.publish(Update("M", "v", 70.0, self.clock.now()))
        sensors = self.live.machine_snapshot("M")["sensors"]
        self.assertEqual([update["data"] for update in sensors["v"]], [float(number) for number in range(11, 71)])
        self.assertEqual(len(sensors["w"]), 1)
        self.assertEqual(self.live.connected_machines(), [])


class LimitedLogTests(Parts):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []

        class Log:
            def warn(log, message: str, **fields: object) -> None:
                self.lines.append(message.format(**fields))

        self.log = LimitedLog(Log(), self.clock, self.counters, burst=2, period=60, kinds=3)  # type: ignore[arg-type]  # a fake

    def test_so_many_of_a_kind_and_then_how_many_more(self) -> None:
        for number in range(5):
            self.log.warn("a", "a {n}", n=number)
        self.log.warn("b", "b")
        self.assertEqual(self.lines, ["a 0", "a 1", "b"])
        self.assertEqual(self.counters.log_suppressed._value.get(), 3)
        self.reactor.advance(60)
        self.log.warn("a", "a {n}", n=5)
        self.assertEqual(self.lines[3:], ["3 similar lines within 60 s were not logged, such as: a 2", "a 5"])

    def test_kinds_are_bounded(self) -> None:
        for number in range(100):
            self.log.warn(f"kind {number}", "{n}", n=number)
        # Three of their own, and two of the share of all others.
        self.assertEqual(self.lines, ["0", "1", "2", "3", "4"])
        self.reactor.advance(60)
        self.log.warn("new", "new")
        self.assertEqual(self.lines[-1], "new")
