"""One suite for the interface of stores, which each backend passes, and tests of the embedded store."""

import contextlib
import math
import random
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from gateway.model.entries import Sighting, StoreEntry
from gateway.model.records import COMMIT_COLUMNS, Fault
from gateway.model.timestamps import wall_time
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.event_numbers import SEQ_BLOCK, EventNumberStore
from gateway.store.interface import (
    DayMark,
    IdempotencyConflict,
    IdempotencyKey,
    MeansQuery,
    PageRequest,
    RollupProgress,
    SensorState,
    Store,
    StoreUnavailable,
)
from gateway.store.postgres import queries as postgres_questions
from gateway.store.postgres.store import PostgresStore
from gateway.store.spool.spool import Spool
from gateway.store.sqlite import queries
from gateway.store.sqlite.store import SqliteStore
from gateway.store.sqlitefile.transactions import run_together
from gateway.timeseries.calendar import PERIODS, end_of, minutes_of, start_of
from tests.support.daemon import assert_same
from tests.support.entries import DAY, ENTRY, SEOUL, at, bucket_of, end, fault, hour, mean
from tests.support.postgres import ServerCase
from tests.support.reactor import reactor
from tests.support.trial import new_folder

if TYPE_CHECKING:
    _Case = TestCase
else:
    _Case = object


