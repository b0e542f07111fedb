"""What becomes of old raw files: compressed, and let go, only if the configuration says so."""

import gzip
import os
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from operator import attrgetter
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.raw import files
from gateway.raw.files import RawFile
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters

log = Logger()

#: Seconds between two rounds.
ROUND: Final = 600.0

#: What a compressed file is called while it is being written.
_PART: Final = "~"

#: gzip's own default; 9 takes three times as long for a hundredth less.
_LEVEL: Final = 6

_BLOCK: Final = 1024 * 1024


class Retention(Service):
    """Goes through the raw files at the start and every ten minutes.

    Today's and yesterday's files are never touched: statistics are made again from them after a kill.

    :param directory: ``data.path``.
    :param busy: says whether raw files must be left alone for now.
    :param keep_days: files of days longer ago are removed; ``None``: never.
    :param compress_after_days: files of days longer ago are compressed; ``None``: never.
    :param min_free: bytes; while less is free, the oldest files are removed, compressed ones first; ``None``: never.
    :ivar problem: why files cannot be compressed or removed; ``None`` where they can.
    """

    name = "retention"

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        pool: ThreadPool,
        directory: str,
        *,
        busy: Callable[[], bool],
        keep_days: int | None,
        compress_after_days: int | None,
        min_free: int | None,
        free: Callable[[str], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self.problem: str | None = None
        self._stopped = False
        #: What a round that is under way has come upon.
        self._found: str | None = None
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._pool = pool
        self._directory = directory
        self._busy = busy
        self._keep_days = keep_days
        self._compress_after_days = compress_after_days
        self._min_free = min_free
        self._free = free
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor

    def startService(self) -> None:
        super().startService()
        if any(limit is not None for limit in (self._keep_days, self._compress_after_days, self._min_free)):
            self._rounds.start(ROUND)

    def stopService(self) -> None:
        super().stopService()
        self._stopped = True
        if self._rounds.running:
            self._rounds.stop()

    def _round(self) -> "Deferred[None]":
        if self._busy():
            return succeed(None)

        def failed(failure: Failure) -> None:
            log.failure("the raw files could not be gone through", failure)

        today = self._clock.now().date()
        return deferToThreadPool(self._reactor, self._pool, self.go_through, today).addErrback(failed)

    def go_through(self, today: date) -> None:
        """One round; it blocks, and is for a thread."""
        self._found = None
        self._go_through(today)
        self.problem = self._found

    def _go_through(self, today: date) -> None:
        found = self._old_files(today)
        if self._keep_days is not None:
            first = today - timedelta(days=self._keep_days)
            for file in [file for file in found if file.day < first]:
                found.remove(file)
                if self._remove(file):
                    log.info("{path} is removed: it is older than data.keep_days", path=file.path)
        if self._compress_after_days is not None:
            first = today - timedelta(days=self._compress_after_days)
            for index, file in enumerate(found):
                if self._stopped:
                    return
                if file.day < first and not file.compressed:
                    found[index] = self._compress(file)
        if self._min_free is not None:
            self._make_room(found, self._min_free)

    def _old_files(self, today: date) -> list[RawFile]:
        """Files that may be touched, the oldest first."""
        found: list[RawFile] = []
        for machine in files.machines(self._directory):
            try:
                _remove_left_over(os.path.join(self._directory, machine))
                its = files.raw_files(self._directory, machine)
            except OSError as error:
                self._found = f"raw files of {machine} cannot be gone through: {error.strerror}"
                log.error("{problem}", problem=self._found)
                continue
            found += [file for file in its if file.day < today - timedelta(days=1)]
        return sorted(found, key=attrgetter("order"))

    def _compress(self, file: RawFile) -> RawFile:
        """Compress a file; what stands there then."""
        target = f"{file.path}.gz"
        try:
            before = os.stat(file.path)
            _write_compressed(file.path, f"{target}{_PART}", target)
            os.utime(f"{target}{_PART}", ns=(before.st_atime_ns, before.st_mtime_ns))
            # In the reactor's thread, which is where lines are appended.
            if not blockingCallFromThread(self._reactor, self._swap, file.path, target, before):
                return file
        except files.ReadError as error:
            self._failed("compressed", file, error)
            return file
        self._counters.raw_compressed.inc()
        return RawFile(file.day, True, file.machine, file.sensor, target)

    def _swap(self, path: str, target: str, before: os.stat_result) -> bool:
        now = os.stat(path)
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            os.unlink(f"{target}{_PART}")
            return False
        os.replace(f"{target}{_PART}", target)
        os.unlink(path)
        return True

    def _make_room(self, found: list[RawFile], least: int) -> None:
        for file in sorted(found, key=lambda file: (not file.compressed, file.day)):
            if self._free(self._directory) >= least:
                return
            if self._remove(file):
                log.warn("{path} is removed: less than data.min_free_mb is free", path=file.path)
        if self._free(self._directory) < least:
            self._found = "less than data.min_free_mb is free, and no raw file may be removed any more"
            log.error("{problem}", problem=self._found)

    def _remove(self, file: RawFile) -> bool:
        try:
            os.unlink(file.path)
        except OSError as error:
            self._failed("removed", file, error)
            return False
        self._counters.raw_removed.inc()
        return True

    def _failed(self, what: str, file: RawFile, error: Exception) -> None:
        self._found = f"a raw file cannot be {what}: {error}"
        log.error("{path} cannot be {what}: {error}", path=file.path, what=what, error=error)


def _write_compressed(path: str, part: str, target: str) -> None:
    """Write what is compressed already, if there is something, and a file behind it.

    :raises ReadError: one cannot be read or written, or does not read back.
    """
    with open(part, "wb") as output:
        size = 0
        with open(path, "rb") as lines:
            # A clock that was set back brought more for a day that was compressed before.
            if os.path.exists(target):
                with gzip.open(target) as earlier:
                    size = files.size_of(earlier)
                with open(target, "rb") as earlier_bytes:
                    shutil.copyfileobj(earlier_bytes, output, _BLOCK)
                if lines.readline(len(files.HEADER)) != files.HEADER:
                    lines.seek(0)
            begin = lines.tell()
            with gzip.GzipFile("", "wb", _LEVEL, output, mtime=0) as members:
                shutil.copyfileobj(lines, members, _BLOCK)
            size += lines.tell() - begin
        output.flush()
        os.fsync(output.fileno())
    with gzip.open(part) as content:
        if files.size_of(content) != size:
            raise OSError(f"{part} does not read back")


def _remove_left_over(directory: str) -> None:
    """Remove what a kill left: half of a compressed file, and a file whose compressed one is whole.

    :raises OSError: that cannot be done.
    """
    with os.scandir(directory) as entries:
        names = {entry.name for entry in entries}
    for name in names:
        path = os.path.join(directory, name)
        is_part = name.endswith(f".csv.gz{_PART}")
        if is_part or (f"{name}.gz" in names and files.raw_file("", name) and files.holds_all(f"{path}.gz", path)):
            os.unlink(path)
