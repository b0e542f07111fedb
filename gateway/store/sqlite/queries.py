"""Queries of a machine's database: pages of means and anomalies, progress of sensors."""

import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Any, Final
from unicodedata import normalize

from gateway.model.timestamps import wall_time
from gateway.store.interface import DayMark, MeansQuery, Page, PageRequest
from gateway.store.rows import BUCKET_COLUMNS, CHUNK, bucket_of, detail_of, encoded
from gateway.timeseries.calendar import PERIODS, start_of

#: Additions to a sensor's name in the name of its table, see :meth:`MachineTables.means`. Sensors' names have no tilde.
ADDED_COLUMNS: Final = re.compile(r"^~|~[0-9]+$")

#: Columns of every table of means.
_OLD_COLUMNS: Final = {"id", "time", "data"}

#: Columns of a bucket in a SELECT.
BUCKET_SELECT: Final = ", ".join(BUCKET_COLUMNS)

#: Maximum number of items of a page.
PAGE: Final = 10_000

#: Number below the ids of all rows.
BEFORE_IDS: Final = -(2**63)

#: Number above the ids of all rows.
BEHIND_IDS: Final = 2**63 - 1


def quoted(name: str) -> str:
    """Return an identifier quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def folded(table: str) -> str:
    """Return a table's name as SQLite compares it: composed, and in lower case."""
    return normalize("NFC", table).lower()


def row_key(start: datetime) -> tuple[str, int]:
    """Return the columns ``time`` and ``start`` of a period's row."""
    return wall_time(start), int(start.timestamp())


def rollup_progress(
    connection: sqlite3.Connection, hours: str, days: Iterable[date], now: datetime, zone: tzinfo
) -> tuple[dict[date, DayMark], list[tuple[str, datetime]]]:
    """Return a sensor's marks of some days, and its open longer periods.

    :param hours: table of its hours.
    """
    columns = columns_of(connection, hours)
    if not columns >= _OLD_COLUMNS:
        return {}, []
    further = "start, raw_end" if {"start", "raw_end"} <= columns else "NULL, NULL"
    select = f"SELECT time, {further} FROM {quoted(hours)} WHERE "  # noqa: S608 - quoted
    marks: dict[date, DayMark] = {}
    for day in days:
        # The row with the highest id has the number of counted bytes.
        for time, start, raw_end in connection.execute(
            f"{select} time >= ? AND time < ? ORDER BY id DESC", (day.isoformat(), f"{day.isoformat()}~")
        ):
            moment = _moment(time, start, zone)
            if moment is not None:
                seen = marks.get(day, DayMark(moment, raw_end))
                marks[day] = DayMark(max(seen.last, moment, key=datetime.timestamp), seen.raw_end)
    last_hours = [mark.last for mark in marks.values()]
    # A clock that was ahead may have left rows in the future, so the last row before now is needed too.
    for bound in (f"{wall_time(now)}~", ":"):
        row = connection.execute(f"{select} time < ? ORDER BY time DESC, id DESC LIMIT 1", (bound,)).fetchone()
        moment = None if row is None else _moment(row[0], row[1], zone)
        if moment is not None:
            last_hours.append(moment)
    return marks, [
        (period, start)
        for period in PERIODS[1:]
        for start in sorted({start_of(period, moment) for moment in last_hours})
        if not _has_row(connection, hours.removesuffix("hour_avg") + f"{period}_avg", start)
    ]


def _has_row(connection: sqlite3.Connection, table: str, start: datetime) -> bool:
    if not columns_of(connection, table):
        return False
    time = wall_time(start)
    found = connection.execute(
        f"SELECT 1 FROM {quoted(table)} WHERE time >= ? AND time <= ?",  # noqa: S608 - quoted
        (time, f"{time}~"),
    ).fetchone()
    return found is not None


def page_size(limit: int | None) -> int:
    """Return the maximum number of items in a page, given the caller's ``limit``."""
    return PAGE if limit is None else min(limit, PAGE)


def means(connection: sqlite3.Connection, query: MeansQuery, page: PageRequest, zone: tzinfo) -> Page:
    """Return items of ``/stat/<period>``; a position is a table, and the time, start and id of a row in it."""
    items: list[Any] = []
    left = page_size(page.limit)
    after = page.after
    for sensor, table in sensors(connection, query.period):
        if (after is not None and after[0] != table) or query.sensor not in (None, sensor):
            continue
        columns = columns_of(connection, table)
        if columns >= _OLD_COLUMNS:
            selection = _Selection.of(table, columns, query, after)
            after = None
            count = 0
            for rows in selection.read(connection, left):
                count += len(rows)
                items += encoded(_items(f"{sensor}_{query.period}_avg", rows, query, zone), page.encode)
            if count == left:
                return Page(items, (table, *selection.position(connection, left - 1)))
            left -= count
    return Page(items)


