"""The registry of machines: admission of machines and sensors.

Machines and sensors with stored data are always admitted, others within the bounds of the configuration.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from gateway.config.settings import DaqSettings
from gateway.model.names import name_of
from gateway.model.records import SensorBatch
from gateway.wire.errors import shown_text
from gateway.wire.messages import OmittedSensor

#: Period of the limit on new sensors, and time for which ``/healthz`` shows a refusal, in seconds.
_MINUTE: Final = 60.0
_SHOWN: Final = 300.0


class MachineRegistry:
    """Registry of the machines and sensors that count towards the limits.

    A machine without data counts only while it is connected, and a sensor counts from its first sample on. So names
    without data do not use up the limits.

    :param seconds: monotonic clock.
    """

    def __init__(self, settings: DaqSettings, seconds: Callable[[], float]) -> None:
        self._settings = settings
        self._seconds = seconds
        self._machines: dict[str, set[str]] = {}
        #: Machines with stored data; some may have no sensors.
        self._stored: set[str] = set()
        self._sensors = 0
        #: Times and numbers of the sensors that were new in the last minute.
        self._new: deque[tuple[float, int]] = deque()
        #: The last refused machine, and the time.
        self._refused: tuple[str, float] | None = None

    def update(self, settings: DaqSettings) -> None:
        """Change the limits; machines and sensors beyond them stay."""
        self._settings = settings

    def remember(self, machine: str, sensors: Iterable[str] = ()) -> None:
        """Register a machine with stored data and its known sensors, regardless of the limits."""
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
            if len(self._machines) >= self._settings.max_machines:
                self._refused = machine, self._seconds()
                limit = self._settings.max_machines
                return f"machine {shown_text(machine)} is refused: daq.max_machines ({limit}) is reached"
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
        admitted: dict[str, SensorBatch] = {}
        left_out: list[OmittedSensor] = []
        new = 0
        remaining = self._settings.max_new_sensors_per_minute - self._count_new()
        for name, batch in sensors.items():
            if name not in known:
                if not batch.samples:
                    continue
                reason = self._refusal(len(known), new >= remaining)
                if reason is not None:
                    left_out.append(OmittedSensor(shown_text(name), reason))
                    continue
                new += 1
                known.add(name)
                self._sensors += 1
            admitted[name] = batch
        if new:
            self._new.append((self._seconds(), new))
        return admitted, left_out

    def _refusal(self, count: int, is_minute_full: bool) -> str | None:
        """Return the reason for leaving out a new sensor, or ``None`` to admit it.

        :param count: sensors that its machine already has.
        :param is_minute_full: whether this minute's limit on new sensors is reached.
        """
        settings = self._settings
        if count >= settings.max_machine_sensors:
            return f"daq.max_machine_sensors ({settings.max_machine_sensors}) is reached"
        if self._sensors >= settings.max_sensors:
            return f"daq.max_sensors ({settings.max_sensors}) is reached"
        if is_minute_full:
            return (
                f"daq.max_new_sensors_per_minute ({settings.max_new_sensors_per_minute}) is reached;"
                " it will be admitted within a minute"
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
        if self._refused is None or self._seconds() - self._refused[1] > _SHOWN:
            return []
        machine = shown_text(self._refused[0])
        return [f"daq.max_machines ({self._settings.max_machines}) is reached: machine {machine} was refused"]
