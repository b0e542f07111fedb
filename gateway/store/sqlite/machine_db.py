"""Databases of machines: files, one writing thread, reading threads, and faults."""

import contextlib
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from gateway.model.entries import StoreEntry
from gateway.model.names import forms_of, is_name, name_of, name_problem
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.interface import MachineDamaged, StoreUnavailable
from gateway.store.sqlite.machine_faults import MachineFaults
from gateway.store.sqlite.machine_tables import MachineTables
from gateway.store.sqlite.opening import check_version, connect
from gateway.store.sqlite.readers import Readers
from gateway.store.sqlitefile.errors import explained, is_damage, may_pass, primary
from gateway.store.sqlitefile.group_writer import Identity, inode_of
from gateway.store.sqlitefile.transactions import LOCK_WAIT

log = Logger()

T = TypeVar("T")

#: Maximum number of files that the writer keeps open.
_MAX_OPEN: Final = 64

#: Maximum wait of a query or a write for a lock of another program, in seconds.
_LOCK_WAIT: Final = LOCK_WAIT

#: Interval of checks of damaged files, in seconds.
_CHECK_INTERVAL: Final = 5.0


class MachineDatabases:
    """The files ``<machine>.db`` of a directory. A fault of one file does not affect the others.

    :param directory: ``database.path``.
    :param check_pool: pool of the thread that reads whole files.
    """

    def __init__(
        self, reactor: Any, clock: WallClock, counters: Counters, directory: str, check_pool: ThreadPool
    ) -> None:
        self._reactor = reactor
        self._counters = counters
        self._directory = directory
        self._check_pool = check_pool
        self._warnings = LimitedLog(log, clock, counters)
        self._write_pool = pool_of(1, "machines")
        self._read_pool = pool_of(3, "reads")
        self._readers = Readers()
        #: Connection, tables and inode of each file that the writer keeps open, the most recently used last.
        self._open: OrderedDict[str, tuple[sqlite3.Connection, MachineTables, Identity | None]] = OrderedDict()
        self._faults = MachineFaults()
        self._check_call: IDelayedCall | None = None
        #: Whether the gateway is stopping, so that long queries end.
        self.is_closing = False

    @property
    def problems(self) -> list[str]:
        """Return the current faults, one line each."""
        return self._faults.problems

    def check_versions(self) -> None:
        """Check that no file was written by a newer version of the gateway; this may block.

        :raises StoreUnavailable: one was.
        """
        with contextlib.suppress(OSError):
            for file in sorted(os.listdir(self._directory)):
                if file.endswith(".db"):
                    check_version(os.path.join(self._directory, file))

    def start(self) -> None:
        """Start the threads."""
        for pool in (self._write_pool, self._read_pool):
            pool.start()

    def warn_of_unserved(self) -> None:
        """Log the files whose machines cannot be served; the old server took names that are not allowed today."""
        with contextlib.suppress(OSError):
            for file in sorted(os.listdir(self._directory)):
                problem = name_problem(file.removesuffix(".db")) if file.endswith(".db") else None
                if problem is not None:
                    self._warnings.warn(
                        "unserved",
                        "{file!r} in {directory} is not served: not a valid machine name: {problem}; rename the file",
                        file=file,
                        directory=self._directory,
                        problem=problem,
                    )

    def warn(self, kind: str, message: str, **fields: Any) -> None:
        """Log a warning from any thread, unless its kind has reached its limit."""
        self._reactor.callFromThread(partial(self._warnings.warn, kind, message, **fields))

    def names(self) -> list[str]:
        """Return the machines that have a file, sorted; this may block.

        :raises StoreUnavailable: the directory cannot be read.
        """
        try:
            files = os.listdir(self._directory)
        except OSError as error:
            raise StoreUnavailable(str(error.strerror)) from error
        names = (name_of(name.removesuffix(".db")) for name in files if name.endswith(".db"))
        return sorted({name for name in names if name is not None})

    def path_of(self, machine: str) -> str:
        """Return the path of a machine's file, which may be missing."""
        path, *older = (os.path.join(self._directory, f"{form}.db") for form in forms_of(machine))
        # A file of an older version may have a decomposed name.
        return older[0] if older and not os.path.exists(path) and os.path.exists(older[0]) else path

    # -- reading

    async def read(self, question: Callable[[], T]) -> T:
        """Call a function in a reading thread."""
        return await deferToThreadPool(self._reactor, self._read_pool, question)

    def ask(
        self,
        machine: str,
        query: Callable[[sqlite3.Connection], list[T]],
        patience: float | None = None,
        *,
        or_empty: bool = True,
    ) -> list[T]:
        """Query one machine's file, in a reading thread; the answer is empty if the file is missing.

        :param patience: maximum wait for a lock of another program, in seconds; by default that of writes.
        :param or_empty: whether the answer is also empty if the file lacks a table or a column.
        :raises StoreUnavailable: the file cannot be read, at all or at present.
        """
        path = self.path_of(machine)
        if not is_name(machine) or not os.path.exists(path):
            return []
        try:
            with self._readers.connection(path, _LOCK_WAIT if patience is None else patience) as connection:
                return query(connection)
        except sqlite3.DatabaseError as error:
            text = explained(error, path)
            if is_damage(error):
                self._faults.note_damage(machine, text, "read")
                self._reactor.callFromThread(self._check_later)
                self.warn(f"{machine} read", "cannot read {machine}.db: {error}", machine=machine, error=text)
                raise MachineDamaged(text) from error
            if primary(error) != sqlite3.SQLITE_ERROR or not or_empty:
                raise StoreUnavailable(text) from error
            self.warn(f"{machine} read", "cannot read {machine}.db: {error}", machine=machine, error=text)
            return []

    # -- writing

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        """Write entries in the writing thread; return those that must be retried later."""
        return await deferToThreadPool(self._reactor, self._write_pool, self._write, entries)

    def _write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        by_machine: dict[str, list[StoreEntry]] = {}
        for entry in entries:
            by_machine.setdefault(entry.machine, []).append(entry)
        again: list[StoreEntry] = []
        for machine, of_machine in by_machine.items():
            again += self._try_to_write(machine, of_machine)
        return again

    def _try_to_write(self, machine: str, entries: list[StoreEntry]) -> list[StoreEntry]:
        """Write entries of one machine; return those that must be retried."""
        try:
            self._write_machine(machine, entries)
        except sqlite3.Error as error:
            text = explained(error, self.path_of(machine))
            if may_pass(error):
                self._faults.note_wait(machine, text)
                self.warn(
                    f"{machine} waits", "cannot write {machine}.db now: {error}; retrying", machine=machine, error=text
                )
                return entries
            if len(entries) > 1 and primary(error) != sqlite3.SQLITE_NOTADB:
                # Only the table of a few entries may be damaged, so they are written one by one.
                return [each for entry in entries for each in self._try_to_write(machine, [entry])]
            self._give_up(machine, text, len(entries))
        else:
            self._faults.note_written(machine)
        return []

    def _give_up(self, machine: str, text: str, count: int) -> None:
        self._faults.note_damage(machine, text, "written", count)
        self._reactor.callFromThread(self._check_later)
        self.warn(
            f"{machine} lost",
            "cannot write {machine}.db: {error}; {count} entries are lost",
            machine=machine,
            count=count,
            error=text,
        )
        self._reactor.callFromThread(self._counters.store_lost.inc, count)

    def _write_machine(self, machine: str, entries: list[StoreEntry]) -> None:
        connection, tables = self._tables_of(machine)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for entry in entries:
                connection.execute("SAVEPOINT entry")
                try:
                    tables.write(entry)
                except (ArithmeticError, TypeError, ValueError) as error:
                    # A value in the file does not fit the entry.
                    connection.execute("ROLLBACK TO entry")
                    tables.forget()
                    self.warn(
                        f"{machine} entry", "{machine}.db: an entry is lost: {error}", machine=machine, error=error
                    )
                    self._reactor.callFromThread(self._counters.store_lost.inc)
                connection.execute("RELEASE entry")
            connection.execute("COMMIT")
        except sqlite3.Error:
            # The state of the connection is unknown, so the next try opens the file again.
            del self._open[machine]
            connection.close()
            raise

    def _tables_of(self, machine: str) -> tuple[sqlite3.Connection, MachineTables]:
        found = self._open.get(machine)
        path = self.path_of(machine)
        if found is not None and inode_of(path) != found[2]:
            log.warn("{machine}.db was removed or replaced; opening it again", machine=machine)
            self._open.pop(machine)[0].close()
            found = None
        if found is None:
            connection = connect(path, synchronous="NORMAL", wait=_LOCK_WAIT)
            try:
                found = connection, MachineTables(connection), inode_of(path)
            except sqlite3.Error:
                connection.close()
                raise
            self._open[machine] = found
            if len(self._open) > _MAX_OPEN:
                self._close_file(next(iter(self._open)))
        self._open.move_to_end(machine)
        return found[0], found[1]

    # -- damaged files

    def _check_later(self) -> None:
        """Schedule a check of damaged files, as long as there are any."""
        if self._check_call is None and not self.is_closing:
            self._check_call = self._reactor.callLater(_CHECK_INTERVAL, self._check)

    def _check(self) -> None:
        checking = deferToThreadPool(self._reactor, self._check_pool, self._faults.check, self.path_of)
        checked = checking.addCallback(self._log_repaired)
        checked.addErrback(lambda failure: log.failure("cannot check damaged databases of machines", failure))
        checked.addCallback(self._check_again)

    def _log_repaired(self, repaired: list[tuple[str, int]]) -> None:
        for machine, lost in repaired:
            log.info(
                "{machine}.db is sound again; {count} entries were lost; python -m gateway.recompute restores"
                " statistics from raw files",
                machine=machine,
                count=lost,
            )

    def _check_again(self, _: None) -> None:
        self._check_call = None
        if self._faults.has_damage:
            self._check_later()

    # -- closing

    def stop(self) -> None:
        """Begin no further check, and end long queries."""
        self.is_closing = True
        if self._check_call is not None and self._check_call.active():
            self._check_call.cancel()

    async def close(self) -> None:
        """Finish running writes and close the files; called after :meth:`stop`."""
        await deferToThreadPool(self._reactor, self._write_pool, self._close_files)

    def stop_threads(self) -> None:
        """Stop the threads; called after :meth:`close`."""
        self._write_pool.stop()
        # A query may still wait for a locked file, but its answer is not needed any more.
        threading.Thread(target=self._read_pool.stop, name="reads end", daemon=True).start()

    def _close_files(self) -> None:
        self._readers.close()
        for machine in list(self._open):
            self._close_file(machine)

    def _close_file(self, machine: str) -> None:
        self._readers.close_idle(self.path_of(machine))
        self._open.pop(machine)[0].close()
