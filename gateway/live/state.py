"""What is true now: each scale's latest weight, who is connected, each sensor's last hour of minutes."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.bus.bus import Bus
from gateway.model.records import Presence, Reading, Update
from gateway.runtime.clock import WallClock

#: Maximum remembered machines that have disconnected without a mean.
MAX_GONE: Final = 1000

#: How many updates of a sensor a client is given on arrival; the old server kept as many.
RECENT_UPDATES: Final = 60


#: Scales, machines and sensors of other gateways that are known at a time: who may write on the database could make up
#: any number of them.
_MOST_HEARD: Final = 100_000

#: This gateway, among those that have a scale or a machine connected.
_HERE: Final = ""


@dataclass(slots=True)
class ScaleState:
    """One scale.

    :ivar is_here: whether it is this gateway's.
    :ivar latest: its latest stable gross weight.
    :ivar latest_at: when that came, on the monotonic clock.
    :ivar holders: the gateways that it is connected to.
    """

    idle_timeout: float
    is_here: bool = True
    latest: Reading | None = None
    latest_at: float = 0.0
    holders: set[str] = field(default_factory=set)


class LiveState:
    """The present state of the whole site: a sink of the bus for what is here, and told by the relay of the rest.

    Where gateways have a scale or a machine of one name, it is one: connected while it is to any of them, its latest
    weight the last that came to any, its updates those of all.

    :param scales: the configured scales and their idle time-outs in seconds.
    :param most_heard: so many names of other gateways are known at most.
    """

    def __init__(self, bus: Bus, clock: WallClock, scales: dict[str, float], most_heard: int = _MOST_HEARD) -> None:
        self._clock = clock
        self._scales = {scale_id: ScaleState(timeout) for scale_id, timeout in scales.items()}
        self._recent: dict[str, dict[str, deque[Update]]] = {}
        #: By machine: the gateways that it is connected to, at least one.
        self._connected: dict[str, set[str]] = {}
        #: Machines that have disconnected without a mean, the most recent last.
        self._gone: dict[str, None] = {}
        #: Machines that were seen on this gateway.
        self._machines_here: dict[str, None] = {}
        self._most_heard = most_heard
        self._heard = 0
        bus.attach(Reading, "live", self._on_reading)
        bus.attach(Update, "live", self._on_update)
        bus.attach(Presence, "live", self._on_presence)

    # -- of this gateway

    def _on_reading(self, reading: Reading) -> None:
        if reading.settled:
            state = self._scales[reading.scale_id]
            state.latest = reading
            state.latest_at = self._clock.monotonic()

    def _on_update(self, update: Update) -> None:
        self._machines_here[update.machine] = None
        sensors = self._recent.setdefault(update.machine, {})
        sensors.setdefault(update.sensor, deque(maxlen=RECENT_UPDATES)).append(update)

    def restore(self, updates: Iterable[Update]) -> None:
        """Know updates of before the start, oldest first."""
        for update in updates:
            self._on_update(update)

    def _on_presence(self, presence: Presence) -> None:
        if presence.source == "machine" and presence.connected:
            self._machines_here[presence.name] = None
        self._hold(_HERE, presence)

    def _hold(self, gateway: str, presence: Presence) -> None:
        if presence.source == "scale":
            holders = self._scales[presence.name].holders
        elif presence.connected:
            holders = self._connected.setdefault(presence.name, set())
            self._recent.setdefault(presence.name, {})
        else:
            holders = self._connected.get(presence.name, set())
        if presence.connected:
            holders.add(gateway)
        else:
            holders.discard(gateway)
            if presence.source == "machine" and not holders:
                self._connected.pop(presence.name, None)
                self._forget_machine(presence.name)

    def _forget_machine(self, machine: str) -> None:
        """Note that a machine has disconnected; beyond the maximum, forget the oldest of those known by name only."""
        self._gone.pop(machine, None)
        if not self._recent.get(machine):
            self._gone[machine] = None
        if len(self._gone) > MAX_GONE:
            first = next(iter(self._gone))
            del self._gone[first]
            if not self._recent.get(first) and first not in self._connected:
                was_known = self._recent.pop(first, None) is not None
                was_here = first in self._machines_here
                self._machines_here.pop(first, None)
                self._heard -= was_known and not was_here

    def own_scales(self) -> dict[str, ScaleState]:
        """The scales of this gateway."""
        return {scale_id: state for scale_id, state in self._scales.items() if state.is_here}

    def own_machines(self) -> list[str]:
        """The machines seen on this gateway."""
        return list(self._machines_here)

    def is_here(self, source: str, name: str) -> bool:
        """Whether a scale or a machine is connected to this gateway."""
        return _HERE in self._holders(source, name)

    # -- of other gateways, as the relay hears of them

    def apply_remote_scale(self, scale_id: str, idle_timeout: float) -> bool:
        """Know a scale of another gateway; whether there is room for it."""
        if scale_id not in self._scales:
            if not self._has_room():
                return False
            self._scales[scale_id] = ScaleState(idle_timeout, is_here=False)
        elif not self._scales[scale_id].is_here:
            self._scales[scale_id].idle_timeout = idle_timeout
        return True

    def apply_remote_reading(self, reading: Reading, age: float) -> bool:
        """Know a settled reading of a scale that is known; whether it is newer than the latest.

        :param age: the seconds since it came to its gateway. Ages are compared, not the gateways' wall clocks.
        """
        state = self._scales[reading.scale_id]
        came = self._clock.monotonic() - age
        if state.latest is not None and (came <= state.latest_at or reading == state.latest):
            return False
        state.latest = reading
        state.latest_at = came
        return True

    def apply_remote_machine(self, machine: str) -> bool:
        """Know a machine of another gateway; whether there is room for it."""
        if machine not in self._recent:
            if not self._has_room():
                return False
            self._recent[machine] = {}
        return True

    def apply_remote_updates(self, updates: Sequence[Update]) -> list[Update] | None:
        """Know updates of one sensor, oldest first; those that were not known and are newer than what was.

        Where nothing was known of the sensor, ``None``.
        """
        machine, sensor = updates[0].machine, updates[0].sensor
        if not self.apply_remote_machine(machine):
            return []
        sensors = self._recent[machine]
        if sensor not in sensors:
            if self._has_room():
                sensors[sensor] = deque(updates, maxlen=RECENT_UPDATES)
                return None
            return []
        known = sensors[sensor]
        last = known[-1].minute_end.timestamp()
        news = [update for update in updates if update.minute_end.timestamp() > last]
        if len(news) == len(updates):
            known.extend(updates)
        else:
            # Twice as numbers: the wall clock shows an hour twice.
            both = {update.minute_end.timestamp(): update for update in (*known, *updates)}
            sensors[sensor] = deque((both[end] for end in sorted(both)), maxlen=RECENT_UPDATES)
        return news

    def apply_remote_presence(self, gateway: str, presence: Presence) -> bool:
        """Know that a scale that is known, or a machine, came to a gateway or went; whether that changes what is so
        on the whole site.
        """
        before = self.is_connected(presence.source, presence.name)
        self._hold(gateway, presence)
        return self.is_connected(presence.source, presence.name) != before

    def forget(self, gateway: str) -> list[Presence]:
        """A gateway is gone; what was connected to that one only. Its scales' latest weights stay, and age."""
        gone = [
            *(Presence("scale", name, False) for name, state in self._scales.items() if gateway in state.holders),
            *(Presence("machine", name, False) for name, holders in self._connected.items() if gateway in holders),
        ]
        return [presence for presence in gone if self.apply_remote_presence(gateway, presence)]

    def _has_room(self) -> bool:
        if self._heard >= self._most_heard:
            return False
        self._heard += 1
        return True

    def is_connected(self, source: str, name: str) -> bool:
        """Whether a scale or a machine is connected to any gateway."""
        return bool(self._holders(source, name))

    def _holders(self, source: str, name: str) -> Collection[str]:
        if source == "machine":
            return self._connected.get(name, ())
        return self._scales[name].holders if name in self._scales else ()

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

    def idle_timeout(self, scale_id: str) -> float:
        """Seconds after which the scale's latest weight is stale."""
        return self._scales[scale_id].idle_timeout

    def is_stale(self, scale_id: str) -> bool:
        """Whether the idle time-out has passed since the latest weight."""
        return self.age(scale_id) >= self.idle_timeout(scale_id)

    def scale_snapshot(self, scale_id: str) -> dict[str, Any]:
        """What a new subscriber of the scale is told."""
        state = self._scales[scale_id]
        return {"latest": None if state.latest is None else state.latest.payload(), "connected": bool(state.holders)}

    # -- machines

    def connected_machines(self) -> list[str]:
        return sorted(self._connected)

    def machines(self) -> Collection[str]:
        """Every machine seen since the start, on any gateway."""
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
