"""Commits that become tickets while PostgreSQL is unavailable, and the forwarder that brings them to it."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import psycopg2
from psycopg2.errors import UniqueViolation
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from gateway.model.records import Commit
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.store.interface import (
    CommitResult,
    IdempotencyKey,
    OutcomeUnknown,
    RejectedByDatabase,
    StoreUnavailable,
)
from gateway.store.postgres.commit_batches import CommitQueue
from gateway.store.postgres.commits import PendingCommit
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text, is_of_the_row
from gateway.store.postgres.ticket_rows import ForwardedTicket, forward
from gateway.store.ticket_interface import QueuedTicket, TicketEnd, TicketQueue

log = Logger()

#: Seconds that a commit waits for PostgreSQL before it becomes a ticket.
PATIENCE: Final = 0.5

#: Maximum tickets in one transaction.
_MAX_BATCH: Final = 50

#: First and maximum seconds until the next attempt, which grow while the server does not take tickets.
_FIRST_WAIT: Final = 0.25
_MAX_WAIT: Final = 10.0

#: Called with each commit of a ticket whose row was written, and its request.
OnForwarded: TypeAlias = Callable[[Commit, str], None]


def _ignore(commit: Commit, request: str) -> None:
    """Publish nothing."""


class TicketForwarder:
    """Forwarder of tickets to the server, in their order.

    :ivar on_forwarded: called with each commit whose row was written, and its request.
    :ivar problem: why the server, though connected, does not take tickets; ``None`` if it does.
    """

    def __init__(
        self, reactor: Any, clock: WallClock, counters: Counters, queue: TicketQueue, pool: Pool, gateway: str
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._queue = queue
        self._pool = pool
        self._gateway = gateway
        self._warnings = LimitedLog(log, clock, counters)
        self._wait = backoffPolicy(_FIRST_WAIT, _MAX_WAIT)
        self._failures = 0
        self._is_closing = False
        self._must_look = False
        self._resting: Deferred[None] | None = None
        self._pausing: tuple[IDelayedCall, Deferred[None]] | None = None
        self.on_forwarded: OnForwarded = _ignore
        self.problem: str | None = None

    def start(self) -> None:
        """Start forwarding."""
        self._pool.on_connect = self.retry
        self._running = Deferred.fromCoroutine(self._run())

    def wake(self) -> None:
        """Look for tickets."""
        self._must_look = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def retry(self) -> None:
        """Try again at once: the server may be back."""
        self._failures = 0
        if self._pausing is not None:
            call, pausing = self._pausing
            call.cancel()
            self._resume(pausing)

    def stop(self) -> None:
        """Forward no further tickets."""
        self._is_closing = True
        self.wake()
        self.retry()

    async def stopped(self) -> None:
        """Wait for the running batch."""
        await self._running

    async def _run(self) -> None:
        size = _MAX_BATCH
        while not self._is_closing:
            try:
                self._must_look = False
                tickets = await self._queue.first(size)
                if tickets:
                    size = await self._forward(tickets)
                    self._failures = 0
                elif not self._must_look:
                    self._resting = Deferred()
                    await self._resting
            except StoreUnavailable as error:
                log.debug("tickets wait: {error}", error=error)
                await self._pause()
            except psycopg2.Error as error:
                self._set_problem(error_text(error))
                size = 1
                await self._pause()
            except Exception:  # the loop must go on, whatever the error
                log.failure("tickets cannot be forwarded; they wait")
                size = 1
                await self._pause()

    async def _pause(self) -> None:
        if not self._is_closing:
            self._failures += 1
            pausing: Deferred[None] = Deferred()
            self._pausing = self._reactor.callLater(self._wait(min(self._failures, 50)), self._resume, pausing), pausing
            await pausing

    def _resume(self, pausing: "Deferred[None]") -> None:
        self._pausing = None
        pausing.callback(None)

    async def _forward(self, tickets: Sequence[QueuedTicket]) -> int:
        """Forward tickets; return the maximum number of the next batch."""
        work = partial(forward, tickets=tickets, now=self._clock.wall(), gateway=self._gateway)
        try:
            written = await self._pool.run(work, is_repeatable=False)
        except (psycopg2.Error, RejectedByDatabase, ValueError) as error:
            if not _may_concern_one(error):
                raise
            if len(tickets) > 1:
                # One by one: only the ticket that caused the error is rejected.
                return 1
            await self._reject(tickets[0], error)
            return _MAX_BATCH
        self._set_problem(None)
        await self._queue.end([TicketEnd(each.queued.n, "written", each.commit_id) for each in written])
        for each in written:
            self._publish(each)
        return min(_MAX_BATCH, 2 * len(tickets))

    def _publish(self, each: ForwardedTicket) -> None:
        queued = each.queued
        self._counters.tickets.labels(each.outcome).inc()
        log.info(
            "scale {scale}: ticket {ticket} is commit {id} ({outcome})",
            scale=queued.entry.scale_id,
            ticket=queued.ticket,
            id=each.commit_id,
            outcome=each.outcome,
        )
        if each.warning is not None:
            self._warnings.warn("ticket", "ticket {ticket}: {why}", ticket=queued.ticket, why=each.warning)
        if each.outcome == "written":
            self.on_forwarded(Commit(each.commit_id, queued.entry, queued.ticket), queued.request)

    async def _reject(self, queued: QueuedTicket, error: Exception) -> None:
        why = error_text(error) if isinstance(error, psycopg2.Error) else str(error)
        if isinstance(error, ValueError):
            why = f"a text cannot be written as UTF-8 ({type(error).__name__})"
        await self._queue.end([TicketEnd(queued.n, "rejected", None, why)])
        self._counters.tickets.labels("rejected").inc()
        log.error(
            "scale {scale}: the database rejected ticket {ticket}, which has no row: {why}",
            scale=queued.entry.scale_id,
            ticket=queued.ticket,
            why=why,
        )

    def _set_problem(self, why: str | None) -> None:
        if why is not None and why != self.problem:
            log.warn("PostgreSQL does not take tickets; they wait: {error}", error=why)
        self.problem = why


def _may_concern_one(error: Exception) -> bool:
    """Return whether a ticket caused the error, so that it will be refused again."""
    if isinstance(error, UniqueViolation) and error.diag.table_name in {"cynow_commit", "cynow_idempotency"}:
        # An earlier attempt was on its way, and is known to the next one; but a commit is undone only once.
        return bool(error.diag.constraint_name == "cynow_commit_undo_of_key")
    return not isinstance(error, psycopg2.Error) or is_of_the_row(error)


class TicketedCommits:
    """Commits that may wait, and the tickets that they become.

    :param queue: queue of tickets; opened and closed with this part.
    :param commits: queue of commits for the server.
    """

    def __init__(
        self, reactor: Any, queue: TicketQueue, commits: CommitQueue, pool: Pool, forwarder: TicketForwarder
    ) -> None:
        self._reactor = reactor
        self._queue = queue
        self._commits = commits
        self._pool = pool
        self.forwarder = forwarder

    @property
    def problems(self) -> list[str]:
        """Return the problems of the tickets, for ``/healthz``."""
        problems = []
        if self._queue.waiting:
            why = "" if self.forwarder.problem is None else f": {self.forwarder.problem}"
            problems.append(f"{self._queue.waiting} commits wait for PostgreSQL as tickets{why}")
        if self._queue.rejected:
            problems.append(f"the database rejected {self._queue.rejected} tickets; the log names each with the reason")
        if self._queue.problem is not None:
            problems.append(self._queue.problem)
        return problems

    async def answer_to(self, key: IdempotencyKey | None) -> dict[str, Any] | None:
        """Return the first answer to a key that has a ticket."""
        return None if key is None else await self._queue.answer_to(key)

    async def commit(
        self, pending: PendingCommit, key: IdempotencyKey | None, write: Callable[[], Awaitable[CommitResult]]
    ) -> CommitResult:
        """Write a commit, or make a ticket of it.

        While tickets wait, each commit becomes one, so that the order stays, and nobody waits.

        :param write: writes the commit to the server.
        """
        error: Exception = StoreUnavailable("PostgreSQL is unavailable")
        if not self._queue.waiting and self._pool.is_connected:
            patience = self._reactor.callLater(PATIENCE, self._commits.withdraw, pending, PATIENCE)
            try:
                return await write()
            except (StoreUnavailable, OutcomeUnknown) as failed:
                error = failed
            finally:
                if patience.active():
                    patience.cancel()
        # A retry by the pool must not write it in addition; the server knows an attempt that is on its way.
        pending.is_withdrawn = True
        return await self._make(pending, key, error)

    async def _make(self, pending: PendingCommit, key: IdempotencyKey | None, error: Exception) -> CommitResult:
        _check_texts(pending)
        try:
            made = await self._queue.make(pending.entry, pending.request, key)
        except StoreUnavailable as refused:
            if isinstance(error, OutcomeUnknown):
                _raise_unknown(error, refused)
            raise
        finally:
            self.forwarder.wake()
        if made.ticket is None:
            return CommitResult(made.answer, None)
        log.info("scale {scale}: commit waits as ticket {ticket}", scale=pending.entry.scale_id, ticket=made.ticket)
        return CommitResult(made.answer, Commit(None, pending.entry, made.ticket))


def _raise_unknown(error: Exception, refused: Exception) -> NoReturn:
    raise OutcomeUnknown(f"{error}; {refused}") from None


def _check_texts(pending: PendingCommit) -> None:
    """Reject a commit that the server could never take, before it becomes a ticket.

    :raises RejectedByDatabase: a text cannot be stored.
    """
    try:
        values = pending.values()
    except ValueError as error:
        raise RejectedByDatabase(f"a text cannot be written as UTF-8 ({type(error).__name__})") from None
    if any(isinstance(value, str) and "\0" in value for value in values.values()):
        raise RejectedByDatabase("a text contains NUL")
