"""Queries for statistics in PostgreSQL: pages of items, and the progress of sensors."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final, TypeAlias

from gateway.model.timestamps import wall_time
from gateway.store.interface import DayMark, MeansQuery, PageRequest, SensorState
from gateway.store.postgres.arrays import arrays, unnest
from gateway.store.postgres.entries import BUCKET, OURS
from gateway.store.postgres.session import Session
from gateway.store.rows import bucket_of, detail_of
from gateway.timeseries.calendar import PERIODS, start_of

#: Machine and sensor.
SensorKey: TypeAlias = tuple[str, str]

#: Maximum items of a page.
PAGE: Final = 10_000

#: Maximum sensors in one query for their progress.
_MAX_SENSORS: Final = 2_000


def page_size(limit: int | None) -> int:
    """Return the maximum number of items in a page, given the caller's ``limit``."""
    return PAGE if limit is None else min(limit, PAGE)


_MICROSECONDS: Final = "to_char(time, 'YYYY-MM-DD HH24:MI:SS.US')"


async def means(session: Session, query: MeansQuery, page: PageRequest) -> list[tuple[Any, ...]]:
    """Return a page of rows: sensor, time, start, origin, mean and, for details, the bucket.

    A position is the first four columns of a row.
    """
    # The time as text has all digits: rows of the old server have fractions of a second.
    where = "m.machine = %s AND m.period = %s AND m.time >= %s AND m.time < %s::date + 1"
    arguments: list[Any] = [query.machine, query.period, query.start, query.end]
    if query.sensor is not None:
        where += " AND m.sensor = %s"
        arguments.append(query.sensor)
    if page.after is not None:
        where += " AND (m.sensor, m.time, m.start, m.origin) > (%s, %s::timestamp, %s, %s)"
        arguments += page.after
    return await session.ask(
        f"SELECT m.sensor, m.time::text, m.start, m.origin, m.data{f', {BUCKET}' if query.detail else ''}"  # noqa: S608 - fixed text
        f" FROM cynow_mean AS m WHERE {where} AND m.data IS NOT NULL"
        " ORDER BY m.sensor, m.time, m.start, m.origin LIMIT %s",
        [*arguments, page_size(page.limit)],
    )


def items_of(query: MeansQuery, rows: Sequence[tuple[Any, ...]], zone: tzinfo) -> list[dict[str, Any]]:
    """Return items of ``/stat/<period>`` made from rows."""
    items = []
    for sensor, time, start, origin, data, *values in rows:
        item = {"name": f"{sensor}_{query.period}_avg", "time": time[:19], "data": data}
        if query.detail:
            item |= detail_of(query.period, start if origin == OURS else None, bucket_of(values), zone)
        items.append(item)
    return items


async def anomalies(
    session: Session, machine: str, bounds: tuple[date, date], page: PageRequest
) -> list[tuple[Any, ...]]:
    """Return a page of one machine's anomalies, ascending: time, gateway, entry, score and threshold.

    A position is the first three columns of a row.
    """
    where, arguments = "machine = %s AND time >= %s AND time < %s::date + 1", [machine, *bounds]
    if page.after is not None:
        where += " AND (time, gateway, entry) > (%s::timestamp, %s, %s)"
        arguments += page.after
    return await session.ask(
        f"SELECT {_MICROSECONDS}, gateway, entry, score, threshold FROM cynow_anomaly WHERE {where}"  # noqa: S608 - fixed text
        " ORDER BY time, gateway, entry LIMIT %s",
        [*arguments, page_size(page.limit)],
    )


async def newest_anomalies(session: Session, bounds: tuple[date, date], page: PageRequest) -> list[tuple[Any, ...]]:
    """Return a page of all machines' anomalies, newest first: time, machine, gateway, entry, score and threshold.

    Anomalies of one time are ordered by machine, the last written first. A position is the first four columns of a row.
    """
    where, arguments = "time >= %s AND time < %s::date + 1", [*bounds]
    if page.after is not None:
        where += (
            " AND time <= %s::timestamp AND (time < %s::timestamp OR (machine, gateway) > (%s, %s)"
            " OR (machine, gateway) = (%s, %s) AND entry < %s)"
        )
        time, *writer, entry = page.after
        arguments += [time, time, *writer, *writer, entry]
    return await session.ask(
        f"SELECT {_MICROSECONDS}, machine, gateway, entry, score, threshold FROM cynow_anomaly WHERE {where}"  # noqa: S608 - fixed text
        " ORDER BY time DESC, machine, gateway, entry DESC LIMIT %s",
        [*arguments, page_size(page.limit)],
    )


async def machines(session: Session) -> list[str]:
    """Return every machine with stored data, sorted."""
    return [machine for (machine,) in await session.ask("SELECT machine FROM cynow_machine ORDER BY machine")]


