"""The gateway and two simulators on this machine: ``python -m gateway.demo``, which ``make demo`` calls."""

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Seconds that the daemon may take to answer.
_START: Final = 15.0

_CONFIG: Final = """\
# The demonstration's: every default, but its files are in its own folder.
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
  live events         curl -N '{url}/events?topics=*/*'
                      {ws}/ws   say {{"type": "subscribe", "topics": ["*/*"]}}
  metrics             {url}/metrics
  health              {url}/healthz

Files are under {folder}. Ctrl-C ends everything.
"""


def _program(name: str) -> str:
    found = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is not installed beside {sys.executable}")
    return found


@contextlib.contextmanager
def _running(arguments: list[str], folder: Path, errors: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own session, so that Ctrl-C is ours to handle, ended with the block."""
    with errors.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own programs
            arguments, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_for(daemon: "subprocess.Popen[bytes]", errors: Path) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until:
        if daemon.poll() is not None:
            raise SystemExit(errors.read_text("utf-8") or "the gateway did not start")
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=1)
        try:
            connection.request("GET", "/api/scale-gateway/latest/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise SystemExit(f"no reading within {_START:.0f} seconds; see {errors}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m gateway.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for its files (default %(default)s)")
    folder: Path = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "cynow-gateway.yaml"
    if not config.exists():
        config.write_text(_CONFIG, "utf-8")
    errors = folder / "demo.log"
    errors.write_bytes(b"")
    # However it is ended, the others are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    simulate = [sys.executable, "-m", "gateway.simulate"]
    twistd = [_program("twistd"), "-n", "--pidfile=", "cynow-gateway", "--config", str(config)]
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        daemon = stack.enter_context(_running(twistd, folder, errors))
        for simulator in (
            [*simulate, "scale", "--faults", "0.02"],
            [*simulate, "machine", "--anomalies", "0.02"],
        ):
            stack.enter_context(_running(simulator, folder, errors))
        _wait_for(daemon, errors)
        sys.stdout.write(
            _TEXT.format(
                url="http://127.0.0.1:8080",
                ws="ws://127.0.0.1:8080",
                folder=folder,
                today=time.strftime("%Y-%m-%d"),
            )
        )
        sys.stdout.flush()
        while (status := daemon.poll()) is None:
            # A Ctrl-C just before a wait without a time limit would go unnoticed until the wait is over.
            time.sleep(0.1)
        raise SystemExit(status)
    sys.stdout.write("\nEverything has ended.\n")
