"""Clocks: the wall clock in the configured zone, and a monotonic clock for ages."""

import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import tzlocal

#: Seconds by which the wall clock may be set back without :meth:`WallClock.now` going back.
HELD: Final = 60.0


class WallClock:
    """The two clocks of the gateway.

    When the wall clock is set back a little, :meth:`now` repeats its latest value until the clock has caught up, so
    that no sample is counted into a closed minute. When it is set back further, so is :meth:`now`.

    :param zone: time zone of the plant.
    :param wall: returns seconds since 1970, UTC; may step.
    :param monotonic: returns seconds since an arbitrary moment; never steps.
    """

    def __init__(
        self,
        zone: tzinfo,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.zone = zone
        self.wall = wall
        self.monotonic = monotonic
        self._latest = 0.0
        self._ahead = wall() - monotonic()

    def now(self) -> datetime:
        """Return the wall-clock time."""
        wall = self.wall()
        latest = self._latest
        if latest - HELD <= wall < latest:
            wall = latest
        else:
            self._latest = wall
        return datetime.fromtimestamp(wall, self.zone)

    def step(self) -> float:
        """Return the seconds by which the wall clock was set since the last call, compared with the monotonic clock."""
        ahead = self.wall() - self.monotonic()
        step = ahead - self._ahead
        self._ahead = ahead
        return step


def zone_named(name: str | None) -> tzinfo:
    """Return the time zone of an IANA name; the system's for ``None``.

    :raises KeyError, ValueError, OSError: not a known zone, or the system's zone cannot be detected.
    """
    return tzlocal.get_localzone() if name is None else ZoneInfo(name)
