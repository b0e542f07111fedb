"""Messages of DAQ programs: ``("name", ...)``, ``("DataUpdate", {...})``, ``("FaultDetect", {...})``."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from gateway.model.names import name_of, name_problem
from gateway.model.records import SensorBatch
from gateway.wire.errors import shown_text
from gateway.wire.values import MAX_CONTAINERS, DictValue, ListValue, Value, describe


@dataclass(frozen=True, slots=True)
class Name:
    """The name of the machine that a connection belongs to.

    :ivar secret: secret that proves it; ``None`` without one.
    """

    machine: str
    secret: str | None = field(default=None, repr=False)


class OmittedSensor(NamedTuple):
    """A sensor that is left out of a message, with the reason.

    :ivar sensor: name as it was sent, for a log line.
    :ivar reason: reason for leaving it out.
    """

    sensor: str
    reason: str


class DataUpdate(NamedTuple):
    """Samples of one or more sensors.

    :ivar size: number of samples.
    :ivar left_out: sensors with invalid data.
    """

    sensors: dict[str, SensorBatch]
    size: int
    left_out: Sequence[OmittedSensor] = ()


@dataclass(frozen=True, slots=True)
class FaultDetect:
    """A score of the DAQ program's own fault detection, and the threshold it is compared with."""

    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """Plain data that is not a valid message, and must be dropped.

    :ivar reason: reason, for a log line.
    :ivar left_out: sensors of a ``DataUpdate``, if all of them have invalid data.
    """

    reason: str
    left_out: Sequence[OmittedSensor] = ()


DaqMessage: TypeAlias = Name | DataUpdate | FaultDetect | InvalidMessage

#: Samples that a frame may have beyond its size in bytes. A number takes at least two bytes, but a pickled list may be
#: shared by many sensors, and is then stored for each of them.
MAX_SHARED_SAMPLES: Final = 10_000

#: Maximum characters of a sensor's type.
_MAX_TYPE: Final = 64

_NAME_KEYS: Final = frozenset({"name", "secret"})

#: The keys that were sent are not shown: one of them may be the secret.
_NAME_FORM: Final = 'name: the machine\'s name is needed, or a dict {"name": ..., "secret": ...} without other keys'

_NOT_A_PAIR: Final = 'a message is a pair of an event and its data, ("DataUpdate", {...})'


def message(value: Value, size: int) -> DaqMessage:
    """Convert a value into a message.

    :param size: bytes of its frame.
    """
    match value:
        case ListValue(others=[str(event), data]) if not value.numbers:
            pass
        case ListValue(others=[str(event)], numbers=array() as data) if len(data) == 1 and not value.odd_at:
            # ("name", 5): the reasons below describe the number.
            pass
        case DictValue(items={"event": str(event), "data": data}):
            pass
        case _:
            return InvalidMessage(f"{_NOT_A_PAIR}; this is {describe(value)}")
    if event == "DataUpdate":
        return _data_update(data, size)
    if event == "FaultDetect":
        return _fault_detect(data)
    if event == "name":
        return _name(data)
    return InvalidMessage(f"unknown event {shown_text(event)}; known are name, DataUpdate and FaultDetect")


def _name(data: Value) -> DaqMessage:
    secret: str | None = None
    if isinstance(data, DictValue):
        items = data.items
        if data.odd or "name" not in items or not items.keys() <= _NAME_KEYS:
            return InvalidMessage(_NAME_FORM)
        sent = items.get("secret")
        if sent is not None and not isinstance(sent, str):
            return InvalidMessage(f"secret of the machine: text is needed, this is {describe(sent)}")
        data, secret = items["name"], sent
    if not isinstance(data, str):
        return InvalidMessage(f"machine name: text is needed, this is {describe(data)}")
    name = name_of(data)
    if name is None:
        return InvalidMessage(f"machine name {shown_text(data)}: {name_problem(data)}")
    return Name(name, secret)


