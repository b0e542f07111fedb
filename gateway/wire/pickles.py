"""Pickles read as data, never executed.

A pickle is a program for a stack machine. This reader knows only the instructions that build numbers, text, booleans,
None, lists, tuples and dicts (protocols 0 to 5, opcodes as documented in CPython's ``pickletools``), and refuses the
pickle at any other. It reads as far as the bytes reach and continues when more arrive: the cost is linear however a
pickle is split, and bytes that were read need not be kept.
"""

import re
from array import array
from collections.abc import Callable
from typing import Final, TypeAlias

from gateway.wire.errors import WireError, shown_text
from gateway.wire.pickle_numbers import read_decimals, read_doubles, read_integers, read_long, skip_long4
from gateway.wire.pickle_stack import PickleStack
from gateway.wire.values import BOOLEAN, LONG_TEXT, NOTHING, DictValue, ListValue

#: Maximum bytes of text that is kept: any name has at most 64 characters of 4 bytes, 10 when escaped. Longer text is
#: skipped.
MAX_TEXT: Final = 1024

_QUOTED: Final = re.compile(rb"(['\"])([ !#-&(-\[\]-~]*+)\1")

#: A module and a class or a function in it. In protocols 0 and 1, an object's class comes after the constructor's name.
_GLOBAL: Final = re.compile(rb".([^\n]{1,200})\n([^\n]{1,200})\n", re.DOTALL)
_RECONSTRUCTED: Final = re.compile(
    rb"ccopy_?reg\n_reconstructor\n(?:p[0-9]{1,5}\n|q.|r.{4})?\(" + _GLOBAL.pattern.replace(b".", b"c", 1), re.DOTALL
)

