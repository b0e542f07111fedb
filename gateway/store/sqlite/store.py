"""The embedded store: SQLite files under ``database.path``.

``cynow-gateway.sqlite3`` holds commits and the gateway's own data; each ``<machine>.db`` holds one machine's means and
anomalies, in the form of the old monitoring server. One thread writes commits and another one machines' files, so that
a locked machine's file delays no commit. Other threads read, on read-only connections.
"""

import os
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from typing import Any, TypeVar

from twisted.logger import Logger

from gateway.model.entries import Sighting, StoreEntry
from gateway.model.names import name_of
from gateway.model.records import CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.event_numbers import EventNumberStore
from gateway.store.interface import (
    FIRST_PAGE,
    CommitQuery,
    CommitResult,
    IdempotencyKey,
    MeansQuery,
    Page,
    PageRequest,
    RejectedByDatabase,
    RollupProgress,
    SensorState,
    Store,
    StoredCommit,
    StoreUnavailable,
)
from gateway.store.rows import encoded
from gateway.store.sqlite import queries
from gateway.store.sqlite.anomaly_pages import anomalies_of, newest_anomalies
from gateway.store.sqlite.commit_file import CommitFile
from gateway.store.sqlite.commit_log import CommitLog
from gateway.store.sqlite.commits import OnWrite, replay_commit, write_commit, write_types
from gateway.store.sqlite.machine_db import MachineDatabases
from gateway.store.sqlite.opening import check_version
from gateway.store.sqlitefile.files import GATEWAY_FILE
from gateway.store.sqlitefile.transactions import Job

log = Logger()

T = TypeVar("T")


