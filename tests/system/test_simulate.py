"""The simulators and the demonstration, as a user runs them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE, Daemon, until


def simulate(daemon: Daemon, kind: str, *options: str) -> dict[str, int]:
    """Run a simulator to its end, and return the counts that it reports."""
    port = daemon.scale_port if kind == "scale" else daemon.daq_port
    command = [sys.executable, "-m", "gateway.simulate", kind, "--port", str(port), "--seed", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd=daemon.folder)
    assert done.stderr == ""
    sent: dict[str, int] = json.loads(done.stdout)
    return sent


def test_every_line_of_many_scales_arrives(daemon: Daemon) -> None:
    sent = simulate(daemon, "scale", "--connections", "50", "--rate", "20", "--faults", "0.2", "--seconds", "2")
    assert min(sent[kind] for kind in ("ST", "US", "OL", "torn")) > 0
    for status in ("ST", "US", "OL"):
        until(
            lambda s=status: daemon.metric("cynow_scale_readings_total", status=s) == sent[s], f"all {status} of {sent}"
        )
    assert daemon.metric("cynow_scale_rejected_lines_total") == sent["torn"]


@pytest.mark.parametrize("options", [[], ["--separator", "nul", "--protocol", "0"], ["--protocol", "2"]])
def test_every_message_of_machines_arrives(daemon: Daemon, options: list[str]) -> None:
    sent = simulate(
        daemon, "machine", "--connections", "3", "--rate", "10", "--anomalies", "0.3", "--seconds", "2", *options
    )
    assert sent["FaultDetect"] > 0
    for event in ("DataUpdate", "FaultDetect"):
        until(lambda e=event: daemon.metric("cynow_daq_messages_total", event=e) == sent[e], f"all {event} of {sent}")
    assert daemon.metric("cynow_daq_samples_total") == sent["DataUpdate"] * 4 * 30
    assert daemon.metric("cynow_daq_dropped_messages_total") == 0
    assert daemon.metric("cynow_daq_refused_connections_total") == 0


def test_demonstration_shows_a_reading_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    """One command leads to a reading in ``latest``, and Ctrl-C ends everything; the ports are the documented ones."""
    with alone_on_this_machine("demonstration"):
        demonstrate(tmp_path)


@contextlib.contextmanager
def alone_on_this_machine(what: str) -> Iterator[None]:
    """Exclude other runs of the tests, after waiting for one that is doing this."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as guard:

        def is_mine() -> bool:
            with contextlib.suppress(OSError):
                guard.bind(f"\0cynow-gateway-tests-{what}")
                return True
            return False

        until(is_mine, f"no other run is at the {what}")
        yield


#: The demonstration with the time limit of the tests, for a busy machine.
DEMO = f"import gateway.commands.demo as demo; assert demo._MAX_START; demo._MAX_START = {PATIENCE}; demo.main()"


def demonstrate(tmp_path: Path) -> None:
    for port in (8080, 8082, 4001):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use on this machine")
    demo = subprocess.Popen(
        [sys.executable, "-c", DEMO],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert demo.stdout is not None
        while "Ctrl-C" not in (line := demo.stdout.readline()):
            assert line, "the demonstration has ended"
        with urllib.request.urlopen("http://127.0.0.1:8080/api/scale-gateway/latest/", timeout=PATIENCE) as answer:
            assert json.load(answer)["ok"] is True
        os.kill(demo.pid, signal.SIGINT)
        rest, _ = demo.communicate(timeout=PATIENCE)
        assert "Everything has ended." in rest
        assert demo.returncode == 0
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(PATIENCE)
    log = (tmp_path / "demo" / "demo.log").read_text("utf-8")
    assert "the gateway has stopped" in log
    assert "Traceback" not in log
