"""Incremental reader of JSON frames.

The text need not be kept: numbers go into arrays, many at a time, and values that messages never hold are dropped. So
equal pieces of a frame take about equal time, and a frame needs no more memory than a small multiple of its size.
"""

import codecs
import contextlib
import json
import math
import re
from array import array
from typing import Any, Final

from gateway.wire.errors import WireError
from gateway.wire.values import (
    BOOLEAN,
    HUGE,
    LONG_TEXT,
    MAX_CONTAINERS,
    MAX_DEPTH,
    NOTHING,
    TOO_DEEP,
    TOO_MANY,
    DictValue,
    ListValue,
    Numbers,
    UnsupportedValue,
    Value,
)

#: Maximum texts in one frame, keys included.
MAX_TEXTS: Final = 32_768

#: Maximum bytes of a text, quotes included, that is kept; longer text is skipped. Every name is shorter, even escaped.
_MAX_TEXT: Final = 8192

#: Maximum further digits of an integer (Python's own limit) or a fraction, and maximum bytes of a number.
_DIGITS: Final = rb"{0,4299}+"
_MAX_NUMBER: Final = 16_384

_NUMBER: Final = (
    rb"-?+(?:Infinity|(?:0|[1-9][0-9]"
    + _DIGITS
    + rb")(?:\.[0-9][0-9]"
    + _DIGITS
    + rb")?+(?:[eE][-+]?+[0-9]{1,4300}+)?+)"
)
_ITEM: Final = rb"(?:" + _NUMBER + rb"|NaN|true|false|null)"
_BLANKS: Final = re.compile(rb"[ \t\r\n]*+")
#: A run of list items, each followed by a comma.
_RUN: Final = re.compile(rb"(?:[ \t\r\n]*+" + _ITEM + rb"[ \t\r\n]*+,)++")
_ONE: Final = re.compile(_ITEM)
#: Bytes that may continue a number or a word at the end of the data.
_CONTINUED: Final = re.compile(rb"[-+.0-9A-Za-z]*+")
_WORD: Final = re.compile(rb"true|false|null")
_WORDS: Final = {b"true": BOOLEAN, b"false": BOOLEAN, b"null": NOTHING}
#: An integer; Python reads ``-0`` as one, without its sign.
_INTEGER: Final = re.compile(rb"\s*+-?+[0-9]++\s*+")
_NEGATIVE_ZERO: Final = re.compile(rb"-0(?=[ \t\r\n,]|$)")

_PLAIN: Final = rb'[^"\\\x00-\x1f]*+'
_ESCAPE: Final = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_IN_TEXT: Final = re.compile(_PLAIN + rb"(?:" + _ESCAPE + _PLAIN + rb")*+")
#: An escape without its end.
_CUT_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?")

TOO_MANY_TEXTS: Final = "more texts than any message needs"
_NUMBER_TYPES: Final = frozenset({int, float})

NO_SEPARATOR: Final = "JSON without its separator: a NUL byte must follow each frame"
_UNREADABLE: Final = "JSON that cannot be read"
_NOT_UTF_8: Final = f"{_UNREADABLE}: it is not UTF-8"
_BAD_TEXT: Final = f"{_UNREADABLE}: a text with a control character or a broken escape"

#: Number of digits of the smallest integer that exceeds a double, less one.
_MIN_HUGE: Final = 308

# Kinds of token that may come next.
_VALUE: Final = 0
_VALUE_OR_END: Final = 1
_KEY: Final = 2
_KEY_OR_END: Final = 3
_COLON: Final = 4
_COMMA_OR_END: Final = 5
_NOTHING: Final = 6