class SqliteStore(Store, EventNumberStore):
    """The embedded store.

    :param directory: ``database.path``; it exists, and no other gateway uses it.
    :param reactor: reactor with a clock and threads.
    :param gives_numbers: whether event numbers will be given out; a command gives none, beside a gateway or not.
    :param accept_empty: whether to go on without a file of commits that existed and is lost.
    :ivar on_write: function that writes each commit to the record, in the transaction of its row.
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
        self.on_write: OnWrite | None = None
        self._clock = clock
        self._directory = directory
        self._gives_numbers = gives_numbers
        self._warnings = LimitedLog(log, clock, counters)
        #: Reads whole files, to find damage and to notice repairs.
        self._check_pool = pool_of(1, "checks")
        self._commits = CommitFile(
            reactor,
            clock,
            counters,
            directory,
            self._check_pool,
            gives_numbers=gives_numbers,
            accept_empty=accept_empty,
        )
        self._log = CommitLog(os.path.join(directory, GATEWAY_FILE), clock.zone)
        self._machines = MachineDatabases(reactor, clock, counters, directory, self._check_pool)

    @property
    def outage(self) -> str | None:
        problem = self._commits.problem
        return None if problem is None else f"commits are refused: {problem}"

    @property
    def problems(self) -> list[str]:
        return [*filter(None, [self.outage]), *self._machines.problems]

    def open(self) -> None:
        # Before anything is written: the newer version must find everything as it left it.
        check_version(os.path.join(self._directory, GATEWAY_FILE))
        self._machines.check_versions()
        self._commits.open()
        self.first_seq, self.reserved = self._commits.first_seq, self._commits.reserved
        self._machines.start()
        self._check_pool.start()
        self._commits.begin_check()
        if self._gives_numbers:
            self._machines.warn_of_unserved()

    async def close(self) -> None:
        self._machines.stop()
        self._log.close()
        await self._commits.close()
        await self._machines.close()
        self._commits.stop_thread()
        self._machines.stop_threads()
        # A check may still read a file, but its result is not needed any more.
        threading.Thread(target=self._check_pool.stop, name="checks end", daemon=True).start()

    # -- commits and event numbers

    async def commit(self, entry: CommitEntry, key: IdempotencyKey | None, *, may_wait: bool = False) -> CommitResult:
        now = self._clock.wall()
        try:
            return await self._commits.run(
                lambda connection: write_commit(connection, entry, key, now, self.on_write), once=True
            )
        except RejectedByDatabase as error:
            self._warnings.warn(
                "rejected",
                "scale {scale}: the database rejects a commit: {error}",
                scale=entry.scale_id,
                error=error,
            )
            raise

    async def replay(self, key: IdempotencyKey) -> dict[str, Any] | None:
        return await self._commits.run(lambda connection: replay_commit(connection, key))

    async def commits(self, query: CommitQuery, page: PageRequest = FIRST_PAGE) -> Page:
        self._check_readable()
        return await self._machines.read(partial(self._log.page, query, page))

    async def find_commit(self, commit_id: int) -> StoredCommit | None:
        self._check_readable()
        return await self._machines.read(partial(self._log.find, commit_id))

    def _check_readable(self) -> None:
        """Refuse to read a file that is lost, damaged or closed.

        :raises StoreUnavailable: it is.
        """
        if self._machines.is_closing or not self._commits.is_usable:
            raise StoreUnavailable(self._commits.problem or "closed")

    async def reserve(self, up_to: int) -> None:
        await self._commits.reserve(up_to)

    async def run_job(self, job: Job[T]) -> T:
        """Run a job of the record in the file of commits, and return when it is durable."""
        return await self._commits.run(job)

    # -- entries

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        # Types first: once a sensor has tables, a start after a kill must know how to read its samples.
        untyped = await self._write_types([entry for entry in entries if isinstance(entry, Sighting)])
        again = await self._machines.write([entry for entry in entries if entry not in untyped])
        return [entry for entry in entries if entry in untyped or entry in again] if untyped else again

    async def _write_types(self, sightings: list[Sighting]) -> list[Sighting]:
        """Write the types of sensors; return the sightings that must be retried."""
        if not self._commits.is_usable:
            # A restart with a restored file sights the sensors again; statistics must not wait for that.
            return []
        try:
            if sightings:
                await self._commits.run(partial(write_types, sightings=sightings), patience=None)
        except StoreUnavailable as error:
            self._warnings.warn("types", "cannot write types of sensors now: {error}; retrying", error=error)
            return sightings if self._commits.is_usable else []
        return []

    # -- queries

    async def machines(self) -> list[str]:
        return await self._machines.read(self._machines.names)

    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        if not self._commits.is_usable:
            # Without types, a mean of magnitudes cannot be distinguished from a mean of values.
            machines = await self.machines()
            return RollupProgress([], frozenset(machines) | {machine for machine, _ in days})
        types = await self._commits.run(
            lambda connection: {
                (name_of(machine) or machine, name_of(sensor) or sensor): kind
                for machine, sensor, kind in connection.execute("SELECT machine, sensor, type FROM sensor")
            },
            patience=None,
        )
        return await self._machines.read(partial(self._read_progress, types, days, now))

    def _read_progress(
        self,
        types: Mapping[tuple[str, str], str],
        days: Mapping[tuple[str, str], Collection[date]],
        now: datetime,
    ) -> RollupProgress:
        """Read the progress of all machines, in a reading thread."""

        def read(machine: str, connection: sqlite3.Connection) -> list[SensorState]:
            return [
                SensorState(
                    machine,
                    sensor,
                    types.get((machine, sensor)),
                    *queries.rollup_progress(connection, table, days.get((machine, sensor), ()), now, self._clock.zone),
                )
                for sensor, table in queries.sensors(connection, "hour")
            ]

        states = {key: SensorState(*key, kind) for key, kind in types.items()}
        unreadable: set[str] = set()
        for machine in self._machines.names():
            # Many locked files must not delay the start, so only the first one is waited for.
            patience = 0.1 if unreadable else None
            try:
                # The samples of an unreadable machine must not be counted again.
                found = self._machines.ask(machine, partial(read, machine), patience, or_empty=False)
            except StoreUnavailable as error:
                self._machines.warn(
                    f"{machine} now", "cannot read {machine}.db now: {error}", machine=machine, error=error
                )
                unreadable.add(machine)
            else:
                states |= {(state.machine, state.sensor): state for state in found}
        return RollupProgress(list(states.values()), frozenset(unreadable))

    async def means(self, query: MeansQuery, page: PageRequest = FIRST_PAGE) -> Page:
        def read(connection: sqlite3.Connection) -> list[Page]:
            return [queries.means(connection, query, page, self._clock.zone)]

        return await self._machines.read(lambda: next(iter(self._machines.ask(query.machine, read)), Page([])))

    async def anomalies(self, machine: str | None, start: date, end: date, page: PageRequest = FIRST_PAGE) -> Page:
        bounds = queries.bounds_of(start, end)

        def read() -> Page:
            if machine is None:
                found = newest_anomalies(self._machines, bounds, page.after, page.limit)
            else:
                found = anomalies_of(self._machines, machine, bounds, page.after, page.limit)
            return Page(encoded(found.items, page.encode), found.after)

        return await self._machines.read(read)
