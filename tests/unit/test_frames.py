"""Frames of DAQ programs: the same messages at any cut, against pickle and json, and the cost of hostile frames."""

import itertools
import json
import math
import pickle
import random
import struct
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.model.names import is_name
from gateway.wire.errors import WireError
from gateway.wire.frames import MAX_FRAME_BYTES, NEED_DATA, FrameReader
from gateway.wire.messages import DaqMessage, DataUpdate, FaultDetect, InvalidMessage, Name

CASES = Path(__file__).parent.parent / "cases" / "daq"
INDEX: dict[str, dict[str, Any]] = json.loads((CASES / "index.json").read_text("utf-8"))

NAME = pickle.dumps(("name", "M"), 2) + b"\0"
FAULT = pickle.dumps(("FaultDetect", {"score": 1.5, "threshold": 1.0}), 2) + b"\0"

#: Maximum bytes of one read: Twisted's ``tcp.Connection.bufferSize``.
CHUNK = 65536

QUIET = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

Said: TypeAlias = tuple[Any, ...]
Outcome: TypeAlias = tuple[list[Said], str]

DROPPED: Said = ("dropped",)


# -- messages in a form that compares: NaN equals NaN, and 0.0 is not -0.0


def said(message: DaqMessage) -> Said:
    match message:
        case Name(machine=machine):
            return ("name", machine)
        case DataUpdate(sensors=sensors):
            assert all(type(sensor.samples) is array and sensor.samples.typecode == "d" for sensor in sensors.values())
            return ("DataUpdate", [(name, sensor.type, _numbers(sensor.samples)) for name, sensor in sensors.items()])
        case FaultDetect(score=score, threshold=threshold):
            return ("FaultDetect", _numbers([score, threshold]))
        case InvalidMessage(reason=reason):
            assert reason
            return DROPPED
    raise AssertionError(f"{message!r} is no message")


def meant(value: Any) -> Said:
    """Return the message that a value of ``pickle.loads`` or ``json.loads`` stands for by the contract."""
    match value:
        case (str(event), data) if isinstance(value, tuple | list):
            pass
        case {"event": str(event), "data": data}:
            pass
        case _:
            return DROPPED
    match event, data:
        case "name", str(machine) if is_name(machine):
            return ("name", machine)
        case "DataUpdate", dict(sensors):
            found = [_sensor(name, sensor) for name, sensor in sensors.items()]
            taken = [sensor for sensor in found if sensor is not None]
            return ("DataUpdate", taken) if taken or not found else DROPPED
        case "FaultDetect", {"score": score, "threshold": threshold}:
            if _is_number(score) and _is_number(threshold) and math.isfinite(score) and math.isfinite(threshold):
                return ("FaultDetect", _numbers([score, threshold]))
    return DROPPED


def _sensor(name: Any, sensor: Any) -> Said | None:
    match sensor:
        case {"type": str(kind), "data": list() | tuple() as samples} if isinstance(name, str) and is_name(name):
            if len(kind) <= 64 and all(map(_is_number, samples)):
                return (name, kind, _numbers(samples))
    return None


def _is_number(value: Any) -> bool:
    try:
        return type(value) in {int, float} and float(value) is not None
    except OverflowError:
        return False


def _numbers(samples: Iterable[float]) -> list[str]:
    return [repr(float(sample)) for sample in samples]


def read_all(reader: FrameReader, data: bytes) -> Iterator[DaqMessage]:
    """Give a reader the bytes of one read; return the messages that they complete."""
    reader.receive_data(data)
    while (message := reader.next_message()) is not NEED_DATA:
        yield message


def read_one(reader: FrameReader) -> DaqMessage:
    """Return the next message, which must be complete."""
    message = reader.next_message()
    assert message is not NEED_DATA
    return message


def outcome(pieces: Iterable[bytes], limit: int = MAX_FRAME_BYTES, *, reader: FrameReader | None = None) -> Outcome:
    """Return the messages of one connection that is received in pieces, and whether it is refused."""
    reader = reader or FrameReader(limit)
    found: list[Said] = []
    try:
        for piece in pieces:
            for message in read_all(reader, piece):
                found.append(said(message))  # noqa: PERF401 - messages before an error count
    except WireError:
        return found, "refused"
    return found, "open"


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def chunks(stream: bytes, size: int = CHUNK) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def frame(value: Any, protocol: int = 2, separator: bytes = b"\0") -> bytes:
    return pickle.dumps(value, protocol) + separator


# -- the cases


@pytest.fixture(params=INDEX)
def case(request: pytest.FixtureRequest) -> tuple[bytes, Outcome]:
    """Return a stream and its expected outcome."""
    expected = INDEX[request.param]
    stream = (CASES / f"{request.param}.bin").read_bytes()
    messages = [meant(message) for message in expected["messages"]]
    assert DROPPED not in messages
    return stream, (messages, expected.get("then", "open"))


def test_cases_each_has_a_file() -> None:
    assert {path.stem for path in CASES.glob("*.bin")} == set(INDEX)
    assert len(INDEX) > 40


def test_frame_reader_case_whole_gives_expected_messages(case: tuple[bytes, Outcome]) -> None:
    stream, expected = case
    assert outcome([stream]) == expected


def test_frame_reader_case_byte_by_byte_gives_expected_messages(case: tuple[bytes, Outcome]) -> None:
    stream, expected = case
    assert outcome(bytewise(stream)) == expected


