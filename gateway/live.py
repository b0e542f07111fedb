"""What is true now: each scale's latest weight, who is connected, each sensor's last hour of minutes."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.model import Presence, Reading, Update

#: How many updates of a sensor a client is given on arrival; the old server kept as many.
RECENT_UPDATES: Final = 60


@dataclass(slots=True)
class ScaleState:
    """One scale.

    :ivar latest: its latest stable gross weight.
    :ivar latest_at: when that came, on the monotonic clock.
    """

    idle_timeout: float
    latest: Reading | None = None
    latest_at: float = 0.0
    connected: bool = False


class Live:
    """The present state; a sink of the bus.

    :param scales: the configured scales and their idle time-outs in seconds.
    """

    def __init__(self, bus: Bus, clock: WallClock, scales: dict[str, float]) -> None:
        self._clock = clock
        self._scales = {scale_id: ScaleState(timeout) for scale_id, timeout in scales.items()}
        self._recent: dict[str, dict[str, deque[Update]]] = {}
        self._connected: dict[str, None] = {}
        bus.attach(Reading, "live", self._on_reading)
        bus.attach(Update, "live", self._on_update)
        bus.attach(Presence, "live", self._on_presence)

    def _on_reading(self, reading: Reading) -> None:
        if reading.settled:
            state = self._scales[reading.scale_id]
            state.latest = reading
            state.latest_at = self._clock.monotonic()

    def _on_update(self, update: Update) -> None:
        sensors = self._recent.setdefault(update.machine, {})
        sensors.setdefault(update.sensor, deque(maxlen=RECENT_UPDATES)).append(update)

    def restore(self, updates: Iterable[Update]) -> None:
        """Know updates of before the start, oldest first."""
        for update in updates:
            self._on_update(update)

    def _on_presence(self, presence: Presence) -> None:
        if presence.source == "scale":
            self._scales[presence.name].connected = presence.connected
        elif presence.connected:
            self._connected[presence.name] = None
            self._recent.setdefault(presence.name, {})
        else:
            self._connected.pop(presence.name, None)

    # -- scales

    def scale_ids(self) -> list[str]:
        return list(self._scales)

    def has_scale(self, scale_id: str) -> bool:
        return scale_id in self._scales

    def latest(self, scale_id: str) -> Reading | None:
        """The scale's latest stable gross weight.

        :raises KeyError: there is no such scale.
        """
        return self._scales[scale_id].latest

    def age(self, scale_id: str) -> float:
        """Seconds since the latest weight came, by the monotonic clock."""
        return self._clock.monotonic() - self._scales[scale_id].latest_at

    def is_stale(self, scale_id: str) -> bool:
        """Whether the idle time-out has passed since the latest weight."""
        return self.age(scale_id) >= self._scales[scale_id].idle_timeout

    def scale_snapshot(self, scale_id: str) -> dict[str, Any]:
        """What a new subscriber of the scale is told."""
        state = self._scales[scale_id]
        return {"latest": None if state.latest is None else state.latest.payload(), "connected": state.connected}

    # -- machines

    def connected_machines(self) -> list[str]:
        return list(self._connected)

    def machines(self) -> Collection[str]:
        """Every machine seen since the start."""
        return self._recent.keys()

    def recent(self, machine: str) -> Mapping[str, Collection[Update]]:
        """The last updates of each of a machine's sensors, oldest first."""
        return self._recent.get(machine, {})

    def machine_snapshot(self, machine: str) -> dict[str, Any]:
        """What a new subscriber of the machine is told; of a machine never seen, that it is not connected."""
        return {
            "connected": machine in self._connected,
            "sensors": {
                sensor: [update.payload() for update in updates] for sensor, updates in self.recent(machine).items()
            },
        }
