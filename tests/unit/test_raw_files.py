"""Raw files: names, and reading of their lines."""

import gzip
import io
import math
import os
from array import array
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.raw import files, lines
from gateway.raw import lines as raw_lines
from gateway.raw.files import HEADER, RawFile
from gateway.raw.lines import LineClock, LineRun
from gateway.raw.log import add_lines

BERLIN = ZoneInfo("Europe/Berlin")
DAY = date(2025, 12, 18)


def read(content: bytes, begin: int = 0) -> list[tuple[str, list[float]]]:
    """Return the runs of a file with this content, after checking each against it."""
    file = io.BytesIO(content)
    found = list(lines.runs(file, begin))
    for run in found:
        assert lines.begins_line(file, run.begin)
        assert lines.begins_line(file, run.end)
        for line in content[run.begin : run.end].splitlines():
            assert line.startswith(run.clock)
    return [(run.clock.decode(), list(run.samples)) for run in found]


def samples_of(content: bytes, begin: int = 0) -> list[tuple[str, float]]:
    return [(clock, sample) for clock, samples in read(content, begin) for sample in samples]


def line_by_line(content: bytes) -> list[tuple[str, float]]:
    """Return the same by the simplest means: whole lines, ``HH:MM:SS,number``."""
    found = []
    for line in content.split(b"\n")[:-1]:
        clock, comma, number = line.partition(b",")
        try:
            datetime.strptime(clock.decode("ascii"), "%H:%M:%S")  # noqa: DTZ007 - a time of day only
            assert len(clock) == 8
            assert comma
            found.append((clock.decode() + ",", float(number)))
        except (ValueError, AssertionError):
            continue
    return found


# -- runs


def test_runs_join_the_lines_of_a_second() -> None:
    content = HEADER + b"10:00:00,1.5\n10:00:00,-2\n10:00:01,3e-7\n10:00:00,4\n"
    assert read(content) == [("10:00:00,", [1.5, -2.0]), ("10:00:01,", [3e-7]), ("10:00:00,", [4.0])]
    first, second, third = lines.runs(io.BytesIO(content))
    assert (first.begin, first.end, second.end, third.end) == (10, 10 + 13 + 12, 10 + 13 + 12 + 14, len(content))
    assert first == LineRun(10, 35, b"10:00:00,", array("d", [1.5, -2.0]))


def test_runs_begin_at_an_offset() -> None:
    content = HEADER + b"10:00:00,1.5\n10:00:00,2.5\n10:00:01,3.5\n"
    assert read(content, 23) == [("10:00:00,", [2.5]), ("10:00:01,", [3.5])]
    (run,) = lines.runs(io.BytesIO(content), 36)
    assert (run.begin, run.end) == (36, len(content))
    assert read(content, len(content)) == []
    assert read(content, len(content) + 100) == []


@pytest.mark.parametrize("content", [b"", HEADER, b"time,da", b"\n", b"\n\n\n", b"10:00:00,1.5"])
def test_runs_of_files_without_samples_are_empty(content: bytes) -> None:
    assert read(content) == []


def test_runs_do_not_need_a_header() -> None:
    assert read(b"10:00:00,1.5\n") == [("10:00:00,", [1.5])]


def test_runs_skip_a_torn_last_line() -> None:
    whole = HEADER + b"10:00:00,1.5\n"
    for torn in (b"1", b"10:00:0", b"10:00:00,", b"10:00:01,2.", b"10:00:01,2.5"):
        assert read(whole + torn) == [("10:00:00,", [1.5])]


def test_runs_skip_a_torn_line_with_the_line_glued_to_it() -> None:
    for torn in (b"1", b"10:00:0", b"10:00:00,", b"10:00:01,2.", b"10:00:01,2.5"):
        content = HEADER + b"10:00:00,1.5\n" + torn + b"10:00:02,3.5\n10:00:03,4.5\n"
        assert samples_of(content) == [("10:00:00,", 1.5), ("10:00:03,", 4.5)], torn


