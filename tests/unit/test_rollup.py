"""Rollup: minutes, hours and the ends of longer periods, by the boundaries of the wall clock."""

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.model.entries import ClosedHour, ClosedPeriod
from gateway.model.records import Batch, SensorBatch, Update
from gateway.model.timestamps import wall_time
from gateway.runtime.clock import WallClock
from gateway.stats.rollup import CHUNK, ClosedPeriods, Rollup
from gateway.timeseries.calendar import PERIODS, start_of

SEOUL = ZoneInfo("Asia/Seoul")
BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")

MODES = {"vib": "ABS", "temp": "REAL"}


def at(text: str, zone: tzinfo = SEOUL) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


class RollupPlant:
    """A rollup with a wall clock, and its updates and entries."""

    def __init__(self, zone: tzinfo = SEOUL) -> None:
        self.wall = 0.0
        self.clock = WallClock(zone, lambda: self.wall, lambda: 0.0)
        self.rollup = Rollup(zone, MODES)
        self.updates: list[Update] = []
        self.entries: list[ClosedHour | ClosedPeriod] = []

    def now(self, shown: datetime) -> datetime:
        """Set the wall clock, and return the time of the gateway."""
        self.wall = shown.timestamp()
        return self.clock.now()

    def tick(self, shown: datetime) -> None:
        self.take(self.rollup.advance(self.now(shown)))

    def take(self, ended: ClosedPeriods) -> None:
        self.updates += ended.updates
        self.entries += ended.entries

    def batch(self, shown: datetime, samples: Iterable[float], **other: str) -> None:
        """Add a batch; ``other`` may name the machine, the sensor and the type."""
        now = self.now(shown)
        self.take(self.rollup.advance(now))
        sensor = SensorBatch(other.get("type", "TEMP"), array("d", samples))
        self.rollup.add(Batch(other.get("machine", "M"), {other.get("sensor", "s"): sensor}, now))

    def replay(self, shown: datetime, samples: Iterable[float], machine: str = "M", sensor: str = "s") -> None:
        """Replay samples of a raw file."""
        self.take(self.rollup.replay(machine, sensor, shown.replace(microsecond=0), array("d", samples)))

    @property
    def left_out(self) -> int:
        return self.rollup.left_out

    @property
    def means(self) -> list[ClosedHour]:
        return [entry for entry in self.entries if isinstance(entry, ClosedHour)]

    def minutes(self) -> list[tuple[str, float]]:
        return [(wall_time(update.minute_end), update.mean) for update in self.updates]

    def hours(self) -> list[tuple[str, float]]:
        return [(wall_time(hour.start), hour.bucket.mean(hour.mode)) for hour in self.means]

    def ends(self) -> list[str]:
        """Return the ended periods in order, such as ``hour 2025-12-18 10:00:00``."""
        return [
            f"{entry.period if isinstance(entry, ClosedPeriod) else 'hour'} {wall_time(entry.start)}"
            for entry in self.entries
        ]


# -- minutes


@pytest.mark.parametrize(
    ("kind", "mean"), [("VIB", 2.0), ("vib", 2.0), ("TEMP", -1.0), ("Temp", -1.0), ("RPM", -1.0), ("", -1.0)]
)
def test_mean_mode_depends_on_the_type(kind: str, mean: float) -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:11:12"), [1.0, -3.0, -3.0], type=kind)
    station.batch(at("2025-12-18 10:11:13"), [1.0], type=kind)
    station.tick(at("2025-12-18 11:00:00"))
    assert station.minutes() == [("2025-12-18 10:12:00", mean)]
    assert station.hours() == [("2025-12-18 10:00:00", mean)]


def test_infinite_samples_are_left_out_and_counted() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:11:12"), [math.nan, 1.0, math.inf, 2.0, -math.inf])
    assert station.left_out == 3
    station.tick(at("2025-12-18 10:12:00"))
    assert station.minutes() == [("2025-12-18 10:12:00", 1.5)]


def test_sensor_without_finite_samples_has_no_update() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:11:12"), [math.nan, math.nan])
    station.batch(at("2025-12-18 10:11:12"), [], sensor="silent")
    station.tick(at("2025-12-18 11:12:00"))
    assert (station.left_out, station.updates, station.entries) == (2, [], [])


