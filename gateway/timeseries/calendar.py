"""Hours, days, months and years of the wall clock: where each begins, ends, and how long it is.

Times are aware; all arithmetic is the wall clock's of their zone, in which a day may have 23 or 25 hours and an hour,
on Lord Howe Island, 90 minutes.
"""

from datetime import datetime, timedelta
from typing import Final

#: What has rows of means, shortest first.
PERIODS: Final = ("hour", "day", "month", "year")

#: Which period's rows each is made of.
MADE_OF: Final = {"day": "hour", "month": "day", "year": "month"}

#: Minutes of each where a row does not say when it began.
FULL_MINUTES: Final = {"hour": 60, "day": 24 * 60, "month": 30 * 24 * 60}


def start_of(period: str, time: datetime) -> datetime:
    """The start of the period that a time lies in.

    An hour that comes twice has two starts, told by ``fold``. A start that the wall clock skips is the moment of the
    skip.
    """
    start = time.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        other = start.replace(fold=1 - start.fold)
        # On the Chatham Islands a quarter past three comes twice, and a quarter to four once, after both.
        after_both = (
            start.utcoffset() != time.utcoffset() == other.utcoffset() and other.timestamp() > start.timestamp()
        )
        return other if after_both else start
    time = start.replace(hour=0, fold=0)
    if period == "day":
        return time
    return time.replace(day=1) if period == "month" else time.replace(month=1, day=1)


def end_of(period: str, start: datetime) -> datetime:
    """The end of the period that has this start, which is the start of the next one."""
    if period == "hour":
        moment = start.timestamp() + 3600
        while (end := start_of("hour", datetime.fromtimestamp(moment, start.tzinfo))).timestamp() <= start.timestamp():
            moment += 600
        return end
    # Wall-clock arithmetic: a day later is the same time of the next day.
    return start_of(period, start + timedelta(days={"day": 1, "month": 32, "year": 366}[period]))


def minutes_of(period: str, start: datetime) -> float:
    """How many minutes the period that has this start lasts."""
    return (end_of(period, start).timestamp() - start.timestamp()) / 60
