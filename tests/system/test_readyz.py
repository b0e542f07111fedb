"""``/readyz``: the state of each part of a running gateway."""

import os
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, running, until
from tests.support.postgres import Server


def report(daemon: Daemon) -> tuple[int, Any]:
    status, body, headers = daemon.get("/readyz")
    assert headers["cache-control"] == "no-store"
    assert ("retry-after" in headers) == (status == 503)
    assert body["ok"] is (status == 200) is (body["state"] != "down")
    return status, body


def part(daemon: Daemon, name: str) -> Any:
    return report(daemon)[1]["parts"][name]


def test_idle_gateway_is_ready_and_its_silent_scale_degraded(daemon: Daemon) -> None:
    status, body = report(daemon)
    assert (status, body["state"]) == (200, "degraded")
    degraded = {"state": "degraded", "details": ["scale default is not connected"]}
    ready: dict[str, Any] = {"state": "ready", "details": []}
    assert body["parts"] == {
        "store": ready,
        "spool": ready,
        "disk": ready,
        "listeners": ready,
        "scales": degraded,
        "raw": ready,
        "cylinders": ready,
        "auth": ready,
    }
    assert (daemon.metric("cynow_ready"), daemon.metric("cynow_store_up")) == (1, 1)
    assert daemon.get("/healthz")[2]["cache-control"] == "no-store"
    assert daemon.get("/readyz/")[0] == 200


def test_scale_is_ready_while_it_sends_lines(tmp_path: Path) -> None:
    with running(tmp_path, scale={"idle_timeout_sec": 1}) as daemon:
        scale = daemon.scale()
        until(lambda: daemon.metric("cynow_scale_connected", scale_id="default"), "the scale is connected")
        assert part(daemon, "scales")["details"] == ["scale default has not sent a line yet"]
        assert daemon.metrics("cynow_scale_last_line_age_seconds") == []

        def is_ready() -> bool:
            scale.sendall(b"not a reading\r\n")
            return bool(report(daemon)[1]["state"] == "ready")

        until(is_ready, "the scale is ready")
        assert daemon.metrics("cynow_scale_last_line_age_seconds", scale_id="default")[0] >= 0
        until(lambda: part(daemon, "scales")["state"] == "degraded", "the scale is silent")
        assert part(daemon, "scales")["details"][0].startswith("scale default has not sent a line for ")


def test_lost_file_of_commits_is_down_until_a_restart_with_it(daemon: Daemon) -> None:
    file = daemon.folder / "db" / "cynow-gateway.sqlite3"
    os.rename(file, file.with_suffix(".away"))
    until(lambda: report(daemon)[0] == 503, "the loss is noticed")
    assert part(daemon, "store")["state"] == "down"
    assert part(daemon, "store")["details"][0].startswith("commits are refused: ")
    assert part(daemon, "store")["details"] == daemon.get("/healthz")[1]["problems"]
    until(lambda: daemon.metric("cynow_ready") == 0, "the metric follows")
    assert (daemon.metric("cynow_store_up"), daemon.metric("cynow_problems")) == (0, 1)
    # A load balancer asks every second, and the log would be full of it.
    assert "/readyz" not in daemon.log()


def test_raw_file_that_cannot_be_written_is_down(daemon: Daemon) -> None:
    machine = daemon.folder / "data" / "ShotBlast"
    machine.write_bytes(b"in the way")
    daemon.daq(b'["name", "ShotBlast"]\0["DataUpdate", {"vib1": {"type": "VIB", "data": [1, 2]}}]\0')
    until(lambda: report(daemon)[0] == 503, "the problem is reported")
    assert part(daemon, "raw")["details"][0].startswith("raw files cannot be written: ")
    machine.unlink()
    until(lambda: report(daemon)[0] == 200, "the samples are written")
    assert part(daemon, "raw") == {"state": "ready", "details": []}


def test_open_access_elsewhere_than_loopback_is_degraded_and_logged_at_every_start(tmp_path: Path) -> None:
    with running(tmp_path, server={"host": "0.0.0.0"}) as daemon:
        for starts in (1, 2):
            (line,) = part(daemon, "auth")["details"]
            assert part(daemon, "auth")["state"] == "degraded"
            assert line.startswith("auth: access control is off, and other machines reach server.port (0.0.0.0:")
            for key, port in (("server.tcp_port", daemon.daq_port), ("scale.port", daemon.scale_port)):
                assert f"{key} (0.0.0.0:{port})" in line
            assert daemon.log().count(f"gateway.runtime.open_access#warn] {line}\n") == starts
            if starts == 1:
                daemon.terminate()
                daemon.start()


def test_access_control_ends_the_warning(tmp_path: Path) -> None:
    with running(tmp_path, server={"host": "0.0.0.0"}, auth={"anonymous": ["read", "commit"]}) as daemon:
        assert part(daemon, "auth") == {"state": "ready", "details": []}
        assert "access control is off" not in daemon.log()


def test_postgresql_that_is_away_makes_the_store_down_and_comes_back(server: Server, tmp_path: Path) -> None:
    with running(tmp_path, database={"url": server.url}) as daemon:
        until(lambda: report(daemon)[0] == 200, "PostgreSQL is there")
        until(lambda: part(daemon, "store")["state"] == "ready", "all is well")
        assert daemon.metrics("cynow_spool_bytes") == [0]
        server.stop()
        until(lambda: report(daemon)[0] == 503, "PostgreSQL is away")
        assert part(daemon, "store")["state"] == "down"
        assert part(daemon, "store")["details"][0].startswith("PostgreSQL is unavailable: ")
        assert part(daemon, "spool") == {"state": "ready", "details": []}
        assert daemon.metric("cynow_store_up") == 0
        daemon.daq(b'["name", "M"]\0["FaultDetect", {"score": 2, "threshold": 1}]\0')
        until(lambda: daemon.metric("cynow_spool_bytes") > 0, "the anomaly waits in the spool")
        server.start()
        until(lambda: report(daemon)[0] == 200, "PostgreSQL is back")
        until(lambda: daemon.metric("cynow_spool_bytes") == 0, "the anomaly is written")
