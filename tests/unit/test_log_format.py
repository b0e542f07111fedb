"""Formats of the log: JSON, and priorities for the journal."""

import json
import os
import tempfile
from datetime import datetime
from typing import Any
from unittest import mock

from twisted.logger import LogLevel
from twisted.python.failure import Failure

from gateway.runtime.log_format import is_journal
from gateway.runtime.logs import LogOptions, LogOutput
from gateway.runtime.metrics import Counters
from tests.support.log_case import LogCase


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot say what it is")


def failure_of(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


class JsonTests(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.open(form="json")

    def line(self, text: str, level: LogLevel = LogLevel.info, **fields: object) -> dict[str, Any]:
        """Log an event, and return its line, which is the only one."""
        self.say(text, level, **fields)
        written = self.stream.getvalue()
        self.assertEqual((self.folder / "cynow-gateway.log").read_text("utf-8"), written)
        (line,) = written.splitlines()
        self.assertTrue(line.isprintable(), line)
        found: dict[str, Any] = json.loads(line)
        return found

    def test_a_line_has_time_level_logger_message_and_fields(self) -> None:
        line = self.line("저울 {scale}: {weight} kg", LogLevel.warn, scale="독 1", weight=53.26, count=3, peer=None)
        self.assertEqual(
            line,
            {
                "time": "2025-12-18T23:59:59.000+09:00",
                "level": "warn",
                "logger": "test",
                "message": "저울 독 1: 53.26 kg",
                "scale": "독 1",
                "weight": 53.26,
                "count": 3,
                "peer": None,
            },
        )
        self.assertEqual(datetime.fromisoformat(line["time"]).timestamp(), self.reactor.seconds())
        self.assertIn("저울 독 1", self.stream.getvalue())

    def test_fields_that_are_no_scalars_are_left_out(self) -> None:
        line = self.line("{a} {b} {c}", a=["x"], b=ValueError("y"), c=float("nan"), d=float("inf"), e=True)
        self.assertEqual(line["message"], "['x'] y nan")
        self.assertEqual(set(line), {"time", "level", "logger", "message", "e"})

    def test_fields_do_not_replace_the_keys_of_a_line(self) -> None:
        line = self.line("{message} {time}", message="low", time="noon", logger="me", traceback="none")
        self.assertEqual((line["level"], line["message"], line["logger"]), ("info", "low noon", "test"))
        self.assertNotIn("traceback", line)

    def test_control_characters_and_line_ends_are_escaped(self) -> None:
        name = 'a\x1b[2Jb\x9bc\rd\ne\u2028f\x7fg\x85h"\\i'
        self.assertEqual(self.line("{name}", name=name)["name"], name)

    def test_surrogates_are_written(self) -> None:
        self.assertEqual(self.line("{name}", name=os.fsdecode(b"\xff.csv"))["message"], "\udcff.csv")

    def test_a_traceback_is_a_field(self) -> None:
        line = self.line("a part has failed", LogLevel.critical, log_failure=failure_of(KeyError("쇼트")))
        self.assertEqual((line["level"], line["message"]), ("critical", "a part has failed"))
        self.assertIn("Traceback", line["traceback"])
        self.assertIn("KeyError: '쇼트'", line["traceback"])

    def test_a_traceback_that_cannot_be_formatted_costs_no_line(self) -> None:
        failure = mock.Mock(**{"getTraceback.side_effect": RuntimeError})
        line = self.line("a part has failed", LogLevel.critical, log_failure=failure)
        self.assertEqual(line["traceback"], "cannot format the traceback: RuntimeError")

    def test_an_exception_without_a_text_costs_no_line(self) -> None:
        line = self.line("failed: {error}", error=Unprintable(), log_failure=failure_of(Unprintable()))
        self.assertIn("traceback", line)

    def test_an_event_without_text_is_no_line(self) -> None:
        self.say("")
        self.assertEqual(self.stream.getvalue(), "")

    def test_an_event_of_the_old_interface_is_a_line(self) -> None:
        line = self.line("{log_text}", log_text="old", log_legacy=object(), isError=0, system="-", message=("old",))
        self.assertEqual(set(line), {"time", "level", "logger", "message"})


class UpdateTests(LogCase):
    def test_level_and_format_are_changed_in_every_output(self) -> None:
        self.open("warn")
        self.say("no")
        self.observer.update(LogOptions("/elsewhere", "debug", 10, "json"))
        self.say("yes", LogLevel.debug)
        self.observer.update(LogOptions(None, "error", 10, "text"))
        self.say("no")
        self.say("at last", LogLevel.error)
        first, second = self.stream.getvalue().splitlines()
        self.assertEqual(json.loads(first)["message"], "yes")
        self.assertTrue(second.endswith("[test#error] at last"))
        # The directory stays.
        self.assertEqual((self.folder / "cynow-gateway.log").read_text("utf-8"), self.stream.getvalue())

    def test_lines_of_libraries_stay_left_out(self) -> None:
        self.open("warn")
        self.observer.update(LogOptions(level="debug"))
        self.say("no", LogLevel.error, log_namespace="autobahn.websocket")
        self.assertEqual(self.stream.getvalue(), "")

    def test_days_are_kept_as_the_update_says(self) -> None:
        self.open(keep_days=10)
        (self.folder / "cynow-gateway.log.2025_12_10").write_text("")
        self.observer.update(LogOptions(str(self.folder), keep_days=2))
        self.say("one day")
        self.reactor.advance(1)
        self.say("the next")
        self.assertEqual(
            sorted(path.name for path in self.folder.iterdir()),
            ["cynow-gateway.log", "cynow-gateway.log.2025_12_18"],
        )


class StderrOnlyTests(LogCase):
    def test_without_a_directory_no_file_is_made_or_reopened(self) -> None:
        self.observer = LogOutput(self.clock, Counters(), LogOptions(None), self.stream)
        self.observer.open()
        self.say("one")
        self.observer.reopen()
        self.say("two")
        self.assertEqual(len(self.stream.getvalue().splitlines()), 2)
        self.assertFalse(self.folder.exists())


class JournalTests(LogCase):
    def setUp(self) -> None:
        super().setUp()
        # A file stands for the socket of the journal.
        self.journal = self.enterContext(tempfile.TemporaryFile("w+", encoding="utf-8"))
        status = os.fstat(self.journal.fileno())
        self.name = f"{status.st_dev}:{status.st_ino}"

    def written(self, form: str) -> str:
        options = LogOptions(str(self.folder), "debug", 10, form)
        with mock.patch.dict(os.environ, {"JOURNAL_STREAM": self.name}):
            self.observer = LogOutput(self.clock, Counters(), options, self.journal)
        self.observer.open()
        for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error):
            self.say("{name}", level, name=level.name)
        self.say("two\nlines", LogLevel.critical, log_failure=failure_of(KeyError("x")))
        self.journal.seek(0)
        return self.journal.read()

    def test_every_line_bears_its_priority_and_files_have_none(self) -> None:
        written = self.written("text")
        lines = written.splitlines()
        self.assertEqual([line[:3] for line in lines[:4]], ["<7>", "<6>", "<4>", "<3>"])
        self.assertGreater(len(lines), 8)
        self.assertEqual({line[:3] for line in lines[4:]}, {"<3>"})
        text = "".join(f"{line[3:]}\n" for line in lines)
        self.assertEqual((self.folder / "cynow-gateway.log").read_text("utf-8"), text)

    def test_a_line_of_json_bears_one_priority(self) -> None:
        lines = self.written("json").splitlines()
        self.assertEqual([line[:3] for line in lines], ["<7>", "<6>", "<4>", "<3>", "<3>"])
        self.assertEqual(json.loads(lines[4][3:])["message"], "two\nlines")

    def test_another_stream_is_not_the_journal(self) -> None:
        self.assertTrue(is_journal(self.journal, {"JOURNAL_STREAM": self.name}))
        for value in ("", "1:1", "x", f"{self.name}0"):
            self.assertFalse(is_journal(self.journal, {"JOURNAL_STREAM": value}))
        self.assertFalse(is_journal(self.journal, {}))
        self.assertFalse(is_journal(self.stream, {"JOURNAL_STREAM": self.name}))
