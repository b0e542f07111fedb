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

#: Maximum commits in one transaction; the server's time limit holds for all of them together.
_BATCH: Final = 50

#: Seconds after which a transaction counts as slow: the next one has half as many commits, so that all of its rows can
#: be written within the server's time limit.
_LONG: Final = 1.0

#: Seconds that an order may wait once earlier ones were refused; the pool lets work wait as long.
_WAIT: Final = 5.0

_OUTCOMES: Final = "SELECT key, fingerprint, request, answer, made_at FROM cynow_idempotency WHERE key = ANY(%(keys)s)"

#: Errors that one commit may cause for its whole transaction: its row cannot be written, a trigger or a policy refuses
#: it, or its text cannot be encoded. Transactions with the same keys in different orders may also deadlock.
_OF_ONE: Final = (
    psycopg2.IntegrityError,
    psycopg2.DataError,
    psycopg2.InternalError,
    psycopg2.ProgrammingError,
    DeadlockDetected,
    CommitSkipped,
    ValueError,
)

#: Seconds within which a commit is answered, whatever its outcome; and seconds between checks for late ones.
LIMIT: Final = 10.0
_LOOK: Final = 0.5


def _may_be_of_one(error: Exception) -> bool:
    return isinstance(error, _OF_ONE) or (isinstance(error, psycopg2.Error) and is_of_the_row(error))


