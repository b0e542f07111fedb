"""Connections of DAQ programs that are replaced by another one of the same machine."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Maximum seconds between takeovers of a machine that count as repeated.
REPEATED: Final = 60.0

#: Seconds for which a refused connection, or the first one that is taken over, is held unread before it is closed.
HOLD: Final = 1.0

#: Maximum hold when takeovers of a machine repeat, in seconds.
MAX_HOLD: Final = 10.0

#: Maximum machines with remembered takeovers.
_MAX_MACHINES: Final = 10_000


class Takeovers:
    """Record of the machines whose connection was taken over by another one.

    :param seconds: monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float], counters: Counters, warnings: LimitedLog) -> None:
        self._seconds = seconds
        self._counter = counters.daq_takeovers
        self._warnings = warnings
        #: By machine, in order of the last takeover: number of takeovers in a row, and the time of the last one.
        self._takeovers: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, machine: str, peer: str, before: str) -> float:
        """Count and log a takeover; return the seconds for which the replaced connection is held.

        :param peer: peer of the new connection.
        :param before: peer of the replaced one.
        """
        self._counter.inc()
        count = self._count(machine)
        fields = {"machine": machine, "peer": peer, "before": before, "count": count}
        text = "machine {machine}: {peer} takes over from {before}"
        if count == 1:
            self._warnings.info(f"presence {machine}", text, **fields)
        else:
            text += ", takeover {count} in a row; if two programs send under one name, give each its own name"
            self._warnings.warn(f"takeover {machine}", text, **fields)
        return min(HOLD * 2.0 ** min(count - 1, 10), MAX_HOLD)

    def _count(self, machine: str) -> int:
        now = self._seconds()
        count, last = self._takeovers.pop(machine, (0, now))
        count = 1 if now - last > REPEATED else count + 1
        self._takeovers[machine] = count, now
        if len(self._takeovers) > _MAX_MACHINES:
            self._takeovers.popitem(last=False)
        return count
