"""What every store must do; each backend passes it."""

import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.model import PERIODS, CommitEntry, Entry, Fault, PeriodMean, Sighting
from gateway.store.interface import SEQ_BLOCK, IdempotencyConflict, IdempotencyKey, Store, StoreUnavailable
from gateway.store.sqlite import SqliteStore
from gateway.store.writing import run_together

SEOUL = timezone(timedelta(hours=9))

ENTRY = CommitEntry(
    scale_id="default",
    cylinder_no="CY1",
    event_type="SHIP",
    gross_kg=Decimal("53.26"),
    raw_line="ST , +000053.26 _kg",
    received_at=datetime(2025, 12, 18, 10, 11, 12, 345678, SEOUL),
    committed_at=datetime(2025, 12, 18, 10, 11, 13, 0, SEOUL),
    arrival_shipping_no="AS1",
)

DAY = date(2025, 12, 18)


def fault(machine: str, second: int, score: float = 1.5) -> Fault:
    return Fault(machine, score, 1.0, datetime(2025, 12, 18, 10, 11, second, 500, SEOUL))


def mean(sensor: str, time: str, value: float, machine: str = "M", period: str = "hour") -> PeriodMean:
    return PeriodMean(period, machine, sensor, time, value)


class StoreSuite:
    """To be mixed with a TestCase that knows how to open a backend."""

    wall = 1_000_000.0
    store: Store

    def open(self) -> Store:
        raise NotImplementedError

    def committed(self) -> list[dict[str, Any]]:
        """The rows of ``scale_weight_log``, by other means than the store."""
        raise NotImplementedError

    async def again(self) -> None:
        """Close the store and open it."""
        await self.store.close()
        self.store = self.open()

    def clock(self) -> WallClock:
        return WallClock(UTC, lambda: self.wall, lambda: self.wall)

    async def write(self, *entries: Entry) -> None:
        self.assertEqual(await self.store.write(entries), [])  # type: ignore[attr-defined]  # the TestCase's

    # -- commits

    async def test_a_commit_is_a_row(self) -> None:
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

    async def test_a_key_gives_its_first_answer_over_a_restart_too(self) -> None:
        key = IdempotencyKey("k", "f")
        self.assertIsNone(await self.store.replay(key))
        first = await self.store.commit(ENTRY, key)
        await self.again()
        other = replace(ENTRY, gross_kg=Decimal("1.00"))
        second = await self.store.commit(other, key)
        self.assertEqual((second.answer, second.commit), (first.answer, None))
        self.assertEqual(await self.store.replay(key), first.answer)
        self.assertEqual(len(self.committed()), 1)

    async def test_a_key_of_another_request_is_a_conflict_and_writes_nothing(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        for attempt in (
            self.store.commit(ENTRY, IdempotencyKey("k", "g")),
            self.store.replay(IdempotencyKey("k", "g")),
        ):
            with self.assertRaises(IdempotencyConflict):
                await attempt
        self.assertEqual(len(self.committed()), 1)

    async def test_one_key_in_flight_many_times_writes_one_row(self) -> None:
        results = await gatherResults([self.store.commit(ENTRY, IdempotencyKey("k", "f")) for _ in range(50)])
        self.assertEqual({result.answer["id"] for result in results}, {1})
        self.assertEqual(sum(result.commit is not None for result in results), 1)
        self.assertEqual(len(self.committed()), 1)

    async def test_a_conflict_undoes_nobody_elses_commit(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        waiting = [self.store.commit(replace(ENTRY, cylinder_no=f"CY{n}"), None) for n in range(10)]
        conflict = self.store.commit(ENTRY, IdempotencyKey("k", "g"))
        waiting += [self.store.commit(replace(ENTRY, cylinder_no=f"CZ{n}"), None) for n in range(10)]
        with self.assertRaises(IdempotencyConflict):
            await conflict
        await gatherResults(waiting)
        self.assertEqual(len(self.committed()), 21)

    async def test_a_key_is_forgotten_after_two_days_not_after_one(self) -> None:
        await self.store.commit(ENTRY, IdempotencyKey("k", "f"))
        self.wall += 25 * 3600
        await self.store.commit(ENTRY, IdempotencyKey("other", "f"))
        self.assertIsNotNone(await self.store.replay(IdempotencyKey("k", "f")))
        self.wall += 24 * 3600
        await self.store.commit(ENTRY, IdempotencyKey("third", "f"))
        self.assertIsNone(await self.store.replay(IdempotencyKey("k", "f")))
        self.assertIsNotNone(await self.store.replay(IdempotencyKey("other", "f")))

    async def test_a_closed_store_is_unavailable(self) -> None:
        await self.store.close()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)
        self.store = self.open()

    # -- machines

    async def test_nothing_yet(self) -> None:
        self.assertEqual(await self.store.machines(), [])
        self.assertEqual(await self.store.means("hour", "M", DAY, DAY), [])
        self.assertEqual(await self.store.anomalies("M", DAY, DAY), [])
        self.assertEqual(await self.store.anomalies(None, DAY, DAY), [])

    async def test_a_machine_has_data_from_its_first_samples_on(self) -> None:
        await self.write(Sighting("나", "v"), Sighting("가", "v"))
        self.assertEqual(await self.store.machines(), ["가", "나"])
        self.assertEqual(await self.store.means("hour", "가", DAY, DAY), [])

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
            await self.store.means("hour", "M", DAY, DAY + timedelta(days=1)),
            [
                {"name": "a_hour_avg", "time": "2025-12-18 00:00:00", "data": 3.0},
                {"name": "a_hour_avg", "time": "2025-12-19 23:00:00", "data": 2.0},
                {"name": "b_hour_avg", "time": "2025-12-18 11:00:00", "data": 1.0},
            ],
        )
        self.assertEqual(await self.store.means("hour", "M", DAY, DAY - timedelta(days=1)), [])
        self.assertEqual(len(await self.store.means("hour", "M", date.min, date.max)), 5)

    async def test_every_period(self) -> None:
        await self.write(*(mean("a", "2025-12-18 00:00:00", 1.0, period=period) for period in PERIODS))
        for period in PERIODS:
            (found,) = await self.store.means(period, "M", DAY, DAY)
            self.assertEqual(found["name"], f"a_{period}_avg")

    async def test_names_that_differ_by_case_or_are_reserved(self) -> None:
        sensors = ["Vib", "vib", "VIB", "sqlite_master", "SQLITE_x", 'quo"te', "진동 1", "a_hour", "v~2"]
        times = ["2025-12-18 10:00:00", "2025-12-18 11:00:00"]
        for index, sensor in enumerate(sensors):
            await self.write(Sighting("M", sensor), *(mean(sensor, time, float(index)) for time in times))
        await self.again()
        for index, sensor in enumerate(sensors):
            await self.write(mean(sensor, "2025-12-18 12:00:00", float(index)))
        found = await self.store.means("hour", "M", DAY, DAY)
        # A tilde is in no sensor's name; that one is here to show what would happen.
        for index, sensor in enumerate(sensors[:-1]):
            values = [item["data"] for item in found if item["name"] == f"{sensor}_hour_avg"]
            self.assertEqual([value for value in values if value == index], [float(index)] * 3, sensor)

    async def test_anomalies(self) -> None:
        await self.write(fault("M", 2), fault("N", 1), fault("M", 3, 2.5))
        expected = [
            {"name": "M", "time": "2025-12-18 10:11:02.000500", "score": 1.5, "threshold": 1.0},
            {"name": "M", "time": "2025-12-18 10:11:03.000500", "score": 2.5, "threshold": 1.0},
        ]
        self.assertEqual(await self.store.anomalies("M", DAY, DAY), expected)
        everything = await self.store.anomalies(None, DAY, DAY)
        self.assertEqual(
            [(item["name"], item["time"][17:19]) for item in everything], [("M", "03"), ("M", "02"), ("N", "01")]
        )
        self.assertEqual(await self.store.anomalies(None, DAY - timedelta(days=2), DAY - timedelta(days=1)), [])

    async def test_impossible_machines(self) -> None:
        await self.write(fault("M", 1))
        for name in ("", ".", "..", "../M", "m\0", "x" * 300, "\ud800"):
            self.assertEqual(await self.store.means("hour", name, DAY, DAY), [], name)
            self.assertEqual(await self.store.anomalies(name, DAY, DAY), [], name)

    # -- event numbers

    async def test_event_numbers_never_come_twice(self) -> None:
        first = self.store.first_seq
        self.assertEqual(self.store.reserved, first - 1 + SEQ_BLOCK)
        await self.store.reserve(self.store.reserved + 5)
        # Less than was reserved already changes nothing.
        await self.store.reserve(3)
        await self.again()
        self.assertEqual(self.store.first_seq, first + SEQ_BLOCK + 5)


