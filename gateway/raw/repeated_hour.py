"""Assignment of lines to the two occurrences of a repeated hour, in files whose lines do not show it."""

import io
import math
from array import array
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from datetime import date, datetime, tzinfo
from itertools import pairwise

from gateway.raw import lines
from gateway.raw.lines import Damaged, LineClock, LineRun
from gateway.timeseries.finite import finite


def timed_runs(
    content: io.BufferedIOBase,
    day: date,
    zone: tzinfo,
    first_counts: MutableMapping[int, int],
    damaged: Damaged,
) -> Iterator[tuple[datetime, LineRun]]:
    """Yield the lines of a whole file, and their times.

    :param first_counts: number of finite samples in the first occurrence, if known, by repeated hour. It divides the
        lines of the hour if no line is earlier than the one before it. Samples are subtracted from it as they are read,
        since there may be another file of the day.
    :param damaged: called with each piece that does not consist of sample lines.
    :raises ReadError: the file cannot be read.
    """
    distinct_hours = _distinct_hours(content) if first_counts else set()
    clock = LineClock(day, zone)
    for run in lines.runs(content, 0, damaged):
        time = clock.time(run.clock)
        again = time.replace(fold=1)
        count = None if time.fold or time.hour in distinct_hours else first_counts.get(time.hour)
        if count is not None and again.utcoffset() != time.utcoffset():
            head, rest = _split(run.samples, count)
            first_counts[time.hour] = count - len(finite(head))
            if head:
                yield time, replace(run, samples=head)
            if not rest:
                continue
            time, run = again, replace(run, samples=rest)
            clock = LineClock(day, zone, after=again)
        yield time, run


def _distinct_hours(content: io.BufferedIOBase) -> set[int]:
    """Return the hours in which a line is earlier than the one before it, so that lines show the second occurrence."""
    return {
        hour
        for earlier, later in pairwise(lines.runs(content))
        if later.clock < earlier.clock
        for hour in range(int(later.clock[:2]), int(earlier.clock[:2]) + 1)
    }


def _split(samples: "array[float]", count: int) -> "tuple[array[float], array[float]]":
    """Split samples after the given number of finite ones."""
    index = 0
    while count > 0 and index < len(samples):
        count -= math.isfinite(samples[index])
        index += 1
    return samples[:index], samples[index:]
