"""The store on PostgreSQL, with a spool on the gateway's own disk for what must not wait for the server.

Statistics and anomalies go into the spool and from there to the server, in order and once each. Commits and questions
go to the server at once, or are refused while it is away.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from typing import Any, Final, TypeVar

import psycopg2
from psycopg2.errors import ReadOnlySqlTransaction
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.model.entries import StoreEntry
from gateway.model.names import is_name
from gateway.model.records import CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.interface import (
    FIRST_PAGE,
    CommitResult,
    IdempotencyConflict,
    IdempotencyKey,
    MeansQuery,
    OutcomeUnknown,
    Page,
    PageRequest,
    RejectedByDatabase,
    RollupProgress,
    Store,
    StoreUnavailable,
)
from gateway.store.postgres import queries as questions
from gateway.store.postgres.commit_batches import CommitQueue
from gateway.store.postgres.commit_health import CommitHealth
from gateway.store.postgres.commits import KEY_LIFE, PendingCommit, first_answer, prune
from gateway.store.postgres.entries import InThread
from gateway.store.postgres.migrations import SchemaMigration
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text, is_of_the_row
from gateway.store.postgres.session import Session, Work
from gateway.store.postgres.uploader import SpoolUploader
from gateway.store.rows import encoded
from gateway.store.spool_interface import EntrySpool

log = Logger()

T = TypeVar("T")

#: Connections for commits, and for questions, which may take long and must hold up no commit; one more is for entries.
_COMMITS: Final = 2
_QUESTIONS: Final = 2

#: Keys that are too old are looked for so often, in seconds.
_PRUNE_EVERY: Final = 600.0

#: Maximum remembered keys of commits that may have been written; a new one replaces the oldest.
_DOUBTFUL: Final = 1000

#: What is begun at the end has so many seconds.
_PATIENCE: Final = 0.8


class PostgresStore(Store):
    """The store on a server that may be away.

    :param spool: keeps what must survive without the server; opened and closed with this.
    :param url: ``database.url``.
    :param gateway: ``gateway.name``, which tells the gateways that share a database apart.
    """

    def __init__(
        self, reactor: Any, clock: WallClock, counters: Counters, spool: EntrySpool, url: str, gateway: str
    ) -> None:
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
        self._pruned = float("-inf")
        #: Keys of commits that may have been written, the most recently used last.
        self._doubtful: OrderedDict[str, None] = OrderedDict()

    def open(self) -> None:
        pool = partial(Pool, self._reactor, self._url)
        writing = partial(pool, prepare=self._prepare_to_write)
        self._entries: Pool = writing(name=f"{self._gateway} entries", size=1)
        self._commits: Pool = writing(name=f"{self._gateway} commits", size=_COMMITS)
        # A read-only server can still answer questions.
        self._questions: Pool = pool(name=f"{self._gateway} questions", size=_QUESTIONS, prepare=self._schema.ensure)
        self._health = CommitHealth(self._reactor, self._commits)
        self._orders = CommitQueue(self._reactor, self._commits.run, _COMMITS)
        self._spool.open()
        self._threads.start()
        for each in self._pools:
            each.start()
        self._bringer = SpoolUploader(
            self._reactor,
            self._counters,
            self._warnings,
            self._spool,
            self._entries,
            self._gateway,
            self._in_thread,
        )
        self._bringer.start()
        self._health.start()

    async def _prepare_to_write(self, session: Session) -> None:
        await self._schema.ensure(session)
        # A session keeps the database's setting from its start, so this session is closed and opened again.
        ((is_read_only,),) = await session.ask("SELECT current_setting('transaction_read_only')::boolean")
        if is_read_only:
            raise ReadOnlySqlTransaction("the session is read-only")

    @property
    def _pools(self) -> list[Pool]:
        return [self._entries, self._commits, self._questions]

    @property
    def problems(self) -> list[str]:
        """What does not work, in words."""
        away = next((pool.state for pool in self._pools if pool.problem is not None), None)
        found = [] if away is None else [away]
        if away is None and self._health.problem is not None:
            found.append(f"commits are refused: {self._health.problem}")
        if self._bringer.problem is not None:
            found.append(f"PostgreSQL does not take statistics, and they wait: {self._bringer.problem}")
        count, why = self._bringer.lost
        if count:
            found.append(f"{count} statistics and anomalies are lost, for PostgreSQL refuses them for good: {why}")
        if self._spool.problem is not None:
            found.append(self._spool.problem)
        return found

    # -- commits

    async def commit(self, entry: CommitEntry, key: IdempotencyKey | None) -> CommitResult:
        """See :class:`Store`.

        If the connection is lost, the commit is retried for some seconds; a retry writes nothing if the commit was
        written already. If the server is not back by then, nothing was written, unless it went away between being told
        to commit and its answer: then the outcome is unknown, and the same request with the same key gives it.
        """
        order = PendingCommit.of(entry, key, self._clock.wall())
        try:
            result = await self._orders.write(order)
        except psycopg2.Error as error:
            if is_of_the_row(error):
                raise self._rejected(order, error_text(error)) from None
            self._health.refused(error)
            raise self._unwritten(order, error_text(error)) from None
        except RejectedByDatabase as error:
            raise self._rejected(order, str(error)) from None
        except ValueError as error:
            # The text holds NUL or half a character, so the driver cannot encode it. Its error may quote the text.
            raise self._rejected(order, f"a text cannot be written as UTF-8 ({type(error).__name__})") from None
        except (StoreUnavailable, OutcomeUnknown) as error:
            if self._commits.is_connected:
                self._health.refused(error.__cause__ or error)
            order.is_in_doubt |= isinstance(error, OutcomeUnknown)
            raise self._unwritten(order, str(error)) from None
        except IdempotencyConflict:
            self._doubtful.pop(order.key.key, None)
            raise
        self._doubtful.pop(order.key.key, None)
        self._health.written()
        if not 0 <= order.now - self._pruned < _PRUNE_EVERY:
            self._pruned = order.now
            self._commits.run(partial(prune, before=order.now - KEY_LIFE)).addErrback(
                lambda failure: log.warn("old keys cannot be removed: {error}", error=_text_of(failure))
            )
        return result

    def _unwritten(self, order: PendingCommit, why: str) -> Exception:
        """Return the error for a commit that is not known to be written."""
        if order.is_in_doubt:
            self._doubtful[order.key.key] = None
            if len(self._doubtful) > _DOUBTFUL:
                self._doubtful.popitem(last=False)
        elif order.key.key not in self._doubtful:
            return StoreUnavailable(why)
        self._warnings.warn(
            "doubt",
            "scale {scale}: a commit may have been written or not: the server was told to, and gave no answer: {why}",
            scale=order.entry.scale_id,
            why=why,
        )
        return OutcomeUnknown(why)

    def _rejected(self, order: PendingCommit, why: str) -> RejectedByDatabase:
        """Return the error for a commit that will never be written; earlier tries were not written either."""
        self._doubtful.pop(order.key.key, None)
        self._warnings.warn(
            "rejected",
            "scale {scale}: the database rejects a commit: {error}",
            scale=order.entry.scale_id,
            error=why,
        )
        return RejectedByDatabase(why)

    async def replay(self, key: IdempotencyKey) -> dict[str, Any] | None:
        since = self._clock.wall() - KEY_LIFE

        async def look(session: Session) -> dict[str, Any] | None:
            found = await first_answer(session, key, since)
            return None if found is None else found[0]

        try:
            return await self._on(self._commits, look)
        except StoreUnavailable as error:
            if key.key in self._doubtful:
                raise OutcomeUnknown(str(error)) from None
            raise

    # -- entries

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        """Append entries to the spool, and return when they are on the disk."""
        await self._spool.append(entries)
        self._bringer.wake()
        return []

    def drained(self) -> "Deferred[None]":
        """Fires when nothing waits for the server any more."""
        return self._bringer.drained()

    # -- questions

    async def machines(self) -> list[str]:
        return await self._on(self._questions, questions.machines)

    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        """Return the progress in the spool; at the first start that of the server, or nothing if that is away."""
        own = await self._spool.rollup_progress()
        if own is not None:
            return own
        question = partial(questions.rollup_progress, days=days, now=now, zone=self._clock.zone)
        try:
            found = RollupProgress(await self._on(self._questions, question))
        except StoreUnavailable as error:
            log.error("PostgreSQL cannot say how far statistics are: {error}", error=error)
            # Of what is not known, nothing must be counted again.
            return RollupProgress([], frozenset(machine for machine, _ in days))
        await self._spool.adopt(found)
        return found

    async def means(self, query: MeansQuery, page: PageRequest = FIRST_PAGE) -> Page:
        # No sensor has a name that the driver would not take.
        if not is_name(query.machine) or not (query.sensor is None or _is_text(query.sensor)):
            return Page([])
        work = partial(questions.means, query=query, page=page)
        return await self._page(work, partial(questions.items_of, query, zone=self._clock.zone), 4, page)

    async def anomalies(self, machine: str | None, start: date, end: date, page: PageRequest = FIRST_PAGE) -> Page:
        bounds = start, end
        if machine is None:
            return await self._page(
                partial(questions.newest_anomalies, bounds=bounds, page=page), _newest_items, 4, page
            )
        if not is_name(machine):
            return Page([])
        work = partial(questions.anomalies, machine=machine, bounds=bounds, page=page)
        return await self._page(work, partial(_anomaly_items, machine), 3, page)

    async def _page(self, work: Work[list[Any]], items: Any, key_columns: int, page: PageRequest) -> Page:
        """Return a page.

        :param items: function that makes items from rows, in a thread.
        :param key_columns: number of columns of the last row that are the position of the next page.
        """
        rows = await self._on(self._questions, work)
        after = rows[-1][:key_columns] if len(rows) == questions.page_size(page.limit) else None
        return Page(await self._in_thread(lambda: encoded(items(rows), page.encode)), after)

    async def _on(self, pool: Pool, work: Work[T]) -> T:
        try:
            return await pool.run(work)
        except psycopg2.Error as error:
            text = error_text(error)
            if not isinstance(error, psycopg2.OperationalError):
                self._warnings.warn("refused", "PostgreSQL refuses a statement: {error}", error=text)
            raise StoreUnavailable(text) from None

    # -- the end

    async def close(self) -> None:
        self._health.stop()
        self._bringer.stop()
        await gatherResults([Deferred.fromCoroutine(pool.close(_PATIENCE)) for pool in self._pools])
        await self._bringer.stopped()
        await self._spool.close()
        # A page may still be made; nobody waits for it.
        threading.Thread(target=self._threads.stop, name="pages end", daemon=True).start()


def _text_of(failure: Failure) -> str:
    return "" if failure.value is None else error_text(failure.value)


def _anomaly_items(machine: str, rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": machine, "time": time, "score": score, "threshold": threshold} for time, _, _, score, threshold in rows
    ]


def _newest_items(rows: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": machine, "time": time, "score": score, "threshold": threshold}
        for time, machine, _, _, score, threshold in rows
    ]


def _is_text(text: str) -> bool:
    return "\0" not in text and text.isprintable()