@pytest.mark.parametrize(
    ("first", "last", "end"),
    [
        ("2025-12-18 10:11:00", "2025-12-18 10:11:59.999999", "2025-12-18 10:12:00"),
        ("2025-12-18 10:59:00", "2025-12-18 10:59:59.999999", "2025-12-18 11:00:00"),
        ("2025-12-31 23:59:00", "2025-12-31 23:59:59.999999", "2026-01-01 00:00:00"),
    ],
)
def test_update_has_the_end_of_its_minute(first: str, last: str, end: str) -> None:
    station = RollupPlant()
    station.batch(at(first), [1.0])
    station.batch(at(last), [2.0])
    assert station.updates == []
    station.tick(at(end))
    assert station.updates == [Update("M", "s", 1.5, at(end))]
    assert str(station.updates[0].minute_end) == end + "+09:00"
    station.tick(at(end) + timedelta(minutes=1))
    assert len(station.updates) == 1, "a minute without samples has no update"


def test_late_advance_closes_the_minute_of_the_samples() -> None:
    # As after a suspend of the computer: the update has the time of its minute.
    station = RollupPlant()
    station.batch(at("2025-12-18 10:11:12"), [1.0])
    station.batch(at("2025-12-18 13:45:01"), [2.0])
    assert station.minutes() == [("2025-12-18 10:12:00", 1.0)]
    assert station.hours() == [("2025-12-18 10:00:00", 1.0)]


def test_sensors_and_machines_are_separate() -> None:
    station = RollupPlant()
    now = at("2025-12-18 10:11:12")
    station.batch(now, [1.0], machine="A", sensor="x")
    station.batch(now, [2.0], machine="B", sensor="x")
    station.batch(now, [3.0], machine="A", sensor="y")
    station.tick(at("2025-12-18 11:00:00"))
    found = {(update.machine, update.sensor): update.mean for update in station.updates}
    assert found == {("A", "x"): 1.0, ("B", "x"): 2.0, ("A", "y"): 3.0}
    assert {(hour.machine, hour.sensor): hour.bucket.mean(hour.mode) for hour in station.means} == found


# -- hours


def test_hour_is_the_mean_of_all_samples() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:00:00"), [10.0])
    station.batch(at("2025-12-18 10:01:00"), [2.0, 2.0, 2.0])
    station.batch(at("2025-12-18 10:59:59"), [0.0])
    station.tick(at("2025-12-18 10:59:59.999"))
    assert station.means == []
    station.tick(at("2025-12-18 11:00:00"))
    (hour,) = station.means
    assert (hour.machine, hour.sensor, hour.start) == ("M", "s", at("2025-12-18 10:00:00"))
    assert (hour.bucket.count, hour.bucket.minutes, hour.bucket.mean("REAL")) == (5, 3, 16.0 / 5)
    station.batch(at("2025-12-18 11:00:00"), [7.0])
    station.tick(at("2025-12-18 12:00:00"))
    assert station.hours()[1:] == [("2025-12-18 11:00:00", 7.0)]


def test_hour_without_samples_has_no_entry() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:00:00"), [1.0])
    for hour in (11, 12, 13):
        station.tick(at(f"2025-12-18 {hour}:00:00"))
    assert station.hours() == [("2025-12-18 10:00:00", 1.0)]


def test_same_hour_of_the_next_day_is_separate() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:30:00"), [1.0])
    station.batch(at("2025-12-19 10:30:00"), [2.0])
    station.tick(at("2025-12-19 11:00:00"))
    assert station.hours() == [("2025-12-18 10:00:00", 1.0), ("2025-12-19 10:00:00", 2.0)]


# -- zones


def every_minute(zone: tzinfo, day: str, hours: int) -> Iterator[tuple[int, datetime]]:
    """Yield each minute of a day: its number since midnight, and its time."""
    midnight = at(day, zone).timestamp()
    for minute in range(hours * 60):
        yield minute, datetime.fromtimestamp(midnight + 60 * minute + 30, zone)


