r"""Frames of DAQ programs: a pickle or JSON, and a separator.

The contract of :class:`FrameReader`, one for each connection:

* ``receive_data(data)`` takes the bytes of one read and parses nothing.
* ``next_message()`` returns the next message, or :data:`NEED_DATA` if the bytes received so far hold no further one.
  The messages are the same however the bytes were split. The first one of a connection is its :class:`Name`.
* ``next_message()`` raises :class:`WireError` if the connection cannot continue; the messages before that have been
  returned. The reader must not be used after that.
* More data may be received before :data:`NEED_DATA` was returned.

``pickle.dumps((event, data))`` is followed by NUL, as the protocol's document says, or by the two bytes ``\o``, which
is what the programs in the field send: they write ``b"\o"`` and mean ``b"\0"``. Both occur inside pickles too, so a
separator counts only after the pickle's STOP. JSON never contains a NUL. Line ends, blanks and a byte order mark
between frames are skipped: some libraries write the mark before JSON, and pickles do not begin with any of these.
"""

import re
from enum import Enum, auto
from typing import Final

from gateway.wire.errors import WireError, shown_text
from gateway.wire.json_reader import NO_SEPARATOR, JsonReader, json_value
from gateway.wire.messages import DaqMessage, DataUpdate, InvalidMessage, Name, message
from gateway.wire.other_protocols import HEAD, NO_PORTS, ServedPorts, identify_protocol, is_scale_line
from gateway.wire.pickles import PickleReader
from gateway.wire.templates import FrameTemplate, Match, PartialMatch, separator_end
from gateway.wire.values import Value

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024

_JSON_STARTS: Final = frozenset(b"[{")

#: Bytes allowed between frames: blanks, line ends and the byte order mark of UTF-8.
_BETWEEN: Final = re.compile(rb"(?:[ \t\r\n]++|\xef\xbb\xbf)*+")
_BETWEEN_STARTS: Final = frozenset(b" \t\r\n\xef")
_INCOMPLETE_MARKS: Final = (b"\xef", b"\xef\xbb")

#: Maximum bytes of JSON that is read when it is complete, which is faster; longer JSON is read as it arrives.
_MAX_WHOLE_JSON: Final = 64 * 1024

_BLANKS: Final = b" \t\r\n"
#: By the first byte of JSON: its last byte, and a pattern of that byte followed by anything that does not continue the
#: JSON, as far as this can be seen without reading texts.
_CLOSINGS: Final = {
    ord("["): (b"]", re.compile(rb"\][ \t\r\n]*+[^\]}, \t\r\n]")),
    ord("{"): (b"}", re.compile(rb"\}[ \t\r\n]*+[^\]}, \t\r\n]")),
}

#: Maximum templates of a connection, and maximum bytes that they hold together.
_MAX_TEMPLATES: Final = 4
_MAX_TEMPLATE_BYTES: Final = 64 * 1024

#: Maximum messages read again to make a template of them; see ``FrameReader._attempts``.
_MAX_ATTEMPTS: Final = 16

#: Maximum bytes of an incomplete frame that are kept because it begins like a template; a longer one is read as it
#: arrives.
_MAX_AWAITED: Final = 64 * 1024


class NeedData(Enum):
    """The result of :meth:`FrameReader.next_message` if no further message is complete."""

    NEED_DATA = auto()


NEED_DATA: Final = NeedData.NEED_DATA


