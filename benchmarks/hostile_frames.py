"""Hostile frames: the longest that one piece of them keeps the reactor, and what a whole one costs.

Each frame is as long as a frame may be, and handed to the frame reader in the pieces that a connection is read in.
Times are CPU times, so that other processes do not count.
"""

import pickle
import sys
import time
import tracemalloc
from typing import Final

from benchmarks.table import Row
from gateway.wire.errors import WireError
from gateway.wire.frames import MAX_FRAME_BYTES, NEED_DATA, FrameReader

#: Bytes of a piece: the most that a DAQ connection is read at a time.
PIECE: Final = 64 * 1024

#: Seconds of CPU that a piece may take, and bytes of memory that a byte of a frame may.
TURN: Final = 0.1
MULTIPLE: Final = 16

_LIST: Final = b"\x80\x02(U\nDataUpdate}U\x01a}(U\x04typeU\x03VIBU\x04data]"
_MARKED: Final = _LIST + b"("
_OLD_LIST: Final = b"(VDataUpdate\n(dVs\n(dVtype\nVVIB\nsVdata\n(l"
_DOUBLE: Final = b"G\x3f\xf8\0\0\0\0\0\0"
_JSON: Final = b'["DataUpdate",{"s":{"type":"VIB","data":['

#: How each begins, what it repeats, and how it ends.
FRAMES: Final[dict[str, tuple[bytes, bytes, bytes]]] = {
    "small ints": (_MARKED, b"K\x01", b"eust.\0"),
    "ints of two bytes": (_MARKED, b"M\x01\x02", b"eust.\0"),
    "ints of four bytes": (_MARKED, b"J\x01\x02\x03\x04", b"eust.\0"),
    "ints of all widths": (_MARKED, b"K\x01M\x01\x02J\x01\x02\x03\x04", b"eust.\0"),
    "ints of one and two bytes": (_MARKED, b"K\x01M\x01\x02", b"eust.\0"),
    "longs of no byte": (_MARKED, b"\x8a\x00", b"eust.\0"),
    "longs of one byte": (_MARKED, b"\x8a\x01\x05", b"eust.\0"),
    "longs of nine bytes": (_MARKED, b"\x8a\x09" + b"\x05" * 9, b"eust.\0"),
    "longs of 255 bytes": (_MARKED, b"\x8a\xff" + b"\x05" * 255, b"eust.\0"),
    "doubles": (_MARKED, _DOUBLE, b"eust.\0"),
    "doubles and ints": (_MARKED, _DOUBLE + b"K\x01", b"eust.\0"),
    "doubles and booleans": (_MARKED, _DOUBLE + b"\x88", b"eust.\0"),
    "ints appended": (_LIST, b"K\x01a", b"ust.\0"),
    "ints of two bytes appended": (_LIST, b"M\x01\x02a", b"ust.\0"),
    "ints of four bytes appended": (_LIST, b"J\x01\x02\x03\x04a", b"ust.\0"),
    "ints of two widths appended": (_LIST, b"K\x01aM\x01\x02a", b"ust.\0"),
    "longs appended": (_LIST, b"\x8a\x00a", b"ust.\0"),
    "longs of nine bytes appended": (_LIST, b"\x8a\x09" + b"\x05" * 9 + b"a", b"ust.\0"),
    "doubles appended": (_LIST, _DOUBLE + b"a", b"ust.\0"),
    "doubles and ints appended": (_LIST, _DOUBLE + b"aK\x01a", b"ust.\0"),
    "lists of one extended": (_LIST, b"(K\x01e", b"ust.\0"),
    "nothing extended": (_LIST, b"(e", b"ust.\0"),
    "None appended": (_LIST, b"Na", b"ust.\0"),
    "booleans appended": (_LIST, b"I01\na", b"ust.\0"),
    "ints put into the memo": (_LIST, b"K\x01q\x01a", b"ust.\0"),
    "ints memoized": (_LIST, b"K\x01\x94a", b"ust.\0"),
    "ints out of the memo": (b"K\x01q\x01" + _LIST, b"h\x01a", b"ust.\0"),
    "items of a dict": (b"}", b"U\x01aK\x01s", b".\0"),
    "items of a dict under numbers": (b"}", b"K\x01K\x01s", b".\0"),
    "marked items of a dict": (b"}", b"(U\x01aK\x01u", b".\0"),
    "marks": (b"", b"(", b".\0"),
    "marks and lists": (b"", b"(l", b".\0"),
    "tuples": (b")", b"\x85", b".\0"),
    "None": (b"(", b"N", b"t.\0"),
    "empty texts": (b"(", b"U\0", b"t.\0"),
    "texts of 1 KiB": (b"(", b"X\0\x04\0\0" + b"x" * 1024, b"t.\0"),
    "texts of 1 KiB of two bytes a character": (b"(", b"X\0\x04\0\0" + "é".encode() * 512, b"t.\0"),
    "lines of 1 KiB": (b"(", b"V" + b"x" * 1000 + b"\n", b"t.\0"),
    "lines of escapes": (b"(", b"V" + b"\\u00e9" * 160 + b"\n", b"t.\0"),
    "quoted lines": (b"(", b"S'" + b"x" * 1000 + b"'\n", b"t.\0"),
    "one long text": (b"(X\0\0\xf0\0", b"x", b"t.\0"),
    "one long line": (b"(V", b"x", b"\nt.\0"),
    "decimal ints": (_OLD_LIST, b"I1\na", b"asst.\0"),
    "decimal ints, marked": (_MARKED, b"I1\n", b"eust.\0"),
    "decimal ints of 308 digits": (_MARKED, b"I" + b"1" * 308 + b"\n", b"eust.\0"),
    "decimal ints of 309 digits": (_MARKED, b"I" + b"1" * 309 + b"\n", b"eust.\0"),
    "decimal ints of 1000 zeroes": (_MARKED, b"L" + b"0" * 1000 + b"L\n", b"eust.\0"),
    "decimal floats": (_OLD_LIST, b"F1.5\na", b"asst.\0"),
    "decimal floats of many digits": (_OLD_LIST, b"F1.2345678901234567e-300\na", b"asst.\0"),
    "decimal longs": (_OLD_LIST, b"L1L\na", b"asst.\0"),
    "text and binary": (_MARKED, b"K\x01I1\n", b"eust.\0"),
    "text and doubles": (_MARKED, _DOUBLE + b"F1\n", b"eust.\0"),
    "text and binary appended": (_LIST, b"K\x01aI1\na", b"ust.\0"),
    "frames of None": (b"", b"N.\0", b""),
    "frames of an int": (b"", b"K\x01.\0", b""),
    "frames of an empty tuple": (b"", b")." + b"\\o", b""),
    "faults": (b"", pickle.dumps(("FaultDetect", {"score": 1.0, "threshold": 2.0}), 2) + b"\0", b""),
    "blanks": (b"", b"\r\n", b""),
    "byte order marks": (b"", b"\xef\xbb\xbf", b""),
    "byte order marks and blanks": (b"", b" \xef\xbb\xbf", b""),
    "JSON ints": (_JSON, b"1,", b"1]}}]\0"),
    "JSON negative zeroes": (_JSON, b"-0,", b"1]}}]\0"),
    "JSON floats": (_JSON, b"0.12345678901234567,", b"1]}}]\0"),
    "JSON infinities": (_JSON, b"Infinity,", b"1]}}]\0"),
    "JSON NaNs": (_JSON, b"NaN,", b"1]}}]\0"),
    "JSON numbers beyond a double": (_JSON, b"1" * 400 + b",", b"1]}}]\0"),
    "JSON ints of 4300 digits": (_JSON, b"1" * 4300 + b",", b"1]}}]\0"),
    "JSON floats of 8000 digits": (_JSON, b"1" * 4000 + b"." + b"1" * 4000 + b",", b"1]}}]\0"),
    "JSON booleans": (_JSON, b"true,", b"true]}}]\0"),
    "JSON nulls and ints": (_JSON, b"1,null,", b"1]}}]\0"),
    "JSON ints with blanks": (_JSON, b"1 ,\n", b"1]}}]\0"),
    "JSON blanks": (_JSON, b" ", b"1]}}]\0"),
    "JSON empty texts": (b"[", b'"",', b"1]\0"),
    "JSON short texts": (b"[", b'"a",1,', b"1]\0"),
    "JSON escaped texts": (b"[", b'"\\n",', b"1]\0"),
    "JSON texts of 8 KiB": (b"[", b'"' + b"x" * 8000 + b'",', b"1]\0"),
    "JSON texts of 8 KiB of escapes": (b"[", b'"' + b"\\u00e9" * 1300 + b'",', b"1]\0"),
    "JSON texts of 10 KiB": (b"[", b'"' + b"x" * 10_000 + b'",', b"1]\0"),
    "JSON one long text": (b'["', b"x", b'"]\0'),
    "JSON one long text of escapes": (b'["', b"\\n", b'"]\0'),
    "JSON keys": (b"{", b'"a":1,', b'"a":1}\0'),
    "JSON empty lists": (b"[", b"[],", b"1]\0"),
    "JSON lists of lists": (b"[", b"[[[],1]],", b"1]\0"),
    "JSON frames": (b"", b"[]\0", b""),
    "JSON frames of 60 KiB": (b"", _JSON + b"1," * 30_000 + b"1]}}]\0", b""),
    "JSON frames of 60 KiB of texts": (b"", b"[" + b'"",' * 20_000 + b"1]\0", b""),
}


