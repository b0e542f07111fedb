"""The clients of ``examples/``, run against a real daemon."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, missing, program
from tests.support.daemon import Daemon, running, until
from tests.support.flaky import flaky
from tests.support.frames import fault, frame

EXAMPLES = ROOT / "examples"

#: Packages that npm has installed for the tests; socket.io-client is among them.
MODULES = ROOT / "tests" / "clients" / "node_modules"

KINDS = ("python", "sh", "node")

#: Separator of topics on the command line.
SEPARATORS = {"python": "\0", "sh": ",", "node": "\0"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(kind: str, tmp_path: Path) -> list[str]:
    """Return the command of a client."""
    if kind == "python":
        return [sys.executable, str(EXAMPLES / "client.py")]
    if kind == "sh":
        program("curl")
        return ["sh", str(EXAMPLES / "client.sh")]
    return node_client(tmp_path)


def node_client(folder: Path) -> list[str]:
    """Return the command of the client in JavaScript, beside its packages."""
    node = program("node")
    if not MODULES.exists():
        missing("socket.io-client")
    shutil.copy(EXAMPLES / "client.mjs", folder)
    (folder / "node_modules").symlink_to(MODULES)
    return [node, str(folder / "client.mjs")]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a gateway with a weight, and with a machine that has raw samples of a past hour."""
    folder = tmp_path_factory.mktemp("examples")
    raw = folder / "data" / "ShotBlast" / "20251218_vib1.csv"
    raw.parent.mkdir(parents=True)
    raw.write_text("time,data\n10:00:00,-0.5\n10:00:00,0.25\n", "ascii")
    with running(folder, timezone="Asia/Seoul", scale={"idle_timeout_sec": 3600}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        yield daemon


def environment(url: str, token: str | None = None) -> dict[str, str]:
    rest = {name: value for name, value in os.environ.items() if not name.startswith("CYNOW_")}
    return {**rest, "CYNOW_URL": url, **({} if token is None else {"CYNOW_TOKEN": token})}


def output(command: list[str], url: str, token: str | None = None, status: int = 0) -> str:
    done = subprocess.run(command, env=environment(url, token), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@contextmanager
def lines_of(command: list[str], url: str, stderr: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Run a client that does not end by itself."""
    process = subprocess.Popen(
        command, env=environment(url), stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        # A shell has processes of its own.
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def next_event(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("token", [None, "c2VjcmV0"])
def test_client_shows_the_latest_weight_with_its_token(plant: Daemon, client: list[str], token: str | None) -> None:
    with flaky(plant.port) as proxy:
        for command in (["latest"], ["latest", "default"]):
            assert json.loads(output([*client, *command], proxy.url, token))["weight"] == 53.26
        sent = bytes(proxy.heard).lower()
        assert sent.count(b"\r\nauthorization: bearer c2vjcmv0\r\n") == (0 if token is None else 2)
        assert (b"authorization" in sent) == (token is not None)


def test_client_commits_once_although_an_answer_is_lost(plant: Daemon, client: list[str]) -> None:
    before = {outcome: plant.metric("cynow_commits_total", outcome=outcome) for outcome in ("ok", "replayed")}
    with flaky(plant.port) as proxy:
        proxy.lost_answers = 1
        answer = json.loads(output([*client, "commit", "CY123456789", "RETURN"], proxy.url))
    assert (answer["ok"], answer["cylinder_no"], answer["gross_kg"]) == (True, "CY123456789", 53.26)
    for outcome, count in before.items():
        assert plant.metric("cynow_commits_total", outcome=outcome) == count + 1


def test_client_shows_the_refusal_of_a_commit(plant: Daemon, client: list[str]) -> None:
    answer = json.loads(output([*client, "commit", "CY1", "LOST"], f"http://127.0.0.1:{plant.port}", status=1))
    assert answer["error"] == "invalid_request"


def test_client_follows_events_without_a_gap(plant: Daemon, kind: str, client: list[str]) -> None:
    topics = SEPARATORS[kind].join(["scale/default", "machine/*"]).split("\0")
    name = f"M-{kind}"
    with flaky(plant.port) as proxy, lines_of([*client, "follow", *topics], proxy.url) as process:
        # From the first snapshot on, the client gets events.
        assert next_event(process)["event"] == "snapshot"
        machine = plant.daq(frame("name", name))
        while (event := next_event(process))["event"] != "connected":
            assert event["event"] == "snapshot"
        proxy.cut()
        machine.sendall(fault(1.5) + fault(2.5))
        stored = f"/stat/anomaly?machine={name}&start=2000-01-01&end=2099-12-31"
        until(lambda: len(plant.get(stored)[1]) == 2, "both faults")
        proxy.mend()
        assert [next_event(process)["data"]["score"] for _ in range(2)] == [1.5, 2.5]
        machine.close()
        assert next_event(process)["event"] == "disconnected"


def test_client_shows_the_means_of_a_machine(plant: Daemon, client: list[str]) -> None:
    url = f"http://127.0.0.1:{plant.port}"
    until(lambda: plant.get("/stat/hour?machine=ShotBlast&start=2025-12-18&end=2025-12-18")[1], "the mean")
    shown = output([*client, "means", "ShotBlast", "hour", "2025-12-18", "2025-12-18"], url)
    assert "vib1_hour_avg 2025-12-18 10:00:00 -0.125" in shown.replace(",", " ")


def test_node_client_shows_a_machine_by_socketio(plant: Daemon, tmp_path: Path) -> None:
    client = node_client(tmp_path)
    url = f"http://127.0.0.1:{plant.port}"
    with lines_of([*client, "machine", "S"], url, subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "connected to S\n"
        plant.daq(frame("name", "S"), fault(1.5))
        assert next_event(process) == {"event": "anomaly", "data": {"score": 1.5, "threshold": 1.0}}
