"""Raw log: the writer of samples to raw files, ``data/<machine>/YYYYMMDD_<sensor>.csv``."""

import errno
import itertools
import os
import resource
from array import array
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final

import orjson
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.model.records import Batch
from gateway.raw.damage import DamageLog, Scan
from gateway.raw.files import HEADER, path_of
from gateway.raw.lines import is_line
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.timeseries.bucket import MIN_NUMPY_SAMPLES

log = Logger()

#: Maximum seconds that lines wait before they are written to the operating system, and the bytes of one sensor that
#: are written at once if its type is stored.
FLUSH_SECONDS: Final = 0.4
_FLUSH_BYTES: Final = 64 * 1024

#: Seconds between two checks for lines that are due, so that many sensors are not written all at once.
_CHECK_SECONDS: Final = 0.1

#: Maximum seconds of one turn of writing.
_MAX_TURN_SECONDS: Final = 0.01

#: Approximate length of a line.
_LINE_BYTES: Final = 28

#: Maximum bytes that wait for all files that cannot be written, in equal shares; above it, the oldest lines are lost.
_MAX_WAITING_BYTES: Final = 32 * 1024 * 1024

#: Maximum open files, and the divisor of the process's limit, which leaves the rest for connections.
_MAX_OPEN_FILES: Final = 4096
_OPEN_SHARE: Final = 4

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

#: Maximum bytes of a torn last line to inspect before new lines follow it; recovery has read the whole line.
_TAIL_BYTES: Final = 64 * 1024

#: Ending of a torn last line that would otherwise read as a sample line: its number may have been cut.
_TORN: Final = b" torn\n"

#: Maximum samples of a sensor that are converted to lines at a time.
_MAX_SAMPLES: Final = 1024


def add_lines(text: bytearray, prefix: bytes, samples: "array[float]") -> None:
    """Append a line for each sample: the prefix, and the shortest decimal that reads back as the same double."""
    if not samples:
        return
    # orjson writes the shortest digits, thirty times as fast as the csv module; it writes NaN as null.
    if len(samples) >= MIN_NUMPY_SAMPLES:
        from gateway.timeseries.numpy_sums import json_list

        numbers = json_list(samples)
    else:
        numbers = orjson.dumps(samples.tolist())
    if b"n" in numbers:
        text += b"".join(b"%s%s\n" % (prefix, repr(sample).encode()) for sample in samples)
        return
    text += prefix
    text += memoryview(numbers.replace(b",", b"\n" + prefix))[1:-1]
    text += b"\n"


