"""Reasons of refused frames and dropped messages, which the author of a DAQ program can act on."""

import array
import collections
import datetime
import decimal
import fractions
import io
import json
import pickle
from typing import Any

import numpy as np
import pytest

from gateway.wire.errors import WireError
from gateway.wire.frames import FrameReader
from gateway.wire.messages import DataUpdate, FaultDetect, InvalidMessage
from gateway.wire.other_protocols import ServedPorts
from tests.unit.test_frames import read_all

NAME = pickle.dumps(("name", "M"), 2) + b"\0"
GOOD = {"type": "VIB", "data": [1.0, 2.0]}
NFD = "\u110c\u1175\u11ab\u1103\u1169\u11bc\u1100\u1175"

PLACES = ServedPorts("; HTTP is served on port 8080", ": its port is 4001")


def refusal(stream: bytes, *, size: int = 10**9) -> str:
    """Return the reason why a connection is closed."""
    reader = FrameReader(ports=PLACES)
    with pytest.raises(WireError) as caught:  # noqa: PT012 - whichever piece it is
        for at in range(0, len(stream), size):
            list(read_all(reader, stream[at : at + size]))
    return str(caught.value)


def frames(event: str, data: Any) -> list[bytes]:
    """Return a message in every form in which it can be sent."""
    forms = [pickle.dumps((event, data), protocol) + b"\0" for protocol in range(6)]
    return [*forms, json.dumps([event, data]).encode() + b"\0"]


def messages(stream: bytes) -> list[Any]:
    return list(read_all(FrameReader(), NAME + stream))[1:]


# -- names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Press#1", "machine name 'Press#1': '#' is not allowed"),
        ("a/b", "machine name 'a/b': '/' is not allowed"),
        ("", "machine name '': it is empty"),
        (".", "machine name '.': '.' and '..' are not allowed"),
        ("..", "machine name '..': '.' and '..' are not allowed"),
        ("a" * 65, "it has 65 characters; 64 are allowed"),
        ("\U00010400" * 60, "it has 240 bytes in UTF-8; 238 are allowed"),
        ("a\nb", r"machine name 'a\nb': '\n' is not allowed"),
        ("a\x1b[2Jb", r"machine name 'a\x1b[2Jb': '\x1b' is not allowed"),
        ("a\u202eb", r"machine name 'a\u202eb': '\u202e' is not allowed"),
        ("\u0301a", r"'\u0301' is not allowed without a letter before it"),
        ("x" * 5000, "is not allowed|characters; 64 are allowed|text of more than"),
        (5, "machine name: text is needed, this is a number"),
        (None, "machine name: text is needed, this is None"),
        (True, "machine name: text is needed, this is a boolean"),
        (["M"], "machine name: text is needed, this is a list"),
    ],
)
def test_invalid_name_reason_quotes_the_character(name: Any, problem: str) -> None:
    for frame in frames("name", name):
        said = refusal(frame)
        assert any(each in said for each in problem.split("|")), said
        assert len(said) < 400


def test_reason_input_text_is_bounded_and_escaped() -> None:
    for text in ("x" * 100_000, "\x1b[2J" * 100, "\n" * 1000, "\u202e" * 1000):
        for frame in frames(text, 1):
            (found,) = messages(frame)
            assert isinstance(found, InvalidMessage)
            assert len(found.reason) < 500
            assert found.reason.isprintable()


# -- events and faults


