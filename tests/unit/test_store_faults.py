"""The embedded store with files that are lost, damaged, moved or locked, or that reject a row."""

import contextlib
import json
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gateway.model.entries import Sighting, StoreEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import (
    IdempotencyKey,
    MeansQuery,
    OutcomeUnknown,
    RejectedByDatabase,
    StoreUnavailable,
)
from gateway.store.spool.spool import Spool
from gateway.store.sqlite import commits, machine_db
from gateway.store.sqlite import store as sqlite
from gateway.store.sqlite.commit_file import CommitFile
from gateway.store.sqlite.machine_faults import MachineFaults
from gateway.store.sqlite.store import SqliteStore
from gateway.store.sqlitefile import errors as sqlite_errors
from gateway.store.sqlitefile import group_writer as writing
from gateway.store.sqlitefile import transactions
from gateway.store.sqlitefile.files import SPOOL_FILE
from gateway.store.sqlitefile.note import Note, read_note, write_note
from tests.support.daemon import PATIENCE
from tests.support.entries import DAY, ENTRY, at, fault, mean
from tests.support.reactor import reactor
from tests.support.trial import new_folder, until

NAME = "cynow-gateway.sqlite3"


class StoreCase(TestCase):
    """A store in its own directory, with short intervals of checks."""

    wall = 1_000_000.0

    def setUp(self) -> None:
        self.patch(writing, "_CHECK_INTERVAL", 0.02)
        self.patch(machine_db, "_CHECK_INTERVAL", 0.02)
        self.folder = new_folder(self, "store")
        self.path = self.folder / NAME
        self.counters = Counters()
        self.opened: list[Any] = []
        self.addCleanup(self.close)

    async def close(self) -> None:
        while self.opened:
            await self.opened.pop().close()

    def open(self, **options: Any) -> SqliteStore:
        clock = WallClock(UTC, lambda: self.wall, time.monotonic)
        store = SqliteStore(reactor, clock, self.counters, str(self.folder), **options)
        store.open()
        self.opened.append(store)
        return store

    async def until_checked(self, where: type, name: str) -> None:
        """Wait until a method of a regular check was called some more times."""
        made = []
        method = getattr(where, name)

        def counted(*given: Any, **named: Any) -> Any:
            result = method(*given, **named)
            made.append(name)
            return result

        self.patch(where, name, counted)
        await until(lambda: len(made) > 3, "checks")

    async def refused(self, store: SqliteStore) -> str:
        """Try a commit, and return the problem in ``/healthz`` that explains its refusal."""
        with self.assertRaises(StoreUnavailable):
            await store.commit(ENTRY, None)
        (problem,) = store.problems
        self.assertTrue(problem.startswith("commits are refused: "), problem)
        return problem

    @contextlib.contextmanager
    def rows(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(path or self.path, isolation_level=None)) as connection:
            yield connection

    def count(self) -> int:
        with self.rows() as connection:
            (count,) = connection.execute("SELECT count(*) FROM scale_weight_log").fetchone()
        return int(count)


