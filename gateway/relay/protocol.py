"""Messages between the gateways on one database, as JSON: encoded and read without I/O and without a clock.

A message is an object with the token and the name of its sender, its number, the token of its receiver (``null``: all
peers), its kind (``say``) and items: records as they happen, or parts of the sender's state. It is ASCII, regardless of
the database's encoding. Times are seconds since 1970. Ages are seconds, because wall clocks of two computers differ.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias, TypeVar

from gateway.model.names import name_of
from gateway.model.records import Commit, CommitEntry, Fault, Presence, Reading, Update
from gateway.wire.errors import WireError
from gateway.wire.scale import HEAVIEST_KG

#: Maximum bytes of a message: NOTIFY takes less than 8,000 (PostgreSQL's NOTIFY_PAYLOAD_MAX_LENGTH).
MAX_BYTES: Final = 7_900

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

#: Limit of times, about the year 8900: :class:`datetime` takes earlier ones in every time zone.
_MAX_TIME: Final = 2.2e11

T = TypeVar("T")

RelayItem: TypeAlias = dict[str, Any]

#: Records that gateways exchange.
SharedRecord: TypeAlias = Reading | Commit | Update | Fault | Presence


@dataclass(frozen=True, slots=True)
class RelayMessage:
    """Message with items that are not read yet.

    :ivar token: token of its sender, new at each start of a gateway.
    :ivar gateway: name of its sender.
    :ivar to: token of its receiver; ``None`` for all peers.
    """

    token: str
    gateway: str
    number: int
    to: str | None
    kind: str
    items: list[Any]


@dataclass(frozen=True, slots=True)
class RecordItem:
    """Record of a peer.

    :ivar time: time at which the peer published it.
    :ivar age: seconds since then.
    :ivar idle_timeout: idle time-out of its scale, in seconds.
    """

    record: SharedRecord
    time: datetime
    age: float
    idle_timeout: float


@dataclass(frozen=True, slots=True)
class ScaleItem:
    """State of a scale of a peer.

    :ivar idle_timeout: idle time-out of the scale, in seconds.
    :ivar age: age of its latest weight, in seconds.
    """

    presence: Presence
    idle_timeout: float
    latest: Reading | None
    age: float


@dataclass(frozen=True, slots=True)
class MachineItem:
    """State of a machine of a peer."""

    presence: Presence


@dataclass(frozen=True, slots=True)
class SensorItem:
    """Recent updates of a sensor, oldest first, at least one."""

    updates: list[Update]


def encode_message(token: str, gateway: str, number: int, to: str | None, kind: str, items: Iterable[str] = ()) -> str:
    """Return the payload of a message.

    :param items: items as JSON texts.
    """
    head = _encode_json({"from": token, "name": gateway, "number": number, "to": to, "say": kind})
    return f'{head[:-1]},"items":[{",".join(items)}]}}'


def pack_items(items: Iterable[RelayItem], head: int, reject: Callable[[RelayItem], None]) -> Iterator[list[str]]:
    """Yield the JSON texts of items, in groups that fit a message.

    :param head: bytes of the message without its items.
    :param reject: called with each item that fits no message.
    """
    max_size = MAX_BYTES - head
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


def record_item(record: SharedRecord, time: datetime, age: float, idle_timeout: float) -> RelayItem:
    """Return the item of a record."""
    return {"at": time.timestamp(), "age": age, "idle": idle_timeout, **_record_fields(record)}


def scale_item(scale_id: str, connected: bool, idle_timeout: float, latest: Reading | None, age: float) -> RelayItem:
    """Return the item of a scale's state."""
    return {
        "is": "scale",
        "scale": scale_id,
        "connected": connected,
        "idle": idle_timeout,
        "latest": None if latest is None else _record_fields(latest),
        "age": age,
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


def _encode_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read_message(payload: str) -> RelayMessage:
    """Read a payload.

    :raises WireError: the payload is not a valid message.
    """
    try:
        value = json.loads(payload)
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
    token, name, number, to, kind = value["from"], value["name"], value["number"], value["to"], value["say"]
    items = value["items"]
    if not (_is_text(token, 64) and token and _is_text(name, 64)):
        raise WireError("its sender is not a valid gateway")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise WireError("its number is not valid")
    if not (to is None or _is_text(to, 64)) or kind not in _MESSAGE_KINDS or not isinstance(items, list):
        raise WireError("its kind, receiver or items are not valid")
    return RelayMessage(token, name, number, to, kind, items)


def _parse_item(item: Mapping[str, Any], zone: tzinfo) -> RecordItem | ScaleItem | MachineItem | SensorItem:
    match item["is"]:
        case "scale":
            latest = item["latest"]
            reading = None if latest is None else _parse_reading(latest, zone)
            if reading is not None and not (reading.settled and reading.scale_id == item["scale"]):
                raise WireError("its latest weight is not a settled reading of the scale")
            presence = Presence("scale", _scale(item), _flag(item["connected"]))
            return ScaleItem(presence, _seconds(item["idle"]), reading, _seconds(item["age"]))
        case "machine":
            return MachineItem(Presence("machine", _name(item["machine"]), _flag(item["connected"])))
        case "sensor":
            machine, sensor = _name(item["machine"]), _name(item["sensor"])
            updates = [Update(machine, sensor, _number(mean), _time(end, zone)) for end, mean in item["means"]]
            if not updates:
                raise WireError("a sensor has no means")
            return SensorItem(updates)
    record = _RECORD_PARSERS[item["is"]](item, zone)
    return RecordItem(record, _time(item["at"], zone), _seconds(item["age"]), _seconds(item["idle"]))


def _parse_reading(item: Mapping[str, Any], zone: tzinfo) -> Reading:
    status, kind, weight = item["status"], item["kind"], item["kg"]
    if status not in _STATUSES or kind not in _WEIGHT_KINDS or (status == "OL") != (weight is None):
        raise WireError("a reading is not valid")
    kilograms = None if weight is None else _weight(weight)
    return Reading(_scale(item), status, kilograms, kind, _text(item["raw"], _MAX_RAW), _time(item["received"], zone))


def _parse_commit(item: Mapping[str, Any], zone: tzinfo) -> Commit:
    number = item["id"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
        raise WireError("the id of a commit is not valid")
    shipping, report = item["shipping"], item["report"]
    return Commit(
        number,
        CommitEntry(
            scale_id=_scale(item),
            cylinder_no=_text(item["cylinder"], 50),
            event_type=_text(item["type"], 10),
            gross_kg=_weight(item["kg"]),
            raw_line="",
            received_at=_time(item["received"], zone),
            committed_at=_time(item["committed"], zone),
            arrival_shipping_no=None if shipping is None else _text(shipping, 50),
            move_report_no=None if report is None else _text(report, 50),
        ),
    )


def _parse_update(item: Mapping[str, Any], zone: tzinfo) -> Update:
    return Update(_name(item["machine"]), _name(item["sensor"]), _number(item["mean"]), _time(item["end"], zone))


def _parse_fault(item: Mapping[str, Any], zone: tzinfo) -> Fault:
    return Fault(
        _name(item["machine"]), _number(item["score"]), _number(item["threshold"]), _time(item["received"], zone)
    )


def _parse_presence(item: Mapping[str, Any], _: tzinfo) -> Presence:
    source = item["source"]
    if source not in {"scale", "machine"}:
        raise WireError("the source of a presence is neither scale nor machine")
    return Presence(source, _name(item["name"]), _flag(item["connected"]))


_RECORD_PARSERS: Final[dict[str, Callable[[Mapping[str, Any], tzinfo], SharedRecord]]] = {
    "reading": _parse_reading,
    "commit": _parse_commit,
    "update": _parse_update,
    "fault": _parse_fault,
    "presence": _parse_presence,
}


def _is_text(value: Any, max_length: int) -> bool:
    # Half a surrogate pair cannot be encoded for subscribers.
    return isinstance(value, str) and len(value) <= max_length and not any("\ud800" <= c <= "\udfff" for c in value)


def _text(value: Any, max_length: int) -> str:
    if not _is_text(value, max_length):
        raise WireError(f"a value is not a text of at most {max_length} characters")
    return str(value)


def _name(value: Any) -> str:
    # A peer of an older version may send the name decomposed.
    name = name_of(value) if isinstance(value, str) else None
    if name is None:
        raise WireError("a name is not valid")
    return name


def _scale(item: Mapping[str, Any]) -> str:
    scale_id = _name(item["scale"])
    if len(scale_id) > 50:
        raise WireError("the name of a scale has more than 50 characters")
    return scale_id


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WireError("a flag is neither true nor false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("a value is not a number")
    return float(value)


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 <= seconds < math.inf:
        raise WireError("a duration is not valid")
    return seconds


def _weight(value: Any) -> Decimal:
    weight = Decimal(_text(value, 64))
    # A commit rounds a weight to 0.01, which would need much memory for an extreme exponent.
    if not weight.is_finite() or abs(weight) >= HEAVIEST_KG or weight.adjusted() < -40:
        raise WireError("a weight is not valid")
    return weight


def _time(value: Any, zone: tzinfo) -> datetime:
    seconds = _number(value)
    if not 0 <= seconds < _MAX_TIME:
        raise WireError("a time is not valid")
    return datetime.fromtimestamp(seconds, zone)
