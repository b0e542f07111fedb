"""Points of a plot of raw samples: least and greatest sample of each interval, so that no peak is lost."""

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

#: Number of samples to read before another request may use the thread, and maximum points to return at a time.
_SAMPLES_PER_TURN: Final = 50_000
_MAX_POINTS_PER_TURN: Final = 1000

#: Maximum seconds by which the clock may have been set back, so that a file does not ascend in time.
_MAX_SET_BACK: Final = 3600

_MICRO: Final = 1_000_000


class Plot:
    """Plot of one sensor in a range of time.

    Lines hold the second of a sample only; the samples of a second are assumed to be spread evenly over it.

    :param begin: begin of the range, aware.
    :param end: end of the range, exclusive.
    :param max_points: maximum number of points. The range is divided into that many intervals of equal length, and each
        interval with samples is a point.
    :param damage: log for damaged files.
    :param today: first day with files that are still growing.
    """

    def __init__(
        self,
        zone: tzinfo,
        begin: datetime,
        end: datetime,
        max_points: int,
        damage: DamageLog,
        today: date,
    ) -> None:
        self.begin = begin
        self.end = end
        self._zone = zone
        self._damage = damage
        self._today = today
        self._first = begin.astimezone(zone)
        # Integers, so that the ends of intervals do not depend on rounding.
        self._begin = _micro(begin)
        self._length = _micro(end) - self._begin
        self._max_points = max_points
        # By number of the interval; arrays are compact, since a slow client keeps them for long.
        self._least = array("d", [math.inf]) * max_points
        self._greatest = array("d", [-math.inf]) * max_points
        self._counts = array("q", [0]) * max_points
        #: Number of the first interval that has not been returned.
        self._returned = 0

    def points(self, raw_files: Sequence[RawFile]) -> Generator[list[dict[str, Any]], None, None]:
        """Yield lists of points, ascending in time; an empty list is not the end.

        :param raw_files: files of the sensor, by day.
        :raises UnreadableFile: a file cannot be read.
        """
        lines = 0
        for file in raw_files:
            for second, samples in self._seconds(file):
                self._add(second, samples)
                lines += len(samples)
                if lines >= _SAMPLES_PER_TURN:
                    lines = 0
                    settled = (second - _MAX_SET_BACK * _MICRO - self._begin) * self._max_points // self._length
                    yield from self._complete_points(settled)
        yield from self._complete_points(self._max_points)

    def _seconds(self, file: RawFile) -> "Iterator[tuple[int, array[float]]]":
        """Yield each second of the range with samples, in microseconds since 1970, and its samples."""
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
                    if second >= self._begin + self._length + _MAX_SET_BACK * _MICRO:
                        return
                    if self._begin - _MICRO < second < self._begin + self._length:
                        yield second, run.samples
        except files.ReadError as error:
            raise files.UnreadableFile(f"{file.path}: {error}") from error

    def _offset(self, file: RawFile, content: io.BufferedIOBase, midnight: datetime) -> int:
        # A compressed file can only be read from its beginning; lines do not ascend on a day when clocks change.
        if file.day != self._first.date() or file.compressed or minutes_of("day", midnight) != 24 * 60:
            return 0
        since = max(midnight, self._first - timedelta(seconds=_MAX_SET_BACK))
        return lines.offset_of(content, files.size_of(content), f"{since:%H:%M:%S},".encode())

    def _add(self, second: int, samples: "array[float]") -> None:
        count = len(samples)
        # The sample with an index has the time second + index * _MICRO / count.
        index = max(0, -((second - self._begin) * count // _MICRO))
        end = min(count, -((second - self._begin - self._length) * count // _MICRO))
        while index < end:
            since = (second - self._begin) * count + index * _MICRO
            number = since * self._max_points // (self._length * count)
            until = (number + 1) * self._length * count - (second - self._begin) * count * self._max_points
            next_index = min(end, -(-until // (_MICRO * self._max_points)))
            values = finite(samples[index:next_index])
            index = next_index
            if values:
                # If the clock was set back by more, the point has been returned; the next one gets the peak.
                self._add_to_point(
                    min(max(number, self._returned), self._max_points - 1), min(values), max(values), len(values)
                )

    def _add_to_point(self, number: int, least: float, greatest: float, count: int) -> None:
        self._least[number] = min(self._least[number], least)
        self._greatest[number] = max(self._greatest[number], greatest)
        self._counts[number] += count

    def _complete_points(self, settled: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the points before a number, which get no more samples."""
        settled = min(settled, self._max_points)
        if settled <= self._returned:
            # Lets the caller pause here.
            yield []
        while self._returned < settled:
            begin, self._returned = self._returned, min(self._returned + _MAX_POINTS_PER_TURN, settled)
            yield [self._point(number) for number in range(begin, self._returned) if self._counts[number]]

    def _point(self, number: int) -> dict[str, Any]:
        time = self._begin + number * self._length // self._max_points
        return {
            "time": rfc3339(datetime.fromtimestamp(time / _MICRO, self._zone), "milliseconds"),
            "min": self._least[number],
            "max": self._greatest[number],
            "count": self._counts[number],
        }


def _micro(time: datetime) -> int:
    """Return the microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _whole_seconds(runs: Iterator[LineRun]) -> Iterator[LineRun]:
    """Join the two runs of a second that the end of a block has divided."""
    held: LineRun | None = None
    for run in runs:
        if held is None:
            held = run
        elif held.clock == run.clock:
            held = LineRun(held.begin, run.end, run.clock, held.samples + run.samples)
        else:
            yield held
            held = run
    if held is not None:
        yield held
