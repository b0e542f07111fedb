"""Entries of a store: closed hours and periods, sightings of sensors."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from gateway.model.records import Fault
from gateway.timeseries.bucket import Bucket


@dataclass(frozen=True, slots=True)
class ClosedHour:
    """An hour of a sensor is over.

    :ivar start: of the hour, to be told apart from the other where an hour comes twice.
    :ivar bucket: all its samples.
    :ivar mode: which mean is the sensor's: ``ABS`` or ``REAL``.
    :ivar raw_end: how many bytes of the day's raw file are counted by the end of this hour; ``None`` where that is not
        known.
    :ivar replaces: whether it takes the place of a row that the hour has; else its samples are added to those.
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
    """A day, a month or a year of a sensor is over: its row is made of those of the shorter periods in it.

    :ivar replaces: whether it takes the place of a row that the old server wrote.
    """

    period: str
    machine: str
    sensor: str
    start: datetime
    mode: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A sensor has sent its first samples, or its first of another type."""

    machine: str
    sensor: str
    type: str


#: What is written to the store when it can be, in the order of its happening.
StoreEntry: TypeAlias = ClosedHour | ClosedPeriod | Fault | Sighting
