"""What PostgreSQL is asked about statistics: items, page by page, and where sensors stand."""

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final

from gateway.model.timestamps import wall_time
from gateway.store.interface import DayMark, SensorState
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


async def means(
    session: Session,
    period: str,
    machine: str,
    bounds: tuple[date, date],
    *,
    sensor: str | None,
    detail: bool,
    after: tuple[str, str, int, int] | None,
    limit: int | None,
) -> list[tuple[Any, ...]]:
    """A page of rows: of each its sensor, time, start, origin, mean, and its bucket where there is to be detail.

    :param after: the first four of the row before the first.
    """
    # Within its second, and fractions of it that the old server wrote: the time as text has them all.
    where, values = "m.machine = %s AND m.period = %s AND m.time >= %s AND m.time < %s::date + 1", [machine, period]
    arguments: list[Any] = [*values, *bounds]
    if sensor is not None:
        where += " AND m.sensor = %s"
        arguments.append(sensor)
    if after is not None:
        where += " AND (m.sensor, m.time, m.start, m.origin) > (%s, %s::timestamp, %s, %s)"
        arguments += after
    return await session.ask(
        f"SELECT m.sensor, m.time::text, m.start, m.origin, m.data{f', {BUCKET}' if detail else ''}"  # noqa: S608 - fixed text
        f" FROM cynow_mean AS m WHERE {where} AND m.data IS NOT NULL"
        " ORDER BY m.sensor, m.time, m.start, m.origin LIMIT %s",
        [*arguments, page_size(limit)],
    )


def items_of(period: str, rows: Sequence[tuple[Any, ...]], zone: tzinfo, *, detail: bool) -> list[dict[str, Any]]:
    """Items of ``/stat/<period>``."""
    items = []
    for sensor, time, start, origin, data, *values in rows:
        item = {"name": f"{sensor}_{period}_avg", "time": time[:19], "data": data}
        if detail:
            item |= detail_of(period, start if origin == OURS else None, bucket_of(values), zone)
        items.append(item)
    return items


async def anomalies(
    session: Session,
    machine: str,
    bounds: tuple[date, date],
    after: tuple[str, str, int] | None,
    limit: int | None,
) -> list[tuple[Any, ...]]:
    """A page of one machine's anomalies, ascending: of each its time, gateway, entry, score and threshold.

    :param after: the first three of the row before the first.
    """
    where, arguments = "machine = %s AND time >= %s AND time < %s::date + 1", [machine, *bounds]
    if after is not None:
        where += " AND (time, gateway, entry) > (%s::timestamp, %s, %s)"
        arguments += after
    return await session.ask(
        f"SELECT {_MICROSECONDS}, gateway, entry, score, threshold FROM cynow_anomaly WHERE {where}"  # noqa: S608 - fixed text
        " ORDER BY time, gateway, entry LIMIT %s",
        [*arguments, page_size(limit)],
    )


async def newest_anomalies(
    session: Session, bounds: tuple[date, date], after: tuple[str, str, str, int] | None, limit: int | None
) -> list[tuple[Any, ...]]:
    """A page of all machines' anomalies, newest first; those of one time by machine, the last written of it first.

    :param after: time, machine, gateway and entry of the row before the first, which are the first four of each.
    """
    where, arguments = "time >= %s AND time < %s::date + 1", [*bounds]
    if after is not None:
        where += (
            " AND time <= %s::timestamp AND (time < %s::timestamp OR (machine, gateway) > (%s, %s)"
            " OR (machine, gateway) = (%s, %s) AND entry < %s)"
        )
        time, *writer, entry = after
        arguments += [time, time, *writer, *writer, entry]  # type: ignore[list-item]  # two days, then texts and a number
    return await session.ask(
        f"SELECT {_MICROSECONDS}, machine, gateway, entry, score, threshold FROM cynow_anomaly WHERE {where}"  # noqa: S608 - fixed text
        " ORDER BY time DESC, machine, gateway, entry DESC LIMIT %s",
        [*arguments, page_size(limit)],
    )


async def machines(session: Session) -> list[str]:
    """Every machine with stored data, sorted."""
    return [machine for (machine,) in await session.ask("SELECT machine FROM cynow_machine ORDER BY machine")]


async def standing(
    session: Session, days: Mapping[tuple[str, str], Collection[date]], now: datetime, zone: tzinfo
) -> list[SensorState]:
    """Where all sensors stand; see :meth:`gateway.store.interface.Store.standing`."""
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
