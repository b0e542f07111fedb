"""Tables of a machine's own database, ``db/<machine>.db``, as the old monitoring server made them, and what is added.

Behind its columns ``id``, ``time`` and ``data`` stand ``start`` (seconds since 1970, which tells an hour that comes
twice from itself), the columns of a bucket and, in rows of hours, ``raw_end``: how many bytes of the day's raw file
are counted by then.
"""

import contextlib
import math
import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import date, datetime, tzinfo
from typing import Any, Final
from unicodedata import normalize

from gateway.bucket import Bucket
from gateway.model import HourEnd, PeriodEnd, wall_time
from gateway.period import MADE_OF, PERIODS, end_of, start_of
from gateway.store.interface import DayMark, Encode, Page
from gateway.store.rows import BUCKET_COLUMNS, PIECE, Row, bucket_of, detail_of, encoded, made_of, values_of

#: What a table's name may add to its sensor's: see :meth:`MachineTables.means`. No sensor's name holds a tilde.
_ADDED: Final = re.compile(r"^~|~[0-9]+$")

#: What follows the old server's columns.
_FURTHER: Final = {"start": "INTEGER", **BUCKET_COLUMNS}

#: What every table of means has.
_OLD_COLUMNS: Final = {"id", "time", "data"}

_BUCKET: Final = ", ".join(BUCKET_COLUMNS)

#: Items of a page.
PAGE: Final = 10_000

#: Stand before and behind every id of a row.
BEFORE_IDS: Final = -(2**63)
BEHIND_IDS: Final = 2**63 - 1


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


