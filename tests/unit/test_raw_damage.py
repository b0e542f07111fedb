"""Damage of raw files: detection by all readers, one report, and separation from new lines."""

import gzip
import io
import os
import sqlite3
import tempfile
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gateway.model.records import Batch, SensorBatch
from gateway.raw import files, lines
from gateway.raw.damage import SHOWN_SECONDS, DamageLog, Scan
from gateway.raw.files import HEADER
from gateway.raw.log import RawLog
from gateway.raw.plot import Plot
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from tests.support.killable import Killable, readable
from tests.support.metrics import count_of
from tests.support.trial import new_folder
from tests.unit.test_recovery import at

GOOD = HEADER + b"10:00:00,1.5\n10:00:00,2.5\n10:00:01,3.5\n"

#: Content that a disk, a power cut or a kill of the old server leaves instead of lines.
DAMAGED = {
    "NUL line": b"\0" * 30 + b"\n",
    "NUL glued to a line": b"\0" * 4096 + b"10:00:02,4.5\n",
    "number cut by NUL": b"10:00:02,0.7" + b"\0" * 500 + b"\n",
    "number cut by NUL, then a line": b"10:00:02,0.7" + b"\0" * 500 + b"10:00:03,4.5\n",
    "torn number, then a line": b"10:11:12,0.7310:11:13,0.74\n",
    "torn time, then a line": b"10:11:10:11:13,0.74\n",
    "torn before its number": b"10:11:12,10:11:13,0.74\n",
    "no number": b"10:11:12,\n",
    "two numbers": b"10:11:12,1,2\n",
    "a word": b"10:11:12,x\n",
    "true": b"10:11:12,true\n",
    "false": b"10:11:12,false\n",
    "null": b"10:11:12,null\n",
    "a list": b"10:11:12,[1]\n",
    "a blank before its number": b"10:11:12, 1\n",
    "a blank behind its number": b"10:11:12,1 \n",
    "a tab behind its number": b"10:11:12,1\t\n",
    "a CR before its number": b"10:11:12,\r1\n",
    "a CR in the place of LF": b"10:11:12,1\r10:11:12,2\n",
    "garbage behind its number": b"10:11:12,1.5 garbage\n",
    "ended by a start": b"10:11:12,0.7 torn\n",
    "underscore": b"10:11:12,1_0\n",
    "a word of Python's": b"10:11:12,Infinity\n",
    "leading zero": b"10:11:12,00.5\n",
    "plus": b"10:11:12,+0.5\n",
    "no digit before the point": b"10:11:12,.5\n",
    "binary": bytes(range(128, 256)) + b"\n",
    "time that is none": b"24:00:00,1\n",
    "header glued to a line": b"time,data10:00:00,1.5\n",
    "half a header": b"time,da\n",
}


def scanned(content: bytes, begin: int = 0) -> tuple[list[float], Scan]:
    scan = Scan()
    samples = [sample for run in lines.runs(io.BytesIO(content), begin, scan.add) for sample in run.samples]
    return samples, scan


# -- reading


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("block", [16, 40, 256 * 1024])
def test_runs_with_a_damaged_line_report_all_its_bytes_and_read_the_others(
    monkeypatch: pytest.MonkeyPatch, damage: bytes, block: int
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    for before, behind in ((GOOD, b""), (GOOD, b"10:00:01,4.5\n"), (b"", GOOD), (GOOD, b"10:11:12,9.5\n")):
        content = before + damage + behind
        samples, scan = scanned(content)
        assert samples == [sample for _, sample in readable_of(before + behind)]
        assert scan.stretches == [(len(before), len(before) + len(damage))]
        assert (scan.count, scan.nul) == (len(damage), damage.count(0))


def readable_of(content: bytes) -> list[tuple[bytes, float]]:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        return readable(file.name)


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_runs_with_a_damaged_line_between_lines_of_its_second_report_it_alone(damage: bytes) -> None:
    content = GOOD + b"10:11:12,4.5\n" + damage + b"10:11:12,5.5\n10:11:12,nan\n"
    samples, scan = scanned(content)
    assert samples[:5] == [1.5, 2.5, 3.5, 4.5, 5.5]
    assert len(samples) == 6
    begin = len(GOOD) + 13
    assert scan.stretches == [(begin, begin + len(damage))]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER,
        GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r\r\n"),
        GOOD.replace(b"\n", b"\n\n"),
        b"10:00:00,1.5\n",
        GOOD + HEADER + b"10:00:02,1e-07\n10:00:02,1e-7\n10:00:02,-0.0\n10:00:02,1.5e+300\n10:00:02,5\n",
        GOOD + b"10:00:02,nan\n10:00:02,inf\n10:00:02,-inf\n10:00:02,2.\n",
    ],
)
def test_runs_of_sound_files_report_nothing(content: bytes) -> None:
    samples, scan = scanned(content)
    assert scan.stretches == []
    lines = [line for line in content.splitlines() if line.strip() not in (b"", b"time,data")]
    assert len(samples) == len(lines)


