"""One suite for the log of commits, which each backend passes."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import TestCase

from gateway.model.records import CommitDetail, CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import (
    MAX_COMMITS,
    CommitQuery,
    PageRequest,
    RejectedByDatabase,
    Store,
    StoredCommit,
    StoreUnavailable,
)
from gateway.store.postgres.store import PostgresStore
from gateway.store.spool.spool import Spool
from gateway.store.sqlite.store import SqliteStore
from tests.support.entries import ENTRY, SEOUL
from tests.support.postgres import ServerCase
from tests.support.reactor import reactor
from tests.support.trial import new_folder

if TYPE_CHECKING:
    _Case = TestCase
else:
    _Case = object

START = datetime(2025, 12, 18, 10, tzinfo=SEOUL)

EVERYTHING = CommitQuery()

#: A row as Django writes it, without details.
DJANGO = (
    "INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at)"
    " VALUES ('default', 'OLD', 'SHIP', 12.5, 'ST,+12.50', '2025-12-18 01:00:00', '{time}')"
)


def entry(number: int, **fields: Any) -> CommitEntry:
    return replace(ENTRY, cylinder_no=f"CY{number}", committed_at=START + timedelta(minutes=number), **fields)


class CommitLogSuite(_Case):
    """Tests of every backend; a TestCase beside it opens the store."""

    store: Store

    def clock(self) -> WallClock:
        return WallClock(SEOUL, lambda: 1_000_000.0, lambda: 1_000_000.0)

    def run_sql(self, statement: str) -> None:
        raise NotImplementedError

    async def log(self, query: CommitQuery = EVERYTHING, limit: int | None = None) -> list[StoredCommit]:
        """Return the commits of all pages."""
        page = await self.store.commits(query, PageRequest(limit=limit))
        items: list[StoredCommit] = page.items
        while page.after is not None:
            page = await self.store.commits(query, PageRequest(page.after, limit))
            assert page.items, "an empty page after a cursor"
            items += page.items
        return items

    async def cylinders(self, query: CommitQuery, limit: int | None = None) -> list[str]:
        return [stored.commit.entry.cylinder_no for stored in await self.log(query, limit)]

    async def test_commit_is_read_as_it_was_written(self) -> None:
        detail = CommitDetail("hall", "scale is broken", ("unstable",), ("drift",), cylinder={"tare_kg": 45.2})
        result = await self.store.commit(replace(ENTRY, detail=detail), None)
        (stored,) = await self.log()
        self.assertEqual(replace(stored.commit.entry, detail=detail), replace(ENTRY, detail=detail))
        self.assertEqual(str(stored.commit.entry.gross_kg), "53.26")
        self.assertEqual(stored.commit.entry.committed_at.utcoffset(), timedelta(hours=9))
        self.assertEqual((stored.commit.id, stored.by, stored.undo_of, stored.undone_by), (1, "hall", None, None))
        self.assertEqual(stored.detail, detail.record())
        self.assertEqual(await self.store.find_commit(result.answer["id"]), stored)
        self.assertIsNone(await self.store.find_commit(2))
        self.assertIsNone(await self.store.find_commit(2**63 - 1))
        self.assertIsNone(await self.store.ticket("g-1"))

    async def test_empty_log_has_no_commits(self) -> None:
        page = await self.store.commits(CommitQuery())
        self.assertEqual((page.items, page.after), ([], None))

    async def test_pages_of_any_size_give_all_commits_newest_first(self) -> None:
        for number in range(7):
            await self.store.commit(entry(number), None)
        expected = [f"CY{number}" for number in reversed(range(7))]
        for size in (1, 2, 3, 6, 7, 8, None):
            self.assertEqual(await self.cylinders(CommitQuery(), size), expected, size)
        page = await self.store.commits(CommitQuery(), PageRequest(limit=7))
        self.assertIsNone(page.after, "no page follows")

    async def test_commits_between_pages_shift_no_others(self) -> None:
        for number in range(4):
            await self.store.commit(entry(number), None)
        page = await self.store.commits(CommitQuery(), PageRequest(limit=2))
        await self.store.commit(entry(9), None)
        rest = await self.store.commits(CommitQuery(), PageRequest(page.after))
        self.assertEqual([stored.commit.id for stored in page.items + rest.items], [4, 3, 2, 1])

    async def test_page_has_a_maximum(self) -> None:
        self.assertEqual(await self.log(), [], "the tables are there")
        rows = ", ".join(
            f"('s', 'C{number}', 'SHIP', 1, 'x', '2025-12-18 01:00:00', '2025-12-18 01:00:00')"
            for number in range(MAX_COMMITS + 1)
        )
        self.run_sql(
            "INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at,"
            f" committed_at) VALUES {rows}"
        )
        page = await self.store.commits(CommitQuery(), PageRequest(limit=10**9))
        self.assertEqual((len(page.items), page.after), (MAX_COMMITS, 2))

    async def test_selection_by_each_field(self) -> None:
        await self.store.commit(entry(1), None)
        await self.store.commit(entry(2, event_type="RETURN"), None)
        await self.store.commit(entry(3, scale_id="dock"), None)
        await self.store.commit(replace(entry(4), cylinder_no="CY1"), None)
        for query, expected in (
            (CommitQuery(cylinder_no="CY1"), ["CY1", "CY1"]),
            (CommitQuery(cylinder_no="CY1", end=START + timedelta(minutes=4)), ["CY1"]),
            (CommitQuery(cylinder_no="' OR 1=1 --"), []),
            (CommitQuery(event_type="RETURN"), ["CY2"]),
            (CommitQuery(scale_id="dock"), ["CY3"]),
            (CommitQuery(cylinder_no="CY1", scale_id="dock"), []),
        ):
            self.assertEqual(await self.cylinders(query), expected, query)

    async def test_start_is_included_and_end_is_not(self) -> None:
        for number in range(4):
            await self.store.commit(entry(number), None)
        self.run_sql(DJANGO.format(time="2025-12-18 01:01:00"))
        utc = (START + timedelta(minutes=1)).astimezone(UTC)
        self.assertEqual(await self.cylinders(CommitQuery(start=utc)), ["OLD", "CY3", "CY2", "CY1"])
        self.assertEqual(await self.cylinders(CommitQuery(end=utc)), ["CY0"])
        later = utc + timedelta(microseconds=1)
        self.assertEqual(await self.cylinders(CommitQuery(start=utc, end=later)), ["OLD", "CY1"])

    async def test_row_without_details_has_none(self) -> None:
        self.assertEqual(await self.log(), [], "the tables are there")
        self.run_sql(DJANGO.format(time="2025-12-18 01:00:00"))
        (stored,) = await self.log()
        self.assertEqual((stored.by, stored.detail, stored.commit.ticket), (None, {}, None))
        self.assertEqual(stored.commit.entry.gross_kg, Decimal("12.50"))
        self.assertEqual(stored.commit.entry.committed_at, START)

    async def test_undo_is_linked_both_ways_and_happens_once(self) -> None:
        first = await self.store.commit(entry(1), None)
        undo = entry(2, detail=CommitDetail(undo_of=first.answer["id"], reason="wrong number"))
        second = await self.store.commit(undo, None)
        self.assertNotIn("reason", second.answer)
        undoing, undone = await self.log()
        self.assertEqual((undone.undone_by, undone.undo_of), (second.answer["id"], None))
        self.assertEqual((undoing.undone_by, undoing.undo_of), (None, first.answer["id"]))
        self.assertEqual(undoing.detail["reason"], "wrong number")
        with self.assertRaises(RejectedByDatabase):
            await ensureDeferred(self.store.commit(undo, None))

    async def test_encoder_gets_stored_commits(self) -> None:
        for number in range(3):
            await self.store.commit(entry(number), None)
        page = await self.store.commits(CommitQuery(), PageRequest(limit=2, encode=len))
        self.assertEqual((page.items, page.after), ([2], 2))


class SqliteCommitLogTests(CommitLogSuite, TestCase):
    """The suite on the embedded store."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "store")
        self.store = SqliteStore(reactor, self.clock(), Counters(), str(self.folder))
        self.store.open()

    async def tearDown(self) -> None:  # type: ignore[override]  # Trial awaits it
        await self.store.close()

    def run_sql(self, statement: str) -> None:
        with sqlite3.connect(self.folder / "cynow-gateway.sqlite3") as connection:
            connection.execute(statement)
        connection.close()

    async def test_closed_store_is_unavailable(self) -> None:
        await self.store.close()
        with self.assertRaises(StoreUnavailable):
            await ensureDeferred(self.store.commits(CommitQuery()))
        self.setUp()

    async def test_queries_of_a_cylinder_use_an_index(self) -> None:
        with sqlite3.connect(self.folder / "cynow-gateway.sqlite3") as connection:
            plan = connection.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM scale_weight_log AS l"
                " WHERE l.cylinder_no = 'x' ORDER BY l.id DESC LIMIT 100"
            ).fetchall()
        connection.close()
        self.assertIn("scale_weight_log_cylinder_no", plan[0][3])
        self.assertEqual(len(plan), 1, "no sorting")


