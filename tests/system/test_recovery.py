"""Recovery of a real daemon: after a kill, it reports the means of its raw files."""

import contextlib
import math
import random
import socket
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.daemon import Daemon, until
from tests.support.frames import frame
from tests.support.killable import readable

SEOUL = ZoneInfo("Asia/Seoul")

AT_TIME = str(Path(__file__).parent.parent / "support" / "at_time.py")

TYPES = {"v": "VIB", "t": "TEMP"}

PERIODS = ("hour", "day", "month", "year")


@contextlib.contextmanager
def at(folder: Path, wall: datetime) -> Iterator[Daemon]:
    """Return a gateway, not yet started, with a wall clock that begins at a time and may be set."""
    daemon = Daemon(
        folder,
        twistd=[sys.executable, AT_TIME, str(folder / "ahead"), "-n", "--pidfile=", "cynow-gateway"],
        timezone=SEOUL.key,
    )
    set_clock(folder, wall)
    try:
        yield daemon
    finally:
        daemon.end()


def set_clock(folder: Path, wall: datetime) -> None:
    """Set the wall clock of gateways that read the file ``ahead``."""
    # Gateways read the file at any moment, and must never see a part of it.
    (folder / "set").write_text(f"{wall.timestamp() - time.time()}")
    (folder / "set").rename(folder / "ahead")


def clock_in(folder: Path) -> datetime:
    """Return the time of that clock."""
    return datetime.fromtimestamp(time.time() + float((folder / "ahead").read_text("ascii")), SEOUL)


def seoul(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=SEOUL)


def lines(folder: Path, sensor: str) -> list[tuple[str, float]]:
    """Return every sample of the raw files with its time, ``2025-12-31 23:59:58``."""
    found = []
    for path in sorted((folder / "data" / "M").glob(f"*_{sensor}.csv")):
        day = f"{path.name[:4]}-{path.name[4:6]}-{path.name[6:8]}"
        found += [(f"{day} {clock.decode()}", sample) for clock, sample in readable(path)]
    return found


def mean(sensor: str, samples: list[float]) -> float:
    return math.fsum(map(abs, samples) if TYPES[sensor] == "VIB" else samples) / len(samples)


def minutes(folder: Path, sensor: str) -> list[dict[str, Any]]:
    """Return the updates of every minute with samples, computed from the raw files alone."""
    found = defaultdict(list)
    for at_time, sample in lines(folder, sensor):
        found[at_time[:16]].append(sample)
    return [
        {
            "sensor_name": sensor,
            "data": mean(sensor, samples),
            "time": f"{datetime.fromisoformat(minute) + timedelta(minutes=1)}.000000",
        }
        for minute, samples in found.items()
    ]


def means(folder: Path, length: int, rest: str, until_year: str) -> list[dict[str, Any]]:
    """Return the items of a period, computed from the raw files alone.

    :param length: of the text that names it.
    :param rest: which makes the start of that.
    """
    items = []
    for sensor in sorted(TYPES):
        found = defaultdict(list)
        for at_time, sample in lines(folder, sensor):
            if at_time < until_year:
                found[at_time[:length]].append(sample)
        items += [(sensor, f"{start}{rest}", mean(sensor, samples)) for start, samples in found.items()]
    return [{"sensor": sensor, "time": start, "data": data} for sensor, start, data in items]


def stream(daemon: Daemon, chance: random.Random) -> Callable[[], None]:
    """Connect as a DAQ program, and return a function that sends the next message."""
    connection = daemon.daq(frame("name", "M"))

    def send() -> None:
        data = {
            sensor: {"type": kind, "data": [chance.gauss(0.5, 1.0) for _ in range(chance.randint(1, 60))]}
            for sensor, kind in TYPES.items()
        }
        connection.sendall(frame("DataUpdate", data))

    return send


