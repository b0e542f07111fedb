"""After a start: open periods are made again from raw files, and those that ended meanwhile are closed.

Raw files are the journal. The store knows how much of each sensor's day is in rows of hours; what a file holds beyond
goes through the same rollup as if it came now.
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
from gateway.runtime.clock import WallClock
from gateway.stats.rollup import Rollup
from gateway.store.interface import RollupProgress, SensorState, Store, StoreUnavailable
from gateway.store.writer import Writer
from gateway.timeseries.calendar import PERIODS, end_of, minutes_of, start_of

log = Logger()

#: Maximum further bytes to search backwards for the last updates of a sensor that sends with gaps.
_FURTHER_BACK: Final = 4 * 1024 * 1024

T = TypeVar("T")

#: Calls a function with arguments in a thread; fires with what it gives.
InThread: TypeAlias = Callable[..., Awaitable[Any]]

#: Files of a sensor that are read at a start, the last ones. More have been left without rows by something else than a
#: kill, and reading them might take hours: that is what ``python -m gateway.recompute`` is for.
_FILES: Final = 3


@dataclass(slots=True)
class Recovered:
    """The result of a recovery.

    :ivar entries: entries of periods that have ended and have no row.
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
    """Let everything be as it was before; fires when the store has what has ended since.

    :param in_thread: runs what blocks.
    :param remember: called with every machine that has stored data, and its sensors.
    :returns: machines of which nothing could be recovered.
    :raises StoreUnavailable: the store cannot say what it has.
    """
    began = clock.monotonic()
    now = clock.now()
    days = await in_thread(recovery.look, now)
    _remember(days, remember)
    standing = await store.rollup_progress(days, now)
    _remember([(state.machine, state.sensor) for state in standing.sensors], remember)
    recovered = await in_thread(recovery.run, standing, now)
    live.restore(recovered.updates)
    writer.add(recovered.entries)
    await writer.settled()
    log.info(
        "{sensors} sensors are as they were: {samples} samples read again, {count} periods ended, in {seconds:.2f} s",
        sensors=len(standing.sensors),
        samples=recovered.samples,
        count=len(recovered.entries),
        seconds=clock.monotonic() - began,
    )
    with contextlib.suppress(StoreUnavailable):
        # Some machines have only anomalies.
        for machine in await store.machines():
            remember(machine, ())
    return standing.unreadable


def _remember(sensors: Iterable[tuple[str, str]], remember: Callable[[str, Iterable[str]], None]) -> None:
    for machine, its in groupby(sorted(sensors), itemgetter(0)):
        remember(machine, [sensor for _, sensor in its])


