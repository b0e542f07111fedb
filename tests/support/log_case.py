"""A log with a clock and a stream of the test's."""

import io
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from gateway.runtime.clock import WallClock
from gateway.runtime.logs import LogOptions, LogOutput
from gateway.runtime.metrics import Counters
from tests.support.trial import new_folder


class LogCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()
        # One second before midnight in Seoul, when it is the afternoon in Greenwich.
        self.reactor.rightNow = datetime(2025, 12, 18, 14, 59, 59, tzinfo=UTC).timestamp()
        self.clock = WallClock(ZoneInfo("Asia/Seoul"), self.reactor.seconds, self.reactor.seconds)
        self.folder = new_folder(self, "log") / "log"
        self.stream = io.StringIO()

    def say(self, text: str, level: LogLevel = LogLevel.info, **fields: object) -> None:
        """An event as a Logger makes it, at the tests' time."""
        self.observer(
            {
                "log_time": self.reactor.seconds(),
                "log_format": text,
                "log_level": level,
                "log_namespace": "test",
                **fields,
            }
        )

    def open(self, level: str = "info", keep_days: int = 10, form: str = "text") -> None:
        self.options = LogOptions(str(self.folder), level, keep_days, form)
        self.observer = LogOutput(self.clock, Counters(), self.options, self.stream)
        self.observer.open()