def test_runs_accept_cr_lf_of_the_old_server() -> None:
    content = b"time,data\r\n10:00:00,1.5\r\n10:00:00,2.5\r\n10:00:01,-3\r\n"
    assert read(content) == [("10:00:00,", [1.5, 2.5]), ("10:00:01,", [-3.0])]


def test_runs_read_nan_and_infinities() -> None:
    samples = array("d", [1.0, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
    content = bytearray(HEADER)
    add_lines(content, b"10:11:12,", samples)
    (run,) = lines.runs(io.BytesIO(content))
    assert run.samples.tobytes() == samples.tobytes()


@pytest.mark.parametrize(
    "garbage",
    [
        b"24:00:00,1\n",
        b"10:60:00,1\n",
        b"10:00:60,1\n",
        b"1:00:00,1\n",
        b"10:00:00 1\n",
        b"10:00:00.5,1\n",
        b" 10:00:00,1\n",
        b"10:00:00,\n",
        b"10:00:00,x\n",
        b"10:00:00,1,2\n",
        b"10:00:00,0x10\n",
        b"\xff\xfe\x00\n",
        b"\0" * 5000 + b"\n",
        "１０:00:00,1\n".encode(),
        "10:00:00,１\n".encode(),
        b"time,data\n",
        b"\n",
        b"\r\n",
    ],
    ids=lambda garbage: ascii(garbage[:20]),
)
def test_runs_skip_other_lines(garbage: bytes) -> None:
    content = HEADER + b"10:00:00,1.5\n" + garbage + b"10:00:00,2.5\n" + garbage
    assert samples_of(content) == [("10:00:00,", 1.5), ("10:00:00,", 2.5)]


def test_runs_skip_a_line_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (16, 1000, 256 * 1024):
        monkeypatch.setattr(lines, "_BLOCK", block)
        for length in (4000, 5000, 100_000):
            content = HEADER + b"10:00:00,1.5\n" + b"x" * length + b"\n10:00:01,2.5\n"
            assert samples_of(content) == [("10:00:00,", 1.5), ("10:00:01,", 2.5)], (block, length)
            begins = [run.begin for run in lines.runs(io.BytesIO(content))]
            assert begins == [10, 10 + 13 + length + 1]


def test_runs_of_an_endless_line_have_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 512)
    reads: list[int] = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            reads.append(size)
            return super().read(size)

    assert list(lines.runs(Endless(b"x" * 1_000_000))) == []
    assert set(reads) == {512}


LINES = st.one_of(
    st.builds(
        lambda clock, number: b"%s,%s\n" % (clock, number),
        st.sampled_from([b"10:00:00", b"10:00:01", b"23:59:59"]),
        st.floats().map(lambda x: repr(x).encode()),
    ),
    st.sampled_from(
        [HEADER, b"\n", b"10:00:00,1.5\r\n", b"10:00:0", b"10:00:01,2.", b"garbage\n", b"\0\0\n", b"x" * 50]
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(LINES, max_size=30), st.integers(1, 60))
def test_runs_with_blocks_smaller_than_a_line(lines: list[bytes], block: int) -> None:
    content = b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        whole = samples_of(content)
        patch.setattr(raw_lines, "_BLOCK", block)
        pieces = samples_of(content)
    assert list(map(repr, pieces)) == list(map(repr, whole)) == list(map(repr, line_by_line(content)))


def test_run_across_blocks_is_yielded_in_adjacent_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    content = HEADER + b"".join(b"10:00:00,%d.5\n" % number for number in range(100))
    monkeypatch.setattr(lines, "_BLOCK", 64)
    found = list(lines.runs(io.BytesIO(content)))
    assert len(found) > 1
    assert [earlier.end for earlier in found[:-1]] == [later.begin for later in found[1:]]
    assert [sample for run in found for sample in run.samples] == [number + 0.5 for number in range(100)]


def raw(folder: Path, name: str, content: bytes, machine: str = "M") -> RawFile:
    (folder / machine).mkdir(exist_ok=True)
    path = folder / machine / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = files.raw_file(machine, str(path))
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["20251218_v.csv", "20251218_v.csv.gz"])
def test_runs_of_plain_and_compressed_files(tmp_path: Path, name: str) -> None:
    content = HEADER + b"".join(b"10:%02d:00,%d\n" % (minute, minute) for minute in range(60)) + b"11:00:0"
    with raw(tmp_path, name, content).open() as file:
        assert files.size_of(file) == len(content)
        assert [(run.clock, list(run.samples)) for run in lines.runs(file)] == [
            (b"10:%02d:00," % minute, [float(minute)]) for minute in range(60)
        ]
        begin = lines.offset_of(file, len(content), b"10:30:00,")
        assert content[begin:].startswith(b"10:30:00,30\n")
        assert next(lines.runs(file, begin)).samples[0] == 30.0
        assert lines.begins_line(file, begin)
        assert not lines.begins_line(file, begin + 1)
        assert lines.last_clock(file, len(content)) == b"10:59:00,"


def test_runs_of_a_broken_compressed_file_raise_read_error(tmp_path: Path) -> None:
    content = HEADER + b"10:00:00,1.5\n" * 10_000
    file = raw(tmp_path, "20251218_v.csv.gz", content)
    whole = Path(file.path).read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0xFF
    for broken in (whole[: len(whole) // 2], bytes(damaged), b"no gzip at all", b"\x1f\x8b"):
        Path(file.path).write_bytes(broken)
        for reading in (lambda opened: list(lines.runs(opened)), files.size_of):
            with file.open() as opened, pytest.raises(files.ReadError):
                reading(opened)


# -- bisection


def linear(content: bytes, clock: bytes) -> list[tuple[str, float]]:
    """Return the samples from the first line of a time on, line by line."""
    found = line_by_line(content)
    first = next((index for index, (time, _) in enumerate(found) if time.encode() >= clock), len(found))
    return found[first:]


def bisected(content: bytes, clock: bytes) -> list[tuple[str, float]]:
    file = io.BytesIO(content)
    begin = lines.offset_of(file, len(content), clock)
    assert 0 <= begin <= len(content)
    assert begin == len(content) or lines.begins_line(file, begin)
    return line_by_line(content[begin:])


def clock_of(second: int) -> bytes:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02},".encode()


NUMBERS = st.sampled_from([b"1", b"-0.1", b"123456.789", b"nan", b"1e-300"])


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), NUMBERS), max_size=60),
    st.integers(0, 80_000),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from([b"", b"1", b"23:59:59,1.", b"garbage"]),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([b"\n", b"garbage\n", b"10:0\n", b"x" * 200 + b"\n"]))),
)
def test_offset_of_a_time_is_found_by_bisection(
    gaps: Sequence[tuple[int, bytes]],
    second: int,
    header: bool,
    end: bytes,
    torn: bytes,
    garbage: Sequence[tuple[int, bytes]],
) -> None:
    lines, clocks = [], [0, 86_399]
    for gap, number in gaps:
        # Many lines share a second.
        second += gap // 3
        clocks += [second - 1, second, second + 1]
        lines.append(clock_of(second) + number + end)
    for place, junk in garbage:
        lines.insert(place, junk)
    content = (b"time,data" + end if header else b"") + b"".join(lines) + torn
    for clock in {clock_of(max(0, clock)) for clock in clocks}:
        assert list(map(repr, bisected(content, clock))) == list(map(repr, linear(content, clock))), clock


