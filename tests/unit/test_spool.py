"""The spool, with full disks, kills and restarts."""

import contextlib
import math
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.event_numbers import SEQ_BLOCK
from gateway.store.interface import DayMark, RollupProgress, SensorState, StoreUnavailable
from gateway.store.spool import codec
from gateway.store.spool.spool import Spool
from gateway.store.sqlite.store import SqliteStore
from gateway.store.sqlitefile.files import SPOOL_FILE
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import PERIODS, end_of, start_of
from tests.support.reactor import reactor
from tests.support.trial import new_folder

ROOT = Path(__file__).parent.parent.parent

BERLIN = ZoneInfo("Europe/Berlin")
DAY = date(2025, 12, 18)
NOON = datetime(2025, 12, 18, 12, tzinfo=UTC)
MEGABYTE = 1024 * 1024


def bucket(value: float = 1.5) -> Bucket:
    return Bucket(60, 1, value * 60, 0.0, value * 60, 0.0, value * value * 60, 0.0, value, "2025-12-18 10:00:00", value)


def hour(start: datetime, raw_end: int | None = None, sensor: str = "v", *, replaces: bool = False) -> ClosedHour:
    return ClosedHour("M", sensor, start, bucket(), "ABS", raw_end, replaces)


def end(period: str, time: datetime, sensor: str = "v") -> ClosedPeriod:
    """Return the end of the period that contains a time."""
    return ClosedPeriod(period, "M", sensor, start_of(period, time), "ABS")


def fault(score: float) -> Fault:
    return Fault("M", score, 0.5, NOON)


def raw_end_of(entry: StoreEntry) -> int:
    assert isinstance(entry, ClosedHour)
    assert entry.raw_end is not None
    return entry.raw_end


def exactly(value: Any) -> Any:
    """Return a form that distinguishes equal values: the fold of a time, its moment, the sign of a zero."""
    if isinstance(value, datetime):
        return value.isoformat(), value.fold, value.timestamp(), value.tzinfo
    if isinstance(value, Bucket | ClosedHour | ClosedPeriod | Fault | Sighting):
        return type(value), [exactly(getattr(value, field.name)) for field in fields(value)]
    return type(value), repr(value)


def comparable(standing: RollupProgress | None) -> dict[tuple[str, str], Any]:
    """Return the progress of sensors in a form that can be compared."""
    assert standing is not None
    assert not standing.unreadable
    return {
        (state.machine, state.sensor): (
            state.type,
            {day: (exactly(mark.last), mark.raw_end) for day, mark in state.days.items()},
            [(period, exactly(start)) for period, start in state.open],
        )
        for state in standing.sensors
    }


