"""The records that travel through the gateway, and their JSON forms.

Every record that is a live event says its ``topic`` and its ``event`` name; ``payload()`` is the event's
``data`` (see ``docs/events.rst``). Weights are kilograms; times are aware datetimes in the configured zone.
"""

import sys
import unicodedata
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from gateway.bucket import Bucket

#: Punctuation that a machine's or a sensor's name may hold beside letters and digits.
_NAME_MARKS: Final = frozenset(" _-.:")

#: Unicode categories of letters and decimal digits, and of marks that may follow them: vowel signs, accents.
_NAME_CATEGORIES: Final = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})
_MARK_CATEGORIES: Final = frozenset({"Mn", "Mc", "Me"})

#: Maximum characters of a name, counted in NFC.
MAX_NAME: Final = 64

#: A name becomes a file name with at most 17 bytes more (``YYYYMMDD_`` before, ``.csv.gz~`` behind it), and
#: Linux allows 255.
_NAME_BYTES: Final = 238

#: Maximum characters of text that may become a name: one character in NFC is at most four in any other form.
_MAX_UNCOMPOSED: Final = 4 * MAX_NAME


def is_name(text: str) -> bool:
    """Return whether a text in NFC is a valid name of a machine, a sensor or a scale.

    A name has 1 to 64 characters: letters with their marks and digits of any script, space, ``_ - . :``; not ``.`` or
    ``..``.
    """
    return name_of(text) is not None


def name_of(text: str) -> str | None:
    """Return a name in its stored and compared form (NFC); ``None`` if the text is not a valid name."""
    # Names repeat, but text that is clearly not a name must not fill the cache.
    return _name_of(text) if 1 <= len(text) <= _MAX_UNCOMPOSED else None


@lru_cache(maxsize=4096)
def _name_of(text: str) -> str | None:
    name = unicodedata.normalize("NFC", text)
    return name if name_problem(name) is None else None


def name_problem(text: str) -> str | None:
    """Return why a text is not a valid name, for an operator who can change it; ``None`` if it is valid."""
    if not text:
        return "it is empty"
    if len(text) > _MAX_UNCOMPOSED:
        return f"it has {len(text)} characters; {MAX_NAME} are allowed"
    name = unicodedata.normalize("NFC", text)
    before = ""
    for character in name:
        category = unicodedata.category(character)
        if category in _MARK_CATEGORIES:
            if before not in _NAME_CATEGORIES and before not in _MARK_CATEGORIES:
                return f"{character!a} is not allowed without a letter before it"
        elif character not in _NAME_MARKS and category not in _NAME_CATEGORIES:
            return f"{character!r} is not allowed"
        before = category
    if name in {".", ".."}:
        return "'.' and '..' are not allowed"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters; {MAX_NAME} are allowed"
    size = len(name.encode())
    return f"it has {size} bytes in UTF-8; {_NAME_BYTES} are allowed" if size > _NAME_BYTES else None


def forms_of(name: str) -> tuple[str, ...]:
    """Return a name, and the decomposed form (NFD) that an older version may have used for files and tables."""
    if name.isascii():
        return (name,)
    decomposed = unicodedata.normalize("NFD", name)
    return (name,) if decomposed == name else (name, decomposed)


def rfc3339(time: datetime, timespec: str = "seconds") -> str:
    """``2025-12-18T10:11:12+09:00``."""
    return time.isoformat("T", timespec)


def wall_time(time: datetime, timespec: str = "seconds") -> str:
    """``2025-12-18 10:11:12``, the old monitoring server's form: wall clock, no offset."""
    return time.replace(tzinfo=None).isoformat(" ", timespec)


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


# What comes thousands of times a second is a tuple, which is built in a fifth of the time of a frozen dataclass.


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


@dataclass(frozen=True, slots=True)
class HourEnd:
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
class PeriodEnd:
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
Entry: TypeAlias = HourEnd | PeriodEnd | Fault | Sighting


#: Where the byte of a double stands that holds its sign and the upper seven bits of its exponent.
_TOP_BYTE: Final = 7 if sys.byteorder == "little" else 0


def finite(samples: "array[float]") -> "array[float]":
    """The samples without NaN and infinities; the same object where there are none."""
    # All bits of their exponent are set (IEEE 754), which is seldom so of the upper seven: from 1e304 on.
    tops = samples.tobytes()[_TOP_BYTE::8]
    if 0x7F not in tops and 0xFF not in tops:
        return samples
    finite = array("d", (x for x in samples if isfinite(x)))
    return samples if len(finite) == len(samples) else finite
