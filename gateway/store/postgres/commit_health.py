"""Regular check that PostgreSQL accepts commits, also without any commit to write."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import psycopg2
from psycopg2.errors import ReadOnlySqlTransaction
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from gateway.model.records import CommitEntry
from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.commits import COMMIT, PendingCommit
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import explain
from gateway.store.postgres.session import Session

#: Seconds between two checks.
_CHECK_EVERY: Final = 5.0

#: Minimum seconds for which a commit refused for a passing reason (a full disk, a slow trigger) is shown as a problem,
#: unless another one is written: a check does not find every reason.
_MIN_SHOWN: Final = 10.0

#: Statements that need the tables, columns and rights of a commit, but write nothing, in one transaction that waits for
#: no lock. The plant's own table comes first, by itself: if both tables have a problem, the text names that table.
_CHECK_TABLE: Final = (
    "EXPLAIN (COSTS off) INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line,"
    " received_at, committed_at, arrival_shipping_no, move_report_no)"
    " VALUES ('', '', '', 0, '', now(), now(), NULL, NULL)"
)
_STATEMENTS: Final = ";".join(
    [
        "SELECT set_config('lock_timeout', '500ms', true)",
        _CHECK_TABLE,
        f"EXPLAIN (COSTS off) {COMMIT}",
        "SELECT current_setting('transaction_read_only')::boolean",
    ]
)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_EMPTY_ENTRY: Final = CommitEntry("", "", "", Decimal(0), "", _EPOCH, _EPOCH)


class CommitHealth:
    """Regular check of the table of commits, and memory of the last refusal.

    :param pool: pool that writes commits: another pool may be connected to another server.
    """

    def __init__(self, reactor: Any, pool: Pool) -> None:
        self._reactor = reactor
        self._pool = pool
        self._check_problem: str | None = None
        self._refusal: tuple[float, str] | None = None
        self._checks = LoopingCall(self._check)
        self._checks.clock = reactor

    @property
    def problem(self) -> str | None:
        """Return why commits are refused, with the remedy; ``None`` if they are not refused."""
        return self._check_problem or (None if self._refusal is None else self._refusal[1])

    def start(self) -> None:
        """Start the checks."""
        self._checks.start(_CHECK_EVERY)

    def stop(self) -> None:
        """Stop the checks."""
        if self._checks.running:
            self._checks.stop()

    def note_written(self) -> None:
        """Note that a commit was written."""
        self._check_problem = self._refusal = None

    def note_refused(self, error: BaseException) -> None:
        """Note that a commit was refused, or that its outcome is unknown."""
        if isinstance(error, psycopg2.Error):
            self._refusal = self._reactor.seconds(), explain(error, self._pool.address.parameters).text
        else:
            self._refusal = self._reactor.seconds(), str(error)

    def _check(self) -> "Deferred[None]":
        return self._pool.run(_check_commits, is_repeatable=False).addCallbacks(self._on_checked, self._on_failed)

    def _on_checked(self, is_read_only: bool) -> None:
        read_only = ReadOnlySqlTransaction("the session is read-only")
        self._check_problem = explain(read_only, self._pool.address.parameters).text if is_read_only else None
        if self._refusal is not None and self._reactor.seconds() - self._refusal[0] >= _MIN_SHOWN:
            self._refusal = None

    def _on_failed(self, failure: Failure) -> None:
        # If the server is unavailable or silent, the pool reports that.
        error = failure.value
        if error is not None and not isinstance(error, StoreUnavailable):
            self._check_problem = explain(error, self._pool.address.parameters).text


async def _check_commits(session: Session) -> bool:
    """Check that a commit would be taken; return whether the session is read-only.

    :raises psycopg2.Error: a commit would be refused.
    """
    values = PendingCommit.of(_EMPTY_ENTRY, None, 0.0).values()
    ((is_read_only,),) = await session.ask(_STATEMENTS, values)
    return bool(is_read_only)
