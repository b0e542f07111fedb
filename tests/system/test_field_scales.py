"""Scales of the field on a real daemon: asked for their weight, several behind one line, with a lock, and silent."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, free_ports, running, until


@contextlib.contextmanager
def simulated(*options: str) -> Iterator[None]:
    """Run a simulated scale."""
    command = [sys.executable, "-m", "gateway.simulate", "scale", "--seed", "1", *options]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()


def latest(daemon: Daemon, scale_id: str) -> Any:
    status, answer, _ = daemon.get(f"/api/scale-gateway/latest/?scale_id={scale_id}")
    return answer if status == 200 else None


@pytest.mark.parametrize(("form", "command"), [("and", "Q\r\n"), ("csv", "SI\r\n"), ("cas22", "W\r\n")])
def test_dialled_scale_that_answers_only_when_asked(tmp_path: Path, form: str, command: str) -> None:
    (port,) = free_ports(1)
    line = {"connect": f"tcp:127.0.0.1:{port}", "poll": {"command": command, "at_connect": "SIR\r\n"}}
    with (
        simulated("--listen", str(port), "--format", form, "--poll", "Q"),
        running(tmp_path, scales={"dock": line}) as d,
    ):
        until(lambda: latest(d, "dock"), "the scale is asked")
        # The simulator answers SIR with a question mark.
        assert d.metric("cynow_scale_rejected_lines_total", scale_id="dock") == 0


def test_two_scales_behind_one_line(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    scales: dict[str, Any] = {
        "line": {
            "connect": f"tcp:127.0.0.1:{port}",
            "addresses": {"01": "dock-1", "02": "dock-2"},
            "poll": {"command": "@{address}Q\r\n"},
        },
        "dock-1": {"via": "line", "idle_timeout_sec": 100},
    }
    with running(tmp_path, scales=scales) as daemon:
        assert daemon.get("/healthz")[1]["scales"] == {"dock-1": False, "dock-2": False}
        with simulated("--listen", str(port), "--poll", "Q", "--address", "01", "02"):
            until(lambda: latest(daemon, "dock-1") and latest(daemon, "dock-2"), "both have a weight")
            assert daemon.get("/healthz")[1]["scales"] == {"dock-1": True, "dock-2": True}
            assert daemon.get("/api/scale-gateway/latest/?scale_id=line")[1]["error"] == "unknown_scale"
            assert daemon.commit(scale_id="dock-2")[0] == 200
            # Now dock-2 is another's, and the connection stays.
            daemon.configure(
                scales={**scales, "line": {**scales["line"], "addresses": {"01": "dock-1", "02": "dock-3"}}}
            )
            daemon.reload()
            until(lambda: latest(daemon, "dock-3"), "the new scale has a weight")
            assert daemon.get("/api/scale-gateway/latest/?scale_id=dock-2")[1]["error"] == "unknown_scale"
            assert daemon.log().count("disconnected") == 0
        until(lambda: not any(daemon.get("/healthz")[1]["scales"].values()), "both are disconnected")
        silent = str(daemon.get("/readyz")[1]["parts"]["scales"])
        assert "scale dock-1 is not connected" in silent
        assert "scale dock-3 is not connected" in silent


def test_prefix_lock_and_unlisted_address_of_scales_that_connect(tmp_path: Path) -> None:
    one, two = free_ports(2)
    scales = {
        "locked": {"listen": f"tcp:{one}:interface=127.0.0.1", "prefix": "0001", "line_pattern_lock": True},
        "line": {"listen": f"tcp:{two}:interface=127.0.0.1", "addresses": {"01": "dock-1"}},
    }
    with running(tmp_path, scales=scales) as daemon:
        events = daemon.subscribe("scale/*")
        daemon.scale(one).sendall(b"0001ST,+00153.26 kg\r\n0001ST,+0053.26 kg\r\n0001ST,+00153.27 kg\r\n")
        assert [each["data"]["weight"] for each in events.events(2, "reading")] == [153.26, 153.27]
        assert daemon.metric("cynow_scale_held_total", scale_id="locked") == 1
        daemon.scale(two).sendall(b"@09ST,+00001.00 kg\r\n@01ST,+00002.00 kg\r\n")
        (reading,) = events.events(1, "reading")
        assert (reading["topic"], reading["data"]["weight"]) == ("scale/dock-1", 2.0)
        assert daemon.metric("cynow_scale_rejected_lines_total", scale_id="line") == 1
        assert "address 09 is not listed" in daemon.log()


def test_stored_lines_are_discarded_and_silence_is_an_event(tmp_path: Path) -> None:
    with running(tmp_path, scale={"discard_ms": 500, "idle_timeout_sec": 2}) as daemon:
        events = daemon.subscribe("scale/*")
        scale = daemon.scale()
        scale.sendall(b"ST,+00001.00 kg\r\nST,+000")
        assert [event["data"] for event in events.events(1, "silent")] == [{"scale_id": "default", "silent": True}]
        scale.sendall(b"02.00 kg\r\nST,+00003.00 kg\r\n")
        reading, silent = events.events(2, "reading", "silent")
        assert (reading["data"]["weight"], silent["data"]["silent"]) == (3.0, False)
        assert daemon.metric("cynow_scale_discarded_lines_total", scale_id="default") == 2


def test_simulated_formats_are_all_read(daemon: Daemon) -> None:
    for form in ("cas22", "csv"):
        command = [sys.executable, "-m", "gateway.simulate", "scale", "--port", str(daemon.scale_port), "--rate", "20"]
        command += ["--seconds", "1", "--format", form, "--seed", "1", "--faults", "0.2"]
        before = {s: daemon.metric("cynow_scale_readings_total", status=s) for s in ("ST", "US", "OL")}
        rejected = daemon.metric("cynow_scale_rejected_lines_total")
        sent = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        expected = {status: count + sent.get(status, 0) for status, count in before.items()}
        for status in before:
            until(
                lambda s=status, all_of=expected: daemon.metric("cynow_scale_readings_total", status=s) == all_of[s],
                f"all {status} of {sent}",
            )
        assert daemon.metric("cynow_scale_rejected_lines_total") == rejected + sent["torn"]


def test_scale_on_a_serial_line_is_asked(tmp_path: Path) -> None:
    host, device = os.openpty()
    line = {"serial": os.ttyname(device), "parity": "N", "bytesize": 8, "poll": {"command": "S\r\n"}}
    with running(tmp_path, scales={"bench": line}) as daemon:
        asked = b""
        while not asked.endswith(b"S\r\nS\r\n"):
            asked += os.read(host, 100)
        os.write(host, b"\x06ST,+00053.26 kg\r\n")
        until(lambda: latest(daemon, "bench"), "the answer is read")
    os.close(device)
    os.close(host)