class Recovery:
    """Restoration of open periods from raw files. It blocks, so it runs in a thread.

    :param directory: ``data.path``.
    :param rollup: rollup that continues from there; not used elsewhere meanwhile.
    :param scratch: returns a new rollup with the same zone and modes.
    :param damage: log for damaged files.
    :param stopped: returns whether the gateway is stopping, so that the recovery may end early.
    """

    def __init__(
        self,
        directory: str,
        zone: tzinfo,
        rollup: Rollup,
        scratch: Callable[[], Rollup],
        damage: DamageLog,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._directory = directory
        self._zone = zone
        self._rollup = rollup
        self._scratch = scratch
        self._stopped = stopped
        self._damage = damage
        #: By machine and sensor: the files that may hold samples which are in no row.
        self._files: dict[tuple[str, str], list[RawFile]] = {}
        #: Those that have more, which are not read.
        self._have_more: set[tuple[str, str]] = set()
        #: By machine, sensor and day: how many bytes of the raw file have been read.
        self._read: dict[tuple[str, str, date], int] = {}

    def look(self, now: datetime) -> dict[tuple[str, str], list[date]]:
        """Look for files; the days that the store must be asked about, by machine and sensor."""
        for machine in _read_or_none(partial(files.machines, self._directory)):
            found = _read_or_none(partial(files.raw_files, self._directory, machine))
            for sensor, group in groupby(sorted(found, key=attrgetter("sensor")), attrgetter("sensor")):
                its = list(group)
                # A clock that was ahead may have left files of the future: these must not stand for the last ones.
                behind = bisect_right([file.day for file in its], now.date())
                self._files[machine, sensor] = its[:behind][-_FILES:] + its[behind:][-_FILES:]
                if behind > _FILES:
                    self._have_more.add((machine, sensor))
        return {key: [file.day for file in its] for key, its in self._files.items()}

    def run(self, standing: RollupProgress, now: datetime) -> Recovered:
        """Go through all sensors.

        :param standing: what the store has of them.
        """
        recovered = Recovered()
        known = {(state.machine, state.sensor): state for state in standing.sensors}
        over: list[ClosedPeriod] = []
        for key, state in known.items():
            # Moments, for midnight may come twice.
            current = {each for each in state.open if each[1].timestamp() == start_of(each[0], now).timestamp()}
            mode = self._rollup.resume(*key, state.type, dict(current))
            over += [
                ClosedPeriod(period, *key, start, mode)
                for period, start in state.open
                if (period, start) not in current
            ]
        for machine in standing.unreadable:
            log.error(
                "{machine}: its database cannot be read; today's statistics lack what came before this start, until"
                " python -m gateway.recompute makes them again tomorrow",
                machine=machine,
            )
        for (machine, sensor), its in self._files.items():
            if self._stopped():
                return Recovered()
            if machine not in standing.unreadable:
                self._sensor(known.get((machine, sensor), SensorState(machine, sensor)), its, now, recovered)
        ended = self._rollup.advance(now)
        recovered.updates += ended.updates
        recovered.entries += map(self._with_end, ended.entries)
        # Days before months, months before years: each is made of those.
        over.sort(key=_rank)
        recovered.entries += over
        return recovered

    def _sensor(self, state: SensorState, its: Sequence[RawFile], now: datetime, recovered: Recovered) -> None:
        with contextlib.ExitStack() as opened:
            pieces = []
            for file in self._uncounted(state, its, now):
                with self._told(file):
                    content = opened.enter_context(file.open())
                    size = files.size_of(content)
                    pieces.append(_Piece(file, content, size, self._begin(state, file, content, size)))
            updates: list[Update] = []
            for piece in pieces:
                with self._told(piece.file), self._damage.scan(piece.file.path) as damaged:
                    key = state.machine, state.sensor, piece.file.day
                    self._read[key] = piece.begin
                    for time, run in self._timed(state, piece, damaged):
                        ended = self._rollup.replay(state.machine, state.sensor, time, run.samples)
                        updates += ended.updates
                        recovered.entries += map(self._with_end, ended.entries)
                        recovered.samples += len(run.samples)
                        self._read[key] = run.end
            missing = RECENT_UPDATES - len(updates)
            if missing > 0 and pieces and pieces[-1].file.day >= now.date() - timedelta(days=1):
                with self._told(pieces[-1].file):
                    updates[:0] = self._recent(state, pieces, missing)
            recovered.updates += updates[-RECENT_UPDATES:]

    @contextlib.contextmanager
    def _told(self, file: RawFile) -> Iterator[None]:
        """Log a file that cannot be read, and go on with the next one."""
        try:
            yield
        except files.ReadError as error:
            log.error(
                "{path} cannot be read, and its samples are in no statistic: {error}",
                machine=file.machine,
                sensor=file.sensor,
                path=file.path,
                error=error,
            )
            self._damage.unreadable(file.path, error)

    def _uncounted(self, state: SensorState, its: Sequence[RawFile], now: datetime) -> Sequence[RawFile]:
        """The files that may hold samples which are in no row."""
        if (state.machine, state.sensor) in self._have_more and not state.days:
            log.warn(
                "{machine}/{sensor}: samples before {day} may be in raw files only;"
                " python -m gateway.recompute makes statistics of them",
                machine=state.machine,
                sensor=state.sensor,
                day=its[0].day,
            )
        # Behind a day that has rows, a start has been that read what there was before it.
        first = max((file.day for file in its if file.day in state.days and file.day <= now.date()), default=date.min)
        # What is old enough to be compressed was complete.
        return [
            file
            for file in its
            if (file.day in state.days and not file.compressed) or (file.day not in state.days and file.day > first)
        ]

    def _begin(self, state: SensorState, file: RawFile, content: io.BufferedIOBase, size: int) -> int:
        """Where the samples begin that are in no row."""
        mark = state.days.get(file.day)
        if mark is None:
            return 0
        end = end_of("hour", mark.last)
        counted = mark.raw_end
        if counted is not None and self._is_counted(file, content, size, counted, end):
            return counted
        # A row of the old server, or a file that is not what it was.
        if end.date() != file.day:
            return size
        if minutes_of("day", start_of("day", end)) == 24 * 60:
            return lines.offset_of(content, size, _clock_of(end))
        # The clock jumps on this day: times alone do not tell the lines before it from those behind it.
        clock = LineClock(file.day, self._zone)
        found = (run.begin for run in lines.runs(content) if clock.time(run.clock).timestamp() >= end.timestamp())
        return next(found, size)

    def _is_counted(self, file: RawFile, content: io.BufferedIOBase, size: int, counted: int, end: datetime) -> bool:
        """Return whether a file still holds the part that rows count, judging by the end of that part.

        :param counted: number of bytes that rows count.
        :param end: end of the last hour that has a row.
        """
        if counted > size:
            self._damage.missing(file.path, size, counted)
            return False
        self._look_before(file, content, counted)
        if lines.begins_line(content, counted):
            last = lines.last_clock(content, counted)
            # After the first of two repeated hours the wall clock shows the same times again.
            bound = end + timedelta(hours=end.fold)
            # Otherwise another file has replaced the one that was counted.
            if last is None or bound.date() != file.day or last < _clock_of(bound):
                return True
        self._damage.changed(file.path, counted)
        return False

    def _look_before(self, file: RawFile, content: io.BufferedIOBase, counted: int) -> None:
        """Report damage in the last part that rows count: rows may have reached the disk before the lines did."""
        if file.compressed:
            return
        begin = lines.nul_before(content, counted)
        if begin is not None:
            with self._damage.scan(file.path) as damaged:
                for run in lines.runs(content, begin, damaged):
                    if run.begin >= counted:
                        break

    def _timed(self, state: SensorState, piece: "_Piece", damaged: Damaged) -> Iterator[tuple[datetime, LineRun]]:
        """Read the lines that no row counts, and their times."""
        mark = state.days.get(piece.file.day)
        clock = LineClock(
            piece.file.day,
            self._zone,
            None if mark is None else end_of("hour", mark.last),
            second=self._is_second(piece),
        )
        for run in lines.runs(piece.content, piece.begin, damaged):
            yield clock.time(run.clock), run

    def _is_second(self, piece: "_Piece") -> bool:
        """Whether times that the wall clock shows twice are the second ones, though no line before them says so.

        So it is where nothing came in the first of the two hours.
        """
        changed = datetime.fromtimestamp(os.stat(piece.file.path).st_mtime, self._zone)
        if not changed.fold or changed.date() != piece.file.day:
            return False
        found = lines.runs(piece.content, piece.begin)
        return all(earlier.clock <= later.clock for earlier, later in pairwise(found))

    def _recent(self, state: SensorState, pieces: "Sequence[_Piece]", missing: int) -> list[Update]:
        """The last updates whose samples are in rows already, so many where there are."""
        updates: list[Update] = []
        for piece in reversed(pieces):
            if len(updates) < missing:
                updates[:0] = self._before(state, piece, missing - len(updates))
        return updates

    def _before(self, state: SensorState, piece: "_Piece", missing: int) -> list[Update]:
        """The last updates of one file whose samples are in rows already."""
        last = lines.last_clock(piece.content, piece.begin)
        if last is None:
            return []
        until = LineClock(piece.file.day, self._zone).time(last)
        updates: list[Update] = []
        for minutes in (missing, 6 * missing, 24 * 60):
            since = until.replace(second=0) - timedelta(minutes=minutes - 1)
            begin = 0
            if since.date() == piece.file.day:
                begin = lines.offset_of(piece.content, piece.begin, _clock_of(since))
            if updates and piece.begin - begin > _FURTHER_BACK:
                break
            updates = self._updates(state, piece, begin)
            if len(updates) >= missing or begin == 0:
                break
        return updates

    def _updates(self, state: SensorState, piece: "_Piece", begin: int) -> list[Update]:
        """The updates of what is in rows already, from some byte on."""
        scratch = self._scratch()
        scratch.resume(state.machine, state.sensor, state.type, {})
        clock = LineClock(piece.file.day, self._zone)
        updates: list[Update] = []
        time = None
        for run in lines.runs(piece.content, begin):
            if run.end > piece.begin:
                break
            time = clock.time(run.clock)
            updates += scratch.replay(state.machine, state.sensor, time, run.samples).updates
        # Rows end where an hour does, and so does their last minute.
        return updates if time is None else updates + scratch.advance(time + timedelta(days=1)).updates

    def _with_end(self, entry: ClosedHour | ClosedPeriod) -> StoreEntry:
        if isinstance(entry, ClosedHour):
            return replace(entry, raw_end=self._read.get((entry.machine, entry.sensor, entry.start.date())))
        return entry


@dataclass(frozen=True, slots=True)
class _Piece:
    """An open file.

    :ivar size: in bytes, decompressed.
    :ivar begin: where the samples begin that are in no row.
    """

    file: RawFile
    content: io.BufferedIOBase
    size: int
    begin: int


def _rank(end: ClosedPeriod) -> int:
    return PERIODS.index(end.period)


def _clock_of(time: datetime) -> bytes:
    """How a line of this time begins."""
    return f"{time:%H:%M:%S},".encode()


def _read_or_none(read: Callable[[], Sequence[T]]) -> Sequence[T]:
    try:
        return read()
    except OSError as error:
        log.error("raw files cannot be read: {error}", error=error)
        return []