@pytest.mark.parametrize(
    ("event", "data", "reason"),
    [
        ("Foo", 1, "unknown event 'Foo'"),
        ("Foo", {}, "unknown event 'Foo'"),
        ("dataupdate", {}, "unknown event 'dataupdate'; known are name, DataUpdate and FaultDetect"),
        ("DataUpdate", [1.0], "DataUpdate: a dict of sensors is needed, this is a list"),
        ("DataUpdate", None, "DataUpdate: a dict of sensors is needed, this is None"),
        ("FaultDetect", {"score": 1.0}, "FaultDetect: threshold is missing"),
        ("FaultDetect", {"threshold": 1.0}, "FaultDetect: score is missing"),
        ("FaultDetect", {"score": "1", "threshold": 1}, "FaultDetect: score must be a number, this is text '1'"),
        ("FaultDetect", {"score": None, "threshold": 1}, "FaultDetect: score must be a number, this is None"),
        ("FaultDetect", {"score": True, "threshold": 1}, "FaultDetect: score must be a number, this is a boolean"),
        ("FaultDetect", {"score": [1], "threshold": 1}, "FaultDetect: score must be a number, this is a list"),
        ("FaultDetect", {"score": 1, "threshold": float("nan")}, "FaultDetect: threshold must be finite, this is nan"),
        ("FaultDetect", 5, "this is a number"),
        ("name", "N", "a second name, 'N': a connection belongs to one machine"),
    ],
)
def test_invalid_message_has_its_reason(event: str, data: Any, reason: str) -> None:
    for frame in frames(event, data):
        (found,) = messages(frame)
        assert isinstance(found, InvalidMessage)
        assert reason in found.reason


def test_invalid_message_other_than_a_pair_is_described() -> None:
    for value, what in (
        (None, "None"),
        ([1, 2], "a list"),
        ({"a": 1}, "a dict"),
        ("text", "text 'text'"),
        (5, "a number"),
    ):
        (found,) = messages(pickle.dumps(value) + b"\0")
        assert "a pair of an event and its data" in found.reason
        assert found.reason.endswith(f"this is {what}")


# -- sensors


@pytest.mark.parametrize(
    ("name", "sensor", "reason"),
    [
        ("온도 #2", GOOD, "'온도 #2': its name is not allowed: '#' is not allowed"),
        ("", GOOD, "'': its name is not allowed: it is empty"),
        ("..", GOOD, "'..': its name is not allowed: '.' and '..' are not allowed"),
        ("s" * 65, GOOD, "its name is not allowed: it has 65 characters"),
        ("s", {"type": "VIB"}, "'s': its data is missing"),
        ("s", {"data": [1.0]}, "'s': its type is missing"),
        ("s", {"type": 5, "data": [1.0]}, "'s': its type must be text, this is a number"),
        ("s", {"type": "V" * 65, "data": [1.0]}, "'s': its type has 65 characters; 64 are allowed"),
        ("s", {"type": "a\nb", "data": [1.0]}, r"'s': its type 'a\nb' has a character that cannot be shown"),
        ("s", {"type": "VIB", "data": 1.0}, "'s': its data must be a list, this is a number"),
        ("s", {"type": "VIB", "data": {"a": 1.0}}, "'s': its data must be a list, this is a dict"),
        ("s", {"type": "VIB", "data": [1.0, None, 2.0]}, "'s': sample 1 is None; a number is needed"),
        ("s", {"type": "VIB", "data": [1.0, 2, "x"]}, "'s': sample 2 is text 'x'; a number is needed"),
        ("s", {"type": "VIB", "data": [True, 1.0]}, "'s': sample 0 is a boolean; a number is needed"),
        ("s", {"type": "VIB", "data": [0.5] * 5000 + [None] + [0.5] * 5000}, "'s': sample 5000 is None"),
        ("s", {"type": "VIB", "data": [1, 10**400]}, "'s': sample 1 is a number beyond a double"),
        ("s", [1.0], '\'s\': a dict {"type": ..., "data": [...]} is needed, this is a list'),
        ("s", None, '\'s\': a dict {"type": ..., "data": [...]} is needed, this is None'),
    ],
)
def test_update_invalid_sensor_is_left_out_alone(name: str, sensor: Any, reason: str) -> None:
    for data in ({"vib1": GOOD, name: sensor, "vib2": GOOD}, {name: sensor, "vib1": GOOD, "vib2": GOOD}):
        for frame in frames("DataUpdate", data):
            (update,) = messages(frame)
            assert isinstance(update, DataUpdate)
            assert {key: list(batch.samples) for key, batch in update.sensors.items()} == {
                "vib1": [1.0, 2.0],
                "vib2": [1.0, 2.0],
            }
            assert update.size == 4
            (left_out,) = update.left_out
            assert reason in f"{left_out.sensor}: {left_out.reason}"
    for frame in frames("DataUpdate", {name: sensor}):
        (found,) = messages(frame)
        assert isinstance(found, InvalidMessage)
        assert len(found.left_out) == 1
        assert reason in f"{found.left_out[0].sensor}: {found.left_out[0].reason}"


