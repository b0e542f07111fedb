"""Templates of pickles: a match must equal the result of the pickle reader in every respect."""

import math
import pickle
import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire import frames as frames_module
from gateway.wire.errors import WireError
from gateway.wire.frames import FrameReader
from gateway.wire.messages import DataUpdate, message
from gateway.wire.pickles import PickleReader
from gateway.wire.templates import FrameTemplate, PartialMatch
from tests.unit.test_frames import NAME, Outcome, bytewise, cut, outcome, read_all, said

QUIET = settings(max_examples=200, deadline=None, derandomize=True, database=None)

LIMIT = 1_000_000

#: Protocols that write doubles as BINFLOAT.
BINARY = (1, 2, 3, 4, 5)


def update(*counts: int, protocol: int = 4, kind: str = "VIB", seed: int = 1) -> bytes:
    """Return a pickled message of sensors with so many samples each."""
    chance = random.Random(seed)
    data = {
        f"vib{number}": {"type": kind, "data": [chance.gauss(0.0, 1.0) for _ in range(count)]}
        for number, count in enumerate(counts)
    }
    return pickle.dumps(("DataUpdate", data), protocol)


def update_of(*samples: list[Any]) -> bytes:
    """Return a pickled message of sensors with these samples."""
    data = {f"vib{number}": {"type": "VIB", "data": each} for number, each in enumerate(samples)}
    return pickle.dumps(("DataUpdate", data))


def template_of(whole: bytes) -> FrameTemplate | None:
    reader = PickleReader(len(whole))
    assert reader.read(whole, 0) == len(whole)
    read = message(reader.value, len(whole))
    assert isinstance(read, DataUpdate)
    return FrameTemplate.of(read, reader.runs, whole)


def read_by_template(template: FrameTemplate | None, whole: bytes) -> Any:
    """Return the message that a template reads, or its result without a match."""
    assert template is not None
    found = template.read(whole + b"\0", 0, LIMIT)
    if not isinstance(found, tuple):
        return found
    read, end = found
    assert end == len(whole) + 1
    assert read.size == sum(len(sensor.samples) for sensor in read.sensors.values())
    return said(read)


def read_by_instructions(whole: bytes) -> Any:
    """Return the message that the pickle reader reads."""
    reader = PickleReader(len(whole))
    assert reader.read(whole, 0) == len(whole)
    return said(message(reader.value, len(whole)))


@pytest.fixture(params=BINARY)
def protocol(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def test_template_other_samples_of_the_same_sensors_match(protocol: int) -> None:
    # Protocol 1 appends a single number in another way.
    template = template_of(update(30, 2, 65, protocol=protocol))
    for counts in ((30, 2, 65), (30, 2, 65), (29, 3, 64), (1000, 128, 2), (64, 63, 66)):
        whole = update(*counts, protocol=protocol, seed=2)
        assert read_by_template(template, whole) == read_by_instructions(whole)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (update(3, 4, kind="TEMP"), "a type"),
        (update(3, 4, 5), "a sensor more"),
        (update(3), "a sensor less"),
        (update(3, 0), "none of one"),
        (update(3, 1), "a single one, which is appended in another way"),
        (update(3, 4, protocol=2), "a protocol"),
        (update(3, 1001), "more than the pickler writes at a time"),
        (update_of([1.5, 2], [1.0, 1.5]), "an int"),
        (update_of([1.5, None], [1.0, 1.5]), "None"),
        (pickle.dumps(("FaultDetect", {"score": 1.5, "threshold": 1.0})), "an event"),
        (pickle.dumps(("name", "M")), "a name"),
    ],
)  # fmt: skip
def test_template_other_message_does_not_match(other: bytes, why: str) -> None:
    assert read_by_template(template_of(update(3, 4)), other) is None, why


@pytest.mark.parametrize(
    "data",
    [
        {"v": {"type": "VIB", "data": []}},
        {},
        {"v": {"type": "VIB", "data": [1.5, 2.5], "more": 1.5}},
        {"v": {"type": "VIB", "data": [1, 2]}},
        {"v": {"type": "VIB", "data": [1.5, 2, 3.5]}},
        {"v": {"type": "VIB", "data": [1.5] * 1001}},
    ],
    ids=str,
)
def test_template_message_without_runs_of_doubles_has_none(data: Any) -> None:
    assert template_of(pickle.dumps(("DataUpdate", data))) is None


