"""Group commit in PostgreSQL: commits that wait at the same time share a transaction.

A transaction costs three round trips and one wait for the server's disk, however many rows it has.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import orjson
import psycopg2
from psycopg2.errors import DeadlockDetected
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.model.records import Commit
from gateway.store.interface import (
    CommitResult,
    IdempotencyConflict,
    OutcomeUnknown,
    RejectedByDatabase,
    StoreUnavailable,
)
from gateway.store.postgres.commits import COMMIT, KEY_LIFE, CommitSkipped, PendingCommit
from gateway.store.postgres.refusals import is_of_the_row
from gateway.store.postgres.session import Session, Work

log = Logger()

#: Maximum commits in one transaction; the server's time limit applies to all of them together.
_MAX_BATCH: Final = 50

#: Seconds after which a transaction counts as slow: the next one has half as many commits, so that all of its rows can
#: be written within the server's time limit.
_SLOW: Final = 1.0

#: Maximum seconds that a commit waits once earlier ones were refused; work waits in the pool as long.
_MAX_WAIT: Final = 5.0

_OUTCOMES: Final = "SELECT key, fingerprint, request, answer, made_at FROM cynow_idempotency WHERE key = ANY(%(keys)s)"

#: Errors that one commit may cause for its whole transaction: its row cannot be written, a trigger or a policy refuses
#: it, or its text cannot be encoded. Transactions with the same keys in another order may also deadlock.
_SINGLE_COMMIT_ERRORS: Final = (
    psycopg2.IntegrityError,
    psycopg2.DataError,
    psycopg2.InternalError,
    psycopg2.ProgrammingError,
    DeadlockDetected,
    CommitSkipped,
    ValueError,
)

#: Maximum seconds until a commit is answered, whatever its outcome; and seconds between checks for late commits.
MAX_ANSWER_TIME: Final = 10.0
_CHECK_EVERY: Final = 0.5


def _may_concern_one_commit(error: Exception) -> bool:
    return isinstance(error, _SINGLE_COMMIT_ERRORS) or (isinstance(error, psycopg2.Error) and is_of_the_row(error))


class CommitQueue:
    """Queue of commits for the connections of a pool.

    Commits that are added in one turn of the reactor share a transaction.

    :param run: runs work on one of these connections, and again if that connection is lost.
    :param size: number of connections.
    :param max_waiting: maximum waiting commits; further ones are refused.
    """

    def __init__(
        self, reactor: IReactorTime, run: Callable[[Work[None]], "Deferred[None]"], size: int, max_waiting: int = 1000
    ) -> None:
        self._reactor = reactor
        self._run = run
        self._free_connections = size
        self._max_batch = _MAX_BATCH
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[PendingCommit, Deferred[CommitResult], float]] = deque()
        self._next_turn: IDelayedCall | None = None
        #: Commits without an answer by request, oldest first; while there are any, they are checked regularly.
        self._unanswered: dict[str, tuple[PendingCommit, Deferred[CommitResult], float]] = {}
        self._check_call: IDelayedCall | None = None

    def write(self, pending: PendingCommit) -> "Deferred[CommitResult]":
        """Write a commit together with others that wait. Cancelling the Deferred does not withdraw the commit.

        :raises IdempotencyConflict: its key was used for another request.
        :raises StoreUnavailable: it cannot be written now, or too many commits wait.
        :raises OutcomeUnknown: it was sent to the server, which has not reported the outcome in time.
        :raises RejectedByDatabase: it will never be written.
        :raises psycopg2.Error: the server has refused it.
        """
        done: Deferred[CommitResult] = Deferred()
        if len(self._waiting) >= self._max_waiting:
            done.errback(Failure(StoreUnavailable(f"{self._max_waiting} commits wait already")))
        else:
            self._waiting.append((pending, done, self._reactor.seconds()))
            self._unanswered[pending.request] = self._waiting[-1]
            if self._check_call is None:
                self._check_call = self._reactor.callLater(_CHECK_EVERY, self._check_late)
            if self._free_connections and self._next_turn is None:
                self._next_turn = self._reactor.callLater(0, self._start_batches)
        return done

    def _check_late(self) -> None:
        """Answer the commits that are late; withdraw those that were not sent."""
        self._check_call = None
        before = self._reactor.seconds() - MAX_ANSWER_TIME
        for pending, done, since in list(self._unanswered.values()):
            if since > before:
                break
            self._withdraw(pending, done, MAX_ANSWER_TIME)
        while self._waiting and self._waiting[0][0].is_withdrawn:
            self._waiting.popleft()
        if self._unanswered:
            self._check_call = self._reactor.callLater(_CHECK_EVERY, self._check_late)

    def withdraw(self, pending: PendingCommit, seconds: float) -> None:
        """Answer a commit that has no outcome yet; do not send it any more.

        :param seconds: time for which its client waited.
        """
        found = self._unanswered.get(pending.request)
        if found is not None:
            self._withdraw(pending, found[1], seconds)

    def _withdraw(self, pending: PendingCommit, done: "Deferred[CommitResult]", seconds: float) -> None:
        pending.is_withdrawn = True
        error = OutcomeUnknown if pending.is_sent else StoreUnavailable
        self._answer(pending, done, Failure(error(f"PostgreSQL has not written the commit within {seconds:g} s")))

    def _answer(self, pending: PendingCommit, done: "Deferred[CommitResult]", outcome: Any) -> None:
        if self._unanswered.pop(pending.request, None) is None:
            return
        if not self._unanswered and self._check_call is not None:
            self._check_call.cancel()
            self._check_call = None
        if isinstance(outcome, CommitResult):
            done.callback(outcome)
        else:
            done.errback(outcome)

    def _start_batches(self) -> None:
        self._next_turn = None
        while self._free_connections and self._waiting:
            self._free_connections -= 1
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            batch = _CommitBatch(self._reactor, [pending for pending, _, _ in taken])
            self._run(batch.write).addBoth(self._finish, batch, [done for _, done, _ in taken], self._reactor.seconds())

    def _finish(
        self, result: Any, batch: "_CommitBatch", waiting: "list[Deferred[CommitResult]]", began: float
    ) -> None:
        self._free_connections += 1
        if self._reactor.seconds() - began > _SLOW:
            self._max_batch = max(1, min(self._max_batch, len(waiting)) // 2)
        elif len(waiting) == self._max_batch:
            self._max_batch = min(_MAX_BATCH, self._max_batch * 2)
        if isinstance(result, Failure):
            self._refuse_old(result)
        # The next transaction runs while the callers of this one continue.
        if self._next_turn is None:
            self._start_batches()
        for pending, done in zip(batch.commits, waiting, strict=True):
            outcome = batch.outcomes.get(pending.request, result)
            self._answer(pending, done, outcome)

    def _refuse_old(self, failure: Failure) -> None:
        """Refuse the commits that have waited too long; the server may be back in time for the others."""
        since = self._reactor.seconds() - _MAX_WAIT
        while self._waiting and self._waiting[0][2] <= since:
            pending, done, _ = self._waiting.popleft()
            self._answer(pending, done, failure)


class _CommitBatch:
    """Commits of one transaction.

    :ivar outcomes: outcomes so far, by request.
    """

    def __init__(self, reactor: IReactorTime, commits: list[PendingCommit]) -> None:
        self.commits = commits
        self._reactor = reactor
        self._deadline = reactor.seconds() + _MAX_WAIT
        self.outcomes: dict[str, CommitResult | Failure] = {}

    async def write(self, session: Session) -> None:
        """Write the commits without an outcome.

        :raises psycopg2.Error: the server has refused all of them, or is unavailable; none is known to be written.
        """
        commits = [pending for pending in self.commits if self._must_write(pending)]
        if len(commits) > 1:
            try:
                await self._write_all(session, commits)
            except (psycopg2.Error, CommitSkipped, ValueError) as error:
                if not _may_concern_one_commit(error) or session.is_lost(error):
                    raise
                # Written one by one, only the commit that caused the error fails.
                log.debug("writing {count} commits one by one", count=len(commits))
        for pending in commits:
            if not self._must_write(pending):
                continue
            if self._reactor.seconds() > self._deadline:
                raise StoreUnavailable(f"PostgreSQL has not written the commit within {_MAX_WAIT:g} s")
            await self._write_one(session, pending)

    def _must_write(self, pending: PendingCommit) -> bool:
        return pending.request not in self.outcomes and not pending.is_withdrawn

    async def _write_one(self, session: Session, pending: PendingCommit) -> None:
        try:
            self.outcomes[pending.request] = await pending.write(session)
        except (IdempotencyConflict, RejectedByDatabase):
            self.outcomes[pending.request] = Failure()
        except (psycopg2.Error, ValueError) as error:
            if not _may_concern_one_commit(error) or session.is_lost(error):
                raise
            self.outcomes[pending.request] = Failure()

    async def _write_all(self, session: Session, commits: list[PendingCommit]) -> None:
        statements: list[str] = []
        values: dict[str, Any] = {"keys": [pending.key.key for pending in commits]}
        for number, pending in enumerate(commits):
            pending.is_sent = True
            statements.append(COMMIT.replace("%(", f"%({number} "))
            values |= {f"{number} {name}": value for name, value in pending.values().items()}

        async def insert(session: Session) -> list[tuple[Any, ...]]:
            rows = await session.ask(";".join([*statements, _OUTCOMES]), values)
            if {pending.key.key for pending in commits} - {row[0] for row in rows}:
                raise CommitSkipped
            return rows

        try:
            rows = await session.transaction(insert)
        except psycopg2.Error as error:
            if session.is_committing and session.is_lost(error):
                for pending in commits:
                    pending.is_in_doubt = True
            raise
        records = {row[0]: row[1:] for row in rows}
        for pending in commits:
            pending.is_in_doubt = False
            fingerprint, request, answer, made_at = records.get(pending.key.key, (None,) * 4)
            # The key has expired: the commit is written by itself, which removes expired keys.
            if fingerprint is None or made_at.timestamp() < pending.now - KEY_LIFE:
                continue
            if fingerprint != pending.key.fingerprint:
                self.outcomes[pending.request] = Failure(IdempotencyConflict())
                continue
            content = orjson.loads(answer)
            is_ours = request == pending.request
            self.outcomes[pending.request] = CommitResult(
                content, Commit(content["id"], pending.entry) if is_ours else None
            )