def _data_update(data: Value, size: int) -> DaqMessage:
    if not isinstance(data, DictValue):
        return InvalidMessage(f"DataUpdate: a dict of sensors is needed, this is {describe(data)}")
    if len(data.items) > MAX_CONTAINERS:
        return InvalidMessage(f"DataUpdate: it has {len(data.items)} sensors; {MAX_CONTAINERS} are allowed")
    sensors: dict[str, SensorBatch] = {}
    left_out: list[OmittedSensor] = []
    samples = 0
    if data.odd:
        left_out.append(OmittedSensor("without a name", "a sensor's name must be text"))
    for sent_name, sensor in data.items.items():
        name = name_of(sent_name)
        batch = _sensor_batch(sensor)
        if name is None:
            left_out.append(OmittedSensor(shown_text(sent_name), f"its name is not allowed: {name_problem(sent_name)}"))
        elif isinstance(batch, str):
            left_out.append(OmittedSensor(shown_text(name), batch))
        elif name in sensors:
            left_out.append(OmittedSensor(shown_text(name), "the message has the name twice, in two forms of Unicode"))
        else:
            sensors[name] = batch
            samples += len(batch.samples)
    if samples > size + MAX_SHARED_SAMPLES:
        return InvalidMessage(
            f"DataUpdate: it has {samples} samples in {size} bytes; lists must not be shared by sensors"
        )
    if left_out and not sensors:
        first = left_out[0]
        return InvalidMessage(f"DataUpdate: none of its sensors can be used; {first.sensor}: {first.reason}", left_out)
    return DataUpdate(sensors, samples, left_out)


def _sensor_batch(sensor: Value) -> SensorBatch | str:
    """Return the samples of a sensor, or the reason to leave it out."""
    if not isinstance(sensor, DictValue):
        # Text is not shown: a program may send its secret here.
        word = "text" if isinstance(sensor, str) else describe(sensor)
        return f'a dict {{"type": ..., "data": [...]}} is needed, this is {word}'
    kind, samples = sensor.items.get("type"), sensor.items.get("data")
    if not isinstance(kind, str):
        return "its type is missing" if kind is None else f"its type must be text, this is {describe(kind)}"
    if len(kind) > _MAX_TYPE:
        return f"its type has {len(kind)} characters; {_MAX_TYPE} are allowed"
    if not kind.isprintable():
        return f"its type {shown_text(kind)} has a character that cannot be shown"
    if not isinstance(samples, ListValue):
        return "its data is missing" if samples is None else f"its data must be a list, this is {describe(samples)}"
    if samples.others:
        return f"sample {samples.odd_at} is {describe(samples.others[0])}; a number is needed"
    return SensorBatch(kind, samples.numbers)


def _fault_detect(data: Value) -> DaqMessage:
    if not isinstance(data, DictValue):
        return InvalidMessage(
            f'FaultDetect: a dict {{"score": ..., "threshold": ...}} is needed, this is {describe(data)}'
        )
    numbers: list[float] = []
    for name in ("score", "threshold"):
        value = data.items.get(name)
        if value is None:
            return InvalidMessage(f"FaultDetect: {name} is missing")
        if not isinstance(value, array):
            return InvalidMessage(f"FaultDetect: {name} must be a number, this is {describe(value)}")
        if not math.isfinite(value[0]):
            return InvalidMessage(f"FaultDetect: {name} must be finite, this is {value[0]}")
        numbers.append(value[0])
    return FaultDetect(*numbers)


def split_update(update: DataUpdate, max_samples: int) -> Iterator[DataUpdate]:
    """Split a message into messages of at most ``max_samples`` samples each, in order."""
    sensors: dict[str, SensorBatch] = {}
    left_out = update.left_out
    remaining = max_samples
    for name, sensor in update.sensors.items():
        samples = sensor.samples
        start = 0
        while len(samples) - start > remaining:
            yield DataUpdate(
                {**sensors, name: SensorBatch(sensor.type, samples[start : start + remaining])}, max_samples, left_out
            )
            start += remaining
            sensors = {}
            left_out = ()
            remaining = max_samples
        sensors[name] = SensorBatch(sensor.type, samples[start:]) if start else sensor
        remaining -= len(samples) - start
    yield DataUpdate(sensors, max_samples - remaining, left_out)
