"""Pickles read as data, never executed.

A pickle is a program for a stack machine. This one knows only the instructions that build numbers, text, booleans,
None, lists, tuples and dicts (protocols 0 to 5, the opcodes as documented in CPython's ``pickletools``); any other
refuses the pickle when it is met. It goes as far as the bytes reach and on from there when more arrive, so that the
cost of a pickle is linear however it is cut, and what has been read need not be kept.
"""

import math
import re
import struct
import sys
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from gateway.wire.errors import WireError, shown_text
from gateway.wire.values import (
    BOOLEAN,
    HUGE,
    LONG_TEXT,
    MAX_CONTAINERS,
    NOTHING,
    TOO_MANY,
    DictValue,
    ListValue,
    Numbers,
    Value,
)

#: Instructions in one pickle, not counting numbers and what appends a single one of them.
MAX_INSTRUCTIONS: Final = 65_536

#: Text longer than any name (64 characters of at most 4 bytes, 10 when escaped) is skipped, not kept.
MAX_TEXT: Final = 1024

#: An opcode, a sign, 4,300 digits (Python's own limit), ``L`` and the line end.
_MAX_NUMBER_LINE: Final = 4304

_DECIMAL: Final = rb"(?:F[-+0-9.eEinfa]{1,32}+|I(?!0[01]\n)[-+]?[0-9]{1,308}+|L[-+]?[0-9]{1,308}+L?)\n"
# 309 digits may be a double, or beyond any.
_HUGE: Final = re.compile(rb"[IL]([-+]?[0-9]{309,4300}+)L?\n")
_DECIMALS: Final = re.compile(rb"(?:" + _DECIMAL + rb")++")
# Protocol 0 appends each number on its own.
_APPENDED: Final = re.compile(rb"(?:" + _DECIMAL + rb"a)++")
_QUOTED: Final = re.compile(rb"(['\"])([ !#-&(-\[\]-~]*+)\1")
_SHORT_LONG: Final = rb"\x8a(?:\x00|" + b"|".join(b"%c.{%d}" % (size, size) for size in range(1, 9)) + rb")"
_INTEGER: Final = rb"(?:K.|M.{2}|J.{4}|" + _SHORT_LONG + rb")"
_INTEGERS: Final = re.compile(_INTEGER + rb"++", re.DOTALL)
#: Doubles with integers after each; longer runs of doubles are read together in another way.
_MIXED: Final = re.compile(rb"(?:G.{8}" + _INTEGER + rb"++)++", re.DOTALL)
#: Binary numbers that are appended one by one, which real picklers do not do.
_APPENDED_BINARY: Final = re.compile(rb"(?:(?:" + _INTEGER + rb"|G.{8})a)++", re.DOTALL)


#: Maximum bytes of a LONG1 that is read together with other numbers.
_SHORT: Final = 8

#: Bytes that may follow a double that is read together with numbers of other kinds.
_MAY_FOLLOW: Final = frozenset((b"a", b"K", b"M", b"J", b"\x8a"))

_BIG_DOUBLE: Final = struct.Struct(">d")

#: A module and a class or a function in it. In protocols 0 and 1, an object's class comes after the constructor's name.
_GLOBAL: Final = re.compile(rb".([^\n]{1,200})\n([^\n]{1,200})\n", re.DOTALL)
_RECONSTRUCTED: Final = re.compile(
    rb"ccopy_?reg\n_reconstructor\n(?:p[0-9]{1,5}\n|q.|r.{4})?\(" + _GLOBAL.pattern.replace(b".", b"c", 1), re.DOTALL
)

_LITTLE_ENDIAN: Final = sys.byteorder == "little"

#: Runs of doubles in one pickle that are kept track of; a message has one a sensor.
_MOST_RUNS: Final = 1024

#: Doubles that are looked at together: most runs are short, and the pickler writes at most 1,000 at a time.
_GLANCE: Final = 64
_STRETCH: Final = 1024

#: By opcode: how many bytes its number, length or index takes.
_WIDTHS: Final = {
    ord("K"): 1,
    ord("M"): 2,
    ord("J"): 4,
    0x8C: 1,
    ord("U"): 1,
    ord("X"): 4,
    ord("T"): 4,
    0x8D: 8,
    ord("q"): 1,
    ord("h"): 1,
    ord("r"): 4,
    ord("j"): 4,
}