@pytest.mark.parametrize("tail", [b"1", b"10:00:0", b"10:00:02,", b"10:00:02,0.7", b"10:00:02,0.7\r", b"\0" * 4096])
def test_runs_of_a_file_whose_last_line_lacks_its_end_report_it(tail: bytes) -> None:
    samples, scan = scanned(GOOD + tail)
    assert samples == [1.5, 2.5, 3.5]
    assert scan.stretches == [(len(GOOD), len(GOOD) + len(tail))]


@pytest.mark.parametrize("size", [1, 4096, 256 * 1024, 1024 * 1024 + 17])
def test_runs_of_a_file_of_nothing_but_nul_report_all_of_it(size: int) -> None:
    samples, scan = scanned(bytes(size))
    assert (samples, scan.stretches, scan.nul) == ([], [(0, size)], size)


def test_runs_do_not_read_a_line_behind_nul_that_begins_where_a_block_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (8192, 16384):
        monkeypatch.setattr(lines, "_BLOCK", block)
        content = GOOD + bytes(2 * 16384 - len(GOOD)) + b"10:00:02,4.5\n10:00:03,5.5\n"
        samples, scan = scanned(content)
        assert samples == [1.5, 2.5, 3.5, 5.5]
        assert scan.stretches == [(len(GOOD), len(content) - 13)]


def test_runs_report_damage_in_many_places_one_by_one() -> None:
    content, expected = HEADER, []
    for number in range(10):
        expected.append((len(content), len(content) + 3))
        content += b"xx\n10:00:0%d,1.5\n" % number
    samples, scan = scanned(content)
    assert len(samples) == 10
    assert scan.stretches == expected


