"""The readings and the presence of one scale, whatever line it is on."""

from datetime import datetime
from decimal import Decimal

from gateway.bus.bus import Bus
from gateway.model.records import Presence, Reading
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.weighing.guard import ScaleGuard


class ScaleReadings:
    """Publisher of the readings and the presence of one scale.

    :param guard: guard that judges each reading.
    :ivar is_connected: whether the scale has a connection to this gateway.
    :ivar last_line: monotonic time of the last line, in seconds; ``None`` before the first line.
    :ivar connected_at: monotonic time at which the scale was connected, in seconds.
    """

    def __init__(self, scale_id: str, bus: Bus, clock: WallClock, counters: Counters, guard: ScaleGuard) -> None:
        self.scale_id = scale_id
        self._guard = guard
        self.is_connected = False
        self.last_line: float | None = None
        self.connected_at = 0.0
        self._bus = bus
        self._clock = clock
        self._readings = {
            status: counters.scale_readings.labels(scale_id, status) for status in ("ST", "US", "HD", "OL")
        }
        self._rejected = counters.scale_rejected.labels(scale_id)
        self._held = counters.scale_held.labels(scale_id)

    @property
    def line_age(self) -> float | None:
        """Return the seconds since the last line, valid or not; ``None`` before the first line."""
        return None if self.last_line is None else self._clock.monotonic() - self.last_line

    @property
    def count(self) -> float:
        """Return the number of readings."""
        return sum(counter.value for counter in self._readings.values())

    def set_connected(self, is_connected: bool) -> None:
        """Publish the scale's presence, if it has changed."""
        if is_connected != self.is_connected:
            self.is_connected = is_connected
            self.connected_at = self._clock.monotonic()
            self._bus.publish(Presence("scale", self.scale_id, connected=is_connected))

    def publish(self, status: str, weight: Decimal | None, kind: str, raw: str, unit: str, now: datetime) -> None:
        """Count and publish a reading.

        :param now: time at which its line was read.
        """
        self._readings[status].inc()
        marks = self._guard.receive(status, weight, kind, unit, self.last_line or 0.0)
        self._bus.publish(Reading(self.scale_id, status, weight, kind, raw, now, unit, *marks), time=now)

    def reject(self) -> None:
        """Count a line that is not a valid reading."""
        self._rejected.inc()

    def hold(self) -> None:
        """Count a line that is held."""
        self._held.inc()