class FrameReader:
    """Reader of the frames of one connection.

    :param max_frame_bytes: maximum bytes of a frame; a longer one is refused as soon as its length is known.
    :param ports: ports where other protocols are served, for the text of an error.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES, ports: ServedPorts = NO_PORTS) -> None:
        self._max_bytes = max_frame_bytes
        self._ports = ports
        self._is_named = False
        #: Received bytes, and the position of the first one that is not read yet.
        self._data = b""
        self._pos = 0
        #: First bytes of the current frame, unless it is read by a template.
        self._head = b""
        self._pickle: PickleReader | None = None
        self._templates: tuple[FrameTemplate, ...] = ()
        #: The part of the unread bytes that a template has matched.
        self._partial: PartialMatch | None = None
        #: Bytes of the current pickle that were read, while a template may be made of it.
        self._pickled = bytearray()
        #: Number of messages that may be read again to make a template; each match of a template adds one.
        self._attempts = _MAX_ATTEMPTS
        #: The current JSON frame: its bytes so far, or the reader of a long one.
        self._json: bytearray | JsonReader | None = None
        #: The bracket that may close the JSON in a bytearray, if that ends with it, blanks aside.
        self._closing = b""
        #: Bytes of the current frame that were read.
        self._size = 0

    def receive_data(self, data: bytes) -> None:
        """Take the bytes of one read."""
        if self._head and len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._data = self._data[self._pos :] + data
        self._pos = 0

    def next_message(self) -> DaqMessage | NeedData:
        """Return the next message, or :data:`NEED_DATA` if it is not complete.

        :raises WireError: the connection cannot continue.
        """
        data = self._data
        try:
            if self._pickle is None and self._json is None:
                pos = self._pos
                if pos == len(data):
                    self._data = b""
                    self._pos = 0
                    return NEED_DATA
                if data[pos] in _BETWEEN_STARTS and not self._skip_blanks():
                    return self._need_data()
                pos = self._pos
                if self._templates:
                    known = self._match(data, pos)
                    if isinstance(known, tuple):
                        if self._attempts < _MAX_ATTEMPTS:
                            self._attempts += 1
                        update, self._pos = known
                        return update
                    if known is not None:
                        self._partial = known
                        return self._need_data()
                self._open_frame(data, pos)
            read = self._read_pickle() if self._json is None else self._read_json(self._json)
            if read is None:
                if is_scale_line(self._head):
                    raise WireError("not a frame")
                if self._pickle is None or not self._pickle.done:
                    self._check_size(self._size + len(self._data) - self._pos)
                return self._need_data()
            self._head = b""
            return self._admit(read)
        except WireError as error:
            reason = identify_protocol(self._head, self._ports)
            raise WireError(reason or str(error)) from error

    def unfinished(self) -> str:
        """Return a description of an unfinished frame, for a log line; empty if there is nothing to describe."""
        size = self._size + len(self._data) - self._pos
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

    def _need_data(self) -> NeedData:
        """Release the bytes that were read; return :data:`NEED_DATA`."""
        self._data = self._data[self._pos :]
        self._pos = 0
        return NEED_DATA

    def _skip_blanks(self) -> bool:
        """Skip the bytes between frames; return whether a frame follows."""
        data = self._data
        found = _BETWEEN.match(data, self._pos)
        if found is not None:  # pragma: no branch - it matches nothing at least
            self._pos = found.end()
        return self._pos < len(data) and data[self._pos :] not in _INCOMPLETE_MARKS

    def _match(self, data: bytes, pos: int) -> Match | PartialMatch | None:
        """Return the match of a template with the frame at ``pos``, or a partial match if the frame is incomplete.

        Return ``None`` if the frame must be read instruction by instruction.
        """
        partial, self._partial = self._partial, None
        for template in self._templates:
            previous = partial if partial is not None and partial.template is template else None
            known = template.read(data, pos, self._max_bytes, previous)
            if isinstance(known, tuple):
                return known if known[1] - pos <= self._max_bytes else None
            if known is not None:
                return known if len(data) - pos <= min(_MAX_AWAITED, self._max_bytes) else None
        return None

    def _open_frame(self, data: bytes, pos: int) -> None:
        self._head = data[pos : pos + HEAD]
        if data[pos] in _JSON_STARTS:
            self._json = bytearray()
            self._closing = b""
        else:
            self._pickle = PickleReader(self._max_bytes)

    def _admit(self, read: DaqMessage) -> DaqMessage:
        """Return a message, or an invalid one for a second name; the first message must be a name."""
        if not self._is_named:
            if isinstance(read, Name):
                self._is_named = True
            elif isinstance(read, InvalidMessage):
                raise WireError(f'the first frame must be ("name", "<machine>"): {read.reason}')
            else:
                raise WireError(f'the first frame must be ("name", "<machine>"), not {type(read).__name__}')
        elif isinstance(read, Name):
            return InvalidMessage(f"a second name, {shown_text(read.machine)}: a connection belongs to one machine")
        return read

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise WireError(f"a frame of more than {self._max_bytes} bytes")

    # -- pickles

    def _read_pickle(self) -> DaqMessage | None:
        """Read the current pickle; return the message if the frame is complete."""
        pickle, data, pos = self._pickle, self._data, self._pos
        if pickle is None:  # pragma: no cover - _open_frame has created it
            raise WireError("no frame is open")
        after = self._pos = pickle.read(data, pos)
        if self._attempts and self._size + after - pos <= _MAX_AWAITED:
            self._pickled += data[pos:after]
        self._size += after - pos
        self._check_size(self._size)
        if not pickle.done:
            return None
        end = separator_end(data, after)
        if end is None:
            return None
        if end == 0:
            shown = repr(data[after : after + 1])[1:]
            raise WireError(f"a pickle without a separator: NUL or \\o must follow it, not {shown}")
        self._pos = end
        read = message(pickle.value, self._size)
        self._pickle = None
        # Sensors that are left out must be checked and reported each time, so such a message gets no template.
        if isinstance(read, DataUpdate) and not read.left_out and len(self._pickled) == self._size:
            self._add_template(bytes(self._pickled))
        self._pickled.clear()
        self._size = 0
        return read

    def _add_template(self, pickled: bytes) -> None:
        """Make a template of a message of samples if possible; the last one is tried first."""
        self._attempts -= 1
        # It is read again as a whole, because its runs of numbers may have been split.
        pickle = PickleReader(self._max_bytes)
        pickle.read(pickled, 0)
        update = message(pickle.value, len(pickled))
        template = FrameTemplate.of(update, pickle.runs, pickled) if isinstance(update, DataUpdate) else None
        if template is not None:
            templates = (template, *self._templates)[:_MAX_TEMPLATES]
            while sum(each.weight for each in templates) > _MAX_TEMPLATE_BYTES:
                templates = templates[:-1]
            self._templates = templates

    # -- JSON

    def _read_json(self, json: bytearray | JsonReader) -> DaqMessage | None:
        """Read the current JSON frame; return the message if the frame is complete."""
        data, pos = self._data, self._pos
        separator = data.find(b"\0", pos)
        is_complete = separator >= 0
        end = separator if is_complete else len(data)
        self._check_size(self._size + end - pos)
        self._pos = end + is_complete
        if isinstance(json, bytearray):
            new = data[pos:end]
            json += new
            self._size += end - pos
            if len(json) <= _MAX_WHOLE_JSON:
                if is_complete:
                    return self._close_json(json_value(bytes(json)))
                if not self._may_lack_separator(json[0], new):
                    return None
            # It is too long to be kept, or its separator may be missing: read it from its beginning, part by part.
            data, json, self._size = bytes(json), JsonReader(), 0
            self._json = json
            pos, end = 0, len(data)
        after = json.read(data, pos, end)
        self._size += after - pos
        if not is_complete:
            self._data, self._pos = data, after
            return None
        if after < end or not json.done:
            raise WireError("JSON that cannot be read: it ends too early")
        return self._close_json(json.value)

    def _may_lack_separator(self, first: int, new: bytes) -> bool:
        """Return whether other bytes seem to follow the end of JSON; inside a text this may be wrong.

        :param first: first byte of the JSON.
        :param new: bytes of the JSON since the last call.
        """
        closing, behind = _CLOSINGS[first]
        # Most parts of a frame are samples, without a bracket.
        if not self._closing and closing not in new:
            return False
        new = new.strip(_BLANKS)
        if not new:
            return False
        found = behind.search(self._closing + new)
        self._closing = closing if new.endswith(closing) else b""
        return found is not None

    def _close_json(self, value: Value) -> DaqMessage:
        read = message(value, self._size)
        self._json = None
        self._size = 0
        return read
