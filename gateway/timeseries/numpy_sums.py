"""What is done with very many samples at once.

Imported where that is due for the first time: numpy takes 14 MB and a twentieth of a second.
"""

import math
from array import array
from typing import Final

import numpy as np
import orjson

from gateway.timeseries.sums import Sums

#: Up to so many samples, as a power of two, are summed at a time.
_MOST_BITS: Final = 13

#: Magnitudes between which no step underflows or overflows; 0 is outside too.
_LEAST: Final = 1e-150
_GREATEST: Final = 1e150


def sums(samples: "array[float]") -> Sums | None:
    """Exact sums of some finite samples, at most 8,192; ``None`` where they are beyond this way of summing.

    Each sample is split into what is a multiple of a power of two so large that no sum of such rounds, in whatever
    order, and the rest, which is split in the same way (Rump, Ogita and Oishi, Accurate Floating-Point Summation,
    2008, ExtractVector). Mostly nothing is left then.
    """
    values = np.frombuffer(samples)
    least_index, greatest_index = int(values.argmin()), int(values.argmax())
    least, greatest = samples[least_index], samples[greatest_index]
    largest = max(-least, greatest)
    if len(samples) > 2**_MOST_BITS or not _LEAST < largest < _GREATEST:
        return None
    step = math.ldexp(1.0, math.frexp(largest)[1] + _MOST_BITS)
    high = values + step
    high -= step
    rest = values - high
    step = math.ldexp(step, _MOST_BITS - 53)
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
    """The samples as a list in JSON: the shortest digits, and null for what is not finite."""
    return orjson.dumps(np.frombuffer(samples), option=orjson.OPT_SERIALIZE_NUMPY)


def _rounded(high: float, low: float) -> tuple[float, float]:
    """The rounded sum of two doubles, the first the larger, and what rounding took (Dekker's Fast2Sum)."""
    total = high + low
    return total, low - (total - high)
