"""What is kept of the samples of a period."""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul
from typing import Final

from gateway.timeseries.sums import Sums, exact_sum, two_sum

#: From so many samples on, numpy is worth its calls, which take as long as 80 samples take without it.
MANY: Final = 256


@dataclass(slots=True)
class Bucket:
    """Count, sums and extremes of finite samples; two buckets can be merged into one.

    Sums are held in two doubles each (:func:`_two_sum`), so that a mean over a year is as exact as one over a minute.

    :ivar count: samples.
    :ivar minutes: minutes of the period that have samples.
    :ivar total: sum of the samples.
    :ivar magnitudes: sum of their magnitudes.
    :ivar squares: sum of their squares; infinite where it is beyond a double.
    :ivar least: the least sample, and when it first came, wall clock, ``2025-12-18 10:11:12``.
    :ivar greatest: the greatest sample, and when it first came.
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
        """The bucket of samples of one minute, at least one, all finite.

        :param time_of: says when the sample with an index came.
        :raises OverflowError: their sum is beyond a double.
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
        """Add what another bucket holds; of extremes that are equal, this bucket's came first.

        :raises OverflowError: a sum is beyond a double; the bucket is as it was.
        """
        total, total_rest = two_sum(self.total, other.total)
        magnitudes, magnitudes_rest = two_sum(self.magnitudes, other.magnitudes)
        # No sum is larger than that of the magnitudes.
        if not math.isfinite(magnitudes):
            raise OverflowError("a sum beyond a double")
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
        """The mean of the samples: ``REAL`` as they are, ``ABS`` of their magnitudes.

        :raises ZeroDivisionError: there are none.
        """
        if mode == "ABS":
            return (self.magnitudes + self.magnitudes_rest) / self.count
        return (self.total + self.total_rest) / self.count

    def rms(self) -> float | None:
        """The root of the mean square; ``None`` where the squares are beyond a double."""
        mean_square = (self.squares + self.squares_rest) / self.count
        return math.sqrt(mean_square) if math.isfinite(mean_square) else None

    def deviation(self) -> float | None:
        """The standard deviation of these samples as a whole (divided by their count, not by one less).

        It comes from sums of squares, and tells deviations down to a ten-millionth of the values' size.
        """
        if self.least == self.greatest:
            return 0.0
        mean_square = (self.squares + self.squares_rest) / self.count
        mean = self.mean("REAL")
        return math.sqrt(max(0.0, mean_square - mean * mean)) if math.isfinite(mean_square) else None


def _sums(samples: "array[float]") -> Sums:
    """The sums of finite samples, at least one.

    :raises OverflowError: one is beyond a double.
    """
    if len(samples) >= MANY:
        # Not at the top: a gateway without so fast a machine does without numpy's 14 MB.
        from gateway.timeseries.numpy_sums import sums

        found = sums(samples)
        if found is not None:
            return found
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