class DoubleRun(NamedTuple):
    """Successive doubles: where they begin and end in the bytes that were handed in, and the array made of them."""

    start: int
    end: int
    numbers: Numbers


class PickleReader:
    """One pickle.

    :param limit: no text is longer than that many bytes.
    :ivar done: whether STOP was read; the pickle's value is then in ``value``.
    :ivar runs: the runs of doubles, the first so many.
    """

    __slots__ = (
        "_containers",
        "_floor",
        "_in_text",
        "_instructions",
        "_limit",
        "_marks",
        "_memo",
        "_skip",
        "_stack",
        "done",
        "runs",
        "value",
    )

    def __init__(self, limit: int) -> None:
        self.done = False
        self.value: Value = NOTHING
        self.runs: list[DoubleRun] = []
        self._limit = limit
        self._stack: list[Value] = []
        #: Where on the stack the innermost MARK stands; nothing may be taken from below it.
        self._floor = 0
        self._marks: list[int] = []
        self._memo: dict[int, Value] = {}
        self._instructions = 0
        self._containers = 0
        #: Bytes of a long text or integer that are still to be skipped; -1: up to the end of the line.
        self._skip = 0
        #: Whether the last number was in decimal text.
        self._in_text = False

    def read(self, data: bytes, pos: int) -> int:
        """Go on at ``pos``, where the last call stopped, as far as whole instructions reach.

        :returns: where it stopped: behind STOP, or at the first instruction that is not all there.
        :raises WireError: at the first instruction that a message has no use for.
        """
        end = len(data)
        while pos < end and not self.done:
            if self._skip:
                pos = self._skip_text(data, pos)
                continue
            opcode = data[pos]
            step = _NUMBERS.get(opcode)
            if step is None:
                step = _INSTRUCTIONS.get(opcode)
                if step is None:
                    raise WireError(_REFUSED.get(opcode) or f"opcode 0x{opcode:02x} builds no plain data")
                self._count()
            after = step(self, data, pos)
            if after == pos:
                # It will be counted again when the rest of it is there.
                self._instructions -= opcode not in _NUMBERS
                break
            pos = after
        return pos

    def _count(self) -> None:
        self._instructions += 1
        if self._instructions > MAX_INSTRUCTIONS:
            raise WireError("more instructions than any message needs")

    # -- the stack

    def _pop(self) -> Value:
        top = self._top()
        if type(top) is array:
            number = top.pop()
            if not top:
                self._stack.pop()
            return array("d", (number,))
        return self._stack.pop()

    def _top(self) -> Value:
        if len(self._stack) <= self._floor:
            raise WireError("an instruction without its operand")
        return self._stack[-1]

    def _pop_mark(self) -> list[Value]:
        """Everything above the innermost MARK, which goes too."""
        if not self._marks:
            raise WireError("an instruction without its MARK")
        values = self._stack[self._floor :]
        del self._stack[self._floor :]
        self._floor = self._marks.pop()
        return values

    def _push_numbers(self, numbers: Numbers) -> None:
        stack = self._stack
        # Runs that belong together may have come in pieces.
        if len(stack) > self._floor and type(stack[-1]) is array:
            stack[-1].extend(numbers)
        else:
            stack.append(numbers)

    def _push_container(self, container: ListValue | DictValue) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise WireError(TOO_MANY)
        self._stack.append(container)

    # -- numbers

    def _floats(self, data: bytes, pos: int) -> int:
        behind = data[pos + 9 : pos + 10]
        if behind in _MAY_FOLLOW:
            return self._integers(data, pos)
        end = pos + 9 * run_of_doubles(data, pos)
        if end > pos:
            numbers = doubles(data[pos:end])
            if len(self.runs) < _MOST_RUNS:
                self.runs.append(DoubleRun(pos, end, numbers))
            if self._in_text:
                self._switch()
            self._push_numbers(numbers)
        return end

    def _double(self, data: bytes, pos: int) -> int:
        if pos + 9 > len(data):
            return pos
        if self._in_text:
            self._switch()
        self._push_numbers(doubles(data[pos : pos + 9]))
        return pos + 9

    def _integers(self, data: bytes, pos: int) -> int:
        run = _APPENDED_BINARY.match(data, pos)
        appended = run is not None
        if run is None:
            run = _INTEGERS.match(data, pos) or _MIXED.match(data, pos)
            if run is None:
                # The run is incomplete, or is a double with an incomplete number after it.
                return self._double(data, pos) if data.startswith(b"G", pos) else pos
        if self._in_text:
            self._switch()
        if appended:
            self._open_list().extend([_binary_numbers(run[0], 1)])
        else:
            self._push_numbers(_binary_numbers(run[0]))
        return run.end()

    def _long(self, data: bytes, pos: int) -> int:
        if pos + 2 > len(data) or pos + 2 + data[pos + 1] > len(data):
            return pos
        if data[pos + 1] <= _SHORT:
            return self._integers(data, pos)
        end = pos + 2 + data[pos + 1]
        if self._in_text:
            self._switch()
        try:
            self._push_huge(float(int.from_bytes(data[pos + 2 : end], "little", signed=True)))
        except OverflowError:
            self._push_huge(math.inf)
        return end

    def _long_of_many_bytes(self, data: bytes, pos: int) -> int:
        """Skip a LONG4, which picklers write for integers of more than 255 bytes only."""
        start = pos + 5
        if start > len(data):
            return pos
        length = int.from_bytes(data[pos + 1 : start], "little")
        if not 255 < length <= self._limit:
            raise WireError(f"an integer of {length} bytes")
        self._stack.append(HUGE)
        self._skip = length
        return start

    def _switch(self) -> None:
        """Count a switch between binary and text numbers as an instruction, however the bytes were split."""
        self._in_text = not self._in_text
        self._count()

    def _push_huge(self, number: float) -> None:
        """Push an integer, which may be beyond a double."""
        if math.isinf(number):
            self._count()
            self._stack.append(HUGE)
        else:
            self._push_numbers(array("d", (number,)))

    def _decimals(self, data: bytes, pos: int) -> int:
        """Numbers in decimal text, with or without an APPEND behind each."""
        if data.startswith((b"I00\n", b"I01\n"), pos):
            self._count()
            self._stack.append(BOOLEAN)
            return pos + 4
        appended = _APPENDED.match(data, pos)
        run = appended or _DECIMALS.match(data, pos) or _HUGE.match(data, pos)
        if run is not None:
            if not self._in_text:
                self._switch()
            if appended is not None:
                self._open_list().extend([_decimal_numbers(run[0], 1)])
            elif run.re is _HUGE:
                self._push_huge(float(run[1]))
            else:
                self._push_numbers(_decimal_numbers(run[0]))
            return run.end()
        if len(data) - pos >= _MAX_NUMBER_LINE or b"\n" in data[pos : pos + _MAX_NUMBER_LINE]:
            raise WireError("a number that is none")
        return pos

    # -- text, None and booleans

    def _nothing(self, _data: bytes, pos: int) -> int:
        self._stack.append(NOTHING)
        return pos + 1

    def _boolean(self, _data: bytes, pos: int) -> int:
        self._stack.append(BOOLEAN)
        return pos + 1

    def _text(self, data: bytes, pos: int) -> int:
        start = pos + 1 + _WIDTHS[data[pos]]
        if start > len(data):
            return pos
        length = int.from_bytes(data[pos + 1 : start], "little")
        if length > MAX_TEXT:
            if length > self._limit:
                raise WireError("text longer than a frame may be")
            self._stack.append(LONG_TEXT)
            self._skip = length
            return start
        end = start + length
        if end > len(data):
            return pos
        self._stack.append(data[start:end].decode("utf-8", "replace"))
        return end

    def _text_line(self, data: bytes, pos: int) -> int:
        end = data.find(b"\n", pos, pos + 1 + MAX_TEXT)
        if end < 0:
            if len(data) - pos <= MAX_TEXT:
                return pos
            self._stack.append(LONG_TEXT)
            self._skip = -1
            return pos + 1 + MAX_TEXT
        try:
            self._stack.append(data[pos + 1 : end].decode("raw-unicode-escape"))
        except UnicodeDecodeError as error:
            raise WireError("text with a broken escape") from error
        return end + 1

    def _quoted_line(self, data: bytes, pos: int) -> int:
        """What Python 2 calls a str, in protocol 0: plain ASCII in quotes, without escapes."""
        end = data.find(b"\n", pos, pos + 1 + MAX_TEXT)
        if end < 0:
            if len(data) - pos <= MAX_TEXT:
                return pos
            raise WireError("text in quotes without end")
        found = _QUOTED.fullmatch(data, pos + 1, end)
        if found is None:
            raise WireError("text in quotes with an escape")
        self._stack.append(found[2].decode("ascii"))
        return end + 1

    def _skip_text(self, data: bytes, pos: int) -> int:
        if self._skip < 0:
            end = data.find(b"\n", pos)
            if end < 0:
                return len(data)
            self._skip = 0
            return end + 1
        skipped = min(self._skip, len(data) - pos)
        self._skip -= skipped
        return pos + skipped

    # -- lists, tuples and dicts

    def _mark(self, _data: bytes, pos: int) -> int:
        self._marks.append(self._floor)
        self._floor = len(self._stack)
        return pos + 1

    def _empty_list(self, _data: bytes, pos: int) -> int:
        self._push_container(ListValue())
        return pos + 1

    def _empty_dict(self, _data: bytes, pos: int) -> int:
        self._push_container(DictValue())
        return pos + 1

    def _empty_tuple(self, _data: bytes, pos: int) -> int:
        self._push_container(ListValue(frozen=True))
        return pos + 1

    def _tuple_of(self, data: bytes, pos: int) -> int:
        # TUPLE1, TUPLE2 and TUPLE3 are 0x85 to 0x87.
        values = [self._pop() for _ in range(data[pos] - 0x84)]
        container = ListValue(frozen=True)
        container.extend(values[::-1])
        self._push_container(container)
        return pos + 1

    def _marked_sequence(self, data: bytes, pos: int) -> int:
        container = ListValue(frozen=data[pos] == ord("t"))
        container.extend(self._pop_mark())
        self._push_container(container)
        return pos + 1

    def _marked_dict(self, _data: bytes, pos: int) -> int:
        container = DictValue()
        _set_items(container, self._pop_mark())
        self._push_container(container)
        return pos + 1

    def _append(self, _data: bytes, pos: int) -> int:
        value = self._pop()
        # However the bytes were cut: a single number and its APPEND are not counted.
        self._instructions -= type(value) is array
        self._open_list().extend([value])
        return pos + 1

    def _appends(self, _data: bytes, pos: int) -> int:
        values = self._pop_mark()
        self._open_list().extend(values)
        return pos + 1

    def _set_item(self, _data: bytes, pos: int) -> int:
        value = self._pop()
        key = self._pop()
        _set_items(self._open_dict(), [key, value])
        return pos + 1

    def _set_items(self, _data: bytes, pos: int) -> int:
        values = self._pop_mark()
        _set_items(self._open_dict(), values)
        return pos + 1

    def _open_list(self) -> ListValue:
        target = self._top()
        if not isinstance(target, ListValue) or target.frozen:
            raise WireError("an APPEND to what is no open list")
        return target

    def _open_dict(self) -> DictValue:
        target = self._top()
        if not isinstance(target, DictValue) or target.frozen:
            raise WireError("a SETITEM on what is no open dict")
        return target

    # -- objects: refused by name

    def _global(self, data: bytes, pos: int) -> int:
        """Refuse a class or a function, by the module and name in the next two lines, once they have come."""
        found = _RECONSTRUCTED.match(data, pos) or _GLOBAL.match(data, pos)
        module, name = (part.decode("utf-8", "replace") for part in found.groups()) if found else ("", "")
        raise WireError(_object(module, name))

    def _stack_global(self, _data: bytes, pos: int) -> int:
        """Refuse a class or a function, by the module and name on the stack."""
        name, module = self._pop(), self._pop()
        raise WireError(_object(module if isinstance(module, str) else "", name if isinstance(name, str) else ""))

    # -- the memo

    def _memoize(self, _data: bytes, pos: int) -> int:
        self._put(len(self._memo))
        return pos + 1

    def _put_at(self, data: bytes, pos: int) -> int:
        index, end = _memo_index(data, pos)
        if end > pos:
            self._put(index)
        return end

    def _put(self, index: int) -> None:
        if index > MAX_INSTRUCTIONS:
            raise WireError("a memo larger than any message needs")
        top = self._top()
        self._memo[index] = top[-1:] if type(top) is array else top

    def _get(self, data: bytes, pos: int) -> int:
        index, end = _memo_index(data, pos)
        if end > pos:
            value = self._memo.get(index)
            if value is None:
                raise WireError("a memo that was never written")
            if type(value) is array:
                self._push_numbers(value[:])
            else:
                self._stack.append(value)
        return end

    # -- start and end

    def _proto(self, data: bytes, pos: int) -> int:
        if pos + 2 > len(data):
            return pos
        if self._instructions > 1 or data[pos + 1] > 5:
            raise WireError("a pickle protocol beyond 5, or not at the start")
        return pos + 2

    def _frame(self, data: bytes, pos: int) -> int:
        # How long pickle's own frame is does not matter here, but a lie about it is not worth reading on.
        if pos + 9 > len(data):
            return pos
        if int.from_bytes(data[pos + 1 : pos + 9], "little") > self._limit:
            raise WireError("a pickle longer than a frame may be")
        return pos + 9

    def _stop(self, _data: bytes, pos: int) -> int:
        if self._marks or len(self._stack) != 1:
            raise WireError("a pickle of no value or of several")
        self.value = self._pop()
        if self._stack:
            raise WireError("a pickle of no value or of several")
        self.done = True
        return pos + 1


