"""Storms of DAQ programs, which connect again at once whenever they are closed: connections a second, and CPU."""

import itertools
import pickle
import select
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from tests.support.daemon import Daemon, running, until

#: Connections a second, and the share of a core, that a storm may cost.
RATE: Final = 5.0
SHARE: Final = 0.02

#: Machines and new sensors of each that come at once.
NEW: Final = (20, 1000)


def rows(folder: Path, seconds: float) -> list[Row]:
    """All of them."""
    for name in ("twins", "refused", "new"):
        (folder / name).mkdir()
    return [
        _storm(folder / "twins", seconds, ["Twin", "Twin"], "two programs of one name"),
        _storm(folder / "refused", seconds, ["Press#1"], "a program whose name is refused"),
        _new_sensors(folder / "new"),
    ]


def _storm(folder: Path, seconds: float, names: list[str], what: str) -> Row:
    with running(folder) as daemon:
        time.sleep(1)
        before, began = cpu_seconds(daemon.process.pid), time.monotonic()
        count = _reconnecting(daemon, names, began + seconds)
        took = time.monotonic() - began
        share = (cpu_seconds(daemon.process.pid) - before) / took
    return Row(
        f"{what}, reconnecting at once, {seconds:.0f} s",
        f"{count / took:.2f} connections/s, {100 * share:.2f} % of a core",
        f"under {RATE:.0f}/s and {100 * SHARE:.0f} %",
        count / took < RATE and share < SHARE,
    )


def _reconnecting(daemon: Daemon, names: Iterable[str], end: float) -> int:
    """Connect programs until some time, each again as soon as it is closed; how many connections that were."""
    frames = [pickle.dumps(("name", name)) + b"\\o" for name in names]
    connections: dict[socket.socket, bytes] = {}
    count = 0

    def connect(frame: bytes) -> None:
        connection = socket.create_connection(("127.0.0.1", daemon.daq_port))
        connection.sendall(frame)
        connections[connection] = frame

    for frame in frames:
        connect(frame)
        count += 1
    while (left := end - time.monotonic()) > 0:
        for connection in select.select(list(connections), [], [], left)[0]:
            connection.close()
            connect(connections.pop(connection))
            count += 1
    for connection in connections:
        connection.close()
    return count


def _new_sensors(folder: Path) -> Row:
    machines, sensors = NEW
    message = pickle.dumps(("DataUpdate", {f"s{number}": {"type": "VIB", "data": [1.0]} for number in range(sensors)}))
    with running(folder) as daemon:
        time.sleep(1)
        before = cpu_seconds(daemon.process.pid)
        connections = []
        for number in range(machines):
            connections.append(socket.create_connection(("127.0.0.1", daemon.daq_port)))
            connections[-1].sendall(pickle.dumps(("name", f"m{number}")) + b"\0" + message + b"\0")
        until(
            lambda: (
                daemon.metric("cynow_daq_samples_total") + daemon.metric("cynow_daq_left_out_sensors_total")
                == machines * sensors
            ),
            "all sensors",
        )
        until(lambda: daemon.metric("cynow_store_waiting") == 0, "the store")
        # Raw files are made within the next half a second or so.
        time.sleep(3)
        used = cpu_seconds(daemon.process.pid) - before
        size = sum(path.stat().st_size for path in itertools.chain((folder / "db").iterdir())) / 2**20
        taken = daemon.metric("cynow_daq_samples_total")
        for connection in connections:
            connection.close()
    return Row(
        f"{machines} machines with {sensors} new sensors each",
        f"{used:.1f} s of CPU, {size:.0f} MiB of databases, {taken:.0f} sensors taken in the first minute",
    )
