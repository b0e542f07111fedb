"""Frames of DAQ programs: a pickle or JSON, and a separator.

``pickle.dumps((event, data))`` is followed by NUL, as the protocol's document says, or by the two bytes ``\\o``,
which is what the programs in the field send, for they write ``b"\\o"`` and mean ``b"\\0"``. Both stand inside
pickles too, so a separator counts only after the pickle's STOP. JSON never holds a NUL. Line ends, blanks and a byte
order mark between frames are skipped: some libraries write the mark before JSON, and pickles do not begin with any of
these.
"""

import re
from collections.abc import Iterator
from typing import Final

from gateway.wire.errors import WireError, shown_text
from gateway.wire.json_reader import NO_SEPARATOR, JsonReader, json_value
from gateway.wire.messages import DaqMessage, DataUpdate, InvalidMessage, Name, message
from gateway.wire.other_protocols import HEAD, NO_PORTS, ServedPorts, identify_protocol, is_scale_line
from gateway.wire.pickles import PickleReader
from gateway.wire.templates import FrameTemplate, Match, PartialMatch, separated
from gateway.wire.values import Value

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024

_JSON_STARTS: Final = frozenset(b"[{")

#: Bytes allowed between frames: blanks, line ends and UTF-8's byte order mark.
_BETWEEN: Final = re.compile(rb"(?:[ \t\r\n]++|\xef\xbb\xbf)*+")
_BETWEEN_STARTS: Final = frozenset(b" \t\r\n\xef")
_CUT_MARKS: Final = (b"\xef", b"\xef\xbb")

#: Maximum bytes of JSON that is read when it is whole, which is faster; longer JSON is read as it arrives.
_WHOLE_JSON: Final = 64 * 1024

