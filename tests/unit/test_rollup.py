"""Means over minutes and hours: over all samples, on the wall clock's boundaries, exact."""

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.model import Batch, PeriodMean, SensorBatch, Update, wall_time
from gateway.stats.bucket import Bucket
from gateway.stats.rollup import Rollup

SEOUL = ZoneInfo("Asia/Seoul")
BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")

MODES = {"vib": "ABS", "temp": "REAL"}


def at(text: str, zone: tzinfo = SEOUL) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


class Station:
    """A rollup, and what came out of it."""

    def __init__(self, zone: tzinfo = SEOUL) -> None:
        self.rollup = Rollup(zone, MODES)
        self.updates: list[Update] = []
        self.means: list[PeriodMean] = []
        self.left_out = 0

    def tick(self, now: datetime) -> None:
        updates, means = self.rollup.advance(now)
        self.updates += updates
        self.means += means

    def batch(self, now: datetime, samples: Iterable[float], **other: str) -> None:
        """One batch; ``other`` may name the machine, the sensor and the type."""
        self.tick(now)
        sensor = SensorBatch(other.get("type", "TEMP"), array("d", samples))
        self.left_out += self.rollup.add(Batch(other.get("machine", "M"), {other.get("sensor", "s"): sensor}, now))

    def minutes(self) -> list[tuple[str, float]]:
        return [(wall_time(update.minute_end), update.mean) for update in self.updates]

    def hours(self) -> list[tuple[str, float]]:
        return [(mean.start, mean.mean) for mean in self.means]


# -- minutes


@pytest.mark.parametrize(
    ("kind", "mean"), [("VIB", 2.0), ("vib", 2.0), ("TEMP", -1.0), ("Temp", -1.0), ("RPM", -1.0), ("", -1.0)]
)
def test_abs_and_real_by_type(kind: str, mean: float) -> None:
    station = Station()
    station.batch(at("2025-12-18 10:11:12"), [1.0, -3.0, -3.0], type=kind)
    station.batch(at("2025-12-18 10:11:13"), [1.0], type=kind)
    station.tick(at("2025-12-18 11:00:00"))
    assert station.minutes() == [("2025-12-18 10:12:00", mean)]
    assert station.hours() == [("2025-12-18 10:00:00", mean)]


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:11:12"), [math.nan, 1.0, math.inf, 2.0, -math.inf])
    assert station.left_out == 3
    station.tick(at("2025-12-18 10:12:00"))
    assert station.minutes() == [("2025-12-18 10:12:00", 1.5)]


def test_a_sensor_with_nothing_finite_sends_no_update() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:11:12"), [math.nan, math.nan])
    station.batch(at("2025-12-18 10:11:12"), [], sensor="silent")
    station.tick(at("2025-12-18 11:12:00"))
    assert (station.left_out, station.updates, station.means) == (2, [], [])


@pytest.mark.parametrize(
    ("first", "last", "end"),
    [
        ("2025-12-18 10:11:00", "2025-12-18 10:11:59.999999", "2025-12-18 10:12:00"),
        ("2025-12-18 10:59:00", "2025-12-18 10:59:59.999999", "2025-12-18 11:00:00"),
        ("2025-12-31 23:59:00", "2025-12-31 23:59:59.999999", "2026-01-01 00:00:00"),
    ],
)
def test_a_minute_ends_with_its_end_time(first: str, last: str, end: str) -> None:
    station = Station()
    station.batch(at(first), [1.0])
    station.batch(at(last), [2.0])
    assert station.updates == []
    station.tick(at(end))
    assert station.updates == [Update("M", "s", 1.5, at(end))]
    assert str(station.updates[0].minute_end) == end + "+09:00"
    station.tick(at(end) + timedelta(minutes=1))
    assert len(station.updates) == 1, "a minute without samples has no update"


