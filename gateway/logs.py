"""Where log lines go, and how many of a kind."""

import glob
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import IO, Any, Final

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    LogPublisher,
    formatEventAsClassicLogText,
)
from twisted.python.logfile import DailyLogFile
from zope.interface import implementer

from gateway.clock import WallClock
from gateway.counters import Counters

LOG_NAME: Final = "cynow-gateway.log"


class MidnightLogFile(DailyLogFile):
    """A log file that rolls over at midnight of the configured zone and keeps so many days.

    A past day's file is ``cynow-gateway.log.2025_12_18``.
    """

    def __init__(self, directory: str, clock: WallClock, keep_days: int) -> None:
        self._clock = clock
        self._keep_days = keep_days
        super().__init__(LOG_NAME, directory)
        self._remove_old()

    def _openFile(self) -> None:
        super()._openFile()
        # Whoever else writes into it (a second gateway that says why it cannot start) writes behind, not over.
        self._file.close()
        self._file = open(self.path, "ab", 0)  # noqa: SIM115 - closed by the base class
        if not self._file.tell():
            # Nothing of an earlier day is in it, whatever the file system says.
            self.lastDate = self.toDate()

    def toDate(self, *args: float) -> tuple[int, ...]:
        return datetime.fromtimestamp(args[0] if args else self._clock.wall(), self._clock.zone).timetuple()[:3]

    def suffix(self, tupledate: tuple[int, ...]) -> str:
        return "{:04}_{:02}_{:02}".format(*tupledate)

    def rotate(self) -> None:
        super().rotate()
        self._remove_old()

    def _remove_old(self) -> None:
        oldest = self._clock.now().date() - timedelta(days=self._keep_days)
        for path in glob.glob(glob.escape(self.path) + ".[0-9][0-9][0-9][0-9]_[0-9][0-9]_[0-9][0-9]"):
            if path[-10:] < oldest.strftime("%Y_%m_%d"):
                os.remove(path)


def observer(
    clock: WallClock, directory: str | None, level: str, keep_days: int, stream: IO[str] | None = None
) -> ILogObserver:
    """What writes the log: to stderr (or ``stream``) and, under ``directory``, to files of a day each.

    :raises OSError: the directory cannot be written.
    """
    outputs: list[Any] = [stream or sys.stderr]
    if directory is not None:
        os.makedirs(directory, exist_ok=True)
        outputs.append(MidnightLogFile(directory, clock, keep_days))
    text = _formatter(clock)
    publisher = LogPublisher(*(FileLogObserver(output, text) for output in outputs))
    levels = LogLevelFilterPredicate(LogLevel.levelWithName(level))
    # It has a line or two for whatever a client does wrong, without limit; we have our own.
    levels.setLogLevelForNamespace("autobahn", LogLevel.critical)
    # Its line about a dial-out names an object, not the scale, and comes without limit; `ingest.scale` has its own.
    levels.setLogLevelForNamespace("twisted.application._client_service", LogLevel.critical)
    return FilteringLogObserver(publisher, [levels])


def _formatter(clock: WallClock) -> Callable[[Any], str | None]:
    def time_text(when: float | None) -> str:
        moment = clock.now() if when is None else datetime.fromtimestamp(when, clock.zone)
        return moment.isoformat(" ", "milliseconds")

    made: tuple[Any, str | None] = None, None

    def text(event: Any) -> str | None:
        # Each output asks for the line of the same event, which takes longer to make than to write.
        nonlocal made
        # Other threads log too.
        known = made
        if event is not known[0]:
            line = formatEventAsClassicLogText(event, formatTime=time_text)
            # A name that a stranger chose must not be able to move the reader's cursor.
            made = known = event, None if line is None else line.translate(_NO_CONTROLS)
        return known[1]

    return text


_NO_CONTROLS: Final = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if code not in (0x09, 0x0A)}


@implementer(ILogObserver)
class HeldObserver:
    """Holds the first events back until it is released: who starts a daemon that cannot start reads one line.

    :param observer: gets everything from then on.
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
        """Let go what was held."""
        held, self._held = self._held or [], None
        for event in held:
            self._observer(event)


class LimitedLog:
    """Log lines about bad input: so many of a kind in a period, and then how many were left out.

    :param kinds: no more kinds than that are told apart at a time; the rest share one.
    """

    def __init__(
        self, log: Logger, clock: WallClock, counters: Counters, burst: int = 5, period: float = 60.0, kinds: int = 1000
    ) -> None:
        self._log = log
        self._clock = clock
        self._counters = counters
        self._burst = burst
        self._period = period
        self._kinds = kinds
        #: When a kind's period began, lines in it, lines left out.
        self._seen: dict[str, tuple[float, int, int]] = {}

    def limited(self, burst: int, period: float = 60.0) -> "LimitedLog":
        """Return a log to the same place with a limit of its own."""
        return LimitedLog(self._log, self._clock, self._counters, burst, period, self._kinds)

    def warn(self, kind: str, message: str, **fields: object) -> None:
        """Log a warning, unless this kind has had its share."""
        if self._may(kind):
            self._log.warn(message, **fields)

    def info(self, kind: str, message: str, **fields: object) -> None:
        """Log what is no more than news, unless this kind has had its share."""
        if self._may(kind):
            self._log.info(message, **fields)

    def _may(self, kind: str) -> bool:
        now = self._clock.monotonic()
        if kind not in self._seen and len(self._seen) >= self._kinds:
            self._forget(now)
            if len(self._seen) >= self._kinds:
                kind = ""
        began, lines, left_out = self._seen.get(kind, (now, 0, 0))
        if now - began >= self._period:
            if left_out:
                self._log.warn("{count} more lines like the next were left out", count=left_out)
            began, lines, left_out = now, 0, 0
        if lines >= self._burst:
            self._counters.log_suppressed.inc()
            self._seen[kind] = (began, lines, left_out + 1)
            return False
        self._seen[kind] = (began, lines + 1, left_out)
        return True

    def _forget(self, now: float) -> None:
        for kind in [kind for kind, (began, _, _) in self._seen.items() if now - began >= self._period]:
            del self._seen[kind]


def shown(data: bytes | Iterable[int], most: int = 50) -> str:
    """At most so many bytes of somebody's input, for a log line."""
    piece = bytes(data)
    return repr(piece[:most]) + ("..." if len(piece) > most else "")
