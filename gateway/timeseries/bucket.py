"""Buckets: aggregates of the samples of a period."""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from typing import Final

from gateway.timeseries.sums import Sums, exact_sum, two_sum

#: Minimum samples for which numpy is faster; its calls take as long as 80 samples without it.
MIN_NUMPY_SAMPLES: Final = 256


@dataclass(slots=True)
class Bucket:
    """Count, sums and extremes of finite samples; two buckets can be merged into one.

    Each sum is held in two doubles (:func:`gateway.timeseries.sums.two_sum`), so that a mean over a year is as exact as
    one over a minute.

    :ivar count: number of samples.
    :ivar minutes: number of minutes with samples.
    :ivar total: sum of the samples; ``total_rest`` is its rounding error.
    :ivar magnitudes: sum of the magnitudes of the samples.
    :ivar squares: sum of the squares of the samples; infinite if it exceeds a double.
    :ivar least: least sample; ``least_at`` is its first time of arrival by the wall clock, ``2025-12-18 10:11:12``.
    :ivar greatest: greatest sample; ``greatest_at`` is its first time of arrival.
    """

    count: int = 0
    minutes: int = 0
    total: float = 0.0
    total_rest: float = 0.0
    magnitudes: float = 0.0
    magnitudes_rest: float = 0.0
    squares: float = 0.0
    squares_rest: float = 0.0
    least: float = math.inf
    least_at: str = ""
    greatest: float = -math.inf
    greatest_at: str = ""

    @classmethod
    def of(cls, samples: "array[float]", time_of: Callable[[int], str]) -> "Bucket":
        """Return the bucket of samples of one minute.

        :param samples: samples, at least one, all finite.
        :param time_of: returns the time of arrival of the sample with an index.
        :raises OverflowError: the sum exceeds a double.
        """
        sums = _sums(samples)
        return cls(
            count=len(samples),
            minutes=1,
            total=sums.total,
            total_rest=sums.total_rest,
            magnitudes=sums.magnitudes,
            magnitudes_rest=sums.magnitudes_rest,
            squares=sums.squares,
            least=samples[sums.least_index],
            least_at=time_of(sums.least_index),
            greatest=samples[sums.greatest_index],
            greatest_at=time_of(sums.greatest_index),
        )

    def merge(self, other: "Bucket") -> None:
        """Add the samples of a later bucket.

        :raises OverflowError: a sum exceeds a double; the bucket is unchanged then.
        """
        total, total_rest = two_sum(self.total, other.total)
        magnitudes, magnitudes_rest = two_sum(self.magnitudes, other.magnitudes)
        # The sum of the magnitudes is at least as large as that of the samples.
        if not math.isfinite(magnitudes):
            raise OverflowError("a sum exceeds a double")
        squares, squares_rest = two_sum(self.squares, other.squares)
        self.count += other.count
        self.minutes += other.minutes
        self.total = total
        self.total_rest += other.total_rest + total_rest
        self.magnitudes = magnitudes
        self.magnitudes_rest += other.magnitudes_rest + magnitudes_rest
        self.squares = squares
        self.squares_rest = self.squares_rest + other.squares_rest + squares_rest if math.isfinite(squares) else 0.0
        if other.least < self.least:
            self.least, self.least_at = other.least, other.least_at
        if other.greatest > self.greatest:
            self.greatest, self.greatest_at = other.greatest, other.greatest_at

    def mean(self, mode: str) -> float:
        """Return the mean.

        :param mode: ``REAL`` for the mean of the samples, ``ABS`` for that of their magnitudes.
        :raises ZeroDivisionError: the bucket is empty.
        """
        if mode == "ABS":
            return (self.magnitudes + self.magnitudes_rest) / self.count
        return (self.total + self.total_rest) / self.count

    def rms(self) -> float | None:
        """Return the root of the mean square; ``None`` if the sum of the squares exceeds a double."""
        mean_square = (self.squares + self.squares_rest) / self.count
        return math.sqrt(mean_square) if math.isfinite(mean_square) else None

    def deviation(self) -> float | None:
        """Return the population standard deviation (divided by the count, not by the count minus one).

        It is computed from sums of squares, so deviations below 1e-7 of the size of the values are lost.
        """
        if self.least == self.greatest:
            return 0.0
        mean_square = (self.squares + self.squares_rest) / self.count
        mean = self.mean("REAL")
        return math.sqrt(max(0.0, mean_square - mean * mean)) if math.isfinite(mean_square) else None


def _sums(samples: "array[float]") -> Sums:
    """Return the sums of finite samples, at least one.

    :raises OverflowError: a sum exceeds a double.
    """
    if len(samples) >= MIN_NUMPY_SAMPLES:
        # Imported late: numpy takes 14 MB, which a gateway without fast machines saves.
        from gateway.timeseries.numpy_sums import sums

        exact = sums(samples)
        if exact is not None:
            return exact
    values = samples.tolist()
    least, greatest = min(values), max(values)
    total = exact_sum(values)
    if least >= 0:
        magnitudes = total
    elif greatest <= 0:
        magnitudes = -total[0], -total[1]
    else:
        magnitudes = exact_sum(list(map(abs, values)))
    try:
        squares = math.fsum(map(mul, values, values))
    except OverflowError:
        squares = math.inf
    return Sums(*total, *magnitudes, squares, values.index(least), values.index(greatest))
