"""Rate limits for log lines of one kind."""

import re
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from twisted.logger import (
    ILogObserver,
    Logger,
    LogLevel,
    formatEvent,
)
from zope.interface import implementer

from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters


class _Kind:
    """Counts of one kind of line."""

    __slots__ = ("began", "example", "left_out", "lines")

    def __init__(self, began: float) -> None:
        #: Monotonic time at which the period began.
        self.began = began
        #: Lines that were logged in the period.
        self.lines = 0
        #: Lines that were left out in the period, and the first of them.
        self.left_out = 0
        self.example = ""


class Shares:
    """Rate limits of log lines by kind, with counts of the lines left out.

    Every method may be called in any thread.

    :param burst: maximum lines of a kind in a period.
    :param period: length of a period, in seconds.
    :param kinds: maximum kinds of a group that are counted separately at a time. Further ones share one count, so that
        peers that choose kinds cannot displace those of another group.
    :param say: called with the group, the number of lines left out, the period in seconds, and the first of them.
    """

    def __init__(
        self,
        clock: WallClock,
        counters: Counters,
        say: Callable[[str, int, int, str], None],
        *,
        burst: int = 5,
        period: float = 60.0,
        kinds: int = 1000,
    ) -> None:
        self._clock = clock
        self._counters = counters
        self._say = say
        self._burst = burst
        self._period = period
        self._kinds = kinds
        self._groups: dict[str, dict[str, _Kind]] = {}
        self._looked = clock.monotonic()
        # Formatting a line may log another one.
        self._lock = threading.RLock()
        counters.log_reports.append(self.report)

    def take(self, group: str, kind: str, line: Callable[[], str]) -> bool:
        """Return whether this line may be logged; otherwise count it.

        :param line: function that returns its text, an example of the lines left out.
        """
        now = self._clock.monotonic()
        before: _Kind | None = None
        with self._lock:
            kinds = self._kinds_of(group, now)
            known = kinds.get(kind)
            if known is None:
                if len(kinds) >= self._kinds:
                    kind = ""
                known = kinds.setdefault(kind, _Kind(now))
            if now - known.began >= self._period:
                before, known = known, _Kind(now)
                kinds[kind] = known
            may = known.lines < self._burst
            if may:
                known.lines += 1
            else:
                if not known.left_out:
                    known.example = line()[:_EXAMPLE]
                known.left_out += 1
        if before is not None and before.left_out:
            self._say(group, before.left_out, int(self._period), before.example)
        if not may:
            self._counters.log_suppressed.inc()
        return may

    def _kinds_of(self, group: str, now: float) -> dict[str, _Kind]:
        kinds = self._groups.get(group, {})
        if len(self._groups) >= self._kinds or len(kinds) >= self._kinds:
            if now - self._looked >= 1:
                self.report()
            if group not in self._groups and len(self._groups) >= self._kinds:
                group = ""
        return self._groups.setdefault(group, {})

    def report(self, everything: bool = False) -> None:
        """Report how many lines were left out in periods that have ended, and forget these periods.

        :param everything: include periods that have not ended, because the process ends.
        """
        now = self._looked = self._clock.monotonic()
        reports = []
        with self._lock:
            for group, kinds in list(self._groups.items()):
                for kind, known in list(kinds.items()):
                    if everything or now - known.began >= self._period:
                        if known.left_out:
                            reports.append((group, known))
                        del kinds[kind]
                if not kinds:
                    del self._groups[group]
        for group, known in reports:
            self._say(group, known.left_out, int(self._period), known.example)


