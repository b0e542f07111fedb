"""How the daemon starts, and how it says that it cannot."""

import json
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.support.daemon import END, PATIENCE, TWISTD, Daemon, Stopwatch, running, until


def refused(daemon: Daemon) -> str:
    """What a start that must fail prints: one line."""
    watch = Stopwatch()
    with subprocess.Popen(
        [*TWISTD, "--config", str(daemon.config)], cwd=daemon.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:

        def has_ended() -> bool:
            watch.look()
            return process.poll() is not None

        until(has_ended, "it ends")
        done = subprocess.CompletedProcess(process.args, process.returncode, *process.communicate())
    assert watch.seconds() < END
    assert done.returncode != 0
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("cynow-gateway: ")
    return line


def check(daemon: Daemon) -> tuple[int, str, str]:
    done = subprocess.run(
        [*TWISTD, "--config", str(daemon.config), "--check"],
        cwd=daemon.folder,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("port", ["port", "daq_port", "scale_port"])
def test_a_port_in_use(tmp_path: Path, port: str) -> None:
    daemon = Daemon(tmp_path)
    number = getattr(daemon, port)
    with socket.create_server(("127.0.0.1", number)):
        line = refused(daemon)
    assert str(number) in line
    assert "in use" in line


def test_no_configuration_file(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.config.unlink()
    assert "No such file" in refused(daemon)


def test_an_invalid_configuration(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, server={"prot": 1}, timezone="Mars/Olympus")
    line = refused(daemon)
    assert "server.prot: unknown key; the nearest known key is server.port" in line
    assert "1 more" in line
    status, out, err = check(daemon)
    assert (status, out) == (1, "")
    assert [problem.partition(":")[0] for problem in err.splitlines()] == ["server.prot", "timezone"]


def test_an_endpoint_that_is_none(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, scales={"a": {"listen": "nonsense:1"}, "b": {"connect": "tcp"}})
    status, _, err = check(daemon)
    assert status == 1
    assert [problem.partition(":")[0] for problem in err.splitlines()] == [
        "scales.a.listen",
        "scales.b.connect",
        "scale.port",
    ]


def test_an_endpoint_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, scales={"a": {"listen": f"unix:{tmp_path}/missing/x"}})
    assert f"scales.a: cannot listen: the folder {tmp_path}/missing does not exist; create it" in refused(daemon)


def test_a_url_file_that_is_missing_or_wrong(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, database={"url_file": "secrets/url"})
    assert "database.url_file: cannot read " in refused(daemon)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "url").write_text("postgresql://cynow:s3cret@[db.example/cynow\n")
    line = refused(daemon)
    assert "database.url_file: " in line
    assert "s3cret" not in line
    (tmp_path / "secrets" / "url").write_text("postgresql://cynow:s3cret@db.example/cynow\n")
    (tmp_path / "secrets" / "url").chmod(0o600)
    assert check(daemon)[::2] == (0, "")


def test_check_starts_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with socket.create_server(("127.0.0.1", daemon.port)):
        status, out, err = check(daemon)
    assert (status, err) == (0, "")
    assert "no problem" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cynow-gateway.yaml"]


@pytest.mark.parametrize("section", ["data", "database", "logger"])
def test_an_unusable_directory(tmp_path: Path, section: str) -> None:
    (tmp_path / "file").write_text("in the way")
    settings: dict[str, Any] = {section: {"path": "file/below"}}
    daemon = Daemon(tmp_path, **settings)
    assert f"{section}.path" in refused(daemon)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "cynow-gateway.sqlite3").write_bytes(b"something else" * 100)
    assert "cynow-gateway.sqlite3" in refused(Daemon(tmp_path))


