"""Source of the migration: the embedded store or that of the old server, read only."""

import math
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

from gateway.store.interface import StoreUnavailable
from gateway.store.sqlite.opening import check_version
from gateway.store.sqlite.queries import BEFORE_IDS, BEHIND_IDS, quoted

SourceRow = tuple[Any, ...]

#: Rows of one transaction.
BATCH: Final = 2000

#: Maximum seconds to wait for a lock of another program on the source.
_MAX_LOCK_SECONDS: Final = 5.0

INVALID_TIME: Final = "not a valid time"


class InvalidRow(Exception):
    """A row that cannot be copied; the text says why."""


class UniqueStarts:
    """Distinct starts for the rows of one sensor of the old server, which hold wall-clock times only."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._used: set[int] = set()

    def next_start(self, time: datetime) -> int:
        """Return the start of the next row with this time, in seconds since 1970."""
        start, second = (math.floor(time.replace(tzinfo=self._zone, fold=fold).timestamp()) for fold in (False, True))
        if start in self._used and second > start:
            # The hour repeats.
            start = second
        while start in self._used:
            start += 1
        self._used.add(start)
        return start


def open_source(path: str) -> sqlite3.Connection:
    """Open a file of the source, read only.

    :raises sqlite3.Error: the file cannot be opened, or a newer version of the gateway wrote it.
    """
    try:
        check_version(path)
    except StoreUnavailable as error:
        raise sqlite3.DatabaseError(str(error)) from None
    connection = sqlite3.connect(Path(path).absolute().as_uri() + "?mode=ro", uri=True, timeout=_MAX_LOCK_SECONDS)
    # Text that is not valid UTF-8 is rejected later, row by row.
    connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
    return connection


def batches(
    connection: sqlite3.Connection, table: str, columns: str, last: int | None = None
) -> Iterator[list[SourceRow]]:
    """Yield the rows of a table in the order of their ids; no lock is held between two batches.

    :param columns: columns to read after the id.
    :param last: id of the last row to read.
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
    """Return a time of the wall clock.

    :raises InvalidRow: the value is not a valid time, or too early or too late to compute with in any zone.
    """
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise InvalidRow(INVALID_TIME) from error
    if time.tzinfo is not None or not 1970 <= time.year < 9998:
        raise InvalidRow(INVALID_TIME)
    return time


def utc_of(value: Any) -> str:
    """Return a moment as text; a time without a zone is in UTC.

    :raises InvalidRow: the value is not a valid time.
    """
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise InvalidRow(INVALID_TIME) from error
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).isoformat(" ")


def kilograms_of(value: Any) -> str:
    """Return a weight in kilograms, with two decimals. SQLite may have stored it as a number.

    :raises InvalidRow: the value is not a valid weight.
    """
    try:
        return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))
    except InvalidOperation as error:
        raise InvalidRow("not a valid weight") from error


def number_of(value: Any) -> Any:
    """Return a value that must be a number.

    :raises InvalidRow: the value is not a number.
    """
    if not isinstance(value, int | float):
        raise InvalidRow("not a valid number")
    return value
