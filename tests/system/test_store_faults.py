"""The daemon with databases that are lost, damaged, moved or on a full disk."""

import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE, TWISTD, Daemon, running, until
from tests.support.frames import frame
from tests.system.test_start import refused

NAME = "cynow-gateway.sqlite3"
ACCEPT = [*TWISTD, "--accept-empty-store"]
EVERYTHING = "start=2000-01-01&end=2099-12-31"


def weighed(daemon: Daemon) -> None:
    daemon.weigh(b"ST , +000053.26 _kg")
    until(daemon.latest_is(53.26), "the reading")


def problems(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.get("/healthz")[1]["problems"]
    return found


def said(daemon: Daemon, *words: str) -> None:
    """Wait until ``/healthz`` has a line with all these words."""
    until(lambda: any(all(word in line for word in words) for line in problems(daemon)), f"{words} in healthz")


def lived(folder: Path) -> None:
    """Run a gateway with one machine and one commit in a directory."""
    with running(folder) as daemon:
        weighed(daemon)
        assert daemon.commit("CY-SECRET", key="k")[0] == 200
        daemon.daq(frame("name", "M"), frame("FaultDetect", {"score": 2.0, "threshold": 1.0}))
        until(lambda: len(daemon.get(f"/stat/anomaly?machine=M&{EVERYTHING}")[1]) == 1, "the anomaly")
        assert daemon.terminate() == 0


def test_store_moved_away_and_back_is_a_problem_and_clears(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        weighed(daemon)
        assert daemon.commit("CY-SECRET")[0] == 200
        (tmp_path / "db").rename(tmp_path / "db2")
        # The problem is there before a commit is tried.
        said(daemon, "commits are refused", "db", "moved or removed")
        for _ in range(50):
            status, body, headers = daemon.commit("CY-SECRET")
            assert (status, body["error"]) == (503, "store_unavailable")
            assert "retry-after" in headers
        (tmp_path / "db2").rename(tmp_path / "db")
        until(lambda: problems(daemon) == [], "all is well")
        assert daemon.commit("CY-SECRET")[0] == 200
        assert daemon.log().count("commits are refused") == 1
        assert "CY-SECRET" not in daemon.log()


def test_store_table_renamed_or_locked_is_a_problem_and_clears(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        weighed(daemon)
        other = sqlite3.connect(tmp_path / "db" / NAME, isolation_level=None)
        other.execute("ALTER TABLE scale_weight_log RENAME TO gone")
        said(daemon, "commits are refused", "no such table: scale_weight_log")
        assert daemon.commit()[0] == 503
        other.execute("ALTER TABLE gone RENAME TO scale_weight_log")
        until(lambda: problems(daemon) == [], "all is well")
        other.execute("BEGIN EXCLUSIVE")
        said(daemon, "commits are refused", "locked")
        assert daemon.commit()[0] == 503
        other.execute("ROLLBACK")
        other.close()
        until(lambda: problems(daemon) == [], "all is well")
        assert daemon.commit()[0] == 200


def test_commit_that_a_trigger_refuses_is_409_and_never_logged(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        weighed(daemon)
        with sqlite3.connect(tmp_path / "db" / NAME) as other:
            other.execute(
                "CREATE TRIGGER plant BEFORE INSERT ON scale_weight_log WHEN new.cylinder_no = 'CY-SECRET'"
                " BEGIN SELECT RAISE(ABORT, 'this cylinder is not ours'); END"
            )
        status, body, headers = daemon.commit("CY-SECRET", key="k")
        assert (status, body["error"]) == (409, "rejected_by_database")
        assert "retry-after" not in headers
        assert daemon.commit("CY-2")[0] == 200
        assert problems(daemon) == []
        assert "CY-SECRET" not in daemon.log()
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("content", [b"", None])
def test_store_lost_refuses_commits_until_accepted(tmp_path: Path, content: bytes | None) -> None:
    lived(tmp_path)
    path = tmp_path / "db" / NAME
    backup = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    daemon = Daemon(tmp_path)
    try:
        daemon.start()
        said(daemon, "commits are refused", NAME, "0 bytes" if content is not None else "missing", "accept-empty-store")
        weighed(daemon)
        for key in ("k", "other"):
            status, body, _ = daemon.commit("CY-SECRET", key=key)
            assert (status, body["error"]) == (503, "store_unavailable")
        assert len(daemon.get(f"/stat/anomaly?machine=M&{EVERYTHING}")[1]) == 1
        daemon.daq(frame("name", "N"), frame("FaultDetect", {"score": 2.0, "threshold": 1.0}))
        until(lambda: len(daemon.get(f"/stat/anomaly?machine=N&{EVERYTHING}")[1]) == 1, "statistics go on")
        assert daemon.terminate() == 0
        assert "commits are refused" in daemon.log()
        assert "CY-SECRET" not in daemon.log()
        # After the restore, the key gives its first answer.
        path.write_bytes(backup)
        daemon.start()
        weighed(daemon)
        status, body, _ = daemon.commit("CY-SECRET", key="k")
        assert (status, body["id"]) == (200, 1)
        assert problems(daemon) == []
    finally:
        daemon.end()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM scale_weight_log").fetchone() == (1,)


def test_store_lost_and_accepted_commits_with_further_ids(tmp_path: Path) -> None:
    lived(tmp_path)
    (tmp_path / "db" / NAME).write_bytes(b"")
    for options in (ACCEPT, None):
        daemon = Daemon(tmp_path, options)
        try:
            daemon.start()
            assert problems(daemon) == []
            weighed(daemon)
            status, body, _ = daemon.commit("CY2", key="k2")
            # The second time, the answer is stored.
            assert (status, body["id"]) == (200, 2)
            assert daemon.terminate() == 0
        finally:
            daemon.end()


@pytest.mark.parametrize("content", [b"something else" * 100, bytes(4096)])
def test_store_that_is_not_a_database_is_one_line_at_the_start(tmp_path: Path, content: bytes) -> None:
    lived(tmp_path)
    (tmp_path / "db" / NAME).write_bytes(content)
    line = refused(Daemon(tmp_path))
    for word in ("database.path", str(tmp_path / "db" / NAME), "damaged", "backup", "--accept-empty-store"):
        assert word in line


def test_store_a_directory_in_the_place_of_the_file_is_one_line_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "db" / NAME).mkdir(parents=True)
    line = refused(Daemon(tmp_path))
    assert f"database.path: {tmp_path / 'db' / NAME}: a directory is in the place of the file" in line


def test_machine_whose_database_was_overwritten_is_503_and_a_problem(tmp_path: Path) -> None:
    lived(tmp_path)
    path = tmp_path / "db" / "M.db"
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (len(whole) - 4096))
    daemon = Daemon(tmp_path)
    try:
        daemon.start()
        status, body, _ = daemon.get(f"/stat/anomaly?machine=M&{EVERYTHING}")
        assert (status, body["error"]) == (503, "store_unavailable")
        daemon.daq(frame("name", "M"), frame("FaultDetect", {"score": 3.0, "threshold": 1.0}))
        daemon.daq(frame("name", "N"), frame("FaultDetect", {"score": 3.0, "threshold": 1.0}))
        said(daemon, "statistics of M cannot be written", "M.db", "damaged", "1 entries lost", "recompute")
        assert daemon.metric("cynow_store_lost_total") == 1
        until(lambda: daemon.get(f"/stat/anomaly/all?{EVERYTHING}")[1], "the other machine's")
        assert [item["name"] for item in daemon.get(f"/stat/anomaly/all?{EVERYTHING}")[1]] == ["N"]
        weighed(daemon)
        assert daemon.commit()[0] == 200
        # Restored while the gateway runs.
        copy = tmp_path / "copy"
        copy.write_bytes(whole)
        for suffix in ("-wal", "-shm"):
            (tmp_path / "db" / f"M.db{suffix}").unlink(missing_ok=True)
        copy.rename(path)
        until(lambda: not any("statistics of M cannot" in line for line in problems(daemon)), "it is sound again")
        assert daemon.get(f"/stat/anomaly?machine=M&{EVERYTHING}")[0] == 200
    finally:
        daemon.end()


def on_small_disk(folder: Path, prepare: str) -> "subprocess.CompletedProcess[bytes]":
    """Start a gateway with ``db`` on its own file system, after some shell commands there."""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    daemon = Daemon(folder, database={"path": "disk/db"})
    (folder / "disk").mkdir()
    script = f'mount -t tmpfs -o size=1m none disk && mkdir disk/db && {prepare} && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *TWISTD]
    done = subprocess.run(
        [*command, "--config", str(daemon.config)],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    if b"unshare" in done.stderr or b"mount:" in done.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.decode().strip()}")
    return done


@pytest.mark.parametrize("before", ["nothing", "a store"])
def test_start_on_a_full_disk_names_path_and_reason(tmp_path: Path, before: str) -> None:
    fill = "{ cat /dev/zero > disk/filler 2>/dev/null || true; }"
    if before == "a store":
        lived(tmp_path)
        fill = f"cp -a db/. disk/db && {fill}"
    done = on_small_disk(tmp_path, fill)
    assert done.returncode == 1
    line = f"cynow-gateway: database.path: {tmp_path}/disk/db: the disk is full; make room"
    assert done.stderr.decode().splitlines() == [line]


@pytest.mark.parametrize("before", ["nothing", "a store"])
def test_start_on_a_read_only_file_system_names_path_and_reason(tmp_path: Path, before: str) -> None:
    prepare = "mount -o remount,ro disk"
    if before == "a store":
        lived(tmp_path)
        prepare = f"cp -a db/. disk/db && {prepare}"
    done = on_small_disk(tmp_path, prepare)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"cynow-gateway: database.path: {tmp_path}/disk/db: ")


def test_start_with_a_spool_on_a_full_disk_names_path_and_reason(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, database={"path": "disk/db", "url": "postgresql://nobody@127.0.0.1:1/none"})
    (tmp_path / "disk").mkdir()
    script = (
        "mount -t tmpfs -o size=1m none disk && mkdir disk/db"
        ' && { cat /dev/zero > disk/filler 2>/dev/null || true; } && exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *TWISTD, "--config", str(daemon.config)],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    if b"unshare" in done.stderr or b"mount:" in done.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.decode().strip()}")
    assert done.returncode == 1
    assert f"{tmp_path}/disk/db: the disk is full" in done.stderr.decode()
