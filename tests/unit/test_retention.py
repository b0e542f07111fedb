"""Old raw files: compressed, removed, and left alone unless the configuration says otherwise."""

import gzip
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from twisted.internet import reactor, threads
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.utils import getProcessOutput
from twisted.trial.unittest import TestCase

from gateway.raw import retention
from gateway.raw.files import raw_files
from gateway.raw.lines import runs
from gateway.raw.retention import ROUND, Retention
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from tests.trial import new_folder

TODAY = date(2025, 12, 18)

LINES = b"time,data\n" + b"".join(b"%02d:00:00,%d.5\n" % (hour, hour) for hour in range(24))


class RetentionTests(TestCase):
    def setUp(self) -> None:
        self.folder = new_folder(self, "retention")
        (self.folder / "M").mkdir()
        self.counters = Counters()
        self.pool = pool_of(1, "retention")
        self.pool.start()
        self.addCleanup(self.pool.stop)
        self.wall = datetime(2025, 12, 18, 10, tzinfo=UTC).timestamp()

    def retention(self, **settings: Any) -> Retention:
        limits = {"busy": lambda: False, "keep_days": None, "compress_after_days": None, "min_free": None, **settings}
        clock = WallClock(UTC, lambda: self.wall, lambda: self.wall)
        return Retention(reactor, clock, self.counters, self.pool, str(self.folder), **limits)

    def file(self, days: int, sensor: str = "v", content: bytes = LINES, machine: str = "M") -> Path:
        """A file of so many days ago."""
        (self.folder / machine).mkdir(exist_ok=True)
        path = self.folder / machine / f"{TODAY - timedelta(days=days):%Y%m%d}_{sensor}.csv"
        path.write_bytes(content)
        return path

    async def go_through(self, its: Retention) -> None:
        """A round, in the thread that it is for."""
        await threads.deferToThreadPool(reactor, self.pool, its.go_through, TODAY)

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "M").iterdir())

    async def test_nothing_is_touched_unless_the_configuration_says_so(self) -> None:
        paths = [self.file(days) for days in (0, 1, 2, 400)]
        its = self.retention()
        its.startService()
        await self.go_through(its)
        its.stopService()
        self.assertEqual(self.names(), sorted(path.name for path in paths))
        self.assertEqual(self.counters.raw_removed._value.get(), 0)

    async def test_old_files_are_compressed_so_that_standard_tools_read_them(self) -> None:
        paths = {days: self.file(days) for days in (0, 1, 2, 3, 4)}
        os.utime(paths[4], (1_000_000, 1_000_000))
        await self.go_through(self.retention(compress_after_days=2))
        self.assertEqual(
            self.names(),
            ["20251214_v.csv.gz", "20251215_v.csv.gz", "20251216_v.csv", "20251217_v.csv", "20251218_v.csv"],
        )
        compressed = self.folder / "M" / "20251214_v.csv.gz"
        self.assertEqual(gzip.decompress(compressed.read_bytes()), LINES)
        self.assertEqual(await getProcessOutput("gzip", ("-dc", str(compressed))), LINES)
        self.assertEqual(compressed.stat().st_mtime, 1_000_000)
        self.assertLess(compressed.stat().st_size, len(LINES))
        self.assertEqual(self.counters.raw_compressed._value.get(), 2)

    async def test_yesterdays_file_is_never_touched(self) -> None:
        self.file(1)
        self.file(0)
        await self.go_through(self.retention(compress_after_days=1, keep_days=1, min_free=1 << 62))
        self.assertEqual(self.names(), ["20251217_v.csv", "20251218_v.csv"])
        self.flushLoggedErrors()

    async def test_files_beyond_keep_days_are_removed_compressed_or_not(self) -> None:
        for days in (2, 3, 4, 5):
            self.file(days)
        await self.go_through(self.retention(compress_after_days=4))
        await self.go_through(self.retention(keep_days=3))
        self.assertEqual(self.names(), ["20251215_v.csv", "20251216_v.csv"])
        self.assertEqual(self.counters.raw_removed._value.get(), 2)

    async def test_what_is_no_raw_file_is_never_touched(self) -> None:
        others = ["notes.txt", "20200101.csv", "2020-01-01_v.csv", "20201301_v.csv", "20200101_v.csv.bak"]
        for name in others:
            (self.folder / "M" / name).write_bytes(b"mine")
        (self.folder / "M" / "20200102_d.csv").mkdir()
        target = self.folder / "elsewhere"
        target.write_bytes(b"mine")
        (self.folder / "M" / "20200103_l.csv").symlink_to(target)
        await self.go_through(self.retention(compress_after_days=1, keep_days=1, min_free=1 << 62))
        self.assertEqual(self.names(), sorted([*others, "20200102_d.csv", "20200103_l.csv"]))
        self.assertEqual(target.read_bytes(), b"mine")

    async def test_room_is_made_by_the_oldest_compressed_files_first(self) -> None:
        for days in (9, 8, 7):
            self.file(days)
        await self.go_through(self.retention(compress_after_days=6))
        self.file(20)
        self.file(2)
        its = self.retention(min_free=100)
        its._free = lambda path: 100 - 10 * sum(1 for _ in (self.folder / "M").iterdir()) + 20
        await self.go_through(its)
        # Five files are three too many.
        self.assertEqual(self.names(), ["20251128_v.csv", "20251216_v.csv"])
        self.assertIsNone(its.problem)

    async def test_no_room_can_be_made(self) -> None:
        self.file(2)
        self.file(1)
        its = self.retention(min_free=100, free=lambda path: 0)
        await self.go_through(its)
        self.assertEqual(self.names(), ["20251217_v.csv"])
        self.assertIn("min_free_mb", its.problem or "")

    async def test_a_file_that_grows_meanwhile_is_left(self) -> None:
        path = self.file(3)
        write = retention._write_compressed

        def grows(*arguments: str) -> None:
            write(*arguments)
            with path.open("ab") as file:
                file.write(b"23:59:59,1.0\n")

        self.patch(retention, "_write_compressed", grows)
        await self.go_through(self.retention(compress_after_days=1))
        self.assertEqual(self.names(), ["20251215_v.csv"])
        self.assertEqual(path.read_bytes(), LINES + b"23:59:59,1.0\n")

    async def test_lines_that_came_later_go_behind_the_compressed_ones(self) -> None:
        self.file(3)
        its = self.retention(compress_after_days=1)
        await self.go_through(its)
        for number in range(3):
            self.file(3, content=b"time,data\n12:00:0%d,7.0\n" % number)
            await self.go_through(its)
        self.assertEqual(self.names(), ["20251215_v.csv.gz"])
        content = gzip.decompress((self.folder / "M" / "20251215_v.csv.gz").read_bytes())
        self.assertEqual(content, LINES + b"".join(b"12:00:0%d,7.0\n" % number for number in range(3)))

    async def test_what_a_kill_left_is_put_right(self) -> None:
        path = self.file(3)
        target = path.with_suffix(".csv.gz")
        # Killed while the compressed file was written.
        target.with_suffix(".gz~").write_bytes(b"half of it")
        # Killed after it had been: both are there.
        other = self.file(4)
        await self.go_through(self.retention(compress_after_days=3))
        whole = other.with_suffix(".csv.gz")
        other.write_bytes(LINES)
        os.utime(other, ns=(0, whole.stat().st_mtime_ns))
        (found,) = [file for file in raw_files(str(self.folder), "M") if file.day == TODAY - timedelta(days=4)]
        self.assertTrue(found.compressed, "its samples must not be read twice")
        await self.go_through(self.retention(compress_after_days=1))
        self.assertEqual(self.names(), ["20251214_v.csv.gz", "20251215_v.csv.gz"])
        for each in raw_files(str(self.folder), "M"):
            with each.open() as content:
                self.assertEqual(sum(len(run.samples) for run in runs(content)), 24)

    async def test_a_compressed_file_that_is_broken_is_not_made_worse(self) -> None:
        path = self.file(3)
        target = path.with_suffix(".csv.gz")
        target.write_bytes(b"broken")
        its = self.retention(compress_after_days=1)
        await self.go_through(its)
        self.assertEqual((path.read_bytes(), target.read_bytes()), (LINES, b"broken"))
        self.assertIn("cannot be compressed", its.problem or "")

    async def test_a_machine_that_cannot_be_read_costs_no_other(self) -> None:
        self.file(3, machine="A")
        self.patch(retention, "_remove_left_over", _fails_for(self.folder / "A", retention._remove_left_over))
        self.file(3)
        its = self.retention(compress_after_days=1)
        await self.go_through(its)
        self.assertEqual(self.names(), ["20251215_v.csv.gz"])
        self.assertIn("A", its.problem or "")

    async def test_a_round_at_the_start_and_every_ten_minutes(self) -> None:
        clock = Clock()
        its = self.retention(compress_after_days=1)
        rounds: list[date] = []
        done: list[Deferred[None]] = []

        def go_through(today: date) -> None:
            rounds.append(today)
            reactor.callFromThread(done[-1].callback, None)

        its.go_through = go_through  # type: ignore[method-assign]  # what a round does is tested above
        its._rounds.clock = clock
        done.append(Deferred())
        its.startService()
        await done[-1]
        await self._idle()
        self.wall += 86400
        done.append(Deferred())
        clock.advance(ROUND)
        await done[-1]
        await self._idle()
        its.stopService()
        self.assertEqual(rounds, [TODAY, TODAY + timedelta(days=1)])

    async def _idle(self) -> None:
        """Wait until the pool's thread and its callbacks are through."""
        await threads.deferToThreadPool(reactor, self.pool, lambda: None)


def _fails_for(folder: Path, real: Callable[[str], None]) -> Callable[[str], None]:
    def fails(directory: str) -> None:
        if directory == str(folder):
            raise PermissionError(13, "no right")
        real(directory)

    return fails
