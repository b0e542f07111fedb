"""Check that PostgreSQL takes commits, also while there are none."""

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
_LOOK: Final = 5.0

#: Minimum seconds for which a commit refused for a passing reason (a full disk, a slow trigger) is shown as a problem,
#: unless another one is written: a check does not find every reason.
_REFUSED: Final = 10.0

#: Statements that need the tables, columns and rights of a commit, but write nothing, in one transaction that waits for
#: no lock. The table of commits comes first, by itself: if both tables are in trouble, the plant's own is named.
_LOOK_AT_TABLE: Final = (
    "EXPLAIN (COSTS off) INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line,"
    " received_at, committed_at, arrival_shipping_no, move_report_no)"
    " VALUES ('', '', '', 0, '', now(), now(), NULL, NULL)"
)
_STATEMENTS: Final = ";".join(
    [
        "SELECT set_config('lock_timeout', '500ms', true)",
        _LOOK_AT_TABLE,
        f"EXPLAIN (COSTS off) {COMMIT}",
        "SELECT current_setting('transaction_read_only')::boolean",
    ]
)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_NOBODYS: Final = CommitEntry("", "", "", Decimal(0), "", _EPOCH, _EPOCH)


class CommitHealth:
    """Regular check of the table of commits, which also remembers the outcome of commits.

    :param pool: pool that writes commits: another pool may be connected to another server.
    """

    def __init__(self, reactor: Any, pool: Pool) -> None:
        self._reactor = reactor
        self._pool = pool
        self._found: str | None = None
        self._refused: tuple[float, str] | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    @property
    def problem(self) -> str | None:
        """Return why commits are refused, with the remedy; ``None`` if they are not refused."""
        return self._found or (None if self._refused is None else self._refused[1])

    def start(self) -> None:
        """Start the checks."""
        self._looking.start(_LOOK)

    def stop(self) -> None:
        """Stop the checks."""
        if self._looking.running:
            self._looking.stop()

    def written(self) -> None:
        """Note that a commit was written."""
        self._found = self._refused = None

    def refused(self, error: BaseException) -> None:
        """Note that a commit was refused, or that its outcome is unknown."""
        if isinstance(error, psycopg2.Error):
            self._refused = self._reactor.seconds(), explain(error, self._pool.address.parameters).text
        else:
            self._refused = self._reactor.seconds(), str(error)

    def _look(self) -> "Deferred[None]":
        return self._pool.run(_look, is_repeatable=False).addCallbacks(self._looked, self._failed)

    def _looked(self, is_read_only: bool) -> None:
        read_only = ReadOnlySqlTransaction("the session is read-only")
        self._found = explain(read_only, self._pool.address.parameters).text if is_read_only else None
        if self._refused is not None and self._reactor.seconds() - self._refused[0] >= _REFUSED:
            self._refused = None

    def _failed(self, failure: Failure) -> None:
        # If the server is away or silent, its connections report that.
        error = failure.value
        if error is not None and not isinstance(error, StoreUnavailable):
            self._found = explain(error, self._pool.address.parameters).text


async def _look(session: Session) -> bool:
    """Check that a commit would be taken; return whether the session is read-only.

    :raises psycopg2.Error: a commit would be refused.
    """
    values = PendingCommit.of(_NOBODYS, None, 0.0).values()
    ((is_read_only,),) = await session.ask(_STATEMENTS, values)
    return bool(is_read_only)
