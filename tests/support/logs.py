"""Log lines of a test."""

from typing import cast

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase


def collect_lines(case: SynchronousTestCase) -> list[str]:
    """Return a list to which every log line is added until the test ends."""
    lines: list[str] = []

    def add_line(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    observer = cast(ILogObserver, add_line)
    globalLogPublisher.addObserver(observer)
    case.addCleanup(globalLogPublisher.removeObserver, observer)
    return lines
