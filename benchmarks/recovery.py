"""A start after a kill late in a full day, and questions about ten years."""

import http.client
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from benchmarks.table import Row
from gateway.model.entries import ClosedHour
from gateway.model.timestamps import wall_time
from gateway.raw.damage import DamageLog
from gateway.raw.files import HEADER
from gateway.replay.recovery import Recovered, Recovery
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.stats.rollup import Rollup
from gateway.store.interface import RollupProgress, SensorState
from gateway.store.rows import BUCKET_COLUMNS, values_of
from gateway.store.sqlite.machine_tables import MachineTables
from gateway.store.sqlite.queries import quoted, rollup_progress, sensors
from gateway.timeseries.bucket import Bucket
from tests.support.daemon import Daemon

ZONE: Final = ZoneInfo("Asia/Seoul")
MODES: Final = {"vib": "ABS", "temp": "REAL"}

MACHINE: Final = "ShotBlast"
SENSORS: Final = tuple(f"shot_blast_vib{number}" for number in range(1, 9))
RATE: Final = 30

#: When it is killed, and when it is started again.
KILLED: Final = datetime(2025, 12, 18, 23, 59, tzinfo=ZONE)
STARTED: Final = KILLED + timedelta(seconds=5)

YEARS: Final = range(2015, 2025)
#: Thirty days of them.
ASKED: Final = (date(2020, 5, 1), date(2020, 5, 30))


def rows(folder: Path) -> list[Row]:
    """The recovery of a day of 8 sensors at 30 samples a second, and ``/stat/hour`` over 10 years of 8 sensors."""
    return [*_recovery(folder / "recovery"), *_questions(folder / "questions")]


# -- recovery


def _recovery(folder: Path) -> list[Row]:
    data, database = folder / "data", folder / "db" / f"{MACHINE}.db"
    database.parent.mkdir(parents=True)
    ends = [_write_day(data / MACHINE / f"{KILLED:%Y%m%d}_{sensor}.csv") for sensor in SENSORS]
    _write_hours(database, ends)
    text = f"recovery of {len(SENSORS)} sensors, {RATE} samples/s, killed at {KILLED:%H:%M}"
    found = []
    for what, change in (("", ""), (" without the ends of rows", "UPDATE {table} SET raw_end = NULL")):
        with sqlite3.connect(database, isolation_level=None) as connection:
            for _, table in sensors(connection, "hour"):
                connection.execute(change.format(table=quoted(table)))
        connection.close()
        seconds = statistics.median(_seconds(partial(_recover, data, database)) for _ in range(5))
        found.append(Row(f"{text}{what}, median of 5", f"{seconds:.3f} s", "under 1 s", seconds < 1))
        seconds = statistics.median(_start(folder) for _ in range(3))
        found.append(Row(f"start to /healthz with that{what}, median of 3", f"{seconds:.2f} s"))
    return found


def _write_day(path: Path) -> list[int]:
    """A sensor's file up to the kill; where each of its hours ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(path.name)
    seconds = [b"".join(b"%%b,%r\n" % chance.gauss(0.0, 1.0) for _ in range(RATE)) for _ in range(97)]
    ends = []
    with path.open("wb") as file:
        file.write(HEADER)
        for second in range(KILLED.hour * 3600 + KILLED.minute * 60):
            clock = b"%02d:%02d:%02d" % (second // 3600, second // 60 % 60, second % 60)
            file.write(seconds[second % 97] % ((clock,) * RATE))
            if second % 3600 == 3599:
                ends.append(file.tell())
    return ends


def _write_hours(database: Path, ends: list[list[int]]) -> None:
    """The rows of the day's hours as a run of the gateway leaves them."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN")
    tables = MachineTables(connection)
    for sensor, its in zip(SENSORS, ends, strict=True):
        for hour, raw_end in enumerate(its):
            start = KILLED.replace(hour=hour, minute=0)
            tables.write(ClosedHour(MACHINE, sensor, start, _bucket(start), "ABS", raw_end))
    connection.execute("COMMIT")
    connection.close()


def _recover(data: Path, database: Path) -> None:
    """What a start does between opening the store and listening."""
    connection = sqlite3.connect(database)
    rollup = partial(Rollup, ZONE, MODES)
    recovery = Recovery(str(data), ZONE, rollup(), rollup, DamageLog(WallClock(ZONE), Counters()))
    days = recovery.find_files(STARTED)
    states = [
        SensorState(MACHINE, sensor, "VIB", *rollup_progress(connection, table, days[MACHINE, sensor], STARTED, ZONE))
        for sensor, table in sensors(connection, "hour")
    ]
    connection.close()
    recovered: Recovered = recovery.run(RollupProgress(states), STARTED)
    # Nothing is over but minutes, and of these there are enough for who asks for the last ones.
    if recovered.entries or len(recovered.updates) < 60 * len(SENSORS):
        raise RuntimeError(f"recovered {len(recovered.entries)} entries and {len(recovered.updates)} updates")


