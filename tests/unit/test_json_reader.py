"""Long JSON is read as it arrives, and gives the same as short JSON, which is read when it is complete."""

import itertools
import json
import math
import tracemalloc
from array import array
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.wire import frames as frames_module
from gateway.wire.errors import WireError
from gateway.wire.frames import FrameReader
from gateway.wire.json_reader import MAX_TEXTS, JsonReader, json_value
from gateway.wire.messages import DataUpdate, message
from gateway.wire.values import DictValue, ListValue, UnsupportedValue, Value
from tests.unit.test_frames import read_all

QUIET = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAME = b'["name", "M"]\0'


def shown(value: Value) -> Any:
    """Return a value in a form that compares; a list is cut after the first item that is not a number."""
    match value:
        case ListValue(others=[first, *_]) if any(isinstance(other, UnsupportedValue) for other in value.others):
            return [*map(repr, value.numbers[: value.odd_at]), shown(first)]
        case ListValue():
            return [list(map(repr, value.numbers)), value.odd_at, [shown(other) for other in value.others]]
        case DictValue():
            return {name: shown(item) for name, item in value.items.items()}
        case UnsupportedValue():
            return ("odd", value.word)
        case array():
            return list(map(repr, value))
    return value


def read_whole(text: bytes) -> Any:
    try:
        return shown(json_value(text))
    except WireError:
        return "refused"


def read_in_pieces(text: bytes, places: list[int]) -> Any:
    reader = JsonReader()
    edges = [*sorted({place % (len(text) + 1) for place in places}), len(text)]
    pos = 0
    try:
        for edge in edges:
            pos = reader.read(text, pos, edge)
    except WireError:
        return "refused"
    return shown(reader.value) if reader.done and pos == len(text) else "refused"


def agree(text: bytes, places: list[int]) -> None:
    whole = read_whole(text)
    assert read_in_pieces(text, places) == whole
    assert read_in_pieces(text, list(range(len(text)))) == whole
    assert read_in_pieces(text, []) == whole


numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(-(10**20), 10**20),
    st.sampled_from([0, -0.0, 1e300, 1e-300, math.inf, -math.inf, math.nan, 10**308, 2 * 10**308, -(10**400)]),
)
texts = st.one_of(st.text(max_size=8), st.sampled_from(["", "\n", '"', "\\", "😀", "\ud83d", "진동", "a" * 100]))
scalars = st.one_of(numbers, numbers, texts, st.booleans(), st.none())


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=4) | st.lists(numbers, max_size=20)


values = containers(scalars | containers(scalars | containers(scalars | containers(scalars | containers(scalars)))))
places = st.lists(st.integers(0, 2**31), max_size=8)


