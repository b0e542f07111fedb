"""Raw samples in CSV files: ``data/<machine>/YYYYMMDD_<sensor>.csv``."""

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

#: Lines are handed to the operating system when they have waited so many seconds, and once so many bytes of a sensor
#: wait whose type is kept.
FLUSH_SECONDS: Final = 0.4
_FLUSH_BYTES: Final = 64 * 1024

#: How often that is looked at, in seconds: those of many sensors go one after the other, as they came.
_LOOK_SECONDS: Final = 0.1

#: What that takes at most before everybody else has a turn, in seconds.
_TURN_SECONDS: Final = 0.01

#: About how long a line is.
_LINE_BYTES: Final = 28

#: What may wait in all for files that cannot be written, in bytes, an equal share for each; then the oldest lines of
#: a file are lost, and counted.
_WAITING_BYTES: Final = 32 * 1024 * 1024

#: Files that are held open at most, and the share of those that the process may open: the rest are connections.
_OPEN_FILES: Final = 4096
_OPEN_SHARE: Final = 4

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

#: Maximum bytes of a torn last line to inspect before new lines follow it; recovery has read the whole line.
_TAIL_BYTES: Final = 64 * 1024

#: Ending of a torn last line that would otherwise read as a sample line: its number may have been cut.
_TORN: Final = b" torn\n"

#: Samples of one second and sensor that are made lines of together.
_TOGETHER: Final = 1024


def add_lines(text: bytearray, prefix: bytes, samples: "array[float]") -> None:
    """Append a line for each sample: a prefix, and the shortest decimal that reads back as the same double."""
    if not samples:
        return
    # orjson writes the shortest digits, thirty times as fast as the csv module; it has no word but null for NaN.
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