#: Bytes of a length or an index, by opcode.
_WIDTHS: Final = {
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


class PickleReader(PickleStack):
    """Reader of one pickle."""

    __slots__ = ()

    def read(self, data: bytes, pos: int) -> int:
        """Read whole instructions from ``pos``, where the last call stopped.

        :returns: the position where reading stopped: after STOP, or at the first incomplete instruction.
        :raises WireError: a message cannot contain this instruction.
        """
        end = len(data)
        while pos < end and not self.done:
            if self.skip:
                pos = self._skip_text(data, pos)
                continue
            opcode = data[pos]
            step = _NUMBERS.get(opcode)
            if step is None:
                step = _INSTRUCTIONS.get(opcode)
                if step is None:
                    raise WireError(_REFUSED.get(opcode) or f"opcode 0x{opcode:02x} builds no plain data")
                self.count()
            after = step(self, data, pos)
            if after == pos:
                # It will be counted again when the rest of it has arrived.
                self.instructions -= opcode not in _NUMBERS
                break
            pos = after
        return pos

    # -- text, None and booleans

    def _nothing(self, _data: bytes, pos: int) -> int:
        self.values.append(NOTHING)
        return pos + 1

    def _boolean(self, _data: bytes, pos: int) -> int:
        self.values.append(BOOLEAN)
        return pos + 1

    def _text(self, data: bytes, pos: int) -> int:
        start = pos + 1 + _WIDTHS[data[pos]]
        if start > len(data):
            return pos
        length = int.from_bytes(data[pos + 1 : start], "little")
        if length > MAX_TEXT:
            if length > self.limit:
                raise WireError("text longer than a frame may be")
            self.values.append(LONG_TEXT)
            self.skip = length
            return start
        end = start + length
        if end > len(data):
            return pos
        self.values.append(data[start:end].decode("utf-8", "replace"))
        return end

    def _text_line(self, data: bytes, pos: int) -> int:
        end = data.find(b"\n", pos, pos + 1 + MAX_TEXT)
        if end < 0:
            if len(data) - pos <= MAX_TEXT:
                return pos
            self.values.append(LONG_TEXT)
            self.skip = -1
            return pos + 1 + MAX_TEXT
        try:
            self.values.append(data[pos + 1 : end].decode("raw-unicode-escape"))
        except UnicodeDecodeError as error:
            raise WireError("text with a broken escape") from error
        return end + 1

    def _quoted_line(self, data: bytes, pos: int) -> int:
        """Read a str of Python 2 in protocol 0: ASCII text in quotes, without escapes."""
        end = data.find(b"\n", pos, pos + 1 + MAX_TEXT)
        if end < 0:
            if len(data) - pos <= MAX_TEXT:
                return pos
            raise WireError("text in quotes without end")
        found = _QUOTED.fullmatch(data, pos + 1, end)
        if found is None:
            raise WireError("text in quotes with an escape")
        self.values.append(found[2].decode("ascii"))
        return end + 1

    def _skip_text(self, data: bytes, pos: int) -> int:
        if self.skip < 0:
            end = data.find(b"\n", pos)
            if end < 0:
                return len(data)
            self.skip = 0
            return end + 1
        skipped = min(self.skip, len(data) - pos)
        self.skip -= skipped
        return pos + skipped

    # -- lists, tuples and dicts

    def _mark(self, _data: bytes, pos: int) -> int:
        self.mark()
        return pos + 1

    def _empty_list(self, _data: bytes, pos: int) -> int:
        self.push_container(ListValue())
        return pos + 1

    def _empty_dict(self, _data: bytes, pos: int) -> int:
        self.push_container(DictValue())
        return pos + 1

    def _empty_tuple(self, _data: bytes, pos: int) -> int:
        self.push_container(ListValue(frozen=True))
        return pos + 1

    def _tuple_of(self, data: bytes, pos: int) -> int:
        # TUPLE1, TUPLE2 and TUPLE3 are 0x85 to 0x87.
        values = [self.pop() for _ in range(data[pos] - 0x84)]
        container = ListValue(frozen=True)
        container.extend(values[::-1])
        self.push_container(container)
        return pos + 1

    def _marked_sequence(self, data: bytes, pos: int) -> int:
        container = ListValue(frozen=data[pos] == ord("t"))
        container.extend(self.pop_mark())
        self.push_container(container)
        return pos + 1

    def _marked_dict(self, _data: bytes, pos: int) -> int:
        container = DictValue()
        container.set_items(self.pop_mark())
        self.push_container(container)
        return pos + 1

    def _append(self, _data: bytes, pos: int) -> int:
        value = self.pop()
        # A single number and its APPEND do not count, however the bytes were split.
        self.instructions -= type(value) is array
        self.top_list().extend([value])
        return pos + 1

    def _appends(self, _data: bytes, pos: int) -> int:
        values = self.pop_mark()
        self.top_list().extend(values)
        return pos + 1

    def _set_item(self, _data: bytes, pos: int) -> int:
        value = self.pop()
        key = self.pop()
        self.top_dict().set_items([key, value])
        return pos + 1

    def _set_items(self, _data: bytes, pos: int) -> int:
        values = self.pop_mark()
        self.top_dict().set_items(values)
        return pos + 1

    # -- objects: refused by name

    def _global(self, data: bytes, pos: int) -> int:
        """Refuse a class or a function, named by its module and name in the next two lines."""
        found = _RECONSTRUCTED.match(data, pos) or _GLOBAL.match(data, pos)
        module, name = (part.decode("utf-8", "replace") for part in found.groups()) if found else ("", "")
        raise WireError(_object(module, name))

    def _stack_global(self, _data: bytes, pos: int) -> int:
        """Refuse a class or a function, named by its module and name on the stack."""
        name, module = self.pop(), self.pop()
        raise WireError(_object(module if isinstance(module, str) else "", name if isinstance(name, str) else ""))

    # -- the memo

    def _memoize(self, _data: bytes, pos: int) -> int:
        self.memoize()
        return pos + 1

    def _put_at(self, data: bytes, pos: int) -> int:
        index, end = _memo_index(data, pos)
        if end > pos:
            self.put(index)
        return end

    def _get(self, data: bytes, pos: int) -> int:
        index, end = _memo_index(data, pos)
        if end > pos:
            self.get(index)
        return end

    # -- start and end

    def _proto(self, data: bytes, pos: int) -> int:
        if pos + 2 > len(data):
            return pos
        if self.instructions > 1 or data[pos + 1] > 5:
            raise WireError("a pickle protocol beyond 5, or not at the start")
        return pos + 2

    def _frame(self, data: bytes, pos: int) -> int:
        # The length of pickle's own frame is not needed, but one beyond the limit is certainly wrong.
        if pos + 9 > len(data):
            return pos
        if int.from_bytes(data[pos + 1 : pos + 9], "little") > self.limit:
            raise WireError("a pickle longer than a frame may be")
        return pos + 9

    def _stop(self, _data: bytes, pos: int) -> int:
        self.value = self.pop_result()
        self.done = True
        return pos + 1


_Step: TypeAlias = Callable[[PickleReader, bytes, int], int]

#: Instructions for numbers, which do not count.
_NUMBERS: Final[dict[int, _Step]] = {
    ord("G"): read_doubles,
    ord("K"): read_integers,
    ord("M"): read_integers,
    ord("J"): read_integers,
    0x8A: read_long,
    ord("F"): read_decimals,
    ord("I"): read_decimals,
    ord("L"): read_decimals,
}

_INSTRUCTIONS: Final[dict[int, _Step]] = {
    0x80: PickleReader._proto,
    0x95: PickleReader._frame,
    0x8B: skip_long4,
    ord("."): PickleReader._stop,
    ord("N"): PickleReader._nothing,
    0x88: PickleReader._boolean,
    0x89: PickleReader._boolean,
    0x8C: PickleReader._text,
    ord("X"): PickleReader._text,
    0x8D: PickleReader._text,
    ord("V"): PickleReader._text_line,
    # A str of Python 2.
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

#: Descriptions of the objects that other opcodes build, for the author of a DAQ program.
_REFUSED: Final = {
    **dict.fromkeys((ord("B"), ord("C"), 0x8E, 0x96), "bytes; send text or numbers"),
    **dict.fromkeys((0x8F, 0x90, 0x91), "a set; send a list"),
    **dict.fromkeys((0x82, 0x83, 0x84, ord("P"), ord("Q"), 0x97, 0x98), "a reference to an object; send plain data"),
    **dict.fromkeys((ord("R"), ord("b"), ord("o"), 0x81, 0x92), "a pickled object; send plain data"),
    0x00: "an empty frame: a separator without a pickle before it",
    ord("\\"): "an empty frame: a separator without a pickle before it",
}


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
    """Return the index of a PUT or a GET, and its end; ``pos`` if it is incomplete."""
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
        raise WireError("an invalid memo index")
    return int(data[pos + 1 : end]), end + 1