@pytest.mark.parametrize("content", [b"", HEADER, b"x", b"\n\n", b"10:00:00,1.5"])
@pytest.mark.parametrize("clock", [b"00:00:00,", b"10:00:00,", b"23:59:59,"])
def test_offset_of_a_time_in_a_file_without_samples(content: bytes, clock: bytes) -> None:
    assert bisected(content, clock) == []


def test_offset_of_a_time_is_the_begin_of_its_first_line() -> None:
    content = HEADER + b"10:00:00,1\n10:00:00,2\n10:00:02,3\n"
    file = io.BytesIO(content)
    assert lines.offset_of(file, len(content), b"10:00:01,") == content.index(b"10:00:02")
    assert lines.offset_of(file, len(content), b"10:00:02,") == content.index(b"10:00:02")
    assert lines.offset_of(file, len(content), b"10:00:03,") == len(content)
    assert read(content, lines.offset_of(file, len(content), b"10:00:00,")) == read(content)
    assert read(content, lines.offset_of(file, len(content), b"00:00:00,")) == read(content)


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_offset_of_a_time_that_all_lines_have(count: int) -> None:
    content = HEADER + b"10:00:00,1.5\n" * count
    for clock, kept in ((b"09:59:59,", count), (b"10:00:00,", count), (b"10:00:01,", 0)):
        assert len(bisected(content, clock)) == kept


