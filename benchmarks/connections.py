"""Memory of the daemon with ten thousand scales connected, before and after each has said a line."""

import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.table import Row
from tests.support.daemon import Daemon, running, until

CONNECTIONS: Final = 10_000

#: Processes that hold them, each from a loopback address of its own: one address has 28,000 ports.
HOLDERS: Final = 4

#: As 150 MB.
GOAL_MIB: Final = 150e6 / 2**20


def rows(folder: Path, seconds: float) -> list[Row]:
    """What it holds is the same for any time of load."""
    share = CONNECTIONS // HOLDERS
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 1000:
        return [Row(f"{CONNECTIONS} idle scale connections", "", peer=f"missing: open files, {hard} are allowed")]
    holders = []
    with running(folder) as daemon:
        before = _settled(daemon)
        for number in range(HOLDERS):
            options = {"port": daemon.scale_port, "count": share, "source": f"127.0.0.{2 + number}"}
            holders.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.connections", json.dumps(options)],
                    stdin=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
        try:
            until(lambda: daemon.metric("cynow_connections", kind="scale") == CONNECTIONS, "all connections")
            idle = _settled(daemon)
            for holder in holders:
                assert holder.stdin is not None
                holder.stdin.write("line\n")
            until(lambda: sum(daemon.metrics("cynow_scale_readings_total")) == CONNECTIONS, "a reading of each")
            spoken = _settled(daemon)
        finally:
            for holder in holders:
                holder.kill()
                holder.wait()
    return [
        Row(
            f"{name}: resident",
            f"{size:.0f} MiB, {(size - before) * 1024 / CONNECTIONS:.1f} KB each above {before:.0f} MiB",
            f"under 150 MB ({GOAL_MIB:.0f} MiB)",
            size < GOAL_MIB,
        )
        for name, size in (
            (f"{CONNECTIONS} idle scale connections", idle),
            ("the same, after a line of each", spoken),
        )
    ]


def _settled(daemon: Daemon) -> float:
    """MiB resident, once that does not change any more."""
    size = daemon.resident_mib()
    while True:
        time.sleep(1)
        before, size = size, daemon.resident_mib()
        if abs(size - before) < 0.1:
            return size


def _hold(port: int, count: int, source: str) -> None:
    """Hold so many connections; say a line on each when told to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = [
        socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0)) for _ in range(count)
    ]
    sys.stdin.readline()
    for number, connection in enumerate(connections):
        connection.sendall(b"ST , %+010.2f _kg\r\n" % (number / 100))
    # Until they are not needed any more.
    sys.stdin.readline()


if __name__ == "__main__":
    _hold(**json.loads(sys.argv[1]))
