"""Record of the sensors that are currently left out of messages."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gateway.counters import Counters
from gateway.logs import LimitedLog
from gateway.wire.errors import shown_text
from gateway.wire.messages import LeftOut

#: Seconds after which a left-out sensor that does not come again is forgotten.
_FORGOTTEN: Final = 300.0

#: Maximum machines, and sensors of each, that are remembered; and maximum machines that ``/healthz`` names.
_MAX_MACHINES: Final = 1000
_MAX_SENSORS: Final = 20
_MAX_TOLD: Final = 10


class LeftOutSensors:
    """Counter of the sensors left out of messages, which reports them in the log and in ``/healthz``.

    :param seconds: monotonic clock.
    """

    def __init__(self, counters: Counters, warnings: LimitedLog, seconds: Callable[[], float]) -> None:
        self._counter = counters.daq_left_out
        self._warnings = warnings
        self._seconds = seconds
        #: By machine, the most recent last, and sensor: the reason, and the last time it was left out.
        self._machines: dict[str, dict[str, tuple[str, float]]] = {}

    def add(self, machine: str, peer: str, left_out: Sequence[LeftOut]) -> None:
        """Count and log the sensors that were left out of a message."""
        self._counter.inc(len(left_out))
        first = left_out[0]
        self._warnings.warn(
            f"left out {machine}",
            "DAQ message of machine {machine}, {peer}: sensor {sensor} is left out{more}: {reason}",
            machine=machine,
            peer=peer,
            sensor=first.sensor,
            more=f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else "",
            reason=first.reason,
        )
        now = self._seconds()
        sensors = self._machines.pop(machine, {})
        for sensor, reason in left_out:
            if sensor in sensors or len(sensors) < _MAX_SENSORS:
                sensors[sensor] = reason, now
        self._machines[machine] = sensors
        if len(self._machines) > _MAX_MACHINES:
            del self._machines[next(iter(self._machines))]

    def taken(self, machine: str, sensors: Iterable[str]) -> None:
        """Forget sensors that were taken."""
        found = self._machines.get(machine)
        if found is not None:
            for sensor in sensors:
                found.pop(shown_text(sensor), None)
            if not found:
                del self._machines[machine]

    def problems(self) -> list[str]:
        """Return one line for each machine whose sensors are left out, the first ten."""
        since = self._seconds() - _FORGOTTEN
        lines: list[str] = []
        more = 0
        for machine, sensors in list(self._machines.items()):
            for sensor in [sensor for sensor, (_, last) in sensors.items() if last <= since]:
                del sensors[sensor]
            if not sensors:
                del self._machines[machine]
            elif len(lines) < _MAX_TOLD:
                (sensor, (reason, _)), *others = sensors.items()
                also = "".join(f", {other}" for other, _ in others[:3]) + (" and others" if len(others) > 3 else "")
                also = f" (also left out: {also[2:]})" if others else ""
                lines.append(f"machine {machine}: samples of sensor {sensor} are left out: {reason}{also}")
            else:
                more += 1
        return [*lines, f"samples of {more} more machines are left out"] if more else lines
