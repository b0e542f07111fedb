"""Timestamps as text: RFC 3339 and wall-clock time."""

from datetime import datetime


def rfc3339(time: datetime, timespec: str = "seconds") -> str:
    """Return a time in the form ``2025-12-18T10:11:12+09:00``."""
    return time.isoformat("T", timespec)


def wall_time(time: datetime, timespec: str = "seconds") -> str:
    """Return a time in the form of the old server, without an offset: ``2025-12-18 10:11:12``."""
    return time.replace(tzinfo=None).isoformat(" ", timespec)