class ProblemTests(StoreCase):
    """Commits are refused: ``/healthz`` has the reason before one is tried, and the problem ends by itself."""

    async def noticed(self, store: SqliteStore, *words: str) -> None:
        """Wait for a problem with these words, without a commit."""
        await until(lambda: store.problems, "a problem")
        for word in words:
            self.assertIn(word, store.problems[0])
        await self.refused(store)

    async def cleared(self, store: SqliteStore) -> None:
        await until(lambda: not store.problems, "no problem")
        await store.commit(ENTRY, None)

    async def test_problems_without_a_fault_are_empty(self) -> None:
        store = self.open()
        await store.commit(ENTRY, None)
        await self.until_checked(writing.GroupWriter, "_check_file")
        self.assertEqual(store.problems, [])

    async def test_problems_directory_moved_names_it_and_clears(self) -> None:
        store = self.open()
        elsewhere = self.folder.rename(self.folder.with_suffix(".moved"))
        await self.noticed(store, str(self.folder), "moved or removed", "put it back")
        elsewhere.rename(self.folder)
        await self.cleared(store)

    async def test_problems_directory_replaced_by_a_copy_asks_for_a_restart(self) -> None:
        store = self.open()
        elsewhere = self.folder.rename(self.folder.with_suffix(".moved"))
        self.addCleanup(shutil.rmtree, elsewhere)
        shutil.copytree(elsewhere, self.folder)
        await self.noticed(store, str(self.path), "replaced", "restart the gateway")

    async def test_problems_file_removed_names_it_and_clears(self) -> None:
        store = self.open()
        moved = self.path.rename(self.folder / "moved")
        await self.noticed(store, str(self.path), "removed or replaced")
        moved.rename(self.path)
        await self.cleared(store)

    async def test_problems_log_removed_names_it(self) -> None:
        store = self.open()
        await store.commit(ENTRY, None)
        self.path.with_name(f"{NAME}-wal").unlink()
        await self.noticed(store, f"{NAME}-wal", "removed")
        # Closing saves the data in the removed log.
        await self.close()
        self.assertEqual(self.count(), 1)

    async def test_check_of_a_file_without_its_log_finds_no_damage(self) -> None:
        store = self.open()
        await store.commit(ENTRY, None)
        self.path.with_name(f"{NAME}-wal").unlink()
        self.assertIsNone(store._commits._find_damage(str(self.path)))

    async def test_problems_file_truncated_names_it(self) -> None:
        store = self.open()
        os.truncate(self.path, 0)
        await self.noticed(store, NAME, "truncated")

    async def test_problems_table_renamed_names_it_and_clears(self) -> None:
        for table in ("scale_weight_log", "idempotency", "event_seq", "sensor"):
            store = self.open()
            with self.rows() as connection:
                connection.execute(f"ALTER TABLE {table} RENAME TO gone")
            await until(lambda store=store: store.problems, "a problem")
            self.assertIn(f"no such table: {table}", store.problems[0])
            with self.rows() as connection:
                connection.execute(f"ALTER TABLE gone RENAME TO {table}")
            await self.cleared(store)
            await self.close()

    async def test_problems_table_renamed_before_the_start_names_it_and_clears(self) -> None:
        store = self.open()
        await store.commit(ENTRY, None)
        await self.close()
        with self.rows() as connection:
            connection.execute("ALTER TABLE scale_weight_log RENAME TO gone")
        store = self.open()
        await self.noticed(store, "no such table: scale_weight_log")
        with self.rows() as connection:
            connection.execute("ALTER TABLE gone RENAME TO scale_weight_log")
        await self.cleared(store)
        self.assertEqual(self.count(), 2)

    async def test_problems_column_renamed_or_trigger_broken_names_it(self) -> None:
        for statement, back, word in (
            (
                "ALTER TABLE scale_weight_log RENAME COLUMN raw_line TO line",
                "ALTER TABLE scale_weight_log RENAME COLUMN line TO raw_line",
                "raw_line",
            ),
            (
                "CREATE TRIGGER t AFTER INSERT ON scale_weight_log BEGIN INSERT INTO plant VALUES (new.id); END",
                "DROP TRIGGER t",
                "plant",
            ),
        ):
            store = self.open()
            with self.rows() as connection:
                connection.execute(statement)
            await self.noticed(store, word)
            with self.rows() as connection:
                connection.execute(back)
            await self.cleared(store)
            await self.close()

    async def test_problems_file_locked_names_it_and_clears(self) -> None:
        store = self.open()
        with self.rows() as other:
            other.execute("BEGIN EXCLUSIVE")
            await until(lambda: store.problems, "a problem")
            self.assertIn(NAME, store.problems[0])
            self.assertIn("locked", store.problems[0])
            await self.refused(store)
            other.execute("ROLLBACK")
        await self.cleared(store)

    async def test_problems_file_locked_for_a_moment_are_empty(self) -> None:
        self.patch(writing, "_CHECK_INTERVAL", 3600.0)
        store = self.open()
        with self.rows() as other:
            other.execute("BEGIN EXCLUSIVE")
            store._commits._writer._check_call.reset(0)  # type: ignore[union-attr]  # it is open
            await until(lambda: store._commits._writer._was_locked, "the check")  # type: ignore[union-attr]
            await until(lambda: store._commits._writer._running is None, "the check")  # type: ignore[union-attr]
            self.assertEqual(store.problems, [])
            other.execute("ROLLBACK")
        await store.commit(ENTRY, None)

    async def test_refused_commits_are_logged_once_and_so_is_their_end(self) -> None:
        store = self.open()
        with capturedLogs() as events:
            moved = self.path.rename(self.folder / "moved")
            for _ in range(200):
                with self.assertRaises(StoreUnavailable):
                    await store.commit(ENTRY, None)
            moved.rename(self.path)
            await self.cleared(store)
        lines = [event["log_format"] for event in events]
        self.assertEqual(
            [line.partition(":")[0] for line in lines],
            ["{subject} are refused", "{subject} are accepted again; {count} were refused"],
        )
        self.assertGreaterEqual(events[-1]["count"], 200)
        self.assertNotIn("CY1", str(events))

    async def test_commits_into_a_damaged_file_are_refused_and_found_at_the_start(self) -> None:
        store = self.open()
        await gatherResults([ensureDeferred(store.commit(ENTRY, IdempotencyKey(f"{n}", "f"))) for n in range(200)])
        await self.close()
        with self.rows() as connection:
            ((root,),) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'scale_weight_log_cylinder_no'"
            )
            ((size,),) = connection.execute("PRAGMA page_size")
        with self.path.open("r+b") as file:
            file.seek((root - 1) * size)
            file.write(b"\xa5" * size)
        store = self.open()
        await until(lambda: store.problems, "the check")
        self.assertIn("damaged", store.problems[0])
        self.assertIn("restore a backup", store.problems[0])
        await self.refused(store)
        with self.assertRaises(StoreUnavailable):
            await store.replay(IdempotencyKey("1", "f"))
        # Statistics do not wait for the types of sensors.
        self.assertEqual(await store.write([Sighting("M", "v", "VIB"), fault("M", 1)]), [])