@QUIET
@given(value=values, places=places, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_json_reader_any_value_in_pieces_gives_the_same(
    value: Any, places: list[int], indent: int | None, ascii_only: bool
) -> None:
    agree(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"), places)


TOKENS = (
    *("[", "]", "{", "}", ",", ":", '"a"', '"', "\\", " ", "\n", "\t", "\r", "\x0b", "\x7f"),
    *("1", "0", "-", "-0", "-0.0", "1.5", "1.", ".5", "01", "1e5", "1e", "1E+2", "1e-0", "1e999", "-1e999", "9" * 309),
    *("true", "false", "null", "NaN", "Infinity", "-Infinity", "-NaN", "nul", "tru", "inf", "+1", "0x1", "1_0"),
    *('"\\n"', '"\\x"', '"\\u12"', '"\\ud83d\\ude00"', '"\x01"', '"é"', "é", "1,2,3,", "1,true,2", "[1,2]", '{"a":1}'),
)


@settings(QUIET, max_examples=1500)
@given(parts=st.lists(st.sampled_from(TOKENS), max_size=12), places=places, wrapped=st.booleans())
def test_json_reader_any_tokens_in_pieces_give_the_same(parts: list[str], places: list[int], wrapped: bool) -> None:
    text = "".join(parts)
    agree((f"[{text}]" if wrapped else f"[{text}" if text[:1] not in "[{" else text).encode(), places)


@QUIET
@given(value=values, place=st.integers(0, 2**31), new=st.binary(min_size=1, max_size=2), places=places)
def test_json_reader_changed_json_in_pieces_gives_the_same(
    value: Any, place: int, new: bytes, places: list[int]
) -> None:
    text = json.dumps(value).encode()
    at = place % len(text)
    changed = text[:at] + new.replace(b"\0", b"0") + text[at + len(new) :]
    if changed[:1] in {b"[", b"{"}:
        agree(changed, places)


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"x" * 20_000 + b'", 1]',
        b'["' + b"\\u00e9" * 5000 + b'", 1]',
        b'{"' + "é".encode() * 9000 + b'": 1}',
        b'["' + b"x" * 8190 + b'"]',
        b'["' + b"x" * 8191 + b'"]',
    ],
)
def test_json_reader_long_text_is_skipped_and_counts_as_text(text: bytes) -> None:
    for pieces in ([], list(range(0, len(text), 100)), list(range(0, len(text), 7001))):
        found = read_in_pieces(text, pieces)
        assert found != "refused"
    assert read_whole(text) != "refused"


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\n", b"\\x", b"\\u12g4", b"\xc3"])
@pytest.mark.parametrize("at", [0, 8191, 8192, 9000, 19_999])
def test_json_reader_invalid_long_text_is_refused_at_any_cut(bad: bytes, at: int) -> None:
    text = b'["' + b"x" * at + bad + b"x" * (20_000 - at) + b'"]'
    for pieces in ([], list(range(0, len(text), 1000)), list(range(len(text)))):
        assert read_in_pieces(text, pieces) == "refused"


@pytest.mark.parametrize("digits", [4299, 4300, 4301, 5000, 16_000, 40_000])
def test_json_reader_numbers_of_many_digits_are_read(digits: int) -> None:
    text = b"[1," + b"9" * digits + b",2]"
    assert (read_whole(text) == "refused") is (digits > 4300)
    for pieces in ([], list(range(0, len(text), 1000))):
        assert read_in_pieces(text, pieces) == read_whole(text)


# -- through the frame reader, which decides by the length


def long_frame(samples: list[str]) -> bytes:
    data = ",".join(samples)
    return f'["DataUpdate", {{"s": {{"type": "VIB", "data": [{data}]}}}}]'.encode() + b"\0"


@pytest.mark.parametrize("size", [1, 100, 4096, 65_536, 10**7])
def test_json_reader_long_frame_keeps_all_samples_in_order(size: int) -> None:
    stream = NAME + long_frame([str(number / 8) for number in range(60_000)]) + NAME
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)] if size > 1 else [stream]
    reader = FrameReader()
    found = [message for piece in pieces for message in read_all(reader, piece)]
    assert isinstance(found[1], DataUpdate)
    assert found[1].sensors["s"].samples == array("d", [number / 8 for number in range(60_000)])
    assert len(found) == 3


@pytest.mark.parametrize("behind", [b"x", b"]", b"[]", b"1"])
def test_json_reader_long_frame_with_trailing_bytes_is_refused(behind: bytes) -> None:
    with pytest.raises(WireError):
        list(read_all(FrameReader(), NAME + long_frame(["1"] * 60_000)[:-1] + behind + b"\0"))


def test_json_reader_incomplete_long_frame_is_refused() -> None:
    with pytest.raises(WireError, match="too early"):
        list(read_all(FrameReader(), NAME + long_frame(["1"] * 60_000)[:-3] + b"\0"))


@pytest.mark.parametrize("more", [0, 1])
def test_json_reader_frames_around_the_threshold_are_read(more: int) -> None:
    head, tail = b'["DataUpdate", {"s": {"type": "VIB", "data": [1', b"]}}]"
    text = head + b" " * (frames_module._MAX_WHOLE_JSON + more - len(head) - len(tail)) + tail
    for size in (len(text) + 1, 1000):
        reader = FrameReader()
        stream = NAME + text + b"\0"
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        _, update = [message for piece in pieces for message in read_all(reader, piece)]
        assert isinstance(update, DataUpdate)