class StoreSuite(_Case):
    """Tests of every backend; a TestCase beside it opens the store."""

    wall = 1_000_000.0
    zone: tzinfo = UTC
    store: Store
    numbers: EventNumberStore

    def open(self) -> Store:
        raise NotImplementedError

    def committed(self) -> list[dict[str, Any]]:
        """Return the rows of ``scale_weight_log``, read without the store."""
        raise NotImplementedError

    async def again(self) -> None:
        """Close the store and open it again."""
        await self.store.close()
        self.store = self.open()

    def clock(self) -> WallClock:
        return WallClock(self.zone, lambda: self.wall, lambda: self.wall)

    async def items(self, period: str, machine: str, start: date, end: date, **asked: Any) -> list[dict[str, Any]]:
        """Return the items of all pages."""
        page = await self.store.means(MeansQuery(period, machine, start, end, **asked))
        items = page.items
        while page.after is not None:
            page = await self.store.means(
                MeansQuery(period, machine, start, end, **asked), PageRequest(after=page.after)
            )
            items += page.items
        return items

    async def anomalies(self, machine: str | None, start: date = DAY, end: date = DAY) -> list[dict[str, Any]]:
        """Return the items of all pages."""
        page = await self.store.anomalies(machine, start, end)
        items = page.items
        while page.after is not None:
            page = await self.store.anomalies(machine, start, end, PageRequest(page.after))
            items += page.items
        return items

    async def write(self, *entries: StoreEntry) -> None:
        self.assertEqual(await self.store.write(entries), [])
        await self.written()

    async def written(self) -> None:
        """Wait until the store has written the entries, if it does so later."""

    # -- commits

    async def test_commit_writes_a_row(self) -> None:
        result = await self.store.commit(ENTRY, None)
        self.assertEqual(
            result.answer,
            {
                "ok": True,
                "id": 1,
                "cylinder_no": "CY1",
                "event_type": "SHIP",
                "gross_kg": 53.26,
                "committed_at": "2025-12-18T10:11:13+09:00",
            },
        )
        (row,) = self.committed()
        self.assertEqual(Decimal(str(row["gross_kg"])), ENTRY.gross_kg)
        self.assertEqual(row["arrival_shipping_no"], "AS1")
        self.assertIsNone(row["move_report_no"])
        self.assertEqual(row["raw_line"], ENTRY.raw_line)

    async def test_commit_with_a_used_key_after_a_restart_gives_the_first_answer(self) -> None:
        key = IdempotencyKey("k", "f")
        self.assertIsNone(await self.store.replay(key))
        first = await self.store.commit(ENTRY, key)
        await self.again()
        other = replace(ENTRY, gross_kg=Decimal("1.00"))
        second = await self.store.commit(other, key)
        self.assertEqual((second.answer, second.commit), (first.answer, None))
        self.assertEqual(await self.store.replay(key), first.answer)
        self.assertEqual(len(self.committed()), 1)

    async def test_commit_with_a_key_of_another_request_is_a_conflict(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        for attempt in (
            ensureDeferred(self.store.commit(ENTRY, IdempotencyKey("k", "g"))),
            ensureDeferred(self.store.replay(IdempotencyKey("k", "g"))),
        ):
            with self.assertRaises(IdempotencyConflict):
                await attempt
        self.assertEqual(len(self.committed()), 1)

    async def test_concurrent_commits_with_one_key_write_one_row(self) -> None:
        results = await gatherResults(
            [ensureDeferred(self.store.commit(ENTRY, IdempotencyKey("k", "f"))) for _ in range(50)]
        )
        self.assertEqual({result.answer["id"] for result in results}, {1})
        self.assertEqual(sum(result.commit is not None for result in results), 1)
        self.assertEqual(len(self.committed()), 1)

    async def test_conflict_undoes_no_other_commit(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        waiting = [ensureDeferred(self.store.commit(replace(ENTRY, cylinder_no=f"CY{n}"), None)) for n in range(10)]
        conflict = ensureDeferred(self.store.commit(ENTRY, IdempotencyKey("k", "g")))
        waiting += [ensureDeferred(self.store.commit(replace(ENTRY, cylinder_no=f"CZ{n}"), None)) for n in range(10)]
        with self.assertRaises(IdempotencyConflict):
            await conflict
        await gatherResults(waiting)
        self.assertEqual(len(self.committed()), 21)

    async def test_key_expires_after_two_days_not_after_one(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        self.wall += 25 * 3600
        await self.store.commit(ENTRY, IdempotencyKey("other", "f"))
        self.assertIsNotNone(await self.store.replay(IdempotencyKey("k", "f")))
        self.wall += 24 * 3600
        await self.store.commit(ENTRY, IdempotencyKey("third", "f"))
        self.assertIsNone(await self.store.replay(IdempotencyKey("k", "f")))
        self.assertIsNotNone(await self.store.replay(IdempotencyKey("other", "f")))

    async def test_closed_store_is_unavailable(self) -> None:
        await self.store.close()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)
        self.store = self.open()

    # -- machines

    async def test_empty_store_has_no_data(self) -> None:
        self.assertEqual(await self.store.machines(), [])
        self.assertEqual(await self.items("hour", "M", DAY, DAY), [])
        self.assertEqual(await self.anomalies("M"), [])
        self.assertEqual(await self.anomalies(None), [])

    async def test_a_machine_has_data_from_its_first_samples_on(self) -> None:
        await self.write(Sighting("나", "v", "VIB"), Sighting("가", "v", "VIB"))
        self.assertEqual(await self.store.machines(), ["가", "나"])
        self.assertEqual(await self.items("hour", "가", DAY, DAY), [])

    async def test_means_by_sensor_and_time_both_days_inclusive(self) -> None:
        await self.write(
            mean("b", "2025-12-18 11:00:00", 1.0),
            mean("a", "2025-12-19 23:00:00", 2.0),
            mean("a", "2025-12-18 00:00:00", 3.0),
            mean("a", "2025-12-17 23:00:00", 4.0),
            mean("a", "2025-12-20 00:00:00", 5.0),
            mean("a", "2025-12-18 00:00:00", 6.0, machine="N"),
        )
        await self.again()
        self.assertEqual(
            await self.items("hour", "M", DAY, DAY + timedelta(days=1)),
            [
                {"name": "a_hour_avg", "time": "2025-12-18 00:00:00", "data": 3.0},
                {"name": "a_hour_avg", "time": "2025-12-19 23:00:00", "data": 2.0},
                {"name": "b_hour_avg", "time": "2025-12-18 11:00:00", "data": 1.0},
            ],
        )
        self.assertEqual(await self.items("hour", "M", DAY, DAY - timedelta(days=1)), [])
        self.assertEqual(len(await self.items("hour", "M", date.min, date.max)), 5)

    async def test_every_period(self) -> None:
        now = at("2025-12-18 10:00:00")
        await self.write(mean("a", "2025-12-18 10:00:00", 1.0), *(end(period, now, "a") for period in PERIODS[1:]))
        for period, time in zip(PERIODS, ("12-18 10", "12-18 00", "12-01 00", "01-01 00"), strict=True):
            (found,) = await self.items(period, "M", date(2025, 1, 1), DAY)
            self.assertEqual(found, {"name": f"a_{period}_avg", "time": f"2025-{time}:00:00", "data": 1.0})

    async def test_names_that_differ_by_case_or_are_reserved(self) -> None:
        sensors = ["Vib", "vib", "VIB", "sqlite_master", "SQLITE_x", 'quo"te', "진동 1", "a_hour", "v~2"]
        times = ["2025-12-18 10:00:00", "2025-12-18 11:00:00"]
        for index, sensor in enumerate(sensors):
            await self.write(Sighting("M", sensor, "VIB"), *(mean(sensor, time, float(index)) for time in times))
        await self.again()
        for index, sensor in enumerate(sensors):
            await self.write(mean(sensor, "2025-12-18 12:00:00", float(index)))
        found = await self.items("hour", "M", DAY, DAY)
        # No sensor's name has a tilde; this one shows the behaviour.
        for index, sensor in enumerate(sensors[:-1]):
            values = [item["data"] for item in found if item["name"] == f"{sensor}_hour_avg"]
            self.assertEqual([value for value in values if value == index], [float(index)] * 3, sensor)

    async def test_anomalies(self) -> None:
        await self.write(fault("M", 2), fault("N", 1), fault("M", 3, 2.5))
        expected = [
            {"name": "M", "time": "2025-12-18 10:11:02.000500", "score": 1.5, "threshold": 1.0},
            {"name": "M", "time": "2025-12-18 10:11:03.000500", "score": 2.5, "threshold": 1.0},
        ]
        self.assertEqual(await self.anomalies("M"), expected)
        everything = await self.anomalies(None)
        self.assertEqual(
            [(item["name"], item["time"][17:19]) for item in everything], [("M", "03"), ("M", "02"), ("N", "01")]
        )
        self.assertEqual(await self.anomalies(None, DAY - timedelta(days=2), DAY - timedelta(days=1)), [])

    async def test_pages_of_anomalies(self) -> None:
        """Many anomalies have one time, so that pages end among them."""
        chance = random.Random(5)
        start = datetime(2025, 12, 18, 10, tzinfo=SEOUL)
        faults = [
            Fault(chance.choice("LMN"), 2.0 + number, 1.0, start + timedelta(seconds=min(chance.randrange(30), 20)))
            for number in range(25_000)
        ]
        await self.write(*faults)
        expected = [{**each.payload(), "time": wall_time(each.received_at, "microseconds")} for each in faults]
        for machine in "LMN":
            its = sorted((item for item in expected if item["name"] == machine), key=lambda item: item["time"])
            assert_same(await self.anomalies(machine), its)
        # Anomalies of one time are ordered by machine, the last written first.
        by_machine = sorted(expected, key=lambda item: (item["name"], -item["score"]))
        newest = sorted(by_machine, key=lambda item: item["time"], reverse=True)
        assert_same(await self.anomalies(None), newest)
        page = await self.store.anomalies(None, DAY, DAY)
        self.assertEqual(len(page.items), 10_000)
        self.assertEqual(await self.anomalies(None, DAY - timedelta(days=9), DAY - timedelta(days=1)), [])

    async def test_pages_of_anomalies_of_any_size(self) -> None:
        await self.write(*(fault(machine, second % 4, 2.0 + second) for second in range(12) for machine in "NML"))
        of_one, of_all = await self.anomalies("M"), await self.anomalies(None)
        self.assertEqual([item["time"][17:19] for item in of_one], [f"0{n // 3}" for n in range(12)])
        self.assertEqual(
            [(item["time"][17:19], item["name"], item["score"] - 2) for item in of_all],
            # Of one time and machine, the last written comes first.
            [(f"0{3 - n // 9}", "LMN"[n % 9 // 3], 3 - n // 9 + 4 * (2 - n % 3)) for n in range(36)],
        )
        for size in (1, 2, 3, 5, 12, 35, 36):
            self.small_pages(size)
            self.assertEqual(await self.anomalies("M"), of_one, size)
            self.assertEqual(await self.anomalies(None), of_all, size)

    async def test_anomalies_that_come_between_pages_shift_no_others(self) -> None:
        self.small_pages(3)
        await self.write(*(fault("M", second) for second in range(10, 20)))
        before = await self.anomalies(None)
        page = await self.store.anomalies(None, DAY, DAY)
        items = page.items
        while page.after is not None:
            await self.write(fault("M", 30), fault("A", 30))
            page = await self.store.anomalies(None, DAY, DAY, PageRequest(page.after))
            items += page.items
        self.assertEqual(items, before)

    async def test_invalid_machine_names_have_no_data(self) -> None:
        await self.write(fault("M", 1))
        for name in ("", ".", "..", "../M", "m\0", "x" * 300, "\ud800"):
            self.assertEqual(await self.items("hour", name, DAY, DAY), [], name)
            self.assertEqual(await self.anomalies(name), [], name)

    # -- statistics

    zone_of_berlin = ZoneInfo("Europe/Berlin")

    def small_pages(self, size: int) -> None:
        """Set the maximum number of items of a page."""
        raise NotImplementedError

    async def in_zone(self, zone: tzinfo) -> None:
        self.zone = zone
        await self.again()

    async def detail(self, period: str = "hour", sensor: str = "v") -> list[dict[str, Any]]:
        """Return all items of machine M with details."""
        found = await self.items(period, "M", date.min, date.max, detail=True)
        return [item for item in found if item["name"] == f"{sensor}_{period}_avg"]

    async def progress(self, now: datetime | None = None) -> RollupProgress:
        """Return the progress of statistics, with every day of the month of the tests."""
        days = [date(2025, 12, day) for day in range(1, 32)]
        asked = {("M", sensor): days for sensor in ("v", "V", "w")}
        return await self.store.rollup_progress(asked, now or datetime(2025, 12, 20, 12, tzinfo=self.clock().zone))

    async def state(self, sensor: str = "v") -> SensorState:
        (state,) = [
            state for state in (await self.progress()).sensors if (state.machine, state.sensor) == ("M", sensor)
        ]
        return state

    async def test_an_hour_in_detail(self) -> None:
        await self.write(hour("v", at("2025-12-18 10:00:00"), [1.0, -3.0, 5.0, 5.0]))
        await self.again()
        expected = {"name": "v_hour_avg", "time": "2025-12-18 10:00:00", "data": 2.0}
        self.assertEqual(await self.items("hour", "M", DAY, DAY), [expected])
        expected |= {"count": 4, "min": -3.0, "min_time": "2025-12-18 10:01:00", "max": 5.0}
        expected |= {"max_time": "2025-12-18 10:02:00", "coverage": 4 / 60}
        expected |= {"rms": math.sqrt(15.0), "std": math.sqrt(11.0), "start": "2025-12-18T10:00:00+00:00"}
        self.assertEqual(await self.items("hour", "M", DAY, DAY, detail=True), [expected])

    async def test_mean_depends_on_the_type(self) -> None:
        await self.write(
            hour("v", at("2025-12-18 10:00:00"), [1.0, -3.0], "ABS"),
            hour("v", at("2025-12-18 11:00:00"), [-3.0], "REAL"),
            end("day", at("2025-12-18 10:00:00"), mode="ABS"),
            end("month", at("2025-12-18 10:00:00"), mode="REAL"),
        )
        self.assertEqual([item["data"] for item in await self.detail("hour")], [2.0, -3.0])
        self.assertEqual([item["data"] for item in await self.detail("day")], [7.0 / 3])
        self.assertEqual([item["data"] for item in await self.detail("month")], [-5.0 / 3])

    async def test_hour_closed_twice_has_all_samples_in_one_row(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.0, 2.0, 3.0]))
        await self.write(hour("v", start + timedelta(hours=1), [9.0]))
        await self.again()
        await self.write(hour("v", start, [4.0, -10.0]))
        (first, second) = await self.detail()
        self.assertEqual((first["count"], first["data"], first["max"], first["min"]), (5, 0.0, 4.0, -10.0))
        self.assertEqual((first["coverage"], first["rms"]), (5 / 60, math.sqrt(26.0)))
        self.assertEqual((second["count"], second["data"]), (1, 9.0))

    async def test_hour_closed_twice_with_a_sum_beyond_a_double_keeps_the_first(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.7e308]))
        await self.write(hour("v", start, [1.7e308], raw_end=7), fault("M", 1), end("day", start))
        (found,) = await self.detail()
        self.assertEqual((found["count"], found["data"]), (1, 1.7e308))
        self.assertEqual((found["rms"], found["std"]), (None, 0.0))
        self.assertEqual((await self.state()).days[DAY].raw_end, 7)
        self.assertEqual(len(await self.anomalies("M")), 1)

    async def test_day_beyond_a_double_affects_no_other(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(
            hour("v", start, [1.7e308]),
            hour("v", start + timedelta(hours=1), [-1.7e308]),
            hour("w", start, [1.0]),
            end("day", start, "v"),
            end("day", start, "w"),
            fault("M", 1),
        )
        self.assertEqual([item["name"] for item in await self.items("day", "M", DAY, DAY)], ["w_day_avg"])
        self.assertEqual(len(await self.anomalies("M")), 1)

    async def test_longer_periods_are_means_over_all_samples(self) -> None:
        """The samples cover a year in a zone with days of 23 and 25 hours, and two days of the next year."""
        await self.in_zone(self.zone_of_berlin)
        chance = random.Random(3)
        #: By period and start in seconds since 1970.
        samples: dict[str, dict[float, list[float]]] = {period: {} for period in PERIODS}
        entries: list[StoreEntry] = []
        start = at("2024-01-01 00:00:00", self.zone)
        while start.date() < date(2025, 1, 3):
            following = end_of("hour", start)
            # Both occurrences of the repeated hour have a row.
            if chance.random() < 0.7 or start.date() == date(2024, 10, 27):
                new = [chance.gauss(10.0, 1e5) * 10.0 ** chance.randrange(-8, 3) for _ in range(chance.randrange(1, 8))]
                entries.append(hour("v", start, new))
                for period in PERIODS:
                    samples[period].setdefault(start_of(period, start).timestamp(), []).extend(new)
            entries += [
                end(period, start) for period in PERIODS[1:] if start_of(period, start) != start_of(period, following)
            ]
            start = following
        await self.write(*entries)
        await self.again()
        # In the second year only hours and days have ended.
        for period in ("month", "year"):
            del samples[period][at("2025-01-01 00:00:00", self.zone).timestamp()]
        for period in PERIODS:
            found = await self.detail(period)
            for item, (began, values) in zip(found, samples[period].items(), strict=True):
                begin = datetime.fromtimestamp(began, self.zone)
                self.assertEqual(item["time"], wall_time(begin))
                self.assertEqual(item["data"], math.fsum(values) / len(values), (period, begin))
                self.assertEqual(item["count"], len(values))
                self.assertEqual((item["min"], item["max"]), (min(values), max(values)))
                squares = math.fsum(value * value for value in values) / len(values)
                self.assertAlmostEqual(item["rms"] / math.sqrt(squares), 1.0, places=14)
                # One sample a minute.
                self.assertEqual(item["coverage"], len(values) / minutes_of(period, begin))
            lengths = {minutes_of(period, datetime.fromtimestamp(began, self.zone)) for began in samples[period]}
            self.assertEqual(len(lengths), {"hour": 1, "day": 3, "month": 5, "year": 1}[period])

    async def test_day_is_computed_again_after_a_late_hour(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.0, 2.0]), end("day", start), end("month", start))
        await self.write(hour("v", start + timedelta(hours=1), [9.0]), end("day", start))
        await self.again()
        await self.write(hour("v", start, [8.0]), end("day", start))
        (day,) = await self.detail("day")
        self.assertEqual((day["data"], day["count"]), (5.0, 4))
        # The month and the year of the day are computed again with it.
        (month,) = await self.detail("month")
        self.assertEqual((month["data"], month["count"], month["coverage"]), (5.0, 4, 4 / (31 * 24 * 60)))

    async def test_day_has_only_its_own_hours(self) -> None:
        await self.write(
            *(hour("v", at(f"2025-12-{time}:00:00"), [value]) for time, value in (("17 23", 1.0), ("18 00", 2.0))),
            *(hour("v", at(f"2025-12-{time}:00:00"), [value]) for time, value in (("18 23", 4.0), ("19 00", 8.0))),
            hour("w", at("2025-12-18 10:00:00"), [100.0]),
            *(end("day", at(f"2025-12-{day} 10:00:00")) for day in (17, 18, 19)),
        )
        self.assertEqual([item["data"] for item in await self.detail("day")], [1.0, 3.0, 8.0])

    async def test_a_period_without_rows_has_none(self) -> None:
        await self.write(*(end(period, at("2025-12-18 10:00:00")) for period in PERIODS[1:]))
        for period in PERIODS:
            self.assertEqual(await self.detail(period), [])

    async def test_repeated_hour_has_two_rows(self) -> None:
        await self.in_zone(self.zone_of_berlin)
        first, second = (at("2025-10-26 02:00:00", self.zone, fold) for fold in (0, 1))
        await self.write(hour("v", first, [1.0, 1.0, 1.0]), hour("v", second, [5.0], raw_end=50))
        await self.again()
        # Further samples for each of them.
        await self.write(hour("v", first, [1.0], raw_end=60), end("day", first))
        found = await self.detail()
        self.assertEqual(
            [(item["time"], item["data"], item["count"]) for item in found],
            [("2025-10-26 02:00:00", 1.0, 4), ("2025-10-26 02:00:00", 5.0, 1)],
        )
        self.assertEqual([item["coverage"] for item in found], [4 / 60, 1 / 60])
        (day,) = await self.detail("day")
        self.assertEqual((day["data"], day["coverage"]), (1.8, 5 / (25 * 60)))
        await self.write(hour("v", second, [5.0, 5.0, 5.0]))
        self.assertEqual([item["count"] for item in await self.detail()], [4, 4])
        (state,) = (await self.store.rollup_progress({("M", "v"): [first.date()]}, second)).sensors
        self.assertEqual(state.days[first.date()].last.timestamp(), second.timestamp())

    async def test_coverage_is_of_the_hours_own_length(self) -> None:
        await self.in_zone(ZoneInfo("Australia/Lord_Howe"))
        await self.write(
            hour("v", start_of("hour", at("2025-04-06 01:10:00", self.zone)), [1.0] * 45),
            hour("v", start_of("hour", at("2025-10-05 02:40:00", self.zone)), [1.0] * 15),
        )
        found = await self.detail()
        self.assertEqual([item["coverage"] for item in found], [0.5, 0.5])
        self.assertEqual([item["time"] for item in found], ["2025-04-06 01:00:00", "2025-10-05 02:00:00"])

    async def test_coverage_is_never_more_than_all(self) -> None:
        # After the clock was set back, minutes are counted twice.
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.0] * 60), hour("v", start, [1.0] * 60))
        (found,) = await self.detail()
        self.assertEqual((found["count"], found["coverage"]), (120, 1.0))

    async def test_a_day_whose_midnight_is_skipped(self) -> None:
        await self.in_zone(ZoneInfo("America/Sao_Paulo"))
        start = at("2018-11-04 01:00:00", self.zone)
        await self.write(hour("v", start - timedelta(hours=2), [1.0]), hour("v", start, [2.0]), end("day", start))
        (day,) = await self.detail("day")
        self.assertEqual((day["time"], day["data"], day["coverage"]), ("2018-11-04 00:00:00", 2.0, 1 / (23 * 60)))

    # -- pages

    async def test_pages_have_the_items_of_one_large_page(self) -> None:
        await self.in_zone(self.zone_of_berlin)
        entries: list[StoreEntry] = []
        for sensor in ("a", "Vib", "vib", "z"):
            start = at("2025-10-26 00:00:00", self.zone)
            for number in range({"a": 6, "Vib": 5, "vib": 1, "z": 4}[sensor]):
                entries.append(hour(sensor, start, [float(number)]))
                start = end_of("hour", start)
        await self.write(*entries)
        for detail in (False, True):
            page = await self.store.means(
                MeansQuery("hour", "M", date(2025, 10, 26), date(2025, 10, 26), detail=detail)
            )
            self.assertIsNone(page.after)
            self.assertEqual(len(page.items), 16)
            self.assertEqual(
                [item["time"][11:13] for item in page.items if item["name"] == "a_hour_avg"],
                ["00", "01", "02", "02", "03", "04"],
            )
            for size in range(1, 18):
                self.small_pages(size)
                found: list[dict[str, Any]] = []
                after = None
                for _ in range(40):
                    part = await self.store.means(
                        MeansQuery("hour", "M", date(2025, 10, 26), date(2025, 10, 26), detail=detail),
                        PageRequest(after=after),
                    )
                    self.assertLessEqual(len(part.items), size)
                    found += part.items
                    after = part.after
                    if after is None:
                        break
                self.assertEqual(found, page.items, size)
            self.small_pages(10_000)

    async def test_rows_written_between_pages_hide_no_others(self) -> None:
        start = at("2025-12-18 00:00:00")
        await self.write(*(hour("v", start + timedelta(hours=number), [1.0]) for number in range(4)))
        self.small_pages(2)
        first = await self.store.means(MeansQuery("hour", "M", DAY, DAY))
        await self.write(hour("a", start, [1.0]), hour("v", start + timedelta(hours=4), [1.0]), hour("z", start, [1.0]))
        second = await self.store.means(MeansQuery("hour", "M", DAY, DAY), PageRequest(after=first.after))
        third = await self.store.means(MeansQuery("hour", "M", DAY, DAY), PageRequest(after=second.after))
        times = [item["time"][11:13] for page in (first, second, third) for item in page.items]
        self.assertEqual(times[:5], ["00", "01", "02", "03", "04"])

    async def test_next_page_of_a_removed_machine_is_empty(self) -> None:
        await self.write(hour("v", at("2025-12-18 00:00:00"), [1.0]))
        self.small_pages(1)
        page = await self.store.means(MeansQuery("hour", "M", DAY, DAY))
        gone = await self.store.means(MeansQuery("hour", "N", DAY, DAY), PageRequest(after=page.after))
        self.assertEqual((gone.items, gone.after), ([], None))

    # -- progress of statistics

    async def test_a_store_without_sensors(self) -> None:
        self.assertEqual(await self.progress(), RollupProgress([]))

    async def test_progress_has_the_last_type_of_a_sensor(self) -> None:
        await self.write(Sighting("M", "v", "TEMP"), Sighting("M", "w", "TEMP"), Sighting("N", "v", "RPM"))
        await self.write(Sighting("M", "v", "VIB"), Sighting("M", "v", "진동"))
        for _ in range(2):
            found = {(state.machine, state.sensor): state for state in (await self.progress()).sensors}
            self.assertEqual(
                {key: state.type for key, state in found.items()},
                {("M", "v"): "진동", ("M", "w"): "TEMP", ("N", "v"): "RPM"},
            )
            self.assertEqual([(list(state.open), dict(state.days)) for state in found.values()], [([], {})] * 3)
            await self.again()

    async def test_a_sensor_with_rows_and_without_a_type(self) -> None:
        await self.write(hour("v", at("2025-12-18 10:00:00"), [1.0]))
        state = await self.state()
        self.assertEqual((state.type, state.days), (None, {DAY: DayMark(at("2025-12-18 10:00:00"), None)}))

    async def test_progress_of_periods_with_hours_and_without_row_is_open(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(
            hour("v", start - timedelta(days=1), [1.0]),
            end("day", start - timedelta(days=1)),
            hour("v", start, [1.0]),
            hour("V", start - timedelta(days=40), [1.0]),
            *(end(period, start - timedelta(days=40), "V") for period in PERIODS[1:3]),
        )
        for _ in range(2):
            self.assertEqual(
                list((await self.state()).open),
                [
                    ("day", at("2025-12-18 00:00:00")),
                    ("month", at("2025-12-01 00:00:00")),
                    ("year", at("2025-01-01 00:00:00")),
                ],
            )
            self.assertEqual(list((await self.state("V")).open), [("year", at("2025-01-01 00:00:00"))])
            await self.again()

    async def test_progress_with_rows_of_the_future_has_earlier_periods(self) -> None:
        # The clock was ahead for some time.
        start = at("2025-12-18 10:00:00")
        ahead = [start.replace(year=2027) + timedelta(hours=number) for number in range(150)]
        await self.write(hour("v", start, [1.0], raw_end=70), *(hour("v", each, [1.0], raw_end=1) for each in ahead))
        state = await self.state()
        self.assertEqual(state.days, {DAY: DayMark(start, 70)})
        self.assertEqual(
            [(period, str(each)[:10]) for period, each in state.open],
            [
                ("day", "2025-12-18"),
                ("day", "2027-12-24"),
                ("month", "2025-12-01"),
                ("month", "2027-12-01"),
                ("year", "2025-01-01"),
                ("year", "2027-01-01"),
            ],
        )

    async def test_progress_has_the_counted_bytes_of_a_day(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(
            hour("v", start, [1.0], raw_end=100),
            hour("v", start + timedelta(hours=1), [1.0], raw_end=200),
            hour("v", start + timedelta(days=1), [1.0], raw_end=70),
        )
        for _ in range(2):
            self.assertEqual(
                (await self.state()).days,
                {
                    DAY: DayMark(start + timedelta(hours=1), 200),
                    date(2025, 12, 19): DayMark(start + timedelta(days=1), 70),
                },
            )
            await self.again()
        # The clock was set back: more bytes are counted, and the last hour is the same.
        await self.write(hour("v", start, [1.0], raw_end=300))
        self.assertEqual((await self.state()).days[DAY], DayMark(start + timedelta(hours=1), 300))

    async def test_progress_with_an_unknown_end(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.0], raw_end=100), hour("v", start + timedelta(hours=1), [1.0]))
        self.assertEqual((await self.state()).days[DAY], DayMark(start + timedelta(hours=1), None))
        # With a known end, all bytes before it are counted too.
        await self.write(hour("v", start + timedelta(hours=2), [1.0], raw_end=300))
        self.assertEqual((await self.state()).days[DAY], DayMark(start + timedelta(hours=2), 300))

    async def test_progress_of_an_hour_closed_twice_with_an_unknown_end(self) -> None:
        start = at("2025-12-18 10:00:00")
        await self.write(
            hour("v", start, [1.0], raw_end=100), hour("v", start + timedelta(hours=1), [1.0], raw_end=200)
        )
        await self.write(hour("v", start, [1.0]))
        # The later samples of the hour are behind the 200 bytes, and must not be counted again.
        self.assertEqual((await self.state()).days[DAY], DayMark(start + timedelta(hours=1), None))

    # -- event numbers

    async def test_event_numbers_are_never_reused(self) -> None:
        first = self.numbers.first_seq
        self.assertEqual(self.numbers.reserved, first - 1 + SEQ_BLOCK)
        await self.numbers.reserve(self.numbers.reserved + 5)
        # A number below the reservation changes nothing.
        await self.numbers.reserve(3)
        await self.again()
        self.assertEqual(self.numbers.first_seq, first + SEQ_BLOCK + 5)


