"""The process: signals at any moment, modes of files, users, and the limit of open files."""

import contextlib
import fcntl
import os
import pwd
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE, TWISTD, Daemon, running, until

#: Signals that an administrator or a tool may send, and that end nothing.
HARMLESS = [
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPIPE,
]

#: Runs `twistd` in a process that holds the parsing of its options up until the test has looked at it.
SLOW_START = """
import sys, time
from pathlib import Path
import gateway.tap
from gateway.runtime.signals import Signals
install = Signals.install
def slow_install(self):
    install(self)
    Path("installed").touch()
    until = time.monotonic() + {seconds}
    while time.monotonic() < until and not Path("go").exists():
        time.sleep(0.01)
Signals.install = slow_install
begin_start = Signals.begin_start
def slow_begin_start(self):
    begin_start(self)
    Path("starting").touch()
    until = time.monotonic() + {seconds}
    while time.monotonic() < until and not Path("go on").exists():
        time.sleep(0.01)
Signals.begin_start = slow_begin_start
from twisted.scripts.twistd import run
sys.argv[0] = "twistd"
run()
"""


def handled(pid: int, which: str) -> set[int]:
    """The signals that a process catches (``SigCgt``) or ignores (``SigIgn``)."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = int(status.partition(f"{which}:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Daemon]:
    """A gateway that waits at two places of its start for files named `go` and `go on`; not started."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW_START.format(seconds=PATIENCE))
    daemon = Daemon(tmp_path, [sys.executable, str(script), "-n", "--pidfile=", "cynow-gateway"])
    yield daemon
    daemon.end()


# -- signals


def test_harmless_signals_leave_a_running_gateway_alive(daemon: Daemon) -> None:
    for number in HARMLESS:
        daemon.process.send_signal(number)
    until(lambda: "SIGHUP: the configuration is reloaded" in daemon.log(), "SIGHUP is said")
    assert daemon.get("/healthz")[0] == 200
    assert daemon.terminate() == 0


def test_harmless_signals_at_the_start_do_not_end_it(slow: Daemon) -> None:
    slow.run()
    for place, go in (("installed", "go"), ("starting", "go on")):
        until((slow.folder / place).exists, place)
        for number in HARMLESS:
            slow.process.send_signal(number)
        (slow.folder / go).touch()
    slow.start_answers()
    until(lambda: "SIGHUP: the configuration is reloaded" in slow.log(), "what came early is said")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["installed", "starting"])
def test_a_signal_at_the_start_ends_it_with_status_0(slow: Daemon, place: str, number: int) -> None:
    slow.run()
    if place == "starting":
        (slow.folder / "go").touch()
    until((slow.folder / place).exists, place)
    slow.process.send_signal(number)
    (slow.folder / "go on").touch()
    assert slow.process.wait(PATIENCE) == 0
    assert "Traceback" not in slow.log()
    assert "the gateway is ready" not in slow.log()
    assert not (slow.folder / "db").exists(), "no store is opened that would have to be closed"


def test_a_signal_that_comes_at_any_moment_ends_it_with_status_0(tmp_path: Path) -> None:
    """From the moment at which the options are read, which /proc tells."""
    daemon = Daemon(tmp_path)
    for step in range(8):
        daemon.run()
        try:
            until(lambda: signal.SIGTERM in handled(daemon.process.pid, "SigCgt"), "handlers")
            time.sleep(step * 0.15)  # the moment is the test
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == 0, daemon.log()
        finally:
            daemon.end()
    assert "Traceback" not in daemon.log()


def test_signals_without_end_do_no_harm_to_the_end(daemon: Daemon) -> None:
    """Up to the moment at which the process is gone: Python restores deadly defaults before that."""
    while daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert daemon.process.returncode == 0
    assert "Traceback" not in daemon.log()


