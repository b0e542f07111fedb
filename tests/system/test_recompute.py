"""The command ``recompute``, on folders of a gateway."""

import contextlib
import gzip
import math
import os
import re
import sqlite3
import subprocess
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from gateway.stats.rollup import Rollup
from gateway.store.sqlite.machine_tables import MachineTables
from tests.conftest import ROOT
from tests.support.daemon import PATIENCE, running, until
from tests.support.frames import frame, update

PERIODS = ("hour", "day", "month", "year")

#: Zone in which it is about noon, so that tests do not run over midnight.
NOON = f"Etc/GMT{(datetime.now(UTC).hour - 12):+d}"

#: ``HH:MM:SS`` and a sample.
Line = tuple[str, float]


class Plant:
    """The folder of a gateway."""

    def __init__(self, folder: Path, zone: str = "Asia/Seoul", **settings: Any) -> None:
        self.folder = folder
        self.zone = ZoneInfo(zone)
        self.config = folder / "cynow-gateway.yaml"
        self.config.write_text(yaml.safe_dump({"timezone": zone, **settings}, allow_unicode=True), "utf-8")
        for name in ("data", "db"):
            (folder / name).mkdir(exist_ok=True)

    def path(self, sensor: str, day: str, machine: str = "M") -> Path:
        return self.folder / "data" / machine / f"{day.replace('-', '')}_{sensor}.csv"

    def write(
        self, sensor: str, day: str, lines: Iterable[Line], *, machine: str = "M", compressed: bool = False
    ) -> None:
        path = self.path(sensor, day, machine)
        path.parent.mkdir(exist_ok=True)
        content = b"time,data\n" + b"".join(f"{clock},{value!r}\n".encode() for clock, value in lines)
        if compressed:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.recompute", "--config", str(self.config), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def recompute(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=5 * PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def told(self, *arguments: str) -> list[str]:
        """Return the output lines of a successful run; the last one counts the rows."""
        done = self.recompute(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def query(self, statement: str, *arguments: Any, machine: str = "M") -> list[dict[str, Any]]:
        connection = sqlite3.connect(self.folder / "db" / f"{machine}.db")
        connection.row_factory = sqlite3.Row
        try:
            with connection:
                return [dict(row) for row in connection.execute(statement, arguments)]
        finally:
            connection.close()

    def rows(self, sensor: str, period: str, machine: str = "M") -> list[dict[str, Any]]:
        return self.query(f'SELECT * FROM "{sensor}_{period}_avg" ORDER BY time, start, id', machine=machine)

    def dump(self, pattern: str = "*.db") -> dict[str, list[str]]:
        """Return every database as SQL."""
        found = {}
        for path in sorted((self.folder / "db").glob(pattern)):
            connection = sqlite3.connect(path)
            found[path.name] = list(connection.iterdump())
            connection.close()
        return found

    def check(self, sensor: str, days: Mapping[str, Sequence[Line]], mode: str = "REAL", machine: str = "M") -> None:
        """Compare all rows with the lines, by sums that round once; times must be unique."""
        for period in PERIODS:
            expected = self._by_period(period, days)
            rows = self.rows(sensor, period, machine)
            assert [row["time"] for row in rows] == sorted(expected)
            for row in rows:
                lines = [(time, value) for time, value in expected[row["time"]] if math.isfinite(value)]
                values = [abs(value) if mode == "ABS" else value for _, value in lines]
                assert row["count"] == len(lines)
                assert row["data"] == pytest.approx(math.fsum(values) / len(values), rel=1e-15, abs=1e-17)
                assert row["squares"] == pytest.approx(math.fsum(value * value for value in values), rel=1e-14)
                assert row["minutes"] == len({time[:16] for time, _ in lines})
                for name, extreme in (("min", min(value for _, value in lines)), ("max", max(v for _, v in lines))):
                    assert row[name] == extreme
                    assert row[f"{name}_time"] == next(time for time, value in lines if value == extreme)
                assert row["start"] == datetime.fromisoformat(row["time"]).replace(tzinfo=self.zone).timestamp()

    def _by_period(self, period: str, days: Mapping[str, Sequence[Line]]) -> dict[str, list[tuple[str, float]]]:
        found: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)
        for day, lines in sorted(days.items()):
            for clock, value in lines:
                start = {
                    "hour": f"{day} {clock[:2]}:00:00",
                    "day": f"{day} 00:00:00",
                    "month": f"{day[:7]}-01 00:00:00",
                    "year": f"{day[:4]}-01-01 00:00:00",
                }[period]
                found[start].append((f"{day} {clock}", value))
        return dict(found)


