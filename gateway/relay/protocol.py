"""Messages between the gateways on one database, as JSON: encoded and read without I/O and without a clock.

A message is an object with the token and the name of its sender, its number, its moment (see
:mod:`gateway.relay.guard`), the token of its receiver (``null``: all peers), its kind (``say``) and items: records as
they happen, or parts of the sender's state. It is ASCII, regardless of the database's encoding; a payload is the code
that authenticates the message, and the message. Times are seconds since 1970. Ages are seconds, because wall clocks of
two computers differ.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import InvalidOperation
from typing import Any, Final, TypeAlias, TypeVar

from gateway.model.records import Arrival, Commit, CommitEntry, Fault, Presence, Reading, Silence, Update
from gateway.relay.values import (
    is_positive,
    is_text,
    read_arrival,
    read_detail,
    read_flag,
    read_judgement,
    read_name,
    read_number,
    read_scale,
    read_seconds,
    read_text,
    read_time,
    read_weight,
)
from gateway.wire.errors import WireError

#: Maximum bytes of a payload: NOTIFY takes less than 8,000 (PostgreSQL's NOTIFY_PAYLOAD_MAX_LENGTH).
MAX_BYTES: Final = 7_900

#: Characters of the code before a message: 128 bits as base64.
MAC_LENGTH: Final = 22

#: Kinds of messages: the sender asks for the state of its peers, sends its own state, sends records, shows that it is
#: present, or stops. Hello to all also announces the sender's own state.
HELLO: Final = "hello"
STATE: Final = "state"
RECORDS: Final = "records"
HERE: Final = "here"
BYE: Final = "bye"

_MESSAGE_KINDS: Final = frozenset({HELLO, STATE, RECORDS, HERE, BYE})

_STATUSES: Final = frozenset({"ST", "US", "HD", "OL"})
_WEIGHT_KINDS: Final = frozenset({"gross", "net", "tare", "hold"})

#: Maximum characters of a scale's line.
_MAX_RAW: Final = 1024

T = TypeVar("T")

RelayItem: TypeAlias = dict[str, Any]

#: Records that gateways exchange.
SharedRecord: TypeAlias = Reading | Commit | Update | Fault | Presence | Silence


@dataclass(frozen=True, slots=True)
class RelayMessage:
    """Message with items that are not read yet.

    :ivar token: token of its sender, new at each start of a gateway.
    :ivar gateway: name of its sender.
    :ivar number: rises with each message of its sender.
    :ivar moment: number of the server's latest transaction that its sender knew of.
    :ivar to: token of its receiver; ``None`` for all peers.
    """

    token: str
    gateway: str
    number: int
    moment: int
    to: str | None
    kind: str
    items: list[Any]


@dataclass(frozen=True, slots=True)
class RecordItem:
    """Record of a peer.

    :ivar time: time at which the peer published it.
    :ivar age: seconds since then.
    :ivar idle_timeout: idle time-out of its scale, in seconds.
    :ivar arrived: time of a reading's arrival on the peer's monotonic clock, in seconds; ``None`` of an older version.
    """

    record: SharedRecord
    time: datetime
    age: float
    idle_timeout: float
    arrived: float | None


@dataclass(frozen=True, slots=True)
class ScaleItem:
    """State of a scale of a peer.

    :ivar idle_timeout: idle time-out of the scale, in seconds.
    :ivar age: age of its latest weight, in seconds.
    :ivar arrival: arrival of that weight, at the gateway with the token; ``None`` if it is not known.
    """

    presence: Presence
    idle_timeout: float
    latest: Reading | None
    age: float
    arrival: Arrival | None


@dataclass(frozen=True, slots=True)
class MachineItem:
    """State of a machine of a peer."""

    presence: Presence


@dataclass(frozen=True, slots=True)
class SensorItem:
    """Recent updates of a sensor, oldest first, at least one."""

    updates: list[Update]


def encode_message(
    token: str, gateway: str, number: int, moment: int, to: str | None, kind: str, items: Iterable[str] = ()
) -> str:
    """Return the text of a message.

    :param items: items as JSON texts.
    """
    head = _encode_json({"from": token, "name": gateway, "number": number, "moment": moment, "to": to, "say": kind})
    return f'{head[:-1]},"items":[{",".join(items)}]}}'


def pack_items(items: Iterable[RelayItem], head: int, reject: Callable[[RelayItem], None]) -> Iterator[list[str]]:
    """Yield the JSON texts of items, in groups that fit a message.

    :param head: bytes of the message without its items.
    :param reject: called with each item that fits no message.
    """
    max_size = MAX_BYTES - MAC_LENGTH - head
    group: list[str] = []
    size = 0
    for item in items:
        text = _encode_json(item)
        if len(text) > max_size:
            reject(item)
            continue
        if size + len(text) > max_size:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text) + 1
    if group:
        yield group


def record_item(item: RecordItem) -> RelayItem:
    """Return the item of a record."""
    fields = {"at": item.time.timestamp(), "age": item.age, "idle": item.idle_timeout, **_record_fields(item.record)}
    return fields if item.arrived is None else {**fields, "arrived": item.arrived}


def scale_item(item: ScaleItem) -> RelayItem:
    """Return the item of a scale's state."""
    return {
        "is": "scale",
        "scale": item.presence.name,
        "connected": item.presence.connected,
        "idle": item.idle_timeout,
        "latest": None if item.latest is None else _record_fields(item.latest),
        "age": item.age,
        "arrival": item.arrival,
    }