def json_value(text: bytes) -> Value:
    """Return the value of short, complete JSON, the same as :class:`JsonReader` would.

    :raises WireError: it is not JSON, or exceeds the needs of any message.
    """
    # json.loads can build large objects from short text, so lists, dicts and texts are counted first.
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise WireError(TOO_MANY)
    if text.count(b'"') > 2 * MAX_TEXTS:
        raise WireError(TOO_MANY_TEXTS)
    try:
        # The standard library reads NaN, which programs write although JSON does not have it.
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise WireError(_NOT_UTF_8) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise WireError(NO_SEPARATOR) from error
        raise WireError(f"{_UNREADABLE}: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise WireError(_UNREADABLE) from error
    return _from_json(value, MAX_DEPTH)


def _from_json(value: Any, depth: int) -> Value:
    """Convert an object from ``json.loads`` into a value.

    :param depth: maximum depth of nesting.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict) and depth == 0:
        raise WireError(TOO_DEEP)
    if isinstance(value, list):
        return _list_from_json(value, depth)
    if isinstance(value, dict):
        mapping = DictValue()
        for key, item in value.items():
            mapping.set(key, _from_json(item, depth - 1))
        return mapping
    if type(value) in _NUMBER_TYPES:
        return _doubles([value]) or HUGE
    return NOTHING if value is None else BOOLEAN


def _list_from_json(items: list[Any], depth: int) -> ListValue:
    sequence = ListValue()
    first = len(items)
    if not set(map(type, items)) <= _NUMBER_TYPES:
        first = next(index for index, item in enumerate(items) if type(item) not in _NUMBER_TYPES)
    sequence.numbers = _doubles(items[:first])
    if len(sequence.numbers) < first:
        sequence.odd_at = len(sequence.numbers)
        sequence.others.append(HUGE)
    sequence.extend([_from_json(item, depth - 1) for item in items[first:]])
    return sequence


def _doubles(numbers: list[int | float]) -> Numbers:
    """Return the numbers before the first one that exceeds a double."""
    try:
        return array("d", numbers)
    except OverflowError:
        found = array("d")
        with contextlib.suppress(OverflowError):
            for number in numbers:  # pragma: no branch - one of them raises
                found.append(float(number))
        return found


class JsonReader:
    """Reader of one long JSON frame, a list or a dict.

    :ivar done: whether the frame is whole; its value is then in ``value``.
    """

    __slots__ = ("_containers", "_keys", "_next", "_skipping", "_stack", "_texts", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Value = NOTHING
        self._next = _VALUE
        self._stack: list[ListValue | DictValue] = []
        #: For each dict on the stack, the key that waits for its value.
        self._keys: list[Value] = []
        self._containers = 0
        self._texts = 0
        #: Decoder that checks the rest of a long text while it is skipped.
        self._skipping: codecs.IncrementalDecoder | None = None

    def read(self, data: bytes, pos: int, end: int) -> int:
        """Read whole tokens from ``pos``, where the last call stopped, up to ``end``.

        :returns: the position where reading stopped: ``end``, or the first incomplete token.
        :raises WireError: it is not JSON, or exceeds the needs of any message.
        """
        while True:
            if self._skipping is not None:
                after = self._skip(data, pos, end, self._skipping)
            else:
                pos = _end_of(_BLANKS, data, pos, end)
                if pos == end:
                    return pos
                after = self._token(data, pos, end)
            if after == pos:
                return pos
            pos = after

    def _token(self, data: bytes, pos: int, end: int) -> int:
        """Read one token; return its end, or ``pos`` if it is incomplete."""
        character = data[pos]
        awaited = self._next
        if awaited <= _VALUE_OR_END:
            if character == 0x5D and awaited == _VALUE_OR_END:
                return self._close(pos)
            return self._read_value(data, pos, end, character)
        if awaited == _COMMA_OR_END:
            is_list = isinstance(self._stack[-1], ListValue)
            if character == 0x2C:
                self._next = _VALUE if is_list else _KEY
                return pos + 1
            if character == (0x5D if is_list else 0x7D):
                return self._close(pos)
        elif awaited <= _KEY_OR_END:
            if character == 0x22:
                return self._text(data, pos, end)
            if character == 0x7D and awaited == _KEY_OR_END:
                return self._close(pos)
        elif awaited == _COLON and character == 0x3A:
            self._next = _VALUE
            return pos + 1
        elif awaited == _NOTHING:
            raise WireError(NO_SEPARATOR)
        raise _misplaced(data, pos)

    def _read_value(self, data: bytes, pos: int, end: int, character: int) -> int:
        if character == 0x22:
            return self._text(data, pos, end)
        if character in (0x5B, 0x7B):
            return self._open(pos, ListValue() if character == 0x5B else DictValue())
        if self._stack and isinstance(self._stack[-1], ListValue):
            run = _RUN.match(data, pos, end)
            if run is not None:
                _add_items(self._stack[-1], run[0][:-1])
                self._next = _VALUE
                return run.end()
        continued = _end_of(_CONTINUED, data, pos, end)
        if continued == end and end - pos <= _MAX_NUMBER:
            return pos
        one = _ONE.match(data, pos, end)
        if one is None:
            raise _misplaced(data, pos)
        self._put(_value_of(one[0]))
        return one.end()

    def _open(self, pos: int, container: ListValue | DictValue) -> int:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise WireError(TOO_MANY)
        if len(self._stack) == MAX_DEPTH:
            raise WireError(TOO_DEEP)
        self._stack.append(container)
        if isinstance(container, DictValue):
            self._keys.append(NOTHING)
            self._next = _KEY_OR_END
        else:
            self._next = _VALUE_OR_END
        return pos + 1

    def _close(self, pos: int) -> int:
        container = self._stack.pop()
        if isinstance(container, DictValue):
            self._keys.pop()
        if self._stack:
            self._put(container)
        else:
            self.value = container
            self.done = True
            self._next = _NOTHING
        return pos + 1

    def _put(self, value: Value) -> None:
        """Add a value to the innermost list or dict."""
        container = self._stack[-1]
        if isinstance(container, DictValue):
            container.set(self._keys[-1], value)
        else:
            container.extend([value])
        self._next = _COMMA_OR_END

    # -- text

    def _text(self, data: bytes, pos: int, end: int) -> int:
        after = _end_of(_IN_TEXT, data, pos + 1, end)
        if after < end and data[after] == 0x22:
            self._add_text(_text_of(data[pos : after + 1]) if after - pos < _MAX_TEXT else None, data[pos + 1 : after])
            return after + 1
        if after < end and _end_of(_CUT_ESCAPE, data, after, end) != end:
            raise WireError(_BAD_TEXT)
        if end - pos <= _MAX_TEXT:
            return pos
        self._skipping = codecs.getincrementaldecoder("utf-8")()
        return pos + 1

    def _add_text(self, text: str | None, raw: bytes) -> None:
        self._texts += 1
        if self._texts > MAX_TEXTS:
            raise WireError(TOO_MANY_TEXTS)
        if text is None:
            _decode(codecs.getincrementaldecoder("utf-8")(), raw, final=True)
        value: Value = LONG_TEXT if text is None else text
        if _KEY <= self._next <= _KEY_OR_END:
            self._keys[-1] = value
            self._next = _COLON
        else:
            self._put(value)

    def _skip(self, data: bytes, pos: int, end: int, decoder: codecs.IncrementalDecoder) -> int:
        after = _end_of(_IN_TEXT, data, pos, end)
        _decode(decoder, data[pos:after])
        if after < end:
            if data[after] == 0x22:
                _decode(decoder, b"", final=True)
                self._skipping = None
                self._add_text(None, b"")
                return after + 1
            if _end_of(_CUT_ESCAPE, data, after, end) != end:
                raise WireError(_BAD_TEXT)
        return after


def _misplaced(data: bytes, pos: int) -> WireError:
    # A letter may be part of a secret that stands there without quotes.
    shown = "a letter or a digit" if data[pos : pos + 1].isalnum() else repr(data[pos : pos + 1])
    return WireError(f"{_UNREADABLE}: {shown} is out of place")


def _end_of(pattern: "re.Pattern[bytes]", data: bytes, pos: int, end: int) -> int:
    """Return the end of a match that begins at ``pos``; ``pos`` without a match."""
    found = pattern.match(data, pos, end)
    return pos if found is None else found.end()


def _decode(decoder: codecs.IncrementalDecoder, raw: bytes, *, final: bool = False) -> None:
    try:
        decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        raise WireError(_NOT_UTF_8) from error


def _text_of(token: bytes) -> str:
    try:
        return str(json.loads(token.decode("utf-8"))) if b"\\" in token else token[1:-1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(_NOT_UTF_8) from error


def _value_of(token: bytes) -> Value:
    """Return the value of a number or a word."""
    word = _WORDS.get(token)
    if word is not None:
        return word
    numbers, odd = _numbers(token)
    return odd or numbers


def _add_items(target: ListValue, run: bytes) -> None:
    """Add comma-separated items to a list, up to the first that is not a number: its sensor is then left out."""
    word = _WORD.search(run) if b"u" in run or b"s" in run else None
    odd: UnsupportedValue | None = None
    if word is not None:
        odd = _WORDS[word[0]]
        run = run[: word.start()].rpartition(b",")[0]
    values: list[Value] = []
    if run:
        numbers, huge = _numbers(run)
        values.append(numbers)
        odd = huge or odd
    if odd is not None and not (target.others and isinstance(target.others[-1], UnsupportedValue)):
        values.append(odd)
    target.extend(values)


def _numbers(run: bytes) -> tuple[Numbers, UnsupportedValue | None]:
    """Return comma-separated numbers before the first one that exceeds a double, and that one, if there is one."""
    if b"-0" in run:
        run = _NEGATIVE_ZERO.sub(b"0", run)
    tokens = run.split(b",")
    numbers = array("d", map(float, tokens))
    if len(run) > _MIN_HUGE and (math.inf in numbers or -math.inf in numbers):
        for index, token in enumerate(tokens):
            # Python reads 1e999 as infinity, but an integer with as many digits exactly.
            if math.isinf(numbers[index]) and _INTEGER.fullmatch(token):
                return numbers[:index], HUGE
    return numbers, None
