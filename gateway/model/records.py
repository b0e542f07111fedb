"""Records, which the bus carries, and their JSON forms.

A record that is a live event has a ``topic`` and an ``event`` name; ``payload()`` returns the ``data`` of the event.
Weights are in kilograms; times are aware datetimes in the configured zone.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Final, NamedTuple, Protocol

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


class Verdict(NamedTuple):
    """Answer that a commit of a scale would get now.

    :ivar error: error code of the refusal; ``None`` if a commit is allowed.
    :ivar message: what to do, in Korean; empty if a commit is allowed.
    :ivar english: the same in English.
    """

    error: str | None = None
    message: str = ""
    english: str = ""

    def payload(self) -> dict[str, Any]:
        return {"allowed": self.error is None, "error": self.error, "message": self.message}


#: Verdict on a scale whose commits are allowed.
ALLOWED: Final = Verdict()


class _Reading(NamedTuple):
    scale_id: str
    status: str
    weight: Decimal | None
    kind: str
    raw: str
    received_at: datetime
    unit: str = "kg"
    reading_id: str = ""
    verdict: Verdict = ALLOWED
    out_of_range: bool = False
    is_accepted: bool | None = None


class Reading(_Reading):
    """A reading: one parsed line of a scale.

    :ivar weight: kilograms; ``None`` for an overload.
    :ivar status: ``ST`` stable, ``US`` unstable, ``HD`` hold or ``OL`` overload.
    :ivar kind: ``gross``, ``net``, ``tare`` or ``hold``.
    :ivar unit: unit of the line.
    :ivar reading_id: identifier of the scale's latest value, which stays the same while that value stays.
    :ivar verdict: what a commit would be answered at this reading.
    :ivar out_of_range: whether the weight or its unit is outside the configured range.
    :ivar is_accepted: whether the scale's ``accept`` has the kind of the weight; ``None`` for gross only.
    """

    __slots__ = ()

    event: ClassVar[str] = "reading"

    @property
    def topic(self) -> str:
        return f"scale/{self.scale_id}"

    @property
    def settled(self) -> bool:
        """Return whether the reading becomes the latest value of its scale: a stable weight of an accepted kind."""
        is_accepted = self.kind == "gross" if self.is_accepted is None else self.is_accepted
        return self.status == "ST" and is_accepted

    def payload(self) -> dict[str, Any]:
        return {
            "scale_id": self.scale_id,
            "status": self.status,
            "weight": None if self.weight is None else float(self.weight),
            "raw": self.raw,
            "received_at": rfc3339(self.received_at),
            "kind": self.kind,
            "reading_id": self.reading_id or None,
            "out_of_range": self.out_of_range,
            "commit": self.verdict.payload(),
        }


class Arrival(NamedTuple):
    """Moment at which a reading came from its scale. Those of one gateway are in the order of its readings.

    :ivar gateway: gateway that the scale was connected to; ``""`` is this one.
    :ivar time: time on that gateway's monotonic clock, in seconds.
    """

    gateway: str
    time: float


@dataclass(frozen=True, slots=True)
class CommitDetail:
    """Details of a commit that ``scale_weight_log`` has no columns for.

    :ivar by: name of the token that the request had, or ``operator``.
    :ivar override: reason that was given for passing guards; ``None`` if no guard was passed.
    :ivar overridden: error codes of the guards that were passed.
    :ivar warnings: error codes of the warnings that the answer bears.
    :ivar undo_of: id of the commit that this one undoes.
    :ivar cylinder: fields of the cylinder's master data for answers, such as ``tare_kg``; ``None`` without a master.
    :ivar reason: reason that was given for undoing a commit; it is stored, and not part of the answer.
    """

    by: str = "operator"
    override: str | None = None
    overridden: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    undo_of: int | None = None
    cylinder: Mapping[str, Any] | None = None
    reason: str | None = None

    def payload(self) -> dict[str, Any]:
        """Return the fields of answers; those without content are left out."""
        fields: dict[str, Any] = {}
        if self.override is not None:
            fields["override"] = self.override
            fields["overridden"] = list(self.overridden)
        if self.warnings:
            fields["warnings"] = list(self.warnings)
        if self.undo_of is not None:
            fields["undo_of"] = self.undo_of
        return fields | dict(self.cylinder or {})

    def record(self) -> dict[str, Any]:
        """Return the fields to store: those of answers, who committed, and why a commit was undone."""
        reason = {} if self.reason is None else {"reason": self.reason}
        return {"by": self.by, **reason, **self.payload()}


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """A commit before it is stored; its fields up to ``detail`` are the columns of ``scale_weight_log``."""

    scale_id: str
    cylinder_no: str
    event_type: str
    gross_kg: Decimal
    raw_line: str
    received_at: datetime
    committed_at: datetime
    arrival_shipping_no: str | None = None
    move_report_no: str | None = None
    detail: CommitDetail = CommitDetail()


#: Columns of ``scale_weight_log`` but its id, in the order of the table.
COMMIT_COLUMNS: Final = tuple(name for name in CommitEntry.__slots__ if name != "detail")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that is durable, as a row of ``scale_weight_log`` or as a ticket.

    :ivar id: id of the row; ``None`` while the commit waits as a ticket.
    :ivar ticket: ticket that the commit was, or is; ``None`` if it was written at once.
    """

    id: int | None
    entry: CommitEntry
    ticket: str | None = None

    event: ClassVar[str] = "commit"

    @property
    def topic(self) -> str:
        return f"scale/{self.entry.scale_id}"

    def answer(self) -> dict[str, Any]:
        """Return the body of the answer to the request."""
        fields: dict[str, Any] = {
            "ok": True,
            "id": self.id,
            "cylinder_no": self.entry.cylinder_no,
            "event_type": self.entry.event_type,
            "gross_kg": float(self.entry.gross_kg),
            "committed_at": rfc3339(self.entry.committed_at),
        }
        if self.ticket is not None:
            fields["ticket"] = self.ticket
        return fields | self.entry.detail.payload()

    def payload(self) -> dict[str, Any]:
        return {**self.answer(), "scale_id": self.entry.scale_id}


@dataclass(frozen=True, slots=True)
class Silence:
    """A connected scale that sends no lines any more, or has sent one again.

    :ivar is_silent: whether its idle time-out has passed without a line.
    """

    scale_id: str
    is_silent: bool

    event: ClassVar[str] = "silent"

    @property
    def topic(self) -> str:
        return f"scale/{self.scale_id}"

    def payload(self) -> dict[str, Any]:
        return {"scale_id": self.scale_id, "silent": self.is_silent}


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
