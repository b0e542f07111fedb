"""Raw samples for a plot: the least and the greatest of each stretch of time, so that no peak is lost."""

import io
import math
from array import array
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any, Final

from gateway.model.timestamps import rfc3339
from gateway.raw import files, lines
from gateway.raw.damage import DamageLog
from gateway.raw.files import RawFile
from gateway.raw.lines import LineClock, LineRun
from gateway.timeseries.calendar import minutes_of
from gateway.timeseries.finite import finite

#: Samples that are gone through before somebody else may have the thread, and points that are given at a time.
_STEP: Final = 50_000
_POINTS: Final = 1000


#: Files ascend in time but where the clock was set back; by so many seconds, a plot is right all the same.
_SET_BACK: Final = 3600

_MICRO: Final = 1_000_000


class Plot:
    """The points of one sensor in a range of time.

    A line tells the second of a sample only; the samples of a second are taken to be spread over it, in their order.

    :param begin: of the range, aware.
    :param end: of the range, which is not in it.
    :param most: points; the range is cut into so many stretches of the same length, and those with samples are points.
    :param damage: log for damaged files.
    :param today: first day with files that are still growing.
    """

    def __init__(
        self,
        zone: tzinfo,
        begin: datetime,
        end: datetime,
        most: int,
        damage: DamageLog,
        today: date,
    ) -> None:
        self.begin = begin
        self.end = end
        self._zone = zone
        self._damage = damage
        self._today = today
        self._first = begin.astimezone(zone)
        # Integers: where a stretch ends must not hang on rounding.
        self._begin = _micro(begin)
        self._length = _micro(end) - self._begin
        self._most = most
        # Of each stretch by its number; packed, for a reader that is slow keeps them.
        self._least = array("d", [math.inf]) * most
        self._greatest = array("d", [-math.inf]) * most
        self._counts = array("q", [0]) * most
        #: The first stretch that has not been given.
        self._given = 0

    def points(self, its: Sequence[RawFile]) -> Generator[list[dict[str, Any]], None, None]:
        """The points, some at a time, ascending in time; an empty list is no end.

        :param its: the sensor's files, by day.
        :raises UnreadableFile: one cannot be read.
        """
        lines = 0
        for file in its:
            for second, samples in self._seconds(file):
                self._add(second, samples)
                lines += len(samples)
                if lines >= _STEP:
                    lines = 0
                    settled = (second - _SET_BACK * _MICRO - self._begin) * self._most // self._length
                    yield from self._give(settled)
        yield from self._give(self._most)

    def _seconds(self, file: RawFile) -> "Iterator[tuple[int, array[float]]]":
        """The samples of each second that lies in the range, and that second in microseconds since 1970."""
        midnight = datetime(file.day.year, file.day.month, file.day.day, tzinfo=self._zone)
        if file.day < self._first.date() or _micro(midnight) >= self._begin + self._length:
            return
        try:
            # Plotting an old day must not turn its damage into a current problem.
            scan = self._damage.scan(file.path, is_growing=file.day >= self._today, is_problem=False)
            with file.open() as content, scan as damaged:
                clock = LineClock(file.day, self._zone)
                offset = self._offset(file, content, midnight)
                for run in _whole_seconds(lines.runs(content, offset, damaged)):
                    second = _micro(clock.time(run.clock))
                    if second >= self._begin + self._length + _SET_BACK * _MICRO:
                        return
                    if self._begin - _MICRO < second < self._begin + self._length:
                        yield second, run.samples
        except files.ReadError as error:
            raise files.UnreadableFile(f"{file.path}: {error}") from error

    def _offset(self, file: RawFile, content: io.BufferedIOBase, midnight: datetime) -> int:
        # A compressed file must be read from its beginning anyway; a day on which the zone jumps does not ascend.
        if file.day != self._first.date() or file.compressed or minutes_of("day", midnight) != 24 * 60:
            return 0
        since = max(midnight, self._first - timedelta(seconds=_SET_BACK))
        return lines.offset_of(content, files.size_of(content), f"{since:%H:%M:%S},".encode())

    def _add(self, second: int, samples: "array[float]") -> None:
        count = len(samples)
        # The sample with an index came at second + index * _MICRO / count.
        index = max(0, -((second - self._begin) * count // _MICRO))
        behind_all = min(count, -((second - self._begin - self._length) * count // _MICRO))
        while index < behind_all:
            since = (second - self._begin) * count + index * _MICRO
            number = since * self._most // (self._length * count)
            until = (number + 1) * self._length * count - (second - self._begin) * count * self._most
            behind = min(behind_all, -(-until // (_MICRO * self._most)))
            values = finite(samples[index:behind])
            index = behind
            if values:
                # What the clock was set back over by more was given already; its peaks are not lost for that.
                self._put(min(max(number, self._given), self._most - 1), min(values), max(values), len(values))

    def _put(self, number: int, least: float, greatest: float, count: int) -> None:
        self._least[number] = min(self._least[number], least)
        self._greatest[number] = max(self._greatest[number], greatest)
        self._counts[number] += count

    def _give(self, settled: int) -> Iterator[list[dict[str, Any]]]:
        """The points before a number, which grow no more."""
        settled = min(settled, self._most)
        if settled <= self._given:
            # Whoever goes through the points may stop here.
            yield []
        while self._given < settled:
            begin, self._given = self._given, min(self._given + _POINTS, settled)
            yield [self._point(number) for number in range(begin, self._given) if self._counts[number]]

    def _point(self, number: int) -> dict[str, Any]:
        time = self._begin + number * self._length // self._most
        return {
            "time": rfc3339(datetime.fromtimestamp(time / _MICRO, self._zone), "milliseconds"),
            "min": self._least[number],
            "max": self._greatest[number],
            "count": self._counts[number],
        }


def _micro(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _whole_seconds(its: Iterator[LineRun]) -> Iterator[LineRun]:
    """Runs of which a block's end has made two are one again."""
    held: LineRun | None = None
    for run in its:
        if held is None:
            held = run
        elif held.clock == run.clock:
            held = LineRun(held.begin, run.end, run.clock, held.samples + run.samples)
        else:
            yield held
            held = run
    if held is not None:
        yield held