def test_a_late_tick_closes_the_minute_of_the_samples() -> None:
    # As after a suspended machine: the update says which minute it was.
    station = Station()
    station.batch(at("2025-12-18 10:11:12"), [1.0])
    station.batch(at("2025-12-18 13:45:01"), [2.0])
    assert station.minutes() == [("2025-12-18 10:12:00", 1.0)]
    assert station.hours() == [("2025-12-18 10:00:00", 1.0)]


def test_sensors_and_machines_are_apart() -> None:
    station = Station()
    now = at("2025-12-18 10:11:12")
    station.batch(now, [1.0], machine="A", sensor="x")
    station.batch(now, [2.0], machine="B", sensor="x")
    station.batch(now, [3.0], machine="A", sensor="y")
    station.tick(at("2025-12-18 11:00:00"))
    found = {(update.machine, update.sensor): update.mean for update in station.updates}
    assert found == {("A", "x"): 1.0, ("B", "x"): 2.0, ("A", "y"): 3.0}
    assert {(mean.machine, mean.sensor): mean.mean for mean in station.means} == found


# -- hours


def test_an_hour_is_the_mean_over_all_samples_and_not_of_means() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:00:00"), [10.0])
    station.batch(at("2025-12-18 10:01:00"), [2.0, 2.0, 2.0])
    station.batch(at("2025-12-18 10:59:59"), [0.0])
    station.tick(at("2025-12-18 10:59:59.999"))
    assert station.means == []
    station.tick(at("2025-12-18 11:00:00"))
    assert station.means == [PeriodMean("hour", "M", "s", "2025-12-18 10:00:00", 16.0 / 5)]
    station.batch(at("2025-12-18 11:00:00"), [7.0])
    station.tick(at("2025-12-18 12:00:00"))
    assert station.hours()[1:] == [("2025-12-18 11:00:00", 7.0)]


def test_an_hour_without_samples_has_no_mean() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:00:00"), [1.0])
    for hour in (11, 12, 13):
        station.tick(at(f"2025-12-18 {hour}:00:00"))
    assert station.hours() == [("2025-12-18 10:00:00", 1.0)]


def test_the_same_hour_of_the_next_day_is_another() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:30:00"), [1.0])
    station.batch(at("2025-12-19 10:30:00"), [2.0])
    station.tick(at("2025-12-19 11:00:00"))
    assert station.hours() == [("2025-12-18 10:00:00", 1.0), ("2025-12-19 10:00:00", 2.0)]


# -- zones


def every_minute(zone: tzinfo, day: str, hours: int) -> Iterator[tuple[int, datetime]]:
    """The minutes of a day: how many have passed since midnight, and the wall clock."""
    midnight = at(day, zone).timestamp()
    for minute in range(hours * 60):
        yield minute, datetime.fromtimestamp(midnight + 60 * minute + 30, zone)


