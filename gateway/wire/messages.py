"""What a DAQ program says: ``("name", ...)``, ``("DataUpdate", {...})``, ``("FaultDetect", {...})``."""

import math
from array import array
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from gateway.model import SensorBatch, is_name
from gateway.wire.values import Mapping, Sequence, Value


@dataclass(frozen=True, slots=True)
class Name:
    """The machine that is speaking."""

    machine: str


class DataUpdate(NamedTuple):
    """Samples of one or more sensors, and how many these are."""

    sensors: dict[str, SensorBatch]
    size: int


@dataclass(frozen=True, slots=True)
class FaultDetect:
    """A score of the DAQ's own fault detection, and the threshold it is held against."""

    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Misshapen:
    """Plain data, but no message: to be dropped. ``reason`` holds nothing of the data."""

    reason: str


Message: TypeAlias = Name | DataUpdate | FaultDetect | Misshapen

#: How many samples a frame of some bytes may stand for: as many as it has bytes, and a few. No number takes less than
#: two, but a pickled list may be used by many sensors, and costs the disk as much as if it had been sent each time.
MAX_SHARED_SAMPLES = 10_000


def message(value: Value, size: int) -> Message:
    """The message that a value is.

    :param size: of its frame, in bytes.
    """
    match value:
        case Sequence(others=[str(event), data]) if not value.numbers:
            pass
        case Mapping(items={"event": str(event), "data": data}):
            pass
        case _:
            return Misshapen("not a pair of an event and its data")
    if event == "DataUpdate":
        return _data_update(data, size)
    if event == "FaultDetect":
        return _fault_detect(data)
    if event == "name":
        if isinstance(data, str) and is_name(data):
            return Name(data)
        return Misshapen("a machine name that is none")
    return Misshapen("unknown event")


def _data_update(data: Value, size: int) -> Message:
    if not isinstance(data, Mapping) or data.odd:
        return Misshapen("DataUpdate without a dict of sensors")
    sensors: dict[str, SensorBatch] = {}
    samples = 0
    for name, sensor in data.items.items():
        if not is_name(name):
            return Misshapen("a sensor name that is none")
        match sensor:
            case Mapping(items={"type": str(kind), "data": Sequence(others=[], numbers=numbers)}) if _is_type(kind):
                sensors[name] = SensorBatch(kind, numbers)
                samples += len(numbers)
            case _:
                return Misshapen("a sensor without a type or without a list of numbers")
    if samples > size + MAX_SHARED_SAMPLES:
        return Misshapen("more samples than the frame could hold")
    return DataUpdate(sensors, samples)


def _is_type(text: str) -> bool:
    return len(text) <= 64 and text.isprintable()


def _fault_detect(data: Value) -> Message:
    match data:
        case Mapping(items={"score": array() as score, "threshold": array() as threshold}):
            if math.isfinite(score[0]) and math.isfinite(threshold[0]):
                return FaultDetect(score[0], threshold[0])
    return Misshapen("FaultDetect without a finite score and threshold")
