"""Hours, days, months and years of the wall clock, in zones with all kinds of clock changes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.timeseries.calendar import FULL_MINUTES, MADE_OF, PERIODS, end_of, minutes_of, start_of
from tests.support.entries import at

SEOUL = ZoneInfo("Asia/Seoul")
BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
SAO_PAULO = ZoneInfo("America/Sao_Paulo")
BEIRUT = ZoneInfo("Asia/Beirut")
HAVANA = ZoneInfo("America/Havana")

ZONES = [
    ZoneInfo("UTC"),
    SEOUL,
    BERLIN,
    KOLKATA,
    LORD_HOWE,
    SAO_PAULO,
    BEIRUT,
    HAVANA,
    ZoneInfo("Pacific/Apia"),
    ZoneInfo("Asia/Kathmandu"),
    ZoneInfo("America/New_York"),
    ZoneInfo("America/St_Johns"),
    ZoneInfo("Africa/Casablanca"),
    ZoneInfo("Atlantic/Azores"),
    ZoneInfo("Africa/Cairo"),
]


def utc(time: datetime) -> datetime:
    return time.astimezone(UTC)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_made_of_names_the_shorter_periods() -> None:
    assert list(MADE_OF) == list(PERIODS[1:])
    assert list(MADE_OF.values()) == list(PERIODS[:-1]) == list(FULL_MINUTES)


@pytest.mark.parametrize("zone", [SEOUL, KOLKATA, BERLIN], ids=str)
@pytest.mark.parametrize(
    ("period", "start", "end", "minutes"),
    [
        ("hour", "2024-02-29 10:00:00", "2024-02-29 11:00:00", 60),
        ("day", "2024-02-29 00:00:00", "2024-03-01 00:00:00", 24 * 60),
        ("month", "2024-02-01 00:00:00", "2024-03-01 00:00:00", 29 * 24 * 60),
        ("year", "2024-01-01 00:00:00", "2025-01-01 00:00:00", 366 * 24 * 60),
    ],
)
def test_periods_of_a_leap_day(zone: ZoneInfo, period: str, start: str, end: str, minutes: int) -> None:
    time = at("2024-02-29 10:11:12.345678", zone)
    assert start_of(period, time) == at(start, zone)
    assert end_of(period, at(start, zone)) == at(end, zone)
    assert minutes_of(period, at(start, zone)) == minutes


@pytest.mark.parametrize(
    ("period", "time", "start", "end"),
    [
        ("hour", "2025-12-31 23:59:59.999999", "2025-12-31 23:00:00", "2026-01-01 00:00:00"),
        ("day", "2025-12-31 23:59:59.999999", "2025-12-31 00:00:00", "2026-01-01 00:00:00"),
        ("month", "2025-12-31 23:59:59.999999", "2025-12-01 00:00:00", "2026-01-01 00:00:00"),
        ("year", "2025-12-31 23:59:59.999999", "2025-01-01 00:00:00", "2026-01-01 00:00:00"),
        ("month", "2025-01-31 12:00:00", "2025-01-01 00:00:00", "2025-02-01 00:00:00"),
        ("month", "2025-02-28 12:00:00", "2025-02-01 00:00:00", "2025-03-01 00:00:00"),
        ("year", "2025-01-01 00:00:00", "2025-01-01 00:00:00", "2026-01-01 00:00:00"),
        ("year", "2023-06-01 00:00:00", "2023-01-01 00:00:00", "2024-01-01 00:00:00"),
    ],
)
def test_periods_have_their_boundaries(period: str, time: str, start: str, end: str) -> None:
    assert start_of(period, at(time, SEOUL)) == at(start, SEOUL)
    assert end_of(period, at(start, SEOUL)) == at(end, SEOUL)


def test_hours_of_a_half_hour_zone_begin_by_its_wall_clock() -> None:
    start = start_of("hour", at("2025-12-18 10:11:12", KOLKATA))
    assert utc(start) == moment("2025-12-18 04:30:00")
    assert utc(end_of("hour", start)) == moment("2025-12-18 05:30:00")


# -- days of 23 and 25 hours


@pytest.mark.parametrize(
    ("day", "hours"), [("2025-03-30", 23), ("2025-10-26", 25), ("2025-03-29", 24), ("2025-03-31", 24)]
)
def test_days_of_berlin_have_23_24_or_25_hours(day: str, hours: int) -> None:
    start = at(f"{day} 00:00:00", BERLIN)
    assert minutes_of("day", start) == hours * 60
    assert end_of("day", start) == at(f"{day} 00:00:00", BERLIN) + timedelta(days=1)
    found = [start]
    while (following := end_of("hour", found[-1])).timestamp() < end_of("day", start).timestamp():
        found.append(following)
    assert len(found) == hours
    assert {minutes_of("hour", hour) for hour in found} == {60}


def test_months_and_years_include_clock_changes() -> None:
    assert minutes_of("month", at("2025-03-01 00:00:00", BERLIN)) == 31 * 24 * 60 - 60
    assert minutes_of("month", at("2025-10-01 00:00:00", BERLIN)) == 31 * 24 * 60 + 60
    assert minutes_of("year", at("2025-01-01 00:00:00", BERLIN)) == 365 * 24 * 60


def test_repeated_hour_has_two_starts() -> None:
    first = start_of("hour", at("2025-10-26 02:30:00", BERLIN))
    second = start_of("hour", at("2025-10-26 02:30:00", BERLIN, fold=1))
    assert (utc(first), utc(second)) == (moment("2025-10-26 00:00:00"), moment("2025-10-26 01:00:00"))
    assert utc(end_of("hour", first)) == utc(second)
    assert utc(end_of("hour", second)) == moment("2025-10-26 02:00:00")
    assert start_of("day", second) == at("2025-10-26 00:00:00", BERLIN)


def test_hour_before_a_skipped_hour_ends_after_the_skip() -> None:
    start = at("2025-03-30 01:00:00", BERLIN)
    end = end_of("hour", start)
    assert utc(end) == moment("2025-03-30 01:00:00")
    assert end.hour == 3


# -- half-hour shifts


def test_hour_of_ninety_minutes() -> None:
    start = at("2025-04-06 01:00:00", LORD_HOWE)
    for minute, fold in ((0, 0), (29, 0), (30, 0), (59, 0), (30, 1), (59, 1)):
        found = start_of("hour", at(f"2025-04-06 01:{minute:02}:30", LORD_HOWE, fold))
        assert utc(found) == utc(start), (minute, fold)
    assert minutes_of("hour", start) == 90
    assert end_of("hour", start) == at("2025-04-06 02:00:00", LORD_HOWE)
    assert minutes_of("day", at("2025-04-06 00:00:00", LORD_HOWE)) == 24 * 60 + 30


def test_hour_of_thirty_minutes() -> None:
    # 02:00 is skipped, so the hour begins with the skip.
    start = start_of("hour", at("2025-10-05 02:45:00", LORD_HOWE))
    assert utc(start) == moment("2025-10-04 15:30:00")
    assert utc(end_of("hour", at("2025-10-05 01:00:00", LORD_HOWE))) == utc(start)
    assert minutes_of("hour", start) == 30
    assert end_of("hour", start) == at("2025-10-05 03:00:00", LORD_HOWE)
    assert minutes_of("day", at("2025-10-05 00:00:00", LORD_HOWE)) == 24 * 60 - 30


# -- midnights


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [(SAO_PAULO, "2018-11-04", "2018-11-04 03:00:00"), (BEIRUT, "2025-03-30", "2025-03-29 22:00:00")],
    ids=str,
)
def test_day_with_a_skipped_midnight_begins_with_the_skip(zone: ZoneInfo, day: str, begins: str) -> None:
    start = start_of("day", at(f"{day} 12:00:00", zone))
    assert (start.date().isoformat(), utc(start)) == (day, moment(begins))
    assert utc(start_of("hour", at(f"{day} 01:00:00", zone))) == utc(start)
    before = start_of("day", at(f"{day} 12:00:00", zone) - timedelta(days=1))
    assert utc(end_of("day", before)) == utc(start)
    assert utc(end_of("hour", before.replace(hour=23))) == utc(start)
    assert minutes_of("day", start) == 23 * 60
    assert minutes_of("day", before) == 24 * 60


def test_day_with_a_repeated_midnight_is_one_day() -> None:
    # Havana sets its clocks back at 01:00, so the hour from midnight repeats within one day.
    first, second = at("2025-11-02 00:30:00", HAVANA), at("2025-11-02 00:30:00", HAVANA, fold=1)
    assert utc(start_of("day", first)) == utc(start_of("day", second)) == moment("2025-11-02 04:00:00")
    assert utc(start_of("hour", second)) == moment("2025-11-02 05:00:00")
    assert minutes_of("day", start_of("day", second)) == 25 * 60
    assert utc(end_of("day", at("2025-11-01 00:00:00", HAVANA))) == moment("2025-11-02 04:00:00")


def test_repeated_last_hour_of_a_day() -> None:
    # Beirut sets its clocks back at midnight, to 23:00 of the same day.
    first, second = at("2025-10-25 23:30:00", BEIRUT), at("2025-10-25 23:30:00", BEIRUT, fold=1)
    assert utc(end_of("hour", start_of("hour", first))) == utc(start_of("hour", second))
    assert utc(end_of("hour", start_of("hour", second))) == utc(end_of("day", start_of("day", first)))
    assert minutes_of("day", start_of("day", second)) == 25 * 60


# -- any time in any zone


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(PERIODS),
    st.sampled_from(ZONES),
    st.floats(moment("2012-01-01 00:00:00").timestamp(), moment("2038-01-01 00:00:00").timestamp()),
)
def test_any_time_is_within_its_period(period: str, zone: ZoneInfo, seconds: float) -> None:
    holds(period, datetime.fromtimestamp(seconds, zone))


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_times_around_clock_changes_are_within_their_periods(zone: ZoneInfo) -> None:
    time = moment("2016-01-01 00:00:00")
    offset = time.astimezone(zone).utcoffset()
    while time.year < 2020:
        time += timedelta(minutes=30)
        if time.astimezone(zone).utcoffset() != offset:
            offset = time.astimezone(zone).utcoffset()
            for minutes in range(-180, 180, 15):
                for period in PERIODS:
                    holds(period, (time + timedelta(minutes=minutes)).astimezone(zone))


def holds(period: str, time: datetime) -> None:
    """Check that a period contains its time, and that the next one begins at its end."""
    start = start_of(period, time)
    assert start.timestamp() <= time.timestamp()
    assert utc(start_of(period, start)) == utc(start)
    end = end_of(period, start)
    assert end.timestamp() > time.timestamp()
    assert minutes_of(period, start) > 0
    assert utc(start_of(period, end)) == utc(end)
    # Periods are contiguous: the first moment and the last one are in the period, the one before is not.
    for seconds, inside in ((end.timestamp() - 1, True), (start.timestamp(), True), (start.timestamp() - 1, False)):
        other = start_of(period, datetime.fromtimestamp(seconds, time.tzinfo))
        assert (utc(other) == utc(start)) is inside
    if not inside:
        assert utc(end_of(period, other)) == utc(start)
    if period != "hour":
        inner = MADE_OF[period]
        assert utc(end_of(inner, start_of(inner, datetime.fromtimestamp(end.timestamp() - 1, time.tzinfo)))) == utc(end)