@implementer(ILogObserver)
class LimitedObserver:
    """Observer that limits each kind of line, from any logger.

    Twisted logs a line for each connection that it cannot accept, and libraries may repeat warnings without limit. The
    gateway's own lines below critical pass: lines that peers can provoke are limited where they are logged.

    :param observer: receives the lines that pass.
    """

    #: Maximum lines a minute of a kind: an error of the gateway is always reported, but not a thousand equal ones.
    FOREIGN: Final = 5
    CRITICAL: Final = 50

    def __init__(self, observer: ILogObserver, clock: WallClock, counters: Counters) -> None:
        self._observer = observer
        self._clock = clock
        self._foreign = Shares(clock, counters, self._say, burst=self.FOREIGN, kinds=200)
        self._critical = Shares(clock, counters, self._say, burst=self.CRITICAL, kinds=200)

    def __call__(self, event: Any) -> None:
        namespace = event.get("log_namespace") or ""
        if event.get("log_level") is LogLevel.critical or "log_failure" in event or namespace in _STANDARD_STREAMS:
            may = self._critical.take(namespace, _kind_of(event), partial(_text_of, event))
        elif namespace == "gateway" or namespace.startswith("gateway."):
            may = True
        else:
            may = self._foreign.take(namespace, _kind_of(event), partial(_text_of, event))
        if may:
            self._observer(event)

    def _say(self, group: str, count: int, period: int, example: str) -> None:
        self._observer(
            {
                "log_format": _LEFT_OUT,
                "log_level": LogLevel.warn,
                "log_namespace": group or "gateway.runtime.logs",
                "log_time": self._clock.wall(),
                "count": count,
                "period": period,
                "example": example,
            }
        )


#: Maximum characters of a line shown as the example of those left out.
_EXAMPLE: Final = 300

_LEFT_OUT: Final = "{count} similar lines within {period} s were not logged, such as: {example}"

#: Namespaces of text written to standard output and error, line by line, such as the tracebacks of threads.
_STANDARD_STREAMS: Final = frozenset({"stdout", "stderr"})

_SECRET: Final = re.compile(rb"secret", re.IGNORECASE)

_DIGITS: Final = re.compile(r"[0-9]+")

#: Formats of lines that are plain text.
_WHOLE: Final = frozenset({None, "{log_text}", "{log_io}"})


def _text_of(event: Any) -> str:
    failure = event.get("log_failure")
    return formatEvent(event) + ("" if failure is None else f" {failure.getErrorMessage()}")


def _kind_of(event: Any) -> str:
    """Return the kind of a line: the part shared by lines that differ only in values."""
    text = event.get("log_format")
    if "log_legacy" in event or text in _WHOLE:
        # Such lines mostly differ only in digits.
        text = _DIGITS.sub("0", formatEvent(event)[:100])
    failure = event.get("log_failure")
    error = "" if failure is None else f" {getattr(failure, 'type', '')}"
    level = getattr(event.get("log_level"), "name", "")
    return f"{level} {text}{error}"


class LimitedLog:
    """Rate-limited log for lines about bad input, with counts of the lines left out.

    A kind is one or more words, the first of which is a constant in the code: kinds with the same first word share a
    bound, regardless of the text that peers put after it.

    :param kinds: maximum kinds with the same first word that are counted separately at a time; the rest share one
        count.
    """

    def __init__(
        self, log: Logger, clock: WallClock, counters: Counters, burst: int = 5, period: float = 60.0, kinds: int = 1000
    ) -> None:
        self._log = log
        self._clock = clock
        self._counters = counters
        self._kinds = kinds
        self._shares = Shares(clock, counters, self._say, burst=burst, period=period, kinds=kinds)

    def limited(self, burst: int, period: float = 60.0) -> "LimitedLog":
        """Return a log to the same logger with a limit of its own."""
        return LimitedLog(self._log, self._clock, self._counters, burst, period, self._kinds)

    def warn(self, kind: str, message: str, **fields: object) -> bool:
        """Log a warning, unless this kind has had its share; return whether it was logged."""
        may = self._may(kind, message, fields)
        if may:
            self._log.warn(message, **fields)
        return may

    def info(self, kind: str, message: str, **fields: object) -> None:
        """Log at level info, unless the limit of this kind is reached."""
        if self._may(kind, message, fields):
            self._log.info(message, **fields)

    def _may(self, kind: str, message: str, fields: dict[str, object]) -> bool:
        word, blank, _ = kind.partition(" ")
        event = {"log_format": message, **fields}
        return self._shares.take(word if blank else "", kind, lambda: formatEvent(event))

    def _say(self, _: str, count: int, period: int, example: str) -> None:
        self._log.warn(_LEFT_OUT, count=count, period=period, example=example)


def shown(data: bytes | Iterable[int], most: int = 50) -> str:
    """Return the beginning of a peer's input for a log line.

    Nothing is shown after the word "secret": a DAQ program may have sent its secret to another port.

    :param most: maximum bytes.
    """
    piece = bytes(data)
    secret = _SECRET.search(piece, 0, most)
    end = most if secret is None else secret.end()
    return repr(piece[:end]) + ("..." if len(piece) > end else "")
