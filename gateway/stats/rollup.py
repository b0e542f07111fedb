"""Rollup: minutes and hours of every sensor, and the ends of its days, months and years.

It uses neither a clock nor files: each call gets the time. So live samples and samples that are read back from raw
files after a kill are processed alike and give the same means.
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Final

from gateway.model.entries import ClosedHour, ClosedPeriod
from gateway.model.records import Batch, Update
from gateway.model.timestamps import wall_time
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import PERIODS, start_of
from gateway.timeseries.finite import finite

#: Number of samples of a minute that are summed at a time, from its first sample on. So a sum does not depend on the
#: division into messages, which raw files do not hold.
CHUNK: Final = 4096

#: Periods whose rows are computed from rows of shorter periods, in the order of their ends.
_LONGER: Final = PERIODS[1:]


@dataclass(slots=True)
class ClosedPeriods:
    """Minutes and longer periods that have ended.

    :ivar updates: updates of minutes.
    :ivar entries: hours and longer periods, in the order in which the store must get them.
    """

    updates: list[Update] = field(default_factory=list)
    entries: list[ClosedHour | ClosedPeriod] = field(default_factory=list)


@dataclass(slots=True)
class _SensorRollup:
    """Open periods of one sensor.

    :ivar kind: type of the sensor, as last received.
    :ivar mode: ``ABS`` or ``REAL``.
    :ivar minute: start of the open minute; ``None`` if it has no samples.
    :ivar samples: samples of the open minute since its last whole chunk.
    :ivar is_finite: whether all of these samples are finite.
    :ivar arrivals: index of the first of these samples of each time of arrival, and that time.
    :ivar in_minute: bucket of the whole chunks of the minute.
    :ivar hour: start of the open hour; ``None`` if no minute of it has ended.
    :ivar in_hour: bucket of the ended minutes of the hour.
    :ivar longer: start of the open day, month and year with hours, by period.
    """

    machine: str
    name: str
    mode: str
    kind: str | None = None
    minute: datetime | None = None
    samples: "array[float]" = field(default_factory=lambda: array("d"))
    is_finite: bool = True
    arrivals: list[tuple[int, datetime]] = field(default_factory=list)
    in_minute: Bucket = field(default_factory=Bucket)
    hour: datetime | None = None
    in_hour: Bucket = field(default_factory=Bucket)
    longer: dict[str, datetime] = field(default_factory=dict)


class Rollup:
    """Computation of the minutes and hours of all sensors, with the boundaries of the wall clock.

    :param modes: ``ABS`` or ``REAL`` by type of sensor, in lower case; ``REAL`` for other types.
    :ivar left_out: number of samples left out of means: not finite, or with a sum that exceeds a double.
    :ivar overflows: number of samples whose sum exceeds a double by machine and sensor, until they are logged.
    """

    def __init__(self, zone: tzinfo, modes: Mapping[str, str]) -> None:
        self._zone = zone
        self._modes = modes
        self._sensors: dict[tuple[str, str], _SensorRollup] = {}
        self._minute: datetime | None = None
        self.left_out = 0
        self.overflows: dict[tuple[str, str], int] = {}

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch to the open periods, after a call of :meth:`advance` with its time."""
        machine, time = batch.machine, batch.received_at
        for name, (kind, samples) in batch.sensors.items():
            sensor = self._sensors.get((machine, name))
            if sensor is None or sensor.kind != kind:
                sensor = self._sensor(machine, name, kind)
            if samples:
                kept = finite(samples)
                if kept is not samples:
                    sensor.is_finite = False
                    self.left_out += len(samples) - len(kept)
                if sensor.minute is None:
                    sensor.minute = _minute_of(time)
                self._count(sensor, time, samples)

    def replay(self, machine: str, sensor: str, time: datetime, samples: "array[float]") -> ClosedPeriods:
        """Add earlier samples of one sensor, in the order of their arrival.

        :returns: periods of the sensor that ended before these samples.
        """
        state = self._sensor(machine, sensor)
        closed = ClosedPeriods()
        minute = _minute_of(time)
        if state.minute is None or minute != state.minute or minute.fold != state.minute.fold:
            self._close(state, _starts(minute), closed)
            state.minute = minute
        state.is_finite = state.is_finite and finite(samples) is samples
        self._count(state, time, samples)
        return closed

    def resume(self, machine: str, sensor: str, kind: str | None, open_periods: Mapping[str, datetime]) -> str:
        """Restore a sensor after a start.

        :param kind: type of the sensor; ``None`` if unknown.
        :param open_periods: starts of the open day, month and year with hours, by period.
        :returns: ``ABS`` or ``REAL``.
        """
        state = self._sensor(machine, sensor, kind)
        state.longer.update(open_periods)
        return state.mode

    def advance(self, now: datetime) -> ClosedPeriods:
        """Close every period that ended before ``now``."""
        closed = ClosedPeriods()
        minute = _minute_of(now)
        before = self._minute
        # Aware datetimes of one zone compare by the wall clock; the offset distinguishes repeated hours.
        if before is None or minute != before or minute.utcoffset() != before.utcoffset():
            self._minute = minute
            starts = _starts(minute)
            for sensor in self._sensors.values():
                self._close(sensor, starts, closed)
        return closed

    def _sensor(self, machine: str, name: str, kind: str | None = None) -> _SensorRollup:
        sensor = self._sensors.get((machine, name))
        if sensor is None:
            sensor = self._sensors[machine, name] = _SensorRollup(machine, name, "REAL")
        if kind is not None:
            sensor.kind = kind
            sensor.mode = self._modes.get(kind.lower(), "REAL")
        return sensor

    def _count(self, sensor: _SensorRollup, time: datetime, samples: "array[float]") -> None:
        arrivals = sensor.arrivals
        if not arrivals or arrivals[-1][1] is not time:
            arrivals.append((len(sensor.samples), time))
        sensor.samples += samples
        if len(sensor.samples) >= CHUNK:
            whole = len(sensor.samples) // CHUNK * CHUNK
            for begin in range(0, whole, CHUNK):
                self._sum(sensor, begin, begin + CHUNK)
            first = bisect_right(arrivals, whole, key=_index_of) - 1
            del sensor.samples[:whole]
            sensor.arrivals = (
                [(max(0, index - whole), time) for index, time in arrivals[first:]] if sensor.samples else []
            )

    def _sum(self, sensor: _SensorRollup, begin: int, end: int) -> None:
        """Add the samples of the open minute between two indices to its bucket."""
        arrivals = sensor.arrivals
        chunk = sensor.samples[begin:end]
        samples = chunk if sensor.is_finite else finite(chunk)
        if not samples:
            return

        def time_of(index: int) -> str:
            # If samples were left out, the index in the chunk is found by the value.
            position = begin + (index if samples is chunk else chunk.index(samples[index]))
            return wall_time(arrivals[bisect_right(arrivals, position, key=_index_of) - 1][1].replace(microsecond=0))

        try:
            bucket = Bucket.of(samples, time_of)
            bucket.minutes = 0 if sensor.in_minute.count else 1
            sensor.in_minute.merge(bucket)
        except OverflowError:
            self._overflow(sensor, len(samples))

    def _close(self, sensor: _SensorRollup, starts: Mapping[str, float], closed: ClosedPeriods) -> None:
        """Close the periods of a sensor that have ended when a minute begins.

        :param starts: starts of the periods that contain the minute, in seconds since 1970.
        """
        if sensor.minute is not None and sensor.minute.timestamp() != starts["minute"]:
            self._close_minute(sensor, sensor.minute, closed)
        if sensor.hour is not None and sensor.hour.timestamp() != starts["hour"]:
            self._close_hour(sensor, sensor.hour, closed)
        for period in _LONGER:
            start = sensor.longer.get(period)
            if start is not None and start.timestamp() != starts[period]:
                self._close_period(sensor, period, closed)

    def _close_minute(self, sensor: _SensorRollup, minute: datetime, closed: ClosedPeriods) -> None:
        if sensor.samples:
            self._sum(sensor, 0, len(sensor.samples))
            del sensor.samples[:]
            sensor.arrivals = []
        sensor.is_finite = True
        sensor.minute = None
        bucket, sensor.in_minute = sensor.in_minute, Bucket()
        if not bucket.count:
            return
        end = datetime.fromtimestamp(minute.timestamp() + 60, self._zone)
        closed.updates.append(Update(sensor.machine, sensor.name, bucket.mean(sensor.mode), end))
        hour = start_of("hour", minute)
        if sensor.hour is not None and sensor.hour.timestamp() != hour.timestamp():
            self._close_hour(sensor, sensor.hour, closed)
        sensor.hour = hour
        # At magnitudes above 1e300, an hour without one of its minutes is better than no hour.
        try:
            sensor.in_hour.merge(bucket)
        except OverflowError:
            self._overflow(sensor, bucket.count)

    def _overflow(self, sensor: _SensorRollup, count: int) -> None:
        """Note samples that are left out because their sum exceeds a double."""
        self.left_out += count
        key = sensor.machine, sensor.name
        self.overflows[key] = self.overflows.get(key, 0) + count

    def _close_hour(self, sensor: _SensorRollup, hour: datetime, closed: ClosedPeriods) -> None:
        for period in _LONGER:
            start = start_of(period, hour)
            if sensor.longer.setdefault(period, start) != start:
                self._close_period(sensor, period, closed)
                sensor.longer[period] = start
        bucket, sensor.in_hour, sensor.hour = sensor.in_hour, Bucket(), None
        if bucket.count:
            closed.entries.append(ClosedHour(sensor.machine, sensor.name, hour, bucket, sensor.mode))

    def _close_period(self, sensor: _SensorRollup, period: str, closed: ClosedPeriods) -> None:
        start = sensor.longer.pop(period)
        closed.entries.append(ClosedPeriod(period, sensor.machine, sensor.name, start, sensor.mode))


def _minute_of(time: datetime) -> datetime:
    return time.replace(second=0, microsecond=0)


def _starts(minute: datetime) -> dict[str, float]:
    """Return the starts of the periods that contain a minute, in seconds since 1970."""
    return {"minute": minute.timestamp(), **{period: start_of(period, minute).timestamp() for period in PERIODS}}


def _index_of(arrival: tuple[int, datetime]) -> int:
    return arrival[0]