class SqliteStoreTests(StoreSuite, TestCase):
    """The suite on the embedded store, and what only that has."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cynow-store-"))
        self.counters = Counters()
        self.store = self.open()

    def tearDown(self) -> Any:
        return self.store.close()

    def open(self) -> SqliteStore:
        store = SqliteStore(reactor, self.clock(), self.counters, str(self.folder))
        store.open()
        return store

    def committed(self) -> list[dict[str, Any]]:
        with sqlite3.connect(self.folder / "cynow-gateway.sqlite3") as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM scale_weight_log")]

    def other(self, name: str) -> sqlite3.Connection:
        """A connection of somebody else, who takes the file for himself."""
        connection = sqlite3.connect(self.folder / name, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        return connection

    async def test_times_are_utc_as_django_keeps_them(self) -> None:
        await self.store.commit(ENTRY, None)
        (row,) = self.committed()
        self.assertEqual(row["received_at"], "2025-12-18 01:11:12.345678")

    async def test_a_locked_gateway_file(self) -> None:
        other = self.other("cynow-gateway.sqlite3")
        waiting = [self.store.commit(ENTRY, None) for _ in range(3)]
        for each in waiting:
            with self.assertRaises(StoreUnavailable):
                await each
        other.execute("ROLLBACK")
        other.close()
        self.assertEqual(self.committed(), [])
        await self.store.commit(ENTRY, None)
        self.assertEqual(len(self.committed()), 1)

    async def test_a_locked_machine_holds_up_neither_commits_nor_other_machines(self) -> None:
        await self.write(fault("M", 1))
        other = self.other("M.db")
        writing = self.store.write([fault("M", 2), fault("N", 3), fault("M", 4)])
        await self.store.commit(ENTRY, None)
        self.assertFalse(writing.called)
        again: Sequence[Entry] = await writing
        self.assertEqual(again, [fault("M", 2), fault("M", 4)])
        other.execute("ROLLBACK")
        other.close()
        await self.write(*again)
        self.assertEqual(len(await self.store.anomalies("M", DAY, DAY)), 3)
        self.assertEqual(len(await self.store.anomalies("N", DAY, DAY)), 1)

    async def test_a_file_that_is_no_database_costs_its_own_machine_only(self) -> None:
        (self.folder / "M.db").write_bytes(b"nothing of the kind" * 1000)
        await self.write(fault("M", 1), fault("N", 1))
        self.assertEqual(self.counters.store_lost._value.get(), 1)
        self.assertEqual(await self.store.anomalies("M", DAY, DAY), [])
        self.assertEqual(len(await self.store.anomalies(None, DAY, DAY)), 1)

    async def test_a_directory_in_the_way_may_go_away(self) -> None:
        (self.folder / "M.db").mkdir()
        self.assertEqual(await self.store.write([fault("M", 1)]), [fault("M", 1)])
        (self.folder / "M.db").rmdir()
        await self.write(fault("M", 1))
        self.assertEqual(len(await self.store.anomalies("M", DAY, DAY)), 1)

    async def test_a_machine_that_is_locked_is_left_out_of_all(self) -> None:
        await self.write(fault("M", 1), fault("N", 1))
        await self.again()
        other = sqlite3.connect(self.folder / "M.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        self.assertEqual([item["name"] for item in await self.store.anomalies(None, DAY, DAY)], ["N"])
        with self.assertRaises(StoreUnavailable):
            await self.store.anomalies("M", DAY, DAY)
        other.close()

    async def test_a_directory_that_is_gone(self) -> None:
        folder = self.folder.rename(self.folder.with_suffix(".gone"))
        with self.assertRaises(StoreUnavailable):
            await self.store.machines()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)
        folder.rename(self.folder)
        await self.store.commit(ENTRY, None)
        self.assertEqual(len(self.committed()), 1)

    async def test_a_database_that_was_removed_takes_no_commit(self) -> None:
        await self.store.commit(ENTRY, None)
        (self.folder / "cynow-gateway.sqlite3").unlink()
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(ENTRY, None)

    async def test_rows_of_the_old_server_with_fractions_and_without_values(self) -> None:
        await self.write(mean("v", "2025-12-18 10:00:00.000000", 1.0))
        connection = sqlite3.connect(self.folder / "M.db")
        connection.execute("INSERT INTO v_hour_avg (time, data) VALUES ('2025-12-18 11:00:00', x'00'), (NULL, 1)")
        connection.execute("INSERT INTO v_hour_avg (time, data) VALUES ('2025-12-18 12:00:00', NULL)")
        connection.commit()
        connection.close()
        expected = [{"name": "v_hour_avg", "time": "2025-12-18 10:00:00", "data": 1.0}]
        self.assertEqual(await self.store.means("hour", "M", DAY, DAY), expected)

    async def test_a_machines_file_that_was_removed_is_made_again(self) -> None:
        await self.write(fault("M", 1))
        (self.folder / "M.db").unlink()
        await self.write(fault("M", 2), mean("v", "2025-12-18 10:00:00", 1.0))
        self.assertEqual(len(await self.store.anomalies("M", DAY, DAY)), 1)
        self.assertEqual(len(await self.store.means("hour", "M", DAY, DAY)), 1)

    async def test_a_machines_file_that_was_replaced_is_written_and_the_old_one_is_not(self) -> None:
        await self.write(fault("M", 1))
        (self.folder / "M.db").rename(self.folder / "old.bak")
        sqlite3.connect(self.folder / "M.db").close()
        (self.folder / "M.db").touch()
        await self.write(fault("M", 2))
        (found,) = await self.store.anomalies("M", DAY, DAY)
        self.assertEqual(found["time"], "2025-12-18 10:11:02.000500")

    async def test_more_machines_than_files_held_open(self) -> None:
        names = [f"M{number}" for number in range(150)]
        await self.write(*(fault(name, 1) for name in names))
        await self.write(*(fault(name, 2) for name in reversed(names)))
        self.assertEqual(len(await self.store.anomalies(None, DAY, DAY)), 300)

    async def test_too_many_commits_at_once_are_refused(self) -> None:
        other = self.other("cynow-gateway.sqlite3")
        waiting = [self.store.commit(ENTRY, None) for _ in range(1002)]
        refused = [each for each in waiting if each.called]
        self.assertEqual(len(refused), 1)
        other.execute("ROLLBACK")
        other.close()
        with self.assertRaises(StoreUnavailable):
            await refused[0]
        await gatherResults([each for each in waiting if each not in refused])
        self.assertEqual(len(self.committed()), 1001)

    async def test_two_steps_of_schema_at_once(self) -> None:
        """Opened again, a database is found as it was left."""
        await self.store.commit(ENTRY, None)
        await self.again()
        await self.again()
        self.assertEqual(len(self.committed()), 1)

    def test_what_one_job_raises_undoes_that_one_only(self) -> None:
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
