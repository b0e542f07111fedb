"""Current state of a site: latest readings of scales, presence, and recent updates of sensors."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.bus.bus import Bus
from gateway.model.records import ALLOWED, Arrival, Commit, Presence, Reading, Update, Verdict
from gateway.runtime.clock import WallClock
from gateway.weighing.messages import refusal
from gateway.weighing.registry import Guards

#: Maximum remembered machines that have disconnected without an update.
MAX_GONE: Final = 1000

#: Number of recent updates of a sensor that a new subscriber gets, as from the old server.
RECENT_UPDATES: Final = 60

#: Maximum names of scales, machines and sensors of other gateways: every client of the database could invent names.
_MAX_REMOTE_NAMES: Final = 100_000

#: Name of this gateway among those that a scale or a machine is connected to.
LOCAL: Final = ""


@dataclass(slots=True)
class ScaleState:
    """State of one scale.

    :ivar idle_timeout: age in seconds at which the latest reading becomes stale.
    :ivar is_local: whether it is configured on this gateway.
    :ivar latest: latest stable gross reading.
    :ivar latest_at: monotonic time of its arrival, in seconds; of another gateway's, as estimated by its age.
    :ivar origin: gateway that the scale was connected to then; ``None`` if it is not known.
    :ivar arrived: time of its arrival on the origin's monotonic clock, in seconds.
    :ivar gateways: gateways that the scale is connected to.
    :ivar remote_verdict: verdict of another gateway at its last line of the scale.
    """

    idle_timeout: float
    is_local: bool = True
    latest: Reading | None = None
    latest_at: float = 0.0
    origin: str | None = None
    arrived: float = 0.0
    gateways: set[str] = field(default_factory=set)
    remote_verdict: Verdict = ALLOWED


class LiveState:
    """Current state of the whole site: a sink of the bus for this gateway, and target of the relay for the others.

    A scale or a machine that several gateways have is one. It is connected while it is connected to any of them; its
    latest reading is the newest of all, and its updates are those of all.

    :param scales: idle time-outs in seconds by configured scale.
    :param max_remote_names: maximum names of scales, machines and sensors of other gateways.
    :param guards: guards of the scales of this gateway.
    """

    def __init__(
        self,
        bus: Bus,
        clock: WallClock,
        scales: dict[str, float],
        max_remote_names: int = _MAX_REMOTE_NAMES,
        guards: Guards | None = None,
    ) -> None:
        self._clock = clock
        self._guards = Guards({}) if guards is None else guards
        self._scales = {scale_id: ScaleState(timeout) for scale_id, timeout in scales.items()}
        self._recent: dict[str, dict[str, deque[Update]]] = {}
        #: Gateways that a machine is connected to, at least one, by machine.
        self._connected: dict[str, set[str]] = {}
        #: Machines that have disconnected without an update, the most recent last.
        self._gone: dict[str, None] = {}
        #: Machines that have been connected to this gateway.
        self._local_machines: dict[str, None] = {}
        self._max_remote_names = max_remote_names
        self._remote_names = 0
        bus.attach(Reading, "live", self._on_reading)
        bus.attach(Update, "live", self._on_update)
        bus.attach(Presence, "live", self._on_presence)

    # -- this gateway

    def _on_reading(self, reading: Reading) -> None:
        if reading.settled:
            state = self._scales[reading.scale_id]
            state.latest = reading
            state.latest_at = state.arrived = self._clock.monotonic()
            state.origin = LOCAL

    def _on_update(self, update: Update) -> None:
        self._local_machines[update.machine] = None
        sensors = self._recent.setdefault(update.machine, {})
        sensors.setdefault(update.sensor, deque(maxlen=RECENT_UPDATES)).append(update)

    def restore(self, updates: Iterable[Update]) -> None:
        """Add updates from before the start, oldest first."""
        for update in updates:
            self._on_update(update)

    def _on_presence(self, presence: Presence) -> None:
        if presence.source == "machine" and presence.connected:
            self._local_machines[presence.name] = None
        self._set_presence(LOCAL, presence)

    def _set_presence(self, gateway: str, presence: Presence) -> None:
        if presence.source == "scale":
            gateways = self._scales[presence.name].gateways
        elif presence.connected:
            gateways = self._connected.setdefault(presence.name, set())
            self._recent.setdefault(presence.name, {})
        else:
            gateways = self._connected.get(presence.name, set())
        if presence.source == "scale" and gateway == LOCAL:
            self._guards.of(presence.name).set_connected(presence.connected)
        if presence.connected:
            gateways.add(gateway)
        else:
            gateways.discard(gateway)
            if presence.source == "machine" and not gateways:
                self._connected.pop(presence.name, None)
                self._forget_machine(presence.name)

    def _forget_machine(self, machine: str) -> None:
        """Note that a machine has disconnected; above the maximum, forget the oldest one without updates."""
        self._gone.pop(machine, None)
        if not self._recent.get(machine):
            self._gone[machine] = None
        if len(self._gone) > MAX_GONE:
            first = next(iter(self._gone))
            del self._gone[first]
            if not self._recent.get(first) and first not in self._connected:
                was_known = self._recent.pop(first, None) is not None
                was_local = first in self._local_machines
                self._local_machines.pop(first, None)
                self._remote_names -= was_known and not was_local

    def set_scale(self, scale_id: str, idle_timeout: float) -> None:
        """Add a scale of this gateway, or change its idle time-out in seconds."""
        state = self._scales.get(scale_id)
        if state is None:
            self._scales[scale_id] = ScaleState(idle_timeout)
            return
        self._remote_names -= not state.is_local
        state.is_local, state.idle_timeout = True, idle_timeout

    def remove_scale(self, scale_id: str) -> None:
        """Remove a scale that this gateway does not have any more; others may still have it."""
        state = self._scales[scale_id]
        if state.gateways and self._add_remote_name():
            state.is_local = False
        else:
            del self._scales[scale_id]

    def own_scales(self) -> dict[str, ScaleState]:
        """Return the scales that are configured on this gateway."""
        return {scale_id: state for scale_id, state in self._scales.items() if state.is_local}

    def own_machines(self) -> list[str]:
        """Return the machines that have been connected to this gateway."""
        return list(self._local_machines)

    def is_here(self, source: str, name: str) -> bool:
        """Return whether a scale or a machine is connected to this gateway."""
        return LOCAL in self._gateways(source, name)

    # -- other gateways, as the relay reports them

    def apply_remote_scale(self, scale_id: str, idle_timeout: float) -> bool:
        """Add a scale of another gateway.

        :returns: whether it is known now; not if there are too many names.
        """
        if scale_id not in self._scales:
            if not self._add_remote_name():
                return False
            self._scales[scale_id] = ScaleState(idle_timeout, is_local=False)
        elif not self._scales[scale_id].is_local:
            self._scales[scale_id].idle_timeout = idle_timeout
        return True

    def apply_remote_reading(self, reading: Reading, age: float, arrival: Arrival | None) -> bool:
        """Apply a settled reading of a known scale.

        :param age: seconds since its arrival at the other gateway.
        :param arrival: that arrival; ``None`` if it is not known.
        :returns: whether it is newer than the latest reading.
        """
        state = self._scales[reading.scale_id]
        latest_at = self._clock.monotonic() - age
        if state.latest is not None and (reading == state.latest or not _is_newer(state, latest_at, arrival)):
            return False
        state.latest, state.latest_at = reading, latest_at
        state.origin, state.arrived = (None, 0.0) if arrival is None else arrival
        return True

    def apply_remote_machine(self, machine: str) -> bool:
        """Add a machine of another gateway.

        :returns: whether it is known now; not if there are too many names.
        """
        if machine not in self._recent:
            if not self._add_remote_name():
                return False
            self._recent[machine] = {}
        return True

    def apply_remote_updates(self, updates: Sequence[Update]) -> list[Update] | None:
        """Apply updates of one sensor, oldest first.

        :returns: updates that are newer than the known ones; ``None`` if the sensor was unknown.
        """
        machine, sensor = updates[0].machine, updates[0].sensor
        if not self.apply_remote_machine(machine):
            return []
        sensors = self._recent[machine]
        if sensor not in sensors:
            if self._add_remote_name():
                sensors[sensor] = deque(updates, maxlen=RECENT_UPDATES)
                return None
            return []
        known = sensors[sensor]
        last = known[-1].minute_end.timestamp()
        newer = [update for update in updates if update.minute_end.timestamp() > last]
        if len(newer) == len(updates):
            known.extend(updates)
        else:
            # Ordered by moments, since the wall clock may repeat an hour.
            by_end = {update.minute_end.timestamp(): update for update in (*known, *updates)}
            sensors[sensor] = deque((by_end[end] for end in sorted(by_end)), maxlen=RECENT_UPDATES)
        return newer

    def apply_remote_presence(self, gateway: str, presence: Presence) -> bool:
        """Apply the presence of a known scale or of a machine on another gateway.

        :returns: whether the presence on the whole site has changed.
        """
        before = self.is_connected(presence.source, presence.name)
        self._set_presence(gateway, presence)
        return self.is_connected(presence.source, presence.name) != before

    def forget(self, gateway: str) -> list[Presence]:
        """Remove the connections of a gateway that has gone. The latest readings of its scales stay, and become stale.

        :returns: scales and machines that are disconnected now.
        """
        gone = [
            *(Presence("scale", name, False) for name, state in self._scales.items() if gateway in state.gateways),
            *(Presence("machine", name, False) for name, gateways in self._connected.items() if gateway in gateways),
        ]
        return [presence for presence in gone if self.apply_remote_presence(gateway, presence)]

    def _add_remote_name(self) -> bool:
        if self._remote_names >= self._max_remote_names:
            return False
        self._remote_names += 1
        return True

    def is_connected(self, source: str, name: str) -> bool:
        """Return whether a scale or a machine is connected to any gateway."""
        return bool(self._gateways(source, name))

    def _gateways(self, source: str, name: str) -> Collection[str]:
        if source == "machine":
            return self._connected.get(name, ())
        return self._scales[name].gateways if name in self._scales else ()

    # -- scales

    def scale_ids(self) -> list[str]:
        return list(self._scales)

    def has_scale(self, scale_id: str) -> bool:
        return scale_id in self._scales

    def latest(self, scale_id: str) -> Reading | None:
        """Return the latest stable gross reading of a scale.

        :raises KeyError: the scale is unknown.
        """
        return self._scales[scale_id].latest

    def age(self, scale_id: str) -> float:
        """Return the seconds since the arrival of the latest reading, by the monotonic clock."""
        return self._clock.monotonic() - self._scales[scale_id].latest_at

    def idle_timeout(self, scale_id: str) -> float:
        """Return the age in seconds at which the latest reading of a scale becomes stale."""
        return self._scales[scale_id].idle_timeout

    def is_stale(self, scale_id: str) -> bool:
        """Return whether the idle time-out has passed since the latest reading."""
        return self.age(scale_id) >= self.idle_timeout(scale_id)

    def is_judged_here(self, scale_id: str) -> bool:
        """Return whether this gateway judges the commits of a scale, since it has the latest reading itself."""
        state = self._scales[scale_id]
        return scale_id in self._guards.own() and (state.latest is None or state.origin == LOCAL)

    def verdict(self, scale_id: str) -> Verdict:
        """Return what a commit of a scale would be answered now."""
        if self.is_judged_here(scale_id):
            return self._guards.of(scale_id).verdict(self._clock.monotonic())
        state = self._scales[scale_id]
        return refusal("no_stable_weight") if state.latest is None else state.remote_verdict

    def note_remote_verdict(self, reading: Reading) -> None:
        """Note the verdict of another gateway at a line of a known scale."""
        self._scales[reading.scale_id].remote_verdict = reading.verdict

    def note_remote_commit(self, commit: Commit) -> None:
        """Note that another gateway has committed a weight of a scale of this one."""
        entry = commit.entry
        guard = self._guards.own().get(entry.scale_id)
        if guard is not None and entry.detail.undo_of is None:
            guard.note_commit(entry.cylinder_no, entry.event_type, str(commit.id), self._clock.monotonic())

    def scale_snapshot(self, scale_id: str) -> dict[str, Any]:
        """Return the snapshot of a scale for a new subscriber."""
        state = self._scales[scale_id]
        verdict = self.verdict(scale_id).payload()
        latest = None if state.latest is None else {**state.latest.payload(), "commit": verdict}
        return {"latest": latest, "connected": bool(state.gateways), "commit": verdict}

    # -- machines

    def connected_machines(self) -> list[str]:
        return sorted(self._connected)

    def machines(self) -> Collection[str]:
        """Return every machine seen since the start, on any gateway."""
        return self._recent.keys()

    def recent(self, machine: str) -> Mapping[str, Collection[Update]]:
        """Return the recent updates of a machine by sensor, oldest first."""
        return self._recent.get(machine, {})

    def machine_snapshot(self, machine: str) -> dict[str, Any]:
        """Return the snapshot of a machine for a new subscriber; a machine never seen is not connected."""
        return {
            "connected": machine in self._connected,
            "sensors": {
                sensor: [update.payload() for update in updates] for sensor, updates in self.recent(machine).items()
            },
        }


def _is_newer(state: ScaleState, latest_at: float, arrival: Arrival | None) -> bool:
    """Return whether a reading came after the latest one.

    Those of one gateway are compared by its own clock: an age grows on the way, so that the first of two readings may
    seem to have come last. Those of two gateways are compared by age, since wall clocks differ.
    """
    if arrival is not None and arrival.gateway == state.origin:
        return arrival.time >= state.arrived
    return latest_at > state.latest_at
