"""Which machines and sensors have a place: those with stored data always, others within bounds."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.model import SensorBatch, name_of
from gateway.wire.errors import shown_text
from gateway.wire.messages import LeftOut

#: Seconds that a bound of new sensors is of, and that a refusal stands in ``/healthz``.
_MINUTE: Final = 60.0
_TOLD: Final = 300.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of what DAQ programs may bring.

    :ivar machines: machines with and without data; one more is refused.
    :ivar sensors: sensors of all machines; one more is left out.
    :ivar machine_sensors: sensors of one machine.
    :ivar new_sensors: sensors in a minute that were not known before.
    """

    machines: int
    sensors: int
    machine_sensors: int
    new_sensors: int


class Admission:
    """Places for machines and their sensors.

    A machine without data has its place only while it is connected, and a sensor has none before its first sample: so
    names that come and go take nothing from machines that measure.

    :param seconds: a monotonic clock.
    """

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]) -> None:
        self._bounds = bounds
        self._seconds = seconds
        self._machines: dict[str, set[str]] = {}
        #: Machines that have stored data, and need not have sensors.
        self._stored: set[str] = set()
        self._sensors = 0
        #: How many new sensors came when, of the last minute.
        self._new: deque[tuple[float, int]] = deque()
        #: The last machine that was refused, and when.
        self._refused: tuple[str, float] | None = None

    def remember(self, machine: str, sensors: Iterable[str] = ()) -> None:
        """Give a machine with stored data its place, and its known sensors theirs, whatever the bounds."""
        name = name_of(machine)
        if name is not None:
            known = self._machines.setdefault(name, set())
            self._stored.add(name)
            self._sensors -= len(known)
            known.update(filter(None, map(name_of, sensors)))
            self._sensors += len(known)

    def enter(self, machine: str) -> str | None:
        """Give a machine its place; returns why it has none."""
        if machine not in self._machines:
            if len(self._machines) >= self._bounds.machines:
                self._refused = machine, self._seconds()
                return f"machine {shown_text(machine)} is one more than daq.max_machines ({self._bounds.machines})"
            self._machines[machine] = set()
        return None

    def keep(self, machine: str) -> None:
        """Let a machine keep its place: it has stored data."""
        self._stored.add(machine)

    def leave(self, machine: str) -> None:
        """Forget a machine that has disconnected, unless it has data."""
        if machine not in self._stored and not self._machines.get(machine):
            self._machines.pop(machine, None)

    def admit(self, machine: str, sensors: dict[str, SensorBatch]) -> tuple[dict[str, SensorBatch], list[LeftOut]]:
        """Return the sensors that have a place, and those that have none, with the reason."""
        known = self._machines[machine]
        if sensors.keys() <= known:
            return sensors, []
        taken: dict[str, SensorBatch] = {}
        left_out: list[LeftOut] = []
        new = 0
        room = self._bounds.new_sensors - self._count_new()
        for name, batch in sensors.items():
            if name not in known:
                if not batch.samples:
                    continue
                reason = self._reason(len(known), new >= room)
                if reason is not None:
                    left_out.append(LeftOut(shown_text(name), reason))
                    continue
                new += 1
                known.add(name)
                self._sensors += 1
            taken[name] = batch
        if new:
            self._new.append((self._seconds(), new))
        return taken, left_out

    def _reason(self, count: int, is_late: bool) -> str | None:
        """Return why a machine that has so many sensors can have no further one now."""
        bounds = self._bounds
        if count >= bounds.machine_sensors:
            return f"it is one more than daq.max_machine_sensors ({bounds.machine_sensors})"
        if self._sensors >= bounds.sensors:
            return f"it is one more than daq.max_sensors ({bounds.sensors})"
        if is_late:
            return (
                f"more new sensors came than daq.max_new_sensors_per_minute ({bounds.new_sensors});"
                " it is taken within a minute"
            )
        return None

    def _count_new(self) -> int:
        """Return how many sensors were new in the last minute."""
        since = self._seconds() - _MINUTE
        while self._new and self._new[0][0] <= since:
            self._new.popleft()
        return sum(count for _, count in self._new)

    def problems(self) -> list[str]:
        """Return what was refused in the last minutes, for ``/healthz``."""
        if self._refused is None or self._seconds() - self._refused[1] > _TOLD:
            return []
        return [
            f"daq.max_machines ({self._bounds.machines}) is reached: machine {shown_text(self._refused[0])} was refused"
        ]
