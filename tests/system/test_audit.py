"""The record of commits and the command ``audit``, on the running daemon."""

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.daemon import Daemon, running, until
from tests.support.postgres import Server

FILE = "db/cynow-gateway.sqlite3"
#: The console script, which is not installed for the code of this folder.
COMMAND = [sys.executable, "-c", "from gateway.commands.main import main; raise SystemExit(main())"]

RECORD = "db/cynow-gateway-record.sqlite3"


def audit(daemon: Daemon, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*COMMAND, "audit", "--config", str(daemon.config), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=daemon.folder,
        input=text,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    return done.returncode, done.stdout, done.stderr


def commit(daemon: Daemon, count: int) -> None:
    for number in range(count):
        status, answer, _ = daemon.commit(f"CY{number}")
        assert status == 200, answer


def change(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount != 0


@pytest.fixture
def plant(daemon: Daemon) -> Daemon:
    daemon.weigh(b"ST , +000053.26 _kg\r\n")
    until(daemon.latest_is(53.26), "the weight")
    commit(daemon, 5)
    return daemon


def test_intact_record_is_verified_beside_the_daemon(plant: Daemon) -> None:
    head = plant.get("/api/v1/record/head")[1]
    assert head["number"] == 5
    status, out, err = audit(plant, "--against", head["head"])
    assert (status, err) == (0, "")
    assert "5 entries verified; 1 published heads match; 5 commits are as in scale_weight_log" in out
    assert out.splitlines()[-1] == head["head"]


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE scale_weight_log SET gross_kg = 12.5 WHERE id = 3", "row 3 was changed: gross_kg"),
        ("UPDATE scale_weight_log SET cylinder_no = 'X9' WHERE id = 3", "row 3 was changed: cylinder_no"),
        ("UPDATE scale_weight_log SET committed_at = '2020-01-01 00:00:00' WHERE id = 2", "row 2 was changed: commit"),
        ("DELETE FROM scale_weight_log WHERE id = 4", "row 4 was removed"),
        (
            (
                "INSERT INTO scale_weight_log SELECT 77, scale_id, 'X9', event_type, 1, '', '', '', NULL, NULL"
                " FROM scale_weight_log WHERE id = 1"
            ),
            "row 77 was added",
        ),
        ("UPDATE record SET content = replace(content, '53.26', '54.26') WHERE number = 2", "entry 2: it was changed"),
        ("DELETE FROM record WHERE number = 3", "entry 3: it was removed"),
        ("DELETE FROM record WHERE number > 3", "entry 4: it was removed: the record ends before it"),
    ],
)
def test_tampering_is_named(plant: Daemon, statement: str, problem: str) -> None:
    head = plant.get("/api/v1/record/head")[1]["head"]
    change(plant.folder / FILE, statement)
    status, out, err = audit(plant, "--against", head)
    assert (status, out) == (1, "")
    assert problem in err
    assert "CY" not in err
    assert "X9" not in err


def test_heads_in_files_and_standard_input(plant: Daemon) -> None:
    head = plant.get("/api/v1/record/head")[1]["head"]
    published = plant.folder / "heads.txt"
    published.write_text(f"2025-12-18 {head}\nother:1:{'a' * 64}\n", "utf-8")
    assert audit(plant, "--against", str(published))[0] == 0
    assert audit(plant, "--against", "-", text=json.dumps({"head": head}))[0] == 0
    forged = head[:-4] + ("0000" if not head.endswith("0000") else "1111")
    status, _, err = audit(plant, "--against", forged)
    assert status == 1
    assert "the record was recomputed" in err
    for wrong, problem in {
        "nothing": "is not a file and not a head",
        str(plant.config): "contains no head",
        f"other:1:{'a' * 64}": "no head is of the gateway",
    }.items():
        status, _, err = audit(plant, "--against", wrong)
        assert (status, problem in err) == (2, True), err


