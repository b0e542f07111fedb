"""Records, which the bus carries, and their JSON forms.

A record that is a live event has a ``topic`` and an ``event`` name; ``payload()`` returns the ``data`` of the event.
Weights are in kilograms; times are aware datetimes in the configured zone.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, Protocol

from gateway.model.timestamps import rfc3339, wall_time
from gateway.timeseries.finite import finite


class Record(Protocol):
    """A record of the bus."""

    @property
    def topic(self) -> str:
        """Return the topic, such as ``scale/default``."""

    @property
    def event(self) -> str:
        """Return the name of the event, such as ``reading``."""

    def payload(self) -> Mapping[str, Any]:
        """Return the ``data`` of the event, which consists of JSON values."""


class _Reading(NamedTuple):
    scale_id: str
    status: str
    weight: Decimal | None
    kind: str
    raw: str
    received_at: datetime


class Reading(_Reading):
    """A reading: one parsed line of a scale.

    :ivar weight: kilograms; ``None`` for an overload.
    :ivar status: ``ST`` stable, ``US`` unstable, ``HD`` hold or ``OL`` overload.
    :ivar kind: ``gross``, ``net``, ``tare`` or ``hold``.
    """

    __slots__ = ()

    event: ClassVar[str] = "reading"

    @property
    def topic(self) -> str:
        return f"scale/{self.scale_id}"

    @property
    def settled(self) -> bool:
        """Return whether the reading becomes the latest value of its scale: a stable gross weight."""
        return self.status == "ST" and self.kind == "gross"

    def payload(self) -> dict[str, Any]:
        return {
            "scale_id": self.scale_id,
            "status": self.status,
            "weight": None if self.weight is None else float(self.weight),
            "raw": self.raw,
            "received_at": rfc3339(self.received_at),
            "kind": self.kind,
        }


class Arrival(NamedTuple):
    """Moment at which a reading came from its scale. Those of one gateway are in the order of its readings.

    :ivar gateway: gateway that the scale was connected to; ``""`` is this one.
    :ivar time: time on that gateway's monotonic clock, in seconds.
    """

    gateway: str
    time: float


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """A commit before it is stored; its fields are the columns of ``scale_weight_log``."""

    scale_id: str
    cylinder_no: str
    event_type: str
    gross_kg: Decimal
    raw_line: str
    received_at: datetime
    committed_at: datetime
    arrival_shipping_no: str | None = None
    move_report_no: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that is durable, as a row of ``scale_weight_log``."""

    id: int
    entry: CommitEntry

    event: ClassVar[str] = "commit"

    @property
    def topic(self) -> str:
        return f"scale/{self.entry.scale_id}"

    def answer(self) -> dict[str, Any]:
        """Return the body of the answer to the request."""
        return {
            "ok": True,
            "id": self.id,
            "cylinder_no": self.entry.cylinder_no,
            "event_type": self.entry.event_type,
            "gross_kg": float(self.entry.gross_kg),
            "committed_at": rfc3339(self.entry.committed_at),
        }

    def payload(self) -> dict[str, Any]:
        return {**self.answer(), "scale_id": self.entry.scale_id}


class SensorBatch(NamedTuple):
    """Samples of one sensor, oldest first.

    :ivar type: type of the sensor, as the DAQ program names it, such as ``VIB`` or ``TEMP``.
    """

    type: str
    samples: "array[float]"


class _Batch(NamedTuple):
    machine: str
    sensors: Mapping[str, SensorBatch]
    received_at: datetime


class Batch(_Batch):
    """A batch: one ``DataUpdate`` of a machine."""

    __slots__ = ()

    event: ClassVar[str] = "samples"

    @property
    def topic(self) -> str:
        return f"machine/{self.machine}/samples"

    def payload(self) -> dict[str, Any]:
        # JSON has no NaN and no infinities, so these samples are in the raw file only.
        return {
            name: {"type": sensor.type, "data": finite(sensor.samples).tolist()}
            for name, sensor in self.sensors.items()
        }


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: one ``FaultDetect`` of a machine, which is an anomaly if the score exceeds the threshold."""

    machine: str
    score: float
    threshold: float
    received_at: datetime

    event: ClassVar[str] = "anomaly"

    @property
    def topic(self) -> str:
        return f"machine/{self.machine}"

    @property
    def is_anomaly(self) -> bool:
        return self.score > self.threshold

    def payload(self) -> dict[str, Any]:
        """Return the object of ``/stat/anomaly``."""
        return {
            "name": self.machine,
            "time": wall_time(self.received_at, "microseconds"),
            "score": self.score,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class Update:
    """The mean of one sensor over a minute.

    :ivar minute_end: end of the minute.
    """

    machine: str
    sensor: str
    mean: float
    minute_end: datetime

    event: ClassVar[str] = "update"

    @property
    def topic(self) -> str:
        return f"machine/{self.machine}"

    def payload(self) -> dict[str, Any]:
        return {
            "sensor_name": self.sensor,
            "data": self.mean,
            "time": wall_time(self.minute_end, "microseconds"),
        }


@dataclass(frozen=True, slots=True)
class Presence:
    """A change of presence: the first connection of a scale or machine was made, or its last one lost.

    :ivar source: ``scale`` or ``machine``.
    """

    source: str
    name: str
    connected: bool

    @property
    def topic(self) -> str:
        return f"{self.source}/{self.name}"

    @property
    def event(self) -> str:
        return "connected" if self.connected else "disconnected"

    def payload(self) -> dict[str, Any]:
        return {"scale_id" if self.source == "scale" else "machine": self.name}
