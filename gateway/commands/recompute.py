"""Make statistics of past days again from raw files: ``python -m gateway.recompute --from DAY [--to DAY]``.

The gateway may run meanwhile: the day that is not over is left to it.
"""

import argparse
import contextlib
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from gateway.config.loader import ConfigError, load
from gateway.config.settings import Settings
from gateway.model.entries import ClosedHour, ClosedPeriod, StoreEntry
from gateway.model.timestamps import rfc3339, wall_time
from gateway.raw import files
from gateway.raw.damage import MAX_FILES, DamageLog
from gateway.raw.files import RawFile
from gateway.raw.repeated_hour import timed_runs
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.metrics import Counters
from gateway.stats.rollup import Rollup
from gateway.store.interface import MachineDamaged, MeansQuery, PageRequest, Store, StoreUnavailable
from gateway.store.postgres.command_store import CommandPostgresStore
from gateway.store.rows import detail_of
from gateway.store.spool.spool import Spool
from gateway.store.sqlite.store import SqliteStore
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import PERIODS, end_of, minutes_of, start_of

#: Maximum bytes of rows that wait for PostgreSQL.
_SPOOL_BYTES: Final = 1024 * 1024 * 1024

#: How often a store that somebody has locked is asked again.
_TRIES: Final = 5

#: What one item is told from another by: its period, and its start with the offset from UTC.
ItemKey = tuple[str, str]

#: By day and hour that comes twice: how many samples the first of the two has.
FirstCounts = dict[date, dict[int, int]]


@dataclass(frozen=True, slots=True)
class RecomputeJob:
    """One sensor and its files of the days that were asked for."""

    machine: str
    sensor: str
    mode: str
    its: Sequence[RawFile]