def frame(head: bytes, body: bytes, tail: bytes, size: int = MAX_FRAME_BYTES) -> bytes:
    """One frame of about so many bytes."""
    return head + body * ((size - len(head) - len(tail)) // len(body)) + tail


def pieces_of(stream: bytes) -> list[bytes]:
    """What a connection is read in."""
    return [stream[begin : begin + PIECE] for begin in range(0, len(stream), PIECE)]


def read(reader: FrameReader, piece: bytes) -> None:
    """Read all messages that a piece completes."""
    reader.receive_data(piece)
    while reader.next_message() is not NEED_DATA:
        pass


def turns(stream: bytes, size: int = MAX_FRAME_BYTES) -> list[float]:
    """CPU seconds of each piece, up to a refusal."""
    reader = FrameReader(size + 1)
    read(reader, pickle.dumps(("name", "M"), 2) + b"\0")
    spent = []
    try:
        for piece in pieces_of(stream):
            began = time.process_time()
            try:
                read(reader, piece)
            finally:
                spent.append(time.process_time() - began)
    except WireError:
        pass
    return spent


def memory(stream: bytes) -> int:
    """The most bytes that a frame takes while it is read."""
    pieces = pieces_of(stream)
    tracemalloc.start()
    try:
        reader = FrameReader()
        read(reader, pickle.dumps(("name", "M"), 2) + b"\0")
        for piece in pieces:
            read(reader, piece)
        return tracemalloc.get_traced_memory()[1]
    except WireError:
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows() -> list[Row]:
    """The worst of all."""
    worst, dearest, largest = (0.0, ""), (0.0, ""), (0.0, "")
    for name, parts in FRAMES.items():
        spent = turns(frame(*parts))
        worst = max(worst, (max(spent), name))
        dearest = max(dearest, (sum(spent), name))
        stream = frame(*parts, size=2**20)
        largest = max(largest, (memory(stream) / len(stream), name))
    return [
        Row(
            f"the longest turn of {len(FRAMES)} hostile frames of 16 MiB ({worst[1]})",
            f"{1000 * worst[0]:.0f} ms of CPU",
            f"at most {1000 * TURN:.0f} ms",
            worst[0] <= TURN,
        ),
        Row(f"the dearest of these frames ({dearest[1]})", f"{dearest[0]:.1f} s of CPU"),
        Row(
            f"the most memory of such a frame of 1 MiB ({largest[1]})",
            f"{largest[0]:.1f} x its size",
            f"at most {MULTIPLE} x",
            largest[0] <= MULTIPLE,
        ),
    ]


if __name__ == "__main__":
    for title, given in FRAMES.items():
        times = turns(frame(*given))
        sys.stdout.write(f"{1000 * max(times):7.1f} ms  {sum(times):6.2f} s  {len(times):4}  {title}\n")