def test_frame_reader_case_received_before_any_read_gives_expected_messages(case: tuple[bytes, Outcome]) -> None:
    stream, expected = case
    reader = FrameReader()
    for piece in chunks(stream, len(stream) // 3 + 1):
        reader.receive_data(piece)
    assert outcome([b""], reader=reader) == expected


def test_frame_reader_case_with_empty_reads_gives_expected_messages(case: tuple[bytes, Outcome]) -> None:
    stream, expected = case
    pieces = [part for piece in chunks(stream, len(stream) // 7 + 1) for part in (piece, b"")]
    assert outcome(pieces) == expected


@pytest.mark.parametrize("seed", range(8))
def test_frame_reader_case_in_random_pieces_gives_expected_messages(case: tuple[bytes, Outcome], seed: int) -> None:
    stream, expected = case
    dice = random.Random(seed)
    places = [dice.randrange(len(stream) + 1) for _ in range(dice.choice([1, 2, 10, 100]))]
    assert outcome(cut(stream, places)) == expected


@pytest.mark.parametrize(
    ("trailing", "more", "then"),
    [
        (FAULT, [("FaultDetect", ["1.5", "1.0"])], "open"),
        (b'["FaultDetect", {"score": 1.5, "threshold": 1}]\0' + FAULT, [("FaultDetect", ["1.5", "1.0"])] * 2, "open"),
        (FAULT[:-1], [], "open"),
        (FAULT[:9], [], "open"),
        (FAULT[:-1] + b"\\", [], "open"),
        (b'["FaultDetect"', [], "open"),
        (NAME, [DROPPED], "open"),
        (FAULT[:-1] + b"\\oc", [("FaultDetect", ["1.5", "1.0"])], "refused"),
        (b"\0", [], "refused"),
        (b"not a frame", [], "refused"),
        (b"[not JSON\0", [], "refused"),
        (b"\r\n", [], "open"),
        (b" \t\r\n" + FAULT + b"\r\n" + FAULT, [("FaultDetect", ["1.5", "1.0"])] * 2, "open"),
        (b'\xef\xbb\xbf["FaultDetect", {"score": 1.5, "threshold": 1}]\0', [("FaultDetect", ["1.5", "1.0"])], "open"),
    ],
)
def test_frame_reader_case_with_trailing_data_gives_expected_messages(
    case: tuple[bytes, Outcome], trailing: bytes, more: list[Said], then: str
) -> None:
    stream, (messages, end) = case
    expected = (messages, "refused") if end == "refused" else (messages + more, then)
    assert outcome([stream + trailing]) == expected
    assert outcome([stream, *bytewise(trailing)]) == expected
    # The end of the case and the beginning of the trailing data in one piece.
    assert outcome([stream[:-2], stream[-2:] + trailing[:2], trailing[2:]]) == expected


# -- against pickle.loads


def plain_text(max_size: int) -> st.SearchStrategy[str]:
    # Lone surrogates are not text; each protocol writes them differently.
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


names = st.text("abzAZ09 _-.:가쇼Ωя٣\U00010400", min_size=1, max_size=20).filter(is_name)
numbers = st.one_of(
    st.floats(),
    st.integers(-(2**33), 2**33),
    st.integers(-(2**1023), 2**1023),
    st.sampled_from([113.73437504284085, 0.00023163659261659058, 0, 255, 256, 65535, 65536, -1, 2**31, -(2**31)]),
)
sensors = st.fixed_dictionaries(
    {
        "type": st.one_of(st.sampled_from(["VIB", "TEMP"]), plain_text(64).filter(str.isprintable)),
        "data": st.one_of(st.lists(numbers, max_size=30), st.lists(numbers, max_size=30).map(tuple)),
    }
)
payloads = st.one_of(
    st.tuples(st.just("DataUpdate"), st.dictionaries(names, sensors, max_size=4)),
    st.tuples(
        st.just("FaultDetect"),
        st.fixed_dictionaries({"score": st.floats() | st.integers(), "threshold": st.floats() | st.integers()}),
    ),
)
messages = st.one_of(payloads, payloads.map(list), payloads.map(lambda pair: {"event": pair[0], "data": pair[1]}))
separators = st.sampled_from([b"\0", b"\\o"])
places = st.lists(st.integers(0, 2**31), max_size=12)


@QUIET
@given(
    name=names,
    sent=st.lists(st.tuples(messages, st.integers(0, 5), separators), max_size=4),
    first=st.tuples(st.integers(0, 5), separators),
    places=places,
)
def test_frame_reader_pickles_equal_pickle_loads(
    name: str, sent: list[tuple[Any, int, bytes]], first: tuple[int, bytes], places: list[int]
) -> None:
    pickles = [(pickle.dumps(("name", name), first[0]), first[1])]
    pickles += [(pickle.dumps(value, protocol), separator) for value, protocol, separator in sent]
    stream = b"".join(text + separator for text, separator in pickles)
    expected = [meant(pickle.loads(text)) for text, _ in pickles]
    assert outcome(cut(stream, places)) == (expected, "open")
    assert outcome([stream]) == (expected, "open")
    assert outcome(bytewise(stream)) == (expected, "open")


@QUIET
@given(sent=st.lists(messages, min_size=1, max_size=3), places=places, ascii_only=st.booleans())
def test_frame_reader_json_equals_json_loads(sent: list[Any], places: list[int], ascii_only: bool) -> None:
    frames = [json.dumps(value, ensure_ascii=ascii_only) for value in sent]
    stream = NAME + b"".join(text.encode() + b"\0" for text in frames)
    expected = [("name", "M"), *(meant(json.loads(text)) for text in frames)]
    assert outcome(cut(stream, places)) == (expected, "open")
    assert outcome([stream]) == (expected, "open")


@pytest.mark.parametrize("protocol", range(6))
def test_frame_reader_long_lists_keep_all_samples(protocol: int) -> None:
    # The pickler appends 1000 at a time, and sets 1000 items at a time.
    value = ("DataUpdate", {f"s{i}": {"type": "VIB", "data": [0.1 * j for j in range(i)]} for i in (0, 1, 999, 2500)})
    stream = NAME + frame(value, protocol, b"\\o")
    assert outcome(chunks(stream, 1000)) == ([("name", "M"), meant(value)], "open")
    many = ("DataUpdate", {f"s{i}": {"type": "VIB", "data": [i]} for i in range(2001)})
    assert outcome(chunks(NAME + frame(many, protocol), 1000)) == ([("name", "M"), meant(many)], "open")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64),
    st.floats(),
    plain_text(30),
    st.sampled_from(["name", "DataUpdate", "FaultDetect", "event", "data", "type", "score", "threshold", "VIB"]),
)
wrong_keys = st.one_of(plain_text(5), st.integers(), st.floats(), st.none(), st.booleans())


def containers(inner: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = wrong_keys) -> st.SearchStrategy[Any]:
    special = st.sampled_from(["type", "data", "score", "threshold", "event"])
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys | special, inner, max_size=4),
    )