class SqliteStoreTests(StoreSuite, TestCase):
    """The suite on the embedded store, and tests of its files."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "store")
        self.counters = Counters()
        self.store = self.open()

    async def tearDown(self) -> None:  # type: ignore[override]  # Trial awaits it
        await self.store.close()

    def open(self) -> SqliteStore:
        self.numbers = store = SqliteStore(reactor, self.clock(), self.counters, str(self.folder))
        store.open()
        return store

    async def test_a_file_of_a_machine_whose_name_is_not_allowed_is_logged_at_the_start(self) -> None:
        await self.store.close()
        for name in ("Press(1).db", "Press 2.db", "notes(1).txt"):
            (self.folder / name).touch()
        with capturedLogs() as events:
            self.store = self.open()
        lines = [formatEvent(event) for event in events]
        (line,) = [line for line in lines if "not served" in line]
        self.assertIn("'Press(1).db'", line)
        self.assertIn("is not served: not a valid machine name: '(' is not allowed; rename the file", line)
        self.assertEqual(await self.store.machines(), ["Press 2"])

    def committed(self) -> list[dict[str, Any]]:
        with sqlite3.connect(self.folder / "cynow-gateway.sqlite3") as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM scale_weight_log")]

    def old_rows(self, period: str, rows: Sequence[tuple[Any, Any]], sensor: str = "v") -> None:
        """Write rows of machine M as the old server did."""
        with contextlib.closing(sqlite3.connect(self.folder / "M.db")) as connection:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {sensor}_{period}_avg"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
            )
            connection.executemany(f"INSERT INTO {sensor}_{period}_avg (time, data) VALUES (?, ?)", rows)
            connection.commit()

    def small_pages(self, size: int) -> None:
        self.patch(queries, "PAGE", size)

    # -- databases of the old server

    def rows(self, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.folder / "M.db")) as connection:
            return connection.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()

    async def test_tables_of_the_old_server_get_columns_in_place(self) -> None:
        old = [("2025-12-18 08:00:00.000000", 1.0), ("2025-12-18 09:00:00", 2.0)]
        self.old_rows("hour", old)
        self.old_rows("day", [("2025-12-17 00:00:00", 3.0)])
        await self.write(hour("v", at("2025-12-18 10:00:00"), [4.0], raw_end=40))
        await self.again()
        await self.write(hour("v", at("2025-12-18 11:00:00"), [5.0], raw_end=50))
        with contextlib.closing(sqlite3.connect(self.folder / "M.db")) as connection:
            for period in PERIODS:
                columns = connection.execute(f"PRAGMA table_info(v_{period}_avg)").fetchall()
                self.assertEqual(
                    [column[1:3] for column in columns[:3]],
                    [("id", "INTEGER"), ("time", "TIMESTAMP"), ("data", "REAL")],
                )
                self.assertEqual("raw_end" in {column[1] for column in columns}, period == "hour")
        self.assertEqual(self.rows("v_hour_avg", "id, time, data")[:2], [(1, *old[0]), (2, *old[1])])
        self.assertEqual(
            self.rows("v_hour_avg", "id, time, data, count, raw_end")[2:],
            [(3, "2025-12-18 10:00:00", 4.0, 1, 40), (4, "2025-12-18 11:00:00", 5.0, 1, 50)],
        )
        found = await self.detail()
        self.assertEqual([item["data"] for item in found], [1.0, 2.0, 4.0, 5.0])
        self.assertEqual([item["count"] for item in found], [None, None, 1, 1])

    async def test_tables_still_work_with_the_old_server(self) -> None:
        # The old server names only its own columns.
        await self.write(hour("v", at("2025-12-18 10:00:00"), [4.0]))
        self.old_rows("hour", [("2025-12-18 11:00:00", 5.0)])
        self.assertEqual([item["data"] for item in await self.detail()], [4.0, 5.0])

    async def test_detail_of_a_table_that_has_no_further_columns(self) -> None:
        self.old_rows("hour", [("2025-12-18 10:00:00", 1.0)])
        (found,) = await self.detail()
        self.assertEqual((found["name"], found["time"], found["data"]), ("v_hour_avg", "2025-12-18 10:00:00", 1.0))
        further = {"count", "min", "min_time", "max", "max_time", "rms", "std", "coverage", "start"}
        self.assertEqual({name: found[name] for name in further}, dict.fromkeys(further))

    async def test_progress_after_the_old_server(self) -> None:
        await self.in_zone(self.zone_of_berlin)
        self.old_rows(
            "hour", [("2025-12-17 22:00:00", 1.0), ("2025-12-18 09:00:00.000000", 2.0), (None, 1.0), ("x", 1.0)]
        )
        self.old_rows("day", [("2025-12-17 00:00:00.000000", 1.0)])
        state = await self.state()
        self.assertEqual(state.type, None)
        self.assertNotIn(("day", at("2025-12-17 00:00:00", self.zone)), state.open)
        self.assertIn(("day", at("2025-12-18 00:00:00", self.zone)), state.open)
        self.assertEqual(
            state.days,
            {
                DAY: DayMark(at("2025-12-18 09:00:00", self.zone), None),
                date(2025, 12, 17): DayMark(at("2025-12-17 22:00:00", self.zone), None),
            },
        )

    async def test_first_hour_after_the_old_server_has_counted_bytes(self) -> None:
        self.old_rows("hour", [("2025-12-18 09:00:00", 2.0)])
        await self.write(hour("v", at("2025-12-18 10:00:00"), [4.0], raw_end=40))
        self.assertEqual((await self.state()).days, {DAY: DayMark(at("2025-12-18 10:00:00"), 40)})

    async def test_rows_of_the_old_server_stay(self) -> None:
        for period, times in (
            ("day", ["2025-12-17 00:00:00", "2025-12-18 00:00:00.000000"]),
            ("month", ["2025-12-01 00:00:00.000000"]),
            ("year", ["2025-01-01 00:00:00"]),
        ):
            self.old_rows(period, [(time, 7.0) for time in times])
        await self.write(*(hour("v", at(f"2025-12-{day} 10:00:00"), [1.0]) for day in (17, 18, 19)))
        for day in (17, 18, 19):
            await self.write(*(end(period, at(f"2025-12-{day} 10:00:00")) for period in PERIODS[1:]))
        self.assertEqual([item["data"] for item in await self.detail("day")], [7.0, 7.0, 1.0])
        for period in ("month", "year"):
            self.assertEqual([item["data"] for item in await self.detail(period)], [7.0])
            self.assertEqual(len(self.rows(f"v_{period}_avg")), 1)

    async def test_an_hour_of_the_old_server_stays_beside_what_came_after_it(self) -> None:
        self.old_rows("hour", [("2025-12-18 10:00:00", 7.0)])
        await self.write(hour("v", at("2025-12-18 10:00:00"), [1.0]), hour("v", at("2025-12-18 10:00:00"), [3.0]))
        self.assertEqual([item["data"] for item in await self.detail()], [7.0, 2.0])

    async def test_old_hours_weigh_as_full_ones_at_the_pace_of_the_others(self) -> None:
        self.old_rows("hour", [("2025-12-18 08:00:00", 10.0), ("2025-12-18 09:00:00.000000", 20.0)])
        # Half an hour at one sample a minute, and an hour of two minutes with three.
        start = at("2025-12-18 10:00:00")
        first = hour("v", start, [1.0] * 30)
        second = hour("v", start + timedelta(hours=1), [2.0, 4.0])
        second.bucket.merge(replace(bucket_of([6.0], start), minutes=0))
        await self.write(first, second, end("day", start))
        weight = 60 * 33 / 32
        (day,) = await self.detail("day")
        self.assertAlmostEqual(day["data"], (30.0 + 12.0 + weight * 30.0) / (33 + 2 * weight), places=12)
        self.assertEqual((day["count"], day["coverage"], day["min"]), (None, None, None))

    async def test_old_hours_and_magnitudes(self) -> None:
        self.old_rows("hour", [("2025-12-18 08:00:00", 3.0)])
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [-1.0] * 60, "ABS"), end("day", start, mode="ABS"))
        self.assertEqual([item["data"] for item in await self.detail("day")], [2.0])

    async def test_old_rows_only(self) -> None:
        self.old_rows(
            "hour", [("2025-12-18 08:00:00", 1.0), ("2025-12-18 09:00:00", 2.0), ("2025-12-18 10:00:00", None)]
        )
        await self.write(end("day", at("2025-12-18 10:00:00")))
        self.assertEqual([item["data"] for item in await self.detail("day")], [1.5])

    async def test_old_days_and_months_weigh_as_full_ones(self) -> None:
        self.old_rows("day", [("2025-12-17 00:00:00", 4.0)])
        self.old_rows("month", [("2025-11-01 00:00:00", 8.0)])
        start = at("2025-12-18 10:00:00")
        await self.write(hour("v", start, [1.0] * 40), *(end(period, start) for period in PERIODS[1:]))
        weight = 24 * 60
        (month,) = [item for item in await self.detail("month") if item["time"] == "2025-12-01 00:00:00"]
        self.assertAlmostEqual(month["data"], (40.0 + 4.0 * weight) / (40 + weight), places=12)
        # The month lost its count, so both months have the same weight.
        (year,) = await self.detail("year")
        self.assertAlmostEqual(year["data"], (month["data"] + 8.0) / 2, places=12)

    async def test_periods_of_old_rows_are_computed_again(self) -> None:
        self.old_rows("hour", [("2025-12-18 08:00:00", 1.0)])
        start = at("2025-12-18 10:00:00")
        await self.write(end("day", start))
        await self.write(hour("v", start, [3.0] * 60), end("day", start))
        await self.again()
        self.assertEqual([item["data"] for item in await self.detail("day")], [2.0])
        await self.write(hour("v", start + timedelta(hours=1), [5.0] * 60), end("day", start))
        self.assertEqual([item["data"] for item in await self.detail("day")], [3.0])
        self.assertEqual(len(self.rows("v_day_avg")), 1)

    async def test_old_rows_that_are_not_finite_affect_no_others(self) -> None:
        self.old_rows("hour", [("2025-12-18 08:00:00", math.inf), ("2025-12-18 09:00:00", -math.inf)])
        start = at("2025-12-18 10:00:00")
        await self.write(hour("w", start, [1.0]), end("day", start), end("day", start, "w"), fault("M", 1))
        self.assertEqual(self.counters.store_lost._value.get(), 0)
        self.assertEqual([item["data"] for item in await self.detail("day", "w")], [1.0])
        self.assertEqual(len(await self.anomalies("M")), 1)

    async def test_pages_of_rows_without_values(self) -> None:
        self.old_rows("hour", [(f"2025-12-18 {number:02}:00:00", None if number % 3 else 1.0) for number in range(20)])
        self.small_pages(2)
        found = await self.items("hour", "M", DAY, DAY)
        self.assertEqual([item["time"][11:13] for item in found], ["00", "03", "06", "09", "12", "15", "18"])

    async def test_types_wait_while_the_gateways_file_is_locked(self) -> None:
        other = self.other("cynow-gateway.sqlite3")
        entries: list[StoreEntry] = [Sighting("M", "v", "VIB"), fault("M", 1)]
        self.assertEqual(await self.store.write(entries), entries[:1])
        other.execute("ROLLBACK")
        other.close()
        # Entries that were written meanwhile stay.
        self.assertEqual(len(await self.anomalies("M")), 1)
        await self.write(entries[0])
        self.assertEqual((await self.state()).type, "VIB")

    def other(self, name: str) -> sqlite3.Connection:
        """Return a connection of another program that locks a file."""
        connection = sqlite3.connect(self.folder / name, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        return connection

    async def test_times_are_utc_as_django_keeps_them(self) -> None:
        await self.store.commit(ENTRY, None)
        (row,) = self.committed()
        self.assertEqual(row["received_at"], "2025-12-18 01:11:12.345678")

    async def test_a_locked_gateway_file(self) -> None:
        other = self.other("cynow-gateway.sqlite3")
        waiting = [ensureDeferred(self.store.commit(ENTRY, None)) for _ in range(3)]
        for each in waiting:
            with self.assertRaises(StoreUnavailable):
                await each
        other.execute("ROLLBACK")
        other.close()
        self.assertEqual(self.committed(), [])
        await self.store.commit(ENTRY, None)
        self.assertEqual(len(self.committed()), 1)

    async def test_locked_machine_delays_neither_commits_nor_other_machines(self) -> None:
        await self.write(fault("M", 1))
        other = self.other("M.db")
        writing = ensureDeferred(self.store.write([fault("M", 2), fault("N", 3), fault("M", 4)]))
        await self.store.commit(ENTRY, None)
        self.assertFalse(writing.called)
        again: Sequence[StoreEntry] = await writing
        self.assertEqual(again, [fault("M", 2), fault("M", 4)])
        other.execute("ROLLBACK")
        other.close()
        await self.write(*again)
        self.assertEqual(len(await self.anomalies("M")), 3)
        self.assertEqual(len(await self.anomalies("N")), 1)

    async def test_file_that_is_not_a_database_affects_only_its_machine(self) -> None:
        (self.folder / "M.db").write_bytes(b"nothing of the kind" * 1000)
        await self.write(fault("M", 1), fault("N", 1))
        self.assertEqual(self.counters.store_lost._value.get(), 1)
        with self.assertRaises(StoreUnavailable):
            await self.anomalies("M")
        self.assertEqual(len(await self.anomalies(None)), 1)

    async def test_a_directory_in_the_way_may_go_away(self) -> None:
        (self.folder / "M.db").mkdir()
        self.assertEqual(await self.store.write([fault("M", 1)]), [fault("M", 1)])
        (self.folder / "M.db").rmdir()
        await self.write(fault("M", 1))
        self.assertEqual(len(await self.anomalies("M")), 1)

    async def test_a_machine_that_is_locked_is_left_out_of_all(self) -> None:
        await self.write(fault("M", 1), fault("N", 1))
        await self.again()
        other = sqlite3.connect(self.folder / "M.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        self.assertEqual([item["name"] for item in await self.anomalies(None)], ["N"])
        with self.assertRaises(StoreUnavailable):
            await self.anomalies("M")
        other.close()

    async def test_machine_locked_during_a_page_is_left_out_of_further_pages(self) -> None:
        self.small_pages(2)
        await self.write(*(fault(machine, second) for second in range(3) for machine in "LM"))
        await self.again()
        other = sqlite3.connect(self.folder / "M.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with capturedLogs() as events:
            page = await self.store.anomalies(None, DAY, DAY)
            other.close()
            rest = await self.store.anomalies(None, DAY, DAY, PageRequest(page.after))
        self.assertEqual([item["name"] for item in page.items + rest.items], ["L"] * 3)
        self.assertEqual([event["machine"] for event in events if "leave out" in event["log_format"]], ["M"])
        self.assertEqual(len(await self.anomalies(None)), 6)

    async def test_newest_anomalies_of_a_closing_store_are_unavailable(self) -> None:
        await self.write(fault("M", 1))
        self.store._machines.stop()  # type: ignore[attr-defined]  # as close() does first
        with self.assertRaises(StoreUnavailable):
            await self.anomalies(None)

    def old_anomalies(self, *times: Any) -> None:
        """Write rows of machine M as the old server did."""
        with contextlib.closing(sqlite3.connect(self.folder / "M.db")) as connection, connection:
            connection.execute(
                "CREATE TABLE anomaly"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
            )
            connection.executemany(
                "INSERT INTO anomaly (time, threshold, score) VALUES (?, 1.0, 2.0)", ((time,) for time in times)
            )

    async def test_anomalies_of_the_old_server(self) -> None:
        self.old_anomalies("2025-12-18 10:00:00", 20251218, None, b"2025-12-18", "2025-12-18", "2025-12-18 9", 2.5)
        for _ in range(2):
            for size in (1, 2, 10):
                self.small_pages(size)
                times = [item["time"] for item in await self.anomalies("M")]
                self.assertEqual(times, ["2025-12-18", "2025-12-18 10:00:00", "2025-12-18 9"])
                self.assertEqual([item["time"] for item in await self.anomalies(None)], times[::-1])
            # The same with an index.
            await self.write(Sighting("M", "v", "VIB"))

    async def test_an_index_gives_pages_of_anomalies_their_order(self) -> None:
        self.old_anomalies("2025-12-18 10:00:00")
        await self.write(fault("M", 1), fault("N", 1))
        for machine in "MN":
            with contextlib.closing(sqlite3.connect(self.folder / f"{machine}.db")) as connection:
                asked: list[str] = []
                connection.set_trace_callback(asked.append)
                queries.anomalies(connection, ("2025", "2026"), ("2025", queries.BEFORE_IDS))
                queries.newest_anomalies(connection, "2025", ("2026", queries.BEHIND_IDS))
                connection.set_trace_callback(None)
                plans = [
                    [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in asked
                ]
            search = "SEARCH anomaly USING INDEX anomaly_time (time>? AND time<?)"
            self.assertEqual([plan[0] for plan in plans], [search] * 2, machine)
            # Only rows of one time may be sorted.
            self.assertNotIn("USE TEMP B-TREE FOR ORDER BY", plans[0] + plans[1], machine)

    async def test_table_of_anomalies_of_another_program(self) -> None:
        with contextlib.closing(sqlite3.connect(self.folder / "M.db")) as connection:
            connection.execute("CREATE TABLE anomaly (text TEXT)")
        await self.write(mean("v", "2025-12-18 10:00:00", 1.0))
        self.assertEqual(len(await self.items("hour", "M", DAY, DAY)), 1)
        self.assertEqual(await self.anomalies("M"), [])
        self.assertEqual(await self.anomalies(None), [])

    async def test_removed_directory(self) -> None:
        folder = self.folder.rename(self.folder.with_suffix(".gone"))
        with self.assertRaises(StoreUnavailable):
            await self.store.machines()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)
        folder.rename(self.folder)
        await self.store.commit(ENTRY, None)
        self.assertEqual(len(self.committed()), 1)

    async def test_commit_into_a_removed_file_is_refused(self) -> None:
        await self.store.commit(ENTRY, None)
        (self.folder / "cynow-gateway.sqlite3").unlink()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)

    async def test_rows_of_the_old_server_with_fractions_and_without_values(self) -> None:
        self.old_rows("hour", [("2025-12-18 10:00:00.000000", 1.0), ("2025-12-18 11:00:00", b"\0"), (None, 1.0)])
        self.old_rows("hour", [("2025-12-18 12:00:00", None)])
        expected = [{"name": "v_hour_avg", "time": "2025-12-18 10:00:00", "data": 1.0}]
        self.assertEqual(await self.items("hour", "M", DAY, DAY), expected)
        # The same after the tables got the added columns.
        await self.write(Sighting("M", "v", "VIB"))
        self.assertEqual(await self.items("hour", "M", DAY, DAY), expected)

    async def test_removed_file_of_a_machine_is_created_again(self) -> None:
        await self.write(fault("M", 1))
        (self.folder / "M.db").unlink()
        await self.write(fault("M", 2), mean("v", "2025-12-18 10:00:00", 1.0))
        self.assertEqual(len(await self.anomalies("M")), 1)
        self.assertEqual(len(await self.items("hour", "M", DAY, DAY)), 1)

    async def test_a_machines_file_that_was_replaced_is_written_and_the_old_one_is_not(self) -> None:
        await self.write(fault("M", 1))
        (self.folder / "M.db").rename(self.folder / "old.bak")
        sqlite3.connect(self.folder / "M.db").close()
        (self.folder / "M.db").touch()
        await self.write(fault("M", 2))
        (found,) = await self.anomalies("M")
        self.assertEqual(found["time"], "2025-12-18 10:11:02.000500")

    async def test_more_machines_than_files_held_open(self) -> None:
        names = [f"M{number}" for number in range(150)]
        await self.write(*(fault(name, 1) for name in names))
        await self.write(*(fault(name, 2) for name in reversed(names)))
        self.assertEqual(len(await self.anomalies(None)), 300)

    async def test_a_machines_file_that_was_replaced_after_a_question_is_read_anew(self) -> None:
        await self.write(fault("M", 1), fault("N", 2), fault("N", 3))
        await self.again()
        self.assertEqual(len(await self.anomalies("M")), 1)
        (self.folder / "N.db").rename(self.folder / "M.db")
        self.assertEqual(len(await self.anomalies("M")), 2)
        (self.folder / "M.db").unlink()
        self.assertEqual(await self.anomalies("M"), [])

    async def test_a_machines_file_that_is_locked_after_a_question_is_read_when_it_is_free(self) -> None:
        self.old_rows("hour", [("2025-12-18 10:00:00", 1.0)])
        self.assertEqual(len(await self.items("hour", "M", DAY, DAY)), 1)
        other = self.other("M.db")
        other.execute("INSERT INTO v_hour_avg (time, data) VALUES ('2025-12-18 11:00:00', 2.0)")
        with self.assertRaises(StoreUnavailable):
            await self.items("hour", "M", DAY, DAY)
        other.execute("COMMIT")
        other.close()
        self.assertEqual(len(await self.items("hour", "M", DAY, DAY)), 2)

    async def test_files_of_machines_are_whole_after_the_end_and_when_others_are_open(self) -> None:
        names = [f"M{number}" for number in range(80)]
        await self.write(fault("M0", 1))
        self.assertEqual(len(await self.anomalies("M0")), 1)
        self.assertTrue((self.folder / "M0.db-wal").exists())
        await self.write(*(fault(name, 1) for name in names[1:]))
        self.assertFalse((self.folder / "M0.db-wal").exists())
        self.assertEqual(len(await self.anomalies(names[-1])), 1)
        await self.store.close()
        self.assertEqual([path.name for path in self.folder.glob("M*.db-wal")], [])
        self.store = self.open()

    async def test_too_many_commits_at_once_are_refused(self) -> None:
        other = self.other("cynow-gateway.sqlite3")
        waiting = [ensureDeferred(self.store.commit(ENTRY, None)) for _ in range(1002)]
        refused = [each for each in waiting if each.called]
        self.assertEqual(len(refused), 1)
        other.execute("ROLLBACK")
        other.close()
        with self.assertRaises(StoreUnavailable):
            await refused[0]
        await gatherResults([each for each in waiting if each not in refused])
        self.assertEqual(len(self.committed()), 1001)

    async def test_two_steps_of_schema_at_once(self) -> None:
        """A database that is opened again is unchanged."""
        await self.store.commit(ENTRY, None)
        await self.again()
        await self.again()
        self.assertEqual(len(self.committed()), 1)

    def test_failed_job_undoes_only_itself(self) -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.execute("CREATE TABLE t (x UNIQUE)")

        def insert(value: int) -> Any:
            return lambda its: its.execute("INSERT INTO t VALUES (?)", (value,)).rowcount

        outcomes = run_together(connection, [insert(1), insert(1), insert(2)])
        self.assertEqual([outcomes[0], outcomes[2]], [1, 1])
        self.assertIsInstance(outcomes[1].value, sqlite3.IntegrityError)
        self.assertEqual(connection.execute("SELECT x FROM t").fetchall(), [(1,), (2,)])
        connection.close()

    def test_a_full_disk_undoes_the_transaction_for_all(self) -> None:
        connection = sqlite3.connect(self.folder / "small.sqlite3", isolation_level=None)
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA max_page_count = 10")

        def insert(size: int) -> Any:
            return lambda its: its.execute("INSERT INTO t VALUES (zeroblob(?))", (size,)).rowcount

        with self.assertRaises(StoreUnavailable):
            outcomes = run_together(connection, [insert(10), insert(1_000_000), insert(10)])
            for outcome in outcomes:
                if not isinstance(outcome, int):
                    outcome.raiseException()
        connection.close()


class ForgetfulSpool(Spool):
    """A spool without the progress of statistics, so that the server is asked."""

    async def rollup_progress(self) -> RollupProgress | None:
        return None


class PostgresStoreTests(StoreSuite, ServerCase):
    """The suite on PostgreSQL."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = new_folder(self, "store")
        self.counters = Counters()
        self.store = self.open()

    async def tearDown(self) -> None:  # type: ignore[override]  # Trial awaits it
        await self.store.close()
        self.assertEqual(self.counters.store_lost._value.get(), 0)

    def open(self) -> PostgresStore:
        self.numbers = spool = ForgetfulSpool(reactor, self.clock(), self.counters, str(self.folder), 10**8)
        store = PostgresStore(reactor, self.clock(), self.counters, spool, self.server.url, "g")
        store.open()
        return store

    async def written(self) -> None:
        await self.store.drained()  # type: ignore[attr-defined]  # this store's

    def committed(self) -> list[dict[str, Any]]:
        names = list(COMMIT_COLUMNS)
        rows = self.server.sql(f"SELECT {', '.join(names)} FROM scale_weight_log ORDER BY id")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def small_pages(self, size: int) -> None:
        self.patch(postgres_questions, "PAGE", size)
