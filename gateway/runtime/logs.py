"""Outputs of the log: stderr and daily files."""

import glob
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import IO, Any, Final

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
)
from twisted.python.logfile import DailyLogFile
from zope.interface import implementer

from gateway.runtime.access import may_access
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedObserver
from gateway.runtime.log_format import LogFormatter, is_journal
from gateway.runtime.metrics import Counters

LOG_NAME: Final = "cynow-gateway.log"


class MidnightLogFile(DailyLogFile):
    """A log file that rolls over at midnight of the configured zone and keeps a number of days.

    A past day's file is ``cynow-gateway.log.2025_12_18``.

    :ivar keep_days: days after which a file is removed; it may be changed at any time.
    """

    def __init__(self, directory: str, clock: WallClock, keep_days: int) -> None:
        self._clock = clock
        self.keep_days = keep_days
        super().__init__(LOG_NAME, directory)
        self._remove_old()

    def reopen(self) -> None:
        """Open the configured file name again, after another program has renamed the file in use.

        :raises OSError: the new file cannot be opened; the one in use stays.
        """
        file = open(self.path, "ab", 0)  # noqa: SIM115 - closed by the base class
        old, self._file = self._file, file
        old.close()
        if not file.tell():
            self.lastDate = self.toDate()

    def _openFile(self) -> None:
        super()._openFile()
        # Append: a second gateway that cannot start writes its reason into the same file.
        self._file.close()
        self._file = open(self.path, "ab", 0)  # noqa: SIM115 - closed by the base class
        if not self._file.tell():
            # A new file has no lines of an earlier day, whatever its time stamp is.
            self.lastDate = self.toDate()

    def toDate(self, *args: float) -> tuple[int, ...]:
        return datetime.fromtimestamp(args[0] if args else self._clock.wall(), self._clock.zone).timetuple()[:3]

    def suffix(self, tupledate: tuple[int, ...]) -> str:
        return "{:04}_{:02}_{:02}".format(*tupledate)

    def rotate(self) -> None:
        super().rotate()
        self._remove_old()

    def _remove_old(self) -> None:
        oldest = self._clock.now().date() - timedelta(days=self.keep_days)
        for path in glob.glob(glob.escape(self.path) + ".[0-9][0-9][0-9][0-9]_[0-9][0-9]_[0-9][0-9]"):
            if path[-10:] < oldest.strftime("%Y_%m_%d"):
                os.remove(path)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Options of the log.

    :ivar directory: directory of the files; ``None`` for no files.
    :ivar level: lowest level that is written.
    :ivar keep_days: days after which a file is removed.
    :ivar form: ``text`` or ``json``.
    """

    directory: str | None = None
    level: str = "info"
    keep_days: int = 365
    form: str = "text"


@implementer(ILogObserver)
class LogOutput:
    """Log output to stderr (or ``stream``) and, after :meth:`open`, to daily files."""

    def __init__(
        self, clock: WallClock, counters: Counters, options: LogOptions, stream: IO[str] | None = None
    ) -> None:
        self._clock = clock
        self._options = options
        self._file: MidnightLogFile | None = None
        self._formatter = LogFormatter(clock, options.form)
        stream = stream or sys.stderr
        lines = self._formatter.journal_lines if is_journal(stream) else self._formatter.lines
        self._publisher = LogPublisher(FileLogObserver(stream, lines))
        #: Limits the lines of each kind.
        self.limit = LimitedObserver(self._publisher, clock, counters)
        self._filter = self._filter_of(options.level)

    def __call__(self, event: Any) -> None:
        self._filter(event)

    def update(self, options: LogOptions) -> None:
        """Write with other options from now on. Another directory takes a restart."""
        self._options = options = replace(options, directory=self._options.directory)
        self._formatter.form = options.form
        self._filter = self._filter_of(options.level)
        if self._file is not None:
            self._file.keep_days = options.keep_days

    def _filter_of(self, level: str) -> FilteringLogObserver:
        levels = LogLevelFilterPredicate(LogLevel.levelWithName(level))
        # Autobahn logs a line or two for each client error, without limit; the gateway logs its own.
        levels.setLogLevelForNamespace("autobahn", LogLevel.critical)
        # Twisted's line about a dial-out does not name the scale and has no limit; `ingest.scale` logs its own.
        levels.setLogLevelForNamespace("twisted.application._client_service", LogLevel.critical)
        return FilteringLogObserver(self.limit, [levels])

    def open(self) -> None:
        """Begin to write to the files too.

        :raises OSError: the directory cannot be written.
        """
        directory = self._options.directory
        if directory is None or self._file is not None:
            return
        os.makedirs(directory, exist_ok=True)
        if not may_access(directory, os.W_OK | os.X_OK):
            # A writable file alone would work until midnight, and could then not roll over.
            raise PermissionError(13, "no right to write there", directory)
        self._file = MidnightLogFile(directory, self._clock, self._options.keep_days)
        # It has the methods that an observer needs, but is not an IO type.
        output: Any = self._file
        self._publisher.addObserver(FileLogObserver(output, self._formatter.lines))

    def reopen(self) -> None:
        """Close the file, if there is one, and open it by its name again, for programs that rename it.

        :raises OSError: the new file cannot be opened; the one in use stays.
        """
        if self._file is not None:
            self._file.reopen()


@implementer(ILogObserver)
class BufferingObserver:
    """Observer that buffers events until it is released, so that a daemon that cannot start prints one line only.

    :param observer: receives all events from then on.
    """

    def __init__(self, observer: ILogObserver) -> None:
        self._observer = observer
        self._held: list[Any] | None = []

    def __call__(self, event: Any) -> None:
        if self._held is None:
            self._observer(event)
        else:
            self._held.append(event)

    def release(self) -> None:
        """Pass on the buffered events, and all later ones at once."""
        held, self._held = self._held or [], None
        for event in held:
            self._observer(event)