@pytest.mark.parametrize("key", [None, 5, 1.5, True, (1, 2)])
@pytest.mark.parametrize("first", [True, False])
def test_update_sensor_without_text_name_is_left_out_alone(key: Any, first: bool) -> None:
    data = {key: GOOD, "vib1": GOOD} if first else {"vib1": GOOD, key: GOOD}
    for protocol in range(6):
        (update,) = messages(pickle.dumps(("DataUpdate", data), protocol) + b"\0")
        assert isinstance(update, DataUpdate)
        assert list(update.sensors) == ["vib1"]
        assert [each.reason for each in update.left_out] == ["a sensor's name must be text"]


@pytest.mark.parametrize(
    "data", [{1: 2, "vib1": GOOD}, {"vib1": GOOD, 1: 2, 3: 4}, {1: 2, 3: GOOD, 4: 5, "vib1": GOOD}]
)
def test_update_numbers_as_names_remove_no_other_sensor(data: Any) -> None:
    for protocol in range(6):
        (update,) = messages(pickle.dumps(("DataUpdate", data), protocol) + b"\0")
        assert list(update.sensors) == ["vib1"]


def test_update_invalid_sensor_is_reported_with_each_message() -> None:
    frame = pickle.dumps(("DataUpdate", {"vib1": GOOD, "온도 #2": {"type": "TEMP", "data": []}})) + b"\\o"
    found = messages(frame * 5)
    assert [len(update.left_out) for update in found] == [1] * 5


def test_update_sensor_in_two_forms_of_unicode_is_used_once() -> None:
    (update,) = messages(pickle.dumps(("DataUpdate", {NFD: GOOD, "진동기": GOOD})) + b"\0")
    assert (list(update.sensors), len(update.left_out), update.size) == (["진동기"], 1, 2)


# -- objects


