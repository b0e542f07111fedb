"""Commits, faults and closed periods, as they are written into a store."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal

from gateway.model.entries import ClosedHour, ClosedPeriod
from gateway.model.records import CommitEntry, Fault
from gateway.model.timestamps import wall_time
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import start_of

SEOUL = timezone(timedelta(hours=9))

ENTRY = CommitEntry(
    scale_id="default",
    cylinder_no="CY1",
    event_type="SHIP",
    gross_kg=Decimal("53.26"),
    raw_line="ST , +000053.26 _kg",
    received_at=datetime(2025, 12, 18, 10, 11, 12, 345678, SEOUL),
    committed_at=datetime(2025, 12, 18, 10, 11, 13, 0, SEOUL),
    arrival_shipping_no="AS1",
)

DAY = date(2025, 12, 18)


def fault(machine: str, second: int, score: float = 1.5) -> Fault:
    """Return a fault in a second of one minute."""
    return Fault(machine, score, 1.0, datetime(2025, 12, 18, 10, 11, second, 500, SEOUL))


def at(text: str, zone: tzinfo = UTC, fold: int = 0) -> datetime:
    """Return a wall-clock time in a zone."""
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def bucket_of(samples: Sequence[float], start: datetime) -> Bucket:
    """Return the bucket of samples, one a minute, from the start of an hour on."""
    bucket = Bucket()
    for minute, sample in enumerate(samples):
        time = wall_time(start + timedelta(minutes=minute))
        bucket.merge(Bucket.of(array("d", [sample]), lambda _, time=time: time))  # type: ignore[misc]  # its default
    return bucket


def hour(
    sensor: str, start: datetime, samples: Sequence[float], mode: str = "REAL", raw_end: int | None = None
) -> ClosedHour:
    """Return an hour of samples, one a minute."""
    return ClosedHour("M", sensor, start, bucket_of(samples, start), mode, raw_end)


def mean(sensor: str, time: str, value: float, machine: str = "M") -> ClosedHour:
    """Return an hour of one sample."""
    return replace(hour(sensor, at(time), [value]), machine=machine)


def end(period: str, time: datetime, sensor: str = "v", mode: str = "REAL") -> ClosedPeriod:
    """Return the closed period that a time lies in."""
    return ClosedPeriod(period, "M", sensor, start_of(period, time), mode)
