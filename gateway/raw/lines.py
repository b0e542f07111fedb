"""Lines of raw files, read back as runs of samples."""

import gzip
import io
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Final, TypeAlias

import orjson

#: Number of bytes to read at a time.
_BLOCK: Final = 256 * 1024

#: Maximum bytes of a line; longer ones are damage.
_MAX_LINE: Final = 4096

#: ``HH:MM:SS,``, and successive lines that begin with the same time.
_TIME: Final = re.compile(rb"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9],")

_SECOND: Final = re.compile(rb"^(" + _TIME.pattern + rb").*\n(?:\1.*\n)*+", re.MULTILINE)

#: A number as it is written in a line, and several separated by commas. The pattern is strict, because damage must not
#: turn one number into another. On Windows the old server ended lines with CR CR LF.
_NUMBER: Final = re.compile(rb"-?(?:(?:0|[1-9][0-9]*+)(?:\.[0-9]*+)?(?:[eE][+-]?[0-9]++)?|inf|nan)\r*+")

_NUMBERS: Final = re.compile(rb"%b(?:,%b)*+" % (_NUMBER.pattern, _NUMBER.pattern))

#: Bytes that JSON allows beside numbers: blanks, and letters of ``true`` and ``false``, which Python takes for numbers.
_BLANK, _TAB, _CR, _U, _L = b" \t\rul"

#: Undamaged lines without a sample: the header, which compressed files may hold twice, and blank lines.
_EMPTY: Final = re.compile(rb"(?:time,data)?\r*+\n")

#: Numbers of bytes before a position to search for the last sample line, in turn; then the whole file is searched.
_BACK: Final = (_MAX_LINE, 64 * 1024, 1024 * 1024)

#: Bytes of a page, in which the system writes files to the disk.
_PAGE: Final = 4096

#: Takes a piece of a file that does not consist of sample lines: its offset in the (decompressed) file, in bytes, and
#: its content: whole lines, a piece of a line that is too long, or a last line without an end.
Damaged: TypeAlias = Callable[[int, bytes], object]


@dataclass(frozen=True, slots=True)
class LineRun:
    """Successive lines of one second.

    :ivar begin: offset of the first line in the (decompressed) file, in bytes.
    :ivar end: offset of the end of the last line.
    :ivar clock: time by the wall clock, ``HH:MM:SS,``.
    """

    begin: int
    end: int
    clock: bytes
    samples: "array[float]"


def runs(file: io.BufferedIOBase, begin: int = 0, damaged: Damaged | None = None) -> Iterator[LineRun]:
    """Read the sample lines of a file, from the given start of a line on.

    Other lines are skipped, and so is a last line without an end: its number may have been cut.

    :param damaged: called with each skipped piece, except headers and blank lines.
    :raises ReadError: the file cannot be read.
    """
    file.seek(begin)
    rest = b""
    # Whether the next block begins inside a line that is too long.
    inside = False
    while block := file.read(_BLOCK):
        text = rest + block
        position = 0
        if inside:
            position = text.find(b"\n") + 1 or len(text)
            inside = not text.endswith(b"\n", 0, position)
            if damaged is not None:
                damaged(begin, text[:position])
        whole = text.rfind(b"\n") + 1
        for match in _SECOND.finditer(text, position, whole):
            if damaged is not None:
                if match.start() != position:
                    _report_damage(text[position : match.start()], begin + position, damaged)
                position = match.end()
            if samples := _numbers(match[0], match[1], begin + match.start(), damaged):
                yield LineRun(begin + match.start(), begin + match.end(), match[1], samples)
        if damaged is not None and position < whole:
            _report_damage(text[position:whole], begin + position, damaged)
        # The rest of a line that is too long has already been skipped.
        whole = max(whole, position)
        rest = text[whole:]
        begin += whole
        if len(rest) > _MAX_LINE:
            if damaged is not None:
                damaged(begin, rest)
            begin += len(rest)
            rest = b""
            inside = True
    if rest and damaged is not None:
        damaged(begin, rest)


def _report_damage(lines: bytes, begin: int, damaged: Damaged) -> None:
    """Report whole lines that are not sample lines."""
    for line in _split_lines(lines):
        if _EMPTY.fullmatch(line) is None:
            damaged(begin, line)
        begin += len(line)


def _split_lines(lines: bytes) -> list[bytes]:
    """Split whole lines at LF only, and keep the LF."""
    return [line + b"\n" for line in lines.split(b"\n")[:-1]]


def _numbers(lines: bytes, clock: bytes, begin: int, damaged: Damaged | None) -> "array[float]":
    """Read the numbers of whole lines that all begin with the same time.

    :param begin: offset of the first line.
    """
    count = lines.count(b"\n")
    text = lines[len(clock) : -1].replace(b"\n" + clock, b",")
    # Searching for an integer takes a tenth of the time of searching for bytes.
    if _CR in text:
        text = text.replace(b"\r,", b",").removesuffix(b"\r")
    # If there are more numbers than lines, one of the lines is not a sample line.
    try:
        # Half as long as splitting takes.
        numbers = array("d", orjson.loads(b"[%b]" % text))
        odd = _BLANK in text or _TAB in text or _CR in text or _U in text or _L in text
        if len(numbers) == count and not odd:
            return numbers
    except (ValueError, TypeError):
        pass
    # NaN and infinities are not JSON.
    if text.count(b",") + 1 == count and _NUMBERS.fullmatch(text) is not None:
        return array("d", map(float, text.split(b",")))
    numbers = array("d")
    for line in _split_lines(lines):
        if _NUMBER.fullmatch(line, len(clock), len(line) - 1):
            numbers.append(float(line[len(clock) :]))
        elif damaged is not None:
            # For example, a torn line with the next one glued to it: neither is guessed.
            damaged(begin, line)
        begin += len(line)
    return numbers