def write_journal(path: Path, first: int, last: int, rate: int = 30, sample: str = "0.5") -> None:
    """Write a raw file with samples of so many seconds of the day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        file.write("time,data\n")
        for second in range(first, last):
            line = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02},{sample}\n"
            file.write(line * rate)


def assert_reports(daemon: Daemon, what: str) -> None:
    """Check all means of 2025 and all updates against the files."""
    for period, length, rest in (
        ("hour", 13, ":00:00"),
        ("day", 10, " 00:00:00"),
        ("month", 7, "-01 00:00:00"),
        ("year", 4, "-01-01 00:00:00"),
    ):
        items = daemon.get(f"/stat/{period}?machine=M&start=2025-01-01&end=2026-12-31")[1]
        expected = [
            {"name": f"{item['sensor']}_{period}_avg", "time": item["time"], "data": item["data"]}
            for item in means(daemon.folder, length, rest, "2026")
        ]
        assert items == expected, f"{what}: /stat/{period}"


def updates(daemon: Daemon) -> Any:
    events = daemon.subscribe("machine/M").events(1, "snapshot")
    return events[0]["data"]["sensors"]


def test_kills_at_random_moments_around_the_end_of_a_year(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    what = f"seed {seed}"
    begin = seoul("2025-12-31 23:59:53")
    # Before, around and after the end of the year.
    kills = [begin + timedelta(seconds=seconds) for seconds in (chance.uniform(1, 5), chance.uniform(6, 11))]
    # Independent of the length of a start, the last hour of the old year has samples.
    with at(tmp_path, seoul("2025-12-31 23:30:00")) as daemon:
        daemon.start()
        send = stream(daemon, chance)
        send()
        until(lambda: all(lines(tmp_path, sensor) for sensor in TYPES), "the first lines")
        set_clock(tmp_path, begin)
        for kill in [*kills, begin + timedelta(seconds=12.5)]:
            while clock_in(tmp_path) < kill:
                send()
                time.sleep(0.02)
            daemon.kill()
            daemon.start()
            send = stream(daemon, chance)
        assert_reports(daemon, what)
        daemon.kill()
    # Down over the end of a minute, twice, since no sample may count twice.
    for seconds in (60, 1):
        wall = clock_in(tmp_path) + timedelta(seconds=seconds)
        with at(tmp_path, wall) as daemon:
            daemon.start()
            assert_reports(daemon, f"{what}, at {wall}")
            assert updates(daemon) == {sensor: minutes(tmp_path, sensor) for sensor in TYPES}, f"{what}, at {wall}"
            daemon.kill()
    with sqlite3.connect(tmp_path / "db" / "M.db") as connection:
        for sensor in TYPES:
            count = sum(at_time < "2026" for at_time, _ in lines(tmp_path, sensor))
            for period in PERIODS:
                rows = connection.execute(f"SELECT count FROM {sensor}_{period}_avg").fetchall()
                assert rows == [(count,)], f"{what}: {sensor}_{period}_avg"
    connection.close()


def test_hour_that_ended_while_down_is_in_the_first_answer(tmp_path: Path) -> None:
    with at(tmp_path, seoul("2025-12-18 10:30:00")) as daemon:
        daemon.start()
        connection = daemon.daq(frame("name", "M"))
        connection.sendall(frame("DataUpdate", {"v": {"type": "VIB", "data": [-1.0, 2.0]}}))
        until(lambda: len(lines(tmp_path, "v")) == 2, "the lines")
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["M"]}, "its type is stored")
        daemon.kill()
    with at(tmp_path, seoul("2025-12-18 11:00:01")) as daemon:
        daemon.run()
        first_answer(daemon)
        assert daemon.get("/stat/hour?machine=M&start=2025-12-18&end=2025-12-18")[1] == [
            {"name": "v_hour_avg", "time": "2025-12-18 10:00:00", "data": 1.5}
        ]


def first_answer(daemon: Daemon) -> None:
    """Wait until the port accepts connections; from then on, answers wait for the recovery."""

    def is_open() -> bool:
        assert daemon.process.poll() is None, daemon.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", daemon.port)) == 0

    until(is_open, "the port is open")


def test_no_answer_before_the_recovery_has_ended(tmp_path: Path) -> None:
    for sensor in ("a", "b", "c"):
        write_journal(tmp_path / "data" / "M" / f"20251218_{sensor}.csv", 0, 6 * 3600)
    with at(tmp_path, seoul("2025-12-19 00:10:00")) as daemon:
        daemon.run()
        first_answer(daemon)
        assert "the gateway is ready" not in daemon.log()
        items = daemon.get("/stat/hour?machine=M&start=2025-12-18&end=2025-12-18")[1]
        assert len(items) == 3 * 6
        assert daemon.get("/stat/day?machine=M&start=2025-12-18&end=2025-12-18")[1] == [
            {"name": f"{sensor}_day_avg", "time": "2025-12-18 00:00:00", "data": 0.5} for sensor in ("a", "b", "c")
        ]
        log = daemon.log()
        assert "the gateway is ready" in log
        assert "Traceback" not in log


def test_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data" / "M" / "20251218_v.csv"
    path.parent.mkdir(parents=True)
    path.write_text("time,data\n10:29:58,1.5\n10:29:59,2.5\n10:29:59,123", "ascii")
    with at(tmp_path, seoul("2025-12-18 10:30:00")) as daemon:
        daemon.start()
        daemon.daq(frame("name", "M"), frame("DataUpdate", {"v": {"type": "TEMP", "data": [3.5, 4.5]}}))
        until(lambda: len(lines(tmp_path, "v")) == 4, "the lines")
        assert [sample for _, sample in lines(tmp_path, "v")] == [1.5, 2.5, 3.5, 4.5]
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["M"]}, "its type is stored")
        daemon.kill()
    with at(tmp_path, seoul("2025-12-18 11:00:01")) as daemon:
        daemon.start()
        assert daemon.get("/stat/hour?machine=M&start=2025-12-18&end=2025-12-18")[1] == [
            {"name": "v_hour_avg", "time": "2025-12-18 10:00:00", "data": 3.0}
        ]


def test_database_locked_at_the_start_is_retried_at_the_next(tmp_path: Path) -> None:
    with at(tmp_path, seoul("2025-12-18 10:30:00")) as daemon:
        daemon.start()
        for machine in ("M", "N"):
            daemon.daq(frame("name", machine), frame("DataUpdate", {"v": {"type": "TEMP", "data": [1.5, 2.5]}}))
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["M", "N"]}, "stored data")
        until(lambda: all((tmp_path / "data" / machine).is_dir() for machine in "MN"), "raw files")
        daemon.kill()
        other = sqlite3.connect(tmp_path / "db" / "M.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        daemon.start()
        health = daemon.get("/healthz")[1]
        assert (health["ok"], health["problems"]) == (False, ["statistics of M lack samples from before the start"])
        other.close()
        assert "run cynow-gateway recompute for this day tomorrow" in daemon.log()
        daemon.kill()
    # It has stored nothing about unknown hours, so the next start recovers all.
    with at(tmp_path, seoul("2025-12-18 11:00:01")) as daemon:
        daemon.start()
        assert daemon.get("/healthz")[1]["problems"] == []
        for machine in "MN":
            (item,) = daemon.get(f"/stat/hour?machine={machine}&start=2025-12-18&end=2025-12-18&detail=1")[1]
            assert (item["data"], item["count"]) == (2.0, 2)


def reads_raw_files(daemon: Daemon) -> bool:
    assert daemon.process.poll() is None, daemon.log()
    for file in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(file.readlink()).endswith(".csv"):
                return True
    return False


def test_sigterm_during_a_long_recovery_ends_the_daemon(tmp_path: Path) -> None:
    # One sensor with three full days, so a check between sensors would not be enough.
    for day in (16, 17, 18):
        write_journal(tmp_path / "data" / "M" / f"202512{day}_v.csv", 0, 86_400)
    with at(tmp_path, seoul("2025-12-18 23:59:00")) as daemon:
        daemon.run()
        until(lambda: reads_raw_files(daemon), "it reads them")
        assert daemon.terminate() == 0, daemon.log()
        assert "the gateway is ready" not in daemon.log()
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("step", [-3600, 3600])
def test_setting_the_wall_clock_stops_no_timer(tmp_path: Path, step: int) -> None:
    ahead = tmp_path / "ahead"
    ahead.write_text("0")
    twistd = [sys.executable, AT_TIME, str(ahead), "-n", "--pidfile=", "cynow-gateway"]
    daemon = Daemon(tmp_path, twistd=twistd, timezone=SEOUL.key)
    try:
        daemon.start()
        machine = daemon.daq(frame("name", "M"), frame("DataUpdate", {"v": {"type": "VIB", "data": [1.0]}}))
        until(lambda: len(lines(tmp_path, "v")) == 1, "the first sample")
        (tmp_path / "set").write_text(str(step))
        (tmp_path / "set").rename(ahead)
        machine.sendall(frame("DataUpdate", {"v": {"type": "VIB", "data": [2.0]}}))
        # By the wall clock that was set back, the timer would be due in an hour.
        until(lambda: len(lines(tmp_path, "v")) == 2, "the next sample")
        until(lambda: f"jumped by {step:+}" in daemon.log(), "the step is logged")
        # A new connection is not an hour old.
        daemon.daq(frame("name", "N"))
        until(lambda: daemon.get("/sio/machineList")[1]["machine_list"] == ["/M", "/N"], "both machines")
    finally:
        daemon.end()
