"""The plant's table of cylinders, read from PostgreSQL by the query of the configuration."""

from collections.abc import Callable
from typing import Any, Final

import psycopg2

from gateway.cylinders.lookup import CylinderQueryError, CylinderRow
from gateway.cylinders.master import COLUMNS
from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text, is_of_the_row
from gateway.store.postgres.session import Session

#: Connections; a plant's own database gets no more load from the gateway than this.
_SIZE: Final = 2

#: Maximum seconds that the server works on the query, and that it may be silent: an answer that a commit has not
#: waited for still fills the cache.
_SERVER_LIMIT: Final = 2.0
_SILENCE: Final = 3.0


class PlantTable:
    """Connections to the plant's database.

    :param url: ``postgresql://...``
    :param name: name for the server and the log.
    :param query: statement with ``%(cylinder_no)s``; it may end with a semicolon.
    :param key: configuration key of the URL.
    """

    def __init__(self, reactor: Any, url: str, name: str, query: str, key: str = "cylinders.url") -> None:
        self._key = key
        self._pool = Pool(reactor, url, name, _SIZE, _prepare)
        # Two rows are enough to see that a query does not select by the number, whatever the size of the table. The
        # line end closes a comment at the end of the query.
        self._statement = "\n".join(["SELECT * FROM (", query.strip().rstrip(";"), ") AS cylinder LIMIT 2"])

    def start(self, on_connect: Callable[[], None]) -> None:
        """Connect, and reconnect until :meth:`close`.

        :param on_connect: called whenever a connection is ready.
        """
        self._pool.on_connect = on_connect
        self._pool.start()

    async def close(self) -> None:
        """Close the connections; queries that run fail."""
        await self._pool.close()

    @property
    def problem(self) -> str | None:
        """Return why the database cannot be asked; ``None`` if a connection is ready."""
        # The texts of the connections name the key that they usually have.
        return None if self._pool.is_connected else self._pool.state.replace("database.url", self._key)

    async def fetch(self, cylinder_no: str) -> CylinderRow | None:
        """Return the row of a cylinder; ``None`` if it has no row.

        :raises CylinderQueryError: the database cannot be asked, or the query is wrong.
        """

        async def ask(session: Session) -> tuple[list[str], list[tuple[Any, ...]]]:
            return await session.ask_with_columns(self._statement, {"cylinder_no": cylinder_no}, _SILENCE)

        try:
            columns, rows = await self._pool.run(ask, is_repeatable=False)
        except StoreUnavailable as error:
            raise CylinderQueryError(str(error), "unavailable") from None
        except psycopg2.errors.QueryCanceled:
            raise CylinderQueryError(f"the server cancelled it after {_SERVER_LIMIT:g} s", "unavailable") from None
        except psycopg2.Error as error:
            raise CylinderQueryError(error_text(error), "row" if is_of_the_row(error) else "query") from None
        except (IndexError, KeyError, TypeError, ValueError) as error:
            # The driver cannot put the number into the query, or cannot read a value of the row, such as a date BC.
            raise CylinderQueryError(type(error).__name__, "query" if isinstance(error, KeyError) else "row") from None
        names = [name.lower() for name in columns]
        if not set(names) & set(COLUMNS):
            raise CylinderQueryError(f"it returns none of the columns {', '.join(COLUMNS)}", "query")
        if len(rows) > 1:
            raise CylinderQueryError("it returns several rows for one number", "query")
        return dict(zip(names, rows[0], strict=True)) if rows else None


async def _prepare(session: Session) -> None:
    """Limit the session: the gateway only reads here, and a slow query must end."""
    await session.ask(f"SET default_transaction_read_only = on; SET statement_timeout = {int(_SERVER_LIMIT * 1000)}")
