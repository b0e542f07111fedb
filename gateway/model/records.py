"""The records that travel through the gateway, and their JSON forms.

Every record that is a live event says its ``topic`` and its ``event`` name; ``payload()`` is the event's
``data`` (see ``docs/reference/events.rst``). Weights are kilograms; times are aware datetimes in the configured zone.
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
    """What the bus carries."""

    @property
    def topic(self) -> str:
        """Where subscribers find it, such as ``scale/default``."""

    @property
    def event(self) -> str:
        """The event's name, such as ``reading``."""

    def payload(self) -> Mapping[str, Any]:
        """The event's ``data``: JSON values only."""


class _Reading(NamedTuple):
    scale_id: str
    status: str
    weight: Decimal | None
    kind: str
    raw: str
    received_at: datetime


class Reading(_Reading):
    """One line of a scale.

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
        """Whether the reading becomes its scale's latest value: stable, and not a net, tare or held weight."""
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


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """A weight that is about to become a row of ``scale_weight_log``; its fields are the table's columns."""

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
    """A row of ``scale_weight_log`` that is durable."""

    id: int
    entry: CommitEntry

    event: ClassVar[str] = "commit"

    @property
    def topic(self) -> str:
        return f"scale/{self.entry.scale_id}"

    def answer(self) -> dict[str, Any]:
        """The body of the answer to the request that made it."""
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
    """Samples of one sensor, oldest first; ``type`` is the DAQ's word for what they are (``VIB``, ``TEMP``)."""

    type: str
    samples: "array[float]"


class _Batch(NamedTuple):
    machine: str
    sensors: Mapping[str, SensorBatch]
    received_at: datetime


class Batch(_Batch):
    """One ``DataUpdate`` of a machine."""

    __slots__ = ()

    event: ClassVar[str] = "samples"

    @property
    def topic(self) -> str:
        return f"machine/{self.machine}/samples"

    def payload(self) -> dict[str, Any]:
        # JSON has no NaN and no infinity: what is not finite is in the raw CSV only.
        return {
            name: {"type": sensor.type, "data": finite(sensor.samples).tolist()}
            for name, sensor in self.sensors.items()
        }


@dataclass(frozen=True, slots=True)
class Fault:
    """One ``FaultDetect`` of a machine; an anomaly where the score is above the threshold."""

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
        """The same object that ``/stat/anomaly`` answers."""
        return {
            "name": self.machine,
            "time": wall_time(self.received_at, "microseconds"),
            "score": self.score,
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class Update:
    """The mean of one sensor over a minute; ``minute_end`` is where that minute ended."""

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
    """A scale or a machine came (its first connection) or went (its last)."""

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
