"""The file of commits: opening, one writing thread, and a check of the whole file after the start."""

import contextlib
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.event_numbers import SEQ_BLOCK
from gateway.store.interface import StoreUnavailable
from gateway.store.sqlite.commits import check_schema, touch
from gateway.store.sqlite.opening import highest_commit, open_store
from gateway.store.sqlitefile.errors import explained, is_damage
from gateway.store.sqlitefile.files import GATEWAY_FILE, STORE_NOTE
from gateway.store.sqlitefile.group_writer import GroupWriter, Watch
from gateway.store.sqlitefile.note import write_note
from gateway.store.sqlitefile.transactions import Job

log = Logger()

T = TypeVar("T")

#: Maximum time until a commit is answered, whatever the disk does, in seconds.
_PATIENCE: Final = 5.0


class CommitFile:
    """The file of commits; if it is lost, the gateway runs without it and commits are refused.

    :param directory: ``database.path``.
    :param check_pool: pool of the thread that reads whole files.
    :param gives_numbers: whether event numbers will be given out; a command gives none.
    :param accept_empty: whether to go on without a file that existed and is lost.
    :ivar first_seq: first event number of this process.
    :ivar reserved: last event number that may be used before a reservation.
    """

    first_seq: int
    reserved: int

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        directory: str,
        check_pool: ThreadPool,
        *,
        gives_numbers: bool,
        accept_empty: bool,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._directory = directory
        self._path = os.path.join(directory, GATEWAY_FILE)
        self._check_pool = check_pool
        self._warnings = LimitedLog(log, clock, counters)
        self._gives_numbers = gives_numbers
        self._accept_empty = accept_empty
        self._pool = pool_of(1, "commits")
        self._is_closing = False
        #: Why the file is lost; ``None`` if it is there.
        self._loss: str | None = None
        self._writer: GroupWriter | None = None
        #: Connection of the running check.
        self._checking: sqlite3.Connection | None = None

    @property
    def problem(self) -> str | None:
        """Return why commits are refused; ``None`` if they are not."""
        return self._loss if self._writer is None else self._writer.problem

    @property
    def is_usable(self) -> bool:
        """Return whether the file is there and not damaged."""
        return self._writer is not None and not self._writer.is_damaged

    def open(self) -> None:
        """Open the file. This may block: the reactor is not running yet.

        :raises StoreUnavailable: the gateway cannot start with this file.
        """
        opened = open_store(
            self._directory, self._clock.wall(), accept=self._accept_empty, gives_numbers=self._gives_numbers
        )
        self.first_seq = opened.reserved + 1
        self.reserved = opened.reserved + SEQ_BLOCK
        self._note = opened.note
        self._loss = opened.problem
        self._pool.start()
        if opened.connection is not None:
            watch = Watch("commits", check_schema, touch, self._note_commits)
            self._writer = GroupWriter(self._reactor, self._pool, opened.connection, self._path, watch, self._warnings)

    def begin_check(self) -> None:
        """Check the whole file in the thread for checks, and refuse commits if it is damaged."""
        if self._writer is not None:
            check = deferToThreadPool(self._reactor, self._check_pool, self._find_damage, self._path)
            check.addCallbacks(
                self._condemn, lambda failure: log.failure("cannot check {file}", failure, file=GATEWAY_FILE)
            )

    async def run(self, job: Job[T], *, once: bool = False, patience: float | None = _PATIENCE) -> T:
        """Run a job in a transaction, and return when that is durable.

        :param once: whether to report an unknown outcome as :class:`~gateway.store.interface.OutcomeUnknown`.
        :param patience: maximum time until the answer, in seconds.
        :raises StoreUnavailable: nothing was written.
        """
        if self._writer is None:
            raise StoreUnavailable(self._loss or "closed")
        return await self._writer.run(job, patience, once=once)

    async def reserve(self, up_to: int) -> None:
        """Reserve the event numbers up to ``up_to``, in the file and in the note outside it."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE event_seq SET reserved = max(reserved, ?)", (up_to,))
            self._note_reserved(up_to)

        if self._writer is None and not self._is_closing:
            await deferToThreadPool(self._reactor, self._pool, self._note_reserved, up_to)
        else:
            await self.run(job, patience=None)

    async def close(self) -> None:
        """Interrupt the check, finish the waiting jobs and close the file."""
        self._is_closing = True
        checking = self._checking
        if checking is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):
                checking.interrupt()
        if self._writer is not None:
            with contextlib.suppress(StoreUnavailable, sqlite3.Error):
                await self.run(self._note_commits, patience=None)
            await self._writer.close()

    def stop_thread(self) -> None:
        """Stop the writing thread; called after :meth:`close`."""
        self._pool.stop()

    def _find_damage(self, path: str) -> str | None:
        """Check the whole file; return the damage in words, or ``None``."""
        uri = Path(path).absolute().as_uri() + "?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
                self._checking = connection
                if self._is_closing:
                    return None
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                self._checking = None
        except sqlite3.Error as error:
            self._checking = None
            found = explained(error, path) if is_damage(error) else "ok"
        else:
            if found != "ok":
                found = f"{GATEWAY_FILE}: the file is damaged ({found.splitlines()[-1]})"
        # A sound file looks damaged if its write-ahead log was removed; the writer reports that.
        is_replaced = self._writer is not None and self._writer.find_replacement() is not None
        return None if found == "ok" or is_replaced else found

    def _condemn(self, damage: str | None) -> None:
        if damage is not None and self._writer is not None:
            self._writer.condemn(damage)

    def _note_commits(self, connection: sqlite3.Connection) -> None:
        """Write the highest commit id into the note outside the file, in the writer's thread."""
        if self._gives_numbers:
            highest = highest_commit(connection)
            if highest > self._note.commit:
                self._note = replace(self._note, commit=highest)
                write_note(self._directory, STORE_NOTE, self._note)

    def _note_reserved(self, up_to: int) -> None:
        self._note = replace(self._note, reserved=max(self._note.reserved, up_to))
        write_note(self._directory, STORE_NOTE, self._note)
