"""The file of the record, for a gateway whose commits are on PostgreSQL."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, Final, TypeVar

from twisted.logger import Logger

from gateway.record.table import check_record
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.interface import DirectoryUnusable, StoreUnavailable
from gateway.store.sqlitefile.errors import explained
from gateway.store.sqlitefile.files import GATEWAY_FILE, RECORD_FILE
from gateway.store.sqlitefile.group_writer import GroupWriter, Watch
from gateway.store.sqlitefile.note import Note, read_note, write_note
from gateway.store.sqlitefile.steps import apply_steps, newer_version, schema_steps
from gateway.store.sqlitefile.transactions import LOCK_WAIT, Job

log = Logger()

T = TypeVar("T")

_SCHEMA: Final = "gateway.record.schema"

#: Name of the note on this file, which has the last number.
_NOTE: Final = "record"

#: Maximum time until a job is answered, whatever the disk does, in seconds.
_PATIENCE: Final = 5.0


class RecordFile:
    """The file of the record and its writing thread.

    :param directory: ``database.path``; it exists, and no other gateway uses it.
    :ivar loss: what is missing of the file of an earlier start; ``None`` if nothing is.
    """

    def __init__(self, reactor: Any, clock: WallClock, counters: Counters, directory: str) -> None:
        self._reactor = reactor
        self._directory = directory
        self._path = os.path.join(directory, RECORD_FILE)
        self._warnings = LimitedLog(log, clock, counters)
        self._pool = pool_of(1, "record")
        self._writer: GroupWriter | None = None
        self._noted = 0
        self.loss: str | None = None

    def check_version(self) -> None:
        """Check that no newer version of the gateway wrote the file; do not change it.

        :raises DirectoryUnusable: one did.
        """
        newer = newer_version(self._path, max(schema_steps(_SCHEMA)))
        if newer is not None:
            raise DirectoryUnusable(newer)

    def open(self) -> None:
        """Open the file. This may block: the reactor is not running yet.

        :raises DirectoryUnusable: the gateway cannot start with this file.
        """
        self.check_version()
        try:
            connection = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False)
            try:
                last = _prepare(connection, os.path.join(self._directory, GATEWAY_FILE))
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise DirectoryUnusable(explained(error, self._path)) from error
        note = read_note(self._directory, _NOTE)
        if note is not None and note.commit > last:
            self.loss = f"{RECORD_FILE} ends at entry {last}, but had {note.commit} entries; restore it from a backup"
            log.error("record: {loss}", loss=self.loss)
        self._noted = last
        self._pool.start()
        watch = Watch("entries of the record", check_record, _touch, self._note_last)
        self._writer = GroupWriter(self._reactor, self._pool, connection, self._path, watch, self._warnings)

    async def run(self, job: Job[T]) -> T:
        """Run a job in a transaction, and return when it is durable.

        :raises StoreUnavailable: nothing was written.
        """
        if self._writer is None:
            raise StoreUnavailable("the record is not open")
        try:
            return await self._writer.run(job, _PATIENCE)
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from error

    async def close(self) -> None:
        """Finish the waiting jobs and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()
            self._pool.stop()

    def _note_last(self, connection: sqlite3.Connection) -> None:
        """Write the last number into the note outside the file, in the writer's thread."""
        (last,) = connection.execute("SELECT ifnull(max(number), 0) FROM record").fetchone()
        if last > self._noted:
            self._noted = last
            write_note(self._directory, _NOTE, Note("", last))


def _prepare(connection: sqlite3.Connection, embedded: str) -> int:
    """Apply the steps of the schema that the file lacks; return the last number of the record.

    :param embedded: path of the file of commits, whose record a gateway that moves to PostgreSQL continues.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    apply_steps(connection, schema_steps(_SCHEMA), done)
    (last,) = connection.execute("SELECT ifnull(max(number), 0) FROM record").fetchone()
    if not last and os.path.exists(embedded):
        last = _continue_embedded(connection, embedded)
    return int(last)


def _continue_embedded(connection: sqlite3.Connection, path: str) -> int:
    """Copy the record of the embedded store, so that numbers and heads go on; return its last number."""
    uri = Path(path).absolute().as_uri() + "?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT)) as old:
        if old.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'record'").fetchone() is None:
            return 0
        connection.execute("BEGIN IMMEDIATE")
        try:
            rows = old.execute("SELECT number, content, hash FROM record ORDER BY number")
            connection.executemany("INSERT INTO record (number, content, hash) VALUES (?, ?, ?)", rows)
            keys = old.execute("SELECT key, number FROM record_key")
            connection.executemany("INSERT OR REPLACE INTO record_key (key, number) VALUES (?, ?)", keys)
            heads = old.execute("SELECT gateway, number, hash, time FROM foreign_head")
            connection.executemany("INSERT OR REPLACE INTO foreign_head VALUES (?, ?, ?, ?)", heads)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    (last,) = connection.execute("SELECT ifnull(max(number), 0) FROM record").fetchone()
    if last:
        log.info("record: continues that of {file} after entry {last}", file=GATEWAY_FILE, last=last)
    return int(last)


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT OR REPLACE INTO record_mark (name, value) VALUES ('touched', 0)")
