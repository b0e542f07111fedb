"""Numbers in pickles: runs of equal or mixed instructions are recognised by pattern and converted together.

Each function that reads an instruction takes the stack, the bytes and the position of the instruction. It returns the
position after what it has read, or the same position if the instruction is incomplete.
"""

import math
import re
import struct
import sys
from array import array
from typing import Final

from gateway.wire.errors import WireError
from gateway.wire.pickle_stack import DoubleRun, PickleStack
from gateway.wire.values import BOOLEAN, HUGE, Numbers

#: Maximum bytes of a number in decimal text: an opcode, a sign, 4,300 digits (Python's own limit), ``L`` and line end.
_MAX_NUMBER_LINE: Final = 4304

_DECIMAL: Final = rb"(?:F[-+0-9.eEinfa]{1,32}+|I(?!0[01]\n)[-+]?[0-9]{1,308}+|L[-+]?[0-9]{1,308}+L?)\n"
# An integer of 309 digits may fit into a double or exceed it.
_HUGE: Final = re.compile(rb"[IL]([-+]?[0-9]{309,4300}+)L?\n")
_DECIMALS: Final = re.compile(rb"(?:" + _DECIMAL + rb")++")
# Protocol 0 appends each number separately.
_APPENDED: Final = re.compile(rb"(?:" + _DECIMAL + rb"a)++")
_SHORT_LONG: Final = rb"\x8a(?:\x00|" + b"|".join(b"%c.{%d}" % (size, size) for size in range(1, 9)) + rb")"
_INTEGER: Final = rb"(?:K.|M.{2}|J.{4}|" + _SHORT_LONG + rb")"
_INTEGERS: Final = re.compile(_INTEGER + rb"++", re.DOTALL)
#: Doubles, each followed by integers; longer runs of doubles are read together in another way.
_MIXED: Final = re.compile(rb"(?:G.{8}" + _INTEGER + rb"++)++", re.DOTALL)
#: Binary numbers that are appended one by one; Python's picklers do not write this.
_APPENDED_BINARY: Final = re.compile(rb"(?:(?:" + _INTEGER + rb"|G.{8})a)++", re.DOTALL)

#: Maximum bytes of a LONG1 that is read together with other numbers.
_MAX_SHORT_LONG: Final = 8

#: Opcodes after a double that is read together with numbers of other kinds.
_MIXED_OPCODES: Final = frozenset((b"a", b"K", b"M", b"J", b"\x8a"))

_BIG_DOUBLE: Final = struct.Struct(">d")
_IS_LITTLE_ENDIAN: Final = sys.byteorder == "little"

#: Maximum runs of doubles of one pickle that are recorded; a message has one for each sensor.
_MAX_RUNS: Final = 1024

#: Number of opcodes compared at once: at first, because most runs are short; then, because the pickler writes at most
#: 1,000 numbers together.
_FIRST_COMPARED: Final = 64
_LATER_COMPARED: Final = 1024

#: Bytes of a number, by opcode.
_WIDTHS: Final = {ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8}


def read_doubles(stack: PickleStack, data: bytes, pos: int) -> int:
    """Read a run of BINFLOAT."""
    next_opcode = data[pos + 9 : pos + 10]
    if next_opcode in _MIXED_OPCODES:
        return read_integers(stack, data, pos)
    end = pos + 9 * count_doubles(data, pos)
    if end > pos:
        numbers = doubles(data[pos:end])
        if len(stack.runs) < _MAX_RUNS:
            stack.runs.append(DoubleRun(pos, end, numbers))
        if stack.is_in_text:
            _switch(stack)
        stack.push_numbers(numbers)
    return end


def _read_double(stack: PickleStack, data: bytes, pos: int) -> int:
    """Read one BINFLOAT, which is complete: the opcode behind it has arrived."""
    if stack.is_in_text:
        _switch(stack)
    stack.push_numbers(doubles(data[pos : pos + 9]))
    return pos + 9


def read_integers(stack: PickleStack, data: bytes, pos: int) -> int:
    """Read a run of BININT, BININT1, BININT2 and short LONG1, with single doubles between them."""
    run = _APPENDED_BINARY.match(data, pos)
    is_appended = run is not None
    if run is None:
        run = _INTEGERS.match(data, pos) or _MIXED.match(data, pos)
        if run is None:
            # The run is incomplete, or is a double followed by an incomplete number.
            return _read_double(stack, data, pos) if data.startswith(b"G", pos) else pos
    if stack.is_in_text:
        _switch(stack)
    if is_appended:
        stack.top_list().extend([_binary_numbers(run[0], 1)])
    else:
        stack.push_numbers(_binary_numbers(run[0]))
    return run.end()


