"""Retention of raw files: compression and removal of old ones, if configured."""

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

from gateway.config.settings import DataSettings
from gateway.raw import files
from gateway.raw.files import RawFile
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters

log = Logger()

#: Seconds between two rounds.
ROUND_SECONDS: Final = 600.0

#: Suffix of a compressed file while it is being written.
_PART: Final = "~"

#: Default level of the gzip program; level 9 takes three times as long and saves one percent.
_LEVEL: Final = 6

_BLOCK: Final = 1024 * 1024


class Retention(Service):
    """Compression and removal of old raw files, at the start and every ten minutes.

    Files of today and yesterday are never touched: after a kill, statistics are recovered from them.

    :param pool: pool of one thread, so that readers of raw files do not wait for compression.
    :param directory: directory of raw files.
    :param settings: limits. While less than ``min_free_mb`` is free, the oldest files are removed, compressed ones
        first.
    :param is_busy: returns whether raw files must not be touched for now.
    :ivar problem: reason why files cannot be compressed or removed; ``None`` if they can.
    :ivar free_bytes: returns the free bytes of the file system of a directory.
    """

    name = "retention"

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        pool: ThreadPool,
        directory: str,
        settings: DataSettings,
        is_busy: Callable[[], bool],
    ) -> None:
        self.problem: str | None = None
        self.free_bytes: Callable[[str], int] = _free_bytes
        self._is_stopped = False
        #: Last problem of the current round.
        self._round_problem: str | None = None
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._pool = pool
        self._directory = directory
        self._settings = settings
        self._is_busy = is_busy
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._start_rounds()

    def _start_rounds(self) -> None:
        limits = self._settings
        has_limits = any(
            limit is not None for limit in (limits.keep_days, limits.compress_after_days, limits.min_free_mb)
        )
        if has_limits and not self._rounds.running:
            self._rounds.start(ROUND_SECONDS)

    def update(self, settings: DataSettings) -> None:
        """Change the limits, from the next round on."""
        self._settings = settings
        if self.running:
            self._start_rounds()

    def stopService(self) -> None:
        super().stopService()
        self._is_stopped = True
        if self._rounds.running:
            self._rounds.stop()

    def _round(self) -> "Deferred[None]":
        if self._is_busy():
            return succeed(None)

        def failed(failure: Failure) -> None:
            log.failure("retention of raw files failed; the next round tries again", failure)

        today = self._clock.now().date()
        return deferToThreadPool(self._reactor, self._pool, self.run_round, today).addErrback(failed)

    def run_round(self, today: date) -> None:
        """Compress and remove old files. This blocks, so it runs in a thread."""
        self._round_problem = None
        self._apply_limits(today)
        self.problem = self._round_problem

    def _apply_limits(self, today: date) -> None:
        limits = self._settings
        old_files = self._old_files(today)
        if limits.keep_days is not None:
            first = today - timedelta(days=limits.keep_days)
            for file in [file for file in old_files if file.day < first]:
                old_files.remove(file)
                if self._remove(file):
                    log.info(
                        "raw file {path}: removed, because it is older than data.keep_days ({days})",
                        path=file.path,
                        days=limits.keep_days,
                    )
        if limits.compress_after_days is not None:
            first = today - timedelta(days=limits.compress_after_days)
            for index, file in enumerate(old_files):
                if self._is_stopped:
                    return
                if file.day < first and not file.compressed:
                    old_files[index] = self._compress(file)
        if limits.min_free_mb is not None:
            self._free_space(old_files, limits.min_free_mb)

    def _old_files(self, today: date) -> list[RawFile]:
        """Return the files that may be touched, the oldest first."""
        old_files: list[RawFile] = []
        for machine in files.machines(self._directory):
            try:
                _remove_leftovers(os.path.join(self._directory, machine))
                found = files.raw_files(self._directory, machine)
            except OSError as error:
                self._round_problem = f"machine {machine}: cannot read its raw files: {error.strerror}"
                log.error("{problem}", problem=self._round_problem)
                continue
            old_files += [file for file in found if file.day < today - timedelta(days=1)]
        return sorted(old_files, key=attrgetter("order"))

    def _compress(self, file: RawFile) -> RawFile:
        """Compress a file; return the compressed file, or the same one if that failed."""
        target = f"{file.path}.gz"
        try:
            before = os.stat(file.path)
            _write_compressed(file.path, f"{target}{_PART}", target)
            os.utime(f"{target}{_PART}", ns=(before.st_atime_ns, before.st_mtime_ns))
            # Lines are appended in the reactor's thread only, so none can be added during the swap.
            if not blockingCallFromThread(self._reactor, self._swap, file.path, target, before):
                return file
        except files.ReadError as error:
            self._log_failure("compress", file, error)
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

    def _free_space(self, old_files: list[RawFile], min_free_mb: int) -> None:
        for file in sorted(old_files, key=lambda file: (not file.compressed, file.day)):
            if self._has_space(min_free_mb):
                return
            if self._remove(file):
                log.warn(
                    "raw file {path}: removed, because less than data.min_free_mb ({limit} MB) is free",
                    path=file.path,
                    limit=min_free_mb,
                )
        if not self._has_space(min_free_mb):
            self._round_problem = (
                f"less than data.min_free_mb ({min_free_mb} MB) is free, and no more raw files may be removed: free"
                " disk space"
            )
            log.error("{problem}", problem=self._round_problem)

    def _has_space(self, min_free_mb: int) -> bool:
        return self.free_bytes(self._directory) >= min_free_mb * 2**20

    def _remove(self, file: RawFile) -> bool:
        try:
            os.unlink(file.path)
        except OSError as error:
            self._log_failure("remove", file, error)
            return False
        self._counters.raw_removed.inc()
        return True

    def _log_failure(self, action: str, file: RawFile, error: Exception) -> None:
        self._round_problem = f"cannot {action} a raw file: {error}"
        log.error("raw file {path}: cannot {action} it: {error}", path=file.path, action=action, error=error)


def _free_bytes(directory: str) -> int:
    return shutil.disk_usage(directory).free


def _write_compressed(path: str, part: str, target: str) -> None:
    """Write a compressed file, which begins with the content of an existing one.

    :param path: raw file to compress.
    :param part: file to write.
    :param target: compressed file, which may exist.
    :raises ReadError: a file cannot be read or written, or its content differs when read back.
    """
    with open(part, "wb") as output:
        size = 0
        with open(path, "rb") as lines:
            # After the clock was set back, lines can be added to a day that has been compressed.
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
            raise OSError(f"{part}: the compressed content differs when read back")


def _remove_leftovers(directory: str) -> None:
    """Remove files that a kill has left: partly written compressed files, and files whose compressed one is complete.

    :raises OSError: a file cannot be read or removed.
    """
    with os.scandir(directory) as entries:
        names = {entry.name for entry in entries}
    for name in names:
        path = os.path.join(directory, name)
        is_part = name.endswith(f".csv.gz{_PART}")
        if is_part or (f"{name}.gz" in names and files.raw_file("", name) and files.is_complete(f"{path}.gz", path)):
            os.unlink(path)
