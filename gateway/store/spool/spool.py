"""Local queue of entries for a PostgreSQL server that may be unavailable.

``cynow-gateway-spool.sqlite3`` under ``database.path`` holds numbered entries that wait for the server, the reserved
event numbers, and the progress of each sensor's statistics, which the recovery after a kill needs even without the
server. The progress is written in one transaction with the entries that change it.
"""

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from gateway.model.entries import Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.event_numbers import SEQ_BLOCK, EventNumberStore
from gateway.store.interface import DirectoryUnusable, RollupProgress, StoreUnavailable
from gateway.store.spool.codec import row_of
from gateway.store.spool.marks import adopt, stored_progress
from gateway.store.spool.queue import insert_entries, oldest_entries
from gateway.store.spool_interface import EntrySpool
from gateway.store.sqlitefile.errors import explained, is_damage
from gateway.store.sqlitefile.files import GATEWAY_FILE, SPOOL_FILE, STORE_NOTE, reserved_in
from gateway.store.sqlitefile.group_writer import GroupWriter, Watch
from gateway.store.sqlitefile.note import Note, read_note, write_note
from gateway.store.sqlitefile.steps import newer_version, prepare_checked, schema_steps
from gateway.store.sqlitefile.transactions import LOCK_WAIT, Job

log = Logger()

T = TypeVar("T")

_SCHEMA: Final = "gateway.store.spool.schema"

#: Name of the note on this file.
_NOTE: Final = "spool"

#: Size in bytes to which the write-ahead log is truncated once it is in the database.
_MAX_LOG_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class _Spell:
    """A spell in which entries are given up.

    :ivar text: reason; ``None`` outside such a spell.
    :ivar given_up: number of entries that were given up.
    """

    text: str | None = None
    given_up: int = 0