def a_day_of(zone: tzinfo, day: str, hours: int) -> RollupPlant:
    """Return the rollup of a day with one sample a minute, whose value is the number of the hour."""
    station = RollupPlant(zone)
    for minute, now in every_minute(zone, day, hours):
        station.batch(now, [float(minute // 60)])
    station.tick(datetime.fromtimestamp(at(day, zone).timestamp() + 3600 * hours, zone))
    return station


def test_hours_of_a_half_hour_zone_begin_by_its_wall_clock() -> None:
    station = a_day_of(KOLKATA, "2025-12-18", 24)
    assert station.hours() == [(f"2025-12-18 {hour:02}:00:00", float(hour)) for hour in range(24)]
    # 10:00 in Kolkata is 04:30 UTC.
    assert station.updates[599].minute_end.astimezone(UTC) == datetime(2025, 12, 18, 4, 30, tzinfo=UTC)
    assert wall_time(station.updates[599].minute_end) == "2025-12-18 10:00:00"


def test_day_of_23_hours() -> None:
    station = a_day_of(BERLIN, "2025-03-30", 23)
    clock = [hour for hour in range(24) if hour != 2]
    assert station.hours() == [(f"2025-03-30 {hour:02}:00:00", float(i)) for i, hour in enumerate(clock)]
    assert len(station.updates) == 23 * 60
    # The minute that began at 01:59 ends when the clock shows 03:00.
    assert wall_time(station.updates[119].minute_end) == "2025-03-30 03:00:00"


def test_day_of_25_hours_has_a_repeated_hour() -> None:
    station = a_day_of(BERLIN, "2025-10-26", 25)
    clock = [0, 1, 2, *range(2, 24)]
    assert station.hours() == [(f"2025-10-26 {hour:02}:00:00", float(i)) for i, hour in enumerate(clock)]
    assert len(station.updates) == 25 * 60
    ends = [update.minute_end.astimezone(UTC) for update in station.updates]
    assert all(later - earlier == timedelta(minutes=1) for earlier, later in itertools.pairwise(ends))


def test_same_minute_of_a_repeated_hour_is_separate() -> None:
    # 02:30 repeats without samples between: only the offset differs.
    station = RollupPlant(BERLIN)
    station.batch(at("2025-10-26 02:30:10", BERLIN), [1.0])
    station.batch(at("2025-10-26 02:30:10", BERLIN).replace(fold=1), [2.0])
    station.tick(at("2025-10-26 03:00:00", BERLIN))
    assert station.hours() == [("2025-10-26 02:00:00", 1.0), ("2025-10-26 02:00:00", 2.0)]
    assert [update.mean for update in station.updates] == [1.0, 2.0]


# -- a clock that steps


@pytest.mark.parametrize("step", [1, 30, 59])
@pytest.mark.parametrize("moment", ["2025-12-18 10:05:00", "2025-12-18 11:00:00", "2025-12-19 00:00:00"])
def test_small_step_back_neither_loses_nor_repeats_periods(moment: str, step: int) -> None:
    boundary = at(moment)
    station = RollupPlant()
    station.batch(boundary - timedelta(seconds=90), [1.0])
    station.batch(boundary, [2.0])
    # The clock is set back over the boundary, and continues.
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


def test_large_step_back_does_not_stop_the_minutes() -> None:
    station = RollupPlant()
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


# -- sums that exceed a double


@pytest.mark.parametrize("samples", [[1e308, 1e308], [1.7e308, 1.7e308, 1.7e308], [1.7e308, -1.7e308, 1.7e308]])
@pytest.mark.parametrize("kind", ["VIB", "TEMP"])
def test_samples_with_a_sum_that_exceeds_a_double_are_left_out(samples: list[float], kind: str) -> None:
    # Nothing is raised, no other sensor is affected, and no mean is NaN.
    station = RollupPlant()
    now = at("2025-12-18 10:11:12")
    station.tick(now)
    both = {"huge": SensorBatch(kind, array("d", samples)), "other": SensorBatch("TEMP", array("d", [1.0, 2.0]))}
    station.rollup.add(Batch("M", both, now))
    station.batch(at("2025-12-18 10:11:13"), [1.0], sensor="huge", type=kind)
    station.tick(at("2025-12-18 11:00:00"))
    assert {update.sensor: update.mean for update in station.updates}["other"] == 1.5
    assert all(math.isfinite(update.mean) for update in station.updates)
    assert all(math.isfinite(mean) for _, mean in station.hours())


def test_huge_samples_in_many_batches_keep_the_mean_finite() -> None:
    station = RollupPlant()
    for second in range(4):
        station.batch(at(f"2025-12-18 10:11:0{second}"), [1.7e308])
    station.tick(at("2025-12-18 11:00:00"))
    assert all(math.isfinite(update.mean) for update in station.updates)
    assert all(math.isfinite(mean) for _, mean in station.hours())


# -- days, months, years


def test_longer_periods_end_after_the_hour_shortest_first() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-31 22:10:00"), [1.0])
    station.batch(at("2025-12-31 23:10:00"), [2.0])
    station.tick(at("2026-01-01 00:00:00"))
    assert station.ends() == [
        "hour 2025-12-31 22:00:00",
        "hour 2025-12-31 23:00:00",
        "day 2025-12-31 00:00:00",
        "month 2025-12-01 00:00:00",
        "year 2025-01-01 00:00:00",
    ]
    for minute in range(120):
        station.tick(at("2026-01-01 00:00:00") + timedelta(minutes=minute))
    assert len(station.entries) == 5


def test_silent_sensor_ends_its_day_on_time() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 03:10:00"), [1.0])
    station.tick(at("2025-12-18 23:59:59.999"))
    assert station.ends() == ["hour 2025-12-18 03:00:00"]
    station.tick(at("2025-12-19 00:00:00"))
    assert station.ends()[1:] == ["day 2025-12-18 00:00:00"]
    for day in range(20, 32):
        station.tick(at(f"2025-12-{day} 00:00:00"))
    assert len(station.entries) == 2, "days without samples have no end"
    station.tick(at("2026-01-01 00:00:00"))
    assert station.ends()[2:] == ["month 2025-12-01 00:00:00", "year 2025-01-01 00:00:00"]


def test_late_advance_closes_all_ended_periods() -> None:
    station = RollupPlant()
    station.batch(at("2025-11-18 10:11:12"), [1.0])
    station.batch(at("2026-02-03 10:11:12"), [2.0])
    assert station.ends() == [
        "hour 2025-11-18 10:00:00",
        "day 2025-11-18 00:00:00",
        "month 2025-11-01 00:00:00",
        "year 2025-01-01 00:00:00",
    ]


def test_sensor_without_finite_samples_has_no_days() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-31 10:11:12"), [math.nan])
    station.tick(at("2026-01-01 00:00:00"))
    assert station.entries == []


def test_days_of_23_and_25_hours_end_at_midnight() -> None:
    for day, hours in (("2025-03-30", 23), ("2025-10-26", 25)):
        station = a_day_of(BERLIN, day, hours)
        assert [end for end in station.ends() if not end.startswith("hour")] == [f"day {day} 00:00:00"]
        assert sum(hour.bucket.minutes for hour in station.means) == hours * 60
        assert sum(hour.bucket.count for hour in station.means) == hours * 60


@pytest.mark.parametrize(("day", "length"), [("2025-04-06", 24.5), ("2025-10-05", 23.5)])
def test_hours_of_ninety_and_of_thirty_minutes(day: str, length: float) -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    station = RollupPlant(zone)
    for _, now in itertools.islice(every_minute(zone, day, 25), int(length * 60)):
        station.batch(now, [1.0])
    station.tick(datetime.fromtimestamp(at(day, zone).timestamp() + 3600 * length, zone))
    assert len(station.updates) == length * 60
    assert [hour.start.hour for hour in station.means] == list(range(24))
    minutes = {hour.bucket.minutes for hour in station.means}
    assert minutes == {60, 90 if length > 24 else 30}
    assert station.ends()[-1] == f"day {day} 00:00:00"


def test_clock_change_within_an_hour_loses_no_sample() -> None:
    # On the Chatham Islands, 03:45 becomes 02:45: both hours have a part before and after the change.
    zone = ZoneInfo("Pacific/Chatham")
    station = RollupPlant(zone)
    for _, now in every_minute(zone, "2026-04-05", 25):
        station.batch(now, [1.0])
    station.tick(datetime.fromtimestamp(at("2026-04-05", zone).timestamp() + 25 * 3600, zone))
    assert len(station.updates) == 25 * 60
    by_name: dict[str, int] = {}
    for hour in station.means:
        name = wall_time(hour.start)
        by_name[name] = by_name.get(name, 0) + hour.bucket.count
    assert by_name.pop("2026-04-05 02:00:00") == 75
    assert by_name.pop("2026-04-05 03:00:00") == 105
    assert list(by_name.values()) == [60] * 22
    assert station.ends()[-1] == "day 2026-04-05 00:00:00"
    assert station.ends().count("day 2026-04-05 00:00:00") == 1


def test_day_with_a_skipped_midnight() -> None:
    zone = ZoneInfo("America/Sao_Paulo")
    station = RollupPlant(zone)
    station.batch(at("2018-11-03 23:30:00", zone), [1.0])
    station.batch(at("2018-11-04 01:00:00", zone), [2.0])
    assert station.ends() == ["hour 2018-11-03 23:00:00", "day 2018-11-03 00:00:00"]
    station.tick(at("2018-11-05 00:00:00", zone))
    assert station.ends()[2:] == ["hour 2018-11-04 01:00:00", "day 2018-11-04 00:00:00"]


def test_extremes_have_their_time() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:00:01.9"), [1.0, 5.0, math.nan, 5.0])
    station.batch(at("2025-12-18 10:00:02.1"), [math.inf, -7.0, 5.0])
    station.batch(at("2025-12-18 10:30:00"), [-7.0, 9.0])
    station.tick(at("2025-12-18 11:00:00"))
    (hour,) = station.means
    assert (hour.bucket.least, hour.bucket.least_at) == (-7.0, "2025-12-18 10:00:02")
    assert (hour.bucket.greatest, hour.bucket.greatest_at) == (9.0, "2025-12-18 10:30:00")
    assert (hour.bucket.count, hour.bucket.minutes) == (7, 2)


def test_extremes_in_batches_across_a_chunk_have_their_time() -> None:
    station = RollupPlant()
    start = at("2025-12-18 10:00:00")
    # Batches of 100 samples: one is divided between two chunks.
    for second in range(20):
        samples = [float(second)] * 100
        if second == 10:
            samples[-1] = 100.0
            samples[0] = -100.0
        station.batch(start + timedelta(seconds=second), samples)
    station.tick(start + timedelta(hours=1))
    (hour,) = station.means
    assert (hour.bucket.count, hour.bucket.minutes) == (2000, 1)
    assert (hour.bucket.least_at, hour.bucket.greatest_at) == ("2025-12-18 10:00:10", "2025-12-18 10:00:10")


# -- types that change


def test_changed_type_applies_to_open_periods() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:00:00"), [-1.0], type="TEMP")
    station.batch(at("2025-12-18 10:01:00"), [-1.0], type="VIB")
    station.batch(at("2025-12-18 10:02:00"), [-1.0], type="TEMP")
    station.batch(at("2025-12-18 10:03:00"), [-1.0], type="VIB")
    station.tick(at("2025-12-19 00:00:00"))
    # A minute ends with its last type; the sums of the hour hold both means.
    assert [mean for _, mean in station.minutes()] == [-1.0, 1.0, -1.0, 1.0]
    assert [hour.mode for hour in station.means] == ["ABS"]
    assert [entry.mode for entry in station.entries] == ["ABS", "ABS"]
    assert station.means[0].bucket.mean("REAL") == -1.0


def test_batch_without_samples_sets_the_type() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:00:00"), [-1.0], type="TEMP")
    station.batch(at("2025-12-18 10:00:01"), [], type="VIB")
    station.tick(at("2025-12-18 10:01:00"))
    assert station.minutes() == [("2025-12-18 10:01:00", 1.0)]


# -- a clock that is set


@pytest.mark.parametrize("seconds", [61, 600, 3600, 86_400, 40 * 86_400])
@pytest.mark.parametrize("forward", [0, 30, 600, 86_400])
def test_large_steps_neither_lose_nor_repeat_samples(seconds: int, forward: int) -> None:
    station = RollupPlant()
    now = at("2025-12-31 23:50:00")
    number = 0

    def go_on(minutes: int) -> None:
        nonlocal now, number
        for _ in range(6 * minutes):
            station.batch(now, [2.0**number, 0.5])
            number = (number + 1) % 50
            now += timedelta(seconds=10)

    go_on(25)
    now -= timedelta(seconds=seconds)
    go_on(25)
    now += timedelta(seconds=forward)
    go_on(25)
    station.tick(now + timedelta(days=400))
    assert sum(hour.bucket.count for hour in station.means) == 2 * 450
    total = math.fsum(hour.bucket.total for hour in station.means)
    assert total == 9 * (2.0**50 - 1) + 450 / 2
    # All periods end, and not before their hours.
    for period in PERIODS[1:]:
        found = [f"{period} {wall_time(start_of(period, hour.start))}" for hour in station.means]
        ends = station.ends()
        for hour, end in zip(station.means, found, strict=True):
            place = station.entries.index(hour)
            assert end in ends[place + 1 :], "the row is made again after the hour that came late"


def test_step_forward_closes_earlier_periods() -> None:
    station = RollupPlant()
    station.batch(at("2025-12-18 10:11:12"), [1.0])
    station.batch(at("2026-12-18 10:11:12"), [2.0])
    station.batch(at("2025-12-18 10:11:20"), [4.0])
    station.tick(at("2025-12-18 11:00:00"))
    assert station.hours() == [
        ("2025-12-18 10:00:00", 1.0),
        ("2026-12-18 10:00:00", 2.0),
        ("2025-12-18 10:00:00", 4.0),
    ]


# -- resumed after a start


def open_at(time: str) -> dict[str, datetime]:
    """Return the starts of the longer periods that are open at a time."""
    return {period: start_of(period, at(time)) for period in PERIODS[1:]}


def test_resume_closes_periods_without_a_row() -> None:
    station = RollupPlant()
    station.rollup.resume("M", "s", "VIB", open_at("2025-12-31 23:00:00"))
    station.tick(at("2026-01-01 00:00:30"))
    assert station.ends() == [
        "day 2025-12-31 00:00:00",
        "month 2025-12-01 00:00:00",
        "year 2025-01-01 00:00:00",
    ]
    assert {entry.mode for entry in station.entries} == {"ABS"}


def test_resume_keeps_open_periods() -> None:
    station = RollupPlant()
    longer = open_at("2025-12-31 23:00:00")
    del longer["day"]
    assert station.rollup.resume("M", "s", None, longer) == "REAL"
    station.tick(at("2025-12-31 23:30:00"))
    assert station.entries == []
    station.tick(at("2026-01-01 00:00:00"))
    assert station.ends() == ["month 2025-12-01 00:00:00", "year 2025-01-01 00:00:00"]


def test_resume_of_a_sensor_without_rows() -> None:
    station = RollupPlant()
    station.rollup.resume("M", "s", "VIB", {})
    station.tick(at("2026-01-01 00:00:00"))
    assert station.entries == []
    station.replay(at("2026-01-01 00:00:00"), [-1.0])
    station.tick(at("2026-01-01 01:00:00"))
    assert station.hours() == [("2026-01-01 00:00:00", 1.0)]


def test_resume_continues_the_day() -> None:
    whole = RollupPlant()
    whole.batch(at("2025-12-18 10:00:00"), [1.0])
    whole.batch(at("2025-12-18 11:00:00"), [2.0])
    whole.tick(at("2025-12-19 00:00:00"))
    station = RollupPlant()
    station.rollup.resume("M", "s", "TEMP", open_at("2025-12-18 10:00:00"))
    station.replay(at("2025-12-18 11:00:00"), [2.0])
    station.tick(at("2025-12-19 00:00:00"))
    assert station.entries == whole.entries[1:]


# -- replayed samples


def cut(items: Sequence[tuple[int, float]], cuts: Iterable[int]) -> Iterator[Sequence[tuple[int, float]]]:
    """Divide items into pieces that begin at the given indices."""
    places = sorted({0, len(items), *(place % (len(items) + 1) for place in cuts)})
    for begin, end in itertools.pairwise(places):
        yield items[begin:end]


SAMPLES = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.1, 1e16, -1e16, 1e-16, 0.0, -0.0, math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 1e200]),
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    # Seconds since the previous batch, and number of samples.
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 1, 7, 59, 60, 1800, 86_400]), st.integers(1, 400)), max_size=14),
    st.lists(SAMPLES, min_size=1, max_size=30),
    st.lists(st.integers(0, 6000), max_size=10),
    st.sampled_from(["2025-12-18 10:11:12", "2025-12-31 22:58:30", "2025-10-26 02:50:00"]),
)
def test_replay_gives_the_same_means_to_the_last_bit(
    gaps: list[tuple[int, int]], values: list[float], cuts: list[int], begin: str
) -> None:
    seconds = at(begin, BERLIN).timestamp()
    stream: list[tuple[int, float]] = []
    live = RollupPlant(BERLIN)
    for gap, count in gaps:
        seconds += gap
        # Not a whole second, although the file holds whole seconds only.
        time = datetime.fromtimestamp(seconds + 0.25, BERLIN)
        samples = list(itertools.islice(itertools.cycle(values[len(stream) % len(values) :] + values), count))
        stream += ((int(seconds), sample) for sample in samples)
        live.batch(time, samples)
    replayed = RollupPlant(BERLIN)
    for piece in cut(stream, cuts):
        for second, group in itertools.groupby(piece, lambda item: item[0]):
            replayed.replay(datetime.fromtimestamp(second, BERLIN), [sample for _, sample in group])
    over = datetime.fromtimestamp(seconds + 400 * 86_400, BERLIN)
    live.tick(over)
    replayed.tick(over)
    assert figures(replayed) == figures(live)