class MachineTables:
    """The tables of one machine's database, as its one writer knows them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        #: Tables that have all columns.
        self._complete: set[str] = set()
        #: By their names in lower case, as SQLite compares them.
        self._names: dict[str, str] = {}
        self.forget()

    def forget(self) -> None:
        """Look at the tables again: some that were made may have been undone."""
        self._names = {_folded(table): table for table in _tables(self._connection, "")}
        self._complete.clear()

    def create_anomaly(self) -> None:
        """Make the table of anomalies where it is missing, and its index, which that of the old server lacks."""
        if "anomaly" not in self._complete:
            self._create("anomaly", "time TIMESTAMP, threshold REAL, score REAL")
            if "time" in columns_of(self._connection, "anomaly"):
                self._connection.execute("CREATE INDEX IF NOT EXISTS anomaly_time ON anomaly (time)")
            self._complete.add("anomaly")

    def create_means(self, sensor: str, period: str) -> str:
        """Create a sensor's table if it is missing, or add the columns that the old server's table lacks.

        :returns: the table's name.
        """
        table = self.means(sensor, period)
        if table not in self._complete:
            columns = {**_FURTHER, "raw_end": "INTEGER"} if period == "hour" else _FURTHER
            further = "".join(f", {name} {kind}" for name, kind in columns.items())
            self._create(table, f"time TIMESTAMP, data REAL{further}")
            there = columns_of(self._connection, table)
            missing = [(name, kind) for name, kind in columns.items() if name not in there]
            for name, kind in missing:
                self._connection.execute(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {kind}")
            self._connection.execute(
                f"CREATE INDEX IF NOT EXISTS {quoted(f'{table}_time')} ON {quoted(table)} (time, start)"
            )
            self._complete.add(table)
            if missing:
                # The old server, which made this table, made those of all periods.
                for other in PERIODS:
                    self.create_means(sensor, other)
        return table

    def means(self, sensor: str, period: str) -> str:
        """The table of a sensor's means, made or not.

        It is ``<sensor>_<period>_avg``. SQLite takes ``Vib_hour_avg`` and ``vib_hour_avg`` for one table, and allows
        no name that begins with ``sqlite_``: the second sensor's becomes ``vib~2_hour_avg``, the other's
        ``~sqlite_...``. All tables of a sensor have the same number, though they are created one after the other.
        """
        stem = f"~{sensor}" if sensor.lower().startswith("sqlite_") else sensor
        number = 1
        while True:
            added = "" if number == 1 else f"~{number}"
            tables = {each: f"{stem}{added}_{each}_avg" for each in PERIODS}
            # Tables of an older version may have decomposed names.
            there = {each: self._names.get(_folded(table), table) for each, table in tables.items()}
            if all(normalize("NFC", there[each]) == table for each, table in tables.items()):
                return there[period]
            number += 1

    def end_hour(self, hour: HourEnd) -> None:
        """Write the row of an hour.

        An hour that has one already, for the clock was set back, has had more samples since.
        """
        table = self.create_means(hour.sensor, "hour")
        identity, bucket, raw_end = self._find(table, hour.start, hour.replaces) or (None, None, hour.raw_end)
        if bucket is None or hour.replaces:
            bucket = hour.bucket
        else:
            # A row that lacks samples beyond a double is better than none.
            with contextlib.suppress(OverflowError):
                bucket.merge(hour.bucket)
        if not hour.replaces:
            raw_end = hour.raw_end
        self._put(table, hour.start, Row(bucket.mean(hour.mode), bucket), identity, raw_end)
        if identity is not None and not hour.replaces:
            # How much of a day is counted is said by its row with the highest id.
            day = hour.start.date().isoformat()
            self._connection.execute(
                f"UPDATE {quoted(table)} SET raw_end = ? WHERE id ="  # noqa: S608 - quoted
                f" (SELECT max(id) FROM {quoted(table)} WHERE time >= ? AND time < ?)",
                (raw_end, day, f"{day}~"),
            )
        for period in PERIODS[1:]:
            start = start_of(period, hour.start)
            # The clock was set back into a period that has its row.
            if self._exists(hour.sensor, period) and self._find(self.create_means(hour.sensor, period), start, False):
                self.end_period(PeriodEnd(period, hour.machine, hour.sensor, start, hour.mode))

    def end_period(self, end: PeriodEnd) -> None:
        """Write the row of a day, a month or a year, made of those of the shorter periods in it."""
        if not self._exists(end.sensor, MADE_OF[end.period]):
            return
        made_of_table = self.create_means(end.sensor, MADE_OF[end.period])
        table = self.create_means(end.sensor, end.period)
        found = self._find(table, end.start, end.replaces)
        if found is None and self._find(table, end.start, True) is not None:
            # The old server's own: what it reported stays.
            return
        rows = [
            Row(float(data), bucket_of(values))
            for data, *values in self._connection.execute(
                f"SELECT data, {_BUCKET} FROM {quoted(made_of_table)}"  # noqa: S608 - quoted
                " WHERE time >= ? AND time < ? ORDER BY time, start, id",
                (wall_time(end.start), wall_time(end_of(end.period, end.start))),
            )
            if isinstance(data, int | float) and math.isfinite(data)
        ]
        if rows:
            with contextlib.suppress(OverflowError):
                self._put(table, end.start, made_of(end.period, end.mode, rows), None if found is None else found[0])

    def _exists(self, sensor: str, period: str) -> bool:
        return _folded(self.means(sensor, period)) in self._names

    def _find(self, table: str, start: datetime, of_old_server: bool) -> tuple[int, Bucket | None, int | None] | None:
        """The row of a period: its id, its bucket, and its ``raw_end`` where that is a column.

        :param of_old_server: whether one that the old server wrote is looked for too.
        """
        raw_end = "raw_end" if table.endswith("_hour_avg") else "NULL"
        columns = f"id, {raw_end}, {_BUCKET}"
        time, moment = _key(start)
        row = self._connection.execute(
            f"SELECT {columns} FROM {quoted(table)} WHERE time = ? AND start = ?",  # noqa: S608 - quoted
            (time, moment),
        ).fetchone()
        if row is None and of_old_server:
            # Some of its rows have fractions of a second.
            row = self._connection.execute(
                f"SELECT {columns} FROM {quoted(table)} WHERE time >= ? AND time <= ? AND start IS NULL",  # noqa: S608 - quoted
                (time, f"{time}~"),
            ).fetchone()
        return None if row is None else (row[0], bucket_of(row[2:]), row[1])

    def _put(self, table: str, start: datetime, row: Row, found: int | None, raw_end: int | None = None) -> None:
        values = dict(zip(("time", "start"), _key(start), strict=True))
        values |= {"data": row.mean, **dict(zip(BUCKET_COLUMNS, values_of(row.bucket), strict=True))}
        if table.endswith("_hour_avg"):
            values["raw_end"] = raw_end
        if found is None:
            marks = ", ".join("?" * len(values))
            statement = f"INSERT INTO {quoted(table)} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608 - quoted
            self._connection.execute(statement, tuple(values.values()))
        else:
            changes = ", ".join(f"{name} = ?" for name in values)
            statement = f"UPDATE {quoted(table)} SET {changes} WHERE id = ?"  # noqa: S608 - quoted
            self._connection.execute(statement, (*values.values(), found))

    def _create(self, table: str, columns: str) -> None:
        if _folded(table) not in self._names:
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {quoted(table)} (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})"
            )
            self._names[_folded(table)] = table


def _folded(table: str) -> str:
    """Return a table's name in its compared form: composed, and in lower case."""
    return normalize("NFC", table).lower()


def _key(start: datetime) -> tuple[str, int]:
    return wall_time(start), int(start.timestamp())


