"""One connection to PostgreSQL: statements with time limits, transactions, and how its end is told."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import psycopg2
from psycopg2.errors import QueryCanceled, ReadOnlySqlTransaction
from psycopg2.extensions import TRANSACTION_STATUS_UNKNOWN
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from txpostgres import txpostgres

from gateway.store.postgres.sockets import WatchingReactor

T = TypeVar("T")

#: Seconds that the server may work on a statement, and that it may be silent: then the connection is closed.
SERVER_LIMIT: Final = 4.0
SILENCE: Final = 5.0

#: Set on each new connection; not as startup options, which PgBouncer refuses. What is acknowledged must be on the
#: disk, and what is read must be the double that was written, whatever the role's own settings are.
SETTINGS: Final = (
    f"SET statement_timeout = {int(SERVER_LIMIT * 1000)}; SET idle_in_transaction_session_timeout = 10000;"
    " SET extra_float_digits = 1; SET DateStyle = 'ISO';"
    " SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)


class Session:
    """A connection, as long as a piece of work has it.

    :ivar is_committing: whether the server was told to commit, and has not answered.
    """

    def __init__(self, reactor: IReactorTime, connection: Any) -> None:
        self._reactor = reactor
        self._connection = connection
        self._status: str | None = None
        self.is_committing = False

    async def ask(self, statement: str, values: Any = None, limit: float = SILENCE) -> list[tuple[Any, ...]]:
        """Run a statement; its rows.

        :param limit: after so many seconds without its end the connection is closed.
        :raises psycopg2.Error: the server has refused it, or is gone.
        """
        cursor = self._connection.cursor()
        silence = self._reactor.callLater(limit, self._connection.close)
        try:
            await cursor.execute(statement, values)
        except ConnectionDone as error:
            raise psycopg2.OperationalError(f"no answer within {limit:g} s") from error
        except CancelledError as error:
            # So txpostgres calls it; it has forgotten what the server said.
            raise QueryCanceled(
                f"the server has ended a statement: statement_timeout ({SERVER_LIMIT:g} s), or somebody ended it"
            ) from error
        finally:
            if silence.active():
                silence.cancel()
        self._status = cursor.statusmessage
        return [] if cursor.description is None else cursor.fetchall()

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection has ended, which an error of it may say."""
        return is_broken(self._connection) or is_last_word(error)

    async def transaction(self, work: "Callable[[Session], Awaitable[T]]") -> T:
        """Do some work in a transaction, and commit that."""
        self.is_committing = False
        await self.ask("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            result = await work(self)
        except BaseException:
            if not is_broken(self._connection):
                await self.ask("ROLLBACK")
            raise
        self.is_committing = True
        await self.ask("COMMIT")
        self.is_committing = False
        if self._status != "COMMIT":
            # So the server answers where a statement has failed before.
            raise psycopg2.InternalError(f"the transaction was not committed: {self._status}")
        return result


#: Something to do on a connection.
Work: TypeAlias = Callable[[Session], Awaitable[T]]


class Connection(txpostgres.Connection):  # type: ignore[misc]  # it has no annotations
    """A connection whose end is told to the detector only; txpostgres logs a traceback where it comes while idle.

    Its sockets are watched by copies of them. Notifications are handed out at once: txpostgres would hand them out in
    turns, those of two reads mixed.
    """

    def __init__(self, reactor: Any, detector: Any = None) -> None:
        super().__init__(WatchingReactor(reactor), detector=detector)

    def close(self) -> None:
        super().close()
        self.reactor.forget()

    def doRead(self) -> None:
        try:
            super().doRead()
        except Exception:  # the driver's, and the reactor's, for libpq has closed the socket
            self.close()

    def cursorFinished(self, cursor: Any) -> None:
        # What the statement says is to be heard, not that there is no socket any more to watch.
        with contextlib.suppress(ValueError, OSError):
            super().cursorFinished(cursor)

    def checkForNotifies(self) -> None:
        found = self.pollable().notifies
        notifies = found[:]
        del found[:]
        for notify in notifies:
            for observer in self.getNotifyObservers():
                observer(notify)


def is_broken(connection: Any) -> bool:
    """Whether nothing can be said on a connection any more."""
    raw = connection.pollable()
    return raw is None or bool(raw.closed) or raw.info.transaction_status == TRANSACTION_STATUS_UNKNOWN


def is_last_word(error: BaseException | None) -> bool:
    """Whether the server ends a connection with what it says."""
    if not isinstance(error, psycopg2.Error):
        return False
    if isinstance(error, ReadOnlySqlTransaction):
        # A session keeps the setting from its start: a new one may be able to write.
        return True
    severity = error.diag.severity_nonlocalized if error.diag is not None else None
    return severity in {"FATAL", "PANIC"} or (error.pgcode or "").startswith("08")
