"""Sums of many samples by numpy, which equal exact sums to the last bit."""

import math
import random
from array import array
from fractions import Fraction

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.timeseries import bucket
from gateway.timeseries.numpy_sums import json_list, sums

QUIET = settings(max_examples=300, deadline=None, derandomize=True, database=None)

#: Typical values of sensors, and doubles with very different exponents.
samples_of = st.lists(
    st.floats(-100.0, 100.0, width=32) | st.floats(-10.0, 10.0) | st.integers(-32768, 32767).map(float) | st.just(-0.0),
    min_size=1,
    max_size=400,
)


@given(samples_of)
@QUIET
def test_numpy_sums_are_exact(values: list[float]) -> None:
    found = sums(array("d", values))
    if found is None:
        return
    total, magnitudes = sum(map(Fraction, values)), sum(map(abs, map(Fraction, values)))
    assert Fraction(found.total) + Fraction(found.total_rest) == total
    assert Fraction(found.magnitudes) + Fraction(found.magnitudes_rest) == magnitudes
    assert (found.total, found.magnitudes) == (math.fsum(values), math.fsum(map(abs, values)))
    assert (found.least_index, found.greatest_index) == (values.index(min(values)), values.index(max(values)))
    assert math.isclose(found.squares, math.fsum(value * value for value in values), rel_tol=1e-14)


@pytest.mark.parametrize("count", [1, 255, 1024, 4096, 8192])
@pytest.mark.parametrize("shift", [-1e6, -5.0, 0.0, 5.0, 1e6])
def test_numpy_sums_equal_those_without_numpy(count: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(count)
    samples = array("d", [shift + chance.gauss(0.0, 1.0) for _ in range(count)])
    found = sums(samples)
    assert found is not None
    monkeypatch.setattr(bucket, "MIN_NUMPY_SAMPLES", count + 1)
    plain = bucket._sums(samples)
    assert found._replace(squares=0.0) == plain._replace(squares=0.0)


@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 300,
        [1e200] * 300,
        [1e-200] * 300,
        [1e16, 1.0, 1e-16, 1e-40] * 100,
        [1.0] * 8193,
    ],
    ids=["zeros", "large", "small", "wide", "many"],
)
def test_samples_outside_the_bounds_are_summed_without_numpy(values: list[float]) -> None:
    samples = array("d", values)
    assert sums(samples) is None
    found = bucket._sums(samples)
    assert found.total == math.fsum(values)
    assert Fraction(found.total) + Fraction(found.total_rest) == pytest.approx(sum(map(Fraction, values)), rel=1e-30)


@given(st.lists(st.floats(width=64), max_size=50))
@QUIET
def test_json_list_equals_that_of_a_list(values: list[float]) -> None:
    assert json_list(array("d", values)) == orjson.dumps(values)