def standing(
    connection: sqlite3.Connection, hours: str, days: Iterable[date], now: datetime, zone: tzinfo
) -> tuple[dict[date, DayMark], list[tuple[str, datetime]]]:
    """Where a sensor stands: how much of some days is counted, and which longer periods are open.

    :param hours: the table of its hours.
    """
    columns = columns_of(connection, hours)
    if not columns >= _OLD_COLUMNS:
        return {}, []
    further = "start, raw_end" if {"start", "raw_end"} <= columns else "NULL, NULL"
    select = f"SELECT time, {further} FROM {quoted(hours)} WHERE "  # noqa: S608 - quoted
    marks: dict[date, DayMark] = {}
    for day in days:
        # The row with the highest id says how much is counted.
        for time, start, raw_end in connection.execute(
            f"{select} time >= ? AND time < ? ORDER BY id DESC", (day.isoformat(), f"{day.isoformat()}~")
        ):
            moment = _moment(time, start, zone)
            if moment is not None:
                seen = marks.get(day, DayMark(moment, raw_end))
                marks[day] = DayMark(max(seen.last, moment, key=datetime.timestamp), seen.raw_end)
    last_hours = [mark.last for mark in marks.values()]
    # A clock that was ahead may have left rows of the future: the last before now are looked for too.
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


def page(
    connection: sqlite3.Connection,
    period: str,
    bounds: tuple[str, str],
    zone: tzinfo,
    *,
    only: str | None = None,
    detail: bool = False,
    after: tuple[str, str, int, int] | None = None,
    limit: int | None = None,
    encode: Encode | None = None,
) -> Page:
    """Items of ``/stat/<period>``.

    :param only: of this sensor.
    :param after: a table, and the time, start and id of a row in it.
    """
    made: list[Any] = []
    most = page_size(limit)
    for sensor, table in sensors(connection, period):
        if (after is not None and after[0] != table) or only not in (None, sensor):
            continue
        there = columns_of(connection, table)
        if not there >= _OLD_COLUMNS:
            continue
        is_ours = "start" in there
        order = "time, start, id" if is_ours else "time, id"
        mark = f"time, {'ifnull(start, 0)' if is_ours else '0'}, id"
        # Some rows of the old server have no number.
        where = f"FROM {quoted(table)} WHERE time >= ? AND time < ? AND typeof(data) IN ('real', 'integer')"
        arguments: tuple[Any, ...] = bounds
        if after is not None:
            where += f" AND ({mark}) > (?, ?, ?)"
            arguments = (after[1], bounds[1], *after[1:])
            after = None
        columns = "time, data" + (f", start, {_BUCKET}" if is_ours and detail else "")
        asked = connection.execute(
            f"SELECT {columns} {where} ORDER BY {order} LIMIT ?",
            (*arguments, most),
        )
        name = f"{sensor}_{period}_avg"
        count = 0
        while rows := asked.fetchmany(PIECE):
            count += len(rows)
            # Some have fractions of a second.
            if detail:
                items = [
                    {"name": name, "time": time[:19], "data": data, **_detail(period, zone, further)}
                    for time, data, *further in rows
                ]
            else:
                items = [{"name": name, "time": time[:19], "data": data} for time, data in rows]
            made += encoded(items, encode)
        if count == most:
            last = connection.execute(
                f"SELECT {mark} {where} ORDER BY {order} LIMIT 1 OFFSET ?",
                (*arguments, most - 1),
            ).fetchone()
            return Page(made, (table, *last))
        most -= count
    return Page(made)


def anomalies(
    connection: sqlite3.Connection, bounds: tuple[str, str], after: tuple[Any, int], limit: int | None = None
) -> list[Any]:
    """A page of anomalies, ascending in time: of each its time, id, score and threshold.

    :param after: the time and id of the row before the first; one of ``BEFORE_IDS`` where there is none.
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
    """A page of anomalies as :func:`anomalies`, but newest first; of those of one time, the last written first.

    :param since: none is before this time.
    :param after: the time and id of the row before the first; one of ``BEFORE_IDS`` leaves out all of that time, one
        of ``BEHIND_IDS`` none.
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
    """When a row's period began; ``None`` where it does not say, or says what cannot be."""
    try:
        if start is not None:
            return datetime.fromtimestamp(start, zone)
        moment = datetime.fromisoformat(str(time)[:19]).replace(tzinfo=zone)
    except (ValueError, OverflowError, OSError):
        return None
    return moment if 1970 < moment.year < 9998 else None


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """The names of a table's columns."""
    return {row[1] for row in connection.execute(f"PRAGMA table_info({quoted(table)})")}


def sensors(connection: sqlite3.Connection, period: str) -> list[tuple[str, str]]:
    """Every sensor with means of a period and its table, sorted by sensor."""
    suffix = f"_{period}_avg"
    tables = _tables(connection, suffix)
    return sorted((normalize("NFC", _ADDED.sub("", table.removesuffix(suffix))), table) for table in tables)


def _tables(connection: sqlite3.Connection, suffix: str) -> Iterator[str]:
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table.endswith(suffix):
            yield table
