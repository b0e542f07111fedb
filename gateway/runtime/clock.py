"""What time it is: the wall clock in the configured zone, and a clock for ages that never steps."""

import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import tzlocal

#: The wall clock may be set back by so many seconds without time going back.
HELD: Final = 60.0


class WallClock:
    """The two clocks of the gateway.

    When the wall clock is set back a little, :meth:`now` stands still until it is there again: what arrives meanwhile
    has been counted into no minute that is over. When it is set back further, so is :meth:`now`.

    :param zone: where the plant's wall clock hangs.
    :param wall: seconds since 1970, UTC; may step.
    :param monotonic: seconds since some moment; never steps.
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
        """What the wall clock shows."""
        wall = self.wall()
        latest = self._latest
        if latest - HELD <= wall < latest:
            wall = latest
        else:
            self._latest = wall
        return datetime.fromtimestamp(wall, self.zone)

    def step(self) -> float:
        """By how many seconds the wall clock was set since this was last asked, as the other clock tells."""
        ahead = self.wall() - self.monotonic()
        step = ahead - self._ahead
        self._ahead = ahead
        return step


def zone_named(name: str | None) -> tzinfo:
    """The zone of an IANA name; the machine's own for ``None``."""
    return tzlocal.get_localzone() if name is None else ZoneInfo(name)
