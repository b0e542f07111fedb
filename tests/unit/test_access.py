"""Rights on files, asked by a process of root that acts as another user."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import pytest

from gateway.runtime.access import may_access
from gateway.runtime.clock import WallClock
from gateway.runtime.directory_lock import DirectoryLock
from gateway.runtime.logs import LogOptions, LogOutput
from gateway.runtime.metrics import Counters
from gateway.store.sqlitefile.errors import explained

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@contextmanager
def other_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_may_access_is_of_the_effective_user(open_folder: Path) -> None:
    assert may_access(str(open_folder), os.W_OK)
    with other_user():
        assert may_access(str(open_folder), os.R_OK | os.X_OK)
        assert not may_access(str(open_folder), os.W_OK)


def test_open_of_a_log_that_the_effective_user_may_not_write_is_refused(open_folder: Path) -> None:
    (open_folder / "cynow-gateway.log").touch()
    (open_folder / "cynow-gateway.log").chmod(0o666)
    output = LogOutput(WallClock(UTC), Counters(), LogOptions(str(open_folder)))
    with other_user(), pytest.raises(PermissionError, match="no right to write there"):
        output.open()


def test_lock_of_a_directory_that_the_effective_user_may_not_write_is_refused(open_folder: Path) -> None:
    with other_user(), pytest.raises(PermissionError, match="no right to write there"):
        DirectoryLock(str(open_folder))


def test_explained_names_a_file_that_the_effective_user_may_not_write(open_folder: Path) -> None:
    path = open_folder / "M.db"
    path.touch(0o600)
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    with other_user():
        assert explained(error, str(path)).startswith(f"{path}: no right to read and write it")
