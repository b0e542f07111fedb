"""The book of the record, in the file of commits and in a file of its own, with real threads."""

import json
import sqlite3
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from gateway.model.records import Commit, CommitDetail, CommitEntry
from gateway.record import book as book_module
from gateway.record.book import RecordBook
from gateway.record.chain import Head, verify
from gateway.record.file import RecordFile
from gateway.record.table import MAX_FOREIGN, HeadConflict, TooManyGateways, read_rows
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import DirectoryUnusable, IdempotencyKey, StoreUnavailable
from gateway.store.sqlite.store import SqliteStore
from gateway.store.sqlitefile.files import GATEWAY_FILE, RECORD_FILE
from tests.support.reactor import reactor
from tests.support.trial import new_folder

NOON = datetime(2025, 12, 18, 12, tzinfo=UTC)


def entry(cylinder_no: str = "CY1") -> CommitEntry:
    return CommitEntry(
        "default", cylinder_no, "SHIP", Decimal("53.26"), "ST", NOON, NOON, detail=CommitDetail(by="gate")
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(path)
    found = [json.loads(row[1]) for row in verify(read_rows(connection))]
    connection.close()
    return found


class FileCase(TestCase):
    """A record in a file of its own."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "record")
        self.open()

    def open(self) -> None:
        clock = WallClock(UTC)
        self.file = RecordFile(reactor, clock, Counters(), str(self.folder))
        self.file.open()
        self.book = RecordBook(clock, "dock 1", self.file.run)

    def tearDown(self) -> Any:
        return ensureDeferred(self.file.close())

    async def test_append_returns_heads_of_a_chain(self) -> None:
        heads: list[Head] = await gatherResults(
            [ensureDeferred(self.book.append("refusal", {"error": f"e{number}"})) for number in range(50)]
        )
        self.assertEqual([head.number for head in heads], list(range(1, 51)))
        self.assertEqual(await self.book.read_head(), heads[-1])
        self.assertEqual(heads[0].gateway, "dock_1")
        rows = rows_of(self.folder / RECORD_FILE)
        self.assertEqual([row["error"] for row in rows], [f"e{number}" for number in range(50)])
        self.assertEqual({row["gateway"] for row in rows}, {"dock 1"})

    async def test_record_continues_after_restart(self) -> None:
        await self.book.append("refusal", {})
        await self.file.close()
        self.open()
        head = await self.book.append("refusal", {})
        self.assertEqual(head.number, 2)
        self.assertEqual(len(rows_of(self.folder / RECORD_FILE)), 2)

    async def test_commit_with_known_request_is_recorded_once(self) -> None:
        commit = Commit(7, entry())
        for _ in range(2):
            await self.book.note_written(commit, "r1")
        await self.book.note_written(Commit(8, entry()), "r2")
        rows = rows_of(self.folder / RECORD_FILE)
        self.assertEqual([(row["commit_id"], row["request"]) for row in rows], [(7, "r1"), (8, "r2")])
        found = await self.book.find("commit:8")
        assert found is not None
        self.assertEqual(found[0], 2)
        self.assertIsNone(await self.book.find("commit:9"))

    async def test_too_many_waiting_entries_are_refused(self) -> None:
        self.patch(book_module, "_MAX_WAITING", 2)
        waiting = [ensureDeferred(self.book.append("refusal", {})) for _ in range(2)]
        with self.assertRaises(StoreUnavailable):
            await self.book.append("refusal", {})
        await gatherResults(waiting)
        await self.book.append("refusal", {})

    async def test_closed_file_is_a_problem_and_a_gap(self) -> None:
        self.book.has_gaps = False
        await self.file.close()
        with capturedLogs():
            await self.book.note_written(Commit(7, entry()), "r1")
        self.assertTrue(self.book.has_gaps)
        assert self.book.problem is not None
        self.assertIn("the record cannot be written", self.book.problem)

    async def test_lost_file_is_reported(self) -> None:
        await self.book.append("refusal", {})
        writer = self.file._writer
        assert writer is not None
        await writer.run(self.file._note_last)
        await self.file.close()
        (self.folder / RECORD_FILE).unlink()
        with capturedLogs():
            self.open()
        if self.file.loss is None:
            self.skipTest("the file system has no extended attributes")
        self.assertIn("ends at entry 0, but had 1 entries", self.file.loss)

    async def test_file_that_is_not_a_database_is_refused(self) -> None:
        await self.file.close()
        for path in self.folder.glob(f"{RECORD_FILE}*"):
            path.unlink()
        (self.folder / RECORD_FILE).write_bytes(b"x" * 5000)
        with self.assertRaises(DirectoryUnusable):
            self.open()

    async def test_foreign_heads_are_monotonic(self) -> None:
        await self.book.take_foreign_head(f"gw:2:{'a' * 64}")
        await self.book.take_foreign_head(f"gw:2:{'a' * 64}")
        await self.book.take_foreign_head(f"gw:5:{'b' * 64}")
        for text in (f"gw:4:{'a' * 64}", f"gw:5:{'c' * 64}"):
            with self.assertRaises(HeadConflict):
                await self.book.take_foreign_head(text)
        with self.assertRaises(ValueError):
            await self.book.take_foreign_head("gw:5")

    async def test_foreign_heads_are_bounded(self) -> None:
        work = [ensureDeferred(self.book.take_foreign_head(f"g{n}:1:{'a' * 64}")) for n in range(MAX_FOREIGN)]
        self.patch(book_module, "_MAX_WAITING", 2 * MAX_FOREIGN)
        await gatherResults(work)
        with self.assertRaises(TooManyGateways):
            await self.book.take_foreign_head(f"more:1:{'a' * 64}")


class EmbeddedCase(TestCase):
    """A record in the file of commits."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "record")
        clock = WallClock(UTC)
        self.store = SqliteStore(reactor, clock, Counters(), str(self.folder))
        self.book = RecordBook(clock, "dock", self.store.run_job)
        self.store.on_write = self.book.write_commit
        self.store.open()

    def tearDown(self) -> Any:
        return ensureDeferred(self.store.close())

    async def test_commit_and_its_entry_are_one_transaction(self) -> None:
        key = IdempotencyKey("k", "f")
        results = [await self.store.commit(entry(), given) for given in (None, key, key)]
        self.assertIsNone(results[2].commit)
        rows = rows_of(self.folder / GATEWAY_FILE)
        self.assertEqual([row["commit_id"] for row in rows], [1, 2])
        self.assertEqual(rows[0]["gross_kg"], "53.26")
        self.assertEqual(rows[0]["received_at"], "2025-12-18T12:00:00.000000+00:00")
        self.assertEqual(rows[0]["detail"]["by"], "gate")

    async def test_entry_that_cannot_be_written_undoes_its_commit(self) -> None:
        def fail(connection: sqlite3.Connection, commit: Commit) -> None:
            self.book.write_commit(connection, commit)
            raise StoreUnavailable("no record")

        self.store.on_write = fail
        with self.assertRaises(StoreUnavailable):
            await self.store.commit(entry(), None)
        self.store.on_write = self.book.write_commit
        await self.store.commit(entry(), None)
        rows = rows_of(self.folder / GATEWAY_FILE)
        self.assertEqual(len(rows), 1)
        connection = sqlite3.connect(self.folder / GATEWAY_FILE)
        self.assertEqual(connection.execute("SELECT count(*) FROM scale_weight_log").fetchone(), (1,))
        connection.close()

    async def test_file_of_its_own_continues_the_record(self) -> None:
        await self.store.commit(entry(), None)
        head = await self.book.read_head()
        file = RecordFile(reactor, WallClock(UTC), Counters(), str(self.folder))
        with capturedLogs():
            file.open()
        other = RecordBook(WallClock(UTC), "dock", file.run)
        self.assertEqual(await other.read_head(), head)
        self.assertIsNotNone(await other.find("commit:1"))
        self.assertEqual((await other.append("refusal", {})).number, 2)
        await file.close()
        self.assertEqual(len(rows_of(self.folder / RECORD_FILE)), 2)
