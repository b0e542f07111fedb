"""Buckets: sums, squares and extremes of samples, and their merging in any pieces and any order."""

import copy
import itertools
import math
import statistics
from array import array
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.timeseries.bucket import Bucket


def bucket_of(samples: Iterable[float], first: int = 0) -> Bucket:
    """Return the bucket of a minute with one sample a second."""
    return Bucket.of(array("d", samples), lambda index: time(first + index))


def time(second: int) -> str:
    return f"2025-12-18 10:{second // 60:02}:{second % 60:02}"


def merged(buckets: Iterable[Bucket]) -> Bucket:
    result = Bucket()
    for bucket in buckets:
        result.merge(bucket)
    return result


# -- sums


@pytest.mark.parametrize("samples", list(itertools.permutations([1e16, 1.0, -1e16])))
def test_merge_in_any_order_gives_the_same_sums(samples: tuple[float, ...]) -> None:
    merge = merged(bucket_of([sample]) for sample in samples)
    assert merge.mean("REAL") == 1.0 / 3
    assert merge.mean("ABS") == (2e16 + 1) / 3
    # All samples in one bucket, or half of them merged before.
    assert bucket_of(samples).mean("REAL") == 1.0 / 3
    left, *right = samples
    assert merged([bucket_of([left]), merged(bucket_of([x]) for x in right)]).mean("REAL") == 1.0 / 3


@pytest.mark.parametrize("samples", list(itertools.permutations([1e16, 1.0, -1e16, 1e-3, -1.0])))
def test_buckets_of_one_sample_are_as_exact_as_one_bucket(samples: tuple[float, ...]) -> None:
    merge = merged(bucket_of([sample]) for sample in samples)
    assert merge.mean("REAL") == pytest.approx(1e-3 / 5, rel=1e-15)


def test_merge_of_a_year_of_minutes_is_exact() -> None:
    # A plain sum of so many tenths is wrong in the twelfth digit.
    minute = bucket_of([0.1] * 60)
    year = merged(itertools.repeat(minute, 100_000))
    assert (year.count, year.minutes) == (6_000_000, 100_000)
    assert year.mean("REAL") == 0.1
    assert year.mean("ABS") == 0.1
    assert year.rms() == pytest.approx(0.1, rel=1e-15)


def test_merge_leaves_the_other_bucket_unchanged() -> None:
    other = bucket_of([1.0, 2.0])
    merged([other, other])
    assert other == bucket_of([1.0, 2.0])


def test_mean_of_an_empty_bucket_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        Bucket().mean("REAL")


def test_merge_of_an_empty_bucket_changes_nothing() -> None:
    bucket = bucket_of([1.0, -3.0])
    bucket.merge(Bucket())
    assert bucket == bucket_of([1.0, -3.0])
    assert merged([Bucket(), bucket_of([1.0, -3.0])]) == bucket_of([1.0, -3.0])


@pytest.mark.parametrize(
    ("samples", "real", "magnitude"),
    [([1.0, 2.0], 1.5, 1.5), ([-1.0, -2.0], -1.5, 1.5), ([-1.0, 2.0], 0.5, 1.5), ([0.0, -0.0], 0.0, 0.0)],
)
def test_mean_of_samples_of_one_or_both_signs(samples: list[float], real: float, magnitude: float) -> None:
    bucket = bucket_of(samples)
    assert (bucket.mean("REAL"), bucket.mean("ABS")) == (real, magnitude)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.floats(-1e100, 1e100, allow_subnormal=False), min_size=1, max_size=5), min_size=1, max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_merge_of_any_pieces_is_exact(pieces: list[list[float]], random: Any) -> None:
    buckets = [bucket_of(piece) for piece in pieces]
    random.shuffle(buckets)
    merge = merged(buckets)
    samples = [sample for piece in pieces for sample in piece]
    exact = sum(map(Fraction, samples), Fraction()) / len(samples)
    magnitude = sum((abs(Fraction(sample)) for sample in samples), Fraction()) / len(samples)
    # Precision of two doubles, and rounding of the result to one.
    bound = abs(exact) / 2**51 + magnitude * len(samples) / 2**100 + Fraction(5e-324)
    assert merge.count == len(samples)
    assert merge.minutes == len(pieces)
    assert abs(Fraction(merge.mean("REAL")) - exact) <= bound
    assert abs(Fraction(merge.mean("ABS")) - magnitude) <= magnitude / 2**51 + Fraction(5e-324)
    assert (merge.least, merge.greatest) == (min(samples), max(samples))


# -- squares


def test_rms_and_deviation_of_a_bucket() -> None:
    bucket = bucket_of([1.0, -3.0, 5.0, 5.0])
    assert bucket.squares == 60.0
    assert bucket.rms() == math.sqrt(15.0)
    assert bucket.deviation() == math.sqrt(11.0)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), min_size=1, max_size=10))
def test_rms_and_deviation_after_merging_any_pieces(pieces: list[list[float]]) -> None:
    merge = merged(map(bucket_of, pieces))
    samples = [sample for piece in pieces for sample in piece]
    size = max(map(abs, samples))
    rms, deviation = merge.rms(), merge.deviation()
    assert rms is not None
    assert deviation is not None
    assert rms == pytest.approx(math.sqrt(sum(Fraction(x) ** 2 for x in samples) / len(samples)), rel=1e-14, abs=1e-150)
    assert deviation == pytest.approx(statistics.pstdev(map(Fraction, samples)), rel=1e-9, abs=max(1e-150, 3e-8 * size))


