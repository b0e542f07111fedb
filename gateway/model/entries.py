"""Entries of a store: closed hours and periods, sightings of sensors."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from gateway.model.records import Fault
from gateway.timeseries.bucket import Bucket


@dataclass(frozen=True, slots=True)
class ClosedHour:
    """An hour of a sensor that has ended.

    :ivar start: start of the hour; if the hour repeats, ``fold`` distinguishes the two.
    :ivar bucket: all samples of the hour.
    :ivar mode: mean of the sensor: ``ABS`` or ``REAL``.
    :ivar raw_end: number of bytes of the day's raw file that are counted by the end of the hour; ``None`` if unknown.
    :ivar replaces: whether it replaces an existing row of the hour; otherwise its samples are added to that row.
    """

    machine: str
    sensor: str
    start: datetime
    bucket: Bucket
    mode: str
    raw_end: int | None = None
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """A day, month or year of a sensor that has ended; its row is computed from the rows of shorter periods.

    :ivar replaces: whether it replaces an existing row of the old server.
    """

    period: str
    machine: str
    sensor: str
    start: datetime
    mode: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A sensor that has sent its first samples, or its first samples of another type."""

    machine: str
    sensor: str
    type: str


#: Entries that the writer gives to the store, in the order of their events.
StoreEntry: TypeAlias = ClosedHour | ClosedPeriod | Fault | Sighting
