"""Queries of the log of commits in the file of commits, on read-only connections."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, TypeVar

from gateway.store.commit_rows import ROW_COLUMNS, commit_page, commit_page_size, stored_commit
from gateway.store.interface import CommitQuery, Page, PageRequest, StoredCommit, StoreUnavailable
from gateway.store.sqlite.readers import Readers
from gateway.store.sqlitefile.errors import explained
from gateway.store.sqlitefile.transactions import LOCK_WAIT

T = TypeVar("T")

#: Longest range of time for which the index of events and times is used.
_NARROW: Final = timedelta(days=31)

#: Statement for commits with their details; the embedded store has no tickets.
_SELECT: Final = (
    f"SELECT {', '.join(f'l.{name}' for name in ROW_COLUMNS)}, NULL, d.undo_of, d.detail, u.commit_id"  # noqa: S608 - fixed text
    " FROM scale_weight_log AS l LEFT JOIN commit_detail AS d ON d.commit_id = l.id"
    " LEFT JOIN commit_detail AS u ON u.undo_of = l.id"
)


class CommitLog:
    """Reader of the file of commits; its methods block, and are called in reading threads.

    :param path: path of the file.
    :param zone: zone of the times of commits.
    """

    def __init__(self, path: str, zone: tzinfo) -> None:
        self._path = path
        self._zone = zone
        self._readers = Readers()

    def close(self) -> None:
        """Close the connections; called before the writer closes the file, so that it can remove the log."""
        self._readers.close()

    def page(self, query: CommitQuery, page: PageRequest) -> Page:
        """Return a page of commits, newest first."""
        conditions = {
            "l.cylinder_no = ?": query.cylinder_no,
            # With `+`, rows are read in the order of ids: SQLite would sort all rows of the index of events.
            f"{'' if _is_narrow(query) else '+'}l.event_type = ?": query.event_type,
            "l.scale_id = ?": query.scale_id,
            "l.committed_at >= ?": None if query.start is None else _text_of(query.start),
            "l.committed_at < ?": None if query.end is None else _text_of(query.end),
            "l.id < ?": page.after,
        }
        chosen = {condition: value for condition, value in conditions.items() if value is not None}
        where = f" WHERE {' AND '.join(chosen)}" if chosen else ""
        statement = f"{_SELECT}{where} ORDER BY l.id DESC LIMIT ?"
        values = (*chosen.values(), commit_page_size(page.limit) + 1)
        rows = self._ask(lambda connection: connection.execute(statement, values).fetchall())
        return commit_page(rows, page, self._zone)

    def find(self, commit_id: int) -> StoredCommit | None:
        """Return the commit with an id; ``None`` if it does not exist."""
        row = self._ask(lambda connection: connection.execute(f"{_SELECT} WHERE l.id = ?", (commit_id,)).fetchone())
        return None if row is None else stored_commit(row, self._zone)

    def _ask(self, question: Callable[[sqlite3.Connection], Any]) -> Any:
        try:
            with self._readers.connection(self._path, LOCK_WAIT) as connection:
                return question(connection)
        except sqlite3.Error as error:
            raise StoreUnavailable(explained(error, self._path)) from error


def _is_narrow(query: CommitQuery) -> bool:
    """Return whether the range of time is so short that its rows are sorted faster than those before are skipped."""
    return query.start is not None and query.end is not None and query.end - query.start <= _NARROW


def _text_of(time: datetime) -> str:
    """Return a time as the file has it; without a fraction if that is zero, so that it is before either form."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
