"""The embedded store: SQLite files under ``database.path``.

``cynow-gateway.sqlite3`` holds commits and the gateway's own data; each ``<machine>.db`` holds one machine's means and
anomalies, in the form of the old monitoring server. One thread writes commits and another one machines' files, so that
a locked machine's file delays no commit. Other threads read, on read-only connections.
"""

import contextlib
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gateway.model.entries import Sighting, StoreEntry
from gateway.model.names import forms_of, is_name, name_of, name_problem
from gateway.model.records import CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.event_numbers import SEQ_BLOCK, EventNumberStore
from gateway.store.interface import (
    FIRST_PAGE,
    CommitResult,
    IdempotencyKey,
    MachineDamaged,
    MeansQuery,
    Page,
    PageRequest,
    RejectedByDatabase,
    RollupProgress,
    SensorState,
    Store,
    StoreUnavailable,
)
from gateway.store.rows import encoded
from gateway.store.sqlite import queries
from gateway.store.sqlite.commits import INSERT_COMMIT, insert_commit, replay_commit, write_commit
from gateway.store.sqlite.machine_faults import MachineFaults
from gateway.store.sqlite.machine_tables import MachineTables
from gateway.store.sqlite.opening import connect, highest_commit, open_store
from gateway.store.sqlite.readers import Readers
from gateway.store.sqlitefile.errors import explained, is_damage, may_pass, primary
from gateway.store.sqlitefile.files import GATEWAY_FILE, STORE_NOTE
from gateway.store.sqlitefile.group_writer import GroupWriter, Identity, Watch, inode_of
from gateway.store.sqlitefile.note import write_note
from gateway.store.sqlitefile.transactions import LOCK_WAIT, Job

log = Logger()

T = TypeVar("T")


#: Maximum machines' files that the writer keeps open.
_OPEN_MACHINES: Final = 64


#: Seconds for which a question, or a write of machines' data, waits for a lock of another program.
_LOCK_WAIT: Final = LOCK_WAIT


#: Seconds within which a commit is answered, whatever the disk does.
_PATIENCE: Final = 5.0


#: Seconds between two checks of machines' files that were found damaged.
_LOOK: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Newest:
    """The last row of a page of anomalies of all machines.

    :ivar left_out: machines that could not be read, and are left out of the further pages too.
    """

    time: Any
    machine: str = ""
    id: int = queries.BEHIND_IDS
    left_out: frozenset[str] = frozenset()

    def of(self, machine: str) -> tuple[Any, int]:
        """Behind what the rows of a machine go on: those of one time stand by machine."""
        if machine == self.machine:
            return self.time, self.id
        return self.time, queries.BEFORE_IDS if machine < self.machine else queries.BEHIND_IDS


