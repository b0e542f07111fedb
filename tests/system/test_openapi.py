"""``/openapi.json`` of a real daemon, and requests made from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.assembly.web import REST_APPS
from gateway.web.schema.openapi import document
from tests.conftest import ROOT
from tests.support.daemon import Daemon, running, until
from tests.support.frames import frame

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


def test_document_is_served_as_it_is_made(shared_daemon: Daemon) -> None:
    for path in ("/openapi.json", "/openapi.json/"):
        status, served, headers = shared_daemon.get(path)
        assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
        assert served == json.loads(json.dumps(document(REST_APPS)))
        status, refused, headers = shared_daemon.request("POST", path, b"{}")
        assert (status, refused["error"], headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")


def test_descriptions_refer_to_each_other(shared_daemon: Daemon) -> None:
    rest, live = shared_daemon.get("/openapi.json")[1], shared_daemon.get("/asyncapi.json")[1]
    assert rest["externalDocs"]["url"] == "/asyncapi.json"
    assert "/openapi.json" in live["info"]["description"]
    paths = shared_daemon.get("/")[1]["paths"]
    assert {"/openapi.json", "/docs"} <= set(paths)
    # The list names the variable of a path otherwise.
    listed = {path.replace("<name>", "<machine>").replace("<", "{").replace(">", "}") for path in paths}
    assert set(rest["paths"]) - {"/"} <= listed


@pytest.mark.timeout(1800)
def test_daemon_keeps_the_promises_of_the_document(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "ShotBlast" / "20251218_vib1.csv"
    raw.parent.mkdir(parents=True)
    raw.write_text("time,data\n10:00:00,-2.5\n10:00:00,3.25\n", "ascii")
    with running(tmp_path, timezone="Asia/Seoul", scale={"idle_timeout_sec": 3600}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        daemon.daq(
            frame("name", "ShotBlast"),
            frame("DataUpdate", {"vib1": {"type": "VIB", "data": [0.5, -0.25]}}),
            frame("FaultDetect", {"score": 1.5, "threshold": 1.0}),
        )
        until(daemon.latest_is(53.26), "the weight")
        until(lambda: daemon.get("/stat/machineList")[1]["machine_list"], "the machine")
        url = f"http://127.0.0.1:{daemon.port}/openapi.json"
        config = ROOT / "tests" / "schemathesis.toml"
        done = subprocess.run(
            [SCHEMATHESIS, "--config-file", config, "run", url, "--no-color", "--continue-on-failure"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        assert daemon.metric("cynow_commits_total", outcome="ok") > 1
        assert "HTTP request failed" not in daemon.log()
