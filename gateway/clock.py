"""What time it is: the wall clock in the configured zone, and a clock for ages that never steps."""

import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

import tzlocal


class WallClock:
    """The two clocks of the gateway.

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

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), self.zone)


def zone_named(name: str | None) -> tzinfo:
    """The zone of an IANA name; the machine's own for ``None``."""
    return tzlocal.get_localzone() if name is None else ZoneInfo(name)
