"""Writer of entries as rows of PostgreSQL: closed periods, anomalies and sightings, many in each statement.

The rules are those of :class:`gateway.store.sqlite.machine_tables.MachineTables`. Rows are written in the order of
their keys, the same on all gateways, to avoid deadlocks.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias
from zlib import crc32

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.model.timestamps import wall_time
from gateway.store.postgres.arrays import array, arrays, unnest
from gateway.store.postgres.entry_order import MAX_ROWS, EntryKey, end_key, hour_key, phases
from gateway.store.postgres.session import Session
from gateway.store.rows import BUCKET_COLUMNS, Row, bucket_of, made_of, merge_hour, values_of
from gateway.timeseries.calendar import MADE_OF, PERIODS, end_of, start_of

#: Function that calls a function with arguments in a thread.
InThread: TypeAlias = Callable[..., Awaitable[Any]]

#: Values of ``origin``: rows of gateways, and rows of the old server.
OURS: Final = 0
OLD: Final = -1

_KEY: Final = {"machine": "text", "sensor": "text", "period": "text", "start": "bigint"}

_TYPES: Final = {"INTEGER": "bigint", "REAL": "float8", "TIMESTAMP": "timestamp"}

_COLUMNS: Final = {
    **_KEY,
    "time": "timestamp",
    "data": "float8",
    **{name: _TYPES[kind] for name, kind in BUCKET_COLUMNS.items()},
    "raw_end": "bigint",
}

#: Columns of a bucket, as :func:`gateway.store.rows.bucket_of` expects them.
BUCKET: Final = ", ".join(
    f"m.{name}::text" if kind == "TIMESTAMP" else f"m.{name}" for name, kind in BUCKET_COLUMNS.items()
)

#: Number of locks. The rows of a machine are changed under the lock that its name maps to, by one gateway at a time.
_LOCKS: Final = 64
_LOCK_CLASS: Final = 0x63796E6F

#: Condition for a row with the requested key.
_SAME: Final = " AND ".join(f"m.{name} = d.{name}" for name in _KEY)


@dataclass(slots=True)
class WrittenKeys:
    """Machines and sensors that are in the tables already, so that they are not written with every hour."""

    machines: set[str] = field(default_factory=set)
    sensors: set[tuple[str, str]] = field(default_factory=set)

    def add(self, other: "WrittenKeys") -> None:
        """Add the machines and sensors of another set."""
        self.machines |= other.machines
        self.sensors |= other.sensors


class EntryWriter:
    """Writer of entries in the transaction of a session.

    :param gateway: name of the gateway that the entries belong to.
    :param known: machines and sensors that are in the tables already.
    :param in_thread: runs long computations.
    :ivar new: machines and sensors that were written; they count as known once the transaction is committed.
    """

    def __init__(self, session: Session, gateway: str, known: WrittenKeys, in_thread: InThread) -> None:
        self._session = session
        self._gateway = gateway
        self._known = known
        self._in_thread = in_thread
        self.new = WrittenKeys()

    async def write(self, numbered: Sequence[tuple[int, StoreEntry]]) -> None:
        """Write entries.

        :raises psycopg2.Error: the transaction must be rolled back, as after any other exception.
        """
        await self._write_names([entry for _, entry in numbered])
        for kind, members in phases(numbered):
            if kind is Fault:
                await self._write_faults(members)
            elif kind is Sighting:
                await self._write_types([entry for _, entry in members])
            elif kind is ClosedHour:
                await self._write_hours([entry for _, entry in members])
            else:
                await self._write_periods([entry for _, entry in members])

    async def _write_names(self, entries: Sequence[StoreEntry]) -> None:
        """Write new machines, and new sensors without their types."""
        machines = {entry.machine for entry in entries} - self._known.machines
        sensors = {(entry.machine, entry.sensor) for entry in entries if not isinstance(entry, Fault)}
        sensors -= self._known.sensors
        if machines:
            await self._session.ask(
                "INSERT INTO cynow_machine SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [array(sorted(machines))]
            )
        if sensors:
            columns = {"machine": "text", "sensor": "text"}
            await self._session.ask(
                f"INSERT INTO cynow_sensor (machine, sensor) SELECT * FROM {unnest(columns)} ON CONFLICT DO NOTHING",  # noqa: S608 - fixed text
                arrays(columns, sorted(sensors)),
            )
        self.new.add(WrittenKeys(machines, sensors))

    async def _write_types(self, sightings: Sequence[Sighting]) -> None:
        columns = {"machine": "text", "sensor": "text", "type": "text"}
        await self._session.ask(
            "INSERT INTO cynow_sensor (machine, sensor, type) SELECT d.m, d.s, coalesce(d.t, '')"  # noqa: S608 - fixed text
            f" FROM {unnest(columns)} AS d (m, s, t) ON CONFLICT (machine, sensor) DO UPDATE SET type = EXCLUDED.type",
            arrays(columns, sorted((seen.machine, seen.sensor, seen.type) for seen in sightings)),
        )

    async def _write_faults(self, numbered: Sequence[tuple[int, Fault]]) -> None:
        columns = {"machine": "text", "time": "timestamp", "entry": "bigint", "threshold": "float8", "score": "float8"}
        await self._session.ask(
            "INSERT INTO cynow_anomaly (gateway, machine, time, entry, threshold, score)"  # noqa: S608 - fixed text
            f" SELECT %s, d.* FROM {unnest(columns)} AS d ON CONFLICT DO NOTHING",
            [
                self._gateway,
                *arrays(
                    columns,
                    [
                        (
                            fault.machine,
                            wall_time(fault.received_at, "microseconds"),
                            number,
                            fault.threshold,
                            fault.score,
                        )
                        for number, fault in numbered
                    ],
                ),
            ],
        )

    async def _write_hours(self, hours: Sequence[ClosedHour]) -> None:
        """Write hours with different keys."""
        new = {hour_key(hour): hour for hour in hours if not hour.replaces}
        inserted = set(await self._insert([_row_of(hour) for hour in new.values()]))
        existing = [hour for hour in hours if hour.replaces or hour_key(hour) not in inserted]
        if existing:
            await self._merge(existing)
        await self._write_raw_ends(new.values())
        await self._update_longer_periods(hours)

    async def _merge(self, hours: Sequence[ClosedHour]) -> None:
        """Write hours that may have rows already."""
        await self._lock({hour.machine for hour in hours})
        old_rows = await self._find([hour_key(hour) for hour in hours])
        rows = []
        for hour in hours:
            row, raw_end = merge_hour(hour, old_rows.get(hour_key(hour)))
            rows.append((*hour_key(hour), *_values(hour.start, row), raw_end))
        await self._remove_old([("hour", hour) for hour in hours if hour.replaces and hour_key(hour) not in old_rows])
        await self._replace(rows)

    async def _write_raw_ends(self, hours: Iterable[ClosedHour]) -> None:
        """Write the counted bytes of each day to its last row, regardless of the order in which hours were written."""
        columns = {"machine": "text", "sensor": "text", "day": "timestamp", "raw_end": "bigint"}
        last = {(hour.machine, hour.sensor, hour.start.date().isoformat()): hour.raw_end for hour in hours}
        if last:
            await self._session.ask(
                f"UPDATE cynow_mean AS m SET raw_end = d.raw_end FROM {unnest(columns)}"  # noqa: S608 - fixed text
                " AS d (machine, sensor, day, raw_end) WHERE m.machine = d.machine AND m.sensor = d.sensor"
                f" AND m.period = 'hour' AND m.origin = {OURS} AND m.raw_end IS DISTINCT FROM d.raw_end AND m.start ="
                " (SELECT max(x.start) FROM cynow_mean AS x WHERE x.machine = d.machine AND x.sensor = d.sensor"
                f" AND x.period = 'hour' AND x.origin = {OURS} AND x.time >= d.day"
                " AND x.time < d.day + interval '1 day')",
                arrays(columns, [(*key, raw_end) for key, raw_end in sorted(last.items(), key=lambda item: item[0])]),
            )

    async def _update_longer_periods(self, hours: Sequence[ClosedHour]) -> None:
        """Compute longer periods again that have rows already: the clock was set back into them."""
        ends = {
            end_key(end): end
            for hour in hours
            for end in (
                ClosedPeriod(period, hour.machine, hour.sensor, start_of(period, hour.start), hour.mode)
                for period in PERIODS[1:]
            )
        }
        keys = await self._session.ask(
            f"SELECT m.machine, m.sensor, m.period, m.start FROM {unnest(_KEY)} AS d ({', '.join(_KEY)})"  # noqa: S608 - fixed text
            f" JOIN cynow_mean AS m ON {_SAME} AND m.origin = {OURS}",
            arrays(_KEY, sorted(ends)),
        )
        for period in PERIODS[1:]:
            periods = [ends[key] for key in keys if key[2] == period]
            for begin in range(0, len(periods), MAX_ROWS[ClosedPeriod]):
                await self._write_periods(periods[begin : begin + MAX_ROWS[ClosedPeriod]])

    async def _write_periods(self, ends: Sequence[ClosedPeriod]) -> None:
        """Write days, months or years with different keys."""
        await self._lock({end.machine for end in ends})
        own_keys = await self._find_keys(ends)
        old = await self._find_old([(end.period, end) for end in ends if end_key(end) not in own_keys])
        # Rows of the old server stay.
        ends = [end for end in ends if end.replaces or end_key(end) not in old]
        columns = {"machine": "text", "sensor": "text", "first": "timestamp", "behind": "timestamp"}
        if not ends:
            return
        rows = await self._session.ask(
            f"SELECT d.n, m.data, {BUCKET} FROM {unnest(columns)} WITH ORDINALITY"  # noqa: S608 - fixed text
            " AS d (machine, sensor, first, behind, n) JOIN cynow_mean AS m ON m.machine = d.machine"
            " AND m.sensor = d.sensor AND m.period = %s AND m.time >= d.first AND m.time < d.behind"
            " AND m.data IS NOT NULL ORDER BY d.n, m.time, m.start, m.origin",
            [
                *arrays(
                    columns,
                    [
                        (end.machine, end.sensor, wall_time(end.start), wall_time(end_of(end.period, end.start)))
                        for end in ends
                    ],
                ),
                MADE_OF[ends[0].period],
            ],
        )
        new_rows = await self._in_thread(_compute_rows, ends, rows)
        written = {row[:4] for row in new_rows}
        await self._remove_old([(end.period, end) for end in ends if end_key(end) in old and end_key(end) in written])
        await self._replace(new_rows)

    # -- rows

    async def _lock(self, machines: Iterable[str]) -> None:
        locks = sorted({crc32(machine.encode()) % _LOCKS for machine in machines})
        await self._session.ask(
            "SELECT pg_advisory_xact_lock(%s, n) FROM (SELECT unnest(%s::int[]) AS n ORDER BY 1) AS d",
            [_LOCK_CLASS, array(locks)],
        )

    async def _insert(self, rows: list[tuple[Any, ...]]) -> list[Any]:
        """Insert rows without a row of the same key; return their keys."""
        if not rows:
            return []
        rows.sort(key=lambda row: row[:4])
        return await self._session.ask(
            f"INSERT INTO cynow_mean (origin, {', '.join(_COLUMNS)}) SELECT {OURS}, d.* FROM {unnest(_COLUMNS)} AS d"  # noqa: S608 - fixed text
            f" ON CONFLICT DO NOTHING RETURNING {', '.join(_KEY)}",
            arrays(_COLUMNS, rows),
        )

    async def _replace(self, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows; replace existing rows with the same keys."""
        if rows:
            rows.sort(key=lambda row: row[:4])
            changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in _COLUMNS if name not in _KEY)
            await self._session.ask(
                f"INSERT INTO cynow_mean (origin, {', '.join(_COLUMNS)}) SELECT {OURS}, d.*"  # noqa: S608 - fixed text
                f" FROM {unnest(_COLUMNS)} AS d ON CONFLICT ({', '.join(_KEY)}, origin) DO UPDATE SET {changes}",
                arrays(_COLUMNS, rows),
            )

    async def _find(self, keys: Sequence[EntryKey]) -> dict[Any, tuple[Any, int | None]]:
        """Return the buckets and counted bytes of the existing rows, by key."""
        rows = await self._session.ask(
            f"SELECT m.machine, m.sensor, m.period, m.start, m.raw_end, {BUCKET}"  # noqa: S608 - fixed text
            f" FROM {unnest(_KEY)} AS d ({', '.join(_KEY)}) JOIN cynow_mean AS m ON {_SAME} AND m.origin = {OURS}",
            arrays(_KEY, keys),
        )
        return {row[:4]: (bucket_of(row[5:]), row[4]) for row in rows}

    async def _find_keys(self, ends: Sequence[ClosedPeriod]) -> set[Any]:
        """Return the keys of the periods that have rows."""
        rows = await self._session.ask(
            f"SELECT m.machine, m.sensor, m.period, m.start FROM {unnest(_KEY)} AS d ({', '.join(_KEY)})"  # noqa: S608 - fixed text
            f" JOIN cynow_mean AS m ON {_SAME} AND m.origin = {OURS}",
            arrays(_KEY, [end_key(end) for end in ends]),
        )
        return set(rows)

    async def _find_old(self, wanted: Sequence[tuple[str, ClosedHour | ClosedPeriod]]) -> dict[Any, Any]:
        """Return the starts of rows of the old server, by the keys of the rows that would replace them."""
        columns = {"machine": "text", "sensor": "text", "period": "text", "time": "timestamp"}
        by_time = {
            (end.machine, end.sensor, period, wall_time(end.start)): int(end.start.timestamp())
            for period, end in wanted
        }
        if not by_time:
            return {}
        rows = await self._session.ask(
            f"SELECT m.machine, m.sensor, m.period, d.time::text, m.start FROM {unnest(columns)}"  # noqa: S608 - fixed text
            f" AS d ({', '.join(columns)}) JOIN cynow_mean AS m ON m.machine = d.machine AND m.sensor = d.sensor"
            # Some rows of the old server have fractions of a second.
            " AND m.period = d.period AND m.time >= d.time AND m.time < d.time + interval '1 second'"
            f" AND m.origin = {OLD}",
            arrays(columns, sorted(by_time)),
        )
        return {(*row[:3], by_time[row[:4]]): row[4] for row in rows}

    async def _remove_old(self, wanted: Sequence[tuple[str, ClosedHour | ClosedPeriod]]) -> None:
        """Remove rows of the old server that other rows replace."""
        old = await self._find_old(wanted)
        if old:
            await self._session.ask(
                f"DELETE FROM cynow_mean AS m USING {unnest(_KEY)} AS d ({', '.join(_KEY)}) WHERE {_SAME}"  # noqa: S608 - fixed text
                f" AND m.origin = {OLD}",
                arrays(_KEY, [(*key[:3], start) for key, start in old.items()]),
            )


def _compute_rows(ends: Sequence[ClosedPeriod], rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows of longer periods.

    :param rows: rows of the shorter periods, each after the number of its longer period, counted from 1.
    """
    below: dict[int, list[Row]] = defaultdict(list)
    for number, data, *values in rows:
        if math.isfinite(data):
            below[number].append(Row(data, bucket_of(values)))
    made = []
    for number, end in enumerate(ends, start=1):
        if below[number]:
            with contextlib.suppress(OverflowError):
                row = made_of(end.period, end.mode, below[number])
                made.append((*end_key(end), *_values(end.start, row), None))
    return made


def _row_of(hour: ClosedHour) -> tuple[Any, ...]:
    row = Row(hour.bucket.mean(hour.mode), hour.bucket)
    return *hour_key(hour), *_values(hour.start, row), hour.raw_end


def _values(start: datetime, row: Row) -> tuple[Any, ...]:
    return wall_time(start), row.mean, *values_of(row.bucket)
