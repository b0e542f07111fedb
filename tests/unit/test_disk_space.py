"""Free space of disks, measured in a thread."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from twisted.internet.task import Clock

from gateway.runtime.disk_space import MEASURE_SECONDS, OVERDUE_SECONDS, DiskSpace, Space
from tests.support.daemon import PATIENCE

GIB = 1024**3
MIB = 1024**2


@pytest.mark.parametrize(
    ("free", "size", "state"),
    [
        (2 * GIB, 1000 * GIB, "ready"),
        (GIB - 1, 1000 * GIB, "low"),
        (64 * MIB, 1000 * GIB, "low"),
        (64 * MIB - 1, 1000 * GIB, "full"),
        # Shares of a small file system.
        (60 * MIB, 1000 * MIB, "ready"),
        (49 * MIB, 1000 * MIB, "low"),
        (9 * MIB, 1000 * MIB, "full"),
        (0, 0, "ready"),
    ],
)
def test_space_is_low_or_full_below_its_bounds(free: int, size: int, state: str) -> None:
    space = Space(free, size)
    assert ("full" if space.is_full else "low" if space.is_low else "ready") == state


class ThreadedClock(Clock):
    """Clock whose calls from threads wait until a test takes them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self._calls.put(lambda: function(*args))

    def take_call(self) -> None:
        self._calls.get(timeout=PATIENCE)()


class FakeDisk:
    """Measured spaces and errors by path.

    :ivar answers: event that is cleared while the disk does not answer.
    """

    def __init__(self) -> None:
        self.found: dict[str, Space | OSError] = {"/db": Space(10 * GIB, 100 * GIB), "/data": Space(0, GIB)}
        self.answers = threading.Event()
        self.answers.set()

    def measure(self, path: str) -> Space:
        assert threading.current_thread() is not threading.main_thread()
        assert self.answers.wait(PATIENCE)
        found = self.found[path]
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def clock() -> ThreadedClock:
    return ThreadedClock()


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def space(clock: ThreadedClock, disk: FakeDisk) -> Iterator[DiskSpace]:
    space = DiskSpace(clock, {"database": "/db", "data": "/data"}, disk.measure)
    space.startService()
    yield space
    disk.answers.set()
    space.stopService()


def test_full_folder_is_named_until_there_is_space(space: DiskSpace, clock: ThreadedClock, disk: FakeDisk) -> None:
    assert (dict(space.spaces), space.full, space.warnings) == ({}, [], [])
    clock.take_call()
    assert space.spaces["database"] == Space(10 * GIB, 100 * GIB)
    assert space.full == ["0 MiB of 1024 MiB are free for the data folder (/data); remove files there"]
    assert space.warnings == []
    disk.found["/data"] = Space(40 * MIB, GIB)
    clock.advance(MEASURE_SECONDS)
    clock.take_call()
    assert space.full == []
    assert space.warnings == ["40 MiB of 1024 MiB are free for the data folder (/data); remove files there"]


def test_folder_that_cannot_be_measured_is_a_warning(space: DiskSpace, clock: ThreadedClock, disk: FakeDisk) -> None:
    clock.take_call()
    disk.found["/data"] = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    clock.advance(MEASURE_SECONDS)
    clock.take_call()
    assert (list(space.spaces), space.full) == (["database"], [])
    assert space.warnings == ["free space of the data folder is unknown: /data: No such file or directory"]


def test_file_system_that_does_not_answer_is_a_warning(space: DiskSpace, clock: ThreadedClock, disk: FakeDisk) -> None:
    clock.take_call()
    disk.answers.clear()
    clock.advance(MEASURE_SECONDS)
    clock.advance(OVERDUE_SECONDS)
    assert space.warnings == ["free space is unknown: a file system has not answered for 35 s"]
    disk.answers.set()
    clock.take_call()
    assert space.warnings == []


def test_existing_folder_is_measured(clock: ThreadedClock, tmp_path: Path) -> None:
    space = DiskSpace(clock, {"log": str(tmp_path)})
    space.startService()
    clock.take_call()
    assert space.spaces["log"].size >= space.spaces["log"].free > 0
    space.stopService()
