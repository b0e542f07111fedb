"""Writing of commits to PostgreSQL, and what is known of those whose outcome is not."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import psycopg2
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.model.records import Commit
from gateway.runtime.limited_log import LimitedLog
from gateway.store.interface import (
    CommitResult,
    IdempotencyConflict,
    IdempotencyKey,
    OutcomeUnknown,
    RejectedByDatabase,
    StoreUnavailable,
)
from gateway.store.postgres.commit_batches import CommitQueue
from gateway.store.postgres.commit_health import CommitHealth
from gateway.store.postgres.commits import KEY_LIFE, PendingCommit, remove_old_keys
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text, is_of_the_row

log = Logger()

#: Records a commit of a request after the server's COMMIT; never raises.
OnWritten: TypeAlias = Callable[[Commit, str], Awaitable[None]]

#: Minimum seconds between removals of old keys.
_REMOVE_KEYS_EVERY: Final = 600.0

#: Maximum remembered keys of commits that may have been written; a new one replaces the oldest.
_MAX_DOUBTFUL: Final = 1000


class CommitWriter:
    """Writer of commits, one at a time for its callers; the queue writes many together.

    :param on_written: returns the function that records a commit; ``None`` for no record.
    """

    def __init__(
        self,
        queue: CommitQueue,
        pool: Pool,
        health: CommitHealth,
        warnings: LimitedLog,
        on_written: Callable[[], OnWritten | None],
    ) -> None:
        self._queue = queue
        self._pool = pool
        self._health = health
        self._warnings = warnings
        self._on_written = on_written
        self._keys_removed_at = float("-inf")
        #: Keys of commits that may have been written, the most recent last.
        self._doubtful: OrderedDict[str, None] = OrderedDict()

    def is_doubtful(self, key: IdempotencyKey) -> bool:
        """Return whether a commit with a key may have been written."""
        return key.key in self._doubtful

    def settle(self, pending: PendingCommit) -> None:
        """Forget that a commit may have been written: what became of it will be found out."""
        self._doubtful.pop(pending.key.key, None)

    async def write(self, pending: PendingCommit) -> CommitResult:
        """Write a commit to the server.

        If the connection is lost, the commit is retried for some seconds; a retry writes nothing if the commit was
        written already. After that, nothing was written, unless the connection was lost between COMMIT and its answer:
        then the outcome is unknown, and the same request with the same key returns it.
        """
        try:
            result = await self._queue.write(pending)
        except psycopg2.Error as error:
            if is_of_the_row(error):
                raise self._rejected(pending, error_text(error)) from None
            self._health.note_refused(error)
            raise self._unwritten(pending, error_text(error)) from None
        except RejectedByDatabase as error:
            raise self._rejected(pending, str(error)) from None
        except ValueError as error:
            # The text contains NUL or half a character, which the driver cannot encode. Its error may quote the text.
            raise self._rejected(pending, f"a text cannot be written as UTF-8 ({type(error).__name__})") from None
        except (StoreUnavailable, OutcomeUnknown) as error:
            if self._pool.is_connected:
                self._health.note_refused(error.__cause__ or error)
            pending.is_in_doubt |= isinstance(error, OutcomeUnknown)
            raise self._unwritten(pending, str(error)) from None
        except IdempotencyConflict:
            self._doubtful.pop(pending.key.key, None)
            raise
        self._doubtful.pop(pending.key.key, None)
        on_written = self._on_written()
        if result.commit is not None and on_written is not None:
            await on_written(result.commit, pending.request)
        self._health.note_written()
        if not 0 <= pending.now - self._keys_removed_at < _REMOVE_KEYS_EVERY:
            self._keys_removed_at = pending.now
            self._pool.run(partial(remove_old_keys, before=pending.now - KEY_LIFE)).addErrback(
                lambda failure: log.warn("cannot remove old idempotency keys: {error}", error=_text_of(failure))
            )
        return result

    def _unwritten(self, pending: PendingCommit, why: str) -> Exception:
        """Return the error for a commit that is not known to be written."""
        if pending.is_in_doubt:
            self._doubtful[pending.key.key] = None
            if len(self._doubtful) > _MAX_DOUBTFUL:
                self._doubtful.popitem(last=False)
        elif pending.key.key not in self._doubtful:
            return StoreUnavailable(why)
        self._warnings.warn(
            "doubt",
            "scale {scale}: the outcome of a commit is unknown, because the server did not confirm it: {why}",
            scale=pending.entry.scale_id,
            why=why,
        )
        return OutcomeUnknown(why)

    def _rejected(self, pending: PendingCommit, why: str) -> RejectedByDatabase:
        """Return the error for a commit that will never be written; earlier attempts were not written either."""
        self._doubtful.pop(pending.key.key, None)
        self._warnings.warn(
            "rejected",
            "scale {scale}: the database rejected a commit: {error}",
            scale=pending.entry.scale_id,
            error=why,
        )
        return RejectedByDatabase(why)


def _text_of(failure: Failure) -> str:
    return "" if failure.value is None else error_text(failure.value)