#: Lists in dicts in dicts in tuples, as deep as messages go, and anything within.
shallow = scalars | containers(scalars | containers(scalars | containers(scalars | containers(scalars))))
half_right = st.one_of(
    shallow,
    st.tuples(st.sampled_from(["name", "DataUpdate", "FaultDetect", "other"]), scalars | containers(scalars)),
    st.tuples(st.just("DataUpdate"), st.dictionaries(names | wrong_keys, sensors | containers(scalars), max_size=3)),
    st.tuples(st.just("FaultDetect"), st.fixed_dictionaries({"score": scalars}, optional={"threshold": scalars})),
    st.tuples(st.just("DataUpdate"), st.just({}), scalars),
)


@QUIET
@given(value=half_right, protocol=st.integers(0, 5), places=places)
def test_frame_reader_invalid_message_is_dropped_and_reading_continues(
    value: Any, protocol: int, places: list[int]
) -> None:
    expected = meant(value)
    if expected[0] == "name":
        expected = DROPPED  # a second one
    stream = NAME + frame(value, protocol) + FAULT
    assert outcome(cut(stream, places)) == ([("name", "M"), expected, ("FaultDetect", ["1.5", "1.0"])], "open")


anything = st.recursive(
    scalars | st.integers() | st.binary(max_size=5) | st.sets(st.integers(), max_size=2) | st.complex_numbers(),
    containers,
    max_leaves=20,
)


