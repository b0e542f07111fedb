"""What is kept of the samples of a period."""

import math
from array import array
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Count and sums of finite samples; two buckets can be merged into one, in any order.

    Sums are held in two doubles (:func:`_two_sum`), so that a mean over a year is as exact as one over a minute.
    """

    count: int = 0
    total: float = 0.0
    total_rest: float = 0.0
    magnitudes: float = 0.0
    magnitudes_rest: float = 0.0

    def add(self, samples: "array[float]") -> None:
        """Add samples, all finite.

        :raises OverflowError: their sum is beyond a double; the bucket is as it was.
        """
        self._add(len(samples), math.fsum(samples), math.fsum(map(abs, samples)))

    def merge(self, other: "Bucket") -> None:
        """Add what another bucket holds.

        :raises OverflowError: the sum is beyond a double; the bucket is as it was.
        """
        self._add(other.count, other.total, other.magnitudes)
        self.total_rest += other.total_rest
        self.magnitudes_rest += other.magnitudes_rest

    def _add(self, count: int, total: float, magnitudes: float) -> None:
        total, total_rest = _two_sum(self.total, total)
        magnitudes, magnitudes_rest = _two_sum(self.magnitudes, magnitudes)
        # No sum is larger than that of the magnitudes.
        if not math.isfinite(magnitudes):
            raise OverflowError("a sum beyond a double")
        self.count += count
        self.total, self.total_rest = total, self.total_rest + total_rest
        self.magnitudes, self.magnitudes_rest = magnitudes, self.magnitudes_rest + magnitudes_rest

    def mean(self, mode: str) -> float:
        """The mean of the samples: ``REAL`` as they are, ``ABS`` of their magnitudes.

        :raises ZeroDivisionError: there are none.
        """
        if mode == "ABS":
            return (self.magnitudes + self.magnitudes_rest) / self.count
        return (self.total + self.total_rest) / self.count


def _two_sum(a: float, b: float) -> tuple[float, float]:
    """The rounded sum and exactly what rounding took (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    seen = total - a
    return total, (a - (total - seen)) + (b - seen)
