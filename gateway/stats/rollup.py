"""The open minute and the open hour of every sensor. Pure: the time is handed in with everything."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Final

from gateway.model import Batch, PeriodMean, Update, finite, wall_time
from gateway.stats.bucket import Bucket

#: The clock may step back by so much before open periods are given up for it.
_STEP: Final = timedelta(minutes=1)


@dataclass(slots=True)
class _Sensor:
    """One sensor's open buckets; ``mode`` is ``ABS`` or ``REAL``."""

    mode: str
    minute: Bucket = field(default_factory=Bucket)
    hour: Bucket = field(default_factory=Bucket)


class Rollup:
    """Means of all samples of a minute and of an hour, whose boundaries are the wall clock's.

    :param modes: ``ABS`` or ``REAL`` by the sensors' types, in lower case; ``REAL`` for any other.
    """

    def __init__(self, zone: tzinfo, modes: Mapping[str, str]) -> None:
        self._zone = zone
        self._modes = modes
        self._sensors: dict[tuple[str, str], _Sensor] = {}
        self._minute: datetime | None = None

    def add(self, batch: Batch) -> int:
        """Count the samples of a batch into the open periods; :meth:`advance` to its time comes first.

        :returns: how many are left out, for they are not finite, or their sum would not be.
        """
        left_out = 0
        for name, received in batch.sensors.items():
            mode = self._modes.get(received.type.lower(), "REAL")
            sensor = self._sensors.get((batch.machine, name))
            if sensor is None:
                sensor = self._sensors[batch.machine, name] = _Sensor(mode)
            sensor.mode = mode
            samples = finite(received.samples)
            left_out += len(received.samples) - len(samples)
            try:
                sensor.minute.add(samples)
            except OverflowError:
                left_out += len(samples)
        return left_out

    def advance(self, now: datetime) -> tuple[list[Update], list[PeriodMean]]:
        """Close what has ended by now.

        :returns: the means of the minute and of the hour that ended; mostly nothing.
        """
        minute = now.replace(second=0, microsecond=0)
        opened = self._minute
        if opened is None:
            self._minute = minute
            return [], []
        # Aware datetimes of one zone compare by the wall clock; an hour that comes twice is told by its offset.
        if minute == opened and minute.utcoffset() == opened.utcoffset():
            return [], []
        elapsed = minute.timestamp() - opened.timestamp()
        if -_STEP.total_seconds() <= elapsed < 0:
            return [], []
        self._minute = minute
        updates = self._close_minute(opened)
        hour_over = (minute.hour, minute.date(), minute.utcoffset()) != (opened.hour, opened.date(), opened.utcoffset())
        return updates, self._close_hour(opened) if hour_over else []

    def _close_minute(self, opened: datetime) -> list[Update]:
        end = datetime.fromtimestamp(opened.timestamp() + 60, self._zone)
        updates = []
        for (machine, name), sensor in self._sensors.items():
            if sensor.minute.count:
                updates.append(Update(machine, name, sensor.minute.mean(sensor.mode), end))
                # An hour of which a minute is left out, at magnitudes beyond 1e300, is better than none.
                with contextlib.suppress(OverflowError):
                    sensor.hour.merge(sensor.minute)
                sensor.minute = Bucket()
        return updates

    def _close_hour(self, opened: datetime) -> list[PeriodMean]:
        start = wall_time(opened.replace(minute=0))
        means = []
        for (machine, name), sensor in self._sensors.items():
            if sensor.hour.count:
                means.append(PeriodMean("hour", machine, name, start, sensor.hour.mean(sensor.mode)))
                sensor.hour = Bucket()
        return means