class Thing:
    """An object of a class that is not plain data."""


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float64(1.0), ["a numpy object", ".item()", ".tolist()"]),
        (np.float32(1.0), ["a numpy object", ".item()", ".tolist()"]),
        (np.int64(1), ["a numpy object"]),
        (np.array([1.0, 2.0]), ["a numpy object", ".tolist()"]),
        (np.bool_(True), ["a numpy object"]),
        (collections.OrderedDict(a=1), ["a pickled object 'collections.OrderedDict'"]),
        (decimal.Decimal("1.5"), ["a pickled object 'decimal.Decimal'"]),
        (datetime.datetime(2025, 12, 18, tzinfo=datetime.UTC), ["a pickled object 'datetime.datetime'"]),
        (fractions.Fraction(1, 2), ["a pickled object 'fractions.Fraction'"]),
        (1j, ["a pickled object", "complex'"]),
        (array.array("d", [1.0]), ["array", ".tolist()"]),
        (Thing(), ["a pickled object 'tests.unit.test_frame_errors.Thing'"]),
        (b"bytes", ["bytes; send text or numbers"]),
        ({1, 2}, ["set"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_object_is_named(value: Any, words: list[str], protocol: int) -> None:
    for data in (
        ("FaultDetect", {"score": value, "threshold": 1.0}),
        ("DataUpdate", {"s": {"type": "V", "data": value}}),
    ):
        said = refusal(NAME + pickle.dumps(data, protocol) + b"\0")
        for word in words:
            assert word in said


def test_refused_object_in_a_list_is_named() -> None:
    for protocol in range(6):
        data = {"s": {"type": "V", "data": [1.0, np.float64(1.0)]}}
        assert "a numpy object" in refusal(NAME + pickle.dumps(("DataUpdate", data), protocol) + b"\0")


def test_refused_object_is_named_at_any_cut() -> None:
    for protocol in range(6):
        stream = NAME + pickle.dumps(("FaultDetect", {"score": np.float64(1.0), "threshold": 1.0}), protocol) + b"\0"
        for size in (1, 2, 7):
            assert refusal(stream, size=size)


# -- other protocols, and missing separators


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "this is an HTTP request; HTTP is served on port 8080"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "this is an HTTP request"),
        (b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n", "this is an HTTP request; HTTP is served on port 8080"),
        (b"PUT / HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"TRACE / HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"PROPFIND / HTTP/1.1\r\n\r\n", "this is an HTTP request; HTTP is served on port 8080"),
        (b"M-SEARCH * HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"BREW /\r\n", "this is an HTTP request"),
        (b"get / HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"GET\t/\tHTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"BREW /" + b"a" * 100 + b" HTTP/1.1\r\n\r\n", "this is an HTTP request"),
        (b"ST , +000053.26 _kg\r\n", "this is a line of a scale: its port is 4001"),
        (b"\x02ST,+00053.26 kg\x03\r\n", "this is a line of a scale: its port is 4001"),
        (b"\x00\x00ST , +000053.26 _kg\r\n", "this is a line of a scale"),
        (b"\xff\xfb\x03\xff\xfb\x01\xff\xfe\x01\xff\xfd\x00ST,+000053.26 kg\r\n", "this is a line of a scale"),
        (b"\xff\xfb\x03\xff\xfb\x01\xff\xfe\x01\xff\xfd\x00", "this is telnet, perhaps from the converter of a scale"),
        (b"\xff\xfe\x01\xff\xfd\x00", "this is telnet, perhaps from the converter of a scale: its port is 4001"),
        (b"@23ST,+00053.26 kg\r\n", "this is a line of a scale"),
        (b"@23+00053.26 kg\r\n", "this is a line of a scale"),
        (b"OL\r\n", "this is a line of a scale"),
        (b"OL kg\r\n", "this is a line of a scale"),
        (b"OLD STUFF\r\n", "this is text, neither a pickle nor JSON"),
        (b"ST,GS,+00123.45kg\r\n", "this is a line of a scale: its port is 4001"),
        (b"US,GS,+00123.45kg\r\n" * 8, "this is a line of a scale"),
        # A pickle could begin like this, and would be incomplete.
        (b"US,GS,+00123.45kg\r\n", "this is a line of a scale"),
        (b"us , +00123.45 _kg", "this is a line of a scale"),
        (b"OL,-99999999PC\r\n", "this is a line of a scale"),
        (b"+000053.26 kg\r\n", "this is a line of a scale"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "this is a TLS handshake"),
        ('["name", "M"]\0'.encode("utf-16"), "this is text in UTF-16"),
        (b"name,ShotBlast\n", "this is text, neither a pickle nor JSON: 'name,ShotBlast"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "this is text, neither a pickle nor JSON: 'SSH-2.0-OpenSSH_9.6"),
        ("온도 20.5\n".encode(), "this is text, neither a pickle nor JSON: '온도 20.5"),
        (b"'name', 'M'\n", "this is text, neither a pickle nor JSON"),
        (b"\0", "an empty frame"),
        (b"\\o", "an empty frame"),
    ],
)
def test_foreign_protocol_is_identified(stream: bytes, words: str) -> None:
    assert words in refusal(stream)
    # After a name as well.
    assert words in refusal(NAME + stream)
    assert refusal(stream, size=1)


def test_foreign_protocol_http_in_pieces_is_identified() -> None:
    assert "an HTTP request" in refusal(b"GET / HTTP/1.1\r\n\r\n", size=1)
    assert "an HTTP request" in refusal(b"POST / HTTP/1.1\r\n\r\n", size=5)


def test_missing_separator_after_pickle_is_reported() -> None:
    said = refusal(NAME + pickle.dumps(("DataUpdate", {})) + pickle.dumps(("DataUpdate", {})))
    assert said == r"a pickle without a separator: NUL or \o must follow it, not '\x80'"


NO_NUL = "JSON without its separator: a NUL byte must follow each frame"
LONG_TEXT = "x" * 70_000


@pytest.mark.parametrize(
    "stream",
    [
        b'["name","A"]\n["DataUpdate",{}]\n',
        b'["name","A"]["DataUpdate",{}]',
        b'{"event": "name", "data": "A"}\r\n{"event"',
        b'["name","B"]\\o',
        b'["name","B"] x',
        b'["name","[B] x {}"]\n\n\n["DataUpdate"',
        b'["name", {"a": 1, "b": [2]}]\n{"',
        b'["name","B"]\n["DataUpdate",{}]\0',
        b'["name","B"]x\0',
        b'["' + LONG_TEXT.encode() + b'"]\n["DataUpdate"',
    ],
)
def test_missing_separator_after_json_is_reported_at_once(stream: bytes) -> None:
    end = stream.rstrip(b"\0")
    for size in (10**9, 1, 2, 3) if len(stream) < 1000 else (10**9, 4096):
        assert refusal(stream if size > len(stream) else end, size=size) == NO_NUL
        assert refusal(NAME + (stream if size > len(stream) else end), size=size) == NO_NUL


def test_missing_separator_brackets_in_texts_are_ignored() -> None:
    sensors = {"a]b": 1, '"] [': 2, "} {": 3, "]\\o": {"type": "} x", "data": [1.0]}, "ok": GOOD}
    for value in (["DataUpdate", sensors], {"event": "DataUpdate", "data": sensors}):
        stream = NAME + json.dumps(value).encode() + b"\0"
        (whole,) = messages(stream[len(NAME) :])
        assert isinstance(whole, DataUpdate)
        for size in (1, 2, 7, 50):
            reader = FrameReader()
            pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
            assert [each for piece in pieces for each in read_all(reader, piece)][1:] == [whole]


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"", ""),
        (b'["name", "A"]\0\r\n', ""),
        (NAME, ""),
        (b'["name", "A"]\n', f"14 bytes were left unread: {NO_NUL}"),
        (b'["' + LONG_TEXT.encode() + b'"]', f"70004 bytes were left unread: {NO_NUL}"),
        (b'["name", "A', "11 bytes of an unfinished frame were left unread"),
        (NAME + NAME[:10], "10 bytes of an unfinished frame were left unread"),
        (NAME[:-1], f"{len(NAME) - 1} bytes were left unread: a pickle without its separator, NUL or \\o"),
    ],
)
@pytest.mark.parametrize("size", [10**9, 7])
def test_unfinished_describes_unread_bytes(stream: bytes, words: str, size: int) -> None:
    reader = FrameReader()
    for at in range(0, len(stream), size):
        list(read_all(reader, stream[at : at + size]))
    assert reader.unfinished() == words