_Step: TypeAlias = Callable[[PickleReader, bytes, int], int]

_NUMBERS: Final[dict[int, _Step]] = {
    ord("G"): PickleReader._floats,
    ord("K"): PickleReader._integers,
    ord("M"): PickleReader._integers,
    ord("J"): PickleReader._integers,
    0x8A: PickleReader._long,
    ord("F"): PickleReader._decimals,
    ord("I"): PickleReader._decimals,
    ord("L"): PickleReader._decimals,
}

_INSTRUCTIONS: Final[dict[int, _Step]] = {
    0x80: PickleReader._proto,
    0x95: PickleReader._frame,
    0x8B: PickleReader._long_of_many_bytes,
    ord("."): PickleReader._stop,
    ord("N"): PickleReader._nothing,
    0x88: PickleReader._boolean,
    0x89: PickleReader._boolean,
    0x8C: PickleReader._text,
    ord("X"): PickleReader._text,
    0x8D: PickleReader._text,
    ord("V"): PickleReader._text_line,
    # What Python 2 calls a str.
    ord("S"): PickleReader._quoted_line,
    ord("U"): PickleReader._text,
    ord("T"): PickleReader._text,
    ord("("): PickleReader._mark,
    ord("]"): PickleReader._empty_list,
    ord("l"): PickleReader._marked_sequence,
    ord("a"): PickleReader._append,
    ord("e"): PickleReader._appends,
    ord(")"): PickleReader._empty_tuple,
    0x85: PickleReader._tuple_of,
    0x86: PickleReader._tuple_of,
    0x87: PickleReader._tuple_of,
    ord("t"): PickleReader._marked_sequence,
    ord("}"): PickleReader._empty_dict,
    ord("d"): PickleReader._marked_dict,
    ord("s"): PickleReader._set_item,
    ord("u"): PickleReader._set_items,
    0x94: PickleReader._memoize,
    ord("p"): PickleReader._put_at,
    ord("q"): PickleReader._put_at,
    ord("r"): PickleReader._put_at,
    ord("g"): PickleReader._get,
    ord("h"): PickleReader._get,
    ord("j"): PickleReader._get,
    ord("c"): PickleReader._global,
    ord("i"): PickleReader._global,
    0x93: PickleReader._stack_global,
}

