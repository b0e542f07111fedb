"""A full disk: the gateway runs with its directories on a small file system."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import TWISTD, Daemon, until
from tests.support.frames import frame, update

#: Size of the file system, in bytes.
SIZE = 4 * 2**20


class SmallDisk(Daemon):
    """A gateway with the directories ``names`` on one small file system.

    :param is_full: whether the file system is full when the gateway starts.
    """

    def __init__(self, folder: Path, *names: str, is_full: bool = False) -> None:
        self._names = names
        (folder / "disk").mkdir()
        folders = " ".join(f"disk/{name}" for name in names)
        fill = "cat /dev/zero > disk/filler 2> /dev/null;" if is_full else ""
        script = f'mount -t tmpfs -o size={SIZE} none disk && mkdir {folders} && {{ {fill} exec "$@"; }}'
        super().__init__(
            folder,
            ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *TWISTD],
            **{{"db": "database", "data": "data", "log": "logger"}[name]: {"path": f"disk/{name}"} for name in names},
        )

    @property
    def disk(self) -> Path:
        """Return the path of the file system in the mount namespace of the gateway."""
        return Path(f"/proc/{self.process.pid}/cwd/disk")

    def fill(self) -> Path:
        """Fill the file system with a file; removing it frees the space."""
        filler = self.disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return filler
        raise AssertionError("the disk is never full")

    def problems(self) -> list[str]:
        problems: list[str] = self.get("/healthz")[1]["problems"]
        return problems


@pytest.fixture
def small_disk(tmp_path: Path, tool: Callable[[str], str]) -> Iterator[Callable[..., SmallDisk]]:
    tool("unshare")
    allowed = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", f"mount -t tmpfs none {tmp_path}"], capture_output=True
    )
    if allowed.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {allowed.stderr.decode().strip()}")
    started: list[SmallDisk] = []

    def start(*names: str, is_full: bool = False) -> SmallDisk:
        daemon = SmallDisk(tmp_path, *names, is_full=is_full)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        daemon.end()


def lines_of(daemon: SmallDisk, sensor: str) -> list[str]:
    files = sorted((daemon.disk / "data" / "M").glob(f"*_{sensor}.csv"))
    return [line for file in files for line in file.read_text("ascii").splitlines()[1:]]


def test_full_disk_stops_raw_files_and_not_the_daemon(small_disk: Callable[..., SmallDisk]) -> None:
    daemon = small_disk("data")
    connection = daemon.daq(frame("name", "M"), update("v", "VIB", 1.0))
    until(lambda: len(lines_of(daemon, "v")) == 1, "the first line")
    assert daemon.get("/healthz")[1]["ok"] is True
    filler = daemon.fill()
    events = daemon.subscribe("machine/M/samples")
    # More than the last page of the file can hold.
    connection.sendall(update("v", "VIB", *[2.0] * 2000))
    assert len(events.events(1, "samples")[0]["data"]["v"]["data"]) == 2000
    (path,) = (daemon.disk / "data" / "M").glob("*_v.csv")
    (problem,) = until(daemon.problems, "healthz says so")
    assert problem.startswith("raw files cannot be written: /")
    assert problem.endswith(f"/data/M/{path.name}: No space left on device")
    status, health, _ = daemon.get("/healthz")
    assert (status, health["ok"]) == (200, False)
    assert daemon.metric("cynow_rawlog_failures_total") > 0
    # All else works.
    daemon.weigh(b"ST , +000053.26 _kg")
    until(daemon.latest_is(53.26), "the reading")
    assert daemon.commit()[0] == 200
    filler.unlink()
    until(lambda: daemon.get("/healthz")[1]["ok"], "room again")
    # Waiting lines are written, whole and in order.
    until(lambda: len(lines_of(daemon, "v")) == 2001, "the lines that waited")
    assert {line.partition(",")[2] for line in lines_of(daemon, "v")[1:]} == {"2.0"}
    assert daemon.metric("cynow_rawlog_lost_bytes_total") == 0
    assert "No space left on device" in daemon.log()
    assert daemon.terminate() == 0


def test_full_disk_with_all_directories(small_disk: Callable[..., SmallDisk]) -> None:
    daemon = small_disk("data", "db", "log")
    connection = daemon.daq(frame("name", "M"), update("v", "VIB", 1.0))
    daemon.weigh(b"ST , +000053.26 _kg")
    until(daemon.latest_is(53.26), "the reading")
    assert daemon.commit("CY1")[0] == 200
    filler = daemon.fill()
    connection.sendall(update("v", "VIB", *[2.0] * 2000))
    until(lambda: daemon.problems() != [], "healthz says so")
    statuses = {daemon.commit(f"CX{number}", arrival_shipping_no="x" * 50)[0] for number in range(100)}
    assert statuses <= {200, 503}
    assert 503 in statuses
    daemon.weigh(b"ST , +000054.00 _kg")
    until(daemon.latest_is(54.0), "readings go on")
    filler.unlink()
    until(lambda: daemon.commit("CY2")[0] == 200, "commits again")
    until(lambda: daemon.get("/healthz")[1]["ok"], "all is well")
    until(lambda: len(lines_of(daemon, "v")) == 2001, "the lines that waited")
    assert daemon.terminate() == 0


def test_start_on_a_full_disk(small_disk: Callable[..., SmallDisk], tmp_path: Path) -> None:
    daemon = small_disk("data", is_full=True)
    daemon.daq(frame("name", "M"), update("v", "VIB", 1.0))
    until(lambda: daemon.problems() != [], "healthz says so")
    assert shutil.disk_usage(daemon.disk).free == 0
    status, readiness, _ = daemon.get("/readyz")
    assert (status, readiness["parts"]["raw"]["state"]) == (503, "down")
    (line,) = until(lambda: daemon.get("/readyz")[1]["parts"]["disk"]["details"], "the full disk is measured")
    assert line.startswith("0 MiB of 4 MiB are free for the data folder (")
    assert daemon.metric("cynow_disk_free_bytes", folder="data") == 0
    assert daemon.terminate() == 0
