"""Coverage-guided fuzzing of the frame reader, by hand.

    pip install atheris
    python tests/support/fuzz_frames.py -max_total_time=600 [CORPUS_FOLDER]

Only WireError may be raised, and a stream must give the same messages at any cut.
"""

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

with atheris.instrument_imports():
    from gateway.wire.errors import WireError
    from gateway.wire.frames import NEED_DATA, FrameReader
    from gateway.wire.scale import parse_line, read_lines

NAME = b'["name", "M"]\0'


def outcome(pieces: list[bytes]) -> tuple[list[str], bool]:
    """Return the messages of a connection, and whether it was refused."""
    reader = FrameReader(100_000)
    said: list[str] = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (message := reader.next_message()) is not NEED_DATA:
                said.append(repr(message))
    except WireError:
        return said, True
    return said, False


def one(data: bytes) -> None:
    """Check one input; its first byte is the position of the cut."""
    if not data:
        return
    stream = NAME + data[1:]
    cut = data[0] % len(stream)
    whole = outcome([stream])
    if outcome([stream[:cut], stream[cut:]]) != whole:
        raise RuntimeError("the messages depend on the cut")
    if len(stream) < 200 and outcome([stream[index : index + 1] for index in range(len(stream))]) != whole:
        raise RuntimeError("it depends on being cut")
    list(read_lines(data + b"\n"))
    with contextlib.suppress(WireError):
        parse_line(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
