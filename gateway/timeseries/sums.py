"""Exact sums and extremes of samples."""

import math
from typing import NamedTuple


class Sums(NamedTuple):
    """Sums of samples as a rounded double and its rounding error, and the first indices of the extremes."""

    total: float
    total_rest: float
    magnitudes: float
    magnitudes_rest: float
    squares: float
    least_index: int
    greatest_index: int


def exact_sum(values: list[float]) -> tuple[float, float]:
    """Return the rounded sum, and its rounding error, which is also rounded.

    :raises OverflowError: the sum exceeds a double.
    """
    total = math.fsum(values)
    return total, math.fsum([*values, -total])


def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return the rounded sum and its exact rounding error (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    added = total - a
    return total, (a - (total - added)) + (b - added)
