"""Log lines of a test."""

from typing import cast

from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters


def collect_lines(case: SynchronousTestCase) -> list[str]:
    """Return a list to which every log line is added until the test ends."""
    lines: list[str] = []

    def add_line(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    observer = cast(ILogObserver, add_line)
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return lines


def silent_log(clock: WallClock, counters: Counters) -> LimitedLog:
    """Return a log that writes nothing."""
    return LimitedLog(Logger(observer=LogPublisher()), clock, counters)