class SqliteStore(Store, EventNumberStore):
    """The embedded store.

    :param directory: ``database.path``; it exists, and no other gateway uses it.
    :param reactor: reactor with a clock and threads.
    :param gives_numbers: whether numbers of events will be given out; a command gives none, beside a gateway or not.
    :param accept_empty: whether to go on without a file of commits that existed and is lost.
    """

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        directory: str,
        *,
        gives_numbers: bool = True,
        accept_empty: bool = False,
    ) -> None:
        self._accept_empty = accept_empty
        self._gives_numbers = gives_numbers
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._directory = directory
        self._commit_pool = pool_of(1, "commits")
        self._machine_pool = pool_of(1, "machines")
        self._read_pool = pool_of(3, "reads")
        #: Reads whole files, to find damage and to notice repairs.
        self._check_pool = pool_of(1, "checks")
        self._pools = (self._commit_pool, self._machine_pool, self._read_pool, self._check_pool)
        self._closing = False
        self._readers = Readers()
        #: The open files of machines, and the inode of each.
        self._machines: OrderedDict[str, tuple[sqlite3.Connection, MachineTables, Identity | None]] = OrderedDict()
        self._faults = MachineFaults()
        self._warnings = LimitedLog(log, clock, counters)
        #: Why there is no file of commits; ``None`` if there is one.
        self._lost: str | None = None
        self._gateway: GroupWriter | None = None
        self._look_call: IDelayedCall | None = None
        self._checking: sqlite3.Connection | None = None

    @property
    def problems(self) -> list[str]:
        found = self._lost if self._gateway is None else self._gateway.problem
        return [*([] if found is None else [f"commits are refused: {found}"]), *self._faults.problems]

    def open(self) -> None:
        path = os.path.join(self._directory, GATEWAY_FILE)
        opened = open_store(
            self._directory, self._clock.wall(), accept=self._accept_empty, gives_numbers=self._gives_numbers
        )
        self.first_seq = opened.reserved + 1
        self.reserved = opened.reserved + SEQ_BLOCK
        self._note = opened.note
        self._lost = opened.problem
        for pool in self._pools:
            pool.start()
        if opened.connection is not None:
            watch = Watch("commits", _check, _touch, self._note_commits)
            self._gateway = GroupWriter(
                self._reactor, self._commit_pool, opened.connection, path, watch, self._warnings
            )
            check = deferToThreadPool(self._reactor, self._check_pool, self._find_damage, path)
            check.addCallbacks(self._checked, lambda failure: log.failure("the check failed", failure))
        if self._gives_numbers:
            self._warn_of_unserved()

    def _warn_of_unserved(self) -> None:
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

    def _find_damage(self, path: str) -> str | None:
        """Check the whole file of commits, in a thread of its own; return the damage in words, or ``None``."""
        uri = Path(path).absolute().as_uri() + "?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
                self._checking = connection
                if self._closing:
                    return None
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                self._checking = None
        except sqlite3.Error as error:
            self._checking = None
            found = explained(error, path) if is_damage(error) else "ok"
        else:
            if found != "ok":
                found = f"{GATEWAY_FILE}: the file is damaged ({found.splitlines()[-1]})"
        # Without its log, which somebody has removed, a sound file looks damaged; the writer reports that.
        is_moved = self._gateway is not None and self._gateway.moved() is not None
        return None if found == "ok" or is_moved else found

    def _checked(self, problem: str | None) -> None:
        if problem is not None and self._gateway is not None:
            self._gateway.condemn(problem)

    def _note_commits(self, connection: sqlite3.Connection) -> None:
        """Write the highest commit id into the note outside the file, in the writer's thread."""
        if self._gives_numbers:
            highest = highest_commit(connection)
            if highest > self._note.commit:
                self._note = replace(self._note, commit=highest)
                write_note(self._directory, STORE_NOTE, self._note)

    # -- commits

    async def _run(self, job: Job[T], *, once: bool = False, patience: float | None = _PATIENCE) -> T:
        if self._gateway is None:
            raise StoreUnavailable(self._lost or "closed")
        return await self._gateway.run(job, patience, once=once)

    async def commit(self, entry: CommitEntry, key: IdempotencyKey | None) -> CommitResult:
        now = self._clock.wall()
        try:
            return await self._run(lambda connection: write_commit(connection, entry, key, now), once=True)
        except RejectedByDatabase as error:
            self._warnings.warn(
                "rejected",
                "scale {scale}: the database rejects a commit: {error}",
                scale=entry.scale_id,
                error=error,
            )
            raise

    async def replay(self, key: IdempotencyKey) -> dict[str, Any] | None:
        return await self._run(lambda connection: replay_commit(connection, key))

    async def reserve(self, up_to: int) -> None:
        def job(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE event_seq SET reserved = max(reserved, ?)", (up_to,))
            self._note_reserved(up_to)

        if self._gateway is None and not self._closing:
            await deferToThreadPool(self._reactor, self._commit_pool, self._note_reserved, up_to)
        else:
            await self._run(job, patience=None)

    def _note_reserved(self, up_to: int) -> None:
        self._note = replace(self._note, reserved=max(self._note.reserved, up_to))
        write_note(self._directory, STORE_NOTE, self._note)

    # -- machines

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        # Its type first: by the time that a sensor has tables, a start after a kill knows how to read its samples.
        untyped = await self._write_types([entry for entry in entries if isinstance(entry, Sighting)])
        again = await deferToThreadPool(
            self._reactor, self._machine_pool, self._write, [entry for entry in entries if entry not in untyped]
        )
        return [entry for entry in entries if entry in untyped or entry in again] if untyped else again

    async def _write_types(self, sightings: list[Sighting]) -> list[Sighting]:
        """Keep the types of some sensors; those whose cannot be kept now."""

        def job(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO sensor (machine, sensor, type) VALUES (?, ?, ?)",
                [(sighting.machine, sighting.sensor, sighting.type) for sighting in sightings],
            )

        if self._gateway is None or self._gateway.is_damaged:
            # They come again after the restart that brings the file back; statistics must not wait for that.
            return []
        try:
            if sightings:
                await self._run(job, patience=None)
        except StoreUnavailable as error:
            self._warnings.warn("types", "types of sensors cannot be kept now: {error}", error=error)
            return [] if self._gateway.is_damaged else sightings
        return []

    def _write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        by_machine: dict[str, list[StoreEntry]] = {}
        for entry in entries:
            by_machine.setdefault(entry.machine, []).append(entry)
        again: list[StoreEntry] = []
        for machine, its in by_machine.items():
            again += self._write_or_wait(machine, its)
        return again

    def _write_or_wait(self, machine: str, entries: list[StoreEntry]) -> list[StoreEntry]:
        """Write entries of one machine; return those that must be tried again."""
        try:
            self._write_machine(machine, entries)
        except sqlite3.Error as error:
            path = self._machine_path(machine)
            text = explained(error, path)
            if may_pass(error):
                self._faults.waits(machine, text)
                self._warn(
                    f"{machine} waits", "{machine}.db cannot be written now: {error}", machine=machine, error=text
                )
                return entries
            if len(entries) > 1 and primary(error) != sqlite3.SQLITE_NOTADB:
                # Only the table of a few entries may be damaged, so they are written one by one.
                return [each for entry in entries for each in self._write_or_wait(machine, [entry])]
            self._faults.damaged(machine, text, "written", len(entries))
            self._reactor.callFromThread(self._look_later)
            self._warn(
                f"{machine} lost",
                "{machine}.db: {count} entries are lost: {error}",
                machine=machine,
                count=len(entries),
                error=text,
            )
            self._reactor.callFromThread(self._counters.store_lost.inc, len(entries))
        else:
            self._faults.wrote(machine)
        return []

    def _warn(self, kind: str, message: str, **fields: Any) -> None:
        """Log a warning from any thread, unless its kind has reached its limit."""
        self._reactor.callFromThread(partial(self._warnings.warn, kind, message, **fields))

    def _look_later(self) -> None:
        """Schedule a check of machines' damaged files, as long as there are any."""
        if self._look_call is None and not self._closing:
            self._look_call = self._reactor.callLater(_LOOK, self._look)

    def _look(self) -> None:
        looking = deferToThreadPool(self._reactor, self._check_pool, self._faults.look, self._machine_path)
        looked = looking.addCallback(self._looked)
        looked.addErrback(lambda failure: log.failure("looking at machines' files failed", failure))
        looked.addCallback(self._look_again)

    def _looked(self, over: list[tuple[str, int]]) -> None:
        for machine, lost in over:
            log.info(
                "{machine}.db is sound again; {count} entries were lost: python -m gateway.recompute makes statistics"
                " again from raw files",
                machine=machine,
                count=lost,
            )

    def _look_again(self, _: None) -> None:
        self._look_call = None
        if self._faults.any_stay:
            self._look_later()

    def _write_machine(self, machine: str, entries: list[StoreEntry]) -> None:
        connection, its = self._machine(machine)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for entry in entries:
                connection.execute("SAVEPOINT entry")
                try:
                    insert_commit(connection, its, entry)
                except (ArithmeticError, TypeError, ValueError) as error:
                    # What stands in the file already makes no sense with it.
                    connection.execute("ROLLBACK TO entry")
                    its.forget()
                    self._warn(
                        f"{machine} entry", "{machine}.db: an entry is lost: {error}", machine=machine, error=error
                    )
                    self._reactor.callFromThread(self._counters.store_lost.inc)
                connection.execute("RELEASE entry")
            connection.execute("COMMIT")
        except sqlite3.Error:
            # Whatever state it is in: the next try opens the file anew.
            del self._machines[machine]
            connection.close()
            raise

    def _machine(self, machine: str) -> tuple[sqlite3.Connection, MachineTables]:
        found = self._machines.get(machine)
        path = self._machine_path(machine)
        if found is not None and inode_of(path) != found[2]:
            log.warn("{machine}.db was removed or replaced, and is opened again", machine=machine)
            self._machines.pop(machine)[0].close()
            found = None
        if found is None:
            connection = connect(path, synchronous="NORMAL", wait=_LOCK_WAIT)
            try:
                found = connection, MachineTables(connection), inode_of(path)
            except sqlite3.Error:
                connection.close()
                raise
            self._machines[machine] = found
            if len(self._machines) > _OPEN_MACHINES:
                self._close_machine(next(iter(self._machines)))
        self._machines.move_to_end(machine)
        return found[0], found[1]

    def _machine_path(self, machine: str) -> str:
        path, *older = (os.path.join(self._directory, f"{form}.db") for form in forms_of(machine))
        # A file of an older version may have a decomposed name.
        return older[0] if older and not os.path.exists(path) and os.path.exists(older[0]) else path

    # -- questions

    async def machines(self) -> list[str]:
        return await self._read(self._machine_names)

    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        if self._gateway is None or self._gateway.is_damaged:
            # Without types, a mean of magnitudes cannot be distinguished from a mean of values.
            machines = await self._read(self._machine_names)
            return RollupProgress([], frozenset(machines) | {machine for machine, _ in days})
        types = await self._run(
            lambda connection: {
                (name_of(machine) or machine, name_of(sensor) or sensor): kind
                for machine, sensor, kind in connection.execute("SELECT machine, sensor, type FROM sensor")
            },
            patience=None,
        )

        def of_machine(machine: str, connection: sqlite3.Connection) -> list[SensorState]:
            return [
                SensorState(
                    machine,
                    sensor,
                    types.get((machine, sensor)),
                    *queries.rollup_progress(connection, table, days.get((machine, sensor), ()), now, self._clock.zone),
                )
                for sensor, table in queries.sensors(connection, "hour")
            ]

        def of_all() -> RollupProgress:
            states = {key: SensorState(*key, kind) for key, kind in types.items()}
            unreadable: set[str] = set()
            for machine in self._machine_names():
                # Many that are locked must not keep the gateway from starting.
                patience = 0.1 if unreadable else _LOCK_WAIT
                try:
                    # Of what is not known, nothing must be counted again.
                    found = self._ask(machine, partial(of_machine, machine), patience, or_empty=False)
                except StoreUnavailable as error:
                    self._warn(
                        f"{machine} now", "{machine}.db cannot be read now: {error}", machine=machine, error=error
                    )
                    unreadable.add(machine)
                else:
                    states |= {(state.machine, state.sensor): state for state in found}
            return RollupProgress(list(states.values()), frozenset(unreadable))

        return await self._read(of_all)

    async def means(self, query: MeansQuery, page: PageRequest = FIRST_PAGE) -> Page:
        def read(connection: sqlite3.Connection) -> list[Page]:
            return [queries.means(connection, query, page, self._clock.zone)]

        return await self._read(lambda: next(iter(self._ask(query.machine, read)), Page([])))

    async def anomalies(self, machine: str | None, start: date, end: date, page: PageRequest = FIRST_PAGE) -> Page:
        bounds = queries.bounds_of(start, end)

        def read() -> Page:
            if machine is None:
                found = self._newest_anomalies(bounds, page.after or _Newest(bounds[1]), page.limit)
            else:
                found = self._anomalies(machine, bounds, page.after or (bounds[0], queries.BEFORE_IDS), page.limit)
            return Page(encoded(found.items, page.encode), found.after)

        return await self._read(read)

    def _anomalies(self, machine: str, bounds: tuple[str, str], after: tuple[Any, int], limit: int | None) -> Page:
        rows = self._ask(machine, partial(queries.anomalies, bounds=bounds, after=after, limit=limit))
        items = [_anomaly(machine, time, score, threshold) for time, _, score, threshold in rows]
        return Page(items, rows[-1][:2] if len(rows) == queries.page_size(limit) else None)

    def _newest_anomalies(self, bounds: tuple[str, str], after: "_Newest", limit: int | None) -> Page:
        """A page of those of all machines; of what is read, no more is held at a time than two pages."""
        most = queries.page_size(limit)
        left_out = set(after.left_out)
        since: Any = bounds[0]
        rows: list[tuple[Any, str, int, Any, Any]] = []
        for machine in self._machine_names():
            if self._closing:
                raise StoreUnavailable("the gateway is stopping")
            if machine in left_out:
                continue
            query = partial(queries.newest_anomalies, since=since, after=after.of(machine), limit=limit)
            try:
                found = self._ask(machine, query, or_empty=False)
            except StoreUnavailable as error:
                # One file that is locked or broken must not keep the others from being read.
                self._warn(f"{machine} out", "{machine}.db is left out: {error}", machine=machine, error=error)
                left_out.add(machine)
                continue
            rows += [(time, machine, *further) for time, *further in found]
            # It keeps the order of those of one time.
            rows.sort(key=lambda row: str(row[0]), reverse=True)
            if len(rows) >= most:
                del rows[most:]
                since = rows[-1][0]
        items = [_anomaly(machine, time, score, threshold) for time, machine, _, score, threshold in rows]
        return Page(items, _Newest(*rows[-1][:3], frozenset(left_out)) if len(rows) == most else None)

    async def _read(self, question: Callable[[], T]) -> T:
        return await deferToThreadPool(self._reactor, self._read_pool, question)

    def _machine_names(self) -> list[str]:
        try:
            files = os.listdir(self._directory)
        except OSError as error:
            raise StoreUnavailable(str(error.strerror)) from error
        names = (name_of(name.removesuffix(".db")) for name in files if name.endswith(".db"))
        return sorted({name for name in names if name is not None})

    def _ask(
        self,
        machine: str,
        query: Callable[[sqlite3.Connection], list[T]],
        patience: float = _LOCK_WAIT,
        *,
        or_empty: bool = True,
    ) -> list[T]:
        """Query one machine's file; the answer is empty if the file is missing.

        :param or_empty: whether the answer is also empty if the file lacks a table or a column.
        :raises StoreUnavailable: the file cannot be read, at all or at present.
        """
        path = self._machine_path(machine)
        if not is_name(machine) or not os.path.exists(path):
            return []
        try:
            with self._readers.connection(path, patience) as connection:
                return query(connection)
        except sqlite3.DatabaseError as error:
            text = explained(error, path)
            if is_damage(error):
                self._faults.damaged(machine, text, "read")
                self._reactor.callFromThread(self._look_later)
                self._warn(f"{machine} read", "{machine}.db cannot be read: {error}", machine=machine, error=text)
                raise MachineDamaged(text) from error
            if primary(error) != sqlite3.SQLITE_ERROR or not or_empty:
                raise StoreUnavailable(text) from error
            self._warn(f"{machine} read", "{machine}.db cannot be read: {error}", machine=machine, error=text)
            return []

    async def close(self) -> None:
        self._closing = True
        if self._look_call is not None and self._look_call.active():
            self._look_call.cancel()
        checking = self._checking
        if checking is not None:
            with contextlib.suppress(sqlite3.ProgrammingError):
                checking.interrupt()
        if self._gateway is not None:
            with contextlib.suppress(StoreUnavailable, sqlite3.Error):
                await self._run(self._note_commits, patience=None)
            await self._gateway.close()
        await deferToThreadPool(self._reactor, self._machine_pool, self._close_machines)
        for pool in (self._commit_pool, self._machine_pool):
            pool.stop()
        # A query may still wait for a locked file, but its answer is not needed any more.
        for pool in (self._read_pool, self._check_pool):
            threading.Thread(target=pool.stop, name="reads end", daemon=True).start()

    def _close_machines(self) -> None:
        self._readers.close()
        for machine in list(self._machines):
            self._close_machine(machine)

    def _close_machine(self, machine: str) -> None:
        self._readers.leave(self._machine_path(machine))
        self._machines.pop(machine)[0].close()


def _check(connection: sqlite3.Connection) -> None:
    """Compile the statements of a commit, triggers included, without running them."""
    connection.execute("SELECT key, fingerprint, answer, made_at FROM idempotency LIMIT 0")
    connection.execute("SELECT machine, sensor, type FROM sensor LIMIT 0")
    connection.execute("SELECT reserved FROM event_seq LIMIT 0")
    # This reads the current schema; a statement with unchanged text would not be compiled again.
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute(f"EXPLAIN /* schema {version} */ {INSERT_COMMIT}", (None,) * 9).fetchone()


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE event_seq SET reserved = reserved")


def _anomaly(machine: str, time: Any, score: Any, threshold: Any) -> dict[str, Any]:
    return {"name": machine, "time": str(time), "score": score, "threshold": threshold}