def machine_item(machine: str, connected: bool) -> RelayItem:
    """Return the item of a machine's state."""
    return {"is": "machine", "machine": machine, "connected": connected}


def sensor_item(machine: str, sensor: str, updates: Iterable[Update]) -> RelayItem:
    """Return the item of a sensor's recent updates."""
    means = [[update.minute_end.timestamp(), update.mean] for update in updates]
    return {"is": "sensor", "machine": machine, "sensor": sensor, "means": means}


def _record_fields(record: SharedRecord) -> RelayItem:
    match record:
        case Reading():
            return {
                "is": "reading",
                "scale": record.scale_id,
                "status": record.status,
                "kg": None if record.weight is None else str(record.weight),
                "kind": record.kind,
                "raw": record.raw,
                "received": record.received_at.timestamp(),
                **_judgement_fields(record),
            }
        case Commit():
            # The line is left out: no event contains it.
            entry = record.entry
            return {
                "is": "commit",
                "id": record.id,
                "scale": entry.scale_id,
                "cylinder": entry.cylinder_no,
                "type": entry.event_type,
                "kg": str(entry.gross_kg),
                "received": entry.received_at.timestamp(),
                "committed": entry.committed_at.timestamp(),
                "shipping": entry.arrival_shipping_no,
                "report": entry.move_report_no,
                "ticket": record.ticket,
                "detail": entry.detail.record(),
            }
        case Update():
            return {
                "is": "update",
                "machine": record.machine,
                "sensor": record.sensor,
                "mean": record.mean,
                "end": record.minute_end.timestamp(),
            }
        case Fault():
            return {
                "is": "fault",
                "machine": record.machine,
                "score": record.score,
                "threshold": record.threshold,
                "received": record.received_at.timestamp(),
            }
        case Presence():
            return {"is": "presence", "source": record.source, "name": record.name, "connected": record.connected}
        case Silence():
            return {"is": "silence", "scale": record.scale_id, "silent": record.is_silent}


def _judgement_fields(record: Reading) -> RelayItem:
    """Return what the gateway of a scale says of a reading; fields with their defaults are left out."""
    fields = {
        "unit": None if record.unit == "kg" else record.unit,
        "id": record.reading_id or None,
        "verdict": None if record.verdict.error is None else list(record.verdict),
        "out": record.out_of_range or None,
        "accepted": record.is_accepted,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _encode_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read_message(text: str) -> RelayMessage:
    """Read the text of a message.

    :raises WireError: it is not a valid message.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("it is not valid JSON") from error
    return _parse(_parse_message, value)


def read_item(item: Any, zone: tzinfo) -> RecordItem | ScaleItem | MachineItem | SensorItem:
    """Read an item of a message.

    :param zone: configured time zone, for the times of records.
    :raises WireError: the item is not valid.
    """
    return _parse(_parse_item, item, zone)


def _parse(parser: Callable[..., T], *arguments: Any) -> T:
    """Call a parser, and replace errors about a value's type or range by :class:`WireError`."""
    try:
        return parser(*arguments)
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation, OverflowError, OSError) as error:
        raise WireError(f"a value is missing or has an unexpected type ({type(error).__name__})") from error