@pytest.mark.parametrize("sample", [0.1, -0.1, 1e8 + 0.1, 1e-200, 1e150, 1e200, -1.7e308, 0.0, -0.0])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_deviation_of_constant_samples_is_zero(sample: float, count: int) -> None:
    # Even if their squares or their sum exceed a double.
    if abs(sample) * count < 1.7e308:
        assert bucket_of([sample] * count).deviation() == 0.0
        assert merged([bucket_of([sample])] * count).deviation() == 0.0


def test_deviation_of_large_values_keeps_seven_digits() -> None:
    # The deviation is 1e-7 of the size of the values.
    bucket = merged(bucket_of([1e6 + (-1) ** second * 0.1] * 60) for second in range(60))
    assert bucket.deviation() == pytest.approx(0.1, rel=0.01)


def test_deviation_never_takes_the_root_of_a_negative_number() -> None:
    for step in range(1, 200):
        deviation = bucket_of([1e9, math.nextafter(1e9, math.inf)] * step).deviation()
        assert deviation is not None
        assert 0.0 <= deviation < 100.0


@pytest.mark.parametrize("samples", [[1e200], [1e200, 1.0], [-1e160, 1e160], [1.4e154, 1.4e154]])
def test_rms_is_none_if_squares_exceed_a_double(samples: list[float]) -> None:
    bucket = bucket_of(samples)
    assert bucket.squares == math.inf
    assert bucket.rms() is None
    assert bucket.mean("REAL") == math.fsum(samples) / len(samples)
    assert bucket.deviation() == (0.0 if len(set(samples)) == 1 else None)
    # Also after merging in both directions.
    for merge in (merged([bucket, bucket_of([1.0])]), merged([bucket_of([1.0]), bucket, bucket])):
        assert merge.squares == math.inf
        assert merge.squares_rest == 0.0
        assert (merge.rms(), merge.deviation()) == (None, None)
        assert math.isfinite(merge.mean("REAL"))


def test_rms_is_none_if_the_sum_of_squares_exceeds_a_double() -> None:
    merge = merged([bucket_of([1.3e154]), bucket_of([1.2e154])])
    assert merge.squares == math.inf
    assert (merge.rms(), merge.deviation()) == (None, None)


# -- extremes


def test_extremes_have_their_first_time() -> None:
    bucket = bucket_of([3.0, -1.0, 7.0, -1.0, 7.0, 2.0])
    assert (bucket.least, bucket.least_at) == (-1.0, time(1))
    assert (bucket.greatest, bucket.greatest_at) == (7.0, time(2))


def test_merge_of_equal_extremes_keeps_the_first_time() -> None:
    early, late = bucket_of([1.0, 2.0]), bucket_of([1.0, 2.0], first=60)
    merge = merged([early, late])
    assert (merge.least_at, merge.greatest_at) == (time(0), time(1))
    merge = merged([late, early])
    assert (merge.least_at, merge.greatest_at) == (time(60), time(61))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_merge_of_different_extremes_in_any_order(order: tuple[int, ...]) -> None:
    buckets = [bucket_of([5.0, 4.0]), bucket_of([-9.0, 1.0], first=60), bucket_of([2.0, 8.0], first=120)]
    merge = merged(buckets[index] for index in order)
    assert (merge.least, merge.least_at, merge.greatest, merge.greatest_at) == (-9.0, time(60), 8.0, time(121))


def test_merge_can_change_one_extreme_only() -> None:
    merge = merged([bucket_of([1.0, 5.0]), bucket_of([3.0, 9.0], first=60)])
    assert (merge.least, merge.least_at, merge.greatest, merge.greatest_at) == (1.0, time(0), 9.0, time(61))


# -- sums that exceed a double


@pytest.mark.parametrize("samples", [[1e308, 1e308], [-1e308, -1e308], [1.7e308, -1.7e308], [1.7e308, 1.7e308, -1e308]])
def test_bucket_of_a_sum_that_exceeds_a_double_raises(samples: list[float]) -> None:
    # Also the sum of magnitudes if the samples cancel out, since both means are needed.
    with pytest.raises(OverflowError):
        bucket_of(samples)


@pytest.mark.parametrize(
    ("before", "after"), [([1.7e308], [1.7e308]), ([1.7e308], [-1.7e308]), ([-1e308, 1.0], [-1e308, 5.0])]
)
def test_merge_that_exceeds_a_double_raises_and_changes_nothing(before: list[float], after: list[float]) -> None:
    bucket, other = bucket_of(before), bucket_of(after, first=60)
    with pytest.raises(OverflowError):
        bucket.merge(other)
    assert bucket == bucket_of(before)
    assert other == bucket_of(after, first=60)
    bucket.merge(bucket_of([2.0], first=120))
    assert bucket.count == len(before) + 1


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
)
def test_merge_of_any_samples_raises_or_gives_finite_values(left: list[float], right: list[float]) -> None:
    whole = Bucket()
    counted: list[float] = []
    for samples in (left, right, right):
        before = copy.copy(whole)
        try:
            whole.merge(bucket_of(samples))
        except OverflowError:
            assert whole == before
        else:
            counted += samples
    if counted:
        assert math.isfinite(whole.mean("REAL"))
        assert math.isfinite(whole.mean("ABS"))
        assert whole.count == len(counted)
        assert whole.least <= whole.greatest
        for figure in (whole.rms(), whole.deviation()):
            assert figure is None or (math.isfinite(figure) and figure >= 0)
