"""Sums and JSON of large numbers of samples, by numpy.

This module is imported on first use, since numpy takes 14 MB and 50 ms.
"""

import math
from array import array
from typing import Final

import numpy as np
import orjson

from gateway.timeseries.sums import Sums

#: Binary logarithm of the maximum number of samples that are summed at a time.
_MAX_BITS: Final = 13

#: Bounds of the magnitudes for which no step underflows or overflows; 0 is outside.
_MIN: Final = 1e-150
_MAX: Final = 1e150


def sums(samples: "array[float]") -> Sums | None:
    """Return exact sums of at most 8,192 finite samples; ``None`` if this method cannot sum them exactly.

    Each sample is split into a multiple of a large power of two, of which sums do not round in any order, and a rest,
    which is split again (Rump, Ogita and Oishi, Accurate Floating-Point Summation, 2008, ExtractVector). Usually the
    second rest is zero.
    """
    values = np.frombuffer(samples)
    least_index, greatest_index = int(values.argmin()), int(values.argmax())
    least, greatest = samples[least_index], samples[greatest_index]
    largest = max(-least, greatest)
    if len(samples) > 2**_MAX_BITS or not _MIN < largest < _MAX:
        return None
    step = math.ldexp(1.0, math.frexp(largest)[1] + _MAX_BITS)
    high = values + step
    high -= step
    rest = values - high
    step = math.ldexp(step, _MAX_BITS - 53)
    low = rest + step
    low -= step
    if not np.array_equal(low, rest):
        return None
    total = total_high, total_low = float(high.sum()), float(low.sum())
    if least >= 0:
        magnitudes = total
    elif greatest <= 0:
        magnitudes = -total_high, -total_low
    else:
        magnitudes = float(np.abs(high).sum()), float(np.sign(values).dot(low))
    return Sums(*_rounded(*total), *_rounded(*magnitudes), float((values * values).sum()), least_index, greatest_index)


def json_list(samples: "array[float]") -> bytes:
    """Return the samples as a JSON list with the shortest digits, and null for a sample that is not finite."""
    return orjson.dumps(np.frombuffer(samples), option=orjson.OPT_SERIALIZE_NUMPY)


def _rounded(high: float, low: float) -> tuple[float, float]:
    """Return the rounded sum of two doubles, the larger one first, and its rounding error (Dekker's Fast2Sum)."""
    total = high + low
    return total, low - (total - high)
