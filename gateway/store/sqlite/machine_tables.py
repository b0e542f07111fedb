"""Tables of a machine's own database, ``db/<machine>.db``: those of the old monitoring server, with more columns.

The old server's columns ``id``, ``time`` and ``data`` are followed by ``start`` (seconds since 1970, which
distinguishes the two occurrences of an hour that repeats), the columns of a bucket and, in rows of hours, ``raw_end``:
the number of counted bytes of the day's raw file.
"""

import contextlib
import math
import sqlite3
from datetime import datetime
from typing import Final
from unicodedata import normalize

from gateway.model.entries import ClosedHour, ClosedPeriod, StoreEntry
from gateway.model.records import Fault
from gateway.model.timestamps import wall_time
from gateway.store.rows import BUCKET_COLUMNS, Row, bucket_of, made_of, merge_hour, values_of
from gateway.store.sqlite.queries import BUCKET_SELECT, columns_of, folded, quoted, row_key, table_names
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import MADE_OF, PERIODS, end_of, start_of

#: Columns after those of the old server, and their types.
_ADDED: Final = {"start": "INTEGER", **BUCKET_COLUMNS}


class MachineTables:
    """Tables of one machine's database, written by one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        #: Tables that have all columns and indexes.
        self._complete: set[str] = set()
        #: Names of tables by their compared forms.
        self._names: dict[str, str] = {}
        self.forget()

    def forget(self) -> None:
        """Read the names of the tables again: a rollback may have removed some."""
        self._names = {folded(table): table for table in table_names(self._connection, "")}
        self._complete.clear()

    def write(self, entry: StoreEntry) -> None:
        """Write an entry; a sighting has no row of its own, for its tables are created with their first rows."""
        self._create_anomaly()
        match entry:
            case ClosedHour():
                self._write_hour(entry)
            case ClosedPeriod():
                self._write_period(entry)
            case Fault(score=score, threshold=threshold, received_at=received_at):
                self._connection.execute(
                    "INSERT INTO anomaly (time, threshold, score) VALUES (?, ?, ?)",
                    (wall_time(received_at, "microseconds"), threshold, score),
                )

    def _create_anomaly(self) -> None:
        """Create the table of anomalies if it is missing, and its index, which the old server's table lacks."""
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
            columns = {**_ADDED, "raw_end": "INTEGER"} if period == "hour" else _ADDED
            further = "".join(f", {name} {kind}" for name, kind in columns.items())
            self._create(table, f"time TIMESTAMP, data REAL{further}")
            existing = columns_of(self._connection, table)
            missing = [(name, kind) for name, kind in columns.items() if name not in existing]
            for name, kind in missing:
                self._connection.execute(f"ALTER TABLE {quoted(table)} ADD COLUMN {name} {kind}")
            self._connection.execute(
                f"CREATE INDEX IF NOT EXISTS {quoted(f'{table}_time')} ON {quoted(table)} (time, start)"
            )
            self._complete.add(table)
            if missing:
                # The old server created this table and those of all other periods.
                for other in PERIODS:
                    self.create_means(sensor, other)
        return table

    def means(self, sensor: str, period: str) -> str:
        """Return the name of the table of a sensor's means, which may be missing.

        It is ``<sensor>_<period>_avg``. To SQLite, ``Vib_hour_avg`` and ``vib_hour_avg`` are one table, and no name may
        begin with ``sqlite_``: the second sensor's table becomes ``vib~2_hour_avg``, that of the other ``~sqlite_...``.
        All tables of a sensor have the same number, although they are created one after the other.
        """
        stem = f"~{sensor}" if sensor.lower().startswith("sqlite_") else sensor
        number = 1
        while True:
            added = "" if number == 1 else f"~{number}"
            tables = {each: f"{stem}{added}_{each}_avg" for each in PERIODS}
            # Tables of an older version may have decomposed names.
            existing = {each: self._names.get(folded(table), table) for each, table in tables.items()}
            if all(normalize("NFC", existing[each]) == table for each, table in tables.items()):
                return existing[period]
            number += 1

    def _write_hour(self, hour: ClosedHour) -> None:
        """Write the row of a closed hour."""
        table = self.create_means(hour.sensor, "hour")
        found = self._find(table, hour.start, hour.replaces)
        row, raw_end = merge_hour(hour, None if found is None else found[1:])
        self._put(table, hour.start, row, None if found is None else found[0], raw_end)
        if found is not None and not hour.replaces:
            # The row of a day with the highest id has the number of counted bytes.
            day = hour.start.date().isoformat()
            self._connection.execute(
                f"UPDATE {quoted(table)} SET raw_end = ? WHERE id ="  # noqa: S608 - quoted
                f" (SELECT max(id) FROM {quoted(table)} WHERE time >= ? AND time < ?)",
                (raw_end, day, f"{day}~"),
            )
        for period in PERIODS[1:]:
            start = start_of(period, hour.start)
            # If the clock was set back, a longer period may have its row already.
            if self._exists(hour.sensor, period) and self._find(self.create_means(hour.sensor, period), start, False):
                self._write_period(ClosedPeriod(period, hour.machine, hour.sensor, start, hour.mode))

    def _write_period(self, end: ClosedPeriod) -> None:
        """Write the row of a day, a month or a year, computed from the rows of the shorter periods in it."""
        if not self._exists(end.sensor, MADE_OF[end.period]):
            return
        made_of_table = self.create_means(end.sensor, MADE_OF[end.period])
        table = self.create_means(end.sensor, end.period)
        found = self._find(table, end.start, end.replaces)
        if found is None and self._find(table, end.start, True) is not None:
            # A row of the old server stays as it was reported.
            return
        rows = [
            Row(float(data), bucket_of(values))
            for data, *values in self._connection.execute(
                f"SELECT data, {BUCKET_SELECT} FROM {quoted(made_of_table)}"  # noqa: S608 - quoted
                " WHERE time >= ? AND time < ? ORDER BY time, start, id",
                (wall_time(end.start), wall_time(end_of(end.period, end.start))),
            )
            if isinstance(data, int | float) and math.isfinite(data)
        ]
        if rows:
            with contextlib.suppress(OverflowError):
                self._put(table, end.start, made_of(end.period, end.mode, rows), None if found is None else found[0])

    def _exists(self, sensor: str, period: str) -> bool:
        return folded(self.means(sensor, period)) in self._names

    def _find(self, table: str, start: datetime, of_old_server: bool) -> tuple[int, Bucket | None, int | None] | None:
        """Return the id, the bucket and the ``raw_end`` of a period's row; ``None`` if the row is missing.

        :param of_old_server: whether to find a row of the old server too.
        """
        raw_end = "raw_end" if table.endswith("_hour_avg") else "NULL"
        columns = f"id, {raw_end}, {BUCKET_SELECT}"
        time, moment = row_key(start)
        row = self._connection.execute(
            f"SELECT {columns} FROM {quoted(table)} WHERE time = ? AND start = ?",  # noqa: S608 - quoted
            (time, moment),
        ).fetchone()
        if row is None and of_old_server:
            # Some times of the old server have fractions of a second.
            row = self._connection.execute(
                f"SELECT {columns} FROM {quoted(table)} WHERE time >= ? AND time <= ? AND start IS NULL",  # noqa: S608 - quoted
                (time, f"{time}~"),
            ).fetchone()
        return None if row is None else (row[0], bucket_of(row[2:]), row[1])

    def _put(self, table: str, start: datetime, row: Row, found: int | None, raw_end: int | None = None) -> None:
        values = dict(zip(("time", "start"), row_key(start), strict=True))
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
        if folded(table) not in self._names:
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {quoted(table)} (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})"
            )
            self._names[folded(table)] = table
