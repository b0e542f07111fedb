"""Framing of the lines of scales: the same lines however the bytes are split."""

import random

import pytest

from gateway.wire.errors import WireError
from gateway.wire.lines import HTTP_REQUEST, MAX_LINE, LineReader
from tests.unit.test_frames import bytewise, cut

CASES = [
    b"",
    b"ST,+1 kg",
    b"ST,+1 kg\n",
    b"ST,+1 kg\r\nUS,+2 kg\r\n",
    b"ST,+1 kg\rUS,+2 kg\r",
    b"\n\r\n\r\r\n",
    b"ST,+1 kg\r\n\r\n \nUS,+2",
    b"a/b\nhttp/1\nHTTP/x\n",
    b"\xff\xfd\x00\r\n\xc2\x85\n",
]


def lines_of(stream: bytes) -> list[bytes]:
    """Return the lines of a stream, without empty ones: a CR LF may be split."""
    return [line for line in stream.replace(b"\r", b"\n").split(b"\n") if line]


def read_lines(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """Return the lines of a connection, and the incomplete one at its end."""
    reader = LineReader()
    lines: list[bytes] = []
    for piece in pieces:
        complete = reader.receive_data(piece)
        assert complete[-1:] in {b"", b"\r", b"\n"}
        lines += lines_of(complete)
    return lines, reader.rest


@pytest.fixture(params=CASES, ids=repr)
def case(request: pytest.FixtureRequest) -> bytes:
    assert isinstance(request.param, bytes)
    return request.param


@pytest.mark.parametrize("trailing", [b"", b"OL\r\n", b"\r", b"\nOL", b"x"])
def test_line_reader_case_with_trailing_data_gives_the_same_lines(case: bytes, trailing: bytes) -> None:
    *expected, rest = (case + trailing).replace(b"\r", b"\n").split(b"\n")
    lines = [line for line in expected if line]
    assert read_lines([case + trailing]) == (lines, rest)
    assert read_lines([case, trailing]) == (lines, rest)
    assert read_lines(bytewise(case + trailing)) == (lines, rest)


def test_line_reader_random_pieces_give_the_same_lines() -> None:
    chance = random.Random(1)
    for _ in range(300):
        stream = b"".join(chance.choices([b"ST,+1 kg", b"\r", b"\n", b"\r\n", b"/", b" "], k=20))
        pieces = cut(stream, [chance.randrange(100) for _ in range(4)])
        assert read_lines(pieces) == read_lines([stream])


def test_line_reader_whole_lines_are_not_copied() -> None:
    data = b"ST,+1 kg\r\nST,+2 kg\r\n"
    assert LineReader().receive_data(data) is data


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_line_reader_skipped_line_ends_at_its_line_end(end: bytes, size: int) -> None:
    reader = LineReader()
    assert reader.receive_data(b"ST,+1 kg\n" + b"x" * 5) == b"ST,+1 kg\n"
    reader.skip_rest()
    assert (reader.rest, reader.is_skipping) == (b"", True)
    stream = b"y" * 5000 + end + b"ST,+2 kg\n"
    lines = b"".join(reader.receive_data(stream[at : at + size]) for at in range(0, len(stream), size))
    assert lines_of(lines) == [b"ST,+2 kg"]
    assert not reader.is_skipping


def test_line_reader_skipping_keeps_no_bytes() -> None:
    reader = LineReader()
    reader.receive_data(b"x" * (MAX_LINE + 1))
    reader.skip_rest()
    for _ in range(100):
        assert reader.receive_data(b"x" * 1000) == b""
        assert len(reader.rest) + len(reader._skipped) < 10


REQUEST = b"GET /a HTTP/1.1\r\n"


@pytest.mark.parametrize("before", [b"", b"ST,+1 kg", b"x" * 100])
@pytest.mark.parametrize("at", range(len(REQUEST)))
def test_line_reader_http_request_at_any_cut_is_refused(before: bytes, at: int) -> None:
    reader = LineReader()
    with pytest.raises(WireError, match=HTTP_REQUEST):  # noqa: PT012 - either read may hold it
        reader.receive_data(before + REQUEST[:at])
        reader.receive_data(REQUEST[at:])


@pytest.mark.parametrize("at", range(len(REQUEST)))
def test_line_reader_http_request_in_a_skipped_line_is_refused(at: int) -> None:
    reader = LineReader()
    with pytest.raises(WireError, match=HTTP_REQUEST):  # noqa: PT012 - either read may hold it
        reader.receive_data(b"GET /" + b"x" * MAX_LINE + REQUEST[:at])
        reader.skip_rest()
        reader.receive_data(REQUEST[at:])
