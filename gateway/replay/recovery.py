"""Recovery of the open periods after a start, and closing of the periods that ended meanwhile.

Raw files are the journal. The store knows how many bytes of a sensor's file the rows of hours count; the samples after
them go through the same rollup as live ones.
"""

import contextlib
import io
import os
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, tzinfo
from functools import partial
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeAlias, TypeVar

from twisted.logger import Logger

from gateway.live.state import RECENT_UPDATES, LiveState
from gateway.model.entries import ClosedHour, ClosedPeriod, StoreEntry
from gateway.model.records import Update
from gateway.raw import files, lines
from gateway.raw.damage import DamageLog
from gateway.raw.files import RawFile
from gateway.raw.lines import Damaged, LineClock, LineRun
from gateway.replay.recent_updates import OpenFile, RecentUpdates, line_prefix
from gateway.runtime.clock import WallClock
from gateway.stats.rollup import Rollup
from gateway.store.interface import RollupProgress, SensorState, Store, StoreUnavailable
from gateway.store.writer import Writer
from gateway.timeseries.calendar import PERIODS, end_of, minutes_of, start_of

log = Logger()

T = TypeVar("T")

#: Calls a function with arguments in a thread, and returns an awaitable of its result.
InThread: TypeAlias = Callable[..., Awaitable[Any]]

#: Maximum files of a sensor to read at a start. More files without rows are not the result of a kill, and reading them
#: might take hours: ``cynow-gateway recompute`` does that.
_MAX_FILES: Final = 3


@dataclass(slots=True)
class Recovered:
    """The result of a recovery.

    :ivar entries: entries of periods that have ended without a row.
    :ivar updates: last updates of each sensor, oldest first.
    :ivar samples: number of samples that no row counted.
    """

    entries: list[StoreEntry] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    samples: int = 0


async def recover(
    recovery: "Recovery",
    in_thread: InThread,
    store: Store,
    live: LiveState,
    writer: Writer,
    clock: WallClock,
    remember: Callable[[str, Iterable[str]], None] = lambda machine, sensors: None,
) -> frozenset[str]:
    """Recover the state of the parts, and wait until the store has the periods that ended meanwhile.

    :param in_thread: runs blocking functions.
    :param remember: called with every machine that has stored data, and its sensors.
    :returns: machines whose state could not be recovered.
    :raises StoreUnavailable: the statistics position cannot be read.
    """
    start = clock.monotonic()
    now = clock.now()
    days = await in_thread(recovery.find_files, now)
    _remember(days, remember)
    progress = await store.rollup_progress(days, now)
    _remember([(state.machine, state.sensor) for state in progress.sensors], remember)
    recovered = await in_thread(recovery.run, progress, now)
    live.restore(recovered.updates)
    writer.add(recovered.entries)
    await writer.settled()
    log.info(
        "recovered {sensors} sensors in {seconds:.2f} s ({samples} samples re-read, {count} overdue periods closed)",
        sensors=len(progress.sensors),
        samples=recovered.samples,
        count=len(recovered.entries),
        seconds=clock.monotonic() - start,
    )
    with contextlib.suppress(StoreUnavailable):
        # Some machines have only anomalies.
        for machine in await store.machines():
            remember(machine, ())
    return progress.unreadable


def _remember(sensors: Iterable[tuple[str, str]], remember: Callable[[str, Iterable[str]], None]) -> None:
    for machine, group in groupby(sorted(sensors), itemgetter(0)):
        remember(machine, [sensor for _, sensor in group])


