"""Damage of raw files by a power cut or a disk, which is counted, logged once, and shown to the operator for a day."""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from twisted.logger import Logger

from gateway.raw.files import ReadError
from gateway.raw.lines import Damaged
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

log = Logger()

#: Seconds for which a file is listed as a problem: damage cannot be repaired, so the message must end by itself.
SHOWN_SECONDS: Final = 24 * 3600.0

#: Maximum remembered files, so that damage is counted and logged once, and maximum stretches of one file; at that bound
#: the last stretch covers the rest of the file.
MAX_FILES: Final = 1000
_MAX_STRETCHES: Final = 1000

#: Maximum log lines a minute: each sensor has a file, and a power cut damages all files that were being written.
_BURST: Final = 200

#: Maximum bytes of a line that is being written.
_TORN_BYTES: Final = 4096

#: Maximum characters in ``/healthz`` about one file.
_MAX_TEXT: Final = 500

#: Begin and end of a stretch, in bytes of the (decompressed) file.
Stretch: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class Scan:
    """Damaged stretches of one file, collected while it is read.

    :param is_growing: whether lines are being appended, so that a last line without an end may soon be whole.
    :ivar stretches: damaged stretches, in ascending order and not adjacent.
    :ivar count: number of damaged bytes.
    :ivar nul: number of damaged bytes that are NUL.
    """

    is_growing: bool = False
    stretches: list[Stretch] = field(default_factory=list)
    count: int = 0
    nul: int = 0

    def add(self, begin: int, content: bytes) -> None:
        """Add a damaged piece."""
        if self.is_growing and len(content) <= _TORN_BYTES and not content.endswith(b"\n"):
            return
        self.count += len(content)
        self.nul += content.count(0)
        end = begin + len(content)
        if self.stretches and (self.stretches[-1][1] == begin or len(self.stretches) >= _MAX_STRETCHES):
            self.stretches[-1] = self.stretches[-1][0], end
        else:
            self.stretches.append((begin, end))


@dataclass(slots=True)
class _Problem:
    """The problem of one file.

    :ivar since: monotonic time at which it was found, in seconds.
    """

    since: float
    text: str


class DamageLog:
    """Log of damage in raw files, which counts and logs each damage once and lists problems for the operator.

    Every method may be called in any thread.

    :param max_shown: maximum files that are named as problems; the others are counted.
    """

    def __init__(self, clock: WallClock, counters: Counters, max_shown: int = 10) -> None:
        self._max_shown = max_shown
        self._clock = clock
        self._counters = counters
        self._warnings = LimitedLog(log, clock, counters, burst=_BURST)
        self._lock = threading.Lock()
        #: Known stretches by path, without the suffix of a compressed file.
        self._known: OrderedDict[str, list[Stretch]] = OrderedDict()
        self._problems: OrderedDict[str, _Problem] = OrderedDict()

    @contextlib.contextmanager
    def scan(self, path: str, *, is_growing: bool = False, is_problem: bool = True) -> Iterator[Damaged]:
        """Yield a function that takes the damaged pieces of a file while it is read; report them at the end.

        Nothing is reported for a file that turns out to be unreadable: the content that a broken compressed file gave
        so far is not the original, and its reader reports that it is broken.

        :param is_growing: whether lines are being appended meanwhile.
        :param is_problem: whether to show the damage in ``/healthz``, not only in the log.
        """
        scan = Scan(is_growing)
        is_readable = True
        try:
            yield scan.add
        except ReadError:
            is_readable = False
            raise
        finally:
            if is_readable:
                self.report(path, scan, is_problem=is_problem)

    def report(self, path: str, scan: Scan, *, is_problem: bool = True) -> None:
        """Count and log the damaged bytes of a file that are not known yet."""
        if not scan.stretches:
            return
        with self._lock:
            new = self._learn(path, scan.stretches)
            if not new:
                return
            self._counters.raw_damaged.inc(min(new, scan.count))
            text = _described(scan)
            if is_problem:
                self._problem(path, text)
            consequence = (
                "the samples in them are lost, and the bytes stay in the file: check the disk and the power supply"
            )
            self._warn("damage", path, text, consequence)

    def learn(self, path: str, begin: int, end: int) -> None:
        """Remember a stretch as known, without counting or logging it."""
        with self._lock:
            self._learn(path, [(begin, end)])

    def missing(self, path: str, size: int, counted: int) -> None:
        """Report a file that is shorter than the part that statistics count."""
        text = f"{counted - size} bytes are missing: it has {size}, and statistics count {counted}"
        with self._lock:
            self._counters.raw_missing.inc(counted - size)
            self._problem(path, text)
            self._warn("missing", path, text, "rows stay as they are: check the disk and the power supply")

    def changed(self, path: str, counted: int) -> None:
        """Report a file that has changed in the part that statistics count."""
        text = f"the {counted} bytes that statistics count have changed"
        with self._lock:
            self._problem(path, text)
            self._warn("changed", path, text, "samples after the last hour with a row are found by their times")

    def unreadable(self, path: str, error: Exception) -> None:
        """List a file that cannot be read as a problem; the caller has logged it."""
        with self._lock:
            self._problem(path, f"cannot read it, so statistics lack its samples: {error}")

    @property
    def problems(self) -> list[str]:
        """Problems for the operator: the files that were found damaged in the last day."""
        with self._lock:
            oldest = self._clock.monotonic() - SHOWN_SECONDS
            while self._problems and next(iter(self._problems.values())).since <= oldest:
                self._problems.popitem(last=False)
            shown = [problem.text for problem in self._problems.values()][: self._max_shown]
            if len(self._problems) > self._max_shown:
                shown.append(f"{len(self._problems) - self._max_shown} more raw files are damaged: see the log")
            return shown

    def _warn(self, kind: str, path: str, text: str, consequence: str) -> None:
        self._warnings.warn(
            kind, "raw file {path}: {text}; {consequence}", path=path, text=text, consequence=consequence
        )

    def _problem(self, path: str, text: str) -> None:
        name = _name(path)
        known = self._problems.pop(path, None)
        line = f"raw file {name}: {text}" if known is None else f"{known.text}; {text}"
        if known is not None and (text in known.text or len(line) > _MAX_TEXT):
            line = known.text
        self._problems[path] = _Problem(self._clock.monotonic(), line)
        if len(self._problems) > MAX_FILES:
            self._problems.popitem(last=False)

    def _learn(self, path: str, stretches: list[Stretch]) -> int:
        """Add stretches to those known of a file; return the number of new bytes."""
        path = path.removesuffix(".gz")
        before = self._known.pop(path, [])
        after = _merged(before, stretches)
        self._known[path] = after
        if len(self._known) > MAX_FILES:
            self._known.popitem(last=False)
        return _length(after) - _length(before)


def _described(scan: Scan) -> str:
    first, last = scan.stretches[0][0], scan.stretches[-1][1]
    nul = f", {scan.nul} of them NUL" if scan.nul else ""
    places = f" in {len(scan.stretches)} places" if len(scan.stretches) > 1 else ""
    return f"{scan.count} damaged bytes{places}{nul}, between byte {first} and byte {last}"


def _name(path: str) -> str:
    """Return the part of a path to show in ``/healthz``: the machine and the file."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.basename(directory), name)


def _length(stretches: list[Stretch]) -> int:
    return sum(end - begin for begin, end in stretches)


def _merged(some: list[Stretch], others: list[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for begin, end in sorted(some + others):
        if merged and (begin <= merged[-1][1] or len(merged) >= _MAX_STRETCHES):
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged
