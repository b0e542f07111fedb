"""Files that a newer version of the gateway has written: the start is refused, and no byte of them is changed."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.daemon import Daemon, until
from tests.support.frames import fault, frame
from tests.support.postgres import Server
from tests.system.test_start import refused

#: Each file, and the last step that this version knows.
STEPS = {
    "cynow-gateway.sqlite3": 5,
    "cynow-gateway-spool.sqlite3": 1,
    "cynow-gateway-record.sqlite3": 1,
    "cynow-gateway-tickets.sqlite3": 1,
    "M.db": 0,
}

#: Files that there are with PostgreSQL only.
BESIDE_A_SERVER = frozenset(file for file in STEPS if "-gateway-" in file)


@pytest.fixture
def lived(server: Server, tmp_path: Path) -> Callable[[str], Daemon]:
    """Return a function that returns a gateway that has written a file and has stopped."""

    def gateway(file: str) -> Daemon:
        settings: dict[str, Any] = {"database": {"url": server.url}} if file in BESIDE_A_SERVER else {}
        daemon = Daemon(tmp_path, **settings)
        daemon.start()
        daemon.daq(frame("name", "M"), fault(1.5))
        ever = "/stat/anomaly/all?start=2000-01-01&end=2099-12-31"
        until(lambda: daemon.get(ever)[1], "the anomaly is stored")
        assert daemon.terminate() == 0
        return daemon

    return gateway


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but the index of a log, which holds no data and is made again by any reader."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


def raise_step(path: Path, step: int, *, is_killed: bool) -> None:
    """Write a step as a newer version does.

    :param is_killed: whether it is killed then, so that the step is in the log only.
    """
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {step}")
        connection.execute("CREATE TABLE of_a_newer_version (x)")
        connection.commit()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{path}{suffix}.killed")
    for suffix in ("", "-wal"):
        killed = Path(f"{path}{suffix}.killed")
        if is_killed:
            os.replace(killed, f"{path}{suffix}")
        else:
            killed.unlink()


@pytest.mark.parametrize("is_killed", [False, True], ids=["ended", "killed"])
@pytest.mark.parametrize("file", STEPS)
def test_file_of_a_newer_version_is_refused_and_unchanged(
    lived: Callable[[str], Daemon], file: str, is_killed: bool
) -> None:
    daemon = lived(file)
    folder = daemon.folder / "db"
    path = folder / file
    raise_step(path, 7, is_killed=is_killed)
    before = content(folder)
    for _ in range(2):
        line = refused(daemon)
        assert line.startswith("cynow-gateway: database.path: ")
        assert f"db/{file}: a newer version of the gateway wrote this file" in line
        assert f"is at step 7, and this version knows steps up to {STEPS[file]}; install the newer version" in line
        assert content(folder) == before
    # The newer version is back, and its user has gone back in its own way.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE of_a_newer_version")
        connection.execute(f"PRAGMA user_version = {STEPS[file]}")
    daemon.start()
    assert daemon.terminate() == 0


def test_files_of_this_version_have_the_known_steps(lived: Callable[[str], Daemon]) -> None:
    for file in ("M.db", "cynow-gateway-spool.sqlite3"):
        folder = lived(file).folder / "db"
    for file, step in STEPS.items():
        with contextlib.closing(sqlite3.connect(folder / file)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (step,), file


@pytest.mark.parametrize("command", ["recompute", "migrate"])
def test_commands_do_not_read_files_of_a_newer_version(lived: Callable[[str], Daemon], command: str) -> None:
    daemon = lived("M.db")
    raise_step(daemon.folder / "db" / "M.db", 7, is_killed=False)
    before = content(daemon.folder / "db")["M.db"]
    arguments = ["--dry-run"] if command == "migrate" else ["--from", "2025-01-01"]
    done = subprocess.run(
        [sys.executable, "-m", f"gateway.{command}", "--config", str(daemon.config), *arguments],
        cwd=daemon.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "M.db: a newer version of the gateway wrote this file" in done.stderr
    assert content(daemon.folder / "db")["M.db"] == before
