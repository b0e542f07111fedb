"""A real daemon with raw files that a power cut has damaged: nothing is guessed, and all damage is reported."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.support.daemon import PATIENCE, Daemon, until
from tests.support.frames import frame
from tests.support.killable import readable
from tests.system.test_recovery import at, seoul

#: Damage of the file of the sensor with the same name.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nul_tail": lambda content: content[:-4096] + bytes(4096),
    "nul_behind": lambda content: content + bytes(4096),
    "nul_middle": lambda content: content[:2000] + bytes(4096) + content[6096:],
    "nul_all": lambda content: bytes(len(content)),
    "torn": lambda content: content[:-5],
    "cut": lambda content: content[:4096],
    "glued": lambda content: content[:3000] + content[3000:].replace(b"\n", b"", 1),
    "garbage": lambda content: content[:3000] + Random(1).randbytes(512) + content[3512:],
}

SENSORS = [*DAMAGES, "sound"]

HOUR = "/stat/hour?machine=M&start=2025-12-18&end=2025-12-18&detail=1"


def path_of(folder: Path, sensor: str) -> Path:
    return folder / "data" / "M" / f"20251218_{sensor}.csv"


def samples_of(folder: Path, sensor: str) -> list[float]:
    return [sample for _, sample in readable(path_of(folder, sensor))]


def send(daemon: Daemon, samples: list[float]) -> None:
    """Send samples of every sensor, and wait until they are in the files."""
    data = {sensor: {"type": "TEMP", "data": samples} for sensor in SENSORS}
    daemon.daq(frame("name", "M"), frame("DataUpdate", data))
    for sensor in SENSORS:
        path = path_of(daemon.folder, sensor)
        until(lambda p=path: p.exists() and [x for _, x in readable(p)][-len(samples) :] == samples, str(path))


def damaged_bytes(content: bytes) -> int:
    """Return the number of bytes that are not samples, by the simplest means."""
    lines = content.split(b"\n")
    sound = [line for line in lines[:-1] if line == b"time,data" or is_sample(line)]
    return len(content) - sum(len(line) + 1 for line in sound)


def is_sample(line: bytes) -> bool:
    clock, _, number = line.partition(b",")
    if len(clock) != 8 or not number.isascii() or b" " in number:
        return False
    try:
        float(number)
    except ValueError:
        return False
    return clock.replace(b":", b"").isdigit()


def check_hour(daemon: Daemon, what: str) -> None:
    """Compare the rows with the files."""
    items: dict[str, Any] = {item["name"]: item for item in daemon.get(HOUR)[1]}
    for sensor in SENSORS:
        samples = samples_of(daemon.folder, sensor)
        item = items[f"{sensor}_hour_avg"]
        assert (item["count"], item["data"]) == (len(samples), math.fsum(samples) / len(samples)), (what, sensor)
        query = f"sensor={sensor}&from=2025-12-18&to=2025-12-18&max_points=1"
        (point,) = daemon.get(f"/api/v1/machines/M/samples?{query}")[1]["points"]
        assert point["count"] == len(samples), (what, sensor)


def test_damage_of_a_power_cut_is_reported_and_separated(tmp_path: Path) -> None:
    chance = Random(3)
    with at(tmp_path, seoul("2025-12-18 10:30:00")) as daemon:
        daemon.start()
        send(daemon, [chance.gauss(0.0, 1.0) for _ in range(500)])
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["M"]}, "its type is stored")
        assert daemon.get("/healthz")[1]["problems"] == []
        daemon.kill()
    contents = {}
    for sensor, damage in DAMAGES.items():
        path = path_of(tmp_path, sensor)
        contents[sensor] = damage(path.read_bytes())
        path.write_bytes(contents[sensor])
    with at(tmp_path, seoul("2025-12-18 10:31:00")) as daemon:
        daemon.start()
        problems = daemon.get("/healthz")[1]["problems"]
        log = [line for line in daemon.log().splitlines() if "damaged bytes" in line]
        for sensor, content in contents.items():
            count = damaged_bytes(content)
            assert count > 0
            said = f"20251218_{sensor}.csv: {count} damaged bytes"
            assert len([problem for problem in problems if said in problem]) == 1, (said, problems)
            assert len([line for line in log if said in line and str(tmp_path) in line]) == 1, (said, log)
        assert len(problems) == len(log) == len(DAMAGES)
        total = sum(map(damaged_bytes, contents.values()))
        assert daemon.metric("cynow_rawlog_damaged_bytes_total") == total
        send(daemon, [1.25, 2.25, 3.25])
        for sensor, content in contents.items():
            now = path_of(tmp_path, sensor).read_bytes()
            # The damaged bytes stay, and new lines do not join them.
            assert now.startswith(content)
            assert now[len(content) :].splitlines()[-3:] == now.splitlines()[-3:]
            assert all(map(is_sample, now.splitlines()[-3:]))
        # Nothing is reported again.
        assert daemon.metric("cynow_rawlog_damaged_bytes_total") == total
        assert [line for line in daemon.log().splitlines() if "damaged bytes" in line] == log
        assert daemon.get("/healthz")[1]["ok"] is False
        daemon.kill()
    with at(tmp_path, seoul("2025-12-18 11:00:01")) as daemon:
        daemon.start()
        check_hour(daemon, "after the hour")
        before = daemon.get(HOUR)[1]
        done = recompute(daemon)
        assert done.returncode == 1
        for sensor in DAMAGES:
            assert f"M/20251218_{sensor}.csv: " in done.stderr
        assert "20251218_sound.csv" not in done.stderr
        assert "different" not in done.stdout
        assert daemon.get(HOUR)[1] == before
        daemon.kill()
    # Bytes that rows count are missing: this is reported, and the rows stay.
    path = path_of(tmp_path, "sound")
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with at(tmp_path, seoul("2025-12-18 11:00:30")) as daemon:
        daemon.start()
        said = f"20251218_sound.csv: {size - size // 2} bytes are missing"
        assert [problem for problem in daemon.get("/healthz")[1]["problems"] if said in problem]
        assert [line for line in daemon.log().splitlines() if said in line and str(tmp_path) in line]
        assert daemon.metric("cynow_rawlog_missing_bytes_total") == size - size // 2
        assert daemon.get(HOUR)[1] == before
        assert "Traceback" not in daemon.log()


def recompute(daemon: Daemon) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.recompute", "--config", str(daemon.config), "--from", "2025-12-18"],
        cwd=daemon.folder,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
