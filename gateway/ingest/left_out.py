"""The sensors that are currently left out of messages, for the log and ``/healthz``."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.errors import shown_text
from gateway.wire.messages import OmittedSensor

#: Seconds after which a left-out sensor is forgotten if it is not sent again.
_REMEMBERED: Final = 300.0

#: Maximum log lines a minute of one machine, and seconds after which a line may name a sensor again.
_MAX_LINES: Final = 20
_REPEATED_AFTER: Final = 60.0

#: Maximum machines, and sensors of each, that are remembered; and maximum machines, and sensors of each, that
#: ``/healthz`` names.
_MAX_MACHINES: Final = 1000
_MAX_SENSORS: Final = 20
_MAX_SHOWN: Final = 10

#: Maximum sensors of a machine for which it is remembered when a log line named them.
_MAX_NAMED: Final = 200


class _LeftOut:
    """The sensors of one machine that are left out.

    :ivar sensors: by sensor, the reason, and the last time it was left out.
    :ivar named: by sensor, the time at which a log line named it, the longest ago first.
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
    """Counter and reporter of the sensors that are left out of messages.

    :param seconds: monotonic clock.
    """

    def __init__(self, counters: Counters, warnings: LimitedLog, seconds: Callable[[], float]) -> None:
        self._counter = counters.daq_left_out
        self._warnings = warnings.limited(_MAX_LINES)
        self._seconds = seconds
        #: The most recent last.
        self._machines: dict[str, _LeftOut] = {}

    def add(self, machine: str, peer: str, left_out: Sequence[OmittedSensor]) -> None:
        """Count and log the sensors that were left out of a message."""
        self._counter.inc(len(left_out))
        now = self._seconds()
        known = self._machines.pop(machine, None) or _LeftOut()
        self._machines[machine] = known
        if len(self._machines) > _MAX_MACHINES:
            del self._machines[next(iter(self._machines))]
        self._log(machine, peer, known.named, left_out, now)
        known.forget_before(now - _REMEMBERED)
        known.more = 0
        for sensor, reason in left_out:
            if sensor in known.sensors or len(known.sensors) < _MAX_SENSORS:
                known.sensors[sensor] = reason, now
            else:
                known.more += 1

    def _log(
        self, machine: str, peer: str, named: dict[str, float], left_out: Sequence[OmittedSensor], now: float
    ) -> None:
        """Log each sensor with its reason, first those not named for the longest time.

        A machine may have more such sensors than lines a minute: the others then follow in the next minutes.
        """
        due = [omitted for omitted in left_out if now - named.get(omitted.sensor, -math.inf) >= _REPEATED_AFTER]
        due.sort(key=lambda omitted: named.get(omitted.sensor, -math.inf))
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
        known = self._machines.get(machine)
        if known is not None:
            for sensor in sensors:
                known.sensors.pop(shown_text(sensor), None)
            if not known.sensors:
                del self._machines[machine]

    def problems(self) -> list[str]:
        """Return one line for each machine whose sensors are left out, the first ten."""
        since = self._seconds() - _REMEMBERED
        lines: list[str] = []
        more = 0
        for machine, known in list(self._machines.items()):
            known.forget_before(since)
            if not known.sensors:
                del self._machines[machine]
            elif len(lines) < _MAX_SHOWN:
                shown = [f"{sensor} are left out: {reason}" for sensor, (reason, _) in known.sensors.items()]
                line = f"machine {machine}: samples of sensor " + "; of sensor ".join(shown[:_MAX_SHOWN])
                others = len(shown[_MAX_SHOWN:]) + known.more
                lines.append(f"{line}; and of {others} more sensors" if others else line)
            else:
                more += 1
        return [*lines, f"samples of {more} more machines are left out"] if more else lines