class PendingLines:
    """Lines that wait to be written to one file.

    The samples of the current second are converted together, since calls would cost more than the conversion itself.

    :ivar since: time of arrival of the first line, or of the last failure, by the clock of the reactor.
    """

    __slots__ = ("_prefix", "_samples", "_text", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self._text = bytearray()
        self._prefix = b""
        self._samples = array("d")

    def add(self, prefix: bytes, samples: "array[float]") -> bool:
        """Add samples of the second of a prefix.

        :returns: whether enough bytes wait for the lines to be written.
        """
        if prefix is not self._prefix or len(self._samples) >= _MAX_SAMPLES:
            self.text()
            self._prefix = prefix
        self._samples += samples
        return len(self._text) + _LINE_BYTES * len(self._samples) >= _FLUSH_BYTES

    def text(self) -> bytearray:
        """Return all lines; the caller deletes from the beginning of the buffer what it has written."""
        if self._samples:
            add_lines(self._text, self._prefix, self._samples)
            self._samples = array("d")
        return self._text


class RawLog(Service):
    """Writer of every sample of every batch.

    :param directory: ``data.path``; it exists.
    :param is_known: function that returns whether the type of a machine's sensor is stored, as files do not hold it.
    :param damage: log for damaged files.
    """

    name = "rawlog"

    def __init__(
        self,
        reactor: IReactorTime,
        clock: WallClock,
        counters: Counters,
        directory: str,
        is_known: Callable[[str, str], bool],
        damage: DamageLog,
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self._is_known = is_known
        self._counters = counters
        self._warnings = LimitedLog(log, clock, counters)
        self._damage = damage
        #: Lines to write by path, the oldest first.
        self._waiting: dict[str, PendingLines] = {}
        #: Reason of the failure by path, for those that could not be written.
        self._failing: dict[str, str] = {}
        #: Time of the last batch, prefix of the lines of its second, and the day's paths by machine and sensor.
        self._arrival: datetime | None = None
        self._prefix = b""
        self._paths: dict[tuple[str, str], str] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        #: Size of each open file by path, in bytes, unless another program has changed it.
        self._sizes: dict[str, int] = {}
        self._max_files = _MAX_OPEN_FILES
        self._next_turn: IDelayedCall | None = None
        self._flushing = LoopingCall(self._flush_due)
        self._flushing.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._max_files = min(_MAX_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _OPEN_SHARE)
        self._flushing.start(_CHECK_SECONDS, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._flushing.running:
            self._flushing.stop()
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self.flush()
        for path in list(self._files):
            self._close(path)

    @property
    def problem(self) -> str | None:
        """Return a file that cannot be written, the reason, and the number of others; ``None`` if all can."""
        problem = next(iter(self._failing.values()), None)
        more = len(self._failing) - 1
        return f"{problem} (and {more} more)" if more > 0 else problem

    def path(self, machine: str, sensor: str, day: datetime) -> str:
        """Return the path of the raw file of a sensor and a day."""
        return path_of(path_of(self._directory, machine), sensor, f"{day:%Y%m%d}_{{}}.csv")

    def end(self, machine: str, sensor: str, day: datetime) -> int | None:
        """Return the size of a day's file with all samples until now, in bytes; ``None`` if some are not written."""
        path = self.path(machine, sensor, day)
        if path in self._waiting:
            self._flush(path)
        try:
            # Opening the file ends a torn line, so a line begins at its size.
            return None if path in self._waiting or not os.path.exists(path) else os.fstat(self._open(path)).st_size
        except OSError:
            return None

    def write(self, batch: Batch) -> None:
        """Add the samples of a batch, which are written to the operating system within half a second."""
        if batch.received_at is not self._arrival:
            self._set_time(batch.received_at)
        machine, paths, waiting = batch.machine, self._paths, self._waiting
        for name, sensor in batch.sensors.items():
            if not sensor.samples:
                continue
            path = paths.get((machine, name))
            if path is None:
                path = paths[machine, name] = self.path(machine, name, batch.received_at)
            lines = waiting.get(path)
            if lines is None:
                lines = waiting[path] = PendingLines(self._reactor.seconds())
            # The type of a sensor must be stored before its lines; otherwise the flush that is due gives it time.
            if lines.add(self._prefix, sensor.samples) and self._is_known(machine, name):
                self._flush(path)

    def _set_time(self, time: datetime) -> None:
        """Set the time of the next samples, and close the files at the end of a day."""
        before, self._arrival = self._arrival, time
        if before is not None and time.replace(microsecond=0) == before.replace(microsecond=0):
            return
        self._prefix = f"{time:%H:%M:%S},".encode()
        if before is None or time.date() != before.date():
            self.flush()
            self._paths.clear()
            for path in list(self._files):
                self._close(path)

    def _flush_due(self) -> None:
        """Write the lines that are due; if this takes long, continue in the next turn of the reactor."""
        if self._next_turn is not None and self._next_turn.active():
            self._next_turn.cancel()
        self._next_turn = None
        now = self._reactor.seconds()
        due = [
            path
            for path, _ in itertools.takewhile(lambda item: item[1].since <= now - FLUSH_SECONDS, self._waiting.items())
        ]
        for path in due:
            if self._reactor.seconds() - now > _MAX_TURN_SECONDS:
                # For example at midnight, when every sensor gets a new file.
                self._next_turn = self._reactor.callLater(0, self._flush_due)
                return
            self._flush(path)

    def flush(self) -> None:
        """Write all lines to the operating system, as far as it accepts them."""
        for path in list(self._waiting):
            self._flush(path)

    def _flush(self, path: str) -> None:
        lines = self._waiting.pop(path)
        waiting = lines.text()
        # A disk that accepts only a part is full.
        problem = f"{path}: {os.strerror(errno.ENOSPC)}"
        try:
            written = _append(self._open(path), waiting)
            self._sizes[path] += written
            del waiting[:written]
        except OSError as error:
            problem = f"{error.filename or path}: {error.strerror or error}"
            self._close(path)
        if waiting:
            lines.since = self._reactor.seconds()
            self._waiting[path] = lines
            self._failing[path] = problem
            self._log_failure(waiting, problem)
            return
        if self._failing.pop(path, None) is not None and not self._failing:
            log.info("raw files: all can be written again")

    def _log_failure(self, waiting: bytearray, problem: str) -> None:
        """Log a failure, and drop the oldest lines above the maximum."""
        self._counters.raw_failures.inc()
        self._warnings.warn(
            "write",
            "raw file {problem}: cannot write; samples wait in memory, and the oldest are dropped above {limit} bytes",
            problem=problem,
            limit=_MAX_WAITING_BYTES,
        )
        excess = len(waiting) - _MAX_WAITING_BYTES // len(self._failing)
        if excess > 0:
            # Only whole lines are dropped.
            excess = waiting.find(b"\n", excess - 1) + 1 or len(waiting)
            del waiting[:excess]
            self._counters.raw_lost.inc(excess)

    def _open(self, path: str) -> int:
        file = self._files.get(path)
        if file is not None:
            size = _size_at(file, path)
            if size == self._sizes[path]:
                self._files.move_to_end(path)
                return file
            if size is not None and size < self._sizes[path]:
                self._damage.missing(path, size, self._sizes[path])
            # Another program has removed, moved or changed the file.
            self._close(path)
        try:
            file = os.open(path, _FLAGS, 0o644)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = os.open(path, _FLAGS, 0o644)
        try:
            torn = _prepare(file)
            size = os.fstat(file).st_size
        except OSError:
            os.close(file)
            raise
        if torn is not None:
            self._report_torn(path, *torn, size)
        self._files[path] = file
        self._sizes[path] = size
        if len(self._files) > self._max_files:
            self._close(next(iter(self._files)))
        return file

    def _report_torn(self, path: str, begin: int, line: bytes, size: int) -> None:
        scan = Scan()
        scan.add(begin, line)
        self._damage.report(path, scan)
        # To the next reader of the file, the ending is part of the line.
        self._damage.learn(path, begin, size)

    def _close(self, path: str) -> None:
        self._sizes.pop(path, None)
        file = self._files.pop(path, None)
        if file is not None:
            os.close(file)


def _size_at(file: int, path: str) -> int | None:
    """Return the size of an open file; ``None`` if the path names another file by now."""
    try:
        status = os.fstat(file)
        return status.st_size if os.path.samestat(status, os.stat(path)) else None
    except OSError:
        return None


def _append(file: int, lines: bytearray) -> int:
    """Append as many whole lines as the disk accepts; return the number of bytes."""
    written = os.write(file, lines)
    if written == len(lines):
        return written
    whole = lines.rfind(b"\n", 0, written) + 1
    os.ftruncate(file, os.fstat(file).st_size - (written - whole))
    return whole


def _prepare(file: int) -> tuple[int, bytes] | None:
    """Prepare a file for new lines: write the header of a new file, and end a torn last line.

    :returns: offset of the torn line, in bytes, and its content, at most its last 64 KiB; ``None`` if no line is torn.
    :raises OSError: the disk cannot be written.
    """
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) == b"\n":
        return None
    tail = os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    if size == len(tail) and HEADER.startswith(tail.removesuffix(b"\r")):
        # A torn header is simply completed: it holds no sample.
        _add(file, size, HEADER[len(tail) :] or b"\n")
        return None
    line = tail[tail.rfind(b"\n") + 1 :]
    _add(file, size, _TORN if is_line(line) else b"\n")
    return size - len(line), line


def _add(file: int, size: int, text: bytes) -> None:
    """Append a text completely, or not at all.

    :param size: size of the file in bytes.
    :raises OSError: the disk accepted only a part.
    """
    if os.write(file, text) < len(text):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
