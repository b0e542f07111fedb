"""Computation of statistics of past days from raw files."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Final

from tqdm import tqdm

from gateway.model.entries import ClosedHour, ClosedPeriod, StoreEntry
from gateway.model.timestamps import rfc3339, wall_time
from gateway.raw import files
from gateway.raw.damage import DamageLog
from gateway.raw.files import RawFile
from gateway.raw.repeated_hour import timed_runs
from gateway.runtime.clock import WallClock
from gateway.stats.rollup import Rollup
from gateway.store.interface import MeansQuery, PageRequest, Store, StoreUnavailable
from gateway.store.rows import detail_of
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import PERIODS, end_of, minutes_of, start_of

#: Maximum attempts to write to a store that another program has locked.
_MAX_ATTEMPTS: Final = 5

#: Key of a row: its period, and its start with the offset from UTC.
RowKey = tuple[str, str]

#: Number of samples in the first of two repeated hours, by day and hour.
FirstCounts = dict[date, dict[int, int]]


@dataclass(frozen=True, slots=True)
class RecomputeJob:
    """One sensor and its raw files of the selected days.

    :ivar mode: ``ABS`` or ``REAL``.
    """

    machine: str
    sensor: str
    mode: str
    raw_files: Sequence[RawFile]


class Recompute:
    """Renewal of the statistics of sensors.

    :param write: whether to change rows, not only to show the differences.
    :param force: whether to replace a row that counts more samples than the raw files hold.
    :param progress: progress bar, in bytes of raw files.
    :param damage: log for damaged files.
    :ivar outcomes: number of rows by outcome: new, different, unchanged, kept.
    :ivar problems: files that cannot be read, one line each.
    """

    def __init__(
        self,
        store: Store,
        clock: WallClock,
        *,
        write: bool,
        force: bool,
        progress: "tqdm[Any]",
        damage: DamageLog,
    ) -> None:
        self._store = store
        self._clock = clock
        self._write_rows = write
        self._force = force
        self._progress = progress
        self._damage = damage
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []

    async def run(self, job: RecomputeJob) -> None:
        """Read the files of a sensor, write its rows, and show the differences.

        :raises StoreUnavailable: the store does not accept the rows.
        """
        hours = self._hours(job, await self._first_counts(job))
        if not hours:
            return
        first, last = hours[0].start, hours[-1].start
        before = await self._items(job, first, last)
        if not self._force:
            hours = [hour for hour in hours if not self._keeps_row(hour, before)]
        if self._write_rows:
            await self._write([*hours, *self._longer_periods(job, hours)])
            after = await self._items(job, first, last)
        else:
            after = {**before, **{_key_of(hour): _item_of(hour, self._clock.zone) for hour in hours}}
        for key in sorted(after.keys() | before.keys(), key=_order):
            self._compare(job, key, before.get(key), after.get(key))

    async def _first_counts(self, job: RecomputeJob) -> FirstCounts:
        """Return the samples of the first of two repeated hours whose second one has a row."""
        first_counts: FirstCounts = {}
        zone = self._clock.zone
        for day in {file.day for file in job.raw_files}:
            if minutes_of("day", datetime(day.year, day.month, day.day, tzinfo=zone)) <= 24 * 60:
                continue
            page = await self._store.means(MeansQuery("hour", job.machine, day, day, job.sensor, detail=True))
            counts = {}
            for item in page.items:
                if item["start"] is not None:
                    start = datetime.fromisoformat(item["start"]).astimezone(zone)
                    counts[start.hour, start.fold] = item["count"] or 0
            first_counts[day] = {hour: counts.get((hour, 0), 0) for hour, fold in counts if fold}
        return first_counts

    def _hours(self, job: RecomputeJob, first_counts: FirstCounts) -> list[ClosedHour]:
        """Return the hours that the files hold, each once, without the days of unreadable files."""
        hours: dict[float, ClosedHour] = {}
        unreadable_days = set()
        for file in job.raw_files:
            try:
                closed = self._hours_of(job, file, first_counts)
            except files.ReadError as error:
                unreadable_days.add(file.day)
                self.problems.append(
                    f"{file.path}: cannot read the raw file: {error}; rows of {file.day} are unchanged"
                )
                continue
            for entry in closed:
                # An hour closes more than once if the clock was set back.
                hour = hours.setdefault(
                    entry.start.timestamp(),
                    ClosedHour(job.machine, job.sensor, entry.start, Bucket(), job.mode, replaces=True),
                )
                # An hour without the samples whose sum exceeds a double is better than no hour.
                with contextlib.suppress(OverflowError):
                    hour.bucket.merge(entry.bucket)
        return [hours[start] for start in sorted(hours) if hours[start].start.date() not in unreadable_days]

    def _hours_of(self, job: RecomputeJob, file: RawFile, first_counts: FirstCounts) -> list[ClosedHour]:
        rollup = Rollup(self._clock.zone, {"": job.mode})
        rollup.resume(job.machine, job.sensor, "", {})
        closed = []
        read = 0
        try:
            with file.open() as content, self._damage.scan(file.path) as damaged:
                counts = first_counts.get(file.day, {})
                for time, run in timed_runs(content, file.day, self._clock.zone, counts, damaged):
                    closed += rollup.replay(job.machine, job.sensor, time, run.samples).entries
                    if not file.compressed and run.end - read > 1 << 20:
                        self._progress.update(run.end - read)
                        read = run.end
        finally:
            self._progress.update(size_of(file) - read)
        # The files are of past days, so tomorrow every hour has ended.
        closed += rollup.advance(self._clock.now() + timedelta(days=1)).entries
        return [entry for entry in closed if isinstance(entry, ClosedHour)]

    def _longer_periods(self, job: RecomputeJob, hours: Sequence[ClosedHour]) -> Iterator[ClosedPeriod]:
        """Yield the days, months and years that contain these hours and have ended."""
        now = self._clock.now()
        for period in PERIODS[1:]:
            for start in dict.fromkeys(start_of(period, hour.start) for hour in hours):
                if end_of(period, start) <= now:
                    yield ClosedPeriod(period, job.machine, job.sensor, start, job.mode, replaces=True)

    def _keeps_row(self, hour: ClosedHour, before: dict[RowKey, dict[str, Any]]) -> bool:
        """Return whether to keep the row of an hour, because the raw files hold fewer samples than it counts."""
        row = before.get(_key_of(hour))
        if row is None or row["count"] is None or row["count"] <= hour.bucket.count:
            return False
        self.outcomes["kept"] += 1
        self._show(
            f"{hour.machine} {hour.sensor} hour {row['time']}: kept, because the raw files hold only"
            f" {hour.bucket.count} of its {row['count']} samples; use --force to replace it"
        )
        return True

    async def _items(self, job: RecomputeJob, first: datetime, last: datetime) -> dict[RowKey, dict[str, Any]]:
        """Return the rows of all periods of a sensor that overlap a range of hours."""
        rows: dict[RowKey, dict[str, Any]] = {}
        for period in PERIODS:
            begin, end = start_of(period, first).date(), last.date()
            query = MeansQuery(period, job.machine, begin, end, job.sensor, detail=True)
            page = None
            while page is None or page.after is not None:
                page = await self._store.means(query, PageRequest(None if page is None else page.after))
                for item in page.items:
                    rows[period, item["start"] or self._start_of(item["time"])] = item
        return rows

    def _start_of(self, time: str) -> str:
        """Return the start of a row of the old server, which stored no offset."""
        return _start_text(datetime.fromisoformat(time).replace(tzinfo=self._clock.zone))

    async def _write(self, entries: Sequence[StoreEntry]) -> None:
        for _ in range(_MAX_ATTEMPTS):
            entries = await self._store.write(entries)
            if not entries:
                return
        raise StoreUnavailable("the store does not accept rows: it is locked by another program, or read-only")

    def _compare(
        self, job: RecomputeJob, key: RowKey, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        if before == after:
            self.outcomes["unchanged"] += 1
            return
        self.outcomes["new" if before is None else "different"] += 1
        time = (after or before or {})["time"]
        self._show(f"{job.machine} {job.sensor} {key[0]} {time}: {_described(before)} -> {_described(after)}")

    def _show(self, line: str) -> None:
        # Written above the progress bar, if there is one.
        self._progress.write(line, file=sys.stdout)


def _order(key: RowKey) -> tuple[int, datetime]:
    period, start = key
    return PERIODS.index(period), datetime.fromisoformat(start)


def _key_of(hour: ClosedHour) -> RowKey:
    return "hour", _start_text(hour.start)


def _start_text(start: datetime) -> str:
    """Return a start as rows show it; a start that the wall clock skips becomes the moment of the skip."""
    return rfc3339(datetime.fromtimestamp(start.timestamp(), start.tzinfo))


def _item_of(hour: ClosedHour, zone: tzinfo) -> dict[str, Any]:
    """Return the row of an hour in the form in which the store returns it."""
    return {
        "name": f"{hour.sensor}_hour_avg",
        "time": wall_time(hour.start),
        "data": hour.bucket.mean(hour.mode),
        **detail_of("hour", hour.start.timestamp(), hour.bucket, zone),
    }


def size_of(file: RawFile) -> int:
    """Return the size of a file in bytes; 0 if it has been compressed or removed meanwhile."""
    try:
        return os.stat(file.path).st_size
    except OSError:
        return 0


def _described(item: dict[str, Any] | None) -> str:
    if item is None:
        return "none"
    return f"{item['data']!r} ({'no count' if item['count'] is None else item['count']})"
