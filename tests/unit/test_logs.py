"""Log files and what is written to them, with a clock of the tests'."""

import os
import subprocess
import sys
from typing import cast

from twisted.logger import ILogObserver, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from gateway.runtime.directory_lock import OLD_LOCK, DirectoryInUse, DirectoryLock, OldServerLock
from gateway.runtime.limited_log import shown
from gateway.runtime.logs import BufferingObserver, LogOptions, LogOutput
from gateway.runtime.metrics import Counters
from tests.support.log_case import LogCase
from tests.support.trial import new_folder


class LogFileTests(LogCase):
    def test_it_rolls_over_at_midnight_of_the_configured_zone(self) -> None:
        self.open()
        self.say("어제 {name}", name="쇼트블라스트")
        self.reactor.advance(1)
        self.say("오늘")
        yesterday = (self.folder / "cynow-gateway.log.2025_12_18").read_text("utf-8")
        self.assertEqual(yesterday, "2025-12-18 23:59:59.000+09:00 [test#info] 어제 쇼트블라스트\n")
        today = (self.folder / "cynow-gateway.log").read_text("utf-8")
        self.assertEqual(today, "2025-12-19 00:00:00.000+09:00 [test#info] 오늘\n")
        self.assertEqual(self.stream.getvalue(), yesterday + today)

    def test_old_files_go_others_stay(self) -> None:
        self.folder.mkdir()
        names = ["cynow-gateway.log.2025_12_07", "cynow-gateway.log.2025_12_08", "cynow-gateway.log.old", "other"]
        for name in names:
            (self.folder / name).write_text("")
        self.open(keep_days=10)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {*names[1:], "cynow-gateway.log"})

    def test_a_level(self) -> None:
        self.open("warn")
        self.say("no")
        self.say("yes", LogLevel.warn)
        self.assertNotIn("no", self.stream.getvalue())
        self.assertIn("yes", self.stream.getvalue())

    def test_a_name_moves_nobodys_cursor(self) -> None:
        self.open()
        self.say("{name}", name="a\x1b[2Jb\x9bc\rd\ne")
        self.assertTrue(self.stream.getvalue().endswith("a\ufffd[2Jb\ufffdc\ufffdd\n\te\n"))

    def test_a_name_that_is_not_utf_8_is_written(self) -> None:
        self.open()
        self.say("{name}", name=os.fsdecode(b"\xff.csv"))
        self.assertTrue((self.folder / "cynow-gateway.log").read_text("utf-8").endswith("\\udcff.csv\n"))

    def test_a_directory_that_is_a_file(self) -> None:
        self.folder.write_text("")
        with self.assertRaises(OSError):
            self.open()

    def test_held_until_released(self) -> None:
        events: list[object] = []
        held = BufferingObserver(cast(ILogObserver, events.append))
        held({"n": 1})
        held({"n": 2})
        self.assertEqual(events, [])
        held.release()
        held({"n": 3})
        self.assertEqual(events, [{"n": 1}, {"n": 2}, {"n": 3}])

    def test_shown(self) -> None:
        self.assertEqual(shown(b"abc"), "b'abc'")
        self.assertEqual(shown(b"\xff" * 51), repr(b"\xff" * 50) + "...")


class LockTests(SynchronousTestCase):
    def test_one_at_a_time(self) -> None:
        folder = str(new_folder(self, "lock"))
        lock = DirectoryLock(folder)
        with self.assertRaises(DirectoryInUse):
            DirectoryLock(folder)
        lock.release()
        DirectoryLock(folder).release()

    def test_it_is_made(self) -> None:
        folder = new_folder(self, "lock") / "a" / "b"
        DirectoryLock(str(folder)).release()
        self.assertTrue(folder.is_dir())


class OldServerLockTests(SynchronousTestCase):
    """Locks of one process do not collide by record, so the old server is a process of its own."""

    def setUp(self) -> None:
        self.folder = new_folder(self, "lock")
        self.file = self.folder / OLD_LOCK

    def held(self, how: str) -> "subprocess.Popen[bytes]":
        code = (
            f"import fcntl, sys; file = open({str(self.file)!r}, 'w');"
            f" fcntl.{how}(file, fcntl.LOCK_EX | fcntl.LOCK_NB);"
            "print(flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(other.communicate)
        assert other.stdout is not None
        other.stdout.readline()
        return other

    def test_no_file_is_no_old_server(self) -> None:
        OldServerLock(str(self.folder)).release()
        self.assertFalse(self.file.exists())

    def test_a_stale_file_is_no_old_server(self) -> None:
        self.file.write_text("1")
        OldServerLock(str(self.folder)).release()

    def test_a_file_that_is_locked_is_one(self) -> None:
        for how in ("flock", "lockf"):
            other = self.held(how)
            with self.assertRaises(DirectoryInUse):
                OldServerLock(str(self.folder))
            other.communicate()
            OldServerLock(str(self.folder)).release()

    def test_it_keeps_the_old_server_from_starting(self) -> None:
        self.file.touch()
        lock = OldServerLock(str(self.folder))
        for how in ("flock", "lockf"):
            code = f"import fcntl; fcntl.{how}(open({str(self.file)!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            self.assertIn(b"BlockingIOError", done.stderr)
        lock.release()

    def test_what_is_no_file_says_nothing(self) -> None:
        os.mkfifo(self.file)
        OldServerLock(str(self.folder)).release()
        self.file.unlink()
        self.file.mkdir()
        OldServerLock(str(self.folder)).release()


class LimitedObserverTests(LogCase):
    """Lines that come without end, whoever logs them."""

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def opened(self) -> LogOutput:
        self.counters = Counters()
        self.observer = LogOutput(self.clock, self.counters, LogOptions(), self.stream)
        return self.observer

    def test_lines_of_a_library_are_limited_and_counted(self) -> None:
        self.opened()
        for number in range(7600):
            self.say("Could not accept new connection ({number})", log_namespace="twisted.internet.tcp", number=number)
        self.say("Something else", log_namespace="twisted.internet.tcp")
        self.say("ours", log_namespace="gateway.runtime.lifecycle")
        self.assertEqual(len(self.lines()), 5 + 2)
        self.assertEqual(self.counters.log_suppressed._value.get(), 7595)
        # What was left out is said though no further line of that kind comes.
        self.reactor.advance(61)
        for report in self.counters.log_reports:
            report(False)
        self.assertIn("7595 similar lines within 60 s were not logged, such as: Could not accept", self.lines()[-1])

    def test_own_errors_are_limited_generously(self) -> None:
        self.opened()
        for _ in range(200):
            self.say("a part has failed", LogLevel.critical, log_namespace="gateway.bus.bus")
        self.assertEqual(len(self.lines()), 50)
