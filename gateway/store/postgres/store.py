"""The store on PostgreSQL, with a spool on the gateway's own disk.

Statistics and anomalies are written to the spool and uploaded to the server, in order and once each. Commits and
queries go to the server at once, or are refused while it is unavailable.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from typing import Any, Final, TypeVar

import psycopg2
from psycopg2.errors import ReadOnlySqlTransaction
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gateway.model.entries import StoreEntry
from gateway.model.names import is_name
from gateway.model.records import Commit, CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.commit_rows import commit_page, stored_commit
from gateway.store.interface import (
    FIRST_PAGE,
    CommitQuery,
    CommitResult,
    IdempotencyKey,
    MeansQuery,
    OutcomeUnknown,
    Page,
    PageRequest,
    RollupProgress,
    Store,
    StoredCommit,
    StoreUnavailable,
    TicketState,
)
from gateway.store.postgres import queries
from gateway.store.postgres.commit_batches import CommitQueue
from gateway.store.postgres.commit_health import CommitHealth
from gateway.store.postgres.commit_log import commit_row, commit_rows
from gateway.store.postgres.commit_writer import CommitWriter, OnWritten
from gateway.store.postgres.commits import KEY_LIFE, PendingCommit, find_answer
from gateway.store.postgres.entries import InThread
from gateway.store.postgres.migrations import SchemaMigration
from gateway.store.postgres.own_commits import own_commits
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text
from gateway.store.postgres.session import Session, Work
from gateway.store.postgres.ticket_rows import find_ticket
from gateway.store.postgres.tickets import OnForwarded, TicketedCommits, TicketForwarder
from gateway.store.postgres.uploader import SpoolUploader
from gateway.store.rows import encoded
from gateway.store.spool_interface import EntrySpool
from gateway.store.ticket_interface import TicketQueue

log = Logger()

T = TypeVar("T")

#: Connections for commits, and for queries, which may take long and must not delay commits; one more is for entries.
_COMMIT_CONNECTIONS: Final = 2
_QUERY_CONNECTIONS: Final = 2

#: Maximum seconds at the end for work that has begun.
_PATIENCE: Final = 0.8


def _publish_nothing(commit: Commit, request: str) -> None:
    """Publish nothing of a ticket."""


class PostgresStore(Store):
    """Store on a server that may be unavailable.

    :param spool: spool of statistics and anomalies; opened and closed with the store.
    :param url: ``database.url``.
    :param gateway: ``gateway.name``, which differs between the gateways that share a database.
    :param tickets: queue of tickets, opened and closed with the store; without it no commit becomes a ticket.
    :ivar on_forwarded: called with each commit of a ticket whose row was written.
    """

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        spool: EntrySpool,
        url: str,
        gateway: str,
        tickets: TicketQueue | None = None,
    ) -> None:
        #: Records a commit after the server's COMMIT; never raises. ``None`` for no record.
        self.on_written: OnWritten | None = None
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._spool = spool
        self._url = url
        self._gateway = gateway
        self._schema = SchemaMigration()
        self._warnings = LimitedLog(log, clock, counters)
        self._threads = pool_of(2, "pages")
        self._in_thread: InThread = partial(deferToThreadPool, reactor, self._threads)
        self._tickets = tickets
        self._ticketed: TicketedCommits | None = None
        self.on_forwarded: OnForwarded = _publish_nothing

    def open(self) -> None:
        if self._tickets is not None:
            # Before any other file is opened, and so changed.
            self._tickets.check_version()
        pool = partial(Pool, self._reactor, self._url)
        writing = partial(pool, prepare=self._prepare_to_write)
        self._entry_pool: Pool = writing(name=f"{self._gateway} entries", size=1)
        self._commit_pool: Pool = writing(name=f"{self._gateway} commits", size=_COMMIT_CONNECTIONS)
        # A read-only server can still answer queries.
        self._query_pool: Pool = pool(
            name=f"{self._gateway} queries", size=_QUERY_CONNECTIONS, prepare=self._schema.ensure
        )
        self._health = CommitHealth(self._reactor, self._commit_pool)
        self._commit_queue = CommitQueue(self._reactor, self._commit_pool.run, _COMMIT_CONNECTIONS)
        self._commit_writer = CommitWriter(
            self._commit_queue, self._commit_pool, self._health, self._warnings, lambda: self.on_written
        )
        self._spool.open()
        if self._tickets is not None:
            self._open_tickets(self._tickets)
        self._threads.start()
        for running in self._pools:
            running.start()
        self._uploader = SpoolUploader(
            self._reactor,
            self._counters,
            self._warnings,
            self._spool,
            self._entry_pool,
            self._gateway,
            self._in_thread,
        )
        self._uploader.start()
        self._health.start()
        if self._ticketed is not None:
            self._ticketed.forwarder.start()

    def _open_tickets(self, queue: TicketQueue) -> None:
        queue.open()
        pool = self._commit_pool
        forwarder = TicketForwarder(self._reactor, self._clock, self._counters, queue, pool, self._gateway)
        forwarder.on_forwarded = lambda commit, request: self.on_forwarded(commit, request)
        self._ticketed = TicketedCommits(self._reactor, queue, self._commit_queue, pool, forwarder)

    async def _prepare_to_write(self, session: Session) -> None:
        await self._schema.ensure(session)
        # A session keeps the database's setting from its start: this error closes it, and a new one is opened.
        ((is_read_only,),) = await session.ask("SELECT current_setting('transaction_read_only')::boolean")
        if is_read_only:
            raise ReadOnlySqlTransaction("the session is read-only")

    @property
    def _pools(self) -> list[Pool]:
        return [self._entry_pool, self._commit_pool, self._query_pool]

    @property
    def outage(self) -> str | None:
        if self._commit_pool.problem is not None:
            return self._commit_pool.state
        return None if self._health.problem is None else f"commits are refused: {self._health.problem}"

    @property
    def problems(self) -> list[str]:
        """Return the problems of the store, for ``/healthz``."""
        away = next((pool.state for pool in self._pools if pool.problem is not None), None)
        problems = list(filter(None, [away or self.outage]))
        if self._uploader.problem is not None:
            problems.append(f"PostgreSQL does not accept statistics; they wait in the spool: {self._uploader.problem}")
        count, why = self._uploader.lost
        if count:
            problems.append(f"{count} statistics and anomalies are lost, because PostgreSQL rejects them: {why}")
        if self._spool.problem is not None:
            problems.append(self._spool.problem)
        if self._ticketed is not None:
            problems += self._ticketed.problems
        return problems

    # -- commits

    async def commit(self, entry: CommitEntry, key: IdempotencyKey | None, *, may_wait: bool = False) -> CommitResult:
        """Write a commit, or make a ticket of it: see :class:`Store`."""
        pending = PendingCommit.of(entry, key, self._clock.wall(), self._gateway)
        if self._ticketed is None:
            return await self._commit_writer.write(pending)
        earlier = await self._ticketed.answer_to(key)
        if earlier is not None:
            return CommitResult(earlier, None)
        if not may_wait:
            return await self._commit_writer.write(pending)
        result = await self._ticketed.commit(pending, key, partial(self._commit_writer.write, pending))
        self._commit_writer.settle(pending)
        return result

    async def ticket(self, ticket: str) -> TicketState | None:
        state = None if self._tickets is None else await self._tickets.find(ticket)
        if state is not None or not _is_encodable(ticket):
            return state
        return await self._run(self._query_pool, partial(find_ticket, ticket=ticket))

    async def replay(self, key: IdempotencyKey) -> dict[str, Any] | None:
        waiting = None if self._ticketed is None else await self._ticketed.answer_to(key)
        if waiting is not None:
            return waiting
        since = self._clock.wall() - KEY_LIFE

        async def find(session: Session) -> dict[str, Any] | None:
            earlier = await find_answer(session, key, since)
            return None if earlier is None else earlier[0]

        try:
            return await self._run(self._commit_pool, find)
        except StoreUnavailable as error:
            if self._commit_writer.is_doubtful(key):
                raise OutcomeUnknown(str(error)) from None
            raise

    # -- the log of commits

    async def commits(self, query: CommitQuery, page: PageRequest = FIRST_PAGE) -> Page:
        rows = await self._run(self._query_pool, partial(commit_rows, query=query, page=page))
        made: Page = await self._in_thread(lambda: commit_page(rows, page, self._clock.zone))
        return made

    async def find_commit(self, commit_id: int) -> StoredCommit | None:
        return self._first(await self._run(self._query_pool, partial(commit_row, commit_id=commit_id)))

    def _first(self, rows: Sequence[Sequence[Any]]) -> StoredCommit | None:
        return stored_commit(rows[0], self._clock.zone) if rows else None

    async def commits_after(self, number: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the commits of this gateway above a number of ``cynow_commit``, in ascending order."""
        work = partial(own_commits, gateway=self._gateway, after=number, limit=limit)
        return await self._run(self._query_pool, work)

    # -- entries

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        """Append entries to the spool, and return when they are on the disk."""
        await self._spool.append(entries)
        self._uploader.wake()
        return []

    def drained(self) -> "Deferred[None]":
        """Return a Deferred that fires when no entry waits for the server."""
        return self._uploader.drained()

    # -- queries

    async def machines(self) -> list[str]:
        return await self._run(self._query_pool, queries.machines)

    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        """Return the progress in the spool; at the first start that of the server, or none if it is unavailable."""
        progress = await self._spool.rollup_progress()
        if progress is not None:
            return progress
        work = partial(queries.rollup_progress, days=days, now=now, zone=self._clock.zone)
        try:
            progress = RollupProgress(await self._run(self._query_pool, work))
        except StoreUnavailable as error:
            log.error("cannot read the statistics position: {error}", error=error)
            # Samples that may have been counted must not be counted again.
            return RollupProgress([], frozenset(machine for machine, _ in days))
        await self._spool.adopt(progress)
        return progress

    async def means(self, query: MeansQuery, page: PageRequest = FIRST_PAGE) -> Page:
        # No machine or sensor has a name that the driver cannot encode.
        if not is_name(query.machine) or not (query.sensor is None or _is_encodable(query.sensor)):
            return Page([])
        work = partial(queries.means, query=query, page=page)
        return await self._page(work, partial(queries.items_of, query, zone=self._clock.zone), 4, page)

    async def anomalies(self, machine: str | None, start: date, end: date, page: PageRequest = FIRST_PAGE) -> Page:
        bounds = start, end
        if machine is None:
            return await self._page(partial(queries.newest_anomalies, bounds=bounds, page=page), _newest_items, 4, page)
        if not is_name(machine):
            return Page([])
        work = partial(queries.anomalies, machine=machine, bounds=bounds, page=page)
        return await self._page(work, partial(_anomaly_items, machine), 3, page)

    async def _page(self, work: Work[list[Any]], items: Any, key_columns: int, page: PageRequest) -> Page:
        """Return a page.

        :param items: function that makes items from rows, in a thread.
        :param key_columns: number of columns of the last row that are the position of the next page.
        """
        rows = await self._run(self._query_pool, work)
        after = rows[-1][:key_columns] if len(rows) == queries.page_size(page.limit) else None
        return Page(await self._in_thread(lambda: encoded(items(rows), page.encode)), after)

    async def _run(self, pool: Pool, work: Work[T]) -> T:
        try:
            return await pool.run(work)
        except psycopg2.Error as error:
            text = error_text(error)
            if not isinstance(error, psycopg2.OperationalError):
                self._warnings.warn("refused", "PostgreSQL refused a statement: {error}", error=text)
            raise StoreUnavailable(text) from None

    # -- the end

    async def close(self) -> None:
        self._health.stop()
        self._uploader.stop()
        if self._ticketed is not None:
            self._ticketed.forwarder.stop()
        await gatherResults([Deferred.fromCoroutine(pool.close(_PATIENCE)) for pool in self._pools])
        await self._uploader.stopped()
        await self._spool.close()
        if self._tickets is not None:
            if self._ticketed is not None:
                await self._ticketed.forwarder.stopped()
            await self._tickets.close()
        # A thread may still make items; nothing waits for them.
        threading.Thread(target=self._threads.stop, name="pages end", daemon=True).start()


def _anomaly_items(machine: str, rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": machine, "time": time, "score": score, "threshold": threshold} for time, _, _, score, threshold in rows
    ]


def _newest_items(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": machine, "time": time, "score": score, "threshold": threshold}
        for time, machine, _, _, score, threshold in rows
    ]


def _is_encodable(text: str) -> bool:
    return "\0" not in text and text.isprintable()
