"""Frames of DAQ programs: a pickle or JSON, and a separator.

``pickle.dumps((event, data))`` is followed by NUL, as the protocol's document says, or by the two bytes ``\\o``,
which is what the programs in the field send, for they write ``b"\\o"`` and mean ``b"\\0"``. Both stand inside
pickles too, so a separator counts only after the pickle's STOP. JSON never holds a NUL.
"""

import json
from collections.abc import Iterator
from typing import Final

from gateway.wire.errors import WireError
from gateway.wire.messages import DataUpdate, Message, Misshapen, Name, message
from gateway.wire.pickles import MAX_INSTRUCTIONS, PickleReader
from gateway.wire.shapes import Begun, Known, Shape, separated
from gateway.wire.values import MAX_CONTAINERS, from_json

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024

_JSON_STARTS: Final = frozenset(b"[{")

#: Shapes of messages that a connection is remembered for, and the bytes that they may hold in all.
_MOST_SHAPES: Final = 4
_MOST_SHAPE_BYTES: Final = 64 * 1024

#: See ``FrameReader._tries``.
_MOST_TRIES: Final = 16

#: How much of a message of a shape that was seen is kept until the rest is there, in bytes; of a longer one what is
#: there is read.
_MOST_AWAITED: Final = 64 * 1024


class FrameReader:
    """The frames of one connection.

    :param max_frame_bytes: a longer frame is refused as soon as that is known.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_frame_bytes
        self._named = False
        #: What came, but was not whole yet: less than an instruction of a pickle; JSON is kept in ``_json``.
        self._rest = b""
        self._pickle: PickleReader | None = None
        self._shapes: tuple[Shape, ...] = ()
        #: What of the bytes in ``_rest`` is known by its shape.
        self._begun: Begun | None = None
        #: The present pickle as far as it was read, while its shape may be worth knowing.
        self._read = bytearray()
        #: How many may be gone through twice for their shape; each that is recognised by one gives a try back.
        self._tries = _MOST_TRIES
        self._json: bytearray | None = None
        #: Bytes of the present frame that are read.
        self._size = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that these bytes complete; the first of a connection is its :class:`Name`.

        To be gone through to the end before the next call.

        :raises WireError: the connection cannot go on. The messages before that have been given.
        """
        data = self._rest + data
        self._rest = b""
        pos = 0
        end = len(data)
        while pos < end:
            if self._pickle is None and self._json is None:
                if self._shapes:
                    known = self._read_known(data, pos)
                    if isinstance(known, tuple):
                        if self._tries < _MOST_TRIES:
                            self._tries += 1
                        update, pos = known
                        yield update
                        continue
                    if known is not None:
                        self._begun = known
                        self._rest = data[pos:]
                        return
                if data[pos] in _JSON_STARTS:
                    self._json = bytearray()
                else:
                    self._pickle = PickleReader(self._max)
            if self._json is not None:
                read, pos = self._read_json(data, pos)
            else:
                read, after = self._read_pickle(data, pos)
                if read is None:
                    self._rest = data[after:]
                    if self._pickle is not None and not self._pickle.done:
                        self._limit(self._size + len(self._rest))
                    return
                pos = after
            if read is not None:
                yield self._admit(read)

    def _read_known(self, data: bytes, pos: int) -> Known | Begun | None:
        """The message at ``pos``, where it has a shape that was seen before, with the end of its frame, or what is
        there of it where the rest is worth waiting for. ``None`` where it must be read in the usual way.
        """
        begun, self._begun = self._begun, None
        for shape in self._shapes:
            known = shape.read(data, pos, self._max, begun if begun is not None and begun.shape is shape else None)
            if isinstance(known, tuple):
                return known if known[1] - pos <= self._max else None
            if known is not None:
                return known if len(data) - pos <= min(_MOST_AWAITED, self._max) else None
        return None

    def _admit(self, found: Message) -> Message:
        if not self._named:
            if not isinstance(found, Name):
                raise WireError("the first frame is no name")
            self._named = True
        elif isinstance(found, Name):
            return Misshapen("a second name")
        return found

    def _read_pickle(self, data: bytes, pos: int) -> tuple[Message | None, int]:
        """The message, where the frame is whole, and where reading stopped."""
        pickle = self._pickle
        if pickle is None:  # pragma: no cover - the caller has made it
            raise WireError("no frame is open")
        after = pickle.read(data, pos)
        if self._tries and self._size + after - pos <= _MOST_AWAITED:
            self._read += data[pos:after]
        self._size += after - pos
        self._limit(self._size)
        if not pickle.done:
            return None, after
        end = separated(data, after)
        if end is None:
            return None, after
        if end == 0:
            raise WireError("a pickle without a separator behind it")
        found = message(pickle.value, self._size)
        self._pickle = None
        if isinstance(found, DataUpdate) and len(self._read) == self._size:
            self._remember(bytes(self._read))
        self._read.clear()
        self._size = 0
        return found, end

    def _remember(self, whole: bytes) -> None:
        """Know the shape of a message of samples that was just read, if it has one; the last comes first."""
        self._tries -= 1
        # What was read as it came may have been read in pieces.
        pickle = PickleReader(self._max)
        pickle.read(whole, 0)
        update = message(pickle.value, len(whole))
        shape = Shape.of(update, pickle.runs, whole) if isinstance(update, DataUpdate) else None
        if shape is not None:
            shapes = (shape, *self._shapes)[:_MOST_SHAPES]
            while sum(each.weight for each in shapes) > _MOST_SHAPE_BYTES:
                shapes = shapes[:-1]
            self._shapes = shapes

    def _read_json(self, data: bytes, pos: int) -> tuple[Message | None, int]:
        text = self._json
        if text is None:  # pragma: no cover - the caller has made it
            raise WireError("no frame is open")
        end = data.find(b"\0", pos)
        part = data[pos:] if end < 0 else data[pos:end]
        self._size += len(part)
        self._limit(self._size)
        text += part
        if end < 0:
            return None, len(data)
        found = _json_message(text)
        self._json = None
        self._size = 0
        return found, end + 1

    def _limit(self, size: int) -> None:
        if size > self._max:
            raise WireError(f"a frame of more than {self._max} bytes")


def _json_message(text: bytearray) -> Message:
    # What json.loads builds of little text may be large: lists, dicts and texts are counted before.
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise WireError("more lists and dicts than any message needs")
    if text.count(b'"') > MAX_INSTRUCTIONS:
        raise WireError("more texts than any message needs")
    try:
        # The standard library's, since it reads the NaN that programs write though JSON has none.
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError("JSON that cannot be read") from error
    return message(from_json(value), len(text))