def number(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def by_hand(data: bytes) -> bytes:
    """Return a message whose dict of sensors is built by these instructions."""
    return b"\x80\x02X\x0a\x00\x00\x00DataUpdate" + data + b"\x86."


A, B, TYPE, DATA, VIB = (b"X" + struct.pack("<I", len(text)) + text for text in (b"a", b"b", b"type", b"data", b"VIB"))


def test_template_runs_in_another_order_than_sensors_have_none() -> None:
    def run(value: float, index: bytes) -> bytes:
        return b"](" + number(value) + number(value) + b"eq" + index

    begin, more, end = b"}(" + TYPE + VIB, b"X\x01\0\0\0x", b"u"
    straight = b"}(" + A + begin + DATA + run(1.0, b"\1") + end + B + begin + DATA + run(2.0, b"\2") + end + b"u"
    assert template_of(by_hand(straight)) is not None
    # The second sensor's samples are already in the first one.
    crossed = b"}(" + A + begin + more + run(1.0, b"\1") + DATA + run(2.0, b"\2") + end
    crossed += B + begin + DATA + b"h\1" + end + b"u"
    assert read_by_instructions(by_hand(crossed))[1][1] == ("b", "VIB", ["1.0", "1.0"])
    assert template_of(by_hand(crossed)) is None
    # Two sensors share one list.
    shared = b"}(" + A + begin + DATA + run(1.0, b"\1") + end + B + begin + DATA + b"h\1" + end + b"u"
    assert template_of(by_hand(shared)) is None


def test_template_repeated_key_has_none() -> None:
    sensor = b"}(" + TYPE + VIB + DATA + b"](" + number(1.0) + number(1.5) + b"eu"
    assert template_of(by_hand(b"}(" + A + sensor + B + sensor + b"u")) is not None
    assert template_of(by_hand(b"}(" + A + sensor + A + sensor + b"u")) is None


def text_of(text: bytes) -> bytes:
    """Return a str of Python 2."""
    return b"U" + bytes([len(text)]) + text


def test_template_frame_opcode_in_a_memo_index_is_not_a_length() -> None:
    """The byte is the index of a memo, followed by the opcode of a text and its length."""
    sensor = b"}(" + text_of(b"type") + text_of(b"VIB") + text_of(b"data") + b"](" + number(1.0) + number(2.0) + b"eu"
    rest = text_of(b"DataUpdate") + b"s" + text_of(b"data") + b"}" + text_of(b"a") + sensor + b"ss."
    good, bad = (b"}q\x95\x8d" + struct.pack("<Q", length) + b"event" + rest for length in (5, 6))
    assert read_by_template(template_of(good), good) == read_by_instructions(good)
    # A text longer by one byte would include an opcode.
    assert read_by_template(template_of(good), bad) is None
    with pytest.raises(WireError):
        read_by_instructions(bad)


def test_template_samples_at_the_beginning_are_read() -> None:
    """The samples are an unused key, and are read again from the memo."""
    key = b"}(" + number(1.0) + number(2.0) + b"tq\x05N"
    sensor = b"}(" + text_of(b"type") + text_of(b"VIB") + text_of(b"data") + b"h\x05u"
    whole = key + b"s(" + text_of(b"event") + text_of(b"DataUpdate") + text_of(b"data") + b"}" + text_of(b"a") + sensor
    whole += b"su."
    expected = ("DataUpdate", [("a", "VIB", ["1.0", "2.0"])])
    assert read_by_instructions(whole) == expected
    assert outcome([NAME + whole + b"\0"]) == ([("name", "M"), expected], "open")


def test_template_number_from_the_memo_has_none() -> None:
    run = b"](" + number(1.0) + number(1.5)
    sensor = b"}(" + TYPE + VIB + DATA
    assert template_of(by_hand(b"}(" + A + sensor + run + b"q\1eu" + b"u")) is not None
    # The list is longer than its run.
    assert template_of(by_hand(b"}(" + A + sensor + run + b"q\1h\1eu" + b"u")) is None


doubles = st.lists(
    st.lists(st.floats(width=64) | st.sampled_from([math.nan, math.inf, -0.0, 5e-324]), min_size=2, max_size=100),
    min_size=1,
    max_size=5,
)


@given(st.lists(doubles, min_size=1, max_size=6), st.sampled_from(BINARY), st.lists(st.integers(0, 10_000)))
@QUIET
def test_frame_reader_with_and_without_templates_gives_the_same(
    sent: list[list[list[float]]], protocol: int, places: list[int]
) -> None:
    stream = NAME + b"".join(
        pickle.dumps(
            ("DataUpdate", {f"s{index}": {"type": "VIB", "data": data} for index, data in enumerate(sensors)}), protocol
        )
        + (b"\0", b"\\o")[number % 2]
        for number, sensors in enumerate(sent)
    )
    expected = without_templates([stream])
    assert outcome([stream]) == expected
    assert outcome(cut(stream, places)) == expected
    assert outcome(bytewise(stream)) == expected


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3), st.lists(st.integers(0, 2000)))
@QUIET
def test_frame_reader_changed_bytes_give_the_same_with_and_without_templates(
    changes: list[tuple[int, int]], places: list[int]
) -> None:
    known = update(5, 3) + b"\\o"
    changed = bytearray(known)
    for place, value in changes:
        changed[place % len(changed)] = value
    stream = NAME + known + bytes(changed) + known
    expected = without_templates([stream])
    assert outcome([stream]) == expected
    assert outcome(cut(stream, places)) == expected


