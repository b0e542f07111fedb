"""Hours, days, months and years of the wall clock: their starts, ends and lengths.

Times are aware, and arithmetic follows the wall clock of their zone. There, a day may have 23 or 25 hours, and an hour
90 minutes (Lord Howe Island).
"""

from datetime import datetime, timedelta
from typing import Final

#: Periods with rows of means, shortest first.
PERIODS: Final = ("hour", "day", "month", "year")

#: Shorter period whose rows each period is computed from.
MADE_OF: Final = {"day": "hour", "month": "day", "year": "month"}

#: Minutes of a full period, for rows without a start.
FULL_MINUTES: Final = {"hour": 60, "day": 24 * 60, "month": 30 * 24 * 60}


def start_of(period: str, time: datetime) -> datetime:
    """Return the start of the period that contains a time.

    A repeated hour has two starts, which differ in ``fold``. A start that the wall clock skips is the moment of the
    skip.
    """
    start = time.replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        other = start.replace(fold=1 - start.fold)
        # On the Chatham Islands, 03:15 is shown twice, and 03:45 once, after both.
        is_after_both = (
            start.utcoffset() != time.utcoffset() == other.utcoffset() and other.timestamp() > start.timestamp()
        )
        return other if is_after_both else start
    time = start.replace(hour=0, fold=0)
    if period == "day":
        return time
    return time.replace(day=1) if period == "month" else time.replace(month=1, day=1)


def end_of(period: str, start: datetime) -> datetime:
    """Return the end of the period with this start, which is the start of the next one."""
    if period == "hour":
        moment = start.timestamp() + 3600
        while (end := start_of("hour", datetime.fromtimestamp(moment, start.tzinfo))).timestamp() <= start.timestamp():
            moment += 600
        return end
    # In wall-clock arithmetic, a day later is the same time on the next day.
    return start_of(period, start + timedelta(days={"day": 1, "month": 32, "year": 366}[period]))


def minutes_of(period: str, start: datetime) -> float:
    """Return the length of the period with this start, in minutes."""
    return (end_of(period, start).timestamp() - start.timestamp()) / 60
