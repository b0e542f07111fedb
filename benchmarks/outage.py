"""PostgreSQL goes away in each way while scales weigh and machines send: what ingest and ``latest`` notice of it."""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.crowd import Helper
from benchmarks.table import Row
from tests.support.daemon import Daemon, free_ports, until
from tests.support.postgres import Server

#: Scales, and their lines a second; messages of a machine a second, of which each second one is an anomaly.
SCALES: Final = 100
RATE: Final = 5
MESSAGES: Final = 20


def rows(folder: Path, seconds: float) -> list[Row]:
    """A quarter of the time each: all is well, the server is killed, it is back, it is silent."""
    server = Server()
    ports = free_ports(SCALES)
    scales = {f"scale-{number:03}": {"listen": f"tcp:{port}:interface=127.0.0.1"} for number, port in enumerate(ports)}
    daemon = Daemon(folder, database={"url": server.url}, scales=scales)
    try:
        server.start()
        daemon.start()
        until(lambda: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is there")
        return _measured(daemon, server, ports, seconds)
    finally:
        daemon.end()
        server.remove()


def _measured(daemon: Daemon, server: Server, ports: list[int], seconds: float) -> list[Row]:
    part = seconds / 4
    load = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway.simulate", "scale", "--rate", str(RATE), "--seconds", str(seconds)),
            *("--ports", *map(str, ports)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with Helper("device", port=daemon.daq_port, machine="M", sensors=["v"], samples=30, faults=2) as device:
        count = round(seconds * MESSAGES)
        device.tell("send", count=count, rate=MESSAGES)
        steps: list[tuple[str, Callable[[], object]]] = [
            ("before", lambda: None),
            ("killed", server.stop),
            ("back", server.start),
            ("silent", server.pause),
        ]
        waits = {name: _asked(daemon, change, part) for name, change in steps}
        server.resume()
        device.hear()
    sent = sum(json.loads(load.communicate()[0]).values())

    def heard() -> int:
        return int(sum(daemon.metrics("cynow_scale_readings_total")))

    until(lambda: heard() >= sent, f"{sent} readings")
    until(lambda: daemon.metric("cynow_spool_waiting") == 0, "nothing waits")
    ((arrived, different),) = server.sql("SELECT count(*), count(DISTINCT (time, entry)) FROM cynow_anomaly")
    text = f"{SCALES} scales x {RATE} lines/s, PostgreSQL"
    found = [
        Row(
            f"{text} {name}: latest, p99 of {len(its)}",
            f"{_p99(its):.1f} ms",
            "under 100 ms",
            _p99(its) < 100,
        )
        for name, its in waits.items()
    ]
    return [
        *found,
        Row(f"the same over all: readings lost of {sent}", f"{sent - heard()}", "0", sent == heard()),
        Row(
            f"the same over all: anomalies of {count // 2} that arrived, and twice",
            f"{arrived}, {arrived - different}",
            f"{count // 2}, 0",
            arrived == different == count // 2,
        ),
    ]


def _asked(daemon: Daemon, change: Callable[[], object], seconds: float) -> list[float]:
    """What ``latest`` takes, again and again, while something changes and after it."""
    changing = threading.Thread(target=change)
    changing.start()
    waits: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or changing.is_alive():
        asked = time.monotonic()
        status, _, _ = daemon.get(f"/api/scale-gateway/latest/?scale_id=scale-{len(waits) % SCALES:03}")
        waits.append(time.monotonic() - asked)
        if status not in (200, 404):
            raise RuntimeError(f"latest answered {status}")
        time.sleep(0.02)
    changing.join()
    return waits


def _p99(waits: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(waits, n=100)[98] * 1000
