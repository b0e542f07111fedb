"""Minutes and hours of every sensor, and when its days, months and years are over.

Pure: no clock and no files. The time is handed in with everything, so that samples which come live and samples that
are read back from raw files after a kill go the same way and give the same figures.
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

#: Samples of a minute are summed so many at a time, counted from the minute's first. A sum so depends on the minute's
#: samples only, not on how they were cut into messages, which no raw file tells.
CHUNK: Final = 4096

#: Periods that are made of others' rows, in the order of their ends.
_LONGER: Final = PERIODS[1:]


@dataclass(slots=True)
class ClosedPeriods:
    """What is over.

    :ivar updates: of minutes.
    :ivar entries: hours, then what they end, in the order in which the store must have them.
    """

    updates: list[Update] = field(default_factory=list)
    entries: list[ClosedHour | ClosedPeriod] = field(default_factory=list)


@dataclass(slots=True)
class _SensorRollup:
    """One sensor's open periods.

    :ivar kind: its type, as it was said last.
    :ivar mode: ``ABS`` or ``REAL``.
    :ivar minute: the start of the open minute; ``None`` where it has no samples.
    :ivar samples: of the open minute, since its last whole chunk.
    :ivar is_finite: whether all of these are.
    :ivar arrivals: from which of these on which time holds.
    :ivar in_minute: the minute's whole chunks.
    :ivar hour: the start of the open hour; ``None`` where no minute of it is over.
    :ivar longer: by period: the start of that which has hours and is not over.
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
    """Means of all samples of a minute and of an hour, whose boundaries are the wall clock's.

    :param modes: ``ABS`` or ``REAL`` by the sensors' types, in lower case; ``REAL`` for any other.
    """

    def __init__(self, zone: tzinfo, modes: Mapping[str, str]) -> None:
        self._zone = zone
        self._modes = modes
        self._sensors: dict[tuple[str, str], _SensorRollup] = {}
        self._minute: datetime | None = None
        #: Samples left out of means: not finite, or with a sum that exceeds a double.
        self.left_out = 0
        #: The latter by machine and sensor, until they are logged.
        self.overflows: dict[tuple[str, str], int] = {}

    def add(self, batch: Batch) -> None:
        """Count the samples of a batch into the open periods; :meth:`advance` to its time comes first."""
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
        """Count samples of one sensor that came earlier, in the order in which they came.

        :returns: what of this sensor was over before them.
        """
        its = self._sensor(machine, sensor)
        ended = ClosedPeriods()
        minute = _minute_of(time)
        if its.minute is None or minute != its.minute or minute.fold != its.minute.fold:
            self._end(its, _starts(minute), ended)
            its.minute = minute
        its.is_finite = its.is_finite and finite(samples) is samples
        self._count(its, time, samples)
        return ended

    def resume(self, machine: str, sensor: str, kind: str | None, open_periods: Mapping[str, datetime]) -> str:
        """Know a sensor again after a start.

        :param kind: its type, where that is known.
        :param open_periods: the starts of the day, the month and the year that have hours and are not over.
        :returns: ``ABS`` or ``REAL``.
        """
        its = self._sensor(machine, sensor, kind)
        its.longer.update(open_periods)
        return its.mode

    def advance(self, now: datetime) -> ClosedPeriods:
        """End what is over by now; mostly nothing."""
        ended = ClosedPeriods()
        minute = _minute_of(now)
        before = self._minute
        # Aware datetimes of one zone compare by the wall clock; an hour that comes twice is told by its offset.
        if before is None or minute != before or minute.utcoffset() != before.utcoffset():
            self._minute = minute
            starts = _starts(minute)
            for sensor in self._sensors.values():
                self._end(sensor, starts, ended)
        return ended

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
        """Add some samples of the open minute to its bucket."""
        arrivals = sensor.arrivals
        chunk = sensor.samples[begin:end]
        samples = chunk if sensor.is_finite else finite(chunk)
        if not samples:
            return

        def time_of(index: int) -> str:
            # Where some are left out, an index among the rest is one of the chunk by its value.
            where = begin + (index if samples is chunk else chunk.index(samples[index]))
            return wall_time(arrivals[bisect_right(arrivals, where, key=_index_of) - 1][1].replace(microsecond=0))

        try:
            bucket = Bucket.of(samples, time_of)
            bucket.minutes = 0 if sensor.in_minute.count else 1
            sensor.in_minute.merge(bucket)
        except OverflowError:
            self._overflow(sensor, len(samples))

    def _end(self, sensor: _SensorRollup, starts: Mapping[str, float], ended: ClosedPeriods) -> None:
        """End what of a sensor is over when a minute begins.

        :param starts: of the periods that the minute lies in, in seconds since 1970.
        """
        if sensor.minute is not None and sensor.minute.timestamp() != starts["minute"]:
            self._end_minute(sensor, sensor.minute, ended)
        if sensor.hour is not None and sensor.hour.timestamp() != starts["hour"]:
            self._end_hour(sensor, sensor.hour, ended)
        for period in _LONGER:
            start = sensor.longer.get(period)
            if start is not None and start.timestamp() != starts[period]:
                self._end_period(sensor, period, ended)

    def _end_minute(self, sensor: _SensorRollup, minute: datetime, ended: ClosedPeriods) -> None:
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
        ended.updates.append(Update(sensor.machine, sensor.name, bucket.mean(sensor.mode), end))
        hour = start_of("hour", minute)
        if sensor.hour is not None and sensor.hour.timestamp() != hour.timestamp():
            self._end_hour(sensor, sensor.hour, ended)
        sensor.hour = hour
        # An hour of which a minute is left out, at magnitudes beyond 1e300, is better than none.
        try:
            sensor.in_hour.merge(bucket)
        except OverflowError:
            self._overflow(sensor, bucket.count)

    def _overflow(self, sensor: _SensorRollup, count: int) -> None:
        """Note samples that are left out because their sum exceeds a double."""
        self.left_out += count
        key = sensor.machine, sensor.name
        self.overflows[key] = self.overflows.get(key, 0) + count

    def _end_hour(self, sensor: _SensorRollup, hour: datetime, ended: ClosedPeriods) -> None:
        for period in _LONGER:
            start = start_of(period, hour)
            if sensor.longer.setdefault(period, start) != start:
                self._end_period(sensor, period, ended)
                sensor.longer[period] = start
        bucket, sensor.in_hour, sensor.hour = sensor.in_hour, Bucket(), None
        if bucket.count:
            ended.entries.append(ClosedHour(sensor.machine, sensor.name, hour, bucket, sensor.mode))

    def _end_period(self, sensor: _SensorRollup, period: str, ended: ClosedPeriods) -> None:
        start = sensor.longer.pop(period)
        ended.entries.append(ClosedPeriod(period, sensor.machine, sensor.name, start, sensor.mode))


def _minute_of(time: datetime) -> datetime:
    return time.replace(second=0, microsecond=0)


def _starts(minute: datetime) -> dict[str, float]:
    """When the periods that a minute lies in began, in seconds since 1970."""
    return {"minute": minute.timestamp(), **{period: start_of(period, minute).timestamp() for period in PERIODS}}


def _index_of(arrival: tuple[int, datetime]) -> int:
    return arrival[0]
