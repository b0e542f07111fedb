"""Demonstration: the gateway and two simulators on this machine. ``make demo`` runs it."""

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from gateway.config.loader import ConfigError, load
from gateway.config.settings import Settings

#: Maximum seconds until the daemon answers.
_MAX_START: Final = 60.0

_CONFIG: Final = """\
# Configuration of the demonstration: all defaults, with the files in its own folder.
database: {path: db}
data: {path: data}
logger: {path: log}
"""

_TEXT: Final = """
The gateway is running, with a simulated scale and a simulated machine.

  latest weight       curl {url}/api/scale-gateway/latest/
  commit a cylinder   curl -d '{{"cylinder_no": "CY001", "event_type": "SHIP"}}' {url}/api/scale-gateway/commit/
  machines            curl {url}/sio/machineList
  anomalies           curl '{url}/stat/anomaly/all?start={today}&end={today}'
  hours, as CSV       curl -H 'Accept: text/csv' '{url}/stat/hour?machine=ShotBlast&start={today}&end={today}&detail=1'
  samples for a plot  curl '{url}/api/v1/machines/ShotBlast/samples?sensor=shot_blast_vib1&max_points=20'
  try requests        {url}/docs
  live events         curl -N '{url}/events?topics=*/*'
                      {ws}/ws   say {{"type": "subscribe", "topics": ["*/*"]}}
  metrics             {url}/metrics
  health              {url}/healthz

Files are under {folder}. Ctrl-C ends everything.
"""


def _find_program(name: str) -> str:
    path = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if path is None:
        raise SystemExit(f"demo: cannot find {name}; install the gateway in the environment of {sys.executable}")
    return path


@contextlib.contextmanager
def _run(arguments: list[str], folder: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process within a block, in a session of its own, so that only this process receives Ctrl-C."""
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - fixed programs
            arguments, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _load_settings(config: Path) -> Settings:
    try:
        return load(config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"demo: {config}: {error}") from error


def _check_ports(settings: Settings) -> None:
    """Check that no other program uses the ports: the simulators would send their data to another gateway.

    :raises SystemExit: a port is in use.
    """
    for port in (settings.server.port, settings.server.tcp_port, settings.scale.port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise SystemExit(
                    f"demo: port {port} cannot be used ({error.strerror}); stop the program that uses it, such as"
                    " another gateway"
                ) from error


def _wait_for_reading(daemon: "subprocess.Popen[bytes]", log_path: Path, port: int) -> None:
    deadline = time.monotonic() + _MAX_START
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise SystemExit(log_path.read_text("utf-8") or f"demo: the gateway ended with status {daemon.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/api/scale-gateway/latest/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise SystemExit(f"demo: the gateway had no reading within {_MAX_START:.0f} s; see {log_path}")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m gateway.demo") -> None:
    """Run the gateway with a simulated scale and a simulated machine until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Run the gateway with a simulated scale and a simulated machine."
    )
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="folder of all files (default %(default)s)")
    folder: Path = parser.parse_args(arguments).folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "cynow-gateway.yaml"
    if not config.exists():
        config.write_text(_CONFIG, "utf-8")
    settings = _load_settings(config)
    _check_ports(settings)
    port = settings.server.port
    log_path = folder / "demo.log"
    log_path.write_bytes(b"")
    # SIGTERM must end the other processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    simulate = [sys.executable, "-m", "gateway.simulate"]
    twistd = [_find_program("twistd"), "-n", "--pidfile=", "cynow-gateway", "--config", str(config)]
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        daemon = stack.enter_context(_run(twistd, folder, log_path))
        for simulator in (
            [*simulate, "scale", "--port", str(settings.scale.port), "--faults", "0.02"],
            [*simulate, "machine", "--port", str(settings.server.tcp_port), "--anomalies", "0.02"],
        ):
            stack.enter_context(_run(simulator, folder, log_path))
        _wait_for_reading(daemon, log_path, port)
        sys.stdout.write(
            _TEXT.format(
                url=f"http://127.0.0.1:{port}",
                ws=f"ws://127.0.0.1:{port}",
                folder=folder,
                today=time.strftime("%Y-%m-%d"),
            )
        )
        sys.stdout.flush()
        while (status := daemon.poll()) is None:
            # A Ctrl-C just before a wait without a time limit would go unnoticed until the process ends.
            time.sleep(0.1)
        raise SystemExit(f"demo: the gateway ended with status {status}; see {log_path}")
    sys.stdout.write("\nEverything has ended.\n")