class PostgresCommitLogTests(CommitLogSuite, ServerCase):
    """The suite on PostgreSQL."""

    def setUp(self) -> None:
        super().setUp()
        folder, counters = new_folder(self, "store"), Counters()
        spool = Spool(reactor, self.clock(), counters, str(folder), 10**8)
        self.store = PostgresStore(reactor, self.clock(), counters, spool, self.server.url, "g")
        self.store.open()

    async def tearDown(self) -> None:  # type: ignore[override]  # Trial awaits it
        await self.store.close()

    def run_sql(self, statement: str) -> None:
        self.server.sql(statement.replace("01:00:00'", "01:00:00+00'").replace("01:01:00'", "01:01:00+00'"))

    async def test_commit_is_found_by_its_ticket(self) -> None:
        result = await self.store.commit(ENTRY, None)
        self.run_sql("UPDATE cynow_commit SET ticket = 'g-1'")
        found = await self.store.ticket("g-1")
        assert found is not None
        self.assertEqual((found.commit_id, found.ticket), (result.answer["id"], "g-1"))
        self.assertIsNone(await self.store.ticket("g-2"))

    async def test_latest_details_of_an_id_count_after_the_table_was_emptied(self) -> None:
        await self.store.commit(replace(ENTRY, detail=CommitDetail("before")), None)
        self.run_sql("TRUNCATE scale_weight_log RESTART IDENTITY")
        await self.store.commit(replace(ENTRY, detail=CommitDetail("after")), None)
        (stored,) = await self.log()
        self.assertEqual((stored.commit.id, stored.by), (1, "after"))
