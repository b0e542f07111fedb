"""Test of sample arrays for NaN and infinity."""

import sys
from array import array
from math import isfinite
from typing import Final

#: Index of the byte of a double that holds its sign and the upper seven bits of its exponent.
_TOP_BYTE: Final = 7 if sys.byteorder == "little" else 0


def finite(samples: "array[float]") -> "array[float]":
    """Return the samples without NaN and infinities; the same object if all samples are finite."""
    # NaN and infinities have all exponent bits set (IEEE 754); finite values have the upper seven set from 1e304 on.
    tops = samples.tobytes()[_TOP_BYTE::8]
    if 0x7F not in tops and 0xFF not in tops:
        return samples
    finite = array("d", (x for x in samples if isfinite(x)))
    return samples if len(finite) == len(samples) else finite
