"""What PostgreSQL is asked about statistics: items, page by page, and where sensors stand."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final

from gateway.model.timestamps import wall_time
from gateway.store.interface import DayMark, MeansQuery, PageRequest, SensorState
from gateway.store.postgres.arrays import arrays, unnest
from gateway.store.postgres.entries import BUCKET, OURS
from gateway.store.postgres.session import Session
from gateway.store.rows import bucket_of, detail_of
from gateway.timeseries.calendar import PERIODS, start_of

#: Items of a page.
PAGE: Final = 10_000

#: Sensors in one question about where they stand.
_SENSORS: Final = 2_000


def page_size(limit: int | None) -> int:
    """Return the maximum number of items in a page, given the caller's ``limit``."""
    return PAGE if limit is None else min(limit, PAGE)


_MICROSECONDS: Final = "to_char(time, 'YYYY-MM-DD HH24:MI:SS.US')"


async def means(session: Session, query: MeansQuery, page: PageRequest) -> list[tuple[Any, ...]]:
    """Return a page of rows: sensor, time, start, origin, mean and, for details, the bucket.

    A position is the first four columns of a row.
    """
    # Within its second, and fractions of it that the old server wrote: the time as text has them all.
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
    """Every machine with stored data, sorted."""
    return [machine for (machine,) in await session.ask("SELECT machine FROM cynow_machine ORDER BY machine")]


async def rollup_progress(
    session: Session, days: Mapping[tuple[str, str], Collection[date]], now: datetime, zone: tzinfo
) -> list[SensorState]:
    """Return the progress of all sensors; see :meth:`gateway.store.interface.Store.rollup_progress`."""
    sensors = await session.ask("SELECT machine, sensor, type FROM cynow_sensor ORDER BY machine, sensor")
    states: list[SensorState] = []
    for begin in range(0, len(sensors), _SENSORS):
        states += await _states(session, sensors[begin : begin + _SENSORS], days, now, zone)
    return states


async def _states(
    session: Session,
    sensors: Sequence[tuple[Any, ...]],
    days: Mapping[tuple[str, str], Collection[date]],
    now: datetime,
    zone: tzinfo,
) -> list[SensorState]:
    keys = [(machine, sensor) for machine, sensor, _ in sensors]
    marks: dict[tuple[str, str], dict[date, DayMark]] = {key: {} for key in keys}
    columns = {"machine": "text", "sensor": "text", "day": "timestamp"}
    asked = [(*key, day.isoformat()) for key in keys for day in days.get(key, ())]
    # How much of a day is counted is said by the last of its hours that the gateway wrote.
    for machine, sensor, day, last, raw_end in await session.ask(
        f"SELECT d.machine, d.sensor, d.day, m.last, m.raw_end FROM {unnest(columns)} AS d ({', '.join(columns)})"  # noqa: S608 - fixed text
        " CROSS JOIN LATERAL (SELECT max(x.start) AS last,"
        " (array_agg(x.raw_end ORDER BY x.origin DESC, x.start DESC))[1] AS raw_end FROM cynow_mean AS x"
        " WHERE x.machine = d.machine AND x.sensor = d.sensor AND x.period = 'hour'"
        " AND x.time >= d.day AND x.time < d.day + interval '1 day') AS m WHERE m.last IS NOT NULL",
        arrays(columns, asked),
    ):
        marks[machine, sensor][day.date()] = DayMark(datetime.fromtimestamp(last, zone), raw_end)
    hours: dict[tuple[str, str], list[datetime]] = {key: [mark.last for mark in marks[key].values()] for key in keys}
    # A clock that was ahead may have left rows of the future: the last before now are looked for too.
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
    candidates = [
        (*key, period, start)
        for key in keys
        for period in PERIODS[1:]
        for start in sorted({start_of(period, hour) for hour in hours[key]})
    ]
    opened: dict[tuple[str, str], list[tuple[str, datetime]]] = {key: [] for key in keys}
    for number in await _without_row(session, candidates):
        *key, period, start = candidates[number]
        opened[key[0], key[1]].append((period, start))
    return [
        SensorState(machine, sensor, kind, marks[machine, sensor], opened[machine, sensor])
        for machine, sensor, kind in sensors
    ]


async def _without_row(session: Session, periods: Sequence[tuple[str, str, str, datetime]]) -> list[int]:
    """The indexes of those periods that have no row."""
    columns = {"machine": "text", "sensor": "text", "period": "text", "time": "timestamp"}
    rows = await session.ask(
        f"SELECT d.n - 1 FROM {unnest(columns)} WITH ORDINALITY AS d ({', '.join(columns)}, n)"  # noqa: S608 - fixed text
        " WHERE NOT EXISTS (SELECT 1 FROM cynow_mean AS x WHERE x.machine = d.machine AND x.sensor = d.sensor"
        " AND x.period = d.period AND x.time >= d.time AND x.time < d.time + interval '1 second') ORDER BY d.n",
        arrays(columns, [(*key, wall_time(start)) for *key, start in periods]),
    )
    return [number for (number,) in rows]
