"""Record of the sensors that are currently left out of messages."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.errors import shown_text
from gateway.wire.messages import OmittedSensor

#: Seconds after which a left-out sensor that does not come again is forgotten.
_FORGOTTEN: Final = 300.0

#: Maximum log lines a minute of one machine, and seconds after which a sensor may be named again.
_LINES: Final = 20
_NAMED_AGAIN: Final = 60.0

#: Maximum machines, and sensors of each, that are remembered; and maximum machines, and sensors of each, that
#: ``/healthz`` names.
_MAX_MACHINES: Final = 1000
_MAX_SENSORS: Final = 20
_MAX_TOLD: Final = 10

#: Maximum sensors of a machine for which it is remembered when a log line named them.
_MAX_NAMED: Final = 200


class _Machine:
    """The sensors of one machine that are left out.

    :ivar sensors: reason of each, and the last time it was left out.
    :ivar named: time at which a log line named a sensor, the longest ago first.
    :ivar more: number of sensors of the last message that are not in ``sensors``.
    """

    __slots__ = ("more", "named", "sensors")

    def __init__(self) -> None:
        self.sensors: dict[str, tuple[str, float]] = {}
        self.named: dict[str, float] = {}
        self.more = 0

    def forget_before(self, time: float) -> None:
        for sensor in [sensor for sensor, (_, last) in self.sensors.items() if last <= time]:
            del self.sensors[sensor]


class LeftOutSensors:
    """Counter of the sensors left out of messages, which reports them in the log and in ``/healthz``.

    :param seconds: monotonic clock.
    """

    def __init__(self, counters: Counters, warnings: LimitedLog, seconds: Callable[[], float]) -> None:
        self._counter = counters.daq_left_out
        self._warnings = warnings.limited(_LINES)
        self._seconds = seconds
        #: The most recent last.
        self._machines: dict[str, _Machine] = {}

    def add(self, machine: str, peer: str, left_out: Sequence[OmittedSensor]) -> None:
        """Count and log the sensors that were left out of a message."""
        self._counter.inc(len(left_out))
        now = self._seconds()
        found = self._machines.pop(machine, None) or _Machine()
        self._machines[machine] = found
        if len(self._machines) > _MAX_MACHINES:
            del self._machines[next(iter(self._machines))]
        self._log(machine, peer, found.named, left_out, now)
        found.forget_before(now - _FORGOTTEN)
        found.more = 0
        for sensor, reason in left_out:
            if sensor in found.sensors or len(found.sensors) < _MAX_SENSORS:
                found.sensors[sensor] = reason, now
            else:
                found.more += 1

    def _log(
        self, machine: str, peer: str, named: dict[str, float], left_out: Sequence[OmittedSensor], now: float
    ) -> None:
        """Log each sensor with its reason, first those not named for the longest time.

        A machine may have more such sensors than lines a minute: the others then follow in the next minutes.
        """
        due = [each for each in left_out if now - named.get(each.sensor, -math.inf) >= _NAMED_AGAIN]
        due.sort(key=lambda each: named.get(each.sensor, -math.inf))
        for sensor, reason in due:
            if self._warnings.warn(
                f"left out {machine}",
                "DAQ message of machine {machine}, {peer}: sensor {sensor} is left out: {reason}",
                machine=machine,
                peer=peer,
                sensor=sensor,
                reason=reason,
            ):
                named.pop(sensor, None)
                named[sensor] = now
        while len(named) > _MAX_NAMED:
            del named[next(iter(named))]

    def remove(self, machine: str, sensors: Iterable[str]) -> None:
        """Remove sensors that are admitted now."""
        found = self._machines.get(machine)
        if found is not None:
            for sensor in sensors:
                found.sensors.pop(shown_text(sensor), None)
            if not found.sensors:
                del self._machines[machine]

    def problems(self) -> list[str]:
        """Return one line for each machine whose sensors are left out, the first ten."""
        since = self._seconds() - _FORGOTTEN
        lines: list[str] = []
        more = 0
        for machine, found in list(self._machines.items()):
            found.forget_before(since)
            if not found.sensors:
                del self._machines[machine]
            elif len(lines) < _MAX_TOLD:
                told = [f"{sensor} are left out: {reason}" for sensor, (reason, _) in found.sensors.items()]
                line = f"machine {machine}: samples of sensor " + "; of sensor ".join(told[:_MAX_TOLD])
                others = len(told[_MAX_TOLD:]) + found.more
                lines.append(f"{line}; and of {others} more sensors" if others else line)
            else:
                more += 1
        return [*lines, f"samples of {more} more machines are left out"] if more else lines