def _start(folder: Path) -> float:
    """Seconds from the start of the process to its first answer."""
    at_time = str(Path(__file__).parent.parent / "tests" / "at_time.py")
    ahead = STARTED.timestamp() - time.time()
    daemon = Daemon(
        folder,
        twistd=[sys.executable, at_time, f"{ahead}", "-n", "--pidfile=", "cynow-gateway"],
        timezone=ZONE.key,
    )

    def start() -> None:
        daemon.run()
        daemon.start_answers()

    seconds = _seconds(start)
    daemon.end()
    return seconds


# -- questions


def _questions(folder: Path) -> list[Row]:
    database = folder / "db" / f"{MACHINE}.db"
    database.parent.mkdir(parents=True)
    _write_years(database)
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    first, last = ASKED[0].isoformat(), (ASKED[1] + timedelta(days=1)).isoformat()
    statements = [
        f"SELECT time, data FROM {quoted(table)} WHERE time >= ? AND time < ? ORDER BY time"
        for _, table in sensors(connection, "hour")
    ]

    def ask_bare() -> int:
        return sum(len(connection.execute(statement, (first, last)).fetchall()) for statement in statements)

    count = ask_bare()
    if count != len(SENSORS) * 30 * 24:
        raise RuntimeError(f"{count} rows")
    daemon = Daemon(folder, timezone=ZONE.key)
    daemon.start()
    client = http.client.HTTPConnection("127.0.0.1", daemon.port)
    path = f"/stat/hour?machine={MACHINE}&start={ASKED[0]}&end={ASKED[1]}"

    def ask(path: str) -> int:
        client.request("GET", path)
        response = client.getresponse()
        body = response.read()
        if response.status != 200 or body.count(b'"name"') != count:
            raise RuntimeError(f"{path}: status {response.status}, {len(body)} bytes")
        return len(body)

    bare, seconds, detailed = _medians(ask_bare, partial(ask, path), partial(ask, f"{path}&detail=1"))
    connection.close()
    client.close()
    daemon.end()
    text = f"/stat/hour, 30 days of {len(YEARS)} years x {len(SENSORS)} sensors"
    ratio = seconds / bare
    return [
        Row(
            f"{text}, median of 20",
            f"{1000 * seconds:.1f} ms over HTTP",
            "at most 3.0 x",
            ratio <= 3.0,
            f"bare SQL {1000 * bare:.1f} ms for {count} rows",
            ratio,
        ),
        Row(f"{text}: HTTP with detail=1, median of 20", f"{1000 * detailed:.1f} ms"),
    ]


def _write_years(database: Path) -> None:
    """Ten years of hours of every sensor."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN")
    tables = MachineTables(connection)
    begin = datetime(YEARS[0], 1, 1, tzinfo=ZONE)
    hours = int((datetime(YEARS[-1] + 1, 1, 1, tzinfo=ZONE) - begin).total_seconds()) // 3600
    starts = [begin + timedelta(hours=number) for number in range(hours)]
    columns = ["time", "data", "start", *BUCKET_COLUMNS]
    for sensor in SENSORS:
        tables.create_means(sensor, "hour")
        table = quoted(tables.means(sensor, "hour"))
        connection.executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            (
                (wall_time(start), bucket.mean("ABS"), int(start.timestamp()), *values_of(bucket))
                for start, bucket in zip(starts, map(_bucket, starts), strict=True)
            ),
        )
    connection.execute("COMMIT")
    connection.close()


# -- both


def _bucket(start: datetime) -> Bucket:
    """An hour's, of samples like those of a vibration sensor."""
    chance = random.Random(start.timestamp())
    count = 3600 * RATE
    return Bucket(
        count=count,
        minutes=60,
        total=chance.gauss(0.0, 300.0),
        magnitudes=count * chance.gauss(0.8, 0.01),
        squares=count * chance.gauss(1.0, 0.01),
        least=chance.gauss(-4.0, 0.2),
        least_at=wall_time(start),
        greatest=chance.gauss(4.0, 0.2),
        greatest_at=wall_time(start),
    )


def _medians(*questions: Callable[[], int]) -> list[float]:
    """Seconds that each question takes, asked in turn, after the first time."""
    for question in questions:
        question()
    rounds = [[_seconds(question) for question in questions] for _ in range(20)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