def figures(station: RollupPlant) -> list[str]:
    """Return all updates and entries, every double by its repr."""
    return [*map(repr, station.updates), *(repr(replaced(entry)) for entry in station.entries)]


def replaced(entry: ClosedHour | ClosedPeriod) -> tuple[object, ...]:
    bucket = repr(entry.bucket) if isinstance(entry, ClosedHour) else entry.period
    return entry.machine, entry.sensor, entry.start.timestamp(), entry.mode, bucket


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5000])
@pytest.mark.parametrize("size", [1, 7, 1000, CHUNK, 5000])
def test_minute_with_more_samples_than_a_chunk(count: int, size: int) -> None:
    samples = [math.sin(number) * 10.0 ** (number % 17 - 8) for number in range(count)]
    whole, pieces, replayed = RollupPlant(), RollupPlant(), RollupPlant()
    now = at("2025-12-18 10:11:12")
    whole.batch(now, samples)
    for begin in range(0, count, size):
        pieces.batch(now, samples[begin : begin + size])
        replayed.replay(now, samples[begin : begin + size])
    for station in (whole, pieces, replayed):
        station.tick(at("2025-12-18 11:00:00"))
    assert figures(pieces) == figures(whole)
    assert figures(replayed) == figures(whole)
    (hour,) = whole.means
    assert (hour.bucket.count, hour.bucket.minutes) == (count, 1)
    assert hour.bucket.mean("REAL") == pytest.approx(math.fsum(samples) / count, rel=1e-15)


