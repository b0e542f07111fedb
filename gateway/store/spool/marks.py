"""Progress of statistics in the spool: marks of days, and open periods."""

import sqlite3
from datetime import date, datetime, timedelta, tzinfo
from typing import Final

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.store.interface import DayMark, RollupProgress, SensorState
from gateway.store.spool.codec import ROWS, read_entries
from gateway.timeseries.calendar import PERIODS, start_of

#: Age in days up to which marks of a sensor are kept, and minimum number of them. With fewer, hours that were written
#: while the clock was ahead would displace the marks of the real days.
_MARK_DAYS: Final = 10


def count_entry(connection: sqlite3.Connection, entry: StoreEntry, zone: tzinfo, today: date) -> None:
    """Update the progress of an entry's sensor."""
    if isinstance(entry, Fault):
        return
    key = entry.machine, entry.sensor
    connection.execute("INSERT OR IGNORE INTO sensor (machine, sensor) VALUES (?, ?)", key)
    match entry:
        case Sighting(type=kind):
            connection.execute("UPDATE sensor SET type = ? WHERE machine = ? AND sensor = ?", (kind, *key))
        case ClosedHour():
            mark_hour(connection, entry, today)
            for period, start in marked_periods(int(entry.start.timestamp()), zone):
                # A closed period stays closed: the store computes the row of the longer period again by itself.
                connection.execute("INSERT OR IGNORE INTO period VALUES (?, ?, ?, ?, 0)", (*key, period, start))
        case ClosedPeriod(period=period, start=start):
            connection.execute(
                "UPDATE period SET closed = 1 WHERE machine = ? AND sensor = ? AND period = ? AND start = ?",
                (*key, period, start.date().isoformat()),
            )


def mark_hour(connection: sqlite3.Connection, hour: ClosedHour, today: date) -> None:
    """Update the mark of an hour's day."""
    key = hour.machine, hour.sensor, hour.start.date().isoformat()
    moment, raw_end = int(hour.start.timestamp()), hour.raw_end
    where = "WHERE machine = ? AND sensor = ? AND day = ?"
    found = connection.execute(f"SELECT last, raw_end FROM mark {where}", key).fetchone()  # noqa: S608 - fixed text
    if found is None:
        connection.execute("INSERT INTO mark VALUES (?, ?, ?, ?, ?)", (*key, moment, raw_end))
        prune_marks(connection, hour.machine, hour.sensor, today)
        return
    # An hour that replaces another says nothing new about the raw file.
    if hour.replaces and moment <= found[0]:
        raw_end = found[1]
    connection.execute(
        f"UPDATE mark SET last = ?, raw_end = ? {where}",  # noqa: S608 - fixed text
        (max(moment, found[0]), raw_end, *key),
    )


def prune_marks(connection: sqlite3.Connection, machine: str, sensor: str, today: date) -> None:
    """Remove old marks, and the closed periods before the remaining ones."""
    found = connection.execute(
        "SELECT day FROM mark WHERE machine = ? AND sensor = ? ORDER BY day DESC LIMIT 1 OFFSET ?",
        (machine, sensor, _MARK_DAYS - 1),
    ).fetchone()
    if found is not None:
        first = min(found[0], (today - timedelta(days=_MARK_DAYS)).isoformat())
        connection.execute("DELETE FROM mark WHERE machine = ? AND sensor = ? AND day < ?", (machine, sensor, first))
        connection.execute(
            "DELETE FROM period WHERE machine = ? AND sensor = ? AND closed"
            " AND start < CASE period WHEN 'day' THEN ? WHEN 'month' THEN ? ELSE ? END",
            (machine, sensor, first, f"{first[:7]}-01", f"{first[:4]}-01-01"),
        )


def marked_periods(moment: int, zone: tzinfo) -> list[tuple[str, str]]:
    """Return the day, the month and the year of a moment, with their first days.

    :param moment: seconds since 1970.
    """
    time = datetime.fromtimestamp(moment, zone)
    return [(period, start_of(period, time).date().isoformat()) for period in PERIODS[1:]]


def stored_progress(connection: sqlite3.Connection, zone: tzinfo) -> RollupProgress | None:
    """Return the progress of all statistics; ``None`` before :func:`adopt`."""
    if connection.execute("SELECT adopted FROM state").fetchone() == (0,):
        return None
    marks: dict[tuple[str, str], dict[date, DayMark]] = {}
    for machine, sensor, day, last, raw_end in connection.execute("SELECT * FROM mark"):
        mark = DayMark(datetime.fromtimestamp(last, zone), raw_end)
        marks.setdefault((machine, sensor), {})[date.fromisoformat(day)] = mark
    opened: dict[tuple[str, str], list[tuple[str, datetime]]] = {}
    for machine, sensor, period, start in connection.execute(
        "SELECT machine, sensor, period, start FROM period WHERE NOT closed ORDER BY start"
    ):
        opened.setdefault((machine, sensor), []).append((period, datetime.fromisoformat(start).replace(tzinfo=zone)))
    for periods in opened.values():
        periods.sort(key=lambda period: PERIODS.index(period[0]))
    return RollupProgress(
        [
            SensorState(machine, sensor, kind, marks.get((machine, sensor), {}), opened.get((machine, sensor), ()))
            for machine, sensor, kind in connection.execute("SELECT machine, sensor, type FROM sensor").fetchall()
        ]
    )


def adopt(connection: sqlite3.Connection, progress: RollupProgress, zone: tzinfo, today: date) -> None:
    """Replace the progress by that of the server, and add the waiting entries.

    :raises ValueError: the progress of some machines is not known.
    """
    if progress.unreadable:
        raise ValueError("the progress of some machines is not known")
    for table in ("sensor", "mark", "period"):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - fixed text
    for state in progress.sensors:
        key = state.machine, state.sensor
        connection.execute("INSERT INTO sensor VALUES (?, ?, ?)", (*key, state.type))
        for day, mark in state.days.items():
            moment = int(mark.last.timestamp())
            connection.execute("INSERT INTO mark VALUES (?, ?, ?, ?, ?)", (*key, day.isoformat(), moment, mark.raw_end))
            for each in marked_periods(moment, zone):
                # The server was asked which of these are open.
                connection.execute("INSERT OR IGNORE INTO period VALUES (?, ?, ?, ?, 1)", (*key, *each))
        for period, start in state.open:
            row = *key, period, start.date().isoformat()
            connection.execute("INSERT OR REPLACE INTO period VALUES (?, ?, ?, ?, 0)", row)
    for _, entry in read_entries(connection.execute(ROWS), zone):
        if entry is not None:
            count_entry(connection, entry, zone, today)
    connection.execute("UPDATE state SET adopted = 1")