class SpoolCase(TestCase):
    wall = NOON.timestamp()
    zone: tzinfo = UTC
    max_bytes = 4 * MEGABYTE

    def setUp(self) -> None:
        self.folder = new_folder(self, "spool")
        self.counters = Counters()
        self.spool = self.open()
        self.addCleanup(lambda: self.spool.close())

    def open(self) -> Spool:
        clock = WallClock(self.zone, lambda: self.wall, lambda: self.wall)
        spool = Spool(reactor, clock, self.counters, str(self.folder), self.max_bytes)
        spool.open()
        return spool

    async def again(self) -> None:
        """Close the spool and open it again."""
        await self.spool.close()
        self.spool = self.open()

    async def in_zone(self, zone: tzinfo) -> None:
        self.zone = zone
        await self.again()

    async def append(self, *entries: StoreEntry) -> None:
        await self.spool.append(entries)

    async def entries(self) -> list[StoreEntry]:
        return [entry for _, entry in await self.spool.first(10**6)]

    async def empty(self) -> None:
        for number, _ in (await self.spool.first(10**6))[-1:]:
            await self.spool.done(number)

    def sample(self, name: str) -> float | None:
        return self.counters.registry.get_sample_value(name)

    @property
    def lost(self) -> float | None:
        return self.sample("cynow_store_lost_total")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / SPOOL_FILE)) as connection, connection:
            return connection.execute(statement).fetchall()

    def size(self) -> int:
        """Return the size of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


class WaitingTests(SpoolCase):
    """Entries that wait, and event numbers."""

    async def test_appended_entries_wait_in_order_over_a_restart(self) -> None:
        self.assertEqual(list(await self.spool.first(10)), [])
        entries: list[StoreEntry] = [hour(NOON, 7), end("day", NOON), fault(1.0), Sighting("M", "v", "VIB")]
        await self.append(*entries[:3])
        await self.append()
        await self.append(*entries[3:])
        for _ in range(2):
            self.assertEqual(await self.entries(), entries)
            self.assertEqual((self.spool.waiting, self.sample("cynow_spool_waiting")), (4, 4.0))
            self.assertEqual([entry for _, entry in await self.spool.first(3)], entries[:3])
            await self.again()
        self.assertEqual((self.lost, self.spool.problem), (0.0, None))

    async def test_done_removes_entries(self) -> None:
        await self.append(*(fault(score) for score in range(10)))
        numbers = [number for number, _ in await self.spool.first(10)]
        await self.spool.done(numbers[3])
        self.assertEqual([entry.score for entry in await self.entries()], [4, 5, 6, 7, 8, 9])  # type: ignore[union-attr]
        # A number below the removed ones changes nothing.
        await self.spool.done(numbers[1])
        self.assertEqual((self.spool.waiting, self.sample("cynow_spool_waiting")), (6, 6.0))
        await self.spool.done(numbers[9] + 5)
        self.assertEqual((self.spool.waiting, await self.entries()), (0, []))

    async def test_numbers_are_never_reused(self) -> None:
        seen: list[int] = []
        for _ in range(4):
            await self.append(fault(1.0), fault(2.0))
            seen += [number for number, _ in await self.spool.first(10)]
            await self.empty()
            await self.again()
        self.assertEqual(seen, sorted(set(seen)))

    async def test_concurrent_appends_keep_their_order(self) -> None:
        waiting = [ensureDeferred(self.spool.append([fault(number), fault(number + 0.5)])) for number in range(1, 200)]
        for each in waiting:
            await each
        scores = [entry.score for entry in await self.entries()]  # type: ignore[union-attr]
        self.assertEqual(scores, sorted(scores))
        self.assertEqual(len(scores), 398)

    async def test_event_numbers_are_never_reused(self) -> None:
        self.assertEqual((self.spool.first_seq, self.spool.reserved), (1, SEQ_BLOCK))
        await self.spool.reserve(SEQ_BLOCK + 5)
        await self.spool.reserve(3)
        await self.again()
        self.assertEqual((self.spool.first_seq, self.spool.reserved), (SEQ_BLOCK + 6, 2 * SEQ_BLOCK + 5))

    async def test_event_numbers_continue_above_those_of_the_embedded_store(self) -> None:
        await self.spool.close()
        (self.folder / SPOOL_FILE).unlink()
        clock = WallClock(self.zone, lambda: self.wall, lambda: self.wall)
        embedded = SqliteStore(reactor, clock, self.counters, str(self.folder))
        embedded.open()
        await embedded.close()
        self.spool = self.open()
        self.assertEqual(self.spool.first_seq, embedded.reserved + 1)
        await self.again()
        self.assertEqual(self.spool.first_seq, embedded.reserved + SEQ_BLOCK + 1)

    async def test_replaced_file_has_another_identity(self) -> None:
        identity = self.spool.identity
        await self.again()
        self.assertEqual(self.spool.identity, identity)
        await self.spool.close()
        (self.folder / SPOOL_FILE).unlink()
        self.spool = self.open()
        self.assertNotEqual(self.spool.identity, identity)

    async def test_entry_that_cannot_be_encoded_affects_no_other(self) -> None:
        await self.append(fault(1.0), Sighting("M", "v", "\ud800"), Sighting("\ud800", "v", "VIB"), fault(2.0))
        self.assertEqual(await self.entries(), [fault(1.0), fault(2.0)])
        self.assertEqual((self.lost, self.spool.problem), (2.0, None))

    async def test_row_that_cannot_be_decoded_blocks_no_other(self) -> None:
        await self.append(*(fault(score) for score in range(6)))
        for number, change in enumerate(
            ("form = 9", "kind = 'x'", "body = '{'", "body = '[]'", "body = '{}'"), start=1
        ):
            self.rows(f"UPDATE entry SET {change} WHERE number = {number}")
        await self.spool.adopt(RollupProgress([]))
        # Readable entries are found with any limit.
        self.assertEqual(list(await self.spool.first(2)), [(6, fault(5))])
        self.assertEqual((self.lost, self.spool.waiting), (5.0, 1))
        self.assertEqual(self.rows("SELECT number FROM entry"), [(6,)])


class RoundTripTests(SynchronousTestCase):
    """Entries as rows and back, to the last bit."""

    floats = st.floats(allow_nan=False)
    zones = st.sampled_from(
        [
            UTC,
            timezone(timedelta(hours=9)),
            BERLIN,
            *map(ZoneInfo, ("America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Chatham", "Asia/Seoul")),
        ]
    )
    # Some wall times do not exist, and some folds are of times that do not repeat.
    times = st.builds(
        lambda time, fold: time.replace(fold=fold),
        st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - gets its zone below
        st.integers(0, 1),
    ) | st.sampled_from(
        [
            datetime(2025, 10, 26, 2, 30, 0, 5, fold=1),  # noqa: DTZ001
            datetime(2025, 10, 26, 2, 30, 0, 5),  # noqa: DTZ001
            datetime(2025, 3, 30, 2, 30),  # noqa: DTZ001
            datetime(2018, 11, 4),  # noqa: DTZ001
            datetime(2018, 2, 17, 23, fold=1),  # noqa: DTZ001
        ]
    )
    names = st.sampled_from(["M", "진동 1", "a.b-c_d:e"])
    buckets = st.builds(
        Bucket,
        st.integers(0, 2**70),
        st.integers(0, 10**4),
        *[floats] * 7,
        st.just("2025-12-18 10:11:12"),
        floats,
        st.sampled_from(["", "2025-12-18 10:11:12"]),
    )
    modes = st.sampled_from(["ABS", "REAL"])
    entries = st.one_of(
        st.builds(ClosedHour, names, names, times, buckets, modes, st.none() | st.integers(0, 2**62), st.booleans()),
        st.builds(ClosedPeriod, st.sampled_from(PERIODS), names, names, times, modes, st.booleans()),
        st.builds(Fault, names, floats, floats, times),
        st.builds(Sighting, names, names, st.text(st.characters(codec="utf-8"))),
    )

    @given(entry=entries, zone=zones)
    @settings(deadline=None, max_examples=500)
    def test_an_entry_reads_back_to_the_last_bit(self, entry: Any, zone: tzinfo) -> None:
        for name in {"start", "received_at"} & set(type(entry).__slots__):
            entry = replace(entry, **{name: getattr(entry, name).replace(tzinfo=zone)})
        row = codec.row_of(entry)
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            # Through SQLite, which has its own types.
            row = connection.execute("SELECT " + ", ".join("?" * len(row)), row).fetchone()
        self.assertEqual(exactly(codec._entry_of((1, *row), zone)), exactly(entry))

    def test_infinities(self) -> None:
        entry = hour(NOON)
        entry.bucket.squares = math.inf
        entry.bucket.least = -0.0
        row = codec.row_of(entry)
        self.assertEqual(exactly(codec._entry_of((1, *row), UTC)), exactly(entry))
        self.assertIn('"squares":Infinity', row[-1])

    def test_another_zone_in_the_configuration_moves_no_moment(self) -> None:
        start = datetime(2025, 10, 26, 2, tzinfo=BERLIN, fold=1)
        found = codec._entry_of((1, *codec.row_of(hour(start))), ZoneInfo("Asia/Seoul"))
        assert isinstance(found, ClosedHour)
        self.assertEqual((found.start.timestamp(), found.start.isoformat()), (start.timestamp(), start.isoformat()))


class BoundTests(SpoolCase):
    """A spool without space."""

    max_bytes = 100_000

    async def fill(self, entry: StoreEntry) -> int:
        """Append entries until one is given up; return the number of accepted ones."""
        before, lost = self.spool.waiting, self.lost
        while self.lost == lost:
            await self.append(*[entry] * 10)
        return self.spool.waiting - before

    async def test_at_the_bound_statistics_are_given_up_before_anomalies(self) -> None:
        cost = codec.row_of(hour(NOON))[-2]
        await self.append(fault(1.0))
        await self.fill(hour(NOON))
        used = self.spool._used
        self.assertTrue(90_000 - cost < used <= 90_000, used)
        await self.append(fault(2.0), hour(NOON), Sighting("M", "w", "VIB"), fault(3.0))
        self.assertEqual([type(entry) for entry in (await self.entries())[-3:]], [Fault, Sighting, Fault])
        self.assertEqual((await self.entries())[0], fault(1.0))
        await self.fill(fault(4.0))
        self.assertTrue(99_000 < self.spool._used <= 100_000)
        self.assertEqual(self.spool._used, self.rows("SELECT sum(cost) FROM entry")[0][0])
        # The same after a restart.
        waiting = self.spool.waiting
        await self.again()
        await self.append(*[fault(5.0)] * 10, *[hour(NOON)] * 10)
        self.assertLess(self.spool.waiting, waiting + 10)
        self.assertTrue(self.spool._used <= 100_000)

    async def test_given_up_entries_are_counted_logged_once_and_a_problem(self) -> None:
        with capturedLogs() as events:
            await self.fill(hour(NOON))
            await self.fill(hour(NOON))
            await self.append(fault(1.0))
        self.assertEqual([event["log_level"].name for event in events], ["error"])
        assert self.spool.problem is not None
        self.assertIn("database.spool_mb", self.spool.problem)
        lost = self.lost
        numbers = [number for number, _ in await self.spool.first(10**6)]
        # The spell does not end at the first free bytes.
        await self.spool.done(numbers[2])
        self.assertIsNotNone(self.spool.problem)
        await self.append(hour(NOON))
        self.assertEqual(self.lost, lost)
        with capturedLogs() as events:
            await self.spool.done(numbers[len(numbers) // 2])
            await self.append(hour(NOON))
        self.assertEqual([(event["log_level"].name, event["count"]) for event in events], [("info", lost)])
        self.assertEqual((self.spool.problem, self.lost), (None, lost))
        with capturedLogs() as events:
            await self.fill(hour(NOON))
        self.assertEqual([event["log_level"].name for event in events], ["error"])

    async def test_given_up_hours_change_no_mark(self) -> None:
        await self.spool.adopt(RollupProgress([]))
        await self.append(hour(NOON, 100))
        await self.fill(hour(NOON, 100, sensor="w"))
        before = await self.spool.rollup_progress()
        await self.append(*[hour(NOON + timedelta(days=40), 200)] * 10)
        self.assertEqual(comparable(await self.spool.rollup_progress()), comparable(before))

    async def test_an_entry_that_is_larger_than_the_bound(self) -> None:
        await self.append(Sighting("M", "v", "x" * 200_000), fault(1.0))
        self.assertEqual(await self.entries(), [fault(1.0)])
        self.assertEqual((self.lost, self.spool.problem), (1.0, None))


class DiskTests(SpoolCase):
    """A spool on a full or faulty disk."""

    async def limit(self, pages: int) -> None:
        """Set the number of pages at which the disk is full."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        writer = self.spool._writer
        assert writer is not None
        await writer.run(job)

    async def test_space_is_reused(self) -> None:
        sizes = []
        entries = [hour(NOON + timedelta(hours=number), number) for number in range(1000)]
        for _ in range(4):
            while self.spool.problem is None:
                await self.spool.append(entries)
            sizes.append(self.size())
            while self.spool.waiting:
                found = await self.spool.first(500)
                await self.spool.done(found[-1][0])
            self.assertEqual(self.spool._used, 0)
        # The write-ahead log has up to 4 MB, and its index 32 KB.
        self.assertLess(max(sizes), 1.3 * self.max_bytes + 5 * MEGABYTE)
        self.assertLess(sizes[-1], 1.05 * sizes[1])

    async def test_space_is_reused_while_entries_always_wait(self) -> None:
        entries = [hour(NOON + timedelta(hours=number), number) for number in range(500)]
        await self.spool.append(entries * 4)
        size = (self.folder / SPOOL_FILE).stat().st_size
        for _ in range(40):
            await self.spool.append(entries)
            found = await self.spool.first(500)
            await self.spool.done(found[-1][0])
        self.assertLess((self.folder / SPOOL_FILE).stat().st_size, 2 * max(size, MEGABYTE))

    async def test_full_disk_loses_only_entries(self) -> None:
        await self.spool.adopt(RollupProgress([]))
        await self.append(hour(NOON, 100), *(fault(score) for score in range(100)))
        await self.limit(1)
        before = await self.spool.rollup_progress(), await self.entries()
        with capturedLogs() as events:
            for _ in range(3):
                await self.append(hour(NOON + timedelta(hours=1), 200), *[fault(1.0)] * 500)
        self.assertEqual([event["log_level"].name for event in events], ["error"])
        self.assertEqual((self.lost, self.spool.waiting), (3 * 501.0, 101))
        assert self.spool.problem is not None
        self.assertIn("full", self.spool.problem)
        self.assertEqual((await self.spool.rollup_progress(), await self.entries()), before)
        self.assertEqual(self.spool._used, self.rows("SELECT sum(cost) FROM entry")[0][0])
        await self.limit(10**6)
        with capturedLogs() as events:
            await self.append(fault(7.0))
        self.assertEqual([(event["log_level"].name, event["count"]) for event in events], [("info", 1503)])
        self.assertEqual((self.spool.problem, self.lost, self.spool.waiting), (None, 1503.0, 102))

    async def test_a_file_that_was_removed(self) -> None:
        (self.folder / SPOOL_FILE).unlink()
        await self.append(fault(1.0))
        self.assertEqual((self.lost, self.spool.waiting), (1.0, 0))
        self.assertIn("removed or replaced", str(self.spool.problem))
        for attempt in (
            ensureDeferred(self.spool.first(1)),
            ensureDeferred(self.spool.done(1)),
            ensureDeferred(self.spool.reserve(1)),
            ensureDeferred(self.spool.rollup_progress()),
        ):
            with self.assertRaises(StoreUnavailable):
                await attempt

    async def test_any_error_of_the_file_is_unavailable(self) -> None:
        def job(_: sqlite3.Connection) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        with self.assertRaisesRegex(StoreUnavailable, "malformed"):
            await self.spool._run(job)

    async def test_a_spool_that_is_closed(self) -> None:
        for _ in range(2):
            await self.spool.close()
        await self.append(fault(1.0))
        self.assertEqual(self.lost, 1.0)
        self.spool = self.open()

    async def test_files_that_are_not_a_spool(self) -> None:
        await self.append(*[hour(NOON)] * 1000)
        await self.spool.close()
        path = self.folder / SPOOL_FILE
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[8192 : 8192 + 20 * 4096] = random.Random(1).randbytes(20 * 4096)
        # A page that opening does not read.
        ((root,),) = self.rows("SELECT rootpage FROM sqlite_master WHERE name = 'mark'")
        elsewhere = bytearray(whole)
        elsewhere[(root - 1) * 4096 + 8 : root * 4096] = random.Random(2).randbytes(4088)
        texts = b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000
        for content in (*texts, bytes(damaged), bytes(elsewhere), whole[: len(whole) // 2]):
            path.write_bytes(content)
            with self.assertRaisesRegex(StoreUnavailable, f"^{SPOOL_FILE}: .+"):
                self.open()
        path.write_bytes(whole)
        self.spool = self.open()
        self.assertEqual(self.spool.waiting, 1000)

    async def test_a_file_of_a_later_version_and_a_directory_that_is_missing(self) -> None:
        await self.spool.close()
        self.rows("PRAGMA user_version = 99")
        with self.assertRaisesRegex(StoreUnavailable, "newer version.*at step 99.*up to 1;"):
            self.open()
        self.rows("PRAGMA user_version = 1")
        folder = self.folder.rename(self.folder.with_suffix(".gone"))
        with self.assertRaises(StoreUnavailable):
            self.open()
        folder.rename(self.folder)
        self.spool = self.open()


class ProgressTests(SpoolCase):
    """Progress of statistics."""

    async def state(self, sensor: str = "v") -> SensorState:
        standing = await self.spool.rollup_progress()
        assert standing is not None
        (state,) = [state for state in standing.sensors if (state.machine, state.sensor) == ("M", sensor)]
        return state

    async def test_progress_before_adopt_is_unknown(self) -> None:
        await self.append(hour(NOON, 1))
        for _ in range(2):
            self.assertIsNone(await self.spool.rollup_progress())
            await self.again()
        await self.spool.adopt(RollupProgress([]))
        for _ in range(2):
            self.assertEqual((await self.state()).days, {DAY: DayMark(NOON, 1)})
            await self.again()

    async def test_adopt_replaces_the_progress(self) -> None:
        await self.append(hour(NOON, 1, "old"), Sighting("M", "w", "TEMP"))
        await self.empty()
        one = SensorState(
            "M",
            "v",
            "VIB",
            {DAY: DayMark(NOON, 70), DAY - timedelta(days=1): DayMark(NOON - timedelta(days=1), None)},
            [("day", start_of("day", NOON)), ("month", start_of("month", NOON)), ("year", start_of("year", NOON))],
        )
        other = SensorState("N", "v", None)
        await self.spool.adopt(RollupProgress([one, other]))
        for _ in range(2):
            self.assertEqual(comparable(await self.spool.rollup_progress()), comparable(RollupProgress([one, other])))
            await self.again()
        # Yesterday is closed; a further hour does not open it again.
        await self.append(hour(NOON - timedelta(days=1), 90))
        self.assertEqual((await self.state()).open, one.open)

    async def test_adopt_adds_waiting_entries(self) -> None:
        await self.append(hour(NOON, 70), Sighting("M", "v", "VIB"), end("day", NOON))
        opened = [(period, start_of(period, NOON)) for period in PERIODS[1:]]
        stale = SensorState("M", "v", "TEMP", {DAY: DayMark(NOON - timedelta(hours=1), 60)}, opened)
        await self.spool.adopt(RollupProgress([stale]))
        state = await self.state()
        self.assertEqual((state.type, state.days), ("VIB", {DAY: DayMark(NOON, 70)}))
        self.assertEqual([period for period, _ in state.open], ["month", "year"])

    async def test_adopt_of_unreadable_machines_fails(self) -> None:
        await self.spool.adopt(RollupProgress([SensorState("M", "v", "VIB")]))
        with self.assertRaises(ValueError):
            await self.spool.adopt(RollupProgress([], frozenset({"N"})))
        self.assertEqual((await self.state()).type, "VIB")

    async def test_old_marks_are_removed_and_the_last_ones_stay(self) -> None:
        await self.spool.adopt(RollupProgress([]))
        await self.append(hour(NOON, 1, "once"))
        day = NOON
        for _ in range(60):
            await self.append(hour(day, 5), end("day", day))
            day += timedelta(days=1)
            self.wall = day.timestamp()
        state = await self.state()
        # The first mark of a day removes those of more than ten days before.
        self.assertEqual(min(state.days), (day - timedelta(days=11)).date())
        self.assertEqual(len(state.days), 11)
        self.assertEqual((await self.state("once")).days, {DAY: DayMark(NOON, 1)})
        closed = self.rows("SELECT count(*) FROM period WHERE closed AND period = 'day' AND sensor = 'v'")
        self.assertLessEqual(closed[0][0], 12)
        # Of a sensor that sends once a week, the last marks stay at any age.
        for _ in range(20):
            await self.append(hour(day, 5, "weekly"))
            day += timedelta(days=7)
            self.wall = day.timestamp()
        self.assertEqual(len((await self.state("weekly")).days), 10)

    async def test_hours_of_a_clock_that_was_ahead_displace_no_mark(self) -> None:
        await self.spool.adopt(RollupProgress([]))
        await self.append(hour(NOON, 70))
        ahead = NOON.replace(year=2027)
        for number in range(150):
            start = ahead + timedelta(hours=number)
            self.wall = start.timestamp()
            await self.append(hour(start, number))
        self.wall = NOON.timestamp()
        await self.append(hour(NOON + timedelta(hours=1), 90))
        self.assertEqual((await self.state()).days[DAY], DayMark(NOON + timedelta(hours=1), 90))

    async def test_closed_months_and_years_are_removed_with_their_days(self) -> None:
        await self.spool.adopt(RollupProgress([]))
        day = NOON
        while day.year < 2028:
            self.wall = day.timestamp()
            after = day + timedelta(days=1)
            over = [end(period, day) for period in PERIODS[1:] if start_of(period, day) != start_of(period, after)]
            await self.append(hour(day, 5), *over)
            day = after
        self.assertEqual((await self.state()).open, ())
        self.assertLess(self.rows("SELECT count(*) FROM period")[0][0], 20)


class EquivalenceTests(SpoolCase):
    """The spool has the same progress as the embedded store."""

    #: Times with long and short days, skipped and repeated midnights, and ends of months and years.
    windows = (
        ("Europe/Berlin", "2025-10-25 20:00:00"),
        ("Europe/Berlin", "2025-03-29 20:00:00"),
        ("UTC", "2025-12-30 12:00:00"),
        ("Asia/Seoul", "2026-02-27 12:00:00"),
        ("America/Sao_Paulo", "2018-02-16 12:00:00"),
        ("America/Sao_Paulo", "2018-11-02 12:00:00"),
        ("Australia/Lord_Howe", "2025-04-05 12:00:00"),
        ("Australia/Lord_Howe", "2025-10-04 12:00:00"),
        ("Pacific/Chatham", "2025-04-05 12:00:00"),
    )

    async def test_progress_equals_that_of_the_embedded_store(self) -> None:
        for number, (zone, begin) in enumerate(self.windows):
            for seed in range(2):
                await self.same(ZoneInfo(zone), datetime.fromisoformat(begin), random.Random(10 * number + seed))

    async def same(self, zone: ZoneInfo, begin: datetime, chance: random.Random) -> None:
        # Thousands of transactions would wait for a disk, which is not tested here.
        self.folder = new_folder(self, "spool", in_memory=True)
        await self.in_zone(zone)
        store = SqliteStore(reactor, WallClock(zone), self.counters, str(self.folder))
        store.open()
        self.addCleanup(store.close)
        # The progress is adopted at some time; later entries change it.
        adopted = chance.choice([0, 0, 5, 25])
        days: set[date] = set()
        for step, (now, entries) in enumerate(self.life(begin.replace(tzinfo=zone), chance)):
            days |= {entry.start.date() for entry in entries if isinstance(entry, ClosedHour)}
            asked = {("M", sensor): days for sensor in "vVw"}
            self.wall = now.timestamp()
            if step == adopted:
                await self.empty()
                await self.spool.adopt(await store.rollup_progress(asked, now))
            self.assertEqual(await store.write(entries), [])
            await self.append(*entries)
            if step >= adopted and chance.random() < 0.3:
                found = await self.spool.rollup_progress()
                self.assertEqual(comparable(found), comparable(await store.rollup_progress(asked, now)), (zone, step))
                await self.same_of_some(store, asked, now, chance)
            if chance.random() < 0.05:
                await self.again()

    async def same_of_some(
        self, store: SqliteStore, asked: dict[tuple[str, str], set[date]], now: datetime, chance: random.Random
    ) -> None:
        """For few days, the store finds only some open periods; the spool has these and more."""
        some = {key: {day for day in sorted(days) if chance.random() < 0.3} for key, days in asked.items()}
        mine = comparable(await self.spool.rollup_progress())
        for key, (kind, marks, opened) in comparable(await store.rollup_progress(some, now)).items():
            self.assertEqual(mine[key][0], kind)
            of_some = {day: mark for day, mark in mine[key][1].items() if day in some.get(key, ())}
            self.assertEqual(of_some, marks)
            self.assertLessEqual(set(opened), set(mine[key][2]))

    def life(self, start: datetime, chance: random.Random) -> Iterator[tuple[datetime, list[StoreEntry]]]:
        """Yield times and entries of some sensors, with a clock that is set back and periods that stay open."""
        hours: list[datetime] = [start_of("hour", start)]
        for _ in range(80):
            hours.append(end_of("hour", hours[-1]))
        open_periods: dict[str, set[tuple[str, datetime]]] = {sensor: set() for sensor in "vVw"}
        written: dict[str, list[datetime]] = {sensor: [] for sensor in "vVw"}
        where = 0
        while where < len(hours) - 1:
            entries: list[StoreEntry] = []
            now = hours[where]
            for sensor in "vVw":
                if chance.random() < 0.1:
                    entries.append(Sighting("M", sensor, chance.choice(["VIB", "TEMP"])))
                if chance.random() < 0.6:
                    raw_end = chance.choice([None, chance.randrange(10**6)])
                    # An hour that replaces another has a row, or is the last.
                    replaces = chance.random() < 0.1 and all(
                        now.timestamp() > each.timestamp() for each in written[sensor]
                    )
                    entries.append(hour(now, raw_end, sensor, replaces=replaces))
                    written[sensor].append(now)
                    open_periods[sensor] |= {(period, start_of(period, now)) for period in PERIODS[1:]}
                if written[sensor] and chance.random() < 0.05:
                    entries.append(hour(chance.choice(written[sensor]), chance.randrange(10**6), sensor, replaces=True))
                if chance.random() < 0.7:
                    # Days before months, months before years, as they end.
                    over = [each for each in open_periods[sensor] if each[1] != start_of(each[0], hours[where + 1])]
                    over.sort(key=lambda each: PERIODS.index(each[0]))
                    entries += [end(*each, sensor) for each in over]
                    open_periods[sensor] -= set(over)
                if chance.random() < 0.02:
                    entries.append(end("day", now - timedelta(days=50), sensor))
            yield now, entries
            where = max(0, where - chance.randrange(1, 30)) if chance.random() < 0.03 else where + 1


#: Appends and removes entries until it is killed, and reports each once it is durable.
APPENDING = """
import os, random, sys
from datetime import UTC, datetime, timedelta
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react
from gateway.timeseries.bucket import Bucket
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.model.entries import ClosedHour
from gateway.store.interface import RollupProgress
from gateway.store.spool.spool import Spool

start = datetime(2025, 12, 18, tzinfo=UTC)

def say(what, number):
    os.write(1, f"{what} {number}\\n".encode())

async def main(reactor, folder, first, seed):
    chance = random.Random(int(seed))
    spool = Spool(reactor, WallClock(UTC), Counters(), folder, 10**8)
    spool.open()
    index = int(first)

    async def append(entries):
        await spool.append(entries)
        say("appended", entries[-1].raw_end)

    if index == 0:
        await spool.adopt(RollupProgress([]))
    while True:
        together = []
        for _ in range(chance.randrange(1, 4)):
            count = chance.choice([1, 2, 50])
            entries = [
                ClosedHour("M", "v", start + timedelta(hours=n % 100), Bucket(1, 1, n / 3), "ABS", n)
                for n in range(index, index + count)
            ]
            index += count
            together.append(Deferred.fromCoroutine(append(entries)))
        await gatherResults(together)
        if chance.random() < 0.3:
            found = await spool.first(chance.randrange(1, 100))
            await spool.done(found[-1][0])
            say("done", found[-1][0])

react(lambda reactor, *args: Deferred.fromCoroutine(main(reactor, *args)), sys.argv[1:])
"""


class KillTests(SpoolCase):
    """A process that is killed while it writes."""

    async def test_appended_entries_survive_a_kill(self) -> None:
        await self.spool.close()
        chance = random.Random()
        #: Entry by number, over all kills.
        given: dict[int, int] = {}
        first = done = 0
        for _ in range(6):
            appended, said = self.kill(first, chance)
            done = max(done, said)
            self.spool = self.open()
            found = await self.spool.first(10**6)
            numbers = [number for number, _ in found]
            indexes = [raw_end_of(entry) for _, entry in found]
            # Ordered, complete and unique; the first waiting entry follows the removed ones.
            self.assertEqual(indexes, list(range(indexes[0], indexes[0] + len(indexes))))
            self.assertEqual(numbers, sorted(set(numbers)))
            self.assertGreater(numbers[0], done)
            self.assertGreaterEqual(indexes[-1], appended)
            for number, index in zip(numbers, indexes, strict=True):
                self.assertEqual(given.setdefault(number, index), index)
            # The progress is that of exactly these entries.
            standing = await self.spool.rollup_progress()
            assert standing is not None
            ((_, mark),) = [
                each for state in standing.sensors for each in state.days.items() if each[0] == self.day(indexes[-1])
            ]
            self.assertEqual(mark.raw_end, indexes[-1])
            first = indexes[-1] + 1
            await self.spool.close()
        self.spool = self.open()

    def day(self, index: int) -> date:
        return (datetime(2025, 12, 18, tzinfo=UTC) + timedelta(hours=index % 100)).date()

    def kill(self, first: int, chance: random.Random) -> tuple[int, int]:
        """Kill an appending process; return the last numbers that it reported as appended, and as done."""
        command: Sequence[str] = [
            sys.executable,
            "-c",
            APPENDING,
            str(self.folder),
            str(first),
            str(chance.random())[2:],
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 100))]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.0, 0.02))
            process.kill()
            lines += process.stdout.readlines()
        said = {"appended": [first - 1], "done": [0]}
        for line in lines:
            what, number = line.decode().split()
            said[what].append(int(number))
        self.assertGreater(len(said["appended"]), 1)
        return max(said["appended"]), max(said["done"])
