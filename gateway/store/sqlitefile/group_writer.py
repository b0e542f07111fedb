"""A writer with one thread, in whose transactions waiting jobs share the wait for the disk.

A transaction for each row writes 3,800 rows a second; one for a thousand rows writes 82,000.
"""

import math
import os
import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.runtime.limited_log import LimitedLog
from gateway.store.interface import OutcomeUnknown, StoreUnavailable
from gateway.store.sqlitefile.errors import explained, is_damage, may_be_full, primary
from gateway.store.sqlitefile.transactions import (
    LOCK_WAIT,
    MAX_BATCH,
    TOO_SLOW,
    CommitFailed,
    Job,
    Outcome,
    QueuedJob,
    refuse,
    run_together,
)

T = TypeVar("T")

#: Device and inode of a file, which distinguish it from another file with its name.
Identity: TypeAlias = tuple[int, int]

#: Interval of checks of the file, in seconds.
_CHECK_INTERVAL: Final = 2.0

#: Size of the smallest database, in bytes; a smaller file was truncated.
_MIN_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions of the regular check of a file, called in the writer's thread every few seconds.

    :ivar subject: subject of log lines, such as ``commits``.
    :ivar check: reads the parts of the schema that jobs need; raises ``sqlite3.Error`` if something is missing.
    :ivar touch: writes a row without changing it, to find out whether the file can be written.
    :ivar note: called after each check without a problem.
    :ivar logs: whether the writer logs problems.
    """

    subject: str
    check: Job[None]
    touch: Job[None]
    note: Job[None]
    logs: bool = True


class GroupWriter:
    """Runs jobs on one connection, many to a transaction.

    :param reactor: reactor with a clock and threads.
    :param pool: pool of one thread, which is this writer's own.
    :param connection: connection that only this thread uses from now on.
    :param path: path of its database. Once the file was removed or replaced, nothing more is written: the data would be
        gone with the process.
    :param max_waiting: maximum waiting jobs; further ones are refused.
    """

    def __init__(
        self,
        reactor: Any,
        pool: ThreadPool,
        connection: sqlite3.Connection,
        path: str,
        watch: Watch,
        warnings: LimitedLog,
        max_waiting: int = 1000,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._connection = connection
        self._path = path
        self._log_path = f"{path}-wal"
        self._inode = inode_of(path)
        self._log_inode = inode_of(self._log_path)
        self._watch = watch
        self._warnings = warnings
        self._max_waiting = max_waiting
        self._waiting: deque[QueuedJob] = deque()
        self._current: list[QueuedJob] = []
        self._running: Deferred[None] | None = None
        self._is_closed = False
        self._damage: str | None = None
        self._problem: str | None = None
        self._refused = 0
        self._is_unsettled = False
        self._was_locked = False
        self._is_check_due = False
        self._check_call: IDelayedCall | None = reactor.callLater(_CHECK_INTERVAL, self._request_check)
        self._deadline_call: IDelayedCall | None = None

    @property
    def problem(self) -> str | None:
        """Return why nothing is written now; ``None`` if the file can be written."""
        return self._damage or self._problem

    @property
    def is_damaged(self) -> bool:
        """Return whether nothing more will be written before a restart."""
        return self._damage is not None

    def condemn(self, damage: str) -> None:
        """Stop writing for good.

        :param damage: the damage of the file, in words.
        """
        if self._damage is None:
            self._damage = f"{damage}; stop the gateway and restore a backup, or repair it with sqlite3 .recover"
            self._log_refused(self._damage)

    def run(self, job: Job[T], patience: float | None = None, *, once: bool = False) -> "Deferred[T]":
        """Run a job in a transaction; the Deferred fires when that is durable.

        :param patience: maximum time until the answer, in seconds; the job may still run after it.
        :param once: whether to report an unknown outcome as :class:`OutcomeUnknown`.
        :raises StoreUnavailable: too many jobs wait, or the writer or the database refused; nothing was written.
        :raises OutcomeUnknown: the job may have been written.
        """
        done: Deferred[T] = Deferred()
        if self._is_closed or self._damage is not None or len(self._waiting) >= self._max_waiting:
            reason = "closed" if self._is_closed else self._damage or "too many operations wait"
            self._refused += 1
            done.errback(Failure(StoreUnavailable(reason)))
            return done
        until = math.inf if patience is None else self._reactor.seconds() + patience
        self._waiting.append(QueuedJob(job, done, until, once))
        if patience is not None and self._deadline_call is None:
            self._deadline_call = self._reactor.callLater(patience, self._expire)
        if self._running is None:
            self._start()
        return done

    # -- deadlines

    def _expire(self) -> None:
        """Answer the jobs that have waited too long; withdraw those that have not begun."""
        self._deadline_call = None
        now = self._reactor.seconds()
        late = [each for each in self._current if each.until <= now and not each.is_answered]
        withdrawn = [each for each in self._waiting if each.until <= now]
        self._waiting = deque(each for each in self._waiting if each.until > now)
        next_one = min((each.until for each in (*self._current, *self._waiting) if each.until > now), default=math.inf)
        if next_one < math.inf and not self._is_closed:
            self._deadline_call = self._reactor.callLater(next_one - now, self._expire)
        self._refused += len(withdrawn)
        for each in withdrawn:
            each.is_answered = True
            each.done.errback(Failure(StoreUnavailable(TOO_SLOW)))
        for each in late:
            each.is_answered = True
            error = OutcomeUnknown if each.once else StoreUnavailable
            each.done.errback(Failure(error(TOO_SLOW)))

    def _request_check(self) -> None:
        """Have the next run check the file, and begin one unless one is running."""
        if self._damage is not None:
            return
        self._check_call = self._reactor.callLater(_CHECK_INTERVAL, self._request_check)
        self._is_check_due = True
        if self._running is None:
            self._start()

    # -- transactions

    def _start(self) -> None:
        self._current = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        is_check_due, self._is_check_due = self._is_check_due, False
        jobs = [(each.job, each.once) for each in self._current]
        self._running = deferToThreadPool(self._reactor, self._pool, self._run, jobs, is_check_due).addBoth(
            self._finish
        )

    def _run(self, jobs: list[tuple[Job[Any], bool]], is_check_due: bool) -> Outcome:
        """Run the due check and the jobs, in the thread."""
        replacement = self.find_replacement()
        if replacement is not None:
            return refuse(jobs, replacement)
        outcome = self._run_jobs(jobs) if jobs else Outcome()
        if is_check_due and outcome.problem is None:
            problem = self._check_file(has_written=bool(jobs))
            outcome.problem, outcome.is_damage = problem or (None, False)
        return outcome

    def _run_jobs(self, jobs: list[tuple[Job[Any], bool]]) -> Outcome:
        try:
            results = run_together(self._connection, [job for job, _ in jobs])
        except (StoreUnavailable, CommitFailed) as failed:
            results = [Failure(failed)] * len(jobs)
        outcome = Outcome()
        for (_, once), result in zip(jobs, results, strict=True):
            raised = result.value if isinstance(result, Failure) else None
            if isinstance(raised, StoreUnavailable | CommitFailed) and raised.__cause__ is not None:
                if outcome.problem is None:
                    outcome.problem = explained(raised.__cause__, self._path)
                    outcome.is_damage = is_damage(raised.__cause__)
                if isinstance(raised, CommitFailed) and not outcome.is_unsettled:
                    # The log may hold all frames of the transaction, and a start after a kill would find the rows.
                    outcome.is_unsettled = not self._overwrite_frames()
                unknown = once and outcome.is_unsettled and isinstance(raised, CommitFailed)
                result = Failure((OutcomeUnknown if unknown else StoreUnavailable)(outcome.problem))
            outcome.results.append(result)
        return outcome

    def _overwrite_frames(self) -> bool:
        """Overwrite the frames that a failed transaction may have left in the log; return whether that worked."""
        try:
            run_together(self._connection, [self._watch.touch])
        except (StoreUnavailable, CommitFailed):
            return False
        return True

    def find_replacement(self) -> str | None:
        """Return how the file was moved, removed, replaced or truncated by another program; ``None`` if it was not."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            directory = os.path.dirname(self._path)
            if not os.path.isdir(directory):
                return f"{directory}: the directory was moved or removed; put it back, or restart the gateway"
            return f"{self._path} was removed or replaced; put it back, or restart the gateway"
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        if (status.st_dev, status.st_ino) != self._inode:
            return f"{self._path} was removed or replaced; put it back, or restart the gateway"
        if status.st_size < _MIN_BYTES:
            size = status.st_size
            return f"{self._path} was truncated to {size} bytes; stop the gateway and restore a backup"
        found = inode_of(self._log_path)
        if self._log_inode is None:
            self._log_inode = found
        elif found != self._log_inode:
            return f"{self._log_path} was removed or replaced; restart the gateway, which saves the data on its stop"
        return None

    def _check_file(self, *, has_written: bool) -> tuple[str, bool] | None:
        """Check the file; return the problem and whether it is damage, or ``None``.

        :param has_written: whether jobs have just been written, so that no trial write is needed.
        """
        connection = self._connection
        try:
            self._watch.check(connection)
            if not has_written:
                connection.execute("PRAGMA busy_timeout = 0")
                try:
                    if self._problem is not None or self._is_unsettled or may_be_full(os.path.dirname(self._path)):
                        run_together(connection, [self._watch.touch])
                    else:
                        connection.execute("BEGIN IMMEDIATE")
                        connection.execute("ROLLBACK")
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {round(1000 * LOCK_WAIT)}")
            self._was_locked = False
            self._watch.note(connection)
        except (sqlite3.Error, StoreUnavailable, CommitFailed) as failure:
            error = failure.__cause__ or failure
            if primary(error) == sqlite3.SQLITE_BUSY and not self._was_locked and self._problem is None:
                # A short lock is normal: it is a problem only if the next check finds it too.
                self._was_locked = True
                return None
            return explained(error, self._path), is_damage(error)
        return None

    def _finish(self, result: "Outcome | Failure") -> None:
        self._running = None
        done, self._current = self._current, []
        if isinstance(result, Failure):
            result = refuse([(each.job, each.once) for each in done], str(result.value))
        self._report(result, done)
        # The next transaction runs while the answers are delivered.
        if not self._is_closed and self._damage is not None:
            self._waiting, dropped = deque(), self._waiting
        else:
            dropped = deque()
            if self._waiting or (self._is_check_due and not self._is_closed):
                self._start()
        for each, outcome in zip(done, result.results, strict=True):
            if each.is_answered:
                continue
            each.is_answered = True
            if isinstance(outcome, Failure):
                each.done.errback(outcome)
            else:
                each.done.callback(outcome)
        for each in dropped:
            each.is_answered = True
            each.done.errback(Failure(StoreUnavailable(self._damage or "")))

    def _report(self, result: Outcome, done: Sequence[QueuedJob]) -> None:
        """Log problems and their ends, and late answers."""
        subject = self._watch.subject
        self._refused += sum(
            isinstance(each, Failure) and bool(each.check(StoreUnavailable)) for each in result.results
        )
        self._is_unsettled = result.is_unsettled or (self._is_unsettled and result.problem is not None)
        late = [
            not isinstance(outcome, Failure)
            for each, outcome in zip(done, result.results, strict=True)
            if each.is_answered and each.once
        ]
        if late:
            self._warnings.warn(
                f"{subject} late",
                "{subject}: {count} were answered with outcome_unknown because the database was too slow; {written} of"
                " them are written now",
                subject=subject,
                count=len(late),
                written=sum(late),
            )
        before, self._problem = self._problem, result.problem
        if result.problem is not None and result.is_damage:
            self.condemn(result.problem)
        elif result.problem is not None and before is None:
            self._log_refused(result.problem)
        elif result.problem is None and before is not None and self._watch.logs:
            message = "{subject} are accepted again; {count} were refused"
            self._warnings.info(f"{subject} accepted", message, subject=subject, count=self._refused)
        if result.problem is None:
            self._refused = 0

    def _log_refused(self, problem: str) -> None:
        subject = self._watch.subject
        if self._watch.logs:
            message = "{subject} are refused: {problem}"
            self._warnings.warn(f"{subject} refused", message, subject=subject, problem=problem)

    async def close(self) -> None:
        """Finish the waiting jobs, refuse further ones, and close the connection."""
        self._is_closed = True
        for call in (self._check_call, self._deadline_call):
            if call is not None and call.active():
                call.cancel()
        while self._running is not None:
            waiting = self._running
            # A Deferred of its own, so that the result of the running one stays unchanged.
            done: Deferred[None] = Deferred()
            waiting.addBoth(done.callback)
            await done
        # Closing moves the write-ahead log into the database, and may wait for the disk.
        await deferToThreadPool(self._reactor, self._pool, self._connection.close)


def inode_of(path: str) -> Identity | None:
    """Return the device and inode of a file; ``None`` if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