def test_start_within_a_minute_changes_no_mean() -> None:
    samples = [math.sin(number) for number in range(3000)]
    whole, killed = RollupPlant(), RollupPlant()
    first, second = at("2025-12-18 10:11:12"), at("2025-12-18 10:11:47")
    for station in (whole, killed):
        station.tick(first)
    whole.batch(first, samples[:1500])
    whole.batch(second, samples[1500:])
    killed.replay(first, samples[:1500])
    killed.batch(second, samples[1500:])
    for station in (whole, killed):
        station.tick(at("2025-12-18 11:00:00"))
    assert figures(killed) == figures(whole)


def test_replay_is_of_one_sensor() -> None:
    station = RollupPlant()
    station.replay(at("2025-12-18 10:59:00"), [1.0], sensor="a")
    station.replay(at("2025-12-18 10:58:00"), [2.0], sensor="b")
    station.replay(at("2025-12-18 11:01:00"), [3.0], sensor="a")
    assert [(hour.sensor, hour.bucket.total) for hour in station.means] == [("a", 1.0)]
    station.tick(at("2025-12-18 11:01:00"))
    assert [(hour.sensor, hour.bucket.total) for hour in station.means] == [("a", 1.0), ("b", 2.0)]


def test_replay_over_a_repeated_hour() -> None:
    station = RollupPlant(BERLIN)
    station.replay(at("2025-10-26 02:30:10", BERLIN), [1.0])
    station.replay(at("2025-10-26 02:30:10", BERLIN).replace(fold=1), [2.0])
    station.tick(at("2025-10-26 03:00:00", BERLIN))
    assert [(hour.start.astimezone(UTC).hour, hour.bucket.total) for hour in station.means] == [(0, 1.0), (1, 2.0)]


def test_replay_leaves_out_infinite_samples() -> None:
    station = RollupPlant()
    station.replay(at("2025-12-18 10:11:12"), [math.nan, 1.0, math.inf])
    station.replay(at("2025-12-18 10:11:13"), [])
    station.replay(at("2025-12-18 10:11:14"), [2.0])
    station.tick(at("2025-12-18 11:00:00"))
    (hour,) = station.means
    assert (hour.bucket.count, hour.bucket.total) == (2, 3.0)
    assert hour.bucket.greatest_at == "2025-12-18 10:11:14"
