"""Admission of machines and sensors: those with stored data always, others within bounds."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.model.names import name_of
from gateway.model.records import SensorBatch
from gateway.wire.errors import shown_text
from gateway.wire.messages import OmittedSensor

#: Period of the bound on new sensors, and how long ``/healthz`` shows a refusal, in seconds.
_MINUTE: Final = 60.0
_TOLD: Final = 300.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on machines and sensors of DAQ programs.

    :ivar machines: maximum machines, with and without data; further ones are refused.
    :ivar sensors: maximum sensors of all machines; further ones are left out.
    :ivar machine_sensors: maximum sensors of one machine.
    :ivar new_sensors: maximum new sensors in a minute.
    """

    machines: int
    sensors: int
    machine_sensors: int
    new_sensors: int


class Admission:
    """Register of the machines and sensors that count towards the bounds.

    A machine without data counts only while it is connected, and a sensor counts from its first sample on. So names
    that come and go use up nothing that machines with data need.

    :param seconds: monotonic clock.
    """

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]) -> None:
        self._bounds = bounds
        self._seconds = seconds
        self._machines: dict[str, set[str]] = {}
        #: Machines with stored data; some may have no sensors.
        self._stored: set[str] = set()
        self._sensors = 0
        #: Times and numbers of the sensors that were new in the last minute.
        self._new: deque[tuple[float, int]] = deque()
        #: The last refused machine, and the time.
        self._refused: tuple[str, float] | None = None

    def remember(self, machine: str, sensors: Iterable[str] = ()) -> None:
        """Register a machine with stored data and its known sensors, regardless of the bounds."""
        name = name_of(machine)
        if name is not None:
            known = self._machines.setdefault(name, set())
            self._stored.add(name)
            self._sensors -= len(known)
            known.update(filter(None, map(name_of, sensors)))
            self._sensors += len(known)

    def enter(self, machine: str) -> str | None:
        """Register a machine that connects; return the reason if it is refused."""
        if machine not in self._machines:
            if len(self._machines) >= self._bounds.machines:
                self._refused = machine, self._seconds()
                return f"machine {shown_text(machine)} is one more than daq.max_machines ({self._bounds.machines})"
            self._machines[machine] = set()
        return None

    def keep(self, machine: str) -> None:
        """Keep a machine registered after it disconnects: it has stored data."""
        self._stored.add(machine)

    def leave(self, machine: str) -> None:
        """Forget a machine that has disconnected, unless it has data."""
        if machine not in self._stored and not self._machines.get(machine):
            self._machines.pop(machine, None)

    def admit(
        self, machine: str, sensors: dict[str, SensorBatch]
    ) -> tuple[dict[str, SensorBatch], list[OmittedSensor]]:
        """Split sensors into those that are admitted and those that are left out, with the reason."""
        known = self._machines[machine]
        if sensors.keys() <= known:
            return sensors, []
        taken: dict[str, SensorBatch] = {}
        left_out: list[OmittedSensor] = []
        new = 0
        room = self._bounds.new_sensors - self._count_new()
        for name, batch in sensors.items():
            if name not in known:
                if not batch.samples:
                    continue
                reason = self._reason(len(known), new >= room)
                if reason is not None:
                    left_out.append(OmittedSensor(shown_text(name), reason))
                    continue
                new += 1
                known.add(name)
                self._sensors += 1
            taken[name] = batch
        if new:
            self._new.append((self._seconds(), new))
        return taken, left_out

    def _reason(self, count: int, is_late: bool) -> str | None:
        """Return the reason to leave out a new sensor, or ``None`` to admit it.

        :param count: sensors that its machine already has.
        :param is_late: whether this minute's bound on new sensors is reached.
        """
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
        """Return the number of new sensors in the last minute."""
        since = self._seconds() - _MINUTE
        while self._new and self._new[0][0] <= since:
            self._new.popleft()
        return sum(count for _, count in self._new)

    def problems(self) -> list[str]:
        """Return the last refusal of a machine, if it is recent, for ``/healthz``."""
        if self._refused is None or self._seconds() - self._refused[1] > _TOLD:
            return []
        return [
            f"daq.max_machines ({self._bounds.machines}) is reached: machine {shown_text(self._refused[0])} was refused"
        ]