def test_refusal_is_recorded(tmp_path: Path) -> None:
    with running(tmp_path, scale={"min_kg": 100}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg\r\n")
        until(daemon.latest_is(53.26), "the weight")
        assert daemon.commit("CY1")[0] == 409
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as connection:
            (content,) = connection.execute("SELECT content FROM record").fetchone()
        entry = json.loads(content)
        assert (entry["kind"], entry["error"], entry["weight"]) == ("refusal", "weight_out_of_range", "53.26")
        assert audit(daemon)[0] == 0


def test_without_record_status_is_2(tmp_path: Path) -> None:
    config = tmp_path / "cynow-gateway.yaml"
    config.write_text("", "utf-8")
    done = subprocess.run(
        [*COMMAND, "audit", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 2
    assert "does not exist" in done.stderr


# -- heads


class Receiver:
    """A webhook that keeps the bodies of requests."""

    def __init__(self) -> None:
        bodies: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.bodies = bodies
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_head_is_published(tmp_path: Path) -> None:
    receiver = Receiver()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with running(tmp_path / "two") as other, contextlib.closing(receiver):
        publish = {
            "file": "heads.txt",
            "webhook": receiver.url,
            "gateway": f"http://127.0.0.1:{other.port}",
            "every_sec": 1,
        }
        with running(tmp_path / "one", gateway={"name": "dock 1"}, record={"publish_to": publish}) as daemon:
            daemon.weigh(b"ST , +000053.26 _kg\r\n")
            until(daemon.latest_is(53.26), "the weight")
            commit(daemon, 2)
            head = daemon.get("/api/v1/record/head")[1]["head"]
            assert head.startswith("dock_1:2:")
            until(lambda: any(body["head"] == head for body in receiver.bodies), "the webhook has the head")
            until(lambda: head in other.log(), "the other gateway has the head")
            until(lambda: head in (tmp_path / "one" / "heads.txt").read_text("utf-8"), "the file has the head")
            assert daemon.get("/healthz")[1]["problems"] == []
            forged = re.sub("[0-9a-f]{64}$", "0" * 64, head)
            status, answer, _ = other.request("POST", "/api/v1/record/heads", json.dumps({"head": forged}).encode())
            assert (status, answer["error"]) == (409, "head_conflict")
            other.terminate()
            until(lambda: daemon.get("/healthz")[1]["problems"], "a problem")
            (problem,) = daemon.get("/healthz")[1]["problems"]
            assert problem.startswith("record.publish_to.gateway: cannot publish the head of the record: ")
            assert daemon.metric("cynow_record_publish_failures_total", target="gateway") >= 1
            assert audit(daemon, "--against", "heads.txt")[0] == 0
            assert audit(daemon, "--against", str(other.folder / "stderr.txt"))[0] == 0


def test_head_is_logged_at_the_start(plant: Daemon) -> None:
    plant.terminate()
    plant.start()
    head = plant.get("/api/v1/record/head")[1]["head"]
    until(lambda: f"record: head {head}" in plant.log(), "the head in the log")


# -- PostgreSQL


def test_commits_on_postgresql_are_recorded_and_recovered(tmp_path: Path, server: Server) -> None:
    with running(tmp_path, database={"url": server.url}, gateway={"name": "dock"}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg\r\n")
        until(daemon.latest_is(53.26), "the weight")
        until(lambda: daemon.commit("CY0")[0] == 200, "the first commit")
        commit(daemon, 3)
        head = daemon.get("/api/v1/record/head")[1]["head"]
        status, out, err = audit(daemon, "--against", head)
        assert (status, err) == (0, "")
        assert "4 commits are as in" in out
        daemon.kill()
        # As if the last commit had not been recorded before the kill.
        change(tmp_path / RECORD, "DELETE FROM record WHERE number = 4")
        change(tmp_path / RECORD, "DELETE FROM record_key WHERE number = 4")
        daemon.start()
        until(lambda: daemon.get("/api/v1/record/head")[1]["number"] == 4, "the commit is recovered")
        assert audit(daemon)[0] == 0
        server.sql("UPDATE scale_weight_log SET gross_kg = 1 WHERE id = 2")
        status, out, err = audit(daemon)
        assert (status, out) == (1, "")
        assert "row 2 was changed: gross_kg" in err
