"""Findings of the checks, and the running of each check within bounded time."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

T = TypeVar("T")


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    :ivar subject: configuration key, or the part that was checked.
    :ivar remedy: action for the operator; empty if nothing needs to be done.
    """

    level: Level
    subject: str
    seen: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.level:<8} {self.subject:<24} {_on_one_line(self.seen)}{_on_one_line(remedy)}"


def ok(subject: str, seen: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(Level.OK, subject, seen)


def warning(subject: str, seen: str, remedy: str) -> Finding:
    """Return a finding that does not keep the gateway from working."""
    return Finding(Level.WARNING, subject, seen, remedy)


def error(subject: str, seen: str, remedy: str) -> Finding:
    """Return a finding that keeps a part of the gateway from working."""
    return Finding(Level.ERROR, subject, seen, remedy)


def _on_one_line(text: str) -> str:
    # Keep blanks: lines of scales are shown as they came. File names and servers may have line ends in their texts.
    return "".join(character if character.isprintable() else " " for character in text)


#: Marks the end of a check.
_END: Final = None


def run_check(subject: str, check: Callable[[], Iterable[Finding]], seconds: float) -> Iterator[Finding]:
    """Yield the findings of a check as they come, and an error if it fails or takes too long.

    The check runs in a thread, because a name server, a disk or a driver may not answer at all.

    :param seconds: maximum seconds for the whole check.
    """
    results: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for finding in check():
                results.put(finding)
        except Exception as failure:  # a check that fails must not stop the others
            # The text of an unknown error may quote a secret.
            seen = f"the check itself failed: {type(failure).__name__}"
            results.put(error(subject, seen, "report this as a bug"))
        results.put(_END)

    threading.Thread(target=run, name=f"check of {subject}", daemon=True).start()
    deadline = time.monotonic() + seconds
    while True:
        try:
            finding = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield error(
                subject, f"no result within {seconds:g} s", "look for a disk, server or network that does not answer"
            )
            return
        if finding is _END:
            return
        yield finding


def results_in_time(functions: Mapping[str, Callable[[], T]], seconds: float) -> dict[str, T | Exception]:
    """Call functions at once, each in a thread; return the result or the exception of each, by its name.

    :param seconds: maximum seconds for all; a function that takes longer has a :class:`TimeoutError`.
    """
    results: queue.SimpleQueue[tuple[str, T | Exception]] = queue.SimpleQueue()

    def run(name: str, function: Callable[[], T]) -> None:
        try:
            results.put((name, function()))
        except Exception as failure:  # the caller decides
            results.put((name, failure))

    for name, function in functions.items():
        threading.Thread(target=run, args=(name, function), name=name, daemon=True).start()
    found: dict[str, T | Exception] = {}
    deadline = time.monotonic() + seconds
    while len(found) < len(functions):
        try:
            name, result = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[name] = result
    return {name: found.get(name, TimeoutError(f"no answer within {seconds:g} s")) for name in functions}
