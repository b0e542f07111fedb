"""A thousand scales at five lines a second each, and whether ``latest`` still answers."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.table import Row
from tests.support.daemon import Daemon, free_ports, until

#: Scales, and their lines a second.
SCALES = 1000
RATE = 5


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def thousand_scales(folder: Path, seconds: float) -> list[Row]:
    """Each scale has an id and a port of its own; the load comes from ten processes."""
    ports = free_ports(SCALES)
    scales = {f"scale-{n:04}": {"listen": f"tcp:{port}:interface=127.0.0.1"} for n, port in enumerate(ports)}
    daemon = Daemon(folder, scales=scales)
    daemon.start()
    before = cpu_seconds(daemon.process.pid)
    command = [sys.executable, "-m", "gateway.simulate", "scale", "--rate", str(RATE), "--seconds", str(seconds)]
    load = [
        subprocess.Popen([*command, "--ports", *map(str, ports[part::10])], stdout=subprocess.PIPE, text=True)
        for part in range(10)
    ]
    waits: list[float] = []
    began = time.monotonic()
    while any(process.poll() is None for process in load):
        asked = time.monotonic()
        status, _, _ = daemon.get(f"/api/scale-gateway/latest/?scale_id=scale-{len(waits) % SCALES:04}")
        waits.append(time.monotonic() - asked)
        if status not in (200, 404):
            raise RuntimeError(f"latest answered {status}")
        time.sleep(0.02)
    took = time.monotonic() - began
    sent = sum(sum(json.loads(process.communicate()[0]).values()) for process in load)

    def heard() -> int:
        return int(sum(daemon.metrics("cynow_scale_readings_total")))

    until(lambda: heard() >= sent, f"{sent} readings")
    used = cpu_seconds(daemon.process.pid) - before
    lost = sent - heard()
    p99 = statistics.quantiles(waits, n=100)[98] * 1000
    size = daemon.resident_mib()
    daemon.end()
    load_text = f"{SCALES} scales, {RATE} lines/s each, {seconds:.0f} s"
    return [
        Row(f"{load_text}: readings lost of {sent}", f"{lost}", "0", lost == 0),
        Row(f"{load_text}: latest, p99 of {len(waits)}", f"{p99:.1f} ms", "under 100 ms", p99 < 100),
        Row(
            f"{load_text}: CPU of the daemon", f"{100 * used / took:.0f} % of a core, {1e6 * used / sent:.0f} us a line"
        ),
        Row(f"{load_text}: resident", f"{size:.0f} MiB"),
    ]