@QUIET
@given(value=anything, protocol=st.integers(0, 5), places=places)
def test_frame_reader_any_pickle_is_read_dropped_or_refused(value: Any, protocol: int, places: list[int]) -> None:
    stream = NAME + frame(value, protocol) + FAULT
    found, then = outcome(cut(stream, places))
    assert found[0] == ("name", "M")
    if then == "refused":
        assert len(found) == 1
    else:
        assert found[1:] in ([DROPPED, meant(pickle.loads(FAULT))], [meant(value), meant(pickle.loads(FAULT))])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        ("DataUpdate", {"s": {"type": "VIB", "data": [1.0, True]}}),
        ("DataUpdate", {"s": {"type": "VIB", "data": [1.0, "2.0"]}}),
        ("DataUpdate", {"s": {"type": "VIB", "data": [None]}}),
        ("DataUpdate", {"s": {"type": "VIB", "data": 1.0}}),
        ("DataUpdate", {"s": {"type": "VIB", "data": {1.0: 2.0}}}),
        ("DataUpdate", {"s": {"type": 5, "data": [1.0]}}),
        ("DataUpdate", {"s": {"type": "V" * 65, "data": [1.0]}}),
        ("DataUpdate", {"s": {"type": "V" * 70_000, "data": [1.0]}}),
        ("DataUpdate", {"s": {"data": [1.0]}}),
        ("DataUpdate", {"s": {"type": "VIB"}}),
        ("DataUpdate", {"s": [1.0]}),
        ("DataUpdate", {"a/b": {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", {"..": {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", {"": {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", {"s" * 65: {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", {1: {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", {None: {"type": "VIB", "data": [1.0]}}),
        ("DataUpdate", [1.0]),
        ("DataUpdate", None),
        ("DataUpdate",),
        ("DataUpdate", {}, 1),
        ("DataUpdate", {}, {}),
        ("FaultDetect", {"score": 1.0}),
        ("FaultDetect", {"threshold": 1.0}),
        ("FaultDetect", {"score": "1.0", "threshold": 1.0}),
        ("FaultDetect", {"score": True, "threshold": 1.0}),
        ("FaultDetect", {"score": [1.0], "threshold": 1.0}),
        ("FaultDetect", {"score": math.nan, "threshold": 1.0}),
        ("FaultDetect", {"score": 1.0, "threshold": math.inf}),
        ("FaultDetect", [1.0, 1.0]),
        ("Other", {}),
        ("dataupdate", {}),
        (1, {}),
        (1.0, 2.0),
        "DataUpdate",
        "",
        1.0,
        None,
        True,
        (),
        [],
        {},
        ("name", "A"),
        ("name", "../A"),
        ("name", 5),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_frame_reader_invalid_structure_is_dropped(value: Any, protocol: int) -> None:
    expected = ([("name", "M"), DROPPED, ("FaultDetect", ["1.5", "1.0"])], "open")
    assert outcome([NAME + frame(value, protocol, b"\\o") + FAULT]) == expected


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("deeper", [[[1.0]], [()], ({},), {"a": {"b": []}}])
def test_frame_reader_deep_nesting_is_refused(deeper: Any, protocol: int) -> None:
    value = ("DataUpdate", {"s": {"type": "VIB", "data": deeper}})
    assert outcome([NAME + frame(value, protocol) + FAULT]) == ([("name", "M")], "refused")
    assert outcome([NAME + json.dumps(value).encode() + b"\0" + FAULT]) == ([("name", "M")], "refused")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "number",
    [2**1024, -(2**1024), 2**1024 - 1, 10**308 * 9, 10**1000, -(10**1100), 10**4000],
    ids=["2^1024", "-2^1024", "2^1024-1", "9e308", "1e1000", "-1e1100", "1e4000"],
)
def test_frame_reader_integer_beyond_a_double_leaves_sensor_out(number: int, protocol: int) -> None:
    # They must not become infinity, in any protocol.
    value = ("DataUpdate", {"s": {"type": "VIB", "data": [1.0, number, 2.0]}})
    stream = NAME + frame(value, protocol) + FAULT
    expected = [("name", "M"), DROPPED, ("FaultDetect", ["1.5", "1.0"])], "open"
    assert outcome([stream]) == outcome(bytewise(stream)) == outcome(chunks(stream, 7)) == expected


@pytest.mark.parametrize("protocol", range(6))
def test_frame_reader_largest_integer_of_a_double_is_a_sample(protocol: int) -> None:
    value = ("DataUpdate", {"s": {"type": "VIB", "data": [2**1024 - 2**971, -(2**1023), 2**53 + 1, -(2**63)]}})
    assert outcome([NAME + frame(value, protocol)]) == ([("name", "M"), meant(value)], "open")


# -- JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '["DataUpdate", {"s": {"type": "VIB", "data": [NaN, Infinity, -Infinity, -0.0, 1e5, 7]}}]',
            ("DataUpdate", [("s", "VIB", ["nan", "inf", "-inf", "-0.0", "100000.0", "7.0"])]),
        ),
        ('{"event": "FaultDetect", "data": {"score": 2, "threshold": 0.5}}', ("FaultDetect", ["2.0", "0.5"])),
        ('{"data": {"진동1": {"data": [], "type": ""}}, "event": "DataUpdate"}', ("DataUpdate", [("진동1", "", [])])),
        ('[\n "FaultDetect",\t{"score": 1, "threshold": 1, "more": null}] \r\n', ("FaultDetect", ["1.0", "1.0"])),
        ('["DataUpdate", {}]', ("DataUpdate", [])),
        ('["DataUpdate", {"s": {"type": "VIB", "data": [1, true]}}]', DROPPED),
        ('["DataUpdate", {"s": {"type": "VIB", "data": [1, null]}}]', DROPPED),
        ('["DataUpdate", {"s": {"type": "VIB", "data": ["NaN"]}}]', DROPPED),
        ('["DataUpdate", {"s": {"type": "VIB", "data": [1%s]}}]' % ("0" * 400), DROPPED),
        ('["FaultDetect", {"score": NaN, "threshold": 0.5}]', DROPPED),
        ('{"event": "FaultDetect"}', DROPPED),
        ('{"name": "A"}', DROPPED),
        ("[]", DROPPED),
        ("{}", DROPPED),
        ('["name", "B"]', DROPPED),
    ],
)
def test_frame_reader_json_gives_expected_message(text: str, expected: Said) -> None:
    stream = NAME + text.encode() + b"\0" + FAULT
    for pieces in ([stream], bytewise(stream)):
        assert outcome(pieces) == ([("name", "M"), expected, ("FaultDetect", ["1.5", "1.0"])], "open")


@pytest.mark.parametrize(
    "text",
    [
        b"[",
        b"[1,]",
        b'["name", "A"] x',
        b'{"event": }',
        b"['name', 'A']",
        b'["name", "\xff"]',
        b'["name", "\xed\xa0\x80"]',
        b'["a\nb", {}]',
        b"[" + b"9" * 5000 + b"]",
        b"[[[[[]]]]]",
        b'{"a":{"a":{"a":{"a":{}}}}}',
    ],
    ids=lambda text: repr(text)[:30],
)
def test_frame_reader_invalid_json_is_refused(text: bytes) -> None:
    stream = NAME + text + b"\0" + FAULT
    for pieces in ([stream], bytewise(stream)):
        assert outcome(pieces) == ([("name", "M")], "refused")


def test_frame_reader_json_name_opens_connection() -> None:
    assert outcome([b'{"event": "name", "data": "LabView"}\0' + FAULT])[0][0] == ("name", "LabView")
    assert outcome([b'["name", "LabView"]\0' + FAULT])[0][0] == ("name", "LabView")


@pytest.mark.parametrize("depth", [5, 100, 300, 400, 500, 600, 900, 2000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_frame_reader_deep_json_is_refused(opening: bytes, closing: bytes, depth: int) -> None:
    assert outcome([NAME + opening * depth + b"1" + closing * depth + b"\0"]) == ([("name", "M")], "refused")


@pytest.mark.parametrize(
    "text",
    [
        rb'["DataUpdate", {"s": {"type": "\ud800", "data": [1.5]}}]' + b"\0",
        b"(VDataUpdate\n(dVs\n(dVtype\nV\\ud800\nsVdata\n(lF1.5\nasst.\0",
    ],
    ids=["json", "protocol 0"],
)
def test_frame_reader_type_with_lone_surrogate_is_not_admitted(text: bytes) -> None:
    # Half a surrogate pair could not be written to live events and the store.
    reader = FrameReader()
    _, message = [*read_all(reader, NAME), *read_all(reader, text)]
    if isinstance(message, DataUpdate):
        for sensor in message.sensors.values():
            sensor.type.encode("utf-8")
    else:
        assert isinstance(message, InvalidMessage)


# -- Python 2, whose str is SHORT_BINSTRING (U) or BINSTRING (T)


def test_frame_reader_python_2_pickle_gives_expected_message() -> None:
    name = b"\x80\x02U\x04nameq\x01U\tShotBlastq\x02\x86q\x03.\\o"
    update = (
        b"\x80\x02U\nDataUpdateq\x01}q\x02U\x0fshot_blast_vib1q\x03}q\x04(U\x04typeq\x05U\x03VIBq\x06U\x04dataq\x07]q\x08("
        b"G?\xf8\x00\x00\x00\x00\x00\x00K\x03M,\x01J\xff\xff\xff\xffI1099511627776\n\x8a\x01\x05eus\x86q\t.\\o"
    )
    fault = (
        b"\x80\x02U\x0bFaultDetectq\x01}q\x02(U\x05scoreq\x03K\x02U\tthresholdq\x04"
        b"G?\xf0\x00\x00\x00\x00\x00\x00u\x86.\0"
    )
    for text in (name, update, fault):
        # Python itself must read these bytes.
        assert pickle.loads(text)
    expected: Outcome = (
        [
            ("name", "ShotBlast"),
            ("DataUpdate", [("shot_blast_vib1", "VIB", ["1.5", "3.0", "300.0", "-1.0", "1099511627776.0", "5.0"])]),
            ("FaultDetect", ["2.0", "1.0"]),
        ],
        "open",
    )
    stream = name + update + fault
    assert outcome([stream]) == outcome(bytewise(stream)) == expected


def test_frame_reader_python_2_long_text_is_dropped() -> None:
    name = b"\x80\x02T\x04\x00\x00\x00nameq\x01T\x09\x00\x00\x00\xec\x87\xbc\xed\x8a\xb8.:1\x86."
    # Python 2 writes this for text of more than 255 bytes.
    long = b"\x80\x02U\x04nameT\x2c\x01\x00\x00" + b"a" * 300 + b"\x86."
    assert pickle.loads(name, encoding="utf-8") == ("name", "쇼트.:1")
    assert pickle.loads(long) == ("name", "a" * 300)
    stream = name + b"\0" + long + b"\0" + FAULT
    expected = ([("name", "쇼트.:1"), DROPPED, ("FaultDetect", ["1.5", "1.0"])], "open")
    assert outcome([stream]) == outcome(bytewise(stream)) == expected


# -- the order of a connection


@pytest.mark.parametrize(
    "first",
    [
        FAULT,
        frame(("DataUpdate", {})),
        frame(("name", "..")),
        frame(("name", "a/b")),
        frame(("name", "")),
        frame(("name", "a" * 65)),
        frame(("name", 5)),
        frame(("Name", "A")),
        frame(None),
        b"[]\0",
        b'["name", "\\u0000"]\0',
        b'["name", "\\ud800"]\0',
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda first: repr(first)[:40],
)
def test_frame_reader_first_frame_without_name_is_refused(first: bytes) -> None:
    assert outcome([first + NAME]) == outcome(bytewise(first + NAME)) == ([], "refused")


def test_frame_reader_second_name_is_dropped() -> None:
    stream = NAME + frame(("name", "N")) + b'["name", "M"]\0' + FAULT
    expected = ([("name", "M"), DROPPED, DROPPED, ("FaultDetect", ["1.5", "1.0"])], "open")
    assert outcome([stream]) == outcome(bytewise(stream)) == expected


@pytest.mark.parametrize("behind", [b"x", b"\\x", b"\\\0", b"\\\\o", b"o", b"\n", b"\x80\x02", b".", b"[", b"\r\n\0"])
def test_frame_reader_pickle_without_separator_is_refused(behind: bytes) -> None:
    stream = NAME + FAULT[:-1] + behind
    assert outcome([stream]) == outcome(bytewise(stream)) == ([("name", "M")], "refused")


def test_frame_reader_messages_before_an_error_are_returned() -> None:
    reader = FrameReader()
    reader.receive_data(NAME + FAULT + b"c")
    assert said(read_one(reader)) == ("name", "M")
    assert said(read_one(reader)) == ("FaultDetect", ["1.5", "1.0"])
    with pytest.raises(WireError):
        reader.next_message()


# -- how long a frame may be


def sized(frame_of: Callable[[int], bytes], size: int) -> bytes:
    """Return a frame of so many bytes, not counting its separator."""
    return next(text for text in map(frame_of, range(1, 3000)) if len(text) == size)


FRAMES_OF: dict[str, Callable[[int], bytes]] = {
    "samples": lambda n: pickle.dumps(
        ("DataUpdate", {"s": {"type": "VIB", "data": [300] * (n % 2) + [1] * (n // 2)}}), 2
    ),
    "lines": lambda n: pickle.dumps(("DataUpdate", {"s" * (n % 4 + 1): {"type": "VIB", "data": [1] * (n // 4)}}), 0),
    "text": lambda n: pickle.dumps(("other", "x" * n), 4),
    "line": lambda n: pickle.dumps(("other", "x" * n), 0),
    "json": lambda n: json.dumps(["other", "x" * n]).encode(),
    "json samples": lambda n: b"[%s]" % (b"1" * n),
}


@pytest.mark.parametrize("kind", FRAMES_OF)
@pytest.mark.parametrize("separator", [b"\0", b"\\o"])
def test_frame_reader_frame_beyond_max_bytes_is_refused(kind: str, separator: bytes) -> None:
    if kind.startswith("json"):
        separator = b"\0"  # the only one of JSON
    limit = 1500
    whole = sized(FRAMES_OF[kind], limit) + separator
    # Another frame follows, for sizes are those of frames and not of the connection.
    stream = NAME + whole + NAME + whole
    longer = NAME + sized(FRAMES_OF[kind], limit + 1) + separator
    for pieces in (lambda text: [text], bytewise, lambda text: chunks(text, 7)):
        found, then = outcome(pieces(stream), limit)
        assert (len(found), then) == (4, "open")
        assert outcome(pieces(longer), limit) == ([("name", "M")], "refused")


@pytest.mark.parametrize(
    ("head", "pad"),
    [
        (b"\x80\x02](", b"K\x01"),
        (b"\x80\x02](", b"G\x00\x00\x00\x00\x00\x00\x00\x00"),
        (b"(l", b"I1\na"),
        (b"(l", b"F1.0\na"),
        (b"[", b"1,"),
        (b'["', b"x"),
        (b"{", b" "),
        (b"V", b"x"),
        (b"X\xe8\x03\x00\x00", b"x"),
    ],
)
def test_frame_reader_endless_frame_is_refused_at_max_bytes(head: bytes, pad: bytes) -> None:
    reader = FrameReader(1000)
    fed = 0
    assert len(list(read_all(reader, NAME))) == 1
    with pytest.raises(WireError):  # noqa: PT012 - how far it comes is the point
        for piece in [head, *[pad] * 2000]:
            list(read_all(reader, piece))
            fed += len(piece)
    assert fed <= 1000


@pytest.mark.parametrize(
    "head",
    [
        b"X" + struct.pack("<I", 2001),
        b"T" + struct.pack("<I", 2001),
        b"X\xff\xff\xff\xff",
        b"T\xff\xff\xff\xff",
        b"\x8d" + struct.pack("<Q", 2001),
        b"\x8d" + b"\xff" * 8,
        b"\x80\x04\x95" + struct.pack("<Q", 2001),
        b"\x80\x04\x95" + b"\xff" * 8,
    ],
)
def test_frame_reader_declared_length_beyond_max_is_refused_at_once(head: bytes) -> None:
    assert outcome([NAME, head], 2000) == ([("name", "M")], "refused")
    assert outcome([NAME, *bytewise(head)], 2000) == ([("name", "M")], "refused")
    # It is for the length that it is refused.
    assert outcome([NAME, head[:-1]], 2000) == ([("name", "M")], "open")
    shorter = head.replace(b"\xd1\x07", b"\xd0\x07").replace(b"\xff\xff\xff\xff", b"\xff\0\0\0")[: len(head)]
    shorter = shorter.replace(b"\0\0\0\xff", b"\0\0\0\0")
    assert outcome([NAME, shorter], 2000) == ([("name", "M")], "open")


# -- hostile frames: refused or dropped, with memory of a small multiple of their size


def update_of(data: bytes) -> bytes:
    """Return a frame ``("DataUpdate", {"a": {"type": "VIB", "data": <data>}})`` around hand-written instructions."""
    return b"(U\nDataUpdate}U\x01a}(U\x04typeU\x03VIBU\x04data" + data + b"ust.\0"


def shared_sensor(sensor_count: int, samples: int) -> bytes:
    first = b"U\x05first}(U\x04typeU\x03VIBU\x04data](" + b"K\x01" * samples + b"euq\x01"
    items = b"".join(b"U\x05%05dh\x01" % i for i in range(sensor_count))
    return b"\x80\x02(U\nDataUpdate}(" + first + items + b"ut.\0"


def shared_list_in(sensor_count: int, samples: int) -> bytes:
    first = b"U\x05first}(U\x04typeU\x03VIBU\x04data](" + b"K\x01" * samples + b"eq\x01u"
    items = b"".join(b"U\x05%05d}(U\x04typeU\x03VIBU\x04datah\x01u" % i for i in range(sensor_count))
    return b"\x80\x02(U\nDataUpdate}(" + first + items + b"ut.\0"


MEGA = 1_000_000

HOSTILE: dict[str, bytes] = {
    "memo index": b"\x80\x02]r\xff\xff\xff\x7f.\0",
    "memo index, no sign": b"\x80\x02]r\xff\xff\xff\xff.\0",
    "memo index in text": b"]p9999999\n.\0",
    "memo index of many digits": b"(]p" + b"9" * 5000 + b"\n.\0",
    "memo index of many digits, first": b"p" + b"9" * 5000 + b"\n.\0",
    "memo read of many digits": b"(g" + b"9" * 5000 + b"\n.\0",
    "memo index of nine digits": b"(]p" + b"1" * 9 + b"\n.\0",
    "memo index of no digits": b"]p\n.\0",
    "memo index of other digits": b"]p\xd9\xa3\n.\0",
    "memo filled with numbers": b"](" + b"".join(b"K\x01r" + struct.pack("<I", i) for i in range(60_000)) + b"e.\0",
    "memo filled with text": b"("
    + b"".join(b"U\x02%c%cr" % (i % 251, i % 241) + struct.pack("<I", i) for i in range(32_000))
    + b"t.\0",
    "text of 4 GiB": b"\x80\x02X\xff\xff\xff\xff.\0",
    "text of 8 EiB": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.\0",
    "bytes": b"\x80\x03B\xff\xff\xff\xff.\0",
    "bytes of 256 TiB": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00.\0",
    "bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.\0",
    "LONG4": b"\x8b\xff\xff\xff\x7f" + b"\x01" * 1000,
    "LONG4 of few bytes": b"\x8b\x01\0\0\0\x05.\0",
    "integers of many digits": update_of(b"](" + (b"L" + b"9" * 4300 + b"L\n") * 1000 + b"e"),
    "LONG4s": update_of(b"](" + (b"\x8b\0\x01\0\0" + b"\x7f" * 256) * 4000 + b"e"),
    "LONG4 that is whole": b"\x8b" + struct.pack("<i", MEGA) + b"\x7f" * MEGA + b".\0",
    "LONG1s beyond a double": update_of(b"](" + (b"\x8a\xff" + b"\x7f" * 255) * 4000 + b"e"),
    "deep lists": b"]" * MEGA,
    "deep lists, put away": b"]" * 3000 + b"a" * 3000 + b".\0",
    "deep tuples": b")" + b"\x85" * 3000 + b".\0",
    "marks": b"(" * MEGA,
    "dicts": b"}" * MEGA,
    "wide": b"](" + b"]" * MEGA + b"e.\0",
    "wide, again and again": b"(" + b"](]]]]e" * 140_000 + b"t.\0",
    "nothing": b"N" * MEGA,
    "nothing, in a list": update_of(b"](" + b"N" * MEGA + b"e"),
    "a list in itself": b"]q\x00h\x00a.\0",
    "a dict in itself": b"}q\x00U\x01ah\x00s.\0",
    "a list of 10000 samples for 1300 sensors": shared_list_in(1300, 10_000),
    "a list of 10000 samples for 5000 sensors": shared_list_in(5000, 10_000),
    "a sensor of 10000 samples under 20000 names": shared_sensor(20_000, 10_000),
    "an int of a million digits": update_of(b"](I" + b"9" * MEGA + b"\ne"),
    "a long of a million digits": update_of(b"](L" + b"9" * MEGA + b"L\ne"),
    "a float of a million digits": update_of(b"](F" + b"9" * MEGA + b"\ne"),
    "an int of 1000 digits": update_of(b"](I" + b"9" * 1000 + b"\ne"),
    "an int without an end": b"I" + b"9" * MEGA,
    "a line without an end": b"V" + b"9" * MEGA,
    "nested memo doubling": b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60)) + b".\0",
    "alternating booleans and numbers": update_of(b"](" + b"I00\nK\x01" * (MEGA // 6) + b"e"),
    "alternating long ints and numbers": update_of(b"](" + (b"\x8a\x82" + b"\x7f" * 130 + b"K\x01") * 7500 + b"e"),
    "booleans": update_of(b"](" + b"I01\n" * (MEGA // 8) + b"e"),
    "duplicated keys": b"\x80\x02(U\nDataUpdate}(" + b"U\x01a]" * 4000 + b"ut.\0",
    "json, deep": b"[" * MEGA,
    "json, deep and whole": b"[" * 600 + b"]" * 600 + b"\0",
    "json, wide": b"[" + b"[]," * (MEGA // 3) + b"[]]\0",
    "json, wide dicts": b"[" + b"{}," * 4000 + b"{}]\0",
    "json, an int of a million digits": b"[" + b"9" * MEGA + b"]\0",
    "json, ints of 4000 digits": b"[" + b",".join([b"9" * 4000] * 250) + b"]\0",
    "json, numbers and a boolean": b'["DataUpdate", {"a": {"type": "VIB", "data": ['
    + b"1," * (MEGA // 2)
    + b"true]}}]\0",
    "json, booleans": b"[" + b"true," * (MEGA // 20) + b"true]\0",
    "json, texts": b"[" + b",".join(b'"%d"' % i for i in range(MEGA // 8)) + b"]\0",
    "json, keys": b"{" + b",".join(b'"%d":0' % i for i in range(MEGA // 4)) + b"}\0",
    "json, one wide character": b'["\xf0\x9f\x98\x80' + b"x" * MEGA + b'"]\0',
}

ENDLESS = {"json, deep", "a line without an end"}

LAWFUL: dict[str, bytes] = {
    "small ints": update_of(b"](" + b"K\x01" * (MEGA // 16) + b"e"),
    "doubles": update_of(b"](" + b"G\x3f\xf8\0\0\0\0\0\0" * (MEGA // 9) + b"e"),
    "alternating numbers": update_of(b"](" + b"K\x01G\x3f\xf8\0\0\0\0\0\0" * (MEGA // 44) + b"e"),
    "alternating widths": update_of(b"](" + b"K\x01I1\nM\x01\x00F1\n" * (MEGA // 90) + b"e"),
    "appended one by one": update_of(b"](" + b"e" + b"G\x3f\xf8\0\0\0\0\0\0a" * (MEGA // 40)),
    "protocol 0": update_of(b"(l" + b"I1\na" * (MEGA // 8)),
    "json ints": b'["DataUpdate", {"a": {"type": "VIB", "data": [' + b"1," * (MEGA // 8) + b"1]}}]\0",
    "json floats": b'["DataUpdate", {"a": {"type": "VIB", "data": [' + b"1.5," * (MEGA // 8) + b"1]}}]\0",
}

#: Memory that any frame may need besides, in bytes: 65 536 instructions with a memo entry each.
CONSTANT = 8 * 1024 * 1024
#: Memory that a byte may need, in bytes: a number of two becomes a double of eight and is copied, arrays grow ahead.
MULTIPLE = 16


def cost(pieces: Sequence[bytes]) -> tuple[Outcome, int]:
    """Return the outcome of frames after the name, and the peak of memory in bytes."""
    reader = FrameReader()
    assert len(list(read_all(reader, NAME))) == 1
    found: list[DaqMessage] = []
    then = "open"
    tracemalloc.start()
    try:
        for piece in pieces:
            found += read_all(reader, piece)
    except WireError:
        then = "refused"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return (list(map(said, found)), then), peak


@pytest.mark.parametrize("name", HOSTILE)
def test_frame_reader_hostile_frame_needs_little_memory(name: str) -> None:
    text = HOSTILE[name]
    (found, then), peak = cost(chunks(text))
    # Only an incomplete frame may leave the connection open.
    endings: list[Outcome] = [([DROPPED], "open"), ([], "refused")]
    assert (found, then) in [*endings, ([], "open")][: 3 if name in ENDLESS else 2]
    assert peak <= MULTIPLE * len(text) + CONSTANT


@pytest.mark.parametrize("name", LAWFUL)
def test_frame_reader_valid_frame_needs_little_memory(name: str) -> None:
    text = LAWFUL[name]
    ((found,), then), peak = cost(chunks(text))
    assert (found[0], then) == ("DataUpdate", "open")
    assert len(found[1][0][2]) > 10_000
    assert peak <= MULTIPLE * len(text) + CONSTANT


@pytest.mark.parametrize("opcode", [b"p", b"g"])
def test_pickle_reader_incomplete_memo_index_repeats_nothing(opcode: bytes) -> None:
    # Otherwise the numbers would be pushed again with each read: a packet of 64 KiB could ask for gigabytes.
    text = b"K\x01" * 8 + opcode + b"1" * 12
    (found, then), peak = cost([text])
    assert (found, then) == ([], "refused")
    assert peak < 1_000_000


@pytest.mark.parametrize("opcode", [b"p", b"g"])
@pytest.mark.parametrize("before", [b"", b"(", b"]", b"K\x01"])
@pytest.mark.parametrize("digits", [5, 9, 12, 5000])
def test_pickle_reader_long_memo_index_is_refused_at_any_cut(before: bytes, opcode: bytes, digits: int) -> None:
    stream = NAME + before + opcode + b"9" * digits
    then = "open" if digits == 5 else "refused"
    assert outcome([stream]) == ([("name", "M")], then)
    assert outcome(bytewise(stream)) == ([("name", "M")], then)


def test_pickle_reader_too_many_instructions_are_refused() -> None:
    # 65 536 instructions are more than any message needs, however cheap each is.
    for pair in (b"N\x88", b"](" + b"e", b"}(" + b"u", b"(l", b"(t", b"(d", b"U\x00N", b"]q\x00"):
        assert outcome([NAME, b"(" + pair * 200_000]) == ([("name", "M")], "refused")


@pytest.mark.parametrize("opcode", sorted({bytes([code]) for code in range(256)} - set(map(bytes, (b"[", b"{")))))
def test_pickle_reader_other_opcode_is_refused_at_once(opcode: bytes) -> None:
    # From the tables of CPython's pickletools; a refused opcode needs no argument.
    plain = b"\x80\x95.GKMJ\x8a\x8bFILN\x88\x89\x8cX\x8dVSUT(]lae)\x85\x86\x87t}dsu\x94pqrghj"
    # Bytes that may precede a frame: blanks, line ends, and the beginning of a byte order mark.
    plain += b" \t\r\n\xef"
    if opcode in plain:
        # Alone it lacks its argument, its operand or its separator, and gives no message.
        assert outcome([NAME + opcode])[0] == [("name", "M")]
    else:
        assert outcome([NAME + opcode]) == ([("name", "M")], "refused")


# -- fuzz

SMALL_CASES = [path.read_bytes() for path in sorted(CASES.glob("*.bin")) if path.stat().st_size < 2000]

SOUP = [
    *(b"(", b")", b"]", b"}", b".", b"\0", b"\\o", b"\\", b"l", b"t", b"d", b"e", b"u", b"a", b"s", b"N", b"\x88"),
    *(b"K\x01", b"K\x01K\x02", b"M\x01\x02", b"J\xff\xff\xff\xff", b"G\x3f\xf8\0\0\0\0\0\0", b"G", b"\x8a\x01\x05"),
    *(
        b"\x8a\x81" + b"\x7f" * 129,
        b"I1\n",
        b"I1\na",
        b"I00\n",
        b"I01\n",
        b"I",
        b"L5L\n",
        b"F1.5\n",
        b"F1e999\na",
        b"F",
    ),
    *(
        b"U\x01a",
        b"U\x04name",
        b"U\x04type",
        b"U\x04data",
        b"X\x03\0\0\0VIB",
        b"\x8c\x0aDataUpdate",
        b"Vx\n",
        b"V\\u12\n",
    ),
    *(
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x94",
        b"q\x00",
        b"h\x00",
        b"p1\n",
        b"g1\n",
        b"p",
        b"g",
        b"r\x02\0\0\0",
        b"j\x02\0\0\0",
    ),
    *(
        b"\x80\x02",
        b"\x80\x06",
        b"\x95\x05\0\0\0\0\0\0\0",
        b"12345678",
        b"\n",
        b"c",
        b"R",
        b"0",
        b"2",
        b"U\xff",
        b"X\x01\x08\0\0",
    ),
    *(
        b"[",
        b"{",
        b'"',
        b'"event"',
        b'"data"',
        b":",
        b",",
        b"1",
        b"NaN",
        b"null",
        b"]",
        b"}",
        b"\xff",
        b"\xf0\x9f\x98\x80",
    ),
]


@settings(QUIET, max_examples=300)
@given(text=st.binary(max_size=200), named=st.booleans(), places=places)
def test_frame_reader_any_bytes_give_the_same_at_any_cut(text: bytes, named: bool, places: list[int]) -> None:
    stream = NAME + text if named else text
    whole = outcome([stream])
    assert outcome(cut(stream, places)) == whole
    assert outcome(bytewise(stream)) == whole


@settings(QUIET, max_examples=600)
@given(parts=st.lists(st.sampled_from(SOUP), max_size=25), places=places)
def test_frame_reader_any_instructions_give_the_same_at_any_cut(parts: list[bytes], places: list[int]) -> None:
    stream = NAME + b"".join(parts)
    whole = outcome([stream])
    assert outcome(cut(stream, places)) == whole
    assert outcome(bytewise(stream)) == whole


changes = st.tuples(
    st.integers(0, 2**31), st.sampled_from(["set", "insert", "delete", "repeat"]), st.binary(min_size=1, max_size=4)
)


@settings(QUIET, max_examples=400)
@given(
    stream=st.sampled_from(SMALL_CASES),
    changes=st.lists(changes, min_size=1, max_size=5),
    places=places,
)
def test_frame_reader_changed_frames_give_the_same_at_any_cut(
    stream: bytes, changes: list[tuple[int, str, bytes]], places: list[int]
) -> None:
    for place, change, new in changes:
        at = place % len(stream)
        length = len(new)
        match change:
            case "set":
                stream = stream[:at] + new + stream[at + length :]
            case "insert":
                stream = stream[:at] + new + stream[at:]
            case "delete":
                stream = stream[:at] + stream[at + length :] or b"."
            case "repeat":
                stream = stream[: at + 8 * length] + stream[at:]
    whole = outcome([stream])
    assert outcome(cut(stream, places)) == whole
    assert outcome(bytewise(stream)) == whole
    assert outcome(cut(stream, places), limit=300) == outcome([stream], limit=300)