class Recovery:
    """Restoration of open periods from raw files. It blocks, so it runs in a thread.

    :param directory: directory of raw files.
    :param rollup: rollup that continues from there; not used elsewhere meanwhile.
    :param new_rollup: returns a new rollup with the same zone and modes.
    :param damage: log for damaged files.
    :param is_stopping: returns whether the gateway is stopping, so that the recovery may end early.
    """

    def __init__(
        self,
        directory: str,
        zone: tzinfo,
        rollup: Rollup,
        new_rollup: Callable[[], Rollup],
        damage: DamageLog,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._directory = directory
        self._zone = zone
        self._rollup = rollup
        self._recent_updates = RecentUpdates(zone, new_rollup)
        self._is_stopping = is_stopping
        self._damage = damage
        #: Files that may hold samples which no row counts, by machine and sensor.
        self._files: dict[tuple[str, str], list[RawFile]] = {}
        #: Sensors with further files, which are not read.
        self._with_more_files: set[tuple[str, str]] = set()
        #: Number of bytes that have been read of a raw file, by machine, sensor and day.
        self._read_bytes: dict[tuple[str, str, date], int] = {}

    def find_files(self, now: datetime) -> dict[tuple[str, str], list[date]]:
        """Find the files to read; return their days by machine and sensor, for the query of the store."""
        for machine in _read_or_log(partial(files.machines, self._directory)):
            found = _read_or_log(partial(files.raw_files, self._directory, machine))
            for sensor, group in groupby(sorted(found, key=attrgetter("sensor")), attrgetter("sensor")):
                raw_files = list(group)
                # A clock that was ahead may have left files of the future: they do not count as the last ones.
                until_today = bisect_right([file.day for file in raw_files], now.date())
                self._files[machine, sensor] = (
                    raw_files[:until_today][-_MAX_FILES:] + raw_files[until_today:][-_MAX_FILES:]
                )
                if until_today > _MAX_FILES:
                    self._with_more_files.add((machine, sensor))
        return {key: [file.day for file in raw_files] for key, raw_files in self._files.items()}

    def run(self, progress: RollupProgress, now: datetime) -> Recovered:
        """Recover all sensors.

        :param progress: statistics position of the store.
        """
        recovered = Recovered()
        states = {(state.machine, state.sensor): state for state in progress.sensors}
        overdue: list[ClosedPeriod] = []
        for key, state in states.items():
            # Compared as moments, since midnight may repeat.
            current = {
                (period, start)
                for period, start in state.open
                if start.timestamp() == start_of(period, now).timestamp()
            }
            mode = self._rollup.resume(*key, state.type, dict(current))
            overdue += [
                ClosedPeriod(period, *key, start, mode)
                for period, start in state.open
                if (period, start) not in current
            ]
        for machine in progress.unreadable:
            log.error(
                "machine {machine}: cannot read its database; today's statistics lack the samples from before this"
                " start: run cynow-gateway recompute for this day tomorrow",
                machine=machine,
            )
        for (machine, sensor), raw_files in self._files.items():
            if self._is_stopping():
                return Recovered()
            if machine not in progress.unreadable:
                state = states.get((machine, sensor), SensorState(machine, sensor))
                self._recover_sensor(state, raw_files, now, recovered)
        closed = self._rollup.advance(now)
        recovered.updates += closed.updates
        recovered.entries += map(self._with_raw_end, closed.entries)
        # Days before months, months before years: each is computed from the shorter ones.
        overdue.sort(key=_rank)
        recovered.entries += overdue
        return recovered

    def _recover_sensor(
        self, state: SensorState, raw_files: Sequence[RawFile], now: datetime, recovered: Recovered
    ) -> None:
        with contextlib.ExitStack() as stack:
            open_files = []
            for file in self._files_to_read(state, raw_files, now):
                with self._reading(file):
                    content = stack.enter_context(file.open())
                    size = files.size_of(content)
                    open_files.append(OpenFile(file, content, size, self._first_uncounted(state, file, content, size)))
            updates: list[Update] = []
            for open_file in open_files:
                with self._reading(open_file.file), self._damage.scan(open_file.file.path) as damaged:
                    key = state.machine, state.sensor, open_file.file.day
                    self._read_bytes[key] = open_file.begin
                    for time, run in self._timed_runs(state, open_file, damaged):
                        closed = self._rollup.replay(state.machine, state.sensor, time, run.samples)
                        updates += closed.updates
                        recovered.entries += map(self._with_raw_end, closed.entries)
                        recovered.samples += len(run.samples)
                        self._read_bytes[key] = run.end
            missing = RECENT_UPDATES - len(updates)
            if missing > 0 and open_files and open_files[-1].file.day >= now.date() - timedelta(days=1):
                with self._reading(open_files[-1].file):
                    updates[:0] = self._recent_updates.read(state, open_files, missing)
            recovered.updates += updates[-RECENT_UPDATES:]

    @contextlib.contextmanager
    def _reading(self, file: RawFile) -> Iterator[None]:
        """Log and report a file that cannot be read, so that the recovery continues with the next one."""
        try:
            yield
        except files.ReadError as error:
            log.error(
                "raw file {path}: cannot read it, so statistics lack its samples: {error}",
                machine=file.machine,
                sensor=file.sensor,
                path=file.path,
                error=error,
            )
            self._damage.unreadable(file.path, error)

    def _files_to_read(self, state: SensorState, raw_files: Sequence[RawFile], now: datetime) -> Sequence[RawFile]:
        """Return the files that may hold samples which no row counts."""
        if (state.machine, state.sensor) in self._with_more_files and not state.days:
            log.warn(
                "machine {machine}: statistics of sensor {sensor} may lack samples from before {day}: run cynow-gateway"
                " recompute for those days",
                machine=state.machine,
                sensor=state.sensor,
                day=raw_files[0].day,
            )
        # Rows of a day prove an earlier start, which has read the files from before that day.
        first = max(
            (file.day for file in raw_files if file.day in state.days and file.day <= now.date()), default=date.min
        )
        # A file that is old enough to be compressed was complete.
        return [
            file
            for file in raw_files
            if (file.day in state.days and not file.compressed) or (file.day not in state.days and file.day > first)
        ]

    def _first_uncounted(self, state: SensorState, file: RawFile, content: io.BufferedIOBase, size: int) -> int:
        """Return the offset of the first sample that no row counts."""
        mark = state.days.get(file.day)
        if mark is None:
            return 0
        end = end_of("hour", mark.last)
        counted = mark.raw_end
        if counted is not None and self._is_counted(file, content, size, counted, end):
            return counted
        # The row is of the old server, or the file has changed.
        if end.date() != file.day:
            return size
        if minutes_of("day", start_of("day", end)) == 24 * 60:
            return lines.offset_of(content, size, line_prefix(end))
        # The clock jumps on this day: the time of a line alone does not tell whether it came before the jump.
        clock = LineClock(file.day, self._zone)
        begins = (run.begin for run in lines.runs(content) if clock.time(run.clock).timestamp() >= end.timestamp())
        return next(begins, size)

    def _is_counted(self, file: RawFile, content: io.BufferedIOBase, size: int, counted: int, end: datetime) -> bool:
        """Return whether a file still holds the part that rows count, judging by the end of that part.

        :param counted: number of bytes that rows count.
        :param end: end of the last hour that has a row.
        """
        if counted > size:
            self._damage.missing(file.path, size, counted)
            return False
        self._report_damage_before(file, content, counted)
        if lines.begins_line(content, counted):
            last = lines.last_clock(content, counted)
            # After the first of two repeated hours the wall clock shows the same times again.
            bound = end + timedelta(hours=end.fold)
            # Otherwise another file has replaced the one that was counted.
            if last is None or bound.date() != file.day or last < line_prefix(bound):
                return True
        self._damage.changed(file.path, counted)
        return False

    def _report_damage_before(self, file: RawFile, content: io.BufferedIOBase, counted: int) -> None:
        """Report damage in the last part that rows count: rows may have reached the disk before the lines did."""
        if file.compressed:
            return
        begin = lines.nul_before(content, counted)
        if begin is not None:
            with self._damage.scan(file.path) as damaged:
                for run in lines.runs(content, begin, damaged):
                    if run.begin >= counted:
                        break

    def _timed_runs(
        self, state: SensorState, open_file: OpenFile, damaged: Damaged
    ) -> Iterator[tuple[datetime, LineRun]]:
        """Yield the lines that no row counts, and their times."""
        mark = state.days.get(open_file.file.day)
        clock = LineClock(
            open_file.file.day,
            self._zone,
            None if mark is None else end_of("hour", mark.last),
            second=self._is_second_hour(open_file),
        )
        for run in lines.runs(open_file.content, open_file.begin, damaged):
            yield clock.time(run.clock), run

    def _is_second_hour(self, open_file: OpenFile) -> bool:
        """Return whether repeated times are in the second hour although no line before them shows it.

        This happens if no sample came in the first of the two hours.
        """
        changed = datetime.fromtimestamp(os.stat(open_file.file.path).st_mtime, self._zone)
        if not changed.fold or changed.date() != open_file.file.day:
            return False
        runs = lines.runs(open_file.content, open_file.begin)
        return all(earlier.clock <= later.clock for earlier, later in pairwise(runs))

    def _with_raw_end(self, entry: ClosedHour | ClosedPeriod) -> StoreEntry:
        if isinstance(entry, ClosedHour):
            return replace(entry, raw_end=self._read_bytes.get((entry.machine, entry.sensor, entry.start.date())))
        return entry


def _rank(entry: ClosedPeriod) -> int:
    return PERIODS.index(entry.period)


def _read_or_log(read: Callable[[], Sequence[T]]) -> Sequence[T]:
    try:
        return read()
    except OSError as error:
        log.error("data.path: cannot read raw files: {error}", error=error)
        return []