def test_json_reader_too_many_texts_are_refused() -> None:
    for count in (MAX_TEXTS, MAX_TEXTS + 1):
        text = b"[" + b",".join([b'"abcdefgh"'] * count) + b"]"
        assert (read_in_pieces(text, []) == "refused") is (count > MAX_TEXTS)


def test_json_reader_long_frame_needs_little_memory() -> None:
    text = long_frame(["1"] * 2_000_000)
    pieces = [text[at : at + 65_536] for at in range(0, len(text), 65_536)]
    reader = FrameReader()
    list(read_all(reader, NAME))
    tracemalloc.start()
    found = [len(update.sensors["s"].samples) for piece in pieces for update in read_all(reader, piece)]  # type: ignore[union-attr]  # it is one
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [2_000_000]
    # Eight bytes for a sample of two, an array that grows ahead, and a piece with its tokens.
    assert peak < 9 * len(text)


def test_json_reader_invalid_sample_is_reported_with_its_index() -> None:
    for samples in (["1", "null", "2"], ["1"] * 40_000 + ["null"] + ["1"] * 40_000 + ["true"]):
        text = long_frame(samples)[:-1]
        for value in (json_value(text), _streamed(text)):
            found = message(value, len(text))
            assert f"sample {samples.index('null')} is None" in found.reason  # type: ignore[union-attr]  # it is one


def _streamed(text: bytes) -> Value:
    reader = JsonReader()
    reader.read(text, 0, len(text))
    return reader.value


# -- cut around the length from which a frame is read as it arrives


def crossing_frame(before: int, tokens: str) -> bytes:
    """Return a frame with tokens in a list of samples, the first of them so many bytes before the threshold."""
    head = '["DataUpdate", {"s": {"type": "VIB", "data": ['
    filler = frames_module._MAX_WHOLE_JSON - before - len(head)
    head += "12345.678," * (filler // 10) + " " * (filler % 10)
    return f'{head}{tokens}]}}, "t": {{"type": "VIB", "data": [1]}}}}]'.encode() + b"\0"


CROSSING = {
    "numbers": (30, "-1234567.25,0.000123456789,1e-300,-987654321.125,33333333333"),
    "one long number": (300, "0." + "123456789" * 60 + ",7"),
    "a long name": (30, '1]}, "온도' + "n" * 55 + '": {"type": "VIB", "data": [2'),
    "an escaped name": (40, r'1]}, "\uc628\ub3c4\u0041\ud55c\uae00\u0042\u0043": {"type": "VIB", "data": [2'),
    "a text with escapes": (40, r'1], "note": "\"[{\\ \ud83d\ude00\n\\\" ]} \\", "more": [true, null, false, 2'),
    "a long text": (4100, '1], "note": "' + r"\\\"\u00e9x" * 1000 + '", "more": [2'),
}


def read_frames(pieces: list[bytes]) -> list[Any]:
    reader = FrameReader()
    return [repr(message) for piece in [NAME, *pieces] for message in read_all(reader, piece)]


@pytest.mark.parametrize("form", CROSSING)
def test_json_reader_frame_cut_around_the_threshold_keeps_all_samples(form: str) -> None:
    before, tokens = CROSSING[form]
    stream = crossing_frame(before, tokens)
    whole = repr(message(json_value(stream[:-1]), len(stream) - 1))
    assert whole.startswith("DataUpdate")
    threshold = frames_module._MAX_WHOLE_JSON
    span = range(threshold - 50, min(threshold + 50, len(stream)))
    cuts = [[at, at + 2] for at in span]
    cuts += [list(range(span.start, span.stop, size)) for size in range(1, 21)]
    for places in cuts:
        edges = [0, *places, len(stream)]
        found = read_frames([stream[begin:end] for begin, end in itertools.pairwise(edges)])
        assert found[1:] == [whole], places