class Recompute:
    """Makes statistics of sensors again.

    :param write: whether rows are changed; else only differences are told.
    :param force: whether a row that counts more samples than the raw files hold is changed too.
    :param progress: counts bytes of raw files.
    :param damage: log for damaged files.
    :ivar outcomes: how many rows were new, different, as they were, or kept.
    :ivar problems: files that cannot be read, a line each.
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
        """One sensor: read, compare, write, tell.

        :raises StoreUnavailable: the store does not take it.
        """
        hours = self._hours(job, await self._first_counts(job))
        if not hours:
            return
        first, last = hours[0].start, hours[-1].start
        before = await self._items(job, first, last)
        if not self._force:
            hours = [hour for hour in hours if not self._lacks(hour, before)]
        if self._write_rows:
            await self._write([*hours, *self._longer(job, hours)])
            after = await self._items(job, first, last)
        else:
            after = {**before, **{_key_of(hour): _item(hour, self._clock.zone) for hour in hours}}
        for key in sorted(after.keys() | before.keys(), key=_order):
            self._compare(job, key, before.get(key), after.get(key))

    async def _first_counts(self, job: RecomputeJob) -> FirstCounts:
        """Of hours that come twice, and whose second one has a row: how many samples that of the first one counts."""
        found: FirstCounts = {}
        zone = self._clock.zone
        for day in {file.day for file in job.its}:
            if minutes_of("day", datetime(day.year, day.month, day.day, tzinfo=zone)) <= 24 * 60:
                continue
            page = await self._store.means(MeansQuery("hour", job.machine, day, day, job.sensor, detail=True))
            counts = {}
            for item in page.items:
                if item["start"] is not None:
                    start = datetime.fromisoformat(item["start"]).astimezone(zone)
                    counts[start.hour, start.fold] = item["count"] or 0
            found[day] = {hour: counts.get((hour, 0), 0) for hour, fold in counts if fold}
        return found

    def _hours(self, job: RecomputeJob, first_counts: FirstCounts) -> list[ClosedHour]:
        """The hours that the files hold, each once; none of a day of which a file cannot be read."""
        whole: dict[float, ClosedHour] = {}
        broken = set()
        for file in job.its:
            try:
                ended = self._hours_of(job, file, first_counts)
            except files.ReadError as error:
                broken.add(file.day)
                self.problems.append(f"{file.path} cannot be read, and its day is left as it is: {error}")
                continue
            for entry in ended:
                # It is there already where the clock was set back.
                found = whole.setdefault(
                    entry.start.timestamp(),
                    ClosedHour(job.machine, job.sensor, entry.start, Bucket(), job.mode, replaces=True),
                )
                # An hour that lacks samples beyond a double is better than none.
                with contextlib.suppress(OverflowError):
                    found.bucket.merge(entry.bucket)
        return [whole[start] for start in sorted(whole) if whole[start].start.date() not in broken]

    def _hours_of(self, job: RecomputeJob, file: RawFile, first_counts: FirstCounts) -> list[ClosedHour]:
        rollup = Rollup(self._clock.zone, {"": job.mode})
        rollup.resume(job.machine, job.sensor, "", {})
        ended = []
        read = 0
        try:
            with file.open() as content, self._damage.scan(file.path) as damaged:
                counts = first_counts.get(file.day, {})
                for time, run in timed_runs(content, file.day, self._clock.zone, counts, damaged):
                    ended += rollup.replay(job.machine, job.sensor, time, run.samples).entries
                    if not file.compressed and run.end - read > 1 << 20:
                        self._progress.update(run.end - read)
                        read = run.end
        finally:
            self._progress.update(_size(file) - read)
        # Today is not among the days, so that by tomorrow everything is over.
        ended += rollup.advance(self._clock.now() + timedelta(days=1)).entries
        return [entry for entry in ended if isinstance(entry, ClosedHour)]

    def _longer(self, job: RecomputeJob, hours: Sequence[ClosedHour]) -> Iterator[ClosedPeriod]:
        """The days, months and years over which these hours have an influence, and which are over."""
        now = self._clock.now()
        for period in PERIODS[1:]:
            for start in dict.fromkeys(start_of(period, hour.start) for hour in hours):
                if end_of(period, start) <= now:
                    yield ClosedPeriod(period, job.machine, job.sensor, start, job.mode, replaces=True)

    def _lacks(self, hour: ClosedHour, before: dict[ItemKey, dict[str, Any]]) -> bool:
        """Whether the raw files hold less than the row that there is."""
        found = before.get(_key_of(hour))
        if found is None or found["count"] is None or found["count"] <= hour.bucket.count:
            return False
        self.outcomes["kept"] += 1
        self._tell(
            f"{hour.machine} {hour.sensor} hour {found['time']}: kept, for the raw files hold"
            f" {hour.bucket.count} of its {found['count']} samples (--force)"
        )
        return True

    async def _items(self, job: RecomputeJob, first: datetime, last: datetime) -> dict[ItemKey, dict[str, Any]]:
        """The rows of this sensor for all periods that lie in this range or have a part of it."""
        found: dict[ItemKey, dict[str, Any]] = {}
        for period in PERIODS:
            begin, end = start_of(period, first).date(), last.date()
            query = MeansQuery(period, job.machine, begin, end, job.sensor, detail=True)
            page = None
            while page is None or page.after is not None:
                page = await self._store.means(query, PageRequest(None if page is None else page.after))
                for item in page.items:
                    found[period, item["start"] or self._start_of(item["time"])] = item
        return found

    def _start_of(self, time: str) -> str:
        """The start of a row of the old server, which has kept no offset."""
        return _moment(datetime.fromisoformat(time).replace(tzinfo=self._clock.zone))

    async def _write(self, entries: Sequence[StoreEntry]) -> None:
        for _ in range(_TRIES):
            entries = await self._store.write(entries)
            if not entries:
                return
        raise StoreUnavailable("it does not take the rows: somebody has locked it, or it must not be written")

    def _compare(
        self, job: RecomputeJob, key: ItemKey, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        if before == after:
            self.outcomes["as they were"] += 1
            return
        self.outcomes["new" if before is None else "different"] += 1
        time = (after or before or {})["time"]
        self._tell(f"{job.machine} {job.sensor} {key[0]} {time}: {_said(before)} -> {_said(after)}")

    def _tell(self, line: str) -> None:
        # Above the progress bar, where there is one.
        self._progress.write(line, file=sys.stdout)


def _order(key: ItemKey) -> tuple[int, datetime]:
    period, start = key
    return PERIODS.index(period), datetime.fromisoformat(start)


def _key_of(hour: ClosedHour) -> ItemKey:
    return "hour", _moment(hour.start)


def _moment(start: datetime) -> str:
    """A start as an item tells it; one that the wall clock skips is the moment of the skip."""
    return rfc3339(datetime.fromtimestamp(start.timestamp(), start.tzinfo))


def _item(hour: ClosedHour, zone: tzinfo) -> dict[str, Any]:
    """The item that the row of an hour would be."""
    return {
        "name": f"{hour.sensor}_hour_avg",
        "time": wall_time(hour.start),
        "data": hour.bucket.mean(hour.mode),
        **detail_of("hour", hour.start.timestamp(), hour.bucket, zone),
    }


def _size(file: RawFile) -> int:
    """Of a file on the disk; nothing where it has been compressed or removed meanwhile."""
    try:
        return os.stat(file.path).st_size
    except OSError:
        return 0


def _said(item: dict[str, Any] | None) -> str:
    if item is None:
        return "none"
    return f"{item['data']!r} ({'no count' if item['count'] is None else item['count']})"


def day(text: str) -> date:
    """A day of the command line; argparse names this function where it is none."""
    return date.fromisoformat(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.recompute",
        description="Make statistics of past days again from raw files, and tell each row that differs. The gateway may"
        " run meanwhile; the day that is not over is left to it.",
        epilog="Days, months and years are made of hours that are written, so --dry-run tells of hours only. The exit"
        " status is 1 where a file could not be read or is damaged, or there was nothing to do.",
    )
    parser.add_argument("--config", type=Path, help="the gateway's configuration (default: every default)")
    parser.add_argument("--from", dest="first", type=day, required=True, metavar="DAY", help="YYYY-MM-DD")
    parser.add_argument("--to", dest="last", type=day, metavar="DAY", help="the last day (default: the first)")
    parser.add_argument("--machine", help="this machine only")
    parser.add_argument("--sensor", help="this sensor only")
    parser.add_argument("--type", help="of sensors whose type the gateway has never been told")
    parser.add_argument("--dry-run", action="store_true", help="tell differences of hours, and write nothing")
    parser.add_argument("--force", action="store_true", help="also where the raw files hold fewer samples than a row")
    return parser.parse_args(arguments)


def _jobs(
    options: argparse.Namespace, settings: Settings, types: dict[tuple[str, str], str | None]
) -> list[RecomputeJob]:
    jobs = []
    for machine in files.machines(settings.data.path):
        if options.machine in (None, machine):
            by_sensor: dict[str, list[RawFile]] = {}
            for file in files.raw_files(settings.data.path, machine):
                if options.first <= file.day <= options.last and options.sensor in (None, file.sensor):
                    by_sensor.setdefault(file.sensor, []).append(file)
            for sensor, its in sorted(by_sensor.items()):
                kind = types.get((machine, sensor)) or options.type
                if kind is None:
                    sys.stderr.write(f"{machine} {sensor}: its type is not known; its mean is that of x (--type)\n")
                mode = settings.stat.get((kind or "").lower(), "REAL")
                jobs.append(RecomputeJob(machine, sensor, mode, its))
    return jobs


async def _run(reactor: Any, options: argparse.Namespace, settings: Settings) -> None:
    clock = WallClock(zone_named(settings.timezone))
    yesterday = clock.now().date() - timedelta(days=1)
    options.last = min(options.last or options.first, yesterday)
    if options.first > options.last:
        raise SystemExit("recompute: --from is after --to, or that day is not over")
    counters = Counters()
    store = _store(reactor, clock, counters, settings)
    try:
        store.open()
    except StoreUnavailable as error:
        if settings.database.url is not None:
            raise SystemExit(f"recompute: database.url: {error}") from error
        raise SystemExit(f"recompute: database.path: {settings.database.path}, below {Path.cwd()}: {error}") from error
    try:
        standing = await store.rollup_progress({}, clock.now())
        types = {(state.machine, state.sensor): state.type for state in standing.sensors}
        jobs = _jobs(options, settings, types)
        size = sum(_size(file) for job in jobs for file in job.its)
        damage = DamageLog(clock, counters, MAX_FILES)
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
            recompute = Recompute(
                store, clock, write=not options.dry_run, force=options.force, progress=progress, damage=damage
            )
            for job in jobs:
                lost = _lost(counters)
                try:
                    await recompute.run(job)
                except MachineDamaged as error:
                    recompute.problems.append(f"the database of {job.machine} cannot be read: {error}")
                if _lost(counters) > lost:
                    recompute.problems.append(f"the database of {job.machine} cannot be written")
    except (StoreUnavailable, OSError) as error:
        raise SystemExit(f"recompute: {error}") from error
    finally:
        await store.close()
    # Statistics are made from the undamaged lines.
    recompute.problems += damage.problems
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(recompute.outcomes.items()))
    sys.stdout.write(f"{len(jobs)} sensors; rows: {counts or 'none'}\n")
    if not jobs:
        recompute.problems.append(f"there are no raw files of these days and this choice in {settings.data.path}")
    for problem in recompute.problems:
        sys.stderr.write(f"recompute: {problem}\n")
    if recompute.problems:
        raise SystemExit(1)


def _store(reactor: Any, clock: WallClock, counters: Counters, settings: Settings) -> Store:
    database = settings.database
    if database.url is None:
        return SqliteStore(reactor, clock, counters, database.path, gives_numbers=False)
    name = settings.gateway.name or platform.node()
    return CommandPostgresStore(
        reactor,
        clock,
        counters,
        lambda directory: Spool(reactor, clock, counters, directory, _SPOOL_BYTES),
        database.url,
        f"{name} recompute",
    )


def _lost(counters: Counters) -> float:
    """How many rows the store has given up."""
    return counters.registry.get_sample_value("cynow_store_lost_total") or 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _options(arguments)
    try:
        settings = load(options.config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"recompute: {error}") from error
    react(lambda reactor: Deferred.fromCoroutine(_run(reactor, options, settings)))