class RefusedRowTests(StoreCase):
    """A row that the database rejects affects no other row."""

    def add(self, statement: str) -> None:
        with self.rows() as connection:
            connection.executescript(statement)

    async def outcomes(self, store: SqliteStore) -> list[Any]:
        """Return the outcomes of commits that share a transaction, each third of which is rejected."""
        # The first job keeps the thread busy until all others wait.
        work = [
            ensureDeferred(
                store.commit(
                    replace(ENTRY, cylinder_no=f"SECRET-{n}", event_type="BAD" if n % 3 == 1 else "SHIP"), None
                )
            )
            for n in range(30)
        ]
        found = []
        for each in work:
            try:
                found.append((await each).answer["id"])
            except RejectedByDatabase as error:
                self.assertNotIn("SECRET", str(error))
                found.append(str(error))
        return found

    async def rejected(self, rule: str) -> None:
        store = self.open()
        self.add(rule)
        with capturedLogs() as events:
            found = await self.outcomes(store)
        self.assertEqual([isinstance(each, str) for each in found], [n % 3 == 1 for n in range(30)])
        with self.rows() as connection:
            rows = connection.execute("SELECT cylinder_no, id FROM scale_weight_log ORDER BY id").fetchall()
        self.assertEqual(rows, [(f"SECRET-{n}", each) for n, each in enumerate(found) if not isinstance(each, str)])
        self.assertNotIn("SECRET", str(events))
        told = {str(event["error"]) for event in events if "rejects a commit" in event["log_format"]}
        self.assertEqual(told, {found[1]})
        self.assertEqual(store.problems, [])

    async def test_commit_a_trigger_aborts_is_rejected_alone(self) -> None:
        for kind in ("ABORT", "FAIL", "ROLLBACK"):
            await self.rejected(
                "CREATE TRIGGER plant BEFORE INSERT ON scale_weight_log WHEN new.event_type = 'BAD'"
                f" BEGIN SELECT RAISE({kind}, 'not here'); END"
            )
            await self.close()
            self.path.unlink()
            os.removexattr(self.folder, "user.cynow-gateway.store")

    async def test_commit_a_trigger_leaves_out_is_rejected_and_undone(self) -> None:
        await self.rejected(
            "CREATE TABLE plant (id); CREATE TRIGGER refusal BEFORE INSERT ON scale_weight_log"
            " WHEN new.event_type = 'BAD' BEGIN INSERT INTO plant VALUES (1); SELECT RAISE(IGNORE); END"
        )
        with self.rows() as connection:
            self.assertEqual(connection.execute("SELECT count(*) FROM plant").fetchone(), (0,))

    async def test_commit_a_check_refuses_is_rejected_and_named(self) -> None:
        store = self.open()
        with self.rows() as connection:
            (old,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'scale_weight_log'").fetchone()
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "UPDATE sqlite_master SET sql = ? WHERE name = 'scale_weight_log'",
                (old.rstrip(")\n") + ", CONSTRAINT weight_of_plant CHECK (gross_kg < 50))",),
            )
            (version,) = connection.execute("PRAGMA schema_version").fetchone()
            connection.execute(f"PRAGMA schema_version = {version + 1}")
        with self.assertRaisesRegex(RejectedByDatabase, "weight_of_plant"):
            await store.commit(ENTRY, IdempotencyKey("k", "f"))
        self.assertIsNone(await store.replay(IdempotencyKey("k", "f")))
        await store.commit(replace(ENTRY, gross_kg=Decimal("1.00")), IdempotencyKey("k", "f"))

    async def test_commit_that_a_unique_index_refuses_is_rejected(self) -> None:
        store = self.open()
        self.add("CREATE UNIQUE INDEX plant ON scale_weight_log (cylinder_no)")
        await store.commit(ENTRY, None)
        with self.assertRaises(RejectedByDatabase):
            await store.commit(ENTRY, None)

    def test_rule_that_quotes_the_row_is_not_repeated(self) -> None:
        error = sqlite3.IntegrityError("cylinder CY1 is gone")
        self.assertEqual(commits._rule(error, ("CY1", None, "")), "a constraint")
        self.assertEqual(commits._rule(error, ("CY2", None, "")), "cylinder CY1 is gone")


