"""The embedded store that rows are copied from, and the old server's; it is only read."""

import math
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from gateway.store.sqlite.queries import BEFORE_IDS, BEHIND_IDS, quoted

SourceRow = tuple[Any, ...]

#: Rows of one transaction.
BATCH: Final = 2000

#: How long a lock of somebody else's is waited for in the source, in seconds.
_LOCK_WAIT: Final = 5.0

NO_TIME: Final = "no time, or none that can be"


class Unfit(Exception):
    """A row that cannot be copied, and why."""


class Starts:
    """Starts of one sensor's rows of the old server, which tell the time of the wall clock only; each is another."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._taken: set[int] = set()

    def of(self, time: datetime) -> int:
        """The start of the next row of this time."""
        start, other = (math.floor(time.replace(tzinfo=self._zone, fold=fold).timestamp()) for fold in (False, True))
        if start in self._taken and other > start:
            # An hour that comes twice.
            start = other
        while start in self._taken:
            start += 1
        self._taken.add(start)
        return start


def opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(Path(path).absolute().as_uri() + "?mode=ro", uri=True, timeout=_LOCK_WAIT)
    # What is no UTF-8 is refused row by row later.
    connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    return connection


def batches(
    connection: sqlite3.Connection, table: str, columns: str, last: int | None = None
) -> Iterator[list[SourceRow]]:
    """The rows of a table by their ids, which come first in each; no lock is held between two batches.

    :param last: the id of the last one.
    """
    after = BEFORE_IDS
    while True:
        rows = connection.execute(
            f"SELECT id, {columns} FROM {quoted(table)} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",  # noqa: S608 - quoted
            (after, BEHIND_IDS if last is None else last, BATCH),
        ).fetchall()
        if rows:
            yield rows
            after = rows[-1][0]
        if len(rows) < BATCH:
            return


def time_of(value: Any) -> datetime:
    """A time of the wall clock.

    :raises Unfit: it is none, or beyond what can be reckoned with in any zone.
    """
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise Unfit(NO_TIME) from error
    if time.tzinfo is not None or not 1970 <= time.year < 9998:
        raise Unfit(NO_TIME)
    return time


def utc_of(value: Any) -> str:
    """A moment; what tells no zone is UTC.

    :raises Unfit: it is none.
    """
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise Unfit(NO_TIME) from error
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).isoformat(" ")


def kilograms_of(value: Any) -> str:
    """A weight. SQLite keeps what looks like a number as a number."""
    try:
        return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))
    except InvalidOperation as error:
        raise Unfit("no weight") from error


def number_of(value: Any) -> Any:
    """A number.

    :raises Unfit: it is none.
    """
    if not isinstance(value, int | float):
        raise Unfit("no number where one should be")
    return value