_BLANKS: Final = b" \t\r\n"
#: By the first byte of JSON: its last byte, and a pattern of that byte with anything behind it that does not go on with
#: the JSON, as far as can be seen without reading texts.
_CLOSINGS: Final = {
    ord("["): (b"]", re.compile(rb"\][ \t\r\n]*+[^\]}, \t\r\n]")),
    ord("{"): (b"}", re.compile(rb"\}[ \t\r\n]*+[^\]}, \t\r\n]")),
}

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
    :param places: where input of other protocols should be sent instead.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES, places: ServedPorts = NO_PORTS) -> None:
        self._max = max_frame_bytes
        self._places = places
        self._is_named = False
        #: Unprocessed bytes: less than an instruction of a pickle or a token of JSON.
        self._rest = b""
        #: First bytes of the present frame, unless its shape is known.
        self._head = b""
        self._pickle: PickleReader | None = None
        self._shapes: tuple[FrameTemplate, ...] = ()
        #: What of the bytes in ``_rest`` is known by its shape.
        self._begun: PartialMatch | None = None
        #: The present pickle as far as it was read, while its shape may be worth knowing.
        self._read = bytearray()
        #: How many may be gone through twice for their shape; each that is recognised by one gives a try back.
        self._tries = _MOST_TRIES
        #: The present JSON frame: its bytes so far, or the reader of a long one.
        self._json: bytearray | JsonReader | None = None
        #: The bracket that may close the JSON in a bytearray, if that ends with it, blanks aside.
        self._closing = b""
        #: Bytes of the present frame that are read.
        self._size = 0

    def feed(self, data: bytes) -> Iterator[DaqMessage]:
        """The messages that these bytes complete; the first of a connection is its :class:`Name`.

        To be gone through to the end before the next call.

        :raises WireError: the connection cannot go on. The messages before that have been given.
        """
        if self._head and len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        try:
            yield from self._feed(self._rest + data)
        except WireError as error:
            reason = identify_protocol(self._head, self._places)
            raise WireError(reason or str(error)) from error

    def unfinished(self) -> str:
        """Return a description of what was read of an unfinished frame, for a log line; empty if there is nothing."""
        size = self._size + len(self._rest)
        if not size:
            return ""
        if self._is_json_closed():
            return f"{size} bytes were left unread: {NO_SEPARATOR}"
        if self._pickle is not None and self._pickle.done:
            return f"{size} bytes were left unread: a pickle without its separator, NUL or \\o"
        return f"{size} bytes of an unfinished frame were left unread"

    def _is_json_closed(self) -> bool:
        if isinstance(self._json, JsonReader):
            return self._json.done
        if self._json is None:
            return False
        try:
            json_value(bytes(self._json))
        except WireError:
            return False
        return True

    def _feed(self, data: bytes) -> Iterator[DaqMessage]:
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
                if data[pos] in _BETWEEN_STARTS:
                    between = _BETWEEN.match(data, pos)
                    if between is not None and between.end() > pos:
                        pos = between.end()
                        continue
                    if data[pos:] in _CUT_MARKS:
                        self._rest = data[pos:]
                        return
                self._head = data[pos : pos + HEAD]
                if data[pos] in _JSON_STARTS:
                    self._json = bytearray()
                    self._closing = b""
                else:
                    self._pickle = PickleReader(self._max)
            read, after = self._read_json(data, pos) if self._json is not None else self._read_pickle(data, pos)
            if read is None:
                if is_scale_line(self._head):
                    raise WireError("not a frame")
                self._rest += data[after:]
                if self._json is not None or (self._pickle is not None and not self._pickle.done):
                    self._limit(self._size + len(self._rest))
                return
            pos = after
            self._head = b""
            yield self._admit(read)

    def _read_known(self, data: bytes, pos: int) -> Match | PartialMatch | None:
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

    def _admit(self, found: DaqMessage) -> DaqMessage:
        if not self._is_named:
            if isinstance(found, Name):
                self._is_named = True
            elif isinstance(found, InvalidMessage):
                raise WireError(f'the first frame must be ("name", "<machine>"): {found.reason}')
            else:
                raise WireError(f'the first frame must be ("name", "<machine>"), not {type(found).__name__}')
        elif isinstance(found, Name):
            return InvalidMessage(f"a second name, {shown_text(found.machine)}: a connection is of one machine")
        return found

    def _read_pickle(self, data: bytes, pos: int) -> tuple[DaqMessage | None, int]:
        """Read a pickle; return the message if the frame is whole, and the position where reading stopped."""
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
            shown = repr(data[after : after + 1])[1:]
            raise WireError(f"a pickle without a separator: NUL or \\o must follow it, not {shown}")
        found = message(pickle.value, self._size)
        self._pickle = None
        # Sensors that are left out must be checked and reported each time, so such a message is not remembered.
        if isinstance(found, DataUpdate) and not found.left_out and len(self._read) == self._size:
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
        shape = FrameTemplate.of(update, pickle.runs, whole) if isinstance(update, DataUpdate) else None
        if shape is not None:
            shapes = (shape, *self._shapes)[:_MOST_SHAPES]
            while sum(each.weight for each in shapes) > _MOST_SHAPE_BYTES:
                shapes = shapes[:-1]
            self._shapes = shapes

    def _read_json(self, data: bytes, pos: int) -> tuple[DaqMessage | None, int]:
        """Read JSON; return the message if the frame is whole, and the position where reading stopped."""
        end = data.find(b"\0", pos)
        is_whole = end >= 0
        if not is_whole:
            end = len(data)
        self._limit(self._size + end - pos)
        if isinstance(self._json, bytearray):
            new = data[pos:end]
            self._json += new
            self._size += end - pos
            if len(self._json) <= _WHOLE_JSON:
                if is_whole:
                    return self._end_json(json_value(bytes(self._json)), end)
                if not self._may_lack_separator(self._json[0], new):
                    return None, end
            # It is too long to wait for, or its separator may be missing: read it from its beginning, piece by piece.
            data, self._json, self._size = bytes(self._json), JsonReader(), 0
            pos, behind, end = 0, end, len(data)
        else:
            behind = end
        reader = self._json
        if reader is None:  # pragma: no cover - the caller has created it
            raise WireError("no frame is open")
        after = reader.read(data, pos, end)
        self._size += after - pos
        if not is_whole:
            # It may begin before this read, for a frame that has become too long is read from its beginning.
            self._rest = data[after:end]
            return None, behind
        if after < end or not reader.done:
            raise WireError("JSON that cannot be read: it ends too early")
        return self._end_json(reader.value, behind)

    def _may_lack_separator(self, first: int, new: bytes) -> bool:
        """Return whether something seems to follow the end of JSON; in a text, it may only look so.

        :param first: first byte of the JSON.
        :param new: bytes of the JSON that have come since the last call.
        """
        closing, behind = _CLOSINGS[first]
        # Samples alone, as most pieces of a frame are, hold no bracket.
        if not self._closing and closing not in new:
            return False
        new = new.strip(_BLANKS)
        if not new:
            return False
        found = behind.search(self._closing + new)
        self._closing = closing if new.endswith(closing) else b""
        return found is not None

    def _end_json(self, value: Value, end: int) -> tuple[DaqMessage, int]:
        found = message(value, self._size)
        self._json = None
        self._size = 0
        return found, end + 1

    def _limit(self, size: int) -> None:
        if size > self._max:
            raise WireError(f"a frame of more than {self._max} bytes")