def test_check_that_is_ended_by_a_signal_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    fifo = tmp_path / "config"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [*TWISTD, "--check", "--config", str(fifo)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # It waits for the configuration that nobody writes, where this can be opened.
    writer = until(lambda: opened_for_writing(fifo), "it reads its configuration")
    process.terminate()
    assert process.wait(PATIENCE) != 0
    os.close(writer)


def opened_for_writing(fifo: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


def test_hang_up_opens_the_log_file_again(tmp_path: Path) -> None:
    """As logrotate wants it: it renames the file and says so."""
    with running(tmp_path) as daemon:
        log = tmp_path / "log" / "cynow-gateway.log"
        log.rename(tmp_path / "log" / "moved")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: log.exists() and "reopened the log file" in log.read_text("utf-8"), "the new file")
        assert "the gateway is ready" in (tmp_path / "log" / "moved").read_text("utf-8")


def test_hang_up_without_a_log_folder_goes_on_in_the_old_file(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        (tmp_path / "log").rename(tmp_path / "moved")
        daemon.process.send_signal(signal.SIGHUP)
        moved = tmp_path / "moved" / "cynow-gateway.log"
        until(lambda: "cannot reopen the log file" in moved.read_text("utf-8"), "the line")
        assert daemon.terminate() == 0
        assert "the gateway has stopped" in moved.read_text("utf-8")


# -- modes of files


def modes(folder: Path) -> dict[str, int]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            found[str(path.relative_to(folder))] = stat.S_IMODE(status.st_mode)
    return found


def use(daemon: Daemon) -> None:
    """Have files of every kind made: commits, a machine's database, raw files."""
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    assert daemon.commit()[0] == 200
    daemon.daq(
        b'["name", "M"]\0["DataUpdate", {"v": {"type": "VIB", "data": [0.5]}}]\0'
        b'["FaultDetect", {"score": 2.0, "threshold": 1.0}]\0'
    )
    until(lambda: daemon.get("/stat/machineList")[1]["machine_list"] == ["M"], "the machine's database")
    until(lambda: list((daemon.folder / "data" / "M").glob("*.csv")), "the raw file")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("mask", "options", "file", "folder"),
    [
        (0o000, [], 0o640, 0o750),
        (0o022, [], 0o640, 0o750),
        (0o077, [], 0o600, 0o700),
        (0o077, ["--umask", "022"], 0o644, 0o755),
    ],
)
def test_new_files_are_not_readable_by_every_user(
    tmp_path: Path, mask: int, options: list[str], file: int, folder: int
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    old = home / "data" / "old"
    old.mkdir(parents=True)
    old.chmod(0o755)
    (home / "data").chmod(0o755)
    daemon = Daemon(home, [TWISTD[0], *options, *TWISTD[1:]])
    before = modes(home)
    with umask(mask):
        daemon.run()
    try:
        daemon.start_answers()
        use(daemon)
        now = modes(home)
    finally:
        daemon.end()
    assert now.keys() >= {"db/cynow-gateway.sqlite3", "db/cynow-gateway.sqlite3-wal", "db/M.db", "data/M"}
    assert now["log/cynow-gateway.log"] == file
    made = {name: mode for name, mode in now.items() if name not in before and name != "stderr.txt"}
    assert made == {name: folder if (home / name).is_dir() else file for name in made}
    assert {name: now[name] for name in before if name != "stderr.txt"} == before, "what was there keeps its mode"


# -- users


@pytest.fixture
def plain_user() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("only root can start a gateway as another user")
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("this machine has no user nobody")


def as_user(folder: Path, user: pwd.struct_passwd, **settings: Any) -> Daemon:
    return Daemon(folder, [TWISTD[0], "--uid", user.pw_name, *TWISTD[1:]], **settings)


def test_as_another_user_all_files_are_its_own(open_folder: Path, plain_user: pwd.struct_passwd) -> None:
    os.chown(open_folder, plain_user.pw_uid, plain_user.pw_gid)
    daemon = as_user(open_folder, plain_user)
    before = set(modes(open_folder))
    daemon.start()
    try:
        use(daemon)
        made = set(modes(open_folder)) - before - {"stderr.txt"}
        owners = {name: (open_folder / name).stat().st_uid for name in made}
    finally:
        daemon.end()
    assert {"log", "log/cynow-gateway.log", "db", "data"} <= owners.keys()
    assert set(owners.values()) == {plain_user.pw_uid}
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("name", ["log", "db", "data"])
def test_a_folder_that_the_user_cannot_write_names_both(
    open_folder: Path, plain_user: pwd.struct_passwd, name: str
) -> None:
    os.chown(open_folder, plain_user.pw_uid, plain_user.pw_gid)
    (open_folder / name).mkdir()
    daemon = as_user(open_folder, plain_user)
    daemon.run()
    try:
        assert daemon.process.wait(PATIENCE) == 1
    finally:
        daemon.end()
    (line,) = daemon.log().splitlines()
    key = {"log": "logger.path", "db": "database.path", "data": "data.path"}[name]
    assert line.startswith(f"cynow-gateway: {key}: ")
    assert f"/{name}" in line
    assert "the user nobody" in line


def test_files_that_root_has_left_are_said_with_the_user(open_folder: Path, plain_user: pwd.struct_passwd) -> None:
    with running(open_folder) as daemon:
        daemon.kill()
    for name in ("", "db", "data", "log", "log/cynow-gateway.log"):
        os.chown(open_folder / name, plain_user.pw_uid, plain_user.pw_gid)
    (open_folder / "stderr.txt").unlink()
    daemon = as_user(open_folder, plain_user)
    daemon.run()
    try:
        assert daemon.process.wait(PATIENCE) == 1
    finally:
        daemon.end()
    (line,) = daemon.log().splitlines()
    assert line.startswith(f"cynow-gateway: database.path: {open_folder}/db/cynow-gateway.sqlite3")
    assert "the user nobody" in line


@pytest.mark.parametrize("options", [["--rundir", "home"], ["--chroot", "/"]])
def test_folders_lie_where_twistd_goes(tmp_path: Path, options: list[str]) -> None:
    """Into its --rundir; a --chroot leads to its root, which this test cannot write in."""
    if os.geteuid() != 0:
        pytest.skip("only root can change the root directory")
    home = tmp_path / "home"
    home.mkdir()
    if options[0] == "--chroot":
        options = [*options, "--rundir", str(home)]
    daemon = Daemon(tmp_path, [TWISTD[0], *options, *TWISTD[1:]])
    daemon.start()
    try:
        assert sorted(path.name for path in home.iterdir()) == ["data", "db", "log"]
    finally:
        daemon.end()


def test_a_port_in_use_as_another_user_leaves_no_files_of_root(
    open_folder: Path, plain_user: pwd.struct_passwd
) -> None:
    """Without -n, the log holds what went wrong before the user was changed."""
    os.chown(open_folder, plain_user.pw_uid, plain_user.pw_gid)
    daemon = Daemon(open_folder)
    with socket.create_server(("127.0.0.1", daemon.port)):
        done = subprocess.run(
            [TWISTD[0], "--pidfile=", "--uid", "nobody", "cynow-gateway", "--config", str(daemon.config)],
            cwd=open_folder,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    log = open_folder / "log" / "cynow-gateway.log"
    assert "server.port: cannot listen on" in log.read_text("utf-8")
    assert log.stat().st_uid == log.parent.stat().st_uid == plain_user.pw_uid


# -- the old server


def test_a_running_old_server_keeps_it_from_starting_and_a_stale_lock_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "monitoring.lock").touch()
    with (tmp_path / "monitoring.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        daemon = Daemon(tmp_path)
        daemon.run()
        try:
            assert daemon.process.wait(PATIENCE) == 1
        finally:
            daemon.end()
    (line,) = daemon.log().splitlines()
    assert line.startswith("cynow-gateway: ")
    assert line.endswith("monitoring.lock: the old monitoring server is running here; stop it first")
    with running(tmp_path) as daemon:
        assert daemon.get("/healthz")[0] == 200


# -- the limit of open files


def test_more_connections_than_files_are_refused_and_it_serves_on(tmp_path: Path) -> None:
    """7,600 connects at the limit of open files made 909 KB of log lines, and half a core of nothing."""
    with limited_files(200), running(tmp_path) as daemon:
        held = daemon.scale()
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text("ascii")
        assert [line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")] == ["200"]
        for _ in range(20):
            with contextlib.ExitStack() as crowd:
                for _ in range(220):
                    crowd.enter_context(connected(daemon.scale_port))
                if "a connection was closed at once" not in daemon.log():
                    until(lambda: "a connection was closed at once" in daemon.log(), "a refusal is said")
                    # In this state an operator can still ask, and files can still be opened.
                    health = daemon.get("/healthz")[1]
                    assert not health["ok"]
                    (problem,) = health["problems"]
                    assert problem.startswith("new connections cannot be accepted: nearly all of the 200 files")
                    held.sendall(b"ST,+00002.00 kg\r\n")
                    until(daemon.latest_is(2.0), "a connection from before is served")
                    assert daemon.commit()[0] == 200
        assert daemon.metric("cynow_connections_refused_total", kind="open_files") > 0

        def is_served() -> bool:
            # Until the crowd's ends are noticed, one more connection is still too many.
            with contextlib.suppress(OSError):
                daemon.weigh(b"ST,+00003.00 kg")
            return daemon.latest_is(3.0)()

        until(is_served, "new connections are served again")
        assert len(daemon.log().encode()) < 20_000
        assert "EMFILE" not in daemon.log()
        assert "Traceback" not in daemon.log()
        assert daemon.terminate() == 0
        assert "lines within 60 s were not logged, such as: scale.port: a connection was closed" in daemon.log()


def test_at_the_limit_of_open_files_it_does_nothing_without_end(tmp_path: Path) -> None:
    """Those that are refused come back at once and without end, as the field's client does."""
    with limited_files(200), running(tmp_path) as daemon, contextlib.ExitStack() as crowd:
        for _ in range(250):
            crowd.enter_context(connected(daemon.daq_port))
        until(lambda: "a connection was closed at once" in daemon.log(), "a refusal is said")
        before, began = cpu_seconds(daemon.process.pid), time.monotonic()
        while time.monotonic() - began < 3:  # a share of this time is what is measured
            with connected(daemon.daq_port) as again:
                again.recv(1)
        used = cpu_seconds(daemon.process.pid) - before
        assert used / (time.monotonic() - began) < 0.1


@contextlib.contextmanager
def limited_files(count: int) -> Iterator[None]:
    """What is started in this block may have so many open files, and may not ask for more."""
    popen: Any = subprocess.Popen.__init__

    def limited(self: Any, *args: Any, **kwargs: Any) -> None:
        popen(self, *args, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count)), **kwargs)

    subprocess.Popen.__init__ = limited  # type: ignore[method-assign]  # for this block
    try:
        yield
    finally:
        subprocess.Popen.__init__ = popen  # type: ignore[method-assign]  # as it was


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            client.connect(("127.0.0.1", port))
        yield client


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
