"""Pickled numbers and containers in forms that picklers seldom write."""

import pickle
import struct

import pytest

from gateway.wire.errors import WireError
from gateway.wire.frames import FrameReader
from gateway.wire.json_reader import MAX_TEXTS, json_value
from gateway.wire.messages import DataUpdate
from gateway.wire.values import MAX_CONTAINERS
from tests.unit.test_frames import read_all

NAME = pickle.dumps(("name", "M"), 2) + b"\0"


def refusal(frame: bytes) -> str:
    """Return the reason why a connection is closed for a frame behind its name."""
    reader = FrameReader()
    with pytest.raises(WireError) as caught:
        list(read_all(reader, NAME + frame + b"\0"))
    return str(caught.value)


def update_frame(numbers: bytes) -> bytes:
    """Return the frame of a message whose list of samples consists of these pickled numbers."""
    head = b"\x80\x02X\x0a\x00\x00\x00DataUpdate}X\x01\x00\x00\x00v}(X\x04\x00\x00\x00typeX\x03\x00\x00\x00VIB"
    return head + b"X\x04\x00\x00\x00data](" + numbers + b"eus\x86.\0"


def samples_of(*pieces: bytes) -> list[list[float]]:
    """Return the samples of each message of a stream that arrives in pieces."""
    reader = FrameReader()
    messages = [message for piece in (NAME, *pieces) for message in read_all(reader, piece)]
    return [update.sensors["v"].samples.tolist() for update in messages if isinstance(update, DataUpdate)]


@pytest.mark.parametrize(
    ("numbers", "samples"),
    [
        (b"F1.5\nG" + struct.pack(">d", 2.5), [1.5, 2.5]),
        (b"F1.5\nG" + struct.pack(">d", 2.5) + b"M\x01\x02", [1.5, 2.5, 513.0]),
        (b"K\x07G" + struct.pack(">d", 2.5) + b"J\x01\x00\x00\x00", [7.0, 2.5, 1.0]),
        (b"F1.5\n\x8a\x0a" + (300).to_bytes(10, "little", signed=True), [1.5, 300.0]),
    ],
)
def test_numbers_of_several_forms_are_read_wherever_the_stream_is_cut(numbers: bytes, samples: list[float]) -> None:
    frame = update_frame(numbers)
    for cut in range(1, len(frame)):
        assert samples_of(frame[:cut], frame[cut:]) == [samples], cut


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"(F1.2.3\nF1\nt.", "an invalid number"),
        (b"G" + struct.pack(">d", 1.0) + b"G" + struct.pack(">d", 2.0) + b".", "no value or with several"),
        (b"(S'" + b"a" * 70_000 + b"'\n.", "text in quotes without end"),
        (b"}]K\x01s.", "a dict with a list or a dict for a key"),
        (b"}}K\x01s.", "a dict with a list or a dict for a key"),
    ],
)
def test_pickle_of_no_plain_message_is_refused_with_the_reason(frame: bytes, reason: str) -> None:
    assert reason in refusal(frame)


def test_short_json_with_too_many_containers_or_texts_is_refused() -> None:
    with pytest.raises(WireError):
        json_value(b"[" * (MAX_CONTAINERS + 1))
    with pytest.raises(WireError):
        json_value(b"[" + b'"",' * (MAX_TEXTS + 1) + b"1]")


def test_message_of_a_known_form_without_samples_is_read() -> None:
    double = b"G" + struct.pack(">d", 1.0)
    frames = [update_frame(double * 2), update_frame(double * 2), update_frame(b""), update_frame(double)]
    assert samples_of(b"".join(frames)) == [[1.0, 1.0], [1.0, 1.0], [], [1.0]]