class Lines:
    """What waits for one file: lines, and behind them the samples of the present second, which are no lines yet.

    So few samples come at a time that most of the work of making lines would be in the calls.

    :ivar since: when the first of it came, or could not be written, by the reactor's clock.
    """

    __slots__ = ("_prefix", "_samples", "_text", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self._text = bytearray()
        self._prefix = b""
        self._samples = array("d")

    def add(self, prefix: bytes, samples: "array[float]") -> bool:
        """Take samples that came in the second which a prefix names; whether many bytes wait."""
        if prefix is not self._prefix or len(self._samples) >= _TOGETHER:
            self.text()
            self._prefix = prefix
        self._samples += samples
        return len(self._text) + _LINE_BYTES * len(self._samples) >= _FLUSH_BYTES

    def text(self) -> bytearray:
        """All of it as lines; what is written may be taken from its beginning."""
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
        #: By path: what waits, the oldest first.
        self._waiting: dict[str, Lines] = {}
        #: Of these, what could not be written, and why.
        self._failing: dict[str, str] = {}
        #: When the last batch came, how lines of that second begin, and the day's files by machine and sensor.
        self._arrival: datetime | None = None
        self._prefix = b""
        self._paths: dict[tuple[str, str], str] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        #: Size of each open file by path, in bytes, unless another program has changed it.
        self._sizes: dict[str, int] = {}
        self._most_files = _OPEN_FILES
        self._more: IDelayedCall | None = None
        self._flushing = LoopingCall(self._look)
        self._flushing.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._most_files = min(_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _OPEN_SHARE)
        self._flushing.start(_LOOK_SECONDS, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._flushing.running:
            self._flushing.stop()
        if self._more is not None:
            self._more.cancel()
            self._more = None
        self.flush()
        for path in list(self._files):
            self._close(path)

    @property
    def problem(self) -> str | None:
        """Return a file that cannot be written, and why, and the number of others; ``None`` if all can."""
        problem = next(iter(self._failing.values()), None)
        more = len(self._failing) - 1
        return f"{problem} (and {more} more)" if more > 0 else problem

    def path(self, machine: str, sensor: str, day: datetime) -> str:
        return path_of(path_of(self._directory, machine), sensor, f"{day:%Y%m%d}_{{}}.csv")

    def end(self, machine: str, sensor: str, day: datetime) -> int | None:
        """How many bytes of a day's file hold all that came until now; ``None`` where some could not be written."""
        path = self.path(machine, sensor, day)
        if path in self._waiting:
            self._flush(path)
        try:
            # Opening the file ends a torn line, so a line begins at its size.
            return None if path in self._waiting or not os.path.exists(path) else os.fstat(self._open(path)).st_size
        except OSError:
            return None

    def write(self, batch: Batch) -> None:
        """Take a batch; its lines reach the operating system within half a second."""
        if batch.received_at is not self._arrival:
            self._arrive(batch.received_at)
        machine, paths, waiting = batch.machine, self._paths, self._waiting
        for name, sensor in batch.sensors.items():
            if not sensor.samples:
                continue
            path = paths.get((machine, name))
            if path is None:
                path = paths[machine, name] = self.path(machine, name, batch.received_at)
            lines = waiting.get(path)
            if lines is None:
                lines = waiting[path] = Lines(self._reactor.seconds())
            # Lines that a kill leaves must not be there before their type is: the flush that is due gives it time.
            if lines.add(self._prefix, sensor.samples) and self._is_known(machine, name):
                self._flush(path)

    def _arrive(self, time: datetime) -> None:
        """Samples come at another time than the last."""
        before, self._arrival = self._arrival, time
        if before is not None and time.replace(microsecond=0) == before.replace(microsecond=0):
            return
        self._prefix = f"{time:%H:%M:%S},".encode()
        if before is None or time.date() != before.date():
            self.flush()
            self._paths.clear()
            for path in list(self._files):
                self._close(path)

    def _look(self) -> None:
        """Hand those lines to the operating system whose time has come; what takes long goes on in the next turns."""
        if self._more is not None and self._more.active():
            self._more.cancel()
        self._more = None
        now = self._reactor.seconds()
        due = [
            path
            for path, _ in itertools.takewhile(lambda item: item[1].since <= now - FLUSH_SECONDS, self._waiting.items())
        ]
        for path in due:
            if self._reactor.seconds() - now > _TURN_SECONDS:
                # At midnight there is a new file for each sensor.
                self._more = self._reactor.callLater(0, self._look)
                return
            self._flush(path)

    def flush(self) -> None:
        """Hand all lines to the operating system, as far as it takes them."""
        for path in list(self._waiting):
            self._flush(path)

    def _flush(self, path: str) -> None:
        lines = self._waiting.pop(path)
        waiting = lines.text()
        # A disk that takes a part of some lines is full.
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
            self._failed(waiting, problem)
            return
        if self._failing.pop(path, None) is not None and not self._failing:
            log.info("raw samples can be written again")

    def _failed(self, waiting: bytearray, problem: str) -> None:
        """Let lines wait, but not too many."""
        self._counters.raw_failures.inc()
        self._warnings.warn("write", "raw samples cannot be written: {problem}", problem=problem)
        excess = len(waiting) - _WAITING_BYTES // len(self._failing)
        if excess > 0:
            # Whole lines only.
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
            self._tell_torn(path, *torn, size)
        self._files[path] = file
        self._sizes[path] = size
        if len(self._files) > self._most_files:
            self._close(next(iter(self._files)))
        return file

    def _tell_torn(self, path: str, begin: int, line: bytes, size: int) -> None:
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
        found = os.fstat(file)
        return found.st_size if os.path.samestat(found, os.stat(path)) else None
    except OSError:
        return None


def _append(file: int, lines: bytearray) -> int:
    """Append what the disk takes of some lines, but no part of a line; returns how many bytes."""
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
    """Append all of a text to a file of this size, or none of it.

    :raises OSError: the disk has taken only a part.
    """
    if os.write(file, text) < len(text):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
