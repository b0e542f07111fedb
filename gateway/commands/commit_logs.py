"""The table ``scale_weight_log`` of both stores, opened for reading by the command ``audit``."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import psycopg2
from psycopg2.extensions import parse_dsn

from gateway.model.records import COMMIT_COLUMNS

_COLUMNS: Final = ", ".join(COMMIT_COLUMNS)

#: Rows of the server that are fetched at a time.
_PAGE: Final = 10_000


class SqliteCommitLog:
    """``scale_weight_log`` in the file of commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, ids: Sequence[int]) -> Mapping[int, Sequence[Any]]:
        """Return the columns of the rows with these ids."""
        marks = ", ".join("?" * len(ids))
        found = self._connection.execute(
            f"SELECT id, {_COLUMNS} FROM scale_weight_log WHERE id IN ({marks})",  # noqa: S608 - fixed text
            list(ids),
        )
        return {row[0]: row[1:] for row in found}

    def ids_after(self, first: int) -> Iterator[int]:
        """Return the ids above ``first``."""
        query = "SELECT id FROM scale_weight_log WHERE id > ? ORDER BY id"
        return (row[0] for row in self._connection.execute(query, (first,)))


class PostgresCommitLog:
    """``scale_weight_log`` on a server.

    :param url: ``database.url``.
    :param gateway: name of the gateway whose record is verified; commits of others are left out.
    :raises psycopg2.Error: the connection failed.
    """

    def __init__(self, url: str, gateway: str) -> None:
        arguments = {"connect_timeout": 10, **parse_dsn(url), "client_encoding": "UTF8"}
        self._connection = psycopg2.connect(**arguments)
        self._connection.set_session(readonly=True, autocommit=True)
        self._gateway = gateway
        #: Later rows may not be in the record yet.
        self._last = self._ask("SELECT coalesce(max(id), 0) FROM scale_weight_log", ())[0][0]

    def _ask(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def rows(self, ids: Sequence[int]) -> Mapping[int, Sequence[Any]]:
        """Return the columns of the rows with these ids."""
        query = f"SELECT id, {_COLUMNS} FROM scale_weight_log WHERE id = ANY(%s)"  # noqa: S608 - fixed text
        return {row[0]: row[1:] for row in self._ask(query, [list(ids)])}

    def ids_after(self, first: int) -> Iterable[int]:
        """Return the ids above ``first``, without those of other gateways."""
        query = (
            "SELECT id FROM scale_weight_log WHERE id > %s AND id <= %s AND NOT EXISTS (SELECT FROM cynow_commit"
            " WHERE commit_id = id AND gateway <> %s) ORDER BY id LIMIT %s"
        )
        while page := self._ask(query, [first, self._last, self._gateway, _PAGE]):
            yield from (row[0] for row in page)
            first = page[-1][0]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
