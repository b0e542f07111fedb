"""One thread that writes, and transactions that jobs share.

Jobs that wait together go into one transaction, for its price is the wait for the disk: 3.8 k single rows a second
become 82 k in transactions of a thousand.
"""

import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.store.interface import StoreUnavailable

T = TypeVar("T")

Job = Callable[[sqlite3.Connection], T]

#: Jobs in one transaction.
_BATCH: Final = 1000


class GroupWriter:
    """Runs jobs on one connection, many to a transaction.

    :param pool: a pool of one thread, which is this writer's own.
    :param connection: used by that thread only from here on.
    :param path: of its database. Once somebody has removed or replaced that, nothing is written any more: it would be
        gone with the process.
    :param most: jobs that may wait; one more is refused.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        connection: sqlite3.Connection,
        path: str,
        most: int = 1000,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._connection = connection
        self._path = path
        self._inode = inode_of(path)
        self._most = most
        self._waiting: deque[tuple[Job[Any], Deferred[Any]]] = deque()
        self._running: Deferred[None] | None = None
        self._closed = False

    def run(self, job: Job[T]) -> "Deferred[T]":
        """Run a job in a transaction; fires when that is durable.

        :raises StoreUnavailable: too many wait, the writer is closed, or the database refused; nothing was written.
        """
        done: Deferred[T] = Deferred()
        if self._closed or len(self._waiting) >= self._most:
            done.errback(Failure(StoreUnavailable("closed" if self._closed else "too many wait")))
            return done
        self._waiting.append((job, done))
        if self._running is None:
            self._start()
        return done

    def _start(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
        self._running = deferToThreadPool(self._reactor, self._pool, self._run, [job for job, _ in batch]).addBoth(
            self._finish, [done for _, done in batch]
        )

    def _run(self, jobs: list[Job[Any]]) -> list[Any]:
        if inode_of(self._path) != self._inode:
            raise StoreUnavailable(f"{self._path} was removed or replaced: start the gateway again")
        return run_together(self._connection, jobs)

    def _finish(self, outcomes: "list[Any] | Failure", waiting: "list[Deferred[Any]]") -> None:
        self._running = None
        # The next transaction runs while these answers are given.
        if self._waiting:
            self._start()
        for index, done in enumerate(waiting):
            outcome = outcomes if isinstance(outcomes, Failure) else outcomes[index]
            if isinstance(outcome, Failure):
                done.errback(outcome)
            else:
                done.callback(outcome)

    async def close(self) -> None:
        """Finish what waits, and take nothing more."""
        self._closed = True
        while self._running is not None:
            waiting = self._running
            # Not the Deferred itself: its result belongs to nobody.
            done: Deferred[None] = Deferred()
            waiting.addBoth(done.callback)
            await done
        # It may wait for the disk: what is in the write-ahead log goes into the database.
        await deferToThreadPool(self._reactor, self._pool, self._connection.close)


def inode_of(path: str) -> int | None:
    """What tells a file from one that took its place; ``None`` where there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def run_together(connection: sqlite3.Connection, jobs: list[Job[Any]]) -> list[Any]:
    """Run jobs in one transaction; a result or a Failure for each. What one raises undoes that one only.

    :raises StoreUnavailable: the database refused; nothing was written.
    """
    outcomes: list[Any] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                outcomes.append(job(connection))
            except Exception:  # it is whose job it was that hears of it
                if not connection.in_transaction:  # a full disk ends the transaction itself
                    raise
                outcomes.append(Failure())
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise StoreUnavailable(str(error)) from error
    return [_explained(outcome) for outcome in outcomes]


def _explained(outcome: Any) -> Any:
    if isinstance(outcome, Failure) and outcome.check(sqlite3.OperationalError):
        return Failure(StoreUnavailable(str(outcome.value)))
    return outcome