class OutcomeTests(StoreCase):
    """Deadlines of commits, and their outcomes."""

    def open(self, **options: Any) -> SqliteStore:
        """Open a store whose deadlines pass only by :meth:`expire`."""
        self.patch(CommitFile.run, "__kwdefaults__", {**(CommitFile.run.__kwdefaults__ or {}), "patience": PATIENCE})
        return super().open(**options)

    def expire(self, store: SqliteStore) -> None:
        """Let the deadlines of all jobs pass."""
        writer = store._commits._writer
        assert writer is not None
        for each in (*writer._current, *writer._waiting):
            if each.until < math.inf:
                each.until = reactor.seconds()
        assert writer._deadline_call is not None
        writer._deadline_call.cancel()
        writer._expire()

    def stall(self, store: SqliteStore) -> threading.Event:
        """Keep the writer's thread in a transaction until the event is set."""
        event = threading.Event()
        self.addCleanup(event.set)
        store._commits._writer.run(lambda _: event.wait(PATIENCE))  # type: ignore[union-attr]  # it is open
        return event

    async def test_commit_in_a_thread_that_hangs_is_answered_in_time(self) -> None:
        store = self.open()
        begins, event = threading.Event(), threading.Event()
        self.addCleanup(event.set)
        commit = commits.write_commit

        def slow(*given: Any) -> Any:
            result = commit(*given)
            begins.set()
            event.wait(PATIENCE)
            return result

        self.patch(sqlite, "write_commit", slow)
        begun = ensureDeferred(store.commit(ENTRY, IdempotencyKey("k", "f")))
        await until(begins.is_set, "it has begun")
        waiting = ensureDeferred(store.commit(replace(ENTRY, cylinder_no="CY2"), IdempotencyKey("l", "f")))
        question = ensureDeferred(store.replay(IdempotencyKey("k", "f")))
        self.expire(store)
        with self.assertRaises(OutcomeUnknown):
            await begun
        for each in (waiting, question):
            with self.assertRaises(StoreUnavailable):
                await each
        self.patch(sqlite, "write_commit", commit)
        with capturedLogs() as events:
            event.set()
            # The same key gives the outcome: it was written, and the waiting one was not.
            again = await store.commit(ENTRY, IdempotencyKey("k", "f"))
        self.assertIsNone(again.commit)
        self.assertEqual(self.count(), 1)
        (late,) = [event for event in events if "outcome_unknown" in event["log_format"]]
        self.assertEqual((late["count"], late["written"]), (1, 1))

    async def test_commit_behind_a_job_that_hangs_was_not_written(self) -> None:
        store = self.open()
        event = self.stall(store)
        waiting = ensureDeferred(store.commit(ENTRY, None))
        self.expire(store)
        with self.assertRaises(StoreUnavailable):
            await waiting
        event.set()
        await store.commit(ENTRY, None)
        self.assertEqual(self.count(), 1)

    async def failing(self, store: SqliteStore, failures: int) -> Any:
        """Commit while the next COMMITs fail as they do on a faulty disk."""
        left = [failures]
        commit = transactions._commit

        def fails(connection: sqlite3.Connection) -> None:
            if left[0]:
                left[0] -= 1
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise transactions.CommitFailed from error
            commit(connection)

        self.patch(transactions, "_commit", fails)
        return await store.commit(ENTRY, IdempotencyKey("k", "f"))

    async def test_commit_failed_by_the_disk_and_overwritten_was_not_written(self) -> None:
        store = self.open()
        with self.assertRaises(StoreUnavailable):
            await self.failing(store, 1)
        await until(lambda: not store.problems, "no problem")
        self.assertEqual(self.count(), 0)

    async def test_commit_failed_by_a_faulty_disk_is_unknown(self) -> None:
        store = self.open()
        with self.assertRaises(OutcomeUnknown):
            await self.failing(store, 2)
        self.assertIn("disk I/O error", store.problems[0])
        await until(lambda: not store.problems, "no problem")
        result = await store.commit(ENTRY, IdempotencyKey("k", "f"))
        self.assertIsNotNone(result.commit)
        self.assertEqual(self.count(), 1)


