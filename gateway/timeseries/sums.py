"""Exact sums and extremes of samples."""

import math
from typing import NamedTuple


class Sums(NamedTuple):
    """What is kept of samples: sums as a rounded double and what rounding took, extremes by their first index."""

    total: float
    total_rest: float
    magnitudes: float
    magnitudes_rest: float
    squares: float
    least_index: int
    greatest_index: int


def exact_sum(values: list[float]) -> tuple[float, float]:
    """The rounded sum and what rounding took, rounded too.

    :raises OverflowError: it is beyond a double.
    """
    total = math.fsum(values)
    return total, math.fsum([*values, -total])


def two_sum(a: float, b: float) -> tuple[float, float]:
    """The rounded sum and exactly what rounding took (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    seen = total - a
    return total, (a - (total - seen)) + (b - seen)