def read_long(stack: PickleStack, data: bytes, pos: int) -> int:
    """Read a LONG1."""
    if pos + 2 > len(data) or pos + 2 + data[pos + 1] > len(data):
        return pos
    if data[pos + 1] <= _MAX_SHORT_LONG:
        return read_integers(stack, data, pos)
    end = pos + 2 + data[pos + 1]
    if stack.is_in_text:
        _switch(stack)
    try:
        _push_integer(stack, float(int.from_bytes(data[pos + 2 : end], "little", signed=True)))
    except OverflowError:
        _push_integer(stack, math.inf)
    return end


def skip_long4(stack: PickleStack, data: bytes, pos: int) -> int:
    """Skip a LONG4, which picklers write only for integers of more than 255 bytes."""
    start = pos + 5
    if start > len(data):
        return pos
    length = int.from_bytes(data[pos + 1 : start], "little")
    if not 255 < length <= stack.limit:
        raise WireError(f"an integer of {length} bytes")
    stack.values.append(HUGE)
    stack.skip = length
    return start


def read_decimals(stack: PickleStack, data: bytes, pos: int) -> int:
    """Read a run of FLOAT, INT and LONG, with or without an APPEND after each."""
    if data.startswith((b"I00\n", b"I01\n"), pos):
        stack.count()
        stack.values.append(BOOLEAN)
        return pos + 4
    appended = _APPENDED.match(data, pos)
    run = appended or _DECIMALS.match(data, pos) or _HUGE.match(data, pos)
    if run is not None:
        if not stack.is_in_text:
            _switch(stack)
        if appended is not None:
            stack.top_list().extend([_decimal_numbers(run[0], 1)])
        elif run.re is _HUGE:
            _push_integer(stack, float(run[1]))
        else:
            stack.push_numbers(_decimal_numbers(run[0]))
        return run.end()
    if len(data) - pos >= _MAX_NUMBER_LINE or b"\n" in data[pos : pos + _MAX_NUMBER_LINE]:
        raise WireError("an invalid number")
    return pos


def _switch(stack: PickleStack) -> None:
    """Count a switch between binary and text numbers as an instruction, however the bytes were split."""
    stack.is_in_text = not stack.is_in_text
    stack.count()


def _push_integer(stack: PickleStack, number: float) -> None:
    """Push a large integer; infinity represents one that exceeds a double."""
    if math.isinf(number):
        stack.count()
        stack.values.append(HUGE)
    else:
        stack.push_numbers(array("d", (number,)))


# -- conversion of runs


def count_doubles(data: bytes, pos: int) -> int:
    """Return the number of consecutive, complete doubles (``G`` and eight bytes) from ``pos`` on."""
    count = 0
    compared = _FIRST_COMPARED
    while True:
        begin = pos + 9 * count
        opcodes = data[begin : begin + 9 * compared : 9]
        found = len(opcodes) - len(opcodes.lstrip(b"G"))
        count += found
        if found < compared:
            # The last one may be incomplete.
            return min(count, (len(data) - pos) // 9)
        compared = _LATER_COMPARED


def doubles(run: bytes) -> Numbers:
    """Return the numbers of a run of doubles."""
    # Each number follows its opcode, in big-endian order.
    packed = bytearray(run)
    del packed[::9]
    numbers = array("d", packed)
    if _IS_LITTLE_ENDIAN:  # pragma: no branch - as almost every machine
        numbers.byteswap()
    return numbers


def _binary_numbers(run: bytes, between: int = 0) -> Numbers:
    """Return the numbers of a run.

    :param between: number of bytes after each number.
    """
    opcode = run[0]
    width = _WIDTHS.get(opcode, 0)
    step = 1 + width + between
    # Numbers with the same opcode have the same length; otherwise they are read one by one.
    if width and not len(run) % step:
        opcodes = run[::step]
        if opcodes == bytes((opcode,)) * len(opcodes):
            return _uniform_numbers(run, opcode, width, step)
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


def _uniform_numbers(run: bytes, opcode: int, width: int, step: int) -> Numbers:
    """Return the numbers of a run in which all have the same opcode.

    :param width: bytes of a number.
    :param step: bytes from one number to the next.
    """
    if width == 1:
        return array("d", list(run[1::step]))
    packed = bytearray(len(run) // step * width)
    is_big_endian = opcode == ord("G")
    for place in range(width):
        # Put the bytes into this machine's order.
        packed[place if is_big_endian != _IS_LITTLE_ENDIAN else width - 1 - place :: width] = run[1 + place :: step]
    return array("d", array({2: "H", 4: "i", 8: "d"}[width], bytes(packed)))


def _decimal_numbers(lines: bytes, between: int = 0) -> Numbers:
    """Return the numbers of lines of decimal text.

    :param between: number of bytes, of APPEND, after each line.
    """
    try:
        if between:
            lines = lines.replace(b"\na", b"\n")
        return array("d", [float(line[1:].rstrip(b"L")) for line in lines.split(b"\n")[:-1]])
    except ValueError as error:
        raise WireError("an invalid number") from error