@dataclass(frozen=True, slots=True)
class _Selection:
    """Selection of the rows of one table.

    :ivar columns: columns that items need.
    :ivar where: table and condition.
    :ivar arguments: values of the placeholders in ``where``.
    :ivar key: columns whose values are the position of a row.
    """

    columns: str
    where: str
    arguments: tuple[Any, ...]
    order: str
    key: str

    @staticmethod
    def of(table: str, columns: set[str], query: MeansQuery, after: tuple[str, str, int, int] | None) -> "_Selection":
        is_extended = "start" in columns
        key = f"time, {'ifnull(start, 0)' if is_extended else '0'}, id"
        # Some rows of the old server have no number.
        where = f"FROM {quoted(table)} WHERE time >= ? AND time < ? AND typeof(data) IN ('real', 'integer')"
        bounds = bounds_of(query.start, query.end)
        arguments: tuple[Any, ...] = bounds
        if after is not None:
            where += f" AND ({key}) > (?, ?, ?)"
            arguments = (after[1], bounds[1], *after[1:])
        further = f", start, {BUCKET_SELECT}" if is_extended and query.detail else ""
        order = "time, start, id" if is_extended else "time, id"
        return _Selection(f"time, data{further}", where, arguments, order, key)

    def read(self, connection: sqlite3.Connection, limit: int) -> Iterator[list[Any]]:
        """Yield at most ``limit`` rows, some at a time."""
        cursor = connection.execute(
            f"SELECT {self.columns} {self.where} ORDER BY {self.order} LIMIT ?",
            (*self.arguments, limit),
        )
        while rows := cursor.fetchmany(CHUNK):
            yield rows

    def position(self, connection: sqlite3.Connection, index: int) -> Any:
        """Return the position of the row at an index."""
        return connection.execute(
            f"SELECT {self.key} {self.where} ORDER BY {self.order} LIMIT 1 OFFSET ?",
            (*self.arguments, index),
        ).fetchone()


def _items(name: str, rows: list[Any], query: MeansQuery, zone: tzinfo) -> list[dict[str, Any]]:
    # Some times of the old server have fractions of a second.
    if query.detail:
        return [
            {"name": name, "time": time[:19], "data": data, **_detail(query.period, zone, further)}
            for time, data, *further in rows
        ]
    return [{"name": name, "time": time[:19], "data": data} for time, data in rows]


def bounds_of(start: date, end: date) -> tuple[str, str]:
    """Return a text before and a text behind all times of some days, whatever follows the date in a time."""
    return start.isoformat(), end.isoformat() + "~"


def anomalies(
    connection: sqlite3.Connection, bounds: tuple[str, str], after: tuple[Any, int], limit: int | None = None
) -> list[Any]:
    """Return the time, id, score and threshold of a page of anomalies, ascending in time.

    :param after: time and id of the last row of the previous page; for the first page with the id ``BEFORE_IDS``.
    """
    time, number = after
    return connection.execute(
        "SELECT time, id, score, threshold FROM anomaly WHERE time >= ? AND time < ? AND (time > ? OR id > ?)"
        " ORDER BY time, id LIMIT ?",
        (time, bounds[1], time, number, page_size(limit)),
    ).fetchall()


def newest_anomalies(
    connection: sqlite3.Connection, since: Any, after: tuple[Any, int], limit: int | None = None
) -> list[Any]:
    """Return the time, id, score and threshold of a page of anomalies, newest first.

    Of the rows of one time, the last written comes first.

    :param since: earliest time.
    :param after: time and id of the last row of the previous page; the id ``BEFORE_IDS`` excludes all rows of that
        time, ``BEHIND_IDS`` includes them.
    """
    time, number = after
    return connection.execute(
        "SELECT time, id, score, threshold FROM anomaly WHERE time >= ? AND time <= ? AND (time < ? OR id < ?)"
        " ORDER BY time DESC, id DESC LIMIT ?",
        (since, time, time, number, page_size(limit)),
    ).fetchall()


def _detail(period: str, zone: tzinfo, further: list[Any]) -> dict[str, Any]:
    start, *values = further or [None]
    return detail_of(period, start, bucket_of(values) if values else None, zone)


def _moment(time: Any, start: int | None, zone: tzinfo) -> datetime | None:
    """Return the start of a row's period; ``None`` if the row has no valid time."""
    try:
        if start is not None:
            return datetime.fromtimestamp(start, zone)
        moment = datetime.fromisoformat(str(time)[:19]).replace(tzinfo=zone)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if 1970 < moment.year < 9998 else None


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns."""
    return {row[1] for row in connection.execute(f"PRAGMA table_info({quoted(table)})")}


def sensors(connection: sqlite3.Connection, period: str) -> list[tuple[str, str]]:
    """Return the sensors with means of a period, and their tables, sorted by sensor."""
    suffix = f"_{period}_avg"
    tables = table_names(connection, suffix)
    return sorted((normalize("NFC", ADDED_COLUMNS.sub("", table.removesuffix(suffix))), table) for table in tables)


def table_names(connection: sqlite3.Connection, suffix: str) -> Iterator[str]:
    """Yield the names of tables that end with a suffix."""
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table.endswith(suffix):
            yield table