#: Objects that other opcodes build, in words for the author of a DAQ program.
_REFUSED: Final = {
    **dict.fromkeys((ord("B"), ord("C"), 0x8E, 0x96), "bytes; send text or numbers"),
    **dict.fromkeys((0x8F, 0x90, 0x91), "a set; send a list"),
    **dict.fromkeys((0x82, 0x83, 0x84, ord("P"), ord("Q"), 0x97, 0x98), "a reference to an object; send plain data"),
    **dict.fromkeys((ord("R"), ord("b"), ord("o"), 0x81, 0x92), "a pickled object; send plain data"),
    0x00: "an empty frame: a separator without a pickle before it",
    ord("\\"): "an empty frame: a separator without a pickle before it",
}


def _set_items(target: DictValue, values: list[Value]) -> None:
    key: Value | None = None
    for value in values:
        count = len(value) if type(value) is array else 1
        if key is not None:
            target.set(key, value[:1] if type(value) is array else value)
            key = None
            count -= 1
        elif type(value) is not array:
            key = value
            continue
        # In the rest of a run, at least every second number is in the position of a key.
        if count > 1:
            target.odd = True
        if count % 2 and type(value) is array:
            key = value[-1:]
    if key is not None:
        raise WireError("a key without a value")


def _object(module: str, name: str) -> str:
    """Return a description of a pickled object, with the data to send instead."""
    package = module.partition(".")[0]
    if package == "numpy":
        return f"a numpy object ({shown_text(f'{module}.{name}')}): send .item() or .tolist()"
    if package in {"array", "pandas", "torch"}:
        return f"a pickled object of {package} ({shown_text(f'{module}.{name}')}): send .tolist()"
    if (module, name) == ("_codecs", "encode"):
        return _REFUSED[ord("B")]
    known = f" {shown_text(f'{module}.{name}')}" if module or name else ""
    return f"a pickled object{known}: send plain numbers, text, lists and dicts"


