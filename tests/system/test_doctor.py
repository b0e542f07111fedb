"""``cynow-gateway doctor`` in healthy plants, and in the five that break most often."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.daemon import free_ports, running, until
from tests.support.doctor import LINE, SHOWN, Plant, converter, dialling_scale
from tests.support.google import PROJECT, Google, playing_google
from tests.support.postgres import Server


@pytest.fixture
def google(tmp_path: Path) -> Iterator[Google]:
    with playing_google(tmp_path) as google:
        yield google


# -- healthy plants


def test_healthy_plant_before_its_first_start(tmp_path: Path, server: Server, google: Google) -> None:
    (listen_port,) = free_ports(1)
    with converter(LINE * 5) as port, dialling_scale(listen_port):
        plant = Plant(
            tmp_path,
            scales={
                "dock-1": {"listen": f"tcp:{listen_port}:interface=127.0.0.1"},
                "dock-2": {"connect": f"tcp:127.0.0.1:{port}"},
            },
            database={"url": server.url.replace("127.0.0.1", "localhost")},
            fcm={"cred_path": str(google.credentials)},
        )
        del plant.tree["scale"]
        plant.environment.update(google.environment())
        examined = plant.examine("--listen-seconds", "10")
    assert examined.problems() == []
    assert examined.status == 0
    assert examined.summary == f"{len(examined.findings)} ok, 0 warnings, 0 errors"
    assert examined.of("configuration") == [f"ok {plant.config} has no problem"]
    assert examined.of("gateway") == ["ok not running"]
    assert examined.of("server.port") == [f"ok 127.0.0.1:{plant.port} is free"]
    assert examined.of("scales.dock-2.connect") == [f"ok 127.0.0.1:{port}: {SHOWN}; {SHOWN}; {SHOWN}"]
    free, heard = examined.of("scales.dock-1.listen")
    assert free == f"ok 127.0.0.1:{listen_port} is free"
    assert heard.startswith("ok 127.0.0.1:")
    assert heard.endswith(f": {SHOWN}; {SHOWN}; {SHOWN}")
    assert examined.of("clock") == ["ok synchronised by NTP"]
    assert examined.of("database schema") == ["ok at step 0 of 3; the gateway makes the rest in schema public"]
    assert examined.of("database notify") == ["ok notifications arrive"]
    assert examined.of("fcm.cred_path") == [
        f"ok {google.credentials}: Google gave an access token for project {PROJECT}"
    ]
    assert not any(secret in examined.text for secret in [*google.secrets(), server.password, "geheim/wort"])
    # Nothing was made.
    assert not {"db", "data", "log"} & set(os.listdir(tmp_path))
    assert server.sql("SELECT to_regclass('cynow_schema')") == [(None,)]


def test_healthy_plant_while_the_gateway_runs(tmp_path: Path, server: Server) -> None:
    plant = Plant(tmp_path, database={"url": server.url})
    with running(tmp_path, database={"url": server.url}, timezone="Asia/Seoul") as daemon:
        daemon.weigh(LINE.strip())
        until(daemon.latest_is(53.26), "the reading")
        until(lambda: daemon.get("/healthz")[1]["ok"], "PostgreSQL is there")
        plant.config = daemon.config
        plant.tree = yaml.safe_load(daemon.config.read_text("utf-8"))
        examined = plant.examine()
        # The limit of open files is that of the shell that runs the tests.
        assert [line for line in examined.problems() if "open files" not in line] == []
        assert examined.status == 0
        (gateway,) = examined.of("gateway")
        assert gateway.startswith("ok running gateway ")
        assert gateway.endswith(f"(process {daemon.process.pid})")
        shown = f"the {gateway.removeprefix('ok ')}"
        assert examined.of("server.tcp_port") == [f"ok 127.0.0.1:{daemon.daq_port} is used by {shown}"]
        (_, lock) = examined.of("data.path")
        assert lock == f"ok {tmp_path}/data is locked by {shown}"
        (_, latest) = examined.of("scale.port")
        assert latest.startswith("ok the running gateway has 'ST , +000053.26 _kg' = 53.26 kg of 20")
        assert examined.of("database schema") == ["ok at step 3, as this version needs it"]
        assert examined.of("database rights") == ["ok all tables can be read and written"]
        assert daemon.get("/healthz")[1]["ok"]


def test_embedded_store_is_checked_after_a_run(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        assert daemon.terminate() == 0
    plant = Plant(tmp_path)
    path = tmp_path / "db" / "cynow-gateway.sqlite3"
    assert plant.examine().of("database.path")[1] == f"ok {path} is intact, schema 5"
    # Nothing is left that belongs to the user of the doctor instead of the gateway's.
    assert os.listdir(path.parent) == [path.name]
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(8192) + content[12288:])
    examined = plant.examine()
    assert examined.status == 1
    assert examined.of("database.path")[1].startswith("error ")
    path.write_bytes(b"")
    assert plant.examine().of("database.path")[1] == (
        f"error {path} is empty -> stop the gateway and restore the file from a backup"
    )


# -- broken plants


def test_wrong_database_name(tmp_path: Path, server: Server) -> None:
    examined = Plant(tmp_path, database={"url": server.url_of("nowhere")}).examine()
    assert examined.problems() == [
        (
            'error database.url database "nowhere" does not exist -> create it: CREATE DATABASE "nowhere" ENCODING'
            " 'UTF8' TEMPLATE template0;"
        )
    ]
    assert examined.status == 1
    assert "geheim" not in examined.text


def test_silent_scale(tmp_path: Path) -> None:
    with converter() as port:
        examined = Plant(tmp_path, scales={"dock-2": {"connect": f"tcp:127.0.0.1:{port}"}}, scale={}).examine()
    assert examined.problems() == [
        (
            f"error scales.dock-2.connect connected to 127.0.0.1:{port}, but silent for 5 s -> set the scale to send"
            " continuously (stream mode), and check the cable behind the converter"
        )
    ]
    assert examined.status == 1


def test_busy_port(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    with socket.create_server(("127.0.0.1", plant.port)):
        examined = plant.examine()
    name = Path("/proc/self/comm").read_text("utf-8").strip()
    assert examined.problems() == [
        (
            f"error server.port 127.0.0.1:{plant.port} is in use by process {os.getpid()} ({name}) -> end that"
            " program, or change server.port"
        )
    ]
    assert examined.status == 1


def test_full_disk(tmp_path: Path, tool: Callable[[str], str]) -> None:
    unshare = (tool("unshare"), "--map-root-user", "--mount", "sh", "-c")
    allowed = subprocess.run([*unshare, f"mount -t tmpfs none {tmp_path}"], capture_output=True)
    if allowed.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {allowed.stderr.decode().strip()}")
    plant = Plant(tmp_path, data={"path": "disk/data"})
    (tmp_path / "disk").mkdir()
    script = (
        f"mount -t tmpfs -o size=4m none {tmp_path}/disk && mkdir {tmp_path}/disk/data && {{ cat /dev/zero >"
        f' {tmp_path}/disk/filler 2> /dev/null; exec "$@"; }}'
    )
    examined = plant.examine("--listen-seconds", "0", prefix=(*unshare, script, "sh"))
    assert examined.problems() == [
        (
            f"error data.path cannot write to {tmp_path}/disk/data: No space left on device, 0.0 MiB free ->"
            " make room on that disk"
        )
    ]
    assert examined.status == 1


def test_unreadable_fcm_file(tmp_path: Path, google: Google, tool: Callable[[str], str]) -> None:
    google.credentials.chmod(0)
    plant = Plant(tmp_path, fcm={"cred_path": str(google.credentials)})
    # Root may read everything, unless it gives up that right.
    rights = (tool("setpriv"), "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    examined = plant.examine("--listen-seconds", "0", prefix=rights)
    assert examined.problems() == [
        (
            f"error fcm.cred_path {google.credentials} cannot be read: Permission denied -> correct"
            " fcm.cred_path, or the file's rights"
        )
    ]
    assert examined.status == 1
