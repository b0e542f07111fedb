"""Transactions that jobs share; a job that fails is undone alone."""

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gateway.store.interface import RejectedByDatabase, StoreUnavailable
from gateway.store.sqlitefile.errors import primary

T = TypeVar("T")

#: Function that runs in a transaction.
Job = Callable[[sqlite3.Connection], T]

#: Maximum number of jobs in one transaction.
MAX_BATCH: Final = 1000

#: Maximum wait of a transaction for a lock of another program, in seconds.
LOCK_WAIT: Final = 2.0

#: Error text of a job that was not answered in time.
TOO_SLOW: Final = "the disk, a lock or a trigger keeps the database busy"


@dataclass(slots=True)
class QueuedJob:
    """A waiting or running job.

    :ivar until: latest time of its answer, by the reactor's clock; may be infinite.
    :ivar once: whether to report an unknown outcome as such.
    """

    job: Job[Any]
    done: "Deferred[Any]"
    until: float
    once: bool
    is_answered: bool = False


@dataclass(slots=True)
class Outcome:
    """The outcome of a run.

    :ivar results: one result for each job; a Failure if it failed.
    :ivar problem: why the file cannot be written; ``None`` if it can.
    :ivar is_unsettled: whether the disk failed during a commit, and the log may hold the transaction.
    """

    results: list[Any] = field(default_factory=list)
    problem: str | None = None
    is_damage: bool = False
    is_unsettled: bool = False


class CommitFailed(Exception):
    """Error for a disk failure during a commit: some of the transaction may be on the disk."""


def run_together(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Run jobs in one transaction; return a result or a Failure for each. An error undoes only its own job.

    If a rule of the database ends the transaction (``RAISE(ROLLBACK)``), the jobs before it get one of their own.

    :raises StoreUnavailable: the database refused, with the reason as the cause; nothing was written.
    :raises CommitFailed: the disk failed at the end, with the reason as the cause; some of it may be written.
    """
    outcomes: list[Any] = []
    while len(outcomes) < len(jobs):
        try:
            outcomes += _transaction(connection, jobs[len(outcomes) :])
        except (sqlite3.Error, CommitFailed) as error:
            reported = _reported_error(error)
            if not outcomes:
                raise reported from reported.__cause__
            # The earlier jobs are durable.
            outcomes += [Failure(reported)] * (len(jobs) - len(outcomes))
    return outcomes


def _reported_error(error: Exception) -> Exception:
    """Return the error to report to a job's owner for an error of the database."""
    if not isinstance(error, sqlite3.Error) or isinstance(error, sqlite3.IntegrityError):
        return error
    reported = StoreUnavailable(str(error))
    reported.__cause__ = error
    return reported


def _transaction(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Run jobs up to one that ends the transaction, or all of them; return their outcomes."""
    outcomes: list[Any] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                outcomes.append(job(connection))
            except (sqlite3.IntegrityError, RejectedByDatabase):
                failure = Failure()
                if not connection.in_transaction:
                    return [*_run_again(connection, jobs[: len(outcomes)]), failure]
                outcomes.append(failure)
                connection.execute("ROLLBACK TO job")
            except Exception as error:  # it is reported to the job's owner
                if not connection.in_transaction:  # a full disk ends the transaction itself
                    raise
                outcomes.append(Failure(_reported_error(error)))
                connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
        _commit(connection)
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _run_again(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> list[Any]:
    return run_together(connection, jobs) if jobs else []


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if primary(error) == sqlite3.SQLITE_IOERR:
            raise CommitFailed from error
        raise


def refuse(jobs: Sequence[tuple[Job[Any], bool]], problem: str) -> Outcome:
    """Return the outcome of a run in which no job was begun."""
    return Outcome([Failure(StoreUnavailable(problem)) for _ in jobs], problem)
