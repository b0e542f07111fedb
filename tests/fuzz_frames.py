"""Coverage-guided fuzzing of the frame reader, by hand.

    pip install atheris
    python tests/fuzz_frames.py -max_total_time=600 [CORPUS_FOLDER]

Nothing but WireError may come out, and a stream must mean the same however it is cut.
"""

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports():
    from gateway.wire.errors import WireError
    from gateway.wire.frames import NEED_DATA, FrameReader
    from gateway.wire.scale import parse_line, read_lines

NAME = b'["name", "M"]\0'


def outcome(pieces: list[bytes]) -> tuple[list[str], bool]:
    """What a connection said, and whether it was refused."""
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
    """One input: its first byte is where the rest is cut."""
    if not data:
        return
    stream = NAME + data[1:]
    cut = data[0] % len(stream)
    whole = outcome([stream])
    if outcome([stream[:cut], stream[cut:]]) != whole:
        raise RuntimeError("it depends on where it is cut")
    if len(stream) < 200 and outcome([stream[index : index + 1] for index in range(len(stream))]) != whole:
        raise RuntimeError("it depends on being cut")
    list(read_lines(data + b"\n"))
    with contextlib.suppress(WireError):
        parse_line(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
