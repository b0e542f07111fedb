"""Templates of pickles that differ only in their numbers.

A DAQ program sends the same message again and again, with the same sensors and other samples. The bytes between the
runs of doubles (``BINFLOAT``, ``G`` and eight bytes) are then the same as in a message that
:class:`~gateway.wire.pickles.PickleReader` has read instruction by instruction, and need only be compared. If anything
else differs, the template does not match, and the pickle is read instruction by instruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias

from gateway.model.records import SensorBatch
from gateway.wire.messages import DataUpdate
from gateway.wire.pickle_numbers import count_doubles, doubles
from gateway.wire.pickle_stack import DoubleRun

#: Position and bytes of the length in pickles of protocols 4 and 5: PROTO and its version, FRAME, length.
_PROTO: Final = b"\x80"
_FRAME: Final = b"\x95"
_FRAME_AT: Final = 2
_LENGTH: Final = 8

#: Memory of each sensor of a template, in bytes, besides the bytes between its samples.
_SENSOR_BYTES: Final = 200

#: Bytes that may be an incomplete separator.
_INCOMPLETE_SEPARATORS: Final = frozenset({b"", b"\\"})

#: A message, and the position after its frame.
Match: TypeAlias = tuple[DataUpdate, int]


@dataclass(slots=True)
class PartialMatch:
    """The match of a template with the beginning of an incomplete frame.

    :ivar size: bytes of the frame that need not be compared again.
    :ivar sensors: samples in these bytes.
    """

    template: "FrameTemplate"
    size: int = 0
    sensors: dict[str, SensorBatch] = field(default_factory=dict)


@dataclass(slots=True)
class _SensorTemplate:
    """One sensor of a template.

    :ivar behind: bytes after its samples.
    :ivar opcodes: opcodes of its samples in the last message.
    """

    name: str
    type: str
    behind: bytes
    opcodes: bytes


class FrameTemplate:
    """The bytes of a message without its samples.

    :ivar size: bytes of a message without its samples.
    :ivar weight: approximate memory of the template, in bytes.
    """

    __slots__ = ("_begin", "_literals", "_sensors", "size", "weight")

    def __init__(self, begin: bytes, literals: list[bytes | None], sensors: list[_SensorTemplate]) -> None:
        #: Bytes before the samples of the last message, and the parts of them; ``None`` stands for their length field.
        self._begin = begin
        self._literals = literals
        self._sensors = sensors
        self.size = len(begin) + sum(len(sensor.behind) for sensor in sensors)
        self.weight = self.size + _SENSOR_BYTES * len(sensors)

    @classmethod
    def of(cls, update: DataUpdate, runs: Sequence[DoubleRun], data: bytes) -> Self | None:
        """Return the template of a pickle, or ``None`` if it cannot have one.

        In a template, the samples of each sensor are one run of doubles, in order, and there are no further runs: then
        no instruction between the runs depends on their numbers or on how many there are.

        :param update: message of the pickle.
        :param runs: all runs of doubles of the pickle.
        :param data: bytes of the pickle.
        """
        sensors = update.sensors
        if not sensors or len(sensors) != len(runs):
            return None
        ends = [run.start for run in runs[1:]] + [len(data)]
        templates: list[_SensorTemplate] = []
        for (name, sensor), run, end in zip(sensors.items(), runs, ends, strict=True):
            if sensor.samples is not run.numbers or 9 * len(run.numbers) != run.end - run.start:
                return None
            templates.append(_SensorTemplate(name, sensor.type, data[run.end : end], b"G" * len(run.numbers)))
        begin = data[: runs[0].start]
        literals: list[bytes | None] = [begin]
        if begin.startswith(_PROTO) and begin.startswith(_FRAME, _FRAME_AT):
            length_at = _FRAME_AT + 1
            literals = [begin[:length_at], None, begin[length_at + _LENGTH :]]
        return cls(begin, literals, templates)

    def read(
        self, data: bytes, start: int, limit: int, partial: PartialMatch | None = None
    ) -> Match | PartialMatch | None:
        """Return the match with the frame at ``start``, or a partial one if the frame is incomplete.

        Return ``None`` if the frame does not match.

        :param limit: maximum of the length in the pickle; the length itself is not needed.
        :param partial: partial match with the same bytes when fewer of them had arrived.
        """
        left = self._sensors
        if partial is None or not partial.size:
            pos = start
            sensors: dict[str, SensorBatch] = {}
            if data.startswith(self._begin, pos):
                # Its length is the same as that of the last message.
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
                        return PartialMatch(self) if _is_beginning(literal, data, pos) else None
                self._begin = data[start:pos]
        else:
            pos, sensors = start + partial.size, partial.sensors
            left = left[len(sensors) :]
        for sensor in left:
            behind, opcodes = sensor.behind, sensor.opcodes
            # Usually there are as many samples as in the last message.
            end = pos + 9 * len(opcodes)
            if data[pos:end:9] != opcodes or not data.startswith(behind, end):
                end = pos + 9 * count_doubles(data, pos)
                if not data.startswith(behind, end):
                    # The last double, or the bytes after it, may be incomplete.
                    is_incomplete = _is_beginning(behind, data, end) or (
                        data.startswith(b"G", end) and len(data) - end < 9
                    )
                    return PartialMatch(self, pos - start, sensors) if is_incomplete else None
                if end == pos:
                    return None
                sensor.opcodes = data[pos:end:9]
            sensors[sensor.name] = SensorBatch(sensor.type, doubles(data[pos:end]))
            pos = end + len(behind)
        after = separator_end(data, pos)
        if after:
            # All bytes that do not belong to the template are samples of nine bytes.
            return DataUpdate(sensors, (pos - start - self.size) // 9), after
        return PartialMatch(self, pos - start, sensors) if after is None else None


def separator_end(data: bytes, pos: int) -> int | None:
    """Return the end of the separator at ``pos``; 0 if other bytes are there, ``None`` if it is incomplete."""
    if data.startswith(b"\\o", pos):
        return pos + 2
    if data.startswith(b"\0", pos):
        return pos + 1
    return 0 if data[pos : pos + 2] not in _INCOMPLETE_SEPARATORS else None


def _is_beginning(literal: bytes, data: bytes, pos: int) -> bool:
    """Return whether the bytes from ``pos`` on are the beginning of a literal, up to the whole of it."""
    return literal.startswith(data[pos : pos + len(literal)])
