"""Free space of the file systems that the gateway writes to, measured in a thread."""

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool

from gateway.runtime.threads import pool_of

#: Seconds between two measurements, and age in seconds of one that is reported as overdue.
MEASURE_SECONDS: Final = 5.0
OVERDUE_SECONDS: Final = 30.0

#: Free space below which a file system is low, or full: a size in bytes, and a share of its whole size if that is less,
#: so that small file systems are usable too.
LOW_BYTES: Final = 1024**3
LOW_SHARE: Final = 0.05
FULL_BYTES: Final = 64 * 1024**2
FULL_SHARE: Final = 0.01

_MIB: Final = 1024**2


@dataclass(frozen=True, slots=True)
class Space:
    """Size of a file system and its space for users other than root, in bytes."""

    free: int
    size: int

    @property
    def is_full(self) -> bool:
        """True if so little is free that writes may fail at any moment."""
        return self.free < min(FULL_BYTES, self.size * FULL_SHARE)

    @property
    def is_low(self) -> bool:
        """True if an operator should free space."""
        return self.free < min(LOW_BYTES, self.size * LOW_SHARE)


class DiskSpace(Service):
    """Regular measurement of the free space of some folders.

    A network file system can block for minutes, so the reactor never asks for it.

    :param folders: paths by name: ``database``, ``data``, ``log``.
    :param measure: returns the space of a path; it may block, or raise :class:`OSError`.
    """

    name = "disk space"

    def __init__(self, reactor: Any, folders: Mapping[str, str], measure: Callable[[str], Space] | None = None) -> None:
        self._reactor = reactor
        self._folders = folders
        self._measure = measure or _space_of
        self._pool = pool_of(1, "disk")
        self._spaces: dict[str, Space] = {}
        self._errors: dict[str, str] = {}
        self._measured_at: float | None = None
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._measured_at = self._reactor.seconds()
        self._pool.start()
        self._rounds.start(MEASURE_SECONDS)

    def stopService(self) -> None:
        super().stopService()
        if self._rounds.running:
            self._rounds.stop()
        # A measurement may still block; nothing waits for it.
        threading.Thread(target=self._pool.stop, name="disk end", daemon=True).start()

    def _round(self) -> "Deferred[None]":
        return deferToThreadPool(self._reactor, self._pool, self._measure_all).addCallback(self._on_measured)

    def _measure_all(self) -> tuple[dict[str, Space], dict[str, str]]:
        """Measure all folders, in the thread."""
        spaces: dict[str, Space] = {}
        errors: dict[str, str] = {}
        for name, path in self._folders.items():
            try:
                spaces[name] = self._measure(path)
            except OSError as error:
                errors[name] = f"{path}: {error.strerror or error}"
        return spaces, errors

    def _on_measured(self, found: tuple[dict[str, Space], dict[str, str]]) -> None:
        self._spaces, self._errors = found
        self._measured_at = self._reactor.seconds()

    @property
    def spaces(self) -> Mapping[str, Space]:
        """Space by name of a folder, as measured last."""
        return self._spaces

    @property
    def full(self) -> list[str]:
        """Lines about file systems that are full."""
        return [self._line(name, space) for name, space in self._spaces.items() if space.is_full]

    @property
    def warnings(self) -> list[str]:
        """Lines about file systems that are low, or whose space is not known."""
        low = [self._line(name, space) for name, space in self._spaces.items() if space.is_low and not space.is_full]
        unknown = [f"free space of the {name} folder is unknown: {text}" for name, text in self._errors.items()]
        if self._measured_at is not None:
            age = self._reactor.seconds() - self._measured_at
            if age > OVERDUE_SECONDS:
                unknown.append(f"free space is unknown: a file system has not answered for {age:.0f} s")
        return low + unknown

    def _line(self, name: str, space: Space) -> str:
        free, size = space.free // _MIB, space.size // _MIB
        return f"{free} MiB of {size} MiB are free for the {name} folder ({self._folders[name]}); remove files there"


def _space_of(path: str) -> Space:
    usage = shutil.disk_usage(path)
    return Space(usage.free, usage.total)