def _parse_message(value: Any) -> RelayMessage:
    token, name, to, kind = value["from"], value["name"], value["to"], value["say"]
    number, moment, items = value["number"], value["moment"], value["items"]
    if not (is_text(token, 64) and token and is_text(name, 64)):
        raise WireError("its sender is not a valid gateway")
    if not (is_positive(number) and is_positive(moment)):
        raise WireError("its number or moment is not valid")
    if not (to is None or is_text(to, 64)) or kind not in _MESSAGE_KINDS or not isinstance(items, list):
        raise WireError("its kind, receiver or items are not valid")
    return RelayMessage(token, name, number, moment, to, kind, items)


def _parse_item(item: Mapping[str, Any], zone: tzinfo) -> RecordItem | ScaleItem | MachineItem | SensorItem:
    match item["is"]:
        case "scale":
            latest = item["latest"]
            reading = None if latest is None else _parse_reading(latest, zone)
            if reading is not None and not (reading.settled and reading.scale_id == item["scale"]):
                raise WireError("its latest weight is not a settled reading of the scale")
            presence = Presence("scale", read_scale(item), read_flag(item["connected"]))
            arrival = read_arrival(item.get("arrival"))
            return ScaleItem(presence, read_seconds(item["idle"]), reading, read_seconds(item["age"]), arrival)
        case "machine":
            return MachineItem(Presence("machine", read_name(item["machine"]), read_flag(item["connected"])))
        case "sensor":
            machine, sensor = read_name(item["machine"]), read_name(item["sensor"])
            updates = [Update(machine, sensor, read_number(mean), read_time(end, zone)) for end, mean in item["means"]]
            if not updates:
                raise WireError("a sensor has no means")
            return SensorItem(updates)
    record = _RECORD_PARSERS[item["is"]](item, zone)
    arrived = item.get("arrived")
    return RecordItem(
        record,
        read_time(item["at"], zone),
        read_seconds(item["age"]),
        read_seconds(item["idle"]),
        None if arrived is None else read_seconds(arrived),
    )


def _parse_reading(item: Mapping[str, Any], zone: tzinfo) -> Reading:
    status, kind, weight = item["status"], item["kind"], item["kg"]
    if status not in _STATUSES or kind not in _WEIGHT_KINDS or (status == "OL") != (weight is None):
        raise WireError("a reading is not valid")
    kilograms = None if weight is None else read_weight(weight)
    raw, received_at = read_text(item["raw"], _MAX_RAW), read_time(item["received"], zone)
    return Reading(read_scale(item), status, kilograms, kind, raw, received_at, *read_judgement(item))


def _parse_commit(item: Mapping[str, Any], zone: tzinfo) -> Commit:
    number = item["id"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
        raise WireError("the id of a commit is not valid")
    shipping, report = item["shipping"], item["report"]
    return Commit(
        number,
        CommitEntry(
            scale_id=read_scale(item),
            cylinder_no=read_text(item["cylinder"], 50),
            event_type=read_text(item["type"], 10),
            gross_kg=read_weight(item["kg"]),
            raw_line="",
            received_at=read_time(item["received"], zone),
            committed_at=read_time(item["committed"], zone),
            arrival_shipping_no=None if shipping is None else read_text(shipping, 50),
            move_report_no=None if report is None else read_text(report, 50),
            detail=read_detail(item.get("detail")),
        ),
        None if item.get("ticket") is None else read_text(item["ticket"], 100),
    )


def _parse_update(item: Mapping[str, Any], zone: tzinfo) -> Update:
    return Update(
        read_name(item["machine"]), read_name(item["sensor"]), read_number(item["mean"]), read_time(item["end"], zone)
    )


def _parse_fault(item: Mapping[str, Any], zone: tzinfo) -> Fault:
    return Fault(
        read_name(item["machine"]),
        read_number(item["score"]),
        read_number(item["threshold"]),
        read_time(item["received"], zone),
    )


def _parse_presence(item: Mapping[str, Any], _: tzinfo) -> Presence:
    source = item["source"]
    if source not in {"scale", "machine"}:
        raise WireError("the source of a presence is neither scale nor machine")
    return Presence(source, read_name(item["name"]), read_flag(item["connected"]))


_RECORD_PARSERS: Final[dict[str, Callable[[Mapping[str, Any], tzinfo], SharedRecord]]] = {
    "reading": _parse_reading,
    "commit": _parse_commit,
    "update": _parse_update,
    "fault": _parse_fault,
    "presence": _parse_presence,
    "silence": lambda item, _: Silence(read_scale(item), read_flag(item["silent"])),
}
