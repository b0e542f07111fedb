"""Compression and removal of old raw files."""

import gzip
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.utils import getProcessOutput
from twisted.trial.unittest import TestCase

from gateway.config.settings import DataSettings
from gateway.raw import retention
from gateway.raw.files import raw_files
from gateway.raw.lines import runs
from gateway.raw.retention import ROUND_SECONDS, Retention
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from tests.support.reactor import reactor
from tests.support.trial import new_folder

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

    def retention(self, is_busy: Callable[[], bool] = lambda: False, **limits: int) -> Retention:
        clock = WallClock(UTC, lambda: self.wall, lambda: self.wall)
        settings = DataSettings.model_validate(limits)
        return Retention(reactor, clock, self.counters, self.pool, str(self.folder), settings, is_busy)

    def file(self, days: int, sensor: str = "v", content: bytes = LINES, machine: str = "M") -> Path:
        """Write a raw file.

        :param days: age of the file in days.
        """
        (self.folder / machine).mkdir(exist_ok=True)
        path = self.folder / machine / f"{TODAY - timedelta(days=days):%Y%m%d}_{sensor}.csv"
        path.write_bytes(content)
        return path

    async def run_round(self, its: Retention) -> None:
        """Run a round in a thread, as the service does."""
        await threads.deferToThreadPool(reactor, self.pool, its.run_round, TODAY)

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "M").iterdir())

    async def test_retention_without_limits_touches_nothing(self) -> None:
        paths = [self.file(days) for days in (0, 1, 2, 400)]
        its = self.retention()
        its.startService()
        await self.run_round(its)
        its.stopService()
        self.assertEqual(self.names(), sorted(path.name for path in paths))
        self.assertEqual(self.counters.raw_removed._value.get(), 0)

    async def test_old_files_are_compressed_for_standard_tools(self) -> None:
        paths = {days: self.file(days) for days in (0, 1, 2, 3, 4)}
        os.utime(paths[4], (1_000_000, 1_000_000))
        await self.run_round(self.retention(compress_after_days=2))
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

    async def test_file_of_yesterday_is_never_touched(self) -> None:
        self.file(1)
        self.file(0)
        await self.run_round(self.retention(compress_after_days=1, keep_days=1, min_free_mb=1 << 40))
        self.assertEqual(self.names(), ["20251217_v.csv", "20251218_v.csv"])
        self.flushLoggedErrors()

    async def test_files_older_than_keep_days_are_removed(self) -> None:
        for days in (2, 3, 4, 5):
            self.file(days)
        await self.run_round(self.retention(compress_after_days=4))
        await self.run_round(self.retention(keep_days=3))
        self.assertEqual(self.names(), ["20251215_v.csv", "20251216_v.csv"])
        self.assertEqual(self.counters.raw_removed._value.get(), 2)

    async def test_other_files_are_never_touched(self) -> None:
        others = ["notes.txt", "20200101.csv", "2020-01-01_v.csv", "20201301_v.csv", "20200101_v.csv.bak"]
        for name in others:
            (self.folder / "M" / name).write_bytes(b"mine")
        (self.folder / "M" / "20200102_d.csv").mkdir()
        target = self.folder / "elsewhere"
        target.write_bytes(b"mine")
        (self.folder / "M" / "20200103_l.csv").symlink_to(target)
        await self.run_round(self.retention(compress_after_days=1, keep_days=1, min_free_mb=1 << 40))
        self.assertEqual(self.names(), sorted([*others, "20200102_d.csv", "20200103_l.csv"]))
        self.assertEqual(target.read_bytes(), b"mine")

    async def test_low_space_removes_the_oldest_compressed_files_first(self) -> None:
        for days in (9, 8, 7):
            self.file(days)
        await self.run_round(self.retention(compress_after_days=6))
        self.file(20)
        self.file(2)
        its = self.retention(min_free_mb=100)
        its.free_bytes = lambda path: (120 - 10 * sum(1 for _ in (self.folder / "M").iterdir())) * 2**20
        await self.run_round(its)
        # Space is enough with two of the five files.
        self.assertEqual(self.names(), ["20251128_v.csv", "20251216_v.csv"])
        self.assertIsNone(its.problem)

    async def test_low_space_without_removable_files_is_a_problem(self) -> None:
        self.file(2)
        self.file(1)
        its = self.retention(min_free_mb=100)
        its.free_bytes = lambda path: 0
        await self.run_round(its)
        self.assertEqual(self.names(), ["20251217_v.csv"])
        self.assertIn("min_free_mb", its.problem or "")

    async def test_file_that_grows_during_compression_is_kept(self) -> None:
        path = self.file(3)
        write = retention._write_compressed

        def write_and_grow(*arguments: str) -> None:
            write(*arguments)
            with path.open("ab") as file:
                file.write(b"23:59:59,1.0\n")

        self.patch(retention, "_write_compressed", write_and_grow)
        await self.run_round(self.retention(compress_after_days=1))
        self.assertEqual(self.names(), ["20251215_v.csv"])
        self.assertEqual(path.read_bytes(), LINES + b"23:59:59,1.0\n")

    async def test_later_lines_are_appended_to_the_compressed_file(self) -> None:
        self.file(3)
        its = self.retention(compress_after_days=1)
        await self.run_round(its)
        for number in range(3):
            self.file(3, content=b"time,data\n12:00:0%d,7.0\n" % number)
            await self.run_round(its)
        self.assertEqual(self.names(), ["20251215_v.csv.gz"])
        content = gzip.decompress((self.folder / "M" / "20251215_v.csv.gz").read_bytes())
        self.assertEqual(content, LINES + b"".join(b"12:00:0%d,7.0\n" % number for number in range(3)))

    async def test_leftovers_of_a_kill_are_removed(self) -> None:
        path = self.file(3)
        target = path.with_suffix(".csv.gz")
        # Killed while the compressed file was written.
        target.with_suffix(".gz~").write_bytes(b"half of it")
        # Killed after the compressed file was written: both files exist.
        other = self.file(4)
        await self.run_round(self.retention(compress_after_days=3))
        whole = other.with_suffix(".csv.gz")
        other.write_bytes(LINES)
        os.utime(other, ns=(0, whole.stat().st_mtime_ns))
        (found,) = [file for file in raw_files(str(self.folder), "M") if file.day == TODAY - timedelta(days=4)]
        self.assertTrue(found.compressed, "samples must not be read twice")
        await self.run_round(self.retention(compress_after_days=1))
        self.assertEqual(self.names(), ["20251214_v.csv.gz", "20251215_v.csv.gz"])
        for file in raw_files(str(self.folder), "M"):
            with file.open() as content:
                self.assertEqual(sum(len(run.samples) for run in runs(content)), 24)

    async def test_broken_compressed_file_is_kept_and_reported(self) -> None:
        path = self.file(3)
        target = path.with_suffix(".csv.gz")
        target.write_bytes(b"broken")
        its = self.retention(compress_after_days=1)
        await self.run_round(its)
        self.assertEqual((path.read_bytes(), target.read_bytes()), (LINES, b"broken"))
        self.assertIn("cannot compress", its.problem or "")

    async def test_unreadable_machine_does_not_stop_the_others(self) -> None:
        self.file(3, machine="A")
        self.patch(retention, "_remove_leftovers", _failing_for(self.folder / "A", retention._remove_leftovers))
        self.file(3)
        its = self.retention(compress_after_days=1)
        await self.run_round(its)
        self.assertEqual(self.names(), ["20251215_v.csv.gz"])
        self.assertIn("A", its.problem or "")

    async def test_rounds_run_at_the_start_and_every_ten_minutes(self) -> None:
        clock = Clock()
        its = self.retention(compress_after_days=1)
        rounds: list[date] = []
        done: list[Deferred[None]] = []

        def count_round(today: date) -> None:
            rounds.append(today)
            reactor.callFromThread(done[-1].callback, None)

        its.run_round = count_round  # type: ignore[method-assign]  # other tests cover the work of a round
        its._rounds.clock = clock
        done.append(Deferred())
        its.startService()
        await done[-1]
        await self._idle()
        self.wall += 86400
        done.append(Deferred())
        clock.advance(ROUND_SECONDS)
        await done[-1]
        await self._idle()
        its.stopService()
        self.assertEqual(rounds, [TODAY, TODAY + timedelta(days=1)])

    async def _idle(self) -> None:
        """Wait until the thread of the pool is idle and its callbacks have run."""
        await threads.deferToThreadPool(reactor, self.pool, lambda: None)


def _failing_for(folder: Path, real: Callable[[str], None]) -> Callable[[str], None]:
    def fail(directory: str) -> None:
        if directory == str(folder):
            raise PermissionError(13, "Permission denied")
        real(directory)

    return fail