class CommitQueue:
    """Queue of orders for the connections of a pool.

    Orders that are added in one turn of the reactor share a transaction.

    :param run: runs work on one of these connections, and again if that connection is lost.
    :param size: number of connections.
    :param most: maximum waiting orders; further ones are refused.
    """

    def __init__(
        self, reactor: IReactorTime, run: Callable[[Work[None]], "Deferred[None]"], size: int, most: int = 1000
    ) -> None:
        self._reactor = reactor
        self._run = run
        self._free = size
        self._batch = _BATCH
        self._most = most
        self._waiting: deque[tuple[PendingCommit, Deferred[CommitResult], float]] = deque()
        self._turn: IDelayedCall | None = None
        #: Orders without an answer, the oldest first; while there are any, they are checked regularly.
        self._open: dict[str, tuple[PendingCommit, Deferred[CommitResult], float]] = {}
        self._looking: IDelayedCall | None = None

    def write(self, order: PendingCommit) -> "Deferred[CommitResult]":
        """Write an order together with others that wait. Cancelling the Deferred does not withdraw the order.

        :raises IdempotencyConflict: its key was used for another request.
        :raises StoreUnavailable: it cannot be written now, or too many wait.
        :raises OutcomeUnknown: it was sent to the server, which has not reported the outcome in time.
        :raises RejectedByDatabase: it will never be written.
        :raises psycopg2.Error: the server has refused it.
        """
        done: Deferred[CommitResult] = Deferred()
        if len(self._waiting) >= self._most:
            done.errback(Failure(StoreUnavailable("too many wait")))
        else:
            self._waiting.append((order, done, self._reactor.seconds()))
            self._open[order.request] = self._waiting[-1]
            if self._looking is None:
                self._looking = self._reactor.callLater(_LOOK, self._look)
            if self._free and self._turn is None:
                self._turn = self._reactor.callLater(0, self._next)
        return done

    def _look(self) -> None:
        """Answer the orders that are late; withdraw those that were not sent."""
        self._looking = None
        before = self._reactor.seconds() - LIMIT
        for order, done, since in list(self._open.values()):
            if since > before:
                break
            order.is_withdrawn = True
            late = OutcomeUnknown if order.is_sent else StoreUnavailable
            self._answer(order, done, Failure(late(f"PostgreSQL has not written it within {LIMIT:g} s")))
        while self._waiting and self._waiting[0][0].is_withdrawn:
            self._waiting.popleft()
        if self._open:
            self._looking = self._reactor.callLater(_LOOK, self._look)

    def _answer(self, order: PendingCommit, done: "Deferred[CommitResult]", outcome: Any) -> None:
        if self._open.pop(order.request, None) is None:
            return
        if not self._open and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if isinstance(outcome, CommitResult):
            done.callback(outcome)
        else:
            done.errback(outcome)

    def _next(self) -> None:
        self._turn = None
        while self._free and self._waiting:
            self._free -= 1
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch))]
            together = _CommitBatch(self._reactor, [order for order, _, _ in batch])
            self._run(together.write).addBoth(
                self._finish, together, [done for _, done, _ in batch], self._reactor.seconds()
            )

    def _finish(
        self, result: Any, together: "_CommitBatch", waiting: "list[Deferred[CommitResult]]", began: float
    ) -> None:
        self._free += 1
        if self._reactor.seconds() - began > _LONG:
            self._batch = max(1, min(self._batch, len(waiting)) // 2)
        elif len(waiting) == self._batch:
            self._batch = min(_BATCH, self._batch * 2)
        if isinstance(result, Failure):
            self._refuse_late(result)
        # The next transaction runs while these answers are given.
        if self._turn is None:
            self._next()
        for order, done in zip(together.orders, waiting, strict=True):
            outcome = together.outcomes.get(order.request, result)
            self._answer(order, done, outcome)

    def _refuse_late(self, failure: Failure) -> None:
        """Refuse the orders that have waited too long; the server may be back in time for the others."""
        since = self._reactor.seconds() - _WAIT
        while self._waiting and self._waiting[0][2] <= since:
            order, done, _ = self._waiting.popleft()
            self._answer(order, done, failure)


class _CommitBatch:
    """Orders of one transaction.

    :ivar outcomes: outcomes by request, of the orders that have one.
    """

    def __init__(self, reactor: IReactorTime, orders: list[PendingCommit]) -> None:
        self.orders = orders
        self._reactor = reactor
        self._until = reactor.seconds() + _WAIT
        self.outcomes: dict[str, CommitResult | Failure] = {}

    async def write(self, session: Session) -> None:
        """Write the orders without an outcome.

        :raises psycopg2.Error: the server has refused all of them, or is away; none is known to be written.
        """
        orders = [order for order in self.orders if self._is_wanted(order)]
        if len(orders) > 1:
            try:
                await self._write_all(session, orders)
            except (psycopg2.Error, CommitSkipped, ValueError) as error:
                if not _may_be_of_one(error) or session.is_lost(error):
                    raise
                # Written one by one, only the order that caused the error fails.
                log.debug("{count} commits are written one by one", count=len(orders))
        for order in orders:
            if not self._is_wanted(order):
                continue
            if self._reactor.seconds() > self._until:
                raise StoreUnavailable("PostgreSQL takes too long")
            await self._write_one(session, order)

    def _is_wanted(self, order: PendingCommit) -> bool:
        return order.request not in self.outcomes and not order.is_withdrawn

    async def _write_one(self, session: Session, order: PendingCommit) -> None:
        try:
            self.outcomes[order.request] = await order.write(session)
        except (IdempotencyConflict, RejectedByDatabase):
            self.outcomes[order.request] = Failure()
        except (psycopg2.Error, ValueError) as error:
            if not _may_be_of_one(error) or session.is_lost(error):
                raise
            self.outcomes[order.request] = Failure()

    async def _write_all(self, session: Session, orders: list[PendingCommit]) -> None:
        statements: list[str] = []
        values: dict[str, Any] = {"keys": [order.key.key for order in orders]}
        for number, order in enumerate(orders):
            order.is_sent = True
            statements.append(COMMIT.replace("%(", f"%({number} "))
            values |= {f"{number} {name}": value for name, value in order.values().items()}

        async def insert(session: Session) -> list[tuple[Any, ...]]:
            rows = await session.ask(";".join([*statements, _OUTCOMES]), values)
            if {order.key.key for order in orders} - {row[0] for row in rows}:
                raise CommitSkipped
            return rows

        try:
            rows = await session.transaction(insert)
        except psycopg2.Error as error:
            if session.is_committing and session.is_lost(error):
                for order in orders:
                    order.is_in_doubt = True
            raise
        found = {row[0]: row[1:] for row in rows}
        for order in orders:
            order.is_in_doubt = False
            fingerprint, request, answer, made_at = found.get(order.key.key, (None,) * 4)
            # The key has expired: the order is written by itself, which removes expired keys.
            if fingerprint is None or made_at.timestamp() < order.now - KEY_LIFE:
                continue
            if fingerprint != order.key.fingerprint:
                self.outcomes[order.request] = Failure(IdempotencyConflict())
                continue
            told = orjson.loads(answer)
            is_ours = request == order.request
            self.outcomes[order.request] = CommitResult(told, Commit(told["id"], order.entry) if is_ours else None)
