"""Formats of log lines: text, JSON, and priorities for systemd's journal."""

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from typing import IO, Any, Final

from twisted.logger import LogLevel, formatEvent, formatEventAsClassicLogText

from gateway.runtime.clock import WallClock

#: Control characters but tabs and line ends: a name that a client chose must not move the cursor of a terminal.
_NO_CONTROLS: Final = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if code not in (0x09, 0x0A)}

#: Characters that JSON need not escape, but that end a line for some programs, or move a cursor.
_ESCAPED: Final = {code: f"\\u{code:04x}" for code in [*range(0x7F, 0xA0), 0x2028, 0x2029]}

#: Keys of a JSON line that a field of the same name does not replace.
_KEYS: Final = frozenset({"time", "level", "logger", "message", "traceback"})

#: Prefixes of ``sd-daemon(3)``.
_PRIORITIES: Final = {
    LogLevel.debug: "<7>",
    LogLevel.info: "<6>",
    LogLevel.warn: "<4>",
    LogLevel.error: "<3>",
    LogLevel.critical: "<3>",
}


class LogFormatter:
    """Formatter of log events, as text or as JSON.

    :param form: ``text`` or ``json``; it may be changed at any time.
    """

    def __init__(self, clock: WallClock, form: str) -> None:
        self._clock = clock
        self.form = form
        self._latest: tuple[Any, str, str | None] = None, "", None

    def lines(self, event: Any) -> str | None:
        """Return an event as text of one or more lines, or as one line of JSON; ``None`` if it has no text."""
        # Each output formats the same event, which takes longer than writing it. Other threads log too.
        known, form = self._latest, self.form
        if event is not known[0] or form != known[1]:
            text = self._json(event) if form == "json" else self._text(event)
            # A surrogate, such as that of a file name that is not UTF-8, cannot be written.
            text = None if text is None else text.encode(errors="backslashreplace").decode()
            self._latest = known = event, form, text
        return known[2]

    def journal_lines(self, event: Any) -> str | None:
        """Return the lines of an event with its priority before each of them."""
        text = self.lines(event)
        if text is None:
            return None
        priority = _PRIORITIES.get(event.get("log_level"), "<6>")
        return priority + text.removesuffix("\n").replace("\n", f"\n{priority}") + "\n"

    def _text(self, event: Any) -> str | None:
        line = formatEventAsClassicLogText(event, formatTime=lambda when: self._moment(when).isoformat(" ", _PRECISION))
        return None if line is None else line.translate(_NO_CONTROLS)

    def _json(self, event: Any) -> str | None:
        message, failure = formatEvent(event), event.get("log_failure")
        if not message and failure is None:
            return None
        line: dict[str, object] = {
            "time": self._moment(event.get("log_time")).isoformat("T", _PRECISION),
            "level": getattr(event.get("log_level"), "name", None),
            "logger": event.get("log_namespace"),
            "message": message,
        }
        # Events of Twisted's old interface have fields that the others express by the keys above.
        if "log_legacy" not in event:
            line |= {
                key: value
                for key, value in event.items()
                if not key.startswith("log_") and key not in _KEYS and _is_plain(value)
            }
        if failure is not None:
            line["traceback"] = _traceback(failure)
        return json.dumps(line, ensure_ascii=False).translate(_ESCAPED) + "\n"

    def _moment(self, when: float | None) -> datetime:
        return self._clock.now() if when is None else datetime.fromtimestamp(when, self._clock.zone)


_PRECISION: Final = "milliseconds"


def _is_plain(value: object) -> bool:
    """Return whether a value is a scalar of JSON, which has no NaN or infinities."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _traceback(failure: Any) -> str:
    try:
        return str(failure.getTraceback())
    except Exception as error:
        # The text of the exception itself may raise one, and the line must not be lost.
        return f"cannot format the traceback: {type(error).__name__}"


def is_journal(stream: IO[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream is connected to systemd's journal, by ``JOURNAL_STREAM``."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        # Some streams have no descriptor.
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