async def rollup_progress(
    session: Session, days: Mapping[SensorKey, Collection[date]], now: datetime, zone: tzinfo
) -> list[SensorState]:
    """Return the progress of all sensors; see :meth:`gateway.store.interface.Store.rollup_progress`."""
    sensors = await session.ask("SELECT machine, sensor, type FROM cynow_sensor ORDER BY machine, sensor")
    states: list[SensorState] = []
    for begin in range(0, len(sensors), _MAX_SENSORS):
        group = sensors[begin : begin + _MAX_SENSORS]
        keys = [(machine, sensor) for machine, sensor, _ in group]
        marks = await _day_marks(session, keys, days, zone)
        hours = await _last_hours(session, keys, now, zone)
        for key, marked in marks.items():
            hours[key] += [mark.last for mark in marked.values()]
        opened = await _open_periods(session, hours)
        states += [
            SensorState(machine, sensor, kind, marks[machine, sensor], opened[machine, sensor])
            for machine, sensor, kind in group
        ]
    return states


async def _day_marks(
    session: Session, keys: Sequence[SensorKey], days: Mapping[SensorKey, Collection[date]], zone: tzinfo
) -> dict[SensorKey, dict[date, DayMark]]:
    """Return the marks of the requested days that have hours, by sensor."""
    marks: dict[SensorKey, dict[date, DayMark]] = {key: {} for key in keys}
    columns = {"machine": "text", "sensor": "text", "day": "timestamp"}
    requested = [(*key, day.isoformat()) for key in keys for day in days.get(key, ())]
    # The last hour of a gateway has the number of bytes that are counted.
    for machine, sensor, day, last, raw_end in await session.ask(
        f"SELECT d.machine, d.sensor, d.day, m.last, m.raw_end FROM {unnest(columns)} AS d ({', '.join(columns)})"  # noqa: S608 - fixed text
        " CROSS JOIN LATERAL (SELECT max(x.start) AS last,"
        " (array_agg(x.raw_end ORDER BY x.origin DESC, x.start DESC))[1] AS raw_end FROM cynow_mean AS x"
        " WHERE x.machine = d.machine AND x.sensor = d.sensor AND x.period = 'hour'"
        " AND x.time >= d.day AND x.time < d.day + interval '1 day') AS m WHERE m.last IS NOT NULL",
        arrays(columns, requested),
    ):
        marks[machine, sensor][day.date()] = DayMark(datetime.fromtimestamp(last, zone), raw_end)
    return marks


async def _last_hours(
    session: Session, keys: Sequence[SensorKey], now: datetime, zone: tzinfo
) -> dict[SensorKey, list[datetime]]:
    """Return the starts of the last hour up to now and of the last hour at all, by sensor.

    They differ if the clock was ahead, and rows of the future were written.
    """
    hours: dict[SensorKey, list[datetime]] = {key: [] for key in keys}
    columns = {"machine": "text", "sensor": "text"}
    for bound in (wall_time(now + timedelta(seconds=1)), "infinity"):
        for machine, sensor, start in await session.ask(
            f"SELECT d.machine, d.sensor, m.start FROM {unnest(columns)} AS d ({', '.join(columns)})"  # noqa: S608 - fixed text
            " CROSS JOIN LATERAL (SELECT x.start FROM cynow_mean AS x WHERE x.machine = d.machine"
            " AND x.sensor = d.sensor AND x.period = 'hour' AND x.time < %s ORDER BY x.time DESC, x.start DESC LIMIT 1)"
            " AS m",
            [*arrays(columns, keys), bound],
        ):
            hours[machine, sensor].append(datetime.fromtimestamp(start, zone))
    return hours


async def _open_periods(
    session: Session, hours: Mapping[SensorKey, Collection[datetime]]
) -> dict[SensorKey, list[tuple[str, datetime]]]:
    """Return the longer periods around some hours that have no row, by sensor."""
    candidates = [
        (*key, period, start)
        for key in hours
        for period in PERIODS[1:]
        for start in sorted({start_of(period, hour) for hour in hours[key]})
    ]
    columns = {"machine": "text", "sensor": "text", "period": "text", "time": "timestamp"}
    rows = await session.ask(
        f"SELECT d.n - 1 FROM {unnest(columns)} WITH ORDINALITY AS d ({', '.join(columns)}, n)"  # noqa: S608 - fixed text
        " WHERE NOT EXISTS (SELECT 1 FROM cynow_mean AS x WHERE x.machine = d.machine AND x.sensor = d.sensor"
        " AND x.period = d.period AND x.time >= d.time AND x.time < d.time + interval '1 second') ORDER BY d.n",
        arrays(columns, [(*key, wall_time(start)) for *key, start in candidates]),
    )
    opened: dict[SensorKey, list[tuple[str, datetime]]] = {key: [] for key in hours}
    for (number,) in rows:
        machine, sensor, period, start = candidates[number]
        opened[machine, sensor].append((period, start))
    return opened