def a_day_of(zone: tzinfo, day: str, hours: int) -> Station:
    """A day with a sample a minute, which says the how manieth hour it is."""
    station = Station(zone)
    for minute, now in every_minute(zone, day, hours):
        station.batch(now, [float(minute // 60)])
    station.tick(datetime.fromtimestamp(at(day, zone).timestamp() + 3600 * hours, zone))
    return station


def test_hours_of_a_half_hour_zone_begin_on_its_own_wall_clock() -> None:
    station = a_day_of(KOLKATA, "2025-12-18", 24)
    assert station.hours() == [(f"2025-12-18 {hour:02}:00:00", float(hour)) for hour in range(24)]
    # 10:00 in Kolkata is 04:30 UTC.
    assert station.updates[599].minute_end.astimezone(UTC) == datetime(2025, 12, 18, 4, 30, tzinfo=UTC)
    assert wall_time(station.updates[599].minute_end) == "2025-12-18 10:00:00"


def test_a_day_of_23_hours() -> None:
    station = a_day_of(BERLIN, "2025-03-30", 23)
    clock = [hour for hour in range(24) if hour != 2]
    assert station.hours() == [(f"2025-03-30 {hour:02}:00:00", float(i)) for i, hour in enumerate(clock)]
    assert len(station.updates) == 23 * 60
    # The minute that began at 01:59 ends when the clock shows 03:00.
    assert wall_time(station.updates[119].minute_end) == "2025-03-30 03:00:00"


def test_a_day_of_25_hours_has_one_hour_twice() -> None:
    station = a_day_of(BERLIN, "2025-10-26", 25)
    clock = [0, 1, 2, *range(2, 24)]
    assert station.hours() == [(f"2025-10-26 {hour:02}:00:00", float(i)) for i, hour in enumerate(clock)]
    assert len(station.updates) == 25 * 60
    ends = [update.minute_end.astimezone(UTC) for update in station.updates]
    assert all(later - earlier == timedelta(minutes=1) for earlier, later in itertools.pairwise(ends))


def test_the_same_minute_an_hour_later_in_an_hour_that_comes_twice() -> None:
    # 02:30 twice, with nothing between: only the offset tells them apart.
    station = Station(BERLIN)
    station.batch(at("2025-10-26 02:30:10", BERLIN), [1.0])
    station.batch(at("2025-10-26 02:30:10", BERLIN).replace(fold=1), [2.0])
    station.tick(at("2025-10-26 03:00:00", BERLIN))
    assert station.hours() == [("2025-10-26 02:00:00", 1.0), ("2025-10-26 02:00:00", 2.0)]
    assert [update.mean for update in station.updates] == [1.0, 2.0]


# -- a clock that steps


@pytest.mark.parametrize("step", [1, 30, 59])
@pytest.mark.parametrize("moment", ["2025-12-18 10:05:00", "2025-12-18 11:00:00", "2025-12-19 00:00:00"])
def test_a_small_step_back_loses_nothing_and_says_nothing_twice(moment: str, step: int) -> None:
    boundary = at(moment)
    station = Station()
    station.batch(boundary - timedelta(seconds=90), [1.0])
    station.batch(boundary, [2.0])
    # Back over the boundary, and on as before.
    station.batch(boundary - timedelta(seconds=step), [4.0])
    station.batch(boundary + timedelta(seconds=1), [8.0])
    station.batch(boundary + timedelta(seconds=60), [16.0])
    station.tick(boundary + timedelta(hours=2))
    ends = [end for end, _ in station.minutes()]
    assert len(set(ends)) == len(ends)
    assert [mean for _, mean in station.minutes()] == [1.0, 14.0 / 3, 16.0]
    if moment.endswith(":05:00"):
        assert station.hours() == [("2025-12-18 10:00:00", 31.0 / 5)]
    else:
        before = wall_time(boundary - timedelta(hours=1))
        assert station.hours() == [(before, 1.0), (moment, 30.0 / 4)]


def test_a_large_step_back_does_not_stop_the_minutes() -> None:
    station = Station()
    station.batch(at("2025-12-18 10:05:30"), [1.0])
    station.batch(at("2025-12-18 08:00:30"), [2.0])
    station.batch(at("2025-12-18 08:01:30"), [3.0])
    station.tick(at("2025-12-18 09:00:00"))
    assert station.minutes() == [
        ("2025-12-18 10:06:00", 1.0),
        ("2025-12-18 08:01:00", 2.0),
        ("2025-12-18 08:02:00", 3.0),
    ]
    assert station.hours() == [("2025-12-18 10:00:00", 1.0), ("2025-12-18 08:00:00", 2.5)]


# -- buckets


def bucket_of(samples: Iterable[float]) -> Bucket:
    bucket = Bucket()
    bucket.add(array("d", samples))
    return bucket


def merged(buckets: Iterable[Bucket]) -> Bucket:
    result = Bucket()
    for bucket in buckets:
        result.merge(bucket)
    return result


@pytest.mark.parametrize("samples", list(itertools.permutations([1e16, 1.0, -1e16])))
def test_a_merge_knows_no_order(samples: tuple[float, ...]) -> None:
    merge = merged(bucket_of([sample]) for sample in samples)
    assert merge.mean("REAL") == 1.0 / 3
    assert merge.mean("ABS") == (2e16 + 1) / 3
    # Samples that came in one bucket, or half of them merged before.
    assert bucket_of(samples).mean("REAL") == 1.0 / 3
    left, *right = samples
    assert merged([bucket_of([left]), merged(bucket_of([x]) for x in right)]).mean("REAL") == 1.0 / 3


@pytest.mark.parametrize("samples", list(itertools.permutations([1e16, 1.0, -1e16, 1e-3, -1.0])))
def test_one_sample_a_batch_is_as_exact_as_one_batch(samples: tuple[float, ...]) -> None:
    bucket = Bucket()
    for sample in samples:
        bucket.add(array("d", [sample]))
    assert bucket.mean("REAL") == pytest.approx(1e-3 / 5, rel=1e-15)


def test_a_year_of_minutes_is_as_exact_as_one() -> None:
    # A plain sum of so many tenths is wrong in the twelfth digit.
    minute = bucket_of([0.1] * 60)
    year = merged(itertools.repeat(minute, 100_000))
    assert year.count == 6_000_000
    assert year.mean("REAL") == 0.1
    assert year.mean("ABS") == 0.1


def test_a_merge_leaves_the_other_bucket_alone() -> None:
    other = bucket_of([1.0, 2.0])
    merged([other, other])
    assert other == bucket_of([1.0, 2.0])


def test_no_samples_have_no_mean() -> None:
    with pytest.raises(ZeroDivisionError):
        Bucket().mean("REAL")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.lists(st.floats(-1e100, 1e100, allow_subnormal=False), min_size=1, max_size=5), min_size=1, max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_any_samples_in_any_pieces(pieces: list[list[float]], random: object) -> None:
    buckets = [bucket_of(piece) for piece in pieces]
    random.shuffle(buckets)  # type: ignore[attr-defined]
    merge = merged(buckets)
    samples = [sample for piece in pieces for sample in piece]
    exact = sum(map(Fraction, samples)) / len(samples)
    magnitude = sum(abs(Fraction(sample)) for sample in samples) / len(samples)
    # What two doubles hold, and the rounding of the result to one.
    bound = abs(exact) / 2**51 + magnitude * len(samples) / 2**100 + Fraction(5e-324)
    assert merge.count == len(samples)
    assert abs(Fraction(merge.mean("REAL")) - exact) <= bound
    assert abs(Fraction(merge.mean("ABS")) - magnitude) <= magnitude / 2**51 + Fraction(5e-324)


@pytest.mark.parametrize("samples", [[1e308, 1e308], [1.7e308, 1.7e308, 1.7e308], [1.7e308, -1.7e308, 1.7e308]])
@pytest.mark.parametrize("kind", ["VIB", "TEMP"])
def test_finite_samples_whose_sum_is_beyond_a_double(samples: list[float], kind: str) -> None:
    # Whether they are counted or left out: nothing is raised, no other sensor suffers, and no mean is NaN.
    station = Station()
    now = at("2025-12-18 10:11:12")
    station.tick(now)
    both = {"huge": SensorBatch(kind, array("d", samples)), "other": SensorBatch("TEMP", array("d", [1.0, 2.0]))}
    station.rollup.add(Batch("M", both, now))
    station.batch(at("2025-12-18 10:11:13"), [1.0], sensor="huge", type=kind)
    station.tick(at("2025-12-18 11:00:00"))
    assert {update.sensor: update.mean for update in station.updates}["other"] == 1.5
    assert all(math.isfinite(update.mean) for update in station.updates)
    assert all(math.isfinite(mean.mean) for mean in station.means)


def test_single_huge_samples_in_many_batches_leave_the_mean_finite() -> None:
    station = Station()
    for second in range(4):
        station.batch(at(f"2025-12-18 10:11:0{second}"), [1.7e308])
    station.tick(at("2025-12-18 11:00:00"))
    assert all(math.isfinite(update.mean) for update in station.updates)
    assert all(math.isfinite(mean.mean) for mean in station.means)