LINES = [b"10:%02d:%02d,%r\n" % (second // 60, second % 60, second / 7) for second in range(600)]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.sampled_from(["nul", "cut", "garbage", "truncated"]))
def test_no_damage_makes_a_sample_that_was_not_there(begin: int, length: int, kind: str) -> None:
    whole = HEADER + b"".join(LINES)
    begin %= len(whole)
    length = min(length, len(whole) - begin)
    put = {"nul": bytes(length), "garbage": Random(length).randbytes(length).replace(b"\n", b"x")}.get(kind, b"")
    content = whole[:begin] if kind == "truncated" else whole[:begin] + put + whole[begin + length :]
    samples, scan = scanned(content)
    true = {second / 7 for second in range(600)}
    # If lines are cut out, the rests of two may form a line that looks sound.
    wrong = [sample for sample in samples if sample not in true]
    assert len(wrong) <= (kind == "cut")
    if kind in {"nul", "garbage", "truncated"}:
        lines = [line for line in content.split(b"\n")[:-1] if line + b"\n" in LINES]
        assert len(samples) == len(lines)
        assert scan.count == len(content) - len(b"\n".join([*lines, b""])) - len(HEADER) * content.startswith(HEADER)


# -- places


@pytest.mark.parametrize("size", [4096, 100_000, 1024 * 1024])
def test_the_place_of_a_time_is_found_around_nul(size: int) -> None:
    for index in range(0, 600, 37):
        content = HEADER + b"".join(LINES[:index]) + bytes(size) + b"".join(LINES[index:])
        file = io.BytesIO(content)
        for second in (0, 100, index, min(index + 1, 599), 599):
            begin = lines.offset_of(file, len(content), LINES[second][:9])
            found = scanned(content, begin)[0]
            # The line after NUL is glued to it.
            assert found == [number / 7 for number in range(second, 600) if number != index or index == 600]


@pytest.mark.parametrize("size", [100, 4096, 100_000, 3 * 1024 * 1024])
def test_the_last_time_is_found_before_nul(size: int) -> None:
    content = GOOD + bytes(size) + b"\n"
    assert lines.last_clock(io.BytesIO(content), len(content)) == b"10:00:01,"
    assert lines.last_clock(io.BytesIO(bytes(size)), size) is None


class CountingFile(io.BytesIO):
    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


def test_nul_before_of_a_sound_file_reads_its_end_only() -> None:
    content = HEADER + b"10:00:00,1.5\n" * 200_000
    for position in (0, 1, 4096, 4097, 8192, 1_000_000, len(content)):
        file = CountingFile(content)
        assert lines.nul_before(file, position) is None
        assert file.count <= 2 * 4096


def test_nul_before_finds_all_of_the_last_mib_if_the_end_has_some() -> None:
    content = HEADER + b"10:00:00,1.5\n" * 200_000
    position = content.index(b"\n", 2**21 + 5) + 1
    for begins in ([position - 1], [position - 4096], [position - 500_000, position - 4096]):
        damaged = bytearray(content)
        for begin in begins:
            damaged[begin : begin + 1] = b"\0"
        # The page with the position is whole, or has new lines.
        assert lines.nul_before(io.BytesIO(damaged), position) == content.rindex(b"\n", 0, begins[0]) + 1


# -- reports


class DamageLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()
        self.counters = Counters()
        clock = WallClock(UTC, self.reactor.seconds, self.reactor.seconds)
        self.damage = DamageLog(clock, self.counters)

    def counted(self) -> float:
        return count_of(self.counters.raw_damaged)

    def scan(self, path: str, *pieces: tuple[int, bytes], is_problem: bool = True) -> list[str]:
        """Report pieces, and return the log lines."""
        with capturedLogs() as events, self.damage.scan(path, is_problem=is_problem) as damaged:
            for begin, content in pieces:
                damaged(begin, content)
        return [event["log_format"].format(**event) for event in events]

    def test_damage_is_counted_and_logged_once(self) -> None:
        pieces = ((100, b"x" * 10), (110, b"\0" * 90), (300, b"y" * 5))
        (line,) = self.scan("/d/M/20251218_v.csv", *pieces)
        self.assertIn("/d/M/20251218_v.csv: 105 damaged bytes in 2 places, 90 of them NUL", line)
        self.assertIn("between byte 100 and byte 305", line)
        self.assertEqual(self.counted(), 105)
        (problem,) = self.damage.problems
        self.assertIn("raw file M/20251218_v.csv: 105 damaged bytes", problem)
        # The same after another read, and after compression.
        for path in ("/d/M/20251218_v.csv", "/d/M/20251218_v.csv.gz"):
            self.assertEqual(self.scan(path, *pieces), [])
        self.assertEqual(self.counted(), 105)

    def test_damage_of_an_unreadable_file_is_not_counted(self) -> None:
        with self.assertRaises(EOFError), self.damage.scan("/d/M/a.csv.gz") as damaged:
            damaged(0, b"x")
            raise EOFError
        self.assertEqual(self.counted(), 0)

    def test_damage_of_a_partly_read_file_is_counted(self) -> None:
        with self.assertRaises(GeneratorExit), self.damage.scan("/d/M/a.csv") as damaged:
            damaged(0, b"x")
            raise GeneratorExit
        self.assertEqual(self.counted(), 1)

    def test_new_damage_of_a_known_file_is_counted(self) -> None:
        self.scan("/d/M/a", (100, b"x" * 10))
        self.assertEqual(len(self.scan("/d/M/a", (105, b"x" * 10), (500, b"x"))), 1)
        self.assertEqual(self.counted(), 16)
        self.assertEqual(len(self.scan("/d/M/b", (100, b"x" * 10))), 1)
        self.assertEqual(self.counted(), 26)

    def test_sound_file_is_not_a_problem(self) -> None:
        self.assertEqual(self.scan("/d/M/a"), [])
        self.assertEqual(self.damage.problems, [])

    def test_damage_found_by_a_plot_is_logged_only(self) -> None:
        self.assertEqual(len(self.scan("/d/M/a", (0, b"x"), is_problem=False)), 1)
        self.assertEqual(self.damage.problems, [])

    def test_problem_ends_after_a_day(self) -> None:
        self.scan("/d/M/a", (0, b"x"))
        self.reactor.advance(SHOWN_SECONDS / 2)
        self.scan("/d/M/b", (0, b"x"))
        self.reactor.advance(SHOWN_SECONDS / 2)
        (problem,) = self.damage.problems
        self.assertIn("M/b", problem)

    def test_problems_and_known_files_are_bounded(self) -> None:
        for number in range(1500):
            self.scan(f"/d/M/{number}", (0, b"x"))
        problems = self.damage.problems
        self.assertEqual(len(problems), 11)
        self.assertEqual(problems[-1], "990 more raw files are damaged: see the log")
        self.assertLessEqual(len(self.damage._known), 1000)

    def test_stretches_of_one_file_are_bounded(self) -> None:
        self.scan("/d/M/a", *((10 * number, b"x") for number in range(5000)))
        self.assertEqual(self.counted(), 5000)
        self.assertLessEqual(len(self.damage._known["/d/M/a"]), 1000)

    def test_log_lines_of_damage_are_limited(self) -> None:
        with capturedLogs() as events:
            for number in range(1000):
                with self.damage.scan(f"/d/M/{number}") as damaged:
                    damaged(0, b"x")
        self.assertEqual(len(events), 200)
        self.assertEqual(self.counted(), 1000)

    def test_line_that_is_being_written_is_not_damage(self) -> None:
        with self.damage.scan("/d/M/a", is_growing=True) as damaged:
            damaged(0, b"10:00:0")
        self.assertEqual(self.counted(), 0)
        with self.damage.scan("/d/M/a", is_growing=True) as damaged:
            damaged(0, b"\0" * 5000)
            damaged(6000, b"xx\n")
        self.assertEqual(self.counted(), 5003)

    def test_missing_bytes_are_counted_and_reported(self) -> None:
        with capturedLogs() as events:
            self.damage.missing("/d/M/a", 600, 1000)
        self.assertEqual(self.counters.raw_missing._value.get(), 400)
        self.assertEqual(len(events), 1)
        self.assertEqual(
            self.damage.problems, ["raw file M/a: 400 bytes are missing: it has 600, and statistics count 1000"]
        )

    def test_unreadable_file_is_reported(self) -> None:
        self.damage.unreadable("/d/M/a.csv.gz", EOFError("broken"))
        self.assertEqual(
            self.damage.problems,
            ["raw file M/a.csv.gz: cannot read it, so statistics lack its samples: broken"],
        )


# -- writing


class AppendTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = new_folder(self, "damage")
        (self.folder / "M").mkdir()
        self.path = self.folder / "M" / "20251218_v.csv"
        self.reactor = Clock()
        self.reactor.advance(datetime(2025, 12, 18, 10, 11, tzinfo=UTC).timestamp())
        self.clock = WallClock(UTC, self.reactor.seconds, self.reactor.seconds)
        self.counters = Counters()
        self.damage = DamageLog(self.clock, self.counters)
        self.rawlog = self.started()

    def started(self) -> RawLog:
        rawlog = RawLog(self.reactor, self.clock, self.counters, str(self.folder), lambda *sensor: True, self.damage)
        rawlog.startService()
        self.addCleanup(rawlog.stopService)
        return rawlog

    def write(self, *samples: float) -> None:
        self.rawlog.write(Batch("M", {"v": SensorBatch("VIB", array("d", samples))}, self.clock.now()))
        self.reactor.advance(0.5)

    def counted(self) -> float:
        return count_of(self.counters.raw_damaged)

    def test_new_lines_do_not_join_damaged_ones(self) -> None:
        for number, tail in enumerate(
            (
                b"1",
                b"10:00:0",
                b"10:00:02,",
                b"10:00:02,0.7",
                b"10:00:02,0.7\r",
                b"10:00:02,-inf",
                b"10:00:02,0.7" + b"\0" * 4096,
                b"\0" * 4096,
                b"\0" * 1024 * 1024,
                Random(1).randbytes(5000).replace(b"\n", b"x"),
            )
        ):
            for before in (GOOD, b""):
                self.rawlog.stopService()
                self.path.write_bytes(before + tail)
                self.damage = DamageLog(self.clock, self.counters)
                counted = self.counted()
                self.rawlog = self.started()
                self.write(3.25, 4.25)
                content = self.path.read_bytes()
                what = f"{number} behind {len(before)} bytes"
                self.assertTrue(content.startswith(before + tail), what)
                self.assertRegex(content, rb"\n10:11:\d\d,3.25\n10:11:\d\d,4.25\n\Z", what)
                samples = [1.5, 2.5, 3.5] if before else []
                self.assertEqual([sample for _, sample in readable(self.path)], [*samples, 3.25, 4.25], what)
                self.assertEqual(scanned(content)[0], [*samples, 3.25, 4.25], what)
                self.assertEqual(self.counted() - counted, min(len(tail), 65536), what)
                (problem,) = self.damage.problems
                self.assertIn("raw file M/20251218_v.csv: ", problem)
                self.path.unlink()

    def test_torn_header_is_completed_and_not_damage(self) -> None:
        for begun in range(len(HEADER) + 1):
            for tail in {HEADER[:begun], (b"time,data\r\n")[:begun]}:
                self.rawlog.stopService()
                self.path.write_bytes(tail)
                self.rawlog = self.started()
                self.write(3.25)
                self.assertRegex(self.path.read_bytes(), rb"\Atime,data\r?\n10:11:\d\d,3.25\n\Z")
        self.assertEqual(self.counted(), 0)
        self.assertEqual(self.damage.problems, [])

    def test_raw_log_end_separates_a_torn_line_too(self) -> None:
        # Statistics call it at the end of an hour, which opens the file for writing.
        self.path.write_bytes(GOOD + b"10:00:02,0.7")
        end = self.rawlog.end("M", "v", self.clock.now())
        assert end is not None
        self.write(3.25)
        self.assertEqual(self.path.read_bytes()[end:], b"10:11:00,3.25\n")
        self.assertTrue(lines.begins_line(io.BytesIO(self.path.read_bytes()), end))

    def test_damage_reported_by_recovery_is_not_reported_again(self) -> None:
        self.path.write_bytes(GOOD + b"10:00:02,0.7" + bytes(100_000))
        with self.path.open("rb") as file, self.damage.scan(str(self.path)) as damaged:
            list(lines.runs(file, 0, damaged))
        with capturedLogs() as events:
            self.write(3.25)
            with self.path.open("rb") as file, self.damage.scan(str(self.path)) as damaged:
                list(lines.runs(file, 0, damaged))
        self.assertEqual(events, [])
        self.assertEqual(self.counted(), 100_012)

    def test_file_cut_while_it_is_written_is_separated_too(self) -> None:
        self.write(1.125)
        os.truncate(self.path, self.path.stat().st_size - 3)
        self.write(3.25)
        self.assertEqual(self.path.read_bytes(), HEADER + b"10:11:00,1.1 torn\n10:11:00,3.25\n")
        (problem,) = self.damage.problems
        self.assertIn("3 bytes are missing", problem)
        self.assertIn("12 damaged bytes", problem)

    def test_emptied_file_gets_a_header(self) -> None:
        self.write(1.125)
        os.truncate(self.path, 0)
        self.write(3.25)
        self.assertEqual(self.path.read_bytes(), HEADER + b"10:11:00,3.25\n")

    def test_line_begun_by_another_program_is_separated(self) -> None:
        self.write(1.125)
        with self.path.open("ab") as file:
            file.write(b"10:11:00,9")
        self.write(3.25)
        self.assertEqual(self.path.read_bytes(), HEADER + b"10:11:00,1.125\n10:11:00,9 torn\n10:11:00,3.25\n")


# -- the start


class RecoveryTests(TestCase):
    """A gateway that is killed at 11:20 and started again with a damaged file."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "damage")

    def query(self, killed: Killable, statement: str) -> list[tuple[int, ...]]:
        connection = sqlite3.connect(killed.db / "M.db")
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    async def killed(self, name: str) -> Killable:
        killed = Killable(self.folder / name, at("2025-12-18 10:30:00"))
        await killed.start()
        number = 0
        while killed.now() < at("2025-12-18 11:20:00"):
            number += 1
            killed.send_one(number / 8, -number / 8)
            killed.advance(10)
            await killed.write()
        killed.advance(1)
        await killed.kill()
        return killed

    def path(self, killed: Killable) -> Path:
        return killed.data / "M" / "20251218_v.csv"

    async def compare(self, killed: Killable, what: str) -> None:
        """Check that the rows of hour 11 and of later hours count the readable lines of the file."""
        self.assertTrue(await killed.start())
        killed.send_one(100.0, 200.0)
        killed.advance(1)
        await killed.kill()
        # Another kill: no sample may count twice, and the damage is in the middle now.
        self.assertTrue(await killed.start())
        killed.send_one(300.0)
        await killed.end(at("2026-01-01 00:00:30"))
        found = readable(self.path(killed))
        hour = [abs(sample) for clock, sample in found if clock.startswith(b"11:")]
        (row,) = [row for row in killed.rows()["M", "v_hour_avg"] if row["time"] == "2025-12-18 11:00:00"]
        self.assertEqual(row["count"], len(hour), what)
        self.assertEqual(row["data"], sum(hour) / len(hour), what)
        self.assertEqual(hour[-3:], [100.0, 200.0, 300.0], what)

    def problems(self, killed: Killable) -> str:
        (problem,) = killed.damage.problems
        return problem

    async def test_damage_in_the_open_hour_is_reported_and_the_rest_counted(self) -> None:
        def nul_tail(content: bytes) -> bytes:
            return content[:-1000] + bytes(1000)

        def nul_behind(content: bytes) -> bytes:
            return content + bytes(4096)

        def nul_middle(content: bytes) -> bytes:
            return content[:-1500] + bytes(700) + content[-800:]

        def torn(content: bytes) -> bytes:
            return content[:-5]

        def garbage(content: bytes) -> bytes:
            return content[:-300] + Random(1).randbytes(100) + content[-200:]

        def glued(content: bytes) -> bytes:
            lines = content.splitlines(keepends=True)
            return b"".join([*lines[:-5], lines[-5].rstrip(), *lines[-4:]])

        for damage in (nul_tail, nul_behind, nul_middle, torn, garbage, glued):
            killed = await self.killed(damage.__name__)
            path = self.path(killed)
            path.write_bytes(damage(path.read_bytes()))
            _, scan = scanned(path.read_bytes())
            self.assertGreater(scan.count, 0)
            with capturedLogs() as events:
                await killed.start()
            self.assertIn(f"raw file M/20251218_v.csv: {scan.count} damaged bytes", self.problems(killed))
            lines = [event["log_format"].format(**event) for event in events if event["log_level"].name == "warn"]
            self.assertEqual(len([line for line in lines if str(path) in line]), 1, lines)
            self.assertEqual(killed.counters.raw_damaged._value.get(), scan.count)
            await killed.kill()
            await self.compare(killed, damage.__name__)

    async def test_file_without_bytes_that_rows_count_is_reported(self) -> None:
        for what, keep in (("at a line", 20), ("in a line", 17)):
            killed = await self.killed(what)
            path = self.path(killed)
            lines = path.read_bytes().splitlines(keepends=True)
            (counted,) = self.query(killed, "SELECT raw_end FROM v_hour_avg")[0]
            content = b"".join(lines[:keep]) + (lines[keep][:-4] if what == "in a line" else b"")
            path.write_bytes(content)
            await killed.start()
            problem = self.problems(killed)
            self.assertIn(f"{counted - len(content)} bytes are missing", problem)
            self.assertEqual("damaged bytes" in problem, what == "in a line")
            self.assertEqual(killed.counters.raw_missing._value.get(), counted - len(content))
            # The row stays, and is not computed again from fewer samples.
            ((count,),) = self.query(killed, "SELECT count FROM v_hour_avg")
            self.assertEqual(count, 360)
            await killed.kill()
            await self.compare(killed, what)

    async def test_row_that_reached_the_disk_before_its_lines_is_reported(self) -> None:
        for what in ("all NUL", "over the end of the hour", "just before it"):
            killed = await self.killed(what)
            path = self.path(killed)
            content = path.read_bytes()
            (counted,) = self.query(killed, "SELECT raw_end FROM v_hour_avg")[0]
            begin, end = {
                "all NUL": (0, len(content)),
                "over the end of the hour": (counted - 500, counted + 700),
                "just before it": (counted - 500, counted - 100),
            }[what]
            path.write_bytes(content[:begin] + bytes(end - begin) + content[end:])
            _, scan = scanned(path.read_bytes())
            await killed.start()
            problem = self.problems(killed)
            self.assertIn(f"{scan.count} damaged bytes", problem, what)
            self.assertEqual("have changed" in problem, what != "just before it", what)
            ((count,),) = self.query(killed, "SELECT count FROM v_hour_avg")
            self.assertEqual(count, 360)
            await killed.kill()
            await self.compare(killed, what)

    async def test_sound_start_reports_nothing(self) -> None:
        killed = await self.killed("sound")
        with capturedLogs() as events:
            await killed.start()
        self.assertEqual(killed.damage.problems, [])
        self.assertEqual([event for event in events if event["log_level"].name != "info"], [])
        await killed.kill()

    async def test_last_updates_are_read_despite_nul_before_the_open_hour(self) -> None:
        killed = await self.killed("nul")
        path = self.path(killed)
        content = path.read_bytes()
        path.write_bytes(content + bytes(10_000))
        await killed.start()
        await killed.end(at("2025-12-18 12:00:10"))
        await killed.start()
        self.assertEqual(len(killed.snapshot("M")["v"]), 50)
        await killed.kill()

    async def test_broken_compressed_files_are_reported(self) -> None:
        killed = await self.killed("gz")
        whole = gzip.compress(HEADER + b"10:00:00,1.5\n" * 10_000)
        for number, content in enumerate((whole[:-10], whole[: len(whole) // 2], b"not gzip", b"")):
            name = f"20251218_z{number}.csv.gz"
            (killed.data / "M" / name).write_bytes(content)
        await killed.start()
        problems = killed.damage.problems
        for number in range(3):
            said = [problem for problem in problems if f"M/20251218_z{number}.csv.gz" in problem]
            self.assertEqual(len(said), 1, problems)
            self.assertIn("cannot read it", said[0])
        await killed.kill()


# -- plots


class PlotTests(SynchronousTestCase):
    def test_damage_found_by_plots_is_counted_once(self) -> None:
        folder = new_folder(self, "damage")
        (folder / "M").mkdir()
        (folder / "M" / "20251218_v.csv").write_bytes(GOOD + bytes(100) + b"\n10:00:02,4.5\n10:00:03,0.7")
        begin, end = (datetime(2025, 12, 18, hour, tzinfo=UTC) for hour in (9, 11))
        for day, tail in ((19, 12), (18, 0)):
            counters = Counters()
            damage = DamageLog(WallClock(UTC), counters)
            today = datetime(2025, 12, day, tzinfo=UTC).date()
            for _ in range(2):
                plot = Plot(UTC, begin, end, 10, damage, today)
                points = [point for page in plot.points(files.raw_files(str(folder), "M")) for point in page]
                self.assertEqual(sum(point["count"] for point in points), 4)
            self.assertEqual(counters.raw_damaged._value.get(), 101 + tail)
            self.assertEqual(damage.problems, [])


def test_readable_lines_of_the_tests_equal_those_of_the_gateway(tmp_path: Path) -> None:
    """The simple reader of these tests and that of the gateway agree on every damaged line."""
    path = tmp_path / "f"
    damaged: Sequence[bytes] = list(DAMAGED.values())
    path.write_bytes(GOOD + b"".join(damaged) + b"10:11:12,4.5\n")
    assert [sample for _, sample in readable(path)] == scanned(path.read_bytes())[0] == [1.5, 2.5, 3.5, 4.5]