def offset_of(file: io.BufferedIOBase, size: int, clock: bytes) -> int:
    """Return the offset of the first line at a time or later, by bisection; the size if all lines are earlier.

    :param size: size of the file in bytes; its lines ascend in time.
    :param clock: time by the wall clock, ``HH:MM:SS,``.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        end, middle_clock = _line_from(file, middle, high)
        if middle_clock is None or middle_clock >= clock:
            high = middle
        else:
            low = end
    return _line_begin(file, low, size)


def _line_from(file: io.BufferedIOBase, position: int, end: int) -> tuple[int, bytes | None]:
    """Find the first sample line that begins at or after a position; return the offset of its end, and its time."""
    position = _line_begin(file, position, end)
    file.seek(position)
    is_begin = True
    while position < end:
        line = file.readline(_MAX_LINE)
        position += len(line)
        if not line:
            break
        is_end = line.endswith(b"\n")
        if is_begin and is_end and _TIME.match(line):
            return position, line[:9]
        is_begin = is_end
    return position, None


def _line_begin(file: io.BufferedIOBase, position: int, end: int) -> int:
    """Return the offset of the first line that begins at or after a position."""
    if position <= 0:
        return 0
    file.seek(position - 1)
    position -= 1
    while position < end:
        piece = file.readline(_MAX_LINE)
        position += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return position


def begins_line(file: io.BufferedIOBase, position: int) -> bool:
    """Return whether a line begins at a position, or the file ends there with a whole line."""
    if position == 0:
        return True
    file.seek(position - 1)
    return file.read(1) == b"\n"


def read_through(file: io.BufferedIOBase) -> int:
    """Read a file to its end, and return the size of its content in bytes."""
    while file.read(_BLOCK):
        pass
    return file.tell()


def last_clock(file: io.BufferedIOBase, size: int) -> bytes | None:
    """Return the time of the last whole sample line, ``HH:MM:SS,``; ``None`` without a sample line.

    :param size: number of bytes of the file to consider.
    """
    # In a compressed file, each seek back reads from the beginning.
    for length in _BACK[:1] if isinstance(file, gzip.GzipFile) else (*_BACK, size):
        begin = max(0, size - length)
        file.seek(begin)
        lines = file.read(size - begin).split(b"\n")
        # The first line may lack its beginning.
        whole = lines[:-1] if begin == 0 else lines[1:-1]
        clock = next((line[:9] for line in reversed(whole) if is_line(line)), None)
        if clock is not None or begin == 0:
            return clock
    return None


def is_line(line: bytes) -> bool:
    """Return whether a line, without its end, is a sample line."""
    return _TIME.match(line) is not None and _NUMBER.fullmatch(line, 9) is not None


def nul_before(file: io.BufferedIOBase, position: int) -> int | None:
    """Find NUL bytes shortly before a position; return the start of a line before the first of them, or ``None``.

    Pages that a power cut kept from the disk read as NUL bytes. The last MiB is searched only if its end has some.
    """
    # The system writes the pages of a file in order, so the pages that a power cut lost were the last ones of the file.
    # Lines that came later may have filled up the last page, so the page before it is read too.
    end_pages = (position - 1) // _PAGE * _PAGE - _PAGE
    for begin in (max(0, end_pages), max(0, position - _BACK[-1])):
        file.seek(begin)
        content = file.read(position - begin)
        first = content.find(b"\0")
        if first < 0:
            return None
    return begin + content.rfind(b"\n", 0, first) + 1


class LineClock:
    """Conversion of the times of a day's lines to aware datetimes.

    Lines are in the order of arrival. When clocks go back and an hour repeats, a line whose time is earlier than a
    previous line belongs to the second occurrence.

    :param after: time before the first line; ``None`` if unknown.
    :param second: whether every repeated time belongs to the second occurrence.
    """

    def __init__(self, day: date, zone: tzinfo, after: datetime | None = None, *, second: bool = False) -> None:
        self._midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        self._last = after
        self._second = second

    def time(self, clock: bytes) -> datetime:
        """Return the time of a line that begins with ``HH:MM:SS,``."""
        time = self._midnight.replace(hour=int(clock[:2]), minute=int(clock[3:5]), second=int(clock[6:8]))
        if self._second:
            return time.replace(fold=1)
        last = self._last
        # Datetimes of one zone compare by the wall clock, which is enough for most lines.
        if last is not None and (time < last or last.fold) and time.timestamp() < last.timestamp():
            again = time.replace(fold=1)
            # Otherwise the clock was set back.
            if again.timestamp() >= last.timestamp():
                time = again
        self._last = time
        return time