class LostFileTests(StoreCase):
    """A lost file of commits is not treated as a first start."""

    KEY = IdempotencyKey("k", "f")

    async def lived(self) -> int:
        """Run a gateway in the directory, and return its last event number."""
        store = self.open()
        await store.commit(ENTRY, self.KEY)
        await store.commit(ENTRY, None)
        await store.write([Sighting("M", "v", "VIB"), mean("v", "2025-12-18 10:00:00", 1.0), fault("M", 1)])
        reserved = store.reserved
        await self.close()
        return reserved

    def forget(self) -> None:
        """Remove the note, as on a file system without attributes."""
        os.removexattr(self.folder, "user.cynow-gateway.store")

    def lose(self, how: str) -> None:
        self.path.unlink()
        if how == "empty":
            self.path.touch()
        elif how == "without tables":
            with self.rows() as connection:
                connection.execute("PRAGMA journal_mode = WAL")

    async def served(self, store: SqliteStore, *words: str) -> None:
        problem = await self.refused(store)
        for word in (*words, "--accept-empty-store"):
            self.assertIn(word, problem)
        with self.assertRaises(StoreUnavailable):
            await store.commit(ENTRY, self.KEY)
        with self.assertRaises(StoreUnavailable):
            await store.replay(self.KEY)
        # Statistics do not wait for the types of sensors.
        self.assertEqual(await store.write([Sighting("M", "w", "VIB"), mean("w", "2025-12-18 11:00:00", 1.0)]), [])
        self.assertEqual(len((await store.means(MeansQuery("hour", "M", DAY, DAY))).items), 2)
        self.assertIn("M", (await store.rollup_progress({}, at("2025-12-18 12:00:00"))).unreadable)

    async def test_open_file_lost_refuses_commits_until_accepted(self) -> None:
        for how, word in (("missing", "missing"), ("empty", "0 bytes"), ("without tables", "no tables")):
            for noted in (True, False):
                reserved = await self.lived()
                self.lose(how)
                if not noted:
                    self.forget()
                before = self.path.read_bytes() if self.path.exists() else None
                for _ in range(2):
                    store = self.open()
                    await self.served(store, word)
                    self.assertGreater(store.first_seq, reserved)
                    reserved = store.reserved
                    await store.reserve(reserved + 5)
                    reserved += 5
                    await self.close()
                    # No file was changed.
                    self.assertEqual(self.path.read_bytes() if self.path.exists() else None, before)
                store = self.open(accept_empty=True)
                self.assertEqual(store.problems, [])
                self.assertGreater(store.first_seq, reserved)
                result = await store.commit(ENTRY, self.KEY)
                # Ids continue above the known ones.
                self.assertEqual(result.answer["id"], 3 if noted else 1)
                await self.close()
                if before is not None:
                    (aside,) = self.folder.glob(f"{NAME}.set-aside-*")
                    aside.unlink()
                # The next start is normal.
                store = self.open()
                self.assertEqual((await store.commit(ENTRY, self.KEY)).commit, None)
                await self.close()
                shutil.rmtree(self.folder)
                self.folder.mkdir()

    async def test_open_restored_file_takes_commits_again(self) -> None:
        reserved = await self.lived()
        backup = self.path.read_bytes()
        self.path.write_bytes(b"")
        store = self.open()
        await self.served(store, "0 bytes")
        reserved = store.reserved
        await self.close()
        self.path.write_bytes(backup)
        store = self.open()
        self.assertEqual(store.problems, [])
        self.assertGreater(store.first_seq, reserved)
        self.assertIsNone((await store.commit(ENTRY, self.KEY)).commit)

    async def test_open_old_backup_refuses_commits_until_accepted(self) -> None:
        await self.lived()
        backup = self.path.read_bytes()
        store = self.open()
        await store.commit(ENTRY, IdempotencyKey("later", "f"))
        await self.close()
        self.path.write_bytes(backup)
        store = self.open()
        problem = await self.refused(store)
        self.assertIn("up to id 2, but the last id was 3", problem)
        await self.close()
        store = self.open(accept_empty=True)
        # Its rows stay, and ids continue above the used ones.
        self.assertIsNone((await store.commit(ENTRY, self.KEY)).commit)
        self.assertEqual((await store.commit(ENTRY, None)).answer["id"], 4)

    async def test_open_another_gateways_file_refuses_commits(self) -> None:
        await self.lived()
        mine = self.path.read_bytes()
        for path in (self.path, *self.folder.glob("*.db")):
            path.unlink()
        self.forget()
        await self.lived()
        self.path.write_bytes(mine)
        problem = await self.refused(self.open())
        self.assertIn("was replaced by another file", problem)

    async def test_open_another_file_where_no_commit_was_is_taken(self) -> None:
        await self.lived()
        mine = self.path.read_bytes()
        self.path.unlink()
        self.forget()
        for path in self.folder.glob("*.db"):
            path.unlink()
        self.open()
        await self.close()
        self.path.write_bytes(mine)
        store = self.open()
        self.assertEqual(store.problems, [])
        self.assertIsNone((await store.commit(ENTRY, self.KEY)).commit)

    async def test_open_empty_file_beside_a_log_removes_nothing(self) -> None:
        """SQLite removes the log of an empty database, which may hold the only copy of commits."""
        store = self.open()
        await store.commit(ENTRY, None)
        copy = new_folder(self, "store")
        for name in (NAME, f"{NAME}-wal"):
            shutil.copy(self.folder / name, copy / name)
        await self.close()
        self.folder, self.path = copy, copy / NAME
        whole = self.path.read_bytes()
        log = self.path.with_name(f"{NAME}-wal").read_bytes()
        self.assertTrue(log)
        for content in (b"", None):
            self.path.unlink()
            if content is not None:
                self.path.write_bytes(content)
            self.assertIn("write-ahead log", await self.refused(self.open()))
            await self.close()
            self.assertEqual(self.path.with_name(f"{NAME}-wal").read_bytes(), log)
            self.path.write_bytes(whole)
        self.open()
        await self.close()
        self.assertEqual(self.count(), 1)

    async def test_open_beside_databases_of_the_old_server_is_a_first_start(self) -> None:
        with self.rows(self.folder / "M.db") as connection:
            connection.execute(
                "CREATE TABLE v_hour_avg (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
            )
            connection.execute(
                "CREATE TABLE anomaly"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
            )
            connection.execute("INSERT INTO v_hour_avg (time, data) VALUES ('2025-12-18 10:00:00', 1.5)")
        (self.folder / "N.db").write_bytes(b"something else" * 1000)
        (self.folder / "O.db").touch()
        store = self.open()
        self.assertEqual(store.problems, [])
        self.assertEqual((await store.commit(ENTRY, None)).answer["id"], 1)
        self.assertEqual((await store.means(MeansQuery("hour", "M", DAY, DAY))).items[0]["data"], 1.5)

    async def test_open_beside_a_spool_with_entries_refuses_commits(self) -> None:
        clock = WallClock(UTC, lambda: self.wall, time.monotonic)
        spool = Spool(reactor, clock, self.counters, str(self.folder), 10**6)
        spool.open()
        await spool.append([fault("M", 1)])
        number = spool.reserved
        await spool.close()
        store = self.open()
        self.assertIn(SPOOL_FILE, await self.refused(store))
        self.assertGreater(store.first_seq, number)

    async def test_open_garbage_names_the_remedy_and_an_accepted_start_renames_it(self) -> None:
        for content in (b"something else" * 1000, b"SQLite format 3\0" + b"x" * 5000, bytes(8192)):
            self.path.write_bytes(content)
            with self.assertRaisesRegex(StoreUnavailable, f"{NAME} is damaged .*{self.path}.*--accept-empty-store"):
                self.open()
            self.assertEqual(self.path.read_bytes(), content)
            store = self.open(accept_empty=True)
            await store.commit(ENTRY, None)
            await self.close()
            (aside,) = self.folder.glob(f"{NAME}.set-aside-*")
            self.assertEqual(aside.read_bytes(), content)
            aside.unlink()

    async def test_open_truncated_in_the_middle_does_not_start_as_new(self) -> None:
        store = self.open()
        await gatherResults([ensureDeferred(store.commit(ENTRY, IdempotencyKey(f"{n}", "f"))) for n in range(200)])
        await self.close()
        whole = self.path.read_bytes()
        for size in (100, 4096, len(whole) // 2):
            self.path.write_bytes(whole[:size])
            try:
                store = self.open()
            except StoreUnavailable as error:
                self.assertIn("damaged", str(error))
            else:
                await until(lambda store=store: store.problems, "the check")
                await self.refused(store)
                await self.close()

    async def test_open_directory_in_the_place_of_the_file_names_it(self) -> None:
        self.path.mkdir()
        with self.assertRaisesRegex(StoreUnavailable, f"{self.path}: a directory is in the place"):
            self.open()

    async def test_accept_without_a_loss_changes_nothing_and_is_logged(self) -> None:
        await self.lived()
        with capturedLogs() as events:
            store = self.open(accept_empty=True)
        self.assertEqual(len([event for event in events if "no file was lost" in event["log_format"]]), 1)
        self.assertIsNone((await store.commit(ENTRY, self.KEY)).commit)

    async def test_open_by_a_command_notes_and_accepts_nothing(self) -> None:
        await self.lived()
        note = read_note(str(self.folder), "store")
        self.path.write_bytes(b"")
        store = self.open(gives_numbers=False, accept_empty=True)
        await self.refused(store)
        await self.close()
        self.assertEqual((self.path.read_bytes(), read_note(str(self.folder), "store")), (b"", note))

    async def test_open_without_the_table_of_numbers_creates_it_again(self) -> None:
        reserved = await self.lived()
        with self.rows() as connection:
            connection.execute("DROP TABLE event_seq")
        store = self.open()
        self.assertEqual(store.first_seq, reserved + 1)
        await store.commit(ENTRY, None)

    async def test_open_file_restored_from_a_dump(self) -> None:
        """A dump lacks the version of the schema."""
        await self.lived()
        with self.rows() as connection:
            dump = "\n".join(connection.iterdump())
        self.path.unlink()
        with self.rows() as connection:
            connection.executescript(dump)
            self.assertEqual(connection.execute("PRAGMA user_version").fetchone(), (0,))
        store = self.open()
        self.assertEqual(store.problems, [])
        self.assertIsNone((await store.commit(ENTRY, self.KEY)).commit)

    async def test_note_follows_commits(self) -> None:
        store = self.open()
        await store.commit(ENTRY, None)
        await until(lambda: (read_note(str(self.folder), "store") or Note("")).commit == 1, "the note")
        self.assertEqual(read_note(str(self.folder), "store").reserved, store.reserved)  # type: ignore[union-attr]

    def test_invalid_note_is_ignored(self) -> None:
        for text in (
            b"",
            b"{",
            b"[]",
            b'{"identity": "x"}',
            json.dumps({"identity": "x", "commit": -1, "reserved": 0, "waiting": 0}).encode(),
        ):
            os.setxattr(self.folder, "user.cynow-gateway.store", text)
            self.assertIsNone(read_note(str(self.folder), "store"))
        self.assertFalse(write_note(str(self.folder / "missing"), "store", Note("x")))


class MachineFileTests(StoreCase):
    """A damaged database of a machine is reported, and its queries fail instead of being empty."""

    async def damage(self, *tables: str) -> SqliteStore:
        store = self.open()
        self.assertEqual(await store.write([mean("v", "2025-12-18 10:00:00", 1.0), fault("M", 1), fault("N", 1)]), [])
        await self.close()
        path = self.folder / "M.db"
        self.whole = path.read_bytes()
        with self.rows(path) as connection:
            ((size,),) = connection.execute("PRAGMA page_size")
            roots = connection.execute("SELECT tbl_name, rootpage FROM sqlite_master WHERE rootpage").fetchall()
        with path.open("r+b") as file:
            for table, root in roots:
                if table in tables:
                    file.seek((root - 1) * size)
                    file.write(b"\xa5" * size)
        return self.open()

    def lost(self) -> float:
        return self.counters.registry.get_sample_value("cynow_store_lost_total") or 0.0

    async def test_writes_and_queries_of_a_damaged_machine_are_problems(self) -> None:
        store = await self.damage("v_hour_avg", "anomaly")
        for question in (
            ensureDeferred(store.means(MeansQuery("hour", "M", DAY, DAY))),
            ensureDeferred(store.anomalies("M", DAY, DAY)),
        ):
            with self.assertRaises(StoreUnavailable):
                await question
        (problem,) = store.problems
        self.assertIn("statistics of M cannot be read: M.db: the file is damaged", problem)
        self.assertEqual(await store.write([fault("M", 2), fault("N", 2), fault("M", 3)]), [])
        (problem,) = store.problems
        self.assertIn("statistics of M cannot be written: M.db: the file is damaged", problem)
        self.assertIn("2 entries lost", problem)
        self.assertIn("gateway.recompute", problem)
        self.assertEqual(self.lost(), 2)
        self.assertEqual([item["name"] for item in (await store.anomalies(None, DAY, DAY)).items], ["N", "N"])
        # The problem does not end by itself.
        await self.until_checked(machine_db.MachineDatabases, "_log_repaired")
        self.assertEqual(store.problems, [problem])
        await store.commit(ENTRY, None)

    async def test_write_into_the_sound_tables_of_a_damaged_machine_succeeds(self) -> None:
        store = await self.damage("v_hour_avg")
        entries: list[StoreEntry] = [fault("M", 2), mean("v", "2025-12-18 10:00:00", 2.0), fault("M", 3)]
        self.assertEqual(await store.write(entries), [])
        self.assertEqual(self.lost(), 1)
        self.assertIn("1 entries lost", store.problems[0])
        self.assertEqual(len((await store.anomalies("M", DAY, DAY)).items), 3)

    async def test_problem_of_a_machine_ends_when_its_file_is_moved_or_restored(self) -> None:
        for restored in (True, False):
            store = await self.damage("anomaly")
            self.assertEqual(await store.write([fault("M", 2)]), [])
            self.assertTrue(store.problems)
            (self.folder / "M.db").rename(self.folder / "M.damaged")
            for suffix in ("-wal", "-shm"):
                (self.folder / f"M.db{suffix}").unlink(missing_ok=True)
            if restored:
                (self.folder / "M.db").write_bytes(self.whole)
            with capturedLogs() as events:
                await until(lambda store=store: not store.problems, "no problem")
            self.assertEqual([event["count"] for event in events if "sound again" in event["log_format"]], [1])
            self.assertEqual(await store.write([fault("M", 3)]), [])
            self.assertEqual(len((await store.anomalies("M", DAY, DAY)).items), 2 if restored else 1)
            await self.close()
            for path in self.folder.glob("[MN].*"):
                path.unlink()

    async def test_problem_of_a_machine_ends_after_a_check_that_failed(self) -> None:
        store = await self.damage("anomaly")
        look, checks = store._machines._faults.check, []

        def failing(path_of: Any) -> Any:
            checks.append(path_of)
            if len(checks) < 3:
                raise RuntimeError("the check")
            return look(path_of)

        self.patch(store._machines._faults, "check", failing)
        self.assertEqual(await store.write([fault("M", 2)]), [])
        await until(lambda: len(checks) > 3, "further checks")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertTrue(store.problems)
        (self.folder / "M.db").unlink()
        await until(lambda: not store.problems, "no problem")

    async def test_file_that_is_not_a_database_is_a_problem(self) -> None:
        (self.folder / "M.db").write_bytes(b"something else" * 1000)
        store = self.open()
        with self.assertRaises(StoreUnavailable):
            await store.means(MeansQuery("day", "M", DAY, DAY))
        self.assertEqual((await store.anomalies(None, DAY, DAY)).items, [])
        self.assertIn("M.db: the file is not a database", store.problems[0])
        self.assertEqual(await store.write([fault("M", n) for n in range(20)]), [])
        self.assertIn("20 entries lost", store.problems[0])
        self.assertEqual(self.lost(), 20)

    async def test_log_lines_about_a_damaged_machine_are_limited(self) -> None:
        store = await self.damage("v_hour_avg", "anomaly")
        with capturedLogs() as events:
            for _ in range(100):
                await store.write([fault("M", 2)])
                with self.assertRaises(StoreUnavailable):
                    await store.anomalies("M", DAY, DAY)
        self.assertLess(len(events), 15)
        self.assertEqual(self.lost(), 100)

    async def test_machine_that_cannot_be_written_is_a_problem_until_it_is(self) -> None:
        (self.folder / "M.db").mkdir()
        store = self.open()
        again = await store.write([fault("M", 1)])
        self.assertEqual(again, [fault("M", 1)])
        self.assertIn("statistics of M cannot be written", store.problems[0])
        self.assertIn("retrying", store.problems[0])
        (self.folder / "M.db").rmdir()
        self.assertEqual(await store.write(again), [])
        self.assertEqual(store.problems, [])

    async def test_many_machines_are_counted(self) -> None:
        store = self.open()
        for number in range(30):
            (self.folder / f"M{number}.db").write_bytes(b"something else" * 1000)
        await store.write([fault(f"M{number}", 1) for number in range(30)])
        self.assertEqual(len(store.problems), 21)
        self.assertIn("10 more machines", store.problems[-1])

    async def test_bytes_overwritten_behind_an_open_connection_are_noticed(self) -> None:
        store = self.open()
        await store.write(
            [mean("v", f"2025-12-{day:02} {hour:02}:00:00", 1.0) for day in range(1, 29) for hour in range(24)]
        )
        await self.close()
        store = self.open()
        self.assertEqual(len((await store.means(MeansQuery("hour", "M", DAY, DAY))).items), 24)
        path = self.folder / "M.db"
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        with self.assertRaises(StoreUnavailable):
            await store.means(MeansQuery("hour", "M", DAY, DAY))
        self.assertIn("M.db", store.problems[0])


class MachineFaultsTests(SynchronousTestCase):
    """Faults of machines with other threads and programs."""

    def setUp(self) -> None:
        self.path = str(new_folder(self, "faults") / "M.db")
        self.faults = MachineFaults()

    def test_note_written_while_a_check_removes_the_fault_succeeds(self) -> None:
        class Lock:
            def __enter__(lock) -> None:
                self.faults._faults.clear()

            def __exit__(lock, *_: object) -> None:
                pass

        self.faults.note_wait("M", "locked")
        self.patch(self.faults, "_lock", Lock())
        self.faults.note_written("M")
        self.assertEqual(self.faults._faults, {})

    def test_check_of_a_locked_file_is_repeated(self) -> None:
        self.faults.note_damage("M", "the file is damaged", "read", 3)
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("CREATE TABLE anomaly (id INTEGER)")
            other.execute("BEGIN EXCLUSIVE")
            self.assertEqual(self.faults.check(lambda _: self.path), [])
            other.execute("ROLLBACK")
        self.assertEqual(self.faults.check(lambda _: self.path), [("M", 3)])
        self.assertEqual(self.faults.problems, [])


class SpoolFileTests(StoreCase):
    """A lost spool is reported, and event numbers continue above its own."""

    def spool(self) -> Spool:
        clock = WallClock(UTC, lambda: self.wall, time.monotonic)
        spool = Spool(reactor, clock, self.counters, str(self.folder), 10**6)
        spool.open()
        self.opened.append(spool)
        return spool

    async def test_open_spool_lost_continues_numbers_and_reports_waiting_entries(self) -> None:
        for content in (None, b""):
            spool = self.spool()
            await spool.append([fault("M", 1), fault("M", 2)])
            reserved = spool.reserved
            await self.close()
            (self.folder / SPOOL_FILE).unlink()
            if content is not None:
                (self.folder / SPOOL_FILE).write_bytes(content)
            spool = self.spool()
            self.assertEqual(spool.first_seq, reserved + 1)
            assert spool.problem is not None
            for word in (SPOOL_FILE, "missing" if content is None else "0 bytes", "2 entries", "recompute"):
                self.assertIn(word, spool.problem)
            await spool.append([fault("M", 3)])
            for number, _ in await spool.first(10):
                await spool.done(number)
            await self.close()
            # The problem is reported until the next start.
            self.assertIsNone(self.spool().problem)
            await self.close()

    async def test_open_spool_lost_without_waiting_entries_is_only_logged(self) -> None:
        self.spool()
        await self.close()
        (self.folder / SPOOL_FILE).unlink()
        with capturedLogs() as events:
            spool = self.spool()
        self.assertIsNone(spool.problem)
        self.assertIn("missing", str([event["problem"] for event in events if "problem" in event]))

    async def test_open_spool_for_the_first_time_logs_nothing(self) -> None:
        with capturedLogs() as events:
            self.assertIsNone(self.spool().problem)
        self.assertEqual(events, [])

    async def test_open_spool_damaged_names_the_remedy(self) -> None:
        (self.folder / SPOOL_FILE).write_bytes(b"something else" * 1000)
        with self.assertRaisesRegex(StoreUnavailable, f"^{SPOOL_FILE}: .*not a database.*move it away"):
            self.spool()

    async def test_removed_spool_is_a_problem_without_an_entry(self) -> None:
        spool = self.spool()
        moved = (self.folder / SPOOL_FILE).rename(self.folder / "moved")
        await until(lambda: spool.problem, "a problem")
        self.assertIn("removed or replaced", str(spool.problem))
        moved.rename(self.folder / SPOOL_FILE)
        await until(lambda: spool.problem is None, "no problem")


class ErrorTests(SynchronousTestCase):
    """Explanations of SQLite's errors."""

    def error(self, code: int, text: str = "text") -> sqlite3.Error:
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        return error

    def test_errors_that_may_pass(self) -> None:
        for code in (
            sqlite3.SQLITE_BUSY_SNAPSHOT,
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR_FSYNC,
            sqlite3.SQLITE_CANTOPEN_ISDIR,
            sqlite3.SQLITE_READONLY_DBMOVED,
            sqlite3.SQLITE_PROTOCOL,
        ):
            self.assertTrue(sqlite_errors.may_pass(self.error(code)), code)
        for code in (
            sqlite3.SQLITE_CORRUPT_INDEX,
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_CONSTRAINT,
        ):
            self.assertFalse(sqlite_errors.may_pass(self.error(code)), code)
        self.assertTrue(sqlite_errors.is_damage(self.error(sqlite3.SQLITE_CORRUPT_SEQUENCE)))

    def test_explained_full_disk_names_the_directory(self) -> None:
        text = sqlite_errors.explained(self.error(sqlite3.SQLITE_FULL), "/dev/shm/db/x.sqlite3")
        self.assertIn("/dev/shm/db", text)
        folder = new_folder(self, "full")
        text = sqlite_errors.explained(self.error(sqlite3.SQLITE_FULL), f"{folder}/x.sqlite3")
        self.assertEqual(text, f"{folder}: the disk is full; make room")
        # An I/O error keeps its text if a trial write succeeds.
        text = sqlite_errors.explained(self.error(sqlite3.SQLITE_IOERR, "disk I/O error"), f"{folder}/x.sqlite3")
        self.assertEqual(text, "x.sqlite3: disk I/O error")
