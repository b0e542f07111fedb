"""What gateways on one database tell each other, as JSON: read and written without I/O and without a clock.

A message is an object that says who sent it, its number, to whom (``null``: to all), what it is (``say``), and may
hold items: records as they happen, or parts of a gateway's state. It is ASCII, whatever the database's encoding is.
Times are seconds since 1970; an age is in seconds, for wall clocks of two machines differ.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

from gateway.model.names import name_of
from gateway.model.records import Commit, CommitEntry, Fault, Presence, Reading, Update
from gateway.wire.errors import WireError
from gateway.wire.scale import HEAVIEST_KG

#: NOTIFY takes less than 8,000 bytes (PostgreSQL's NOTIFY_PAYLOAD_MAX_LENGTH). No record of ours comes near it.
MOST_BYTES: Final = 7_900

#: What messages are: a gateway begins to listen, says its state, what happens, that it is there, and that it ends.
HELLO: Final = "hello"
STATE: Final = "state"
RECORDS: Final = "records"
HERE: Final = "here"
BYE: Final = "bye"

_SAYS: Final = frozenset({HELLO, STATE, RECORDS, HERE, BYE})

_STATUSES: Final = frozenset({"ST", "US", "HD", "OL"})
_KINDS: Final = frozenset({"gross", "net", "tare", "hold"})

#: A scale's line in bytes, which are no fewer than its characters.
_MOST_RAW: Final = 1024

#: Years 1970 to 9000 or so: what :class:`datetime` takes in each zone.
_LAST_TIME: Final = 2.2e11

RelayItem: TypeAlias = dict[str, Any]

#: Records that cross.
SharedRecord: TypeAlias = Reading | Commit | Update | Fault | Presence


@dataclass(frozen=True, slots=True)
class RelayMessage:
    """A payload, its items not yet read.

    :ivar token: of the gateway that sent it; another at each start.
    :ivar gateway: its name.
    :ivar to: the token of the one whom it is for.
    """

    token: str
    gateway: str
    number: int
    to: str | None
    say: str
    items: list[Any]


@dataclass(frozen=True, slots=True)
class RecordItem:
    """A record of another gateway.

    :ivar time: when that one published it.
    :ivar age: how long ago.
    :ivar idle_timeout: of the scale that it is about.
    """

    record: SharedRecord
    time: datetime
    age: float
    idle_timeout: float


@dataclass(frozen=True, slots=True)
class ScaleItem:
    """How a scale of another gateway stands.

    :ivar age: of its latest weight.
    """

    presence: Presence
    idle_timeout: float
    latest: Reading | None
    age: float


@dataclass(frozen=True, slots=True)
class MachineItem:
    """How a machine of another gateway stands."""

    presence: Presence


@dataclass(frozen=True, slots=True)
class SensorItem:
    """The recent updates of a sensor, oldest first, at least one."""

    updates: list[Update]


# -- writing


def message(token: str, gateway: str, number: int, to: str | None, say: str, items: Iterable[str] = ()) -> str:
    """The payload of a message; its items are texts already."""
    head = _dumps({"from": token, "name": gateway, "number": number, "to": to, "say": say})
    return f'{head[:-1]},"items":[{",".join(items)}]}}'


def packed(items: Iterable[RelayItem], head: int, too_long: Callable[[RelayItem], None]) -> Iterator[list[str]]:
    """The texts of items, as many together as a message may hold.

    :param head: what the message takes beside them, in bytes.
    :param too_long: is told of an item that no message can hold.
    """
    most = MOST_BYTES - head
    held: list[str] = []
    size = 0
    for item in items:
        text = _dumps(item)
        if len(text) > most:
            too_long(item)
            continue
        if size + len(text) > most:
            yield held
            held, size = [], 0
        held.append(text)
        size += len(text) + 1
    if held:
        yield held


def happened(record: SharedRecord, time: datetime, age: float, idle_timeout: float) -> RelayItem:
    """The item of a record."""
    return {"at": time.timestamp(), "age": age, "idle": idle_timeout, **_of_record(record)}


def scale_is(scale_id: str, connected: bool, idle_timeout: float, latest: Reading | None, age: float) -> RelayItem:
    return {
        "is": "scale",
        "scale": scale_id,
        "connected": connected,
        "idle": idle_timeout,
        "latest": None if latest is None else _of_record(latest),
        "age": age,
    }


def machine_is(machine: str, connected: bool) -> RelayItem:
    return {"is": "machine", "machine": machine, "connected": connected}


def sensor_is(machine: str, sensor: str, updates: Iterable[Update]) -> RelayItem:
    means = [[update.minute_end.timestamp(), update.mean] for update in updates]
    return {"is": "sensor", "machine": machine, "sensor": sensor, "means": means}


def _of_record(record: SharedRecord) -> RelayItem:
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
            # The line is left out: no event says it.
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


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# -- reading


def read_message(payload: str) -> RelayMessage:
    """Read a payload.

    :raises WireError: it is no message.
    """
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("no JSON") from error
    found: RelayMessage = _tried(_message, value)
    return found


def read_item(item: Any, zone: tzinfo) -> RecordItem | ScaleItem | MachineItem | SensorItem:
    """Read an item of a message.

    :param zone: the configured one, in which times are told.
    :raises WireError: it is none.
    """
    found: RecordItem | ScaleItem | MachineItem | SensorItem = _tried(_item, item, zone)
    return found


def _tried(read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation, OverflowError, OSError) as error:
        raise WireError(f"it is of another form ({type(error).__name__})") from error


def _message(value: Any) -> RelayMessage:
    token, name, number, to, say = value["from"], value["name"], value["number"], value["to"], value["say"]
    items = value["items"]
    if not (_is_text(token, 64) and token and _is_text(name, 64)):
        raise WireError("no gateway sent it")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise WireError("it has no number")
    if not (to is None or _is_text(to, 64)) or say not in _SAYS or not isinstance(items, list):
        raise WireError("it says nothing")
    return RelayMessage(token, name, number, to, say, items)


def _item(item: Mapping[str, Any], zone: tzinfo) -> RecordItem | ScaleItem | MachineItem | SensorItem:
    match item["is"]:
        case "scale":
            latest = item["latest"]
            reading = None if latest is None else _reading(latest, zone)
            if reading is not None and not (reading.settled and reading.scale_id == item["scale"]):
                raise WireError("no latest weight of the scale")
            presence = Presence("scale", _scale(item), _flag(item["connected"]))
            return ScaleItem(presence, _seconds(item["idle"]), reading, _seconds(item["age"]))
        case "machine":
            return MachineItem(Presence("machine", _name(item["machine"]), _flag(item["connected"])))
        case "sensor":
            machine, sensor = _name(item["machine"]), _name(item["sensor"])
            updates = [Update(machine, sensor, _number(mean), _time(end, zone)) for end, mean in item["means"]]
            if not updates:
                raise WireError("a sensor without means")
            return SensorItem(updates)
    record = _READERS[item["is"]](item, zone)
    return RecordItem(record, _time(item["at"], zone), _seconds(item["age"]), _seconds(item["idle"]))


def _reading(item: Mapping[str, Any], zone: tzinfo) -> Reading:
    status, kind, weight = item["status"], item["kind"], item["kg"]
    if status not in _STATUSES or kind not in _KINDS or (status == "OL") != (weight is None):
        raise WireError("no reading")
    kilograms = None if weight is None else _weight(weight)
    return Reading(_scale(item), status, kilograms, kind, _text(item["raw"], _MOST_RAW), _time(item["received"], zone))


def _commit(item: Mapping[str, Any], zone: tzinfo) -> Commit:
    number = item["id"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
        raise WireError("no id")
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


def _update(item: Mapping[str, Any], zone: tzinfo) -> Update:
    return Update(_name(item["machine"]), _name(item["sensor"]), _number(item["mean"]), _time(item["end"], zone))


def _fault(item: Mapping[str, Any], zone: tzinfo) -> Fault:
    return Fault(
        _name(item["machine"]), _number(item["score"]), _number(item["threshold"]), _time(item["received"], zone)
    )


def _presence(item: Mapping[str, Any], _: tzinfo) -> Presence:
    source = item["source"]
    if source not in {"scale", "machine"}:
        raise WireError("neither a scale nor a machine")
    return Presence(source, _name(item["name"]), _flag(item["connected"]))


_READERS: Final[dict[str, Callable[[Mapping[str, Any], tzinfo], SharedRecord]]] = {
    "reading": _reading,
    "commit": _commit,
    "update": _update,
    "fault": _fault,
    "presence": _presence,
}


def _is_text(value: Any, most: int) -> bool:
    # Half a surrogate pair could not be sent to anybody.
    return isinstance(value, str) and len(value) <= most and not any("\ud800" <= c <= "\udfff" for c in value)


def _text(value: Any, most: int) -> str:
    if not _is_text(value, most):
        raise WireError("no text, or too long")
    return str(value)


def _name(value: Any) -> str:
    # A gateway of an older version may send the name decomposed.
    name = name_of(value) if isinstance(value, str) else None
    if name is None:
        raise WireError("no name")
    return name


def _scale(item: Mapping[str, Any]) -> str:
    scale_id = _name(item["scale"])
    if len(scale_id) > 50:
        raise WireError("no scale")
    return scale_id


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WireError("neither true nor false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("no number")
    return float(value)


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 <= seconds < math.inf:
        raise WireError("no time")
    return seconds


def _weight(value: Any) -> Decimal:
    weight = Decimal(_text(value, 64))
    # A commit rounds it to 0.01: what has an exponent far from that costs memory there.
    if not weight.is_finite() or abs(weight) >= HEAVIEST_KG or weight.adjusted() < -40:
        raise WireError("no weight")
    return weight


def _time(value: Any, zone: tzinfo) -> datetime:
    seconds = _number(value)
    if not 0 <= seconds < _LAST_TIME:
        raise WireError("no time")
    return datetime.fromtimestamp(seconds, zone)
