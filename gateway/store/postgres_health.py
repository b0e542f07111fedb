"""Whether PostgreSQL takes commits: looked at while nobody commits, too."""

from typing import Any, Final

import psycopg2
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from gateway.store.interface import StoreUnavailable
from gateway.store.pool import Pool
from gateway.store.postgres_refusals import explain
from gateway.store.session import Session

#: Seconds between two looks.
_LOOK: Final = 5.0

#: Seconds for which a commit that was refused for a passing reason (a full disk, a slow trigger) is a problem at least,
#: unless another one is written: a look does not find every reason.
_REFUSED: Final = 10.0

#: Needs the table, its columns and the rights of a commit, and writes nothing. A lock is not waited for.
_PATIENCE: Final = "SET LOCAL lock_timeout = '500ms'"
_EXPLAIN: Final = (
    "EXPLAIN (COSTS off) INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line,"
    " received_at, committed_at, arrival_shipping_no, move_report_no) "
    " VALUES ('', '', '', 0, '', now(), now(), NULL, NULL)"
)


class CommitHealth:
    """Looks at the table of commits every few seconds, and remembers what commits were answered.

    :param pool: whose connections are free for questions.
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
        """Why commits are refused, with what mends it; ``None`` where they are not."""
        return self._found or (None if self._refused is None else self._refused[1])

    def start(self) -> None:
        """Begin to look."""
        self._looking.start(_LOOK)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def written(self) -> None:
        """Note that a commit was written."""
        self._found = self._refused = None

    def refused(self, error: BaseException) -> None:
        """Note that a commit was refused, or that nobody knows what became of it."""
        if isinstance(error, psycopg2.Error):
            self._refused = self._reactor.seconds(), explain(error, self._pool.target.parameters).text
        else:
            self._refused = self._reactor.seconds(), str(error)

    def _look(self) -> "Deferred[None]":
        return self._pool.run(_look, again=False).addCallbacks(self._looked, self._failed)

    def _looked(self, _: object) -> None:
        self._found = None
        if self._refused is not None and self._reactor.seconds() - self._refused[0] >= _REFUSED:
            self._refused = None

    def _failed(self, failure: Failure) -> None:
        # Where the server is away or silent, its connections say so.
        error = failure.value
        if error is not None and not isinstance(error, StoreUnavailable):
            self._found = explain(error, self._pool.target.parameters).text


async def _look(session: Session) -> None:
    await session.transaction(_explain)


async def _explain(session: Session) -> None:
    await session.ask(_PATIENCE)
    await session.ask(_EXPLAIN)