class Spool(EntrySpool, EventNumberStore):
    """Waiting entries, event numbers, and progress of statistics, in one SQLite file.

    Statistics may use nine tenths of the space: they can be computed again from raw files. The last tenth is for
    anomalies and sightings. Entries that have no space, or that the disk refuses, are given up: they are counted, and
    logged once a spell. They change no mark, so that the next start finds their samples in the raw files.

    :param directory: ``database.path``; it exists, and no other gateway uses it.
    :param max_bytes: maximum cost of waiting entries, in bytes.
    """

    def __init__(
        self, reactor: IReactorFromThreads, clock: WallClock, counters: Counters, directory: str, max_bytes: int
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._path = os.path.join(directory, SPOOL_FILE)
        self._max_bytes = max_bytes
        self._pool = pool_of(1, "spool")
        self._is_open = False
        self.waiting = 0
        #: Used space in bytes, running writes included.
        self._used = 0
        self._full = _Spell()
        self._failing = _Spell()
        self._warnings = LimitedLog(log, clock, counters)
        self._writer: GroupWriter | None = None
        #: Loss of an earlier file, for `/healthz`.
        self._loss: str | None = None

    @property
    def used_bytes(self) -> int:
        return self._used

    @property
    def outage(self) -> str | None:
        problem = self._failing.text or self._full.text
        if problem is None and self._writer is not None and self._writer.problem is not None:
            problem = f"cannot write the spool: {self._writer.problem}"
        return problem

    @property
    def problem(self) -> str | None:
        return self.outage or self._loss

    def open(self) -> None:
        directory = os.path.dirname(self._path)
        # Before anything is written: the newer version must find everything as it left it.
        newer = newer_version(self._path, max(schema_steps(_SCHEMA)))
        if newer is not None:
            raise DirectoryUnusable(newer)
        note = read_note(directory, _NOTE)
        try:
            found = self._find_loss(note)
            connection = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection)
                self.identity, reserved = connection.execute("SELECT identity, reserved FROM state").fetchone()
                if not reserved:
                    # The gateway may have used the embedded store before, and event numbers never go back.
                    reserved = reserved_in(os.path.join(directory, GATEWAY_FILE))
                    embedded = read_note(directory, STORE_NOTE)
                    reserved = max(reserved, 0 if embedded is None else embedded.reserved)
                reserved = max(reserved, 0 if note is None else note.reserved)
                waiting, self._used = connection.execute("SELECT count(*), ifnull(sum(cost), 0) FROM entry").fetchone()
                connection.execute("UPDATE state SET reserved = ?", (reserved + SEQ_BLOCK,))
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise DirectoryUnusable(self._unusable(error)) from error
        if found is not None:
            log.error("{problem}", problem=found)
            # Without waiting entries nothing is lost.
            self._loss = found if note is None or note.waiting else None
        self.first_seq = reserved + 1
        self.reserved = reserved + SEQ_BLOCK
        self._note = Note(self.identity, 0, self.reserved, waiting)
        write_note(directory, _NOTE, self._note)
        self._add_waiting(waiting)
        self._pool.start()
        watch = Watch("writes to the spool", _check, _touch, self._note_waiting, logs=False)
        self._writer = GroupWriter(self._reactor, self._pool, connection, self._path, watch, self._warnings)
        self._is_open = True

    def _find_loss(self, note: Note | None) -> str | None:
        """Return the loss of an earlier file, in words; ``None`` if the file exists, or never existed."""
        try:
            size = os.stat(self._path).st_size
        except OSError:
            size = None
        if size or (size is None and note is None):
            return None
        waited = "" if note is None else f"; {note.waiting} entries waited in it at the last check"
        state = "missing" if size is None else "empty (0 bytes)"
        return (
            f"{SPOOL_FILE} was {state} at the start{waited}; its entries are lost, and a new file was created;"
            " python -m gateway.recompute restores statistics"
        )

    def _unusable(self, error: sqlite3.Error) -> str:
        text = explained(error, self._path)
        return f"{text}; {_remedy(self._path)}" if is_damage(error) else text

    def _note_waiting(self, connection: sqlite3.Connection) -> None:
        """Write the number of waiting entries into the note outside the file, in the writer's thread."""
        if self.waiting != self._note.waiting:
            self._note = replace(self._note, waiting=self.waiting)
            write_note(os.path.dirname(self._path), _NOTE, self._note)

    async def reserve(self, up_to: int) -> None:
        def job(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE state SET reserved = max(reserved, ?)", (up_to,))
            self._note = replace(self._note, reserved=max(self._note.reserved, up_to))
            write_note(os.path.dirname(self._path), _NOTE, self._note)

        await self._run(job)

    # -- waiting entries

    async def append(self, entries: Sequence[StoreEntry]) -> None:
        admitted = self._admit(entries)
        if not admitted:
            return
        today = self._clock.now().date()
        try:
            await self._run(lambda connection: insert_entries(connection, admitted, self._clock.zone, today))
        except Exception as error:  # the writer must go on, whatever the error
            self._used -= sum(cost for _, (*_, cost, _) in admitted)
            text = f"cannot write the spool, and entries are given up: {error}"
            self._give_up(self._failing, text, len(admitted))
        else:
            self._end(self._failing)
            self._add_waiting(len(admitted))
        self._end_if_space()

    def _admit(self, entries: Sequence[StoreEntry]) -> "list[tuple[StoreEntry, tuple[Any, ...]]]":
        """Return the entries for which there is space, with their rows; give up the others."""
        admitted = []
        for entry in entries:
            try:
                row = row_of(entry)
            except (TypeError, ValueError) as error:
                log.error("an entry cannot be encoded, and is lost: {error}", error=error)
                self._counters.store_lost.inc()
                continue
            *_, cost, _ = row
            bound = self._max_bytes if isinstance(entry, Fault | Sighting) else self._max_bytes * 9 // 10
            if self._used + cost <= bound:
                self._used += cost
                admitted.append((entry, row))
            else:
                text = "the spool is full, and entries are given up; raise database.spool_mb"
                self._give_up(self._full, text, 1)
        return admitted

    async def first(self, limit: int) -> Sequence[tuple[int, StoreEntry]]:
        found, broken, cost = await self._run(lambda connection: oldest_entries(connection, limit, self._clock.zone))
        if broken:
            log.error("{count} entries of the spool cannot be decoded, and are lost", count=broken)
            self._counters.store_lost.inc(broken)
            self._remove(broken, cost)
        return found

    async def done(self, number: int) -> None:
        def job(connection: sqlite3.Connection) -> tuple[int, int]:
            count, cost = connection.execute(
                "SELECT count(*), ifnull(sum(cost), 0) FROM entry WHERE number <= ?", (number,)
            ).fetchone()
            connection.execute("DELETE FROM entry WHERE number <= ?", (number,))
            return count, cost

        self._remove(*await self._run(job))

    def _remove(self, count: int, cost: int) -> None:
        self._used -= cost
        self._add_waiting(-count)
        self._end_if_space()

    def _add_waiting(self, count: int) -> None:
        self.waiting += count
        self._counters.spool_waiting.set(self.waiting)

    def _give_up(self, spell: _Spell, text: str, count: int) -> None:
        self._counters.store_lost.inc(count)
        if spell.text is None:
            log.error("{text}; python -m gateway.recompute restores statistics", text=text)
        spell.text = text
        spell.given_up += count

    def _end_if_space(self) -> None:
        """End the spell of a full spool once a quarter is free; with less, each entry could begin a spell."""
        if self._used <= self._max_bytes * 3 // 4:
            self._end(self._full)

    def _end(self, spell: _Spell) -> None:
        if spell.text is not None:
            log.info("the spool accepts entries again; {count} were given up", count=spell.given_up)
            spell.text, spell.given_up = None, 0

    # -- progress of statistics

    async def rollup_progress(self) -> RollupProgress | None:
        return await self._run(lambda connection: stored_progress(connection, self._clock.zone))

    async def adopt(self, progress: RollupProgress) -> None:
        zone, today = self._clock.zone, self._clock.now().date()
        await self._run(lambda connection: adopt(connection, progress, zone, today))

    async def _run(self, job: Job[T]) -> T:
        if self._writer is None:
            raise StoreUnavailable("the spool is not open")
        try:
            return await self._writer.run(job)
        except sqlite3.Error as error:
            # The gateway goes on without the spool, whatever the error.
            raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(StoreUnavailable):
                await self._run(self._note_waiting)
            if self._writer is not None:
                await self._writer.close()
            self._pool.stop()


def _check(connection: sqlite3.Connection) -> None:
    for table in ("entry", "sensor", "mark", "period", "state"):
        connection.execute(f"SELECT 1 FROM {table} LIMIT 0")  # noqa: S608 - fixed text


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE state SET reserved = reserved")


def _remedy(path: str) -> str:
    """Return the remedy for a damaged spool."""
    return (
        f"restore {path} from a backup; or move it away with its -wal, which loses the waiting entries, and restore"
        " statistics by python -m gateway.recompute"
    )


def _prepare(connection: sqlite3.Connection) -> None:
    """Check the file, and apply the numbered steps of the schema that it lacks.

    :raises DirectoryUnusable: the file is damaged.
    """
    damage = prepare_checked(connection, schema_steps(_SCHEMA), _MAX_LOG_BYTES)
    if damage is not None:
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise DirectoryUnusable(f"{SPOOL_FILE}: {damage}; {_remedy(path)}")