@pytest.mark.parametrize("section", ["data", "database"])
def test_a_second_gateway_on_the_same_directory(tmp_path: Path, section: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    shared: dict[str, Any] = {section: {"path": str(tmp_path / "shared")}}
    with running(tmp_path / "first", **shared):
        line = refused(Daemon(tmp_path / "second", **shared))
        assert "another gateway uses " in line
    # A killed one leaves no lock behind.
    with running(tmp_path / "first", **shared) as daemon:
        daemon.kill()
        daemon.start()


def test_an_empty_file_is_a_working_gateway(tmp_path: Path) -> None:
    """But for its ports, which may be in use here."""
    daemon = Daemon(tmp_path)
    port, daq_port, scale_port = daemon.port, daemon.daq_port, daemon.scale_port
    daemon.config.write_text(f"server: {{port: {port}, tcp_port: {daq_port}}}\n")
    daemon.run(env={"SCALE_GATEWAY_LISTEN_HOST": "localhost", "SCALE_GATEWAY_LISTEN_PORT": str(scale_port)})
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", scale_port)) == 0, "the environment's port")
        # Ports are bound first.
        until(lambda: len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3, "its folders")
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["data", "db", "log"]
    finally:
        daemon.end()


def test_an_ipv6_address(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    daemon = Daemon(tmp_path, server={"host": "::1"})
    daemon.run()
    try:
        until(lambda: socket.socket(socket.AF_INET6).connect_ex(("::1", daemon.port)) == 0, "::1")
    finally:
        daemon.end()


def test_the_log_goes_to_a_file_and_stderr_korean_intact(tmp_path: Path) -> None:
    with running(tmp_path, timezone="Asia/Seoul") as daemon:
        daemon.daq(b'["name", "\xec\x87\xbc\xed\x8a\xb8"]\0')
        until(lambda: "쇼트" in daemon.log(), "the line")
        log = (tmp_path / "log" / "cynow-gateway.log").read_text("utf-8")
        assert "machine 쇼트: connected from" in log
        assert "+09:00 [" in log


def test_the_log_is_json_for_the_journal_alone(tmp_path: Path) -> None:
    errors = tmp_path / "stderr.txt"
    errors.touch()
    status = errors.stat()
    daemon = Daemon(tmp_path, logger={"path": None, "format": "json"}, timezone="Asia/Seoul")
    try:
        daemon.start(env={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        daemon.daq(b'["name", "\xec\x87\xbc\xed\x8a\xb8"]\0')
        until(lambda: "쇼트" in daemon.log(), "the line")
        assert daemon.terminate() == 0
    finally:
        daemon.end()
    assert not (tmp_path / "log").exists()
    lines = daemon.log().splitlines()
    assert {line[:3] for line in lines} <= {"<4>", "<6>"}
    found = [json.loads(line[3:]) for line in lines]
    assert all(line["time"].endswith("+09:00") and line["level"] in {"info", "warn"} for line in found)
    (connected,) = [line for line in found if "쇼트" in line["message"] and ": connected from" in line["message"]]
    assert connected["logger"] == "gateway.ingest.daq"
    assert "쇼트" in connected.values()


def test_systemd_is_told(tmp_path: Path) -> None:
    """Ready when it listens, alive as often as the watchdog asks, stopping when it does."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(PATIENCE)
        # Read at once, as systemd does: the kernel keeps ten of them, and then who says more waits.
        said: Queue[bytes] = Queue()

        def read_messages() -> None:
            for message in iter(lambda: systemd.recv(100), b""):
                said.put(message)

        reader = threading.Thread(target=read_messages)
        reader.start()
        daemon = Daemon(tmp_path)
        try:
            daemon.start(env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"})
            while (word := said.get(timeout=PATIENCE)) != b"READY=1":
                # It reads what it wrote before, and says that this is alive too.
                assert word in {b"EXTEND_TIMEOUT_USEC=30000000", b"WATCHDOG=1"}
            assert {said.get(timeout=PATIENCE) for _ in range(3)} == {b"WATCHDOG=1"}
            assert daemon.terminate() == 0
            while (word := said.get(timeout=PATIENCE)) == b"WATCHDOG=1":
                pass
            assert word == b"STOPPING=1"
        finally:
            daemon.end()
            systemd.sendto(b"", address)
            reader.join()


def test_many_connections_are_allowed_for(tmp_path: Path) -> None:
    """More than the 1,024 files that many systems give a process that does not ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 5000), hard))
    try:
        with running(tmp_path) as daemon:
            limits = Path(f"/proc/{daemon.process.pid}/limits").read_text("ascii")
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert line.split()[3] == line.split()[4]
            connections = [daemon.scale() for _ in range(1500)]
            connections[-1].sendall(b"ST,+00001.00 kg\r\n")
            until(daemon.latest_is(1.0), "the last of them is heard")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_connections_are_closed_and_counted(tmp_path: Path) -> None:
    with running(tmp_path, limits={"connections": 3}) as daemon:
        for port, kind in ((daemon.scale_port, "scale"), (daemon.daq_port, "daq")):
            kept = [daemon.scale(port) for _ in range(3)]
            until(lambda kind=kind: daemon.metric("cynow_connections", kind=kind) == 3, "three")
            if kind == "scale":
                # Those that have sent a reading keep their places.
                for number, client in enumerate(kept, 1):
                    client.sendall(b"ST,+%05d.00 kg\r\n" % number)
                    until(daemon.latest_is(number), "the reading")
            else:
                for number, client in enumerate(kept):
                    client.sendall(json.dumps(["name", f"M{number}"]).encode() + b"\0")
                until(lambda: len(daemon.get("/sio/machineList")[1]["machine_list"]) == 3, "the names")
            assert daemon.scale(port).recv(1) == b""
            until(lambda kind=kind: daemon.metric("cynow_connections_refused_total", kind=kind) == 1, "counted")
            kept[0].close()


def test_no_reactor_module_is_loaded_by_the_plugin() -> None:
    """``twistd`` must still be able to choose its reactor after reading the plugin."""
    code = "import sys, gateway.tap; print('twisted.internet.reactor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_firebase_is_imported_only_when_configured(tmp_path: Path) -> None:
    code = (
        "import sys; from gateway.tap import Options, makeService;"
        "options = Options(); options.parseOptions([]); makeService(options);"
        "print('firebase_admin' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"
    (tmp_path / "cred.json").write_text('{"type": "service_account", "private_key": "SECRET-KEY"}')
    with running(tmp_path, fcm={"cred_path": "cred.json"}) as daemon:
        until(lambda: "cannot use the credentials" in daemon.log(), "the warning")
        assert "SECRET-KEY" not in daemon.log()
        daemon.weigh(b"ST,+00001.00 kg")
        until(daemon.latest_is(1.0), "everything else works")