def test_offset_is_within_the_given_size() -> None:
    # The file may grow meanwhile.
    content = HEADER + b"10:00:00,1\n"
    file = io.BytesIO(content + b"10:00:01,2\n" * 1000)
    assert lines.offset_of(file, len(content), b"10:00:01,") == len(content)


def test_last_clock_is_within_the_given_size() -> None:
    content = HEADER + b"10:00:00,1\n"
    file = io.BytesIO(content + b"10:00:01,2\n" * 1000)
    assert lines.last_clock(file, len(content)) == b"10:00:00,"


def test_offset_of_a_time_reads_few_bytes() -> None:
    content = HEADER + b"".join(clock_of(second // 10) + b"0.123456789\n" for second in range(10 * 36_000))

    class Counted(io.BytesIO):
        lines = 0

        def readline(self, size: int | None = -1) -> bytes:
            self.lines += 1
            return super().readline(-1 if size is None else size)

    file = Counted(content)
    begin = lines.offset_of(file, len(content), b"07:30:00,")
    assert content[begin:].startswith(b"07:30:00,")
    assert not content[:begin].endswith(b"07:30:00,0.123456789\n")
    assert file.lines < 100


# -- lines


def test_begins_line_is_true_after_a_line_end() -> None:
    content = b"time,data\n10:00:00,1\n10:0"
    file = io.BytesIO(content)
    assert [place for place in range(len(content) + 1) if lines.begins_line(file, place)] == [0, 10, 21]
    assert not lines.begins_line(file, len(content) + 5)
    assert lines.begins_line(io.BytesIO(b""), 0)


@pytest.mark.parametrize(
    ("content", "clock"),
    [
        (b"", None),
        (HEADER, None),
        (b"10:00:00,1", None),
        (HEADER + b"10:00:00,1\n", b"10:00:00,"),
        (HEADER + b"10:00:00,1\r\n", b"10:00:00,"),
        (HEADER + b"10:00:00,1\n10:00:01,2", b"10:00:00,"),
        (HEADER + b"10:00:00,1\n10:00:01,2\n", b"10:00:01,"),
        (HEADER + b"10:00:00,1\ngarbage\n\n", b"10:00:00,"),
        (HEADER + b"09:00:00,1\n" * 1000 + b"10:00:01,2\n" + b"x" * 300, b"10:00:01,"),
        (HEADER + b"10:00:00,1\n25:00:00,1\n", b"10:00:00,"),
    ],
    ids=lambda value: ascii(value[-24:]) if isinstance(value, bytes) else None,
)
def test_last_clock_is_that_of_the_last_sample_line(content: bytes, clock: bytes | None) -> None:
    assert lines.last_clock(io.BytesIO(content), len(content)) == clock


def test_last_clock_of_lines_of_any_size() -> None:
    for length in range(4000, 4200):
        line = b"10:00:01," + b"0" * (length - 10) + b"\n"
        content = HEADER + b"10:00:00,1\n" + line + b"10:00:02,1\n"
        assert lines.last_clock(io.BytesIO(content), len(content)) == b"10:00:02,"


# -- names


def test_raw_file_parses_its_name() -> None:
    for name, expected in (
        ("20251218_v.csv", RawFile(DAY, False, "M", "v", "/d/20251218_v.csv")),
        ("20251218_v.csv.gz", RawFile(DAY, True, "M", "v", "/d/20251218_v.csv.gz")),
        ("20251218_진동 1.csv", RawFile(DAY, False, "M", "진동 1", "/d/20251218_진동 1.csv")),
        ("20251218_a_b.csv", RawFile(DAY, False, "M", "a_b", "/d/20251218_a_b.csv")),
        ("20251218__.csv", RawFile(DAY, False, "M", "_", "/d/20251218__.csv")),
        ("20251218_x.csv.csv", RawFile(DAY, False, "M", "x.csv", "/d/20251218_x.csv.csv")),
        ("20251218_20251217_v.csv", RawFile(DAY, False, "M", "20251217_v", "/d/20251218_20251217_v.csv")),
    ):
        assert files.raw_file("M", f"/d/{name}") == expected


@pytest.mark.parametrize(
    "name",
    [
        "20251218_v.csv~",
        "20251218_v.csv.gz~",
        "20251218_v.csv.bz2",
        "20251218_v.CSV",
        "20251218v.csv",
        "20251218_.csv",
        "20251318_v.csv",
        "20250229_v.csv",
        "00000101_v.csv",
        "2025121_v.csv",
        "202512180_v.csv",
        "x20251218_v.csv",
        "20251218_a*b.csv",
        "20251218_...csv.gz",
        "20251218_a\nb.csv",
        "２０２５1218_v.csv",
        "20251218_" + "x" * 65 + ".csv",
        "anything",
        "",
    ],
)
def test_raw_file_of_another_name_is_none(name: str) -> None:
    assert files.raw_file("M", f"/d/{name}") is None


def test_raw_files_of_a_machine_are_sorted_by_day(tmp_path: Path) -> None:
    expected = [
        raw(tmp_path, "20251216_v.csv.gz", HEADER),
        raw(tmp_path, "20251217_w.csv", HEADER),
        raw(tmp_path, "20251218_v.csv", HEADER),
    ]
    folder = tmp_path / "M"
    (folder / "20251215_v.csv").mkdir()
    (folder / "20251214_v.csv").symlink_to(folder / "20251218_v.csv")
    (folder / "20251213_v.csv.gz~").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    assert files.raw_files(str(tmp_path), "M") == expected
    assert [file.day.day for file in files.raw_files(str(tmp_path), "M")] == [16, 17, 18]
    assert files.raw_files(str(tmp_path), "N") == []


def test_file_instead_of_a_folder_is_not_a_machine(tmp_path: Path) -> None:
    (tmp_path / "나").mkdir()
    (tmp_path / "가").mkdir()
    (tmp_path / "a~").mkdir()
    (tmp_path / "M").write_bytes(b"")
    assert files.machines(str(tmp_path)) == ["가", "나"]
    assert files.raw_files(str(tmp_path), "M") == []
    with pytest.raises(OSError, match="missing"):
        files.machines(str(tmp_path / "missing"))


def test_raw_files_omit_a_file_with_a_complete_compressed_one(tmp_path: Path) -> None:
    plain = raw(tmp_path, "20251218_v.csv", HEADER)
    compressed = raw(tmp_path, "20251218_v.csv.gz", HEADER)
    other = raw(tmp_path, "20251218_w.csv.gz", HEADER)
    os.utime(plain.path, ns=(0, 1_700_000_000_123_456_789))
    os.utime(compressed.path, ns=(0, 1_700_000_000_123_456_789))
    assert files.is_complete(compressed.path, plain.path)
    assert set(files.raw_files(str(tmp_path), "M")) == {compressed, other}


def test_raw_files_include_a_file_and_an_older_compressed_one(tmp_path: Path) -> None:
    plain = raw(tmp_path, "20251218_v.csv", HEADER)
    compressed = raw(tmp_path, "20251218_v.csv.gz", HEADER)
    os.utime(plain.path, ns=(0, 1_700_000_000_123_456_789))
    os.utime(compressed.path, ns=(0, 1_700_000_000_123_456_788))
    assert not files.is_complete(compressed.path, plain.path)
    # The file was compressed before the clock was set back, so that lines were added.
    assert files.raw_files(str(tmp_path), "M") == [compressed, plain]
    Path(plain.path).unlink()
    assert not files.is_complete(compressed.path, plain.path)
    assert files.raw_files(str(tmp_path), "M") == [compressed]


# -- times of lines


def times(clock: LineClock, *lines: str) -> list[str]:
    return [clock.time(f"{line},".encode()).isoformat() for line in lines]


def test_line_clock_of_an_ordinary_day() -> None:
    clock = LineClock(DAY, BERLIN)
    assert times(clock, "00:00:00", "10:11:12", "23:59:59") == [
        "2025-12-18T00:00:00+01:00",
        "2025-12-18T10:11:12+01:00",
        "2025-12-18T23:59:59+01:00",
    ]


FALL_BACK = date(2025, 10, 26)


def test_line_clock_of_a_repeated_hour() -> None:
    clock = LineClock(FALL_BACK, BERLIN)
    assert times(clock, "01:59:59", "02:00:00", "02:59:59", "02:00:00", "02:30:00", "02:30:00", "02:59:59") == [
        "2025-10-26T01:59:59+02:00",
        "2025-10-26T02:00:00+02:00",
        "2025-10-26T02:59:59+02:00",
        "2025-10-26T02:00:00+01:00",
        "2025-10-26T02:30:00+01:00",
        "2025-10-26T02:30:00+01:00",
        "2025-10-26T02:59:59+01:00",
    ]
    assert times(clock, "03:00:00") == ["2025-10-26T03:00:00+01:00"]


def test_line_clock_of_the_second_hour_only() -> None:
    assert times(LineClock(FALL_BACK, BERLIN, second=True), "01:59:59", "02:30:00", "03:00:00") == [
        "2025-10-26T01:59:59+02:00",
        "2025-10-26T02:30:00+01:00",
        "2025-10-26T03:00:00+01:00",
    ]


def test_line_clock_after_a_time_in_a_repeated_hour() -> None:
    second = datetime(2025, 10, 26, 2, tzinfo=BERLIN, fold=1)
    assert times(LineClock(FALL_BACK, BERLIN, second), "02:00:00", "02:59:59", "03:00:00") == [
        "2025-10-26T02:00:00+01:00",
        "2025-10-26T02:59:59+01:00",
        "2025-10-26T03:00:00+01:00",
    ]
    first = datetime(2025, 10, 26, 2, tzinfo=BERLIN)
    assert times(LineClock(FALL_BACK, BERLIN, first), "02:00:00", "02:59:59", "02:00:00") == [
        "2025-10-26T02:00:00+02:00",
        "2025-10-26T02:59:59+02:00",
        "2025-10-26T02:00:00+01:00",
    ]


def test_line_clock_after_the_clock_was_set_back() -> None:
    clock = LineClock(DAY, BERLIN)
    assert times(clock, "10:00:00", "08:00:00", "08:00:01", "10:00:00") == [
        "2025-12-18T10:00:00+01:00",
        "2025-12-18T08:00:00+01:00",
        "2025-12-18T08:00:01+01:00",
        "2025-12-18T10:00:00+01:00",
    ]


def test_line_clock_after_the_clock_was_set_back_over_a_repeated_hour() -> None:
    clock = LineClock(FALL_BACK, BERLIN)
    # From after both hours to within them: it is unknown which of the two it was; the first is taken.
    assert times(clock, "10:00:00", "02:30:00", "02:30:01") == [
        "2025-10-26T10:00:00+01:00",
        "2025-10-26T02:30:00+02:00",
        "2025-10-26T02:30:01+02:00",
    ]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 1800), max_size=60),
    st.integers(0, 4 * 3600),
    st.sampled_from(
        [("Europe/Berlin", "2025-10-26"), ("Australia/Lord_Howe", "2025-04-06"), ("Asia/Seoul", "2025-04-06")]
    ),
)
def test_line_clock_restores_ascending_times(gaps: list[int], first: int, where: tuple[str, str]) -> None:
    zone, day = ZoneInfo(where[0]), date.fromisoformat(where[1])
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    clock = LineClock(day, zone)
    # There is a line at least every half hour, so that the lines show which hour it is.
    moment = midnight.timestamp() + first % 1800
    for gap in [*([1500] * (first // 1800)), *gaps]:
        moment += min(gap, 1799 if zone.key != "Australia/Lord_Howe" else 899)
        time = datetime.fromtimestamp(moment, zone)
        if time.date() != day:
            break
        assert clock.time(f"{time:%H:%M:%S},".encode()).timestamp() == moment