def day_of_lines(random: Random, hours: Iterable[int], per_hour: int = 200) -> list[Line]:
    seconds = sorted(hour * 3600 + random.randrange(3600) for hour in hours for _ in range(per_hour))
    return [(f"{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}", random.gauss(0, 3)) for s in seconds]


def test_recompute_renews_all_rows_of_a_range(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    random = Random(1)
    days = {
        "2023-12-31": day_of_lines(random, range(24)),
        "2024-01-01": [("00:00:00", math.nan), ("00:00:00", math.inf), *day_of_lines(random, range(24))],
        "2024-01-02": day_of_lines(random, [0, 5, 23]),
        "2024-02-29": day_of_lines(random, [12], 5000),
    }
    other = {"2024-01-01": day_of_lines(random, [7])}
    for number, (day, day_lines) in enumerate(days.items()):
        plant.write("온도 1", day, day_lines, machine="쇼트", compressed=number % 2 == 0)
    plant.write("v", "2024-01-01", other["2024-01-01"])
    every = ("--from", "2023-12-31", "--to", "2024-02-29")
    first = plant.recompute(*every)
    assert first.returncode == 0
    plant.check("온도 1", days, machine="쇼트")
    plant.check("v", other)
    *lines, summary = first.stdout.splitlines()
    rows = sum(len(plant.rows(*its)) for its in every_table())
    assert summary == f"2 sensors; rows: {rows} new"
    assert len(lines) == rows
    (row,) = plant.rows("v", "hour")
    assert f"M v hour 2024-01-01 07:00:00: none -> {row['data']!r} (200)" in lines
    assert "쇼트 온도 1: the type of the sensor is not stored" in first.stderr
    assert "M v: the type of the sensor is not stored" in first.stderr
    # There were no changes since.
    before = plant.dump()
    assert plant.told(*every) == [f"2 sensors; rows: {rows} unchanged"]
    assert plant.dump() == before
    # One row is wrong, one is gone, one has lost its count; all others are unchanged.
    wrong, gone = "2024-01-02 05:00:00", "2024-01-02 23:00:00"
    table = "온도 1_hour_avg"
    plant.query(f'UPDATE "{table}" SET data = data + 1, total = total + count WHERE time = ?', wrong, machine="쇼트")
    plant.query(f'DELETE FROM "{table}" WHERE time = ?', gone, machine="쇼트")
    plant.query(f'UPDATE "{table}" SET count = NULL WHERE time = ?', "2024-01-02 00:00:00", machine="쇼트")
    *lines, summary = plant.told(*every)
    assert summary == f"2 sensors; rows: 2 different, 1 new, {rows - 3} unchanged"
    assert [re.sub(r"\S+ \(", "x (", line) for line in sorted(lines)] == [
        "쇼트 온도 1 hour 2024-01-02 00:00:00: x (no count) -> x (200)",
        f"쇼트 온도 1 hour {wrong}: x (200) -> x (200)",
        f"쇼트 온도 1 hour {gone}: none -> x (200)",
    ]
    plant.check("온도 1", days, machine="쇼트")


def every_table() -> list[tuple[str, str, str]]:
    return [(sensor, period, machine) for period in PERIODS for sensor, machine in (("온도 1", "쇼트"), ("v", "M"))]


def test_recompute_is_limited_to_the_options(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    random = Random(2)
    lines = {day: day_of_lines(random, [10], 20) for day in ("2024-03-01", "2024-03-02", "2024-03-03")}
    for machine in ("M", "N"):
        for sensor in ("a", "b"):
            for day, its in lines.items():
                plant.write(sensor, day, its, machine=machine)
    assert plant.told("--from", "2024-03-02", "--machine", "M", "--sensor", "a")[-1] == "1 sensors; rows: 4 new"
    plant.check("a", {"2024-03-02": lines["2024-03-02"]})
    assert not (tmp_path / "db" / "N.db").exists()
    assert plant.query("SELECT name FROM sqlite_master WHERE name = 'b_hour_avg'") == []
    nothing = plant.recompute("--from", "2024-03-02", "--machine", "Nobody")
    assert (nothing.returncode, nothing.stdout.splitlines()) == (1, ["0 sensors; rows: none"])
    assert "no matching raw files" in nothing.stderr
    *told, _ = plant.told("--from", "2024-03-01", "--to", "2024-03-02", "--machine", "M", "--sensor", "a")
    # The month and the year have more samples now, and the second day is unchanged.
    assert [(line.split()[2:4], line.partition(": ")[2].split()[0] == "none") for line in told] == [
        (["hour", "2024-03-01"], True),
        (["day", "2024-03-01"], True),
        (["month", "2024-03-01"], False),
        (["year", "2024-01-01"], False),
    ]


def test_recompute_uses_the_types_of_sensors(tmp_path: Path) -> None:
    plant = Plant(tmp_path, stat={"VIB": "ABS", "ODD": "ABS"})
    days = {"2024-03-02": day_of_lines(Random(3), [10, 11], 20)}
    plant.write("v", "2024-03-02", days["2024-03-02"])
    plant.told("--from", "2024-03-02")
    plant.check("v", days)
    done = plant.recompute("--from", "2024-03-02", "--type", "vib")
    assert "is not stored" not in done.stderr
    assert done.stdout.splitlines()[-1] == "1 sensors; rows: 5 different"
    plant.check("v", days, "ABS")
    # The stored type takes precedence.
    connection = sqlite3.connect(tmp_path / "db" / "cynow-gateway.sqlite3")
    with connection:
        connection.execute("INSERT INTO sensor VALUES ('M', 'v', 'TEMP')")
    connection.close()
    assert plant.told("--from", "2024-03-02", "--type", "VIB")[-1] == "1 sensors; rows: 5 different"
    plant.check("v", days)


def test_dry_run_shows_differences_and_writes_nothing(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    random = Random(4)
    days = {day: day_of_lines(random, [10, 11], 20) for day in ("2024-03-01", "2024-03-02")}
    for day, lines in days.items():
        plant.write("v", day, lines)
    plant.told("--from", "2024-03-01")
    before = plant.dump()
    *told, summary = plant.told("--from", "2024-03-01", "--to", "2024-03-02", "--dry-run")
    assert plant.dump() == before
    assert [line.partition(": ")[0] for line in told] == [
        "M v hour 2024-03-02 10:00:00",
        "M v hour 2024-03-02 11:00:00",
    ]
    assert "2 new" in summary
    real = plant.told("--from", "2024-03-01", "--to", "2024-03-02")
    assert set(told) < set(real), "the same differences"
    plant.check("v", days)


def test_dry_run_does_not_change_the_database_of_the_gateway(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.write("v", "2024-03-01", [("10:00:00", 1.0)])
    plant.told("--from", "2024-03-01")
    before = plant.dump("*.sqlite3")
    assert plant.told("--from", "2024-03-01", "--dry-run") == ["1 sensors; rows: 4 unchanged"]
    assert plant.dump("*.sqlite3") == before


def test_row_with_more_samples_than_the_files_is_kept(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    random = Random(5)
    lines = day_of_lines(random, [10, 11], 20)
    plant.write("v", "2024-03-01", lines)
    plant.told("--from", "2024-03-01")
    before = plant.dump()
    fewer = [line for number, line in enumerate(lines) if number != 5]
    plant.write("v", "2024-03-01", fewer)
    kept = (
        "M v hour 2024-03-01 10:00:00: kept, because the raw files hold only 19 of its 20 samples; use --force to"
        " replace it"
    )
    *told, summary = plant.told("--from", "2024-03-01")
    assert told == [kept]
    assert "1 kept" in summary
    assert "different" not in summary
    assert plant.dump() == before
    *told, summary = plant.told("--from", "2024-03-01", "--force")
    assert summary == "1 sensors; rows: 4 different, 1 unchanged"
    assert len(told) == 4
    plant.check("v", {"2024-03-01": fewer})


def test_rows_of_the_old_server_are_replaced(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    days = {"2024-03-01": day_of_lines(Random(6), [10, 11], 20)}
    plant.write("v", "2024-03-01", days["2024-03-01"])
    for period in PERIODS:
        plant.query(f"CREATE TABLE v_{period}_avg (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)")
    for period, time in (
        ("hour", "2024-03-01 10:00:00"),
        ("hour", "2024-03-01 11:00:00.123456"),
        ("day", "2024-03-01 00:00:00"),
        ("month", "2024-03-01 00:00:00"),
        ("year", "2024-01-01 00:00:00"),
    ):
        plant.query(f"INSERT INTO v_{period}_avg (time, data) VALUES (?, 7.5)", time)
    *told, summary = plant.told("--from", "2024-03-01")
    assert summary == "1 sensors; rows: 5 different"
    assert all("7.5 (no count) -> " in line for line in told)
    plant.check("v", days)
    assert [row["id"] for row in plant.rows("v", "hour")] == [1, 2]
    assert plant.told("--from", "2024-03-01") == ["1 sensors; rows: 5 unchanged"]


def test_broken_compressed_file_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    lines = day_of_lines(Random(7), [10], 2000)
    for sensor in ("a", "torn", "rubbish", "z"):
        plant.write(sensor, "2024-03-01", lines, compressed=True)
    # Other days of the sensor are renewed.
    plant.write("torn", "2024-02-29", lines)
    torn, rubbish = (plant.path(name, "2024-03-01").with_suffix(".csv.gz") for name in ("torn", "rubbish"))
    torn.write_bytes(torn.read_bytes()[:-200])
    rubbish.write_bytes(b"no gzip")
    done = plant.recompute("--from", "2024-02-29", "--to", "2024-03-01")
    assert done.returncode == 1
    for sensor in ("a", "z"):
        plant.check(sensor, {"2024-03-01": lines})
    plant.check("torn", {"2024-02-29": lines})
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "cannot read" in line]
    assert len(errors) == 2
    for sensor, path in (("rubbish", rubbish), ("torn", torn)):
        (error,) = [line for line in errors if path.name in line]
        assert f"_{sensor}.csv.gz: cannot read the raw file: " in error
        assert error.endswith("; rows of 2024-03-01 are unchanged")
    assert done.stdout.splitlines()[-1] == "4 sensors; rows: 12 new"
    assert plant.query("SELECT name FROM sqlite_master WHERE name = 'rubbish_hour_avg'") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--from"),
        (["--from", "2024-02-30"], "--from"),
        (["--from", "2024-02-01", "--to", "tomorrow"], "--to"),
        (["--from", "2024-02-02", "--to", "2024-02-01"], "--to is before --from"),
        (["--from", "9999-01-01"], "9999-01-01 has not ended"),
    ],
)
def test_wrong_use_has_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = Plant(tmp_path).recompute(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"database": {"path": "nowhere"}}, "database.path"),
        ({"data": {"path": "nowhere"}}, "nowhere"),
        ({"databas": {"path": "db"}}, "databas"),
        ({"timezone": "Asia/Nowhere"}, "timezone"),
    ],
)
def test_invalid_configuration_is_one_line_and_status_1(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    plant = Plant(tmp_path)
    plant.write("v", "2024-03-01", [("10:00:00", 1.0)])
    plant.config.write_text(yaml.safe_dump(settings), "utf-8")
    done = plant.recompute("--from", "2024-03-01")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("recompute: ")
    assert said in line
    assert not (tmp_path / "nowhere").exists()


def test_broken_database_has_status_1(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    lines = [("10:00:00", 1.0)]
    for machine in ("Broken", "M"):
        plant.write("v", "2024-03-01", lines, machine=machine)
    (tmp_path / "db" / "Broken.db").write_bytes(b"no database at all" * 100)
    done = plant.recompute("--from", "2024-03-01")
    plant.check("v", {"2024-03-01": lines})
    assert done.returncode == 1
    assert "Broken" in done.stdout + done.stderr.replace("Broken v: the type", "")


# -- clocks


def berlin_day() -> list[Line]:
    """Return the lines of a day of 25 hours, with samples in each."""
    hours = [0, 1, 2, 2, *range(3, 24)]
    return [(f"{hour:02}:{minute:02}:00", float(n)) for n, hour in enumerate(hours) for minute in range(0, 60, 10)]


def test_repeated_hour_has_two_rows(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "Europe/Berlin")
    plant.write("v", "2025-10-26", berlin_day())
    assert plant.told("--from", "2025-10-26")[-1] == "1 sensors; rows: 28 new"
    rows = plant.rows("v", "hour")
    midnight = datetime(2025, 10, 26, tzinfo=plant.zone).timestamp()
    assert [(row["start"], row["data"], row["count"]) for row in rows] == [
        (midnight + 3600 * n, float(n), 6) for n in range(25)
    ]
    assert [row["time"][11:13] for row in rows[1:5]] == ["01", "02", "02", "03"]
    (day,) = plant.rows("v", "day")
    assert (day["count"], day["data"], day["minutes"]) == (150, 12.0, 150)
    before = plant.dump()
    assert plant.told("--from", "2025-10-26", "--dry-run") == ["1 sensors; rows: 28 unchanged"]
    assert plant.dump() == before
    # The two rows of the hour are distinct.
    plant.query("UPDATE v_hour_avg SET data = 90.0 + data WHERE time = '2025-10-26 02:00:00'")
    *told, summary = plant.told("--from", "2025-10-26")
    assert told == [f"M v hour 2025-10-26 02:00:00: 9{n}.0 (6) -> {n}.0 (6)" for n in (2, 3)]
    assert summary == "1 sensors; rows: 2 different, 26 unchanged"
    assert plant.dump() == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_second_of_two_hours_without_the_row_of_the_first(tmp_path: Path, options: list[str]) -> None:
    """The row of the second hour counts more samples than the file; the row of the first is missing."""
    plant = Plant(tmp_path, "Europe/Berlin")
    lines = berlin_day()
    plant.write("v", "2025-10-26", lines)
    plant.told("--from", "2025-10-26")
    midnight = datetime(2025, 10, 26, tzinfo=plant.zone).timestamp()
    second = int(midnight + 3600 * 3)
    (kept,) = plant.query("SELECT * FROM v_hour_avg WHERE start = ?", second)
    plant.query("DELETE FROM v_hour_avg WHERE start = ?", second - 3600)
    # A sample of the second hour, at 02:50, is missing.
    plant.write("v", "2025-10-26", lines[:23] + lines[24:])
    told = plant.told("--from", "2025-10-26", *options)
    time = "M v hour 2025-10-26 02:00:00"
    assert sorted(line for line in told if line.startswith(time)) == [
        f"{time}: kept, because the raw files hold only 5 of its 6 samples; use --force to replace it",
        f"{time}: none -> 2.0 (6)",
    ]
    assert plant.query("SELECT * FROM v_hour_avg WHERE start = ?", second) == [kept]


def write_as_it_came(plant: Plant, day: str, first: Sequence[Line], second: Sequence[Line]) -> None:
    """Write the raw file of a day, and the rows of a gateway that knew the hour of each line."""
    rollup = Rollup(plant.zone, {})
    midnight = datetime.fromisoformat(day).replace(tzinfo=plant.zone)
    ended = [
        rollup.replay("M", "v", datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=plant.zone, fold=fold), samples)
        for fold, lines in enumerate((first, second))
        for clock, samples in ((clock, array("d", [value])) for clock, value in lines)
    ]
    ended.append(rollup.advance(midnight + timedelta(days=400)))
    with contextlib.closing(sqlite3.connect(plant.folder / "db" / "M.db")) as connection, connection:
        tables = MachineTables(connection)
        for entry in (entry for its in ended for entry in its.entries):
            tables.write(entry)
    plant.write("v", day, [*first, *second])


def some(clock: str, count: int = 10) -> list[Line]:
    """Return the lines of one minute; the first and the last are not numbers."""
    numbers = [(f"{clock}:{number:02}", float(clock[3:]) + number / 8) for number in range(1, count + 1)]
    return [(f"{clock}:00", math.nan), *numbers, (f"{clock}:59", math.nan)]


@pytest.mark.parametrize(
    ("zone", "day", "first", "second"),
    [
        ("America/New_York", "2025-11-02", some("01:10"), some("01:40")),
        ("America/New_York", "2025-11-02", some("00:50") + some("01:10"), some("01:40") + some("02:10")),
        # No sample in the first of the two hours, or in the second.
        ("America/New_York", "2025-11-02", [], some("01:40")),
        ("America/New_York", "2025-11-02", some("00:10"), some("01:10") + some("01:40") + some("02:40")),
        ("America/New_York", "2025-11-02", some("01:10"), []),
        # The second hour continues in the second, or in the minute, in which the first has ended.
        ("America/New_York", "2025-11-02", [("01:30:00", 1.0), ("01:30:00", math.nan)], [("01:30:00", 3.0)]),
        ("America/New_York", "2025-11-02", [("01:30:00", 1.0)] * 3, [("01:30:00", 2.0)] * 2 + [("01:30:01", 4.0)]),
        # A line is earlier than the one before it, so the lines show the second hour.
        ("America/New_York", "2025-11-02", some("01:10"), some("01:05")),
        ("America/New_York", "2025-11-02", some("01:40"), some("01:10") + some("01:40") + some("03:10")),
        ("Africa/Cairo", "2025-10-30", some("23:10"), some("23:40")),
        # Clocks go back from a quarter to a quarter.
        ("Pacific/Chatham", "2025-04-06", some("02:50") + some("03:10"), some("03:20") + some("03:50")),
        ("Pacific/Chatham", "2025-04-06", some("02:50") + some("03:40"), some("02:50") + some("03:10")),
        # An hour of ninety minutes is one hour.
        ("Australia/Lord_Howe", "2025-04-06", some("01:10") + some("01:35"), some("01:40") + some("02:10")),
    ],
)
def test_samples_of_a_repeated_hour_stay_in_their_hour(
    tmp_path: Path, zone: str, day: str, first: Sequence[Line], second: Sequence[Line]
) -> None:
    plant = Plant(tmp_path, zone)
    write_as_it_came(plant, day, first, second)
    before = plant.dump("M.db")
    rows = sum(len(plant.rows("v", period)) for period in PERIODS)
    for options in (["--dry-run"], ["--force"]):
        assert plant.told("--from", day, *options) == [f"1 sensors; rows: {rows} unchanged"]
        assert plant.dump("M.db") == before
    # A wrong row is corrected, and the other one stays.
    plant.query("UPDATE v_hour_avg SET data = data + 1 WHERE id = (SELECT max(id) FROM v_hour_avg)")
    assert plant.told("--from", day)[-1] == f"1 sensors; rows: 1 different, {rows - 1} unchanged"
    assert plant.dump("M.db") == before


def test_repeated_hour_without_rows_is_one_hour(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "America/New_York")
    day = "2025-11-02"
    write_as_it_came(plant, day, some("01:10"), some("01:40"))
    (tmp_path / "db" / "M.db").unlink()
    plant.told("--from", day)
    # All samples are in the first hour.
    (row,) = plant.rows("v", "hour")
    assert (row["count"], row["start"]) == (20, datetime(2025, 11, 2, 1, tzinfo=plant.zone).timestamp())


def test_repeated_hour_in_a_compressed_file_and_a_later_one(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "America/New_York")
    day = "2025-11-02"
    first, second = some("01:10"), some("01:40") + some("01:50")
    write_as_it_came(plant, day, first, second)
    lines = first + second
    plant.write("v", day, lines[:15], compressed=True)
    plant.write("v", day, lines[15:])
    plant.told("--from", day)
    assert [row["count"] for row in plant.rows("v", "hour")] == [10, 20]


def test_hour_with_a_skipped_beginning(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "Australia/Lord_Howe")
    day = "2025-10-05"
    lines = [*some("01:50"), *some("02:35"), *some("02:50"), *some("03:10")]
    write_as_it_came(plant, day, lines, [])
    assert [(row["time"][11:16], row["count"]) for row in plant.rows("v", "hour")] == [
        ("01:00", 10),
        ("02:00", 20),
        ("03:00", 10),
    ]
    before = plant.dump("M.db")
    assert plant.told("--from", day, "--dry-run") == ["1 sensors; rows: 6 unchanged"]
    plant.write("v", day, lines[:15] + lines[16:])
    kept = (
        f"M v hour {day} 02:00:00: kept, because the raw files hold only 19 of its 20 samples; use --force to"
        " replace it"
    )
    for options in ([], ["--dry-run"]):
        assert plant.told("--from", day, *options)[:-1] == [kept]
        assert plant.dump("M.db") == before


def test_added_rows_are_answered_in_the_order_of_time(tmp_path: Path) -> None:
    plant = Plant(tmp_path, "Europe/Berlin")
    plant.write("v", "2025-10-26", berlin_day())
    plant.told("--from", "2025-10-26")
    first = datetime(2025, 10, 26, 2, tzinfo=plant.zone).timestamp()
    plant.query("DELETE FROM v_hour_avg WHERE start = ?", first)
    plant.told("--from", "2025-10-26")
    with running(tmp_path, timezone="Europe/Berlin") as daemon:
        items = daemon.get("/stat/hour?machine=M&start=2025-10-26&end=2025-10-26")[1]
    assert [item["data"] for item in items] == [float(n) for n in range(25)]


def test_clock_that_was_set_back(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    minutes = [*range(540, 680), *range(650, 660), *range(625, 760)]
    days = {"2024-03-01": [(f"{m // 60:02}:{m % 60:02}:00", m + k / 7) for k, m in enumerate(minutes)]}
    plant.write("v", "2024-03-01", days["2024-03-01"])
    plant.told("--from", "2024-03-01")
    rows = plant.rows("v", "hour")
    for row in rows:
        values = [value for clock, value in days["2024-03-01"] if clock[:2] == row["time"][11:13]]
        assert (row["count"], row["min"], row["max"]) == (len(values), min(values), max(values))
        assert row["data"] == pytest.approx(math.fsum(values) / len(values), rel=1e-15)
    assert [row["time"][11:13] for row in rows] == ["09", "10", "11", "12"]
    (day,) = plant.rows("v", "day")
    assert day["count"] == len(minutes)
    before = plant.dump()
    assert plant.told("--from", "2024-03-01") == ["1 sensors; rows: 7 unchanged"]
    assert plant.dump() == before


def test_sum_that_exceeds_a_double_in_an_hour_after_a_clock_step(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.write("huge", "2024-03-01", [("10:00:00", 1.7e308), ("11:00:00", 1.0), ("10:30:00", 1.7e308)])
    plant.write("v", "2024-03-01", [("10:00:00", 1.0)])
    done = plant.recompute("--from", "2024-03-01")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    plant.check("v", {"2024-03-01": [("10:00:00", 1.0)]})
    # A row that lacks samples is better than no row.
    assert [(row["time"][11:13], row["data"]) for row in plant.rows("huge", "hour")] == [("10", 1.7e308), ("11", 1.0)]


# -- beside a gateway


def test_recompute_beside_a_running_gateway(tmp_path: Path) -> None:
    today = datetime.now(ZoneInfo(NOON)).date()
    plant = Plant(tmp_path, NOON)
    random = Random(9)
    days = {(today - timedelta(days=back)).isoformat(): day_of_lines(random, range(24), 30) for back in (2, 1)}
    sensors = ["s1", "s2", "s3"]
    with running(tmp_path, timezone=NOON) as daemon:
        machine = daemon.daq(frame("name", "M"), update("live", "VIB", 1.0, 2.0))
        for sensor in sensors:
            for day, lines in days.items():
                plant.write(sensor, day, lines)
            # The day has not ended, so it is left to the gateway.
            plant.write(sensor, today.isoformat(), [("00:00:01", 5.0)])
        until(lambda: "M" in daemon.get("/stat/machineList")[1]["machine_list"], "the machine's database")
        anomalies = f"/stat/anomaly?machine=M&start={today - timedelta(days=1)}&end={today + timedelta(days=1)}"
        with plant.start("--from", min(days), "--to", (today + timedelta(days=1)).isoformat()) as process:
            sent = 0
            while process.poll() is None:
                sent += 1
                machine.sendall(frame("FaultDetect", {"score": 1.0 + sent, "threshold": 1.0}))
                # The first samples of a sensor create its tables.
                machine.sendall(update(f"live{sent}", "VIB", 1.0))
                until(lambda sent=sent: len(daemon.get(anomalies)[1]) == sent, "the anomaly's row")
            output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert sent > 3
        assert output.splitlines()[-1].startswith("3 sensors; rows: ")
        for sensor in sensors:
            check_past(plant, sensor, days, today)
        until(lambda: daemon.metric("cynow_store_waiting") == 0, "all is written")
        assert [item["score"] for item in daemon.get(anomalies)[1]] == [2.0 + number for number in range(sent)]
        assert daemon.metric("cynow_store_lost_total") == 0
        answer = daemon.get(f"/stat/hour?machine=M&start={min(days)}&end={max(days)}&detail=1")[1]
        assert len(answer) == 3 * 48
        assert {item["count"] for item in answer} == {30}
        assert "Traceback" not in daemon.log() + errors
        assert daemon.terminate() == 0


def check_past(plant: Plant, sensor: str, days: Mapping[str, Sequence[Line]], today: date) -> None:
    """Check that there are rows of hours and days, and of ended months and years only."""
    for period, per_day in (("hour", 24), ("day", 1)):
        rows = plant.rows(sensor, period)
        assert len(rows) == per_day * len(days)
        assert max(row["time"] for row in rows) < today.isoformat()
    for row in plant.rows(sensor, "day"):
        values = [value for _, value in days[row["time"][:10]]]
        assert row["data"] == pytest.approx(math.fsum(values) / len(values), rel=1e-14, abs=1e-17)
    for period, length in (("month", 7), ("year", 4)):
        over = {day[:length] for day in days if day[:length] < today.isoformat()[:length]}
        # A table is created with its first row.
        rows = plant.rows(sensor, period) if over else []
        assert {row["time"][:length] for row in rows} == over
