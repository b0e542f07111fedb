"""Statements and transactions on one connection to PostgreSQL, with time limits."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

import psycopg2
from psycopg2.errors import ReadOnlySqlTransaction
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime

from gateway.store.postgres.txpostgres_internals import Connection

T = TypeVar("T")

#: Maximum seconds that the server may work on a statement, and that it may be silent; after that, the connection is
#: closed.
SERVER_LIMIT: Final = 4.0
SILENCE: Final = 5.0

#: Settings of each new connection; not startup options, which PgBouncer refuses. An acknowledged commit must be on the
#: disk, and a double must be read exactly as it was written, regardless of the role's settings.
SETTINGS: Final = (
    f"SET statement_timeout = {int(SERVER_LIMIT * 1000)}; SET idle_in_transaction_session_timeout = 10000;"
    " SET extra_float_digits = 1; SET DateStyle = 'ISO';"
    " SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)


class Session:
    """Statements on a connection, for the work that uses it.

    :ivar is_committing: whether COMMIT was sent and the server has not answered.
    """

    def __init__(self, reactor: IReactorTime, connection: Connection) -> None:
        self._reactor = reactor
        self._connection = connection
        self._status: str | None = None
        self.is_committing = False

    async def ask(self, statement: str, values: Any = None, limit: float = SILENCE) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows.

        :param limit: maximum seconds until its end; after that, the connection is closed.
        :raises psycopg2.Error: the server has refused the statement, or the connection is lost.
        """
        return (await self.ask_with_columns(statement, values, limit))[1]

    async def ask_with_columns(
        self, statement: str, values: Any = None, limit: float = SILENCE
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Run a statement as :meth:`ask` does; return the names of its columns, and its rows."""
        silence = self._reactor.callLater(limit, self._connection.close)
        try:
            cursor = await self._connection.execute(statement, values)
        except ConnectionDone as error:
            raise psycopg2.OperationalError(f"no answer within {limit:g} s") from error
        finally:
            if silence.active():
                silence.cancel()
        self._status = cursor.statusmessage
        if cursor.description is None:
            return [], []
        return [column.name for column in cursor.description], cursor.fetchall()

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection has ended, or ends with an error."""
        return self._connection.is_broken or ends_session(error)

    async def transaction(self, work: "Callable[[Session], Awaitable[T]]") -> T:
        """Run work in a transaction, and commit it; return the result of the work."""
        self.is_committing = False
        await self.ask("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            result = await work(self)
        except BaseException:
            if not self._connection.is_broken:
                await self.ask("ROLLBACK")
            raise
        self.is_committing = True
        await self.ask("COMMIT")
        self.is_committing = False
        if self._status != "COMMIT":
            # The server answers ROLLBACK to COMMIT if a statement has failed before.
            raise psycopg2.InternalError(f"the transaction was not committed: {self._status}")
        return result


#: Work to do on a connection.
Work: TypeAlias = Callable[[Session], Awaitable[T]]


def ends_session(error: BaseException | None) -> bool:
    """Return whether the server ends the session with an error."""
    if not isinstance(error, psycopg2.Error):
        return False
    if isinstance(error, ReadOnlySqlTransaction):
        # A session keeps the setting from its start, but a new session may be able to write.
        return True
    severity = error.diag.severity_nonlocalized if error.diag is not None else None
    return severity in {"FATAL", "PANIC"} or (error.pgcode or "").startswith("08")