def test_first_frame_without_name_is_reported() -> None:
    assert 'must be ("name", "<machine>"), not DataUpdate' in refusal(pickle.dumps(("DataUpdate", {})) + b"\0")
    assert 'must be ("name", "<machine>")' in refusal(pickle.dumps(("FaultDetect", {"score": 1})) + b"\0")


def test_invalid_json_is_reported_with_its_position() -> None:
    assert "character 1" in refusal(NAME + b"['name', 'M']\0")
    assert "is out of place" in refusal(NAME + b"[" + b"1," * 60_000 + b"x]\0")


# -- bytes between frames


@pytest.mark.parametrize("between", [b"\r\n", b"\n", b" ", b"\t \r\n\r\n", b"\xef\xbb\xbf", b"\r\n\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 2, 3, 10**9])
def test_blanks_and_byte_order_marks_between_frames_are_skipped(between: bytes, size: int) -> None:
    fault = {"score": 1, "threshold": 2}
    for frame in frames("FaultDetect", fault):
        stream = between + NAME + between + frame + between + frame + between
        reader = FrameReader()
        found = [each for at in range(0, len(stream), size) for each in read_all(reader, stream[at : at + size])]
        assert found[1:] == [FaultDetect(1.0, 2.0)] * 2


def test_blanks_between_frames_need_no_memory() -> None:
    reader = FrameReader()
    list(read_all(reader, NAME))
    for _ in range(100):
        list(read_all(reader, b"\r\n" * 10_000))
    assert len(reader._data) < 10


def test_refused_object_is_never_built() -> None:
    # The reason must be built without building the object.
    class Boom:
        def __reduce__(self) -> Any:
            return io.open, ("/nonexistent/boom", "w")

    for protocol in range(6):
        assert "a pickled object" in refusal(NAME + pickle.dumps(Boom(), protocol) + b"\0")
    # In other versions of Python the module has a longer name.
    assert "a pickled object" in refusal(NAME + b"c_io\nopen\np0\n(V/nonexistent/boom\np1\nVw\np2\ntp3\nRp4\n.\0")