def _memo_index(data: bytes, pos: int) -> tuple[int, int]:
    """The index behind a PUT or a GET, and where it ends: ``pos`` where that is not there yet."""
    width = _WIDTHS.get(data[pos])
    if width is not None:
        end = pos + 1 + width
        return (0, pos) if end > len(data) else (int.from_bytes(data[pos + 1 : end], "little"), end)
    # In protocol 0, decimal text.
    end = data.find(b"\n", pos, pos + 8)
    if end < 0:
        if len(data) - pos < 8:
            return 0, pos
        raise WireError("a memo index of too many digits")
    if not data[pos + 1 : end].isdigit():
        raise WireError("a memo index that is none")
    return int(data[pos + 1 : end]), end + 1


def run_of_doubles(data: bytes, pos: int) -> int:
    """How many doubles (``G`` and eight bytes) stand one behind the other from ``pos`` on, all of them whole."""
    count = 0
    glance = _GLANCE
    while True:
        begin = pos + 9 * count
        opcodes = data[begin : begin + 9 * glance : 9]
        found = len(opcodes) - len(opcodes.lstrip(b"G"))
        count += found
        if found < glance:
            # Of the last one the end may be missing.
            return min(count, (len(data) - pos) // 9)
        glance = _STRETCH


def doubles(run: bytes) -> Numbers:
    """The numbers of a run."""
    # Each stands behind its opcode, the byte of its sign first.
    packed = bytearray(run)
    del packed[::9]
    numbers = array("d", packed)
    if _LITTLE_ENDIAN:
        numbers.byteswap()
    return numbers


def _binary_numbers(run: bytes, between: int = 0) -> Numbers:
    """Return the numbers of a run.

    :param between: number of bytes after each number.
    """
    opcode = run[0]
    width = _WIDTHS.get(opcode) or (8 if opcode == ord("G") else 0)
    step = 1 + width + between
    # Numbers with the same opcode have the same length; otherwise they are read one by one.
    if width and not len(run) % step:
        opcodes = run[::step]
        if opcodes == bytes((opcode,)) * len(opcodes):
            return _alike(run, opcode, width, step)
    numbers = array("d")
    append = numbers.append
    pos = 0
    while pos < len(run):
        opcode = run[pos]
        if opcode == 0x4B:  # K
            append(run[pos + 1])
            pos += 2 + between
        elif opcode == 0x4D:  # M
            append(run[pos + 1] | run[pos + 2] << 8)
            pos += 3 + between
        elif opcode == 0x47:  # G
            append(_BIG_DOUBLE.unpack_from(run, pos + 1)[0])
            pos += 9 + between
        else:
            # LONG1 has its length in the next byte; BININT has four bytes.
            start, size = (pos + 2, run[pos + 1]) if opcode == 0x8A else (pos + 1, 4)
            append(int.from_bytes(run[start : start + size], "little", signed=True))
            pos = start + size + between
    return numbers


def _alike(run: bytes, opcode: int, width: int, step: int) -> Numbers:
    """Return the numbers of a run in which all have the same opcode."""
    if width == 1:
        return array("d", list(run[1::step]))
    packed = bytearray(len(run) // step * width)
    big = opcode == ord("G")
    for place in range(width):
        # Put the bytes into this machine's order.
        packed[place if big != _LITTLE_ENDIAN else width - 1 - place :: width] = run[1 + place :: step]
    return array("d", array({2: "H", 4: "i", 8: "d"}[width], bytes(packed)))


def _decimal_numbers(lines: bytes, between: int = 0) -> Numbers:
    try:
        if between:
            lines = lines.replace(b"\na", b"\n")
        return array("d", [float(line[1:].rstrip(b"L")) for line in lines.split(b"\n")[:-1]])
    except ValueError as error:
        raise WireError("a number that is none") from error
