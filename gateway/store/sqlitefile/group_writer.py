"""One thread that writes, and transactions that jobs share.

Jobs that wait together go into one transaction, for its price is the wait for the disk: 3.8 k single rows a second
become 82 k in transactions of a thousand.
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


#: Seconds between two checks of the file.
_LOOK: Final = 2.0


#: Bytes of the smallest database; a smaller file was truncated.
_LEAST_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions of the regular check of a file, called in the writer's thread every few seconds.

    :ivar what: subject of log lines, such as ``commits``.
    :ivar check: reads the parts of the schema that jobs need; raises ``sqlite3.Error`` if something is missing.
    :ivar touch: writes a row without changing it, to find out whether the file can be written.
    :ivar look: called when all is well.
    :ivar says: whether this writer logs problems.
    """

    what: str
    check: Job[None]
    touch: Job[None]
    look: Job[None]
    says: bool = True


class GroupWriter:
    """Runs jobs on one connection, many to a transaction.

    :param reactor: reactor with a clock and threads.
    :param pool: pool of one thread, which is this writer's own.
    :param connection: connection that only this thread uses from now on.
    :param path: path of its database. Once the file was removed or replaced, nothing more is written: the data would be
        gone with the process.
    :param most: maximum waiting jobs; further ones are refused.
    """

    def __init__(
        self,
        reactor: Any,
        pool: ThreadPool,
        connection: sqlite3.Connection,
        path: str,
        watch: Watch,
        warnings: LimitedLog,
        most: int = 1000,
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
        self._most = most
        self._waiting: deque[QueuedJob] = deque()
        self._in_hand: list[QueuedJob] = []
        self._running: Deferred[None] | None = None
        self._closed = False
        self._damage: str | None = None
        self._problem: str | None = None
        self._refused = 0
        self._unsettled = False
        self._was_locked = False
        self._look_due = False
        self._look_call: IDelayedCall | None = reactor.callLater(_LOOK, self._look)
        self._deadline_call: IDelayedCall | None = None

    @property
    def problem(self) -> str | None:
        """Return why nothing is written now; ``None`` if all is well."""
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
            self._say_refused(self._damage)

    def run(self, job: Job[T], patience: float | None = None, *, once: bool = False) -> "Deferred[T]":
        """Run a job in a transaction; fires when that is durable.

        :param patience: seconds after which it is answered in any case; the job may still be done.
        :param once: whether to report an unknown outcome as :class:`OutcomeUnknown`.
        :raises StoreUnavailable: too many wait, the writer is closed, or the database refused; nothing was written.
        :raises OutcomeUnknown: it may have been written.
        """
        done: Deferred[T] = Deferred()
        if self._closed or self._damage is not None or len(self._waiting) >= self._most:
            reason = "closed" if self._closed else self._damage or "too many wait"
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
        late = [each for each in self._in_hand if each.until <= now and not each.is_answered]
        withdrawn = [each for each in self._waiting if each.until <= now]
        self._waiting = deque(each for each in self._waiting if each.until > now)
        next_one = min((each.until for each in (*self._in_hand, *self._waiting) if each.until > now), default=math.inf)
        if next_one < math.inf and not self._closed:
            self._deadline_call = self._reactor.callLater(next_one - now, self._expire)
        self._refused += len(withdrawn)
        for each in withdrawn:
            each.is_answered = True
            each.done.errback(Failure(StoreUnavailable(TOO_SLOW)))
        for each in late:
            each.is_answered = True
            error = OutcomeUnknown if each.once else StoreUnavailable
            each.done.errback(Failure(error(TOO_SLOW)))

    def _look(self) -> None:
        if self._damage is not None:
            return
        self._look_call = self._reactor.callLater(_LOOK, self._look)
        self._look_due = True
        if self._running is None:
            self._start()

    # -- runs

    def _start(self) -> None:
        self._in_hand = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        look, self._look_due = self._look_due, False
        jobs = [(each.job, each.once) for each in self._in_hand]
        self._running = deferToThreadPool(self._reactor, self._pool, self._run, jobs, look).addBoth(self._finish)

    def _run(self, jobs: list[tuple[Job[Any], bool]], look: bool) -> Outcome:
        """Run the due check and the jobs, in the thread."""
        moved = self.moved()
        if moved is not None:
            return refuse(jobs, moved)
        outcome = self._run_jobs(jobs) if jobs else Outcome()
        if look and outcome.problem is None:
            problem = self._look_at_file(is_tried=bool(jobs))
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
                if isinstance(raised, CommitFailed) and not outcome.unsettled:
                    # The log may hold all frames of the transaction, and a start after a kill would find the rows.
                    outcome.unsettled = not self._settles()
                unknown = once and outcome.unsettled and isinstance(raised, CommitFailed)
                result = Failure((OutcomeUnknown if unknown else StoreUnavailable)(outcome.problem))
            outcome.results.append(result)
        return outcome

    def _settles(self) -> bool:
        """Overwrite the frames that a failed transaction may have left in the log; return whether that worked."""
        try:
            run_together(self._connection, [self._watch.touch])
        except (StoreUnavailable, CommitFailed):
            return False
        return True

    def moved(self) -> str | None:
        """Return how another program has moved, removed, replaced or truncated the file, in words, or ``None``."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            directory = os.path.dirname(self._path)
            if not os.path.isdir(directory):
                return f"{directory}: the directory was moved or removed; put it back, or start the gateway again"
            return f"{self._path} was removed or replaced: put it back, or start the gateway again"
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        if (status.st_dev, status.st_ino) != self._inode:
            return f"{self._path} was removed or replaced: put it back, or start the gateway again"
        if status.st_size < _LEAST_BYTES:
            size = status.st_size
            return f"{self._path}: somebody has truncated it to {size} bytes; stop the gateway and restore a backup"
        found = inode_of(self._log_path)
        if self._log_inode is None:
            self._log_inode = found
        elif found != self._log_inode:
            return f"{self._log_path} was removed or replaced: stop the gateway, which saves it, and start it again"
        return None

    def _look_at_file(self, *, is_tried: bool) -> tuple[str, bool] | None:
        """Check the file without a job; return the problem and whether it is damage, or ``None``."""
        connection = self._connection
        try:
            self._watch.check(connection)
            if not is_tried:
                connection.execute("PRAGMA busy_timeout = 0")
                try:
                    if self._problem is not None or self._unsettled or may_be_full(os.path.dirname(self._path)):
                        run_together(connection, [self._watch.touch])
                    else:
                        connection.execute("BEGIN IMMEDIATE")
                        connection.execute("ROLLBACK")
                finally:
                    connection.execute(f"PRAGMA busy_timeout = {round(1000 * LOCK_WAIT)}")
            self._was_locked = False
            self._watch.look(connection)
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
        done, self._in_hand = self._in_hand, []
        if isinstance(result, Failure):
            result = refuse([(each.job, each.once) for each in done], str(result.value))
        self._say(result, done)
        # The next transaction runs while these answers are given.
        if not self._closed and self._damage is not None:
            self._waiting, dropped = deque(), self._waiting
        else:
            dropped = deque()
            if self._waiting or (self._look_due and not self._closed):
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

    def _say(self, result: Outcome, done: Sequence[QueuedJob]) -> None:
        what = self._watch.what
        self._refused += sum(
            isinstance(each, Failure) and bool(each.check(StoreUnavailable)) for each in result.results
        )
        self._unsettled = result.unsettled or (self._unsettled and result.problem is not None)
        late = [
            not isinstance(outcome, Failure)
            for each, outcome in zip(done, result.results, strict=True)
            if each.is_answered and each.once
        ]
        if late:
            self._warnings.warn(
                f"{what} late",
                "{what}: {count} were answered with outcome_unknown, for the database had not done them in time;"
                " {written} of them are written now",
                what=what,
                count=len(late),
                written=sum(late),
            )
        before, self._problem = self._problem, result.problem
        if result.problem is not None and result.is_damage:
            self.condemn(result.problem)
        elif result.problem is not None and before is None:
            self._say_refused(result.problem)
        elif result.problem is None and before is not None and self._watch.says:
            message = "{what} are taken again; {count} were refused"
            self._warnings.info(f"{what} taken", message, what=what, count=self._refused)
        if result.problem is None:
            self._refused = 0

    def _say_refused(self, problem: str) -> None:
        what = self._watch.what
        if self._watch.says:
            self._warnings.warn(f"{what} refused", "{what} are refused: {problem}", what=what, problem=problem)

    async def close(self) -> None:
        """Finish what waits, and take nothing more."""
        self._closed = True
        for call in (self._look_call, self._deadline_call):
            if call is not None and call.active():
                call.cancel()
        while self._running is not None:
            waiting = self._running
            # Not the Deferred itself: its result belongs to nobody.
            done: Deferred[None] = Deferred()
            waiting.addBoth(done.callback)
            await done
        # It may wait for the disk: what is in the write-ahead log goes into the database.
        await deferToThreadPool(self._reactor, self._pool, self._connection.close)


def inode_of(path: str) -> Identity | None:
    """Return the device and inode of a file; ``None`` if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
