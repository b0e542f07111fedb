"""Pickles that differ from one read before in their numbers only.

A DAQ program sends the same message again and again: same sensors, other samples. What stands between the runs of
doubles (``BINFLOAT``, ``G`` and eight bytes) is then byte for byte what :class:`~gateway.wire.pickles.PickleReader` has
gone through instruction by instruction, and need only be compared. Where anything else differs, nothing is said of the
pickle, and it is read in the usual way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from gateway.model.records import SensorBatch
from gateway.wire.messages import DataUpdate
from gateway.wire.pickle_numbers import count_doubles, doubles
from gateway.wire.pickle_stack import DoubleRun

#: Where pickles of protocol 4 and 5 say how long they are: behind PROTO, FRAME and eight bytes.
_PROTO: Final = b"\x80"
_FRAME: Final = b"\x95"
_FRAME_AT: Final = 2
_LENGTH: Final = 8

#: What is held for each sensor, beside what stands between its samples.
_SENSOR_BYTES: Final = 200

#: What a separator may begin with.
_CUT: Final = frozenset({b"", b"\\"})


#: A message, and where its frame ends.
Match: TypeAlias = tuple[DataUpdate, int]


@dataclass(slots=True)
class PartialMatch:
    """A frame that is not all there.

    :ivar size: bytes of it that need not be looked at again.
    :ivar sensors: what they hold.
    """

    template: "FrameTemplate"
    size: int = 0
    sensors: dict[str, SensorBatch] = field(default_factory=dict)


@dataclass(slots=True)
class _SensorTemplate:
    """One sensor of a shape.

    :ivar behind: what stands behind its samples.
    :ivar opcodes: of its samples in the last message.
    """

    name: str
    type: str
    behind: bytes
    opcodes: bytes


class FrameTemplate:
    """What a message of samples looks like without its samples.

    :ivar size: bytes of a message that are no samples.
    :ivar weight: about how many bytes of memory it holds.
    """

    __slots__ = ("_begin", "_literals", "_sensors", "size", "weight")

    def __init__(self, begin: bytes, literals: list[bytes | None], sensors: list[_SensorTemplate]) -> None:
        #: What stood before the samples of the last message; ``None`` is the length that a pickle says of itself.
        self._begin = begin
        self._literals = literals
        self._sensors = sensors
        self.size = len(begin) + sum(len(sensor.behind) for sensor in sensors)
        self.weight = self.size + _SENSOR_BYTES * len(sensors)

    @classmethod
    def of(cls, update: DataUpdate, runs: Sequence[DoubleRun], data: bytes) -> Self | None:
        """The shape of a pickle, where it has one.

        It has where the samples of each sensor are one run of doubles, in order, and there is no other: no instruction
        between them has looked into a run or depends on how long it is.

        :param update: the message that it was read as.
        :param runs: all its runs of doubles.
        """
        sensors = update.sensors
        if not sensors or len(sensors) != len(runs):
            return None
        ends = [run.start for run in runs[1:]] + [len(data)]
        its_sensors: list[_SensorTemplate] = []
        for (name, sensor), run, its_end in zip(sensors.items(), runs, ends, strict=True):
            if sensor.samples is not run.numbers or 9 * len(run.numbers) != run.end - run.start:
                return None
            its_sensors.append(_SensorTemplate(name, sensor.type, data[run.end : its_end], b"G" * len(run.numbers)))
        begin = data[: runs[0].start]
        literals: list[bytes | None] = [begin]
        if begin.startswith(_PROTO) and begin.startswith(_FRAME, _FRAME_AT):
            length_at = _FRAME_AT + 1
            literals = [begin[:length_at], None, begin[length_at + _LENGTH :]]
        return cls(begin, literals, its_sensors)

    def read(
        self, data: bytes, start: int, limit: int, begun: PartialMatch | None = None
    ) -> Match | PartialMatch | None:
        """The frame that begins at ``start``, or as much of it as is there; ``None`` where it has not this shape.

        :param limit: the length that it may say of itself; whether that is true does not matter.
        :param begun: what was made of the same bytes when there were fewer of them.
        """
        left = self._sensors
        if begun is None or not begun.size:
            pos = start
            sensors: dict[str, SensorBatch] = {}
            if data.startswith(self._begin, pos):
                # It says the same length as the last one.
                pos += len(self._begin)
            else:
                for literal in self._literals:
                    if literal is None:
                        if int.from_bytes(data[pos : pos + _LENGTH], "little") > limit:
                            return None
                        pos += _LENGTH
                    elif data.startswith(literal, pos):
                        pos += len(literal)
                    else:
                        return PartialMatch(self) if _is_cut(literal, data, pos) else None
                self._begin = data[start:pos]
        else:
            pos, sensors = start + begun.size, begun.sensors
            left = left[len(sensors) :]
        for sensor in left:
            behind, opcodes = sensor.behind, sensor.opcodes
            # Mostly they are as many as last time.
            end = pos + 9 * len(opcodes)
            if data[pos:end:9] != opcodes or not data.startswith(behind, end):
                end = pos + 9 * count_doubles(data, pos)
                if not data.startswith(behind, end):
                    # Of a double, or of what stands behind, the end may be missing.
                    is_cut = _is_cut(behind, data, end) or (data.startswith(b"G", end) and len(data) - end < 9)
                    return PartialMatch(self, pos - start, sensors) if is_cut else None
                if end == pos:
                    return None
                sensor.opcodes = data[pos:end:9]
            sensors[sensor.name] = SensorBatch(sensor.type, doubles(data[pos:end]))
            pos = end + len(behind)
        after = separator_end(data, pos)
        if after:
            # Nine bytes a sample, and what stands between them.
            return DataUpdate(sensors, (pos - start - self.size) // 9), after
        return PartialMatch(self, pos - start, sensors) if after is None else None


def separator_end(data: bytes, pos: int) -> int | None:
    """Where the separator ends that begins at ``pos``: 0 where there is none, ``None`` where that cannot be told."""
    if data.startswith(b"\\o", pos):
        return pos + 2
    if data.startswith(b"\0", pos):
        return pos + 1
    return 0 if data[pos : pos + 2] not in _CUT else None


def _is_cut(literal: bytes, data: bytes, pos: int) -> bool:
    """Whether the bytes from ``pos`` on are a literal without its end."""
    return literal.startswith(data[pos : pos + len(literal)])