def without_templates(pieces: list[bytes]) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "_MAX_ATTEMPTS", 0)
        return outcome(pieces)


def test_frame_reader_later_messages_match_at_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = b"".join(update(30, 40, seed=seed) + b"\\o" for seed in range(20))
    for pieces in ([stream], bytewise(stream), cut(stream, range(0, len(stream), 100))):
        reader = FrameReader()
        assert len(list(read_all(reader, NAME + update(30, 40) + b"\\o"))) == 2
        with monkeypatch.context() as patch:
            patch.setattr(frames_module, "PickleReader", _no_more)
            assert sum(len(list(read_all(reader, piece))) for piece in pieces) == 20


def test_frame_reader_message_received_in_pieces_becomes_template(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FrameReader()
    for piece in bytewise(NAME + update(30, 40) + b"\\o"):
        list(read_all(reader, piece))
    monkeypatch.setattr(frames_module, "PickleReader", _no_more)
    assert len(list(read_all(reader, update(31, 39) + b"\\o"))) == 1


def test_frame_reader_several_templates_match(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [update(3, kind=kind) + b"\\o" for kind in ("VIB", "TEMP", "X", "Y")]
    reader = FrameReader()
    list(read_all(reader, NAME + b"".join(kinds)))
    monkeypatch.setattr(frames_module, "PickleReader", _no_more)
    assert len(list(read_all(reader, b"".join(kinds * 3)))) == 12


def _no_more(limit: int) -> PickleReader:
    raise AssertionError("it is read instruction by instruction")


def test_frame_reader_attempts_without_template_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(PickleReader):
        def __init__(self, limit: int) -> None:
            made.append(limit)
            super().__init__(limit)

    monkeypatch.setattr(frames_module, "PickleReader", Counted)
    reader = FrameReader()
    ints = pickle.dumps(("DataUpdate", {"v": {"type": "VIB", "data": [1, 2, 3]}})) + b"\0"
    assert len(list(read_all(reader, NAME + ints * 100))) == 101
    assert len(made) == 101 + frames_module._MAX_ATTEMPTS


def test_frame_reader_templates_are_bounded() -> None:
    reader = FrameReader()
    list(read_all(reader, NAME))
    for number in range(100):
        wide = {f"{number} {index}": {"type": "VIB", "data": [1.5, 2.5]} for index in range(100)}
        list(read_all(reader, pickle.dumps(("DataUpdate", wide)) + b"\0"))
    assert 0 < sum(template.weight for template in reader._templates) <= frames_module._MAX_TEMPLATE_BYTES


def test_frame_reader_wrong_pickle_length_delays_nothing() -> None:
    whole = bytearray(update(5, 6))
    whole[3:11] = struct.pack("<Q", 60_000)
    reader = FrameReader()
    assert len(list(read_all(reader, NAME + update(5, 6) + b"\0"))) == 2
    assert len(list(read_all(reader, bytes(whole) + b"\0"))) == 1


def test_frame_reader_matched_frame_keeps_max_bytes() -> None:
    limit = len(update(10)) + 2
    reader = FrameReader(limit)
    assert len(list(read_all(reader, NAME + (update(10) + b"\\o") * 2))) == 3
    with pytest.raises(Exception, match="more than"):
        list(read_all(reader, update(11) + b"\\o"))


def test_template_partial_match_continues() -> None:
    whole = update(50, 60) + b"\0"
    template = template_of(whole[:-1])
    assert template is not None
    partial = template.read(whole[:600], 0, LIMIT)
    assert isinstance(partial, PartialMatch)
    assert list(partial.sensors) == ["vib0"]
    known = template.read(whole, 0, LIMIT, partial)
    assert isinstance(known, tuple)
    assert said(known[0]) == read_by_instructions(whole[:-1])


def test_frame_like_the_last_one_with_too_large_a_length_is_refused() -> None:
    reader = FrameReader(1000)
    reader.receive_data(pickle.dumps(("name", "Saw"), 4) + b"\0")
    reader.next_message()
    frame = pickle.dumps(("DataUpdate", {"vib": {"type": "VIB", "data": [1.0, 2.0]}}), 4)
    for _ in range(2):
        reader.receive_data(frame + b"\0")
        assert isinstance(reader.next_message(), DataUpdate)
    # Bytes 3 to 10 are the length of the pickle's frame.
    reader.receive_data(frame[:3] + (2**40).to_bytes(8, "little") + frame[11:] + b"\0")
    with pytest.raises(WireError):
        reader.next_message()
