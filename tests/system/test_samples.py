"""Raw samples for plots, and statistics as CSV and in pages, on a real daemon."""

import contextlib
import csv
import gzip
import http.client
import io
import json
import math
import os
import select
import socket
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

import pytest

from gateway.store.rows import BUCKET_COLUMNS
from tests.support.daemon import PATIENCE, Daemon, assert_same, running, until
from tests.support.frames import frame, update

SEOUL = ZoneInfo("Asia/Seoul")

DAY = "2025-12-18"

#: A sample every two seconds: more than a hundred thousand in three days.
BIG = [f"2025-11-{day:02}" for day in (10, 11, 12)]
PER_DAY = 43_200


def write(
    daemon: Daemon, machine: str, sensor: str, day: str, lines: Iterable[str], *, compressed: bool = False
) -> None:
    """A raw file of a day, of ``HH:MM:SS,number``."""
    path = daemon.folder / "data" / machine / f"{day.replace('-', '')}_{sensor}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(["time,data", *lines, ""]).encode()
    if compressed:
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(content, 1))
    else:
        path.write_bytes(content)


def clock(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"


def path_of(machine: str, /, **query: Any) -> str:
    return f"/api/v1/machines/{quote(machine, safe='')}/samples?{urlencode(query)}"


def asked(daemon: Daemon, machine: str, /, **query: Any) -> list[dict[str, Any]]:
    """The points of an answer; ``from_`` for ``from``."""
    names = {name.rstrip("_"): value for name, value in query.items()}
    status, body, _ = daemon.get(path_of(machine, **names))
    assert status == 200, body
    points: list[dict[str, Any]] = body["points"]
    return points


def table(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))


def as_text(value: Any) -> str:
    """A JSON value as a CSV field."""
    return "" if value is None else str(value)


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running gateway that waits for readers as long as a busy machine makes them slow."""
    limits = {"grace_sec": 10 * PATIENCE}
    with running(tmp_path_factory.mktemp("samples"), limits=limits, timezone="Asia/Seoul") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def plant(shared_daemon: Daemon) -> Daemon:
    """A gateway with raw files that were written behind its back, so that it makes no statistics of them."""
    daemon = shared_daemon
    hour = [f"{clock(36000 + second)},{math.sin(second) + k / 8!r}" for second in range(3600) for k in range(3)]
    write(daemon, "ShotBlast", "vib1", DAY, hour)
    write(daemon, "ShotBlast", "packed", DAY, hour, compressed=True)
    write(daemon, "쇼트 블라스트-1", "온도 1", DAY, ["10:00:00,1.5", "10:00:01,-2.5"])
    write(daemon, "M:1.a", "v.x:y_z-1", DAY, ["10:00:00,1.0"])
    for number, day in enumerate(("2025-12-15", "2025-12-16", "2025-12-17")):
        lines = [f"{n:02}:00:00,{number * 100 + n}.0" for n in range(24)]
        write(daemon, "Days", "v", day, lines, compressed=number < 2)
    random = Random(3)
    for number, day in enumerate(BIG):
        lines = [f"{clock(2 * n)},{random.gauss(0, 1)!r}" for n in range(PER_DAY)]
        write(daemon, "Big", "v", day, lines, compressed=number == 0)
    (daemon.folder / "data" / "notes.txt").write_text("no machine")
    return daemon


BIG_PATH = path_of("Big", sensor="v", **{"from": BIG[0]}, to=BIG[-1], max_points=100_000)


# -- answers


def test_json(plant: Daemon) -> None:
    status, body, headers = plant.get(
        path_of("ShotBlast", sensor="vib1", **{"from": f"{DAY}T10:00:00"}, to=f"{DAY}T10:01:00", max_points=6)
    )
    assert status == 200
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert {name: value for name, value in body.items() if name != "points"} == {
        "machine": "ShotBlast",
        "sensor": "vib1",
        "from": f"{DAY}T10:00:00+09:00",
        "to": f"{DAY}T10:01:00+09:00",
    }
    assert body["points"] == [
        {
            "time": f"{DAY}T10:00:{second:02}.000+09:00",
            "min": min(map(math.sin, range(second, second + 10))),
            "max": max(map(math.sin, range(second, second + 10))) + 2 / 8,
            "count": 30,
        }
        for second in range(0, 60, 10)
    ]


@pytest.mark.parametrize(
    ("accept", "is_csv"),
    [
        ("text/csv", True),
        ("text/csv; charset=utf-8", True),
        ("TEXT/CSV", True),
        ("text/*", True),
        ("text/csv;q=0.5, application/json;q=0.4", True),
        ("application/json;q=0.4, text/csv;q=0.5", True),
        ("text/csv, */*;q=0.1", True),
        ("*/*", False),
        ("application/json", False),
        ("text/csv;q=0.4, application/json;q=0.5", False),
        ("text/csv;q=0.5, */*", False),
        ("text/csv;q=0", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/html", False),
        ("", False),
        ("nonsense;;q=x,,", False),
    ],
)
def test_the_accept_header_says_whether_it_is_csv(plant: Daemon, accept: str, is_csv: bool) -> None:
    query = {"sensor": "vib1", "from": f"{DAY}T10:00:00", "to": f"{DAY}T10:01:00", "max_points": 4}
    for path in (path_of("ShotBlast", **query), f"/stat/hour?machine=ShotBlast&start={DAY}&end={DAY}"):
        status, body, headers = plant.get(path, Accept=accept)
        assert status == 200
        if is_csv:
            assert headers["content-type"] == "text/csv; charset=utf-8"
            assert headers["content-disposition"].endswith('.csv"')
            assert body.endswith(b"\r\n")
        else:
            assert headers["content-type"] == "application/json; charset=utf-8"
            assert isinstance(body, dict | list)


def test_csv_says_what_json_says(plant: Daemon) -> None:
    path = path_of("ShotBlast", sensor="vib1", **{"from": DAY}, to=DAY, max_points=1000)
    points = plant.get(path)[1]["points"]
    header, *rows = table(plant.get(path, Accept="text/csv")[1])
    assert header == ["time", "min", "max", "count"]
    assert rows == [[as_text(point[name]) for name in header] for point in points]
    assert sum(point["count"] for point in points) == 10_800


def test_caches_are_told_that_the_accept_header_matters(plant: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", plant.port, timeout=PATIENCE)
    connection.request("GET", path_of("ShotBlast", sensor="vib1", **{"from": DAY}, to=DAY))
    response = connection.getresponse()
    response.read()
    vary = {word.strip().lower() for value in response.headers.get_all("vary") or [] for word in value.split(",")}
    connection.close()
    assert vary >= {"accept", "origin"}


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        (path_of("ShotBlast"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor=""), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="other"), 404, "unknown_sensor"),
        (path_of("ShotBlast", sensor="VIB1"), 404, "unknown_sensor"),
        (path_of("ShotBlast", sensor="../vib1"), 404, "unknown_sensor"),
        (path_of("Nobody", sensor="vib1"), 404, "unknown_sensor"),
        (path_of("notes.txt", sensor="vib1"), 404, "unknown_sensor"),
        (path_of("x" * 300, sensor="vib1"), 404, "unknown_sensor"),
        ("/api/v1/machines/a%00b/samples?sensor=vib1", 404, "unknown_sensor"),
        ("/api/v1/machines/%2e%2e/samples?sensor=vib1", 404, None),
        ("/api/v1/machines/..%2fdata%2fShotBlast/samples?sensor=vib1", 404, None),
        ("/api/v1/machines/%ff/samples?sensor=vib1", 400, "invalid_url"),
        ("/api/v1/machines/ShotBlast", 404, "not_found"),
        ("/api/v1/machines/ShotBlast/nothing", 404, "not_found"),
        ("/api/v1/machines", 404, "not_found"),
        (path_of("ShotBlast", sensor="vib1", **{"from": "x"}), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": "2025-13-01"}), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", to="2025-02-29"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", to="9999-12-31"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", to="0001-01-01T00:30:00"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": "1766019600"}), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": "9999-12-30"}), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": f"{DAY}T10:00"}, to=f"{DAY}T10:00"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": f"{DAY}T10:00"}, to=f"{DAY}T09:59"), 400, "invalid_request"),
        (path_of("ShotBlast", sensor="vib1", **{"from": "2025-12-01"}, to="2026-01-02"), 400, "invalid_request"),
        *(
            (path_of("ShotBlast", sensor="vib1", **{"from": DAY}, to=DAY, max_points=most), 400, "invalid_request")
            for most in ("0", "-1", "1.5", "x", "100001", "1" * 5000, "00001000000", "²", "１０", "1e3")
        ),
    ],
)
def test_what_is_refused(plant: Daemon, path: str, status: int, error: str | None) -> None:
    found, body, headers = plant.get(path)
    assert (found, body["ok"]) == (status, False)
    assert error is None or body["error"] == error
    assert body["message"]
    assert headers["content-type"] == "application/json; charset=utf-8"
    # So is who would rather have CSV.
    assert plant.get(path, Accept="text/csv")[:2] == (found, body)


def test_only_get_and_head(plant: Daemon) -> None:
    status, body, headers = plant.request("POST", path_of("ShotBlast", sensor="vib1"), b"")
    assert (status, body["error"]) == (405, "method_not_allowed")
    assert {"GET", "HEAD"} <= {word.strip() for word in headers["allow"].split(",")}


def head(daemon: Daemon, path: str, accept: str = "*/*") -> tuple[int, bytes, str]:
    """Status, body and content type."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    try:
        connection.request("HEAD", path, headers={"Accept": accept, "Connection": "close"})
        assert connection.sock is not None
        its = connection.sock.makefile("rb")
        response = connection.getresponse()
        return response.status, response.read() + its.read(), response.headers["content-type"]
    finally:
        connection.close()


def test_head(plant: Daemon) -> None:
    path = path_of("ShotBlast", sensor="vib1", **{"from": DAY}, to=DAY, max_points=100_000)
    assert head(plant, path) == (200, b"", "application/json; charset=utf-8")
    assert head(plant, path, "text/csv") == (200, b"", "text/csv; charset=utf-8")
    assert head(plant, path_of("ShotBlast", sensor="other")) == (404, b"", "application/json; charset=utf-8")


@pytest.mark.parametrize(
    "path",
    [
        path_of("쇼트 블라스트-1", sensor="온도 1", **{"from": DAY}, to=DAY),
        f"/api/v1/machines/{quote('쇼트 블라스트-1')}/samples?sensor={quote('온도 1')}&from={DAY}&to={DAY}",
        f"/api/v1/machines/{quote('쇼트 블라스트-1')}/samples/?sensor={quote('온도')}+1&from={DAY}&to={DAY}",
    ],
)
def test_names_of_any_script_and_with_spaces(plant: Daemon, path: str) -> None:
    status, body, _ = plant.get(path)
    assert status == 200
    assert (body["machine"], body["sensor"]) == ("쇼트 블라스트-1", "온도 1")
    assert [(point["min"], point["count"]) for point in body["points"]] == [(-2.5, 2)]


def test_names_with_every_mark(plant: Daemon) -> None:
    assert [point["min"] for point in asked(plant, "M:1.a", sensor="v.x:y_z-1", from_=DAY, to=DAY)] == [1.0]


@pytest.mark.parametrize(
    ("given", "begin", "end"),
    [
        (f"from={DAY}&to={DAY}", f"{DAY}T00:00:00+09:00", "2025-12-19T00:00:00+09:00"),
        ("from=20251218&to=20251218", f"{DAY}T00:00:00+09:00", "2025-12-19T00:00:00+09:00"),
        (f"from={DAY}T10:00&to={DAY}T10:30:15", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:15+09:00"),
        (f"from={DAY}%2010:00:00&to={DAY}+10:30:15", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:15+09:00"),
        (f"from={DAY}T01:00:00Z&to={DAY}T01:10:00.500Z", f"{DAY}T10:00:00+09:00", f"{DAY}T10:10:00+09:00"),
        (
            f"from={DAY}T02:00:00%2B01:00&to={DAY}T02:30:00%2B01:00",
            f"{DAY}T10:00:00+09:00",
            f"{DAY}T10:30:00+09:00",
        ),
        (f"from={DAY}T10:00:00+09:00&to={DAY}T10:30:00+09:00", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:00+09:00"),
        (f"from={DAY}T10:00:00.250+0900&to={DAY}T10:30+0900", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:00+09:00"),
        (f"from={DAY}+10:00:00+09:00&to={DAY}+10:30:00+09:00", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:00+09:00"),
        (f"from={DAY}T10:00:00+09&to={DAY}T10:30:00+09", f"{DAY}T10:00:00+09:00", f"{DAY}T10:30:00+09:00"),
        (f"from={DAY}T10:00&to={DAY}", f"{DAY}T10:00:00+09:00", "2025-12-19T00:00:00+09:00"),
        (f"to={DAY}T10:30:00", f"{DAY}T09:30:00+09:00", f"{DAY}T10:30:00+09:00"),
        ("from=2025-12-01&to=2025-12-31", "2025-12-01T00:00:00+09:00", "2026-01-01T00:00:00+09:00"),
        (f"from=x&from={DAY}&to={DAY}", f"{DAY}T00:00:00+09:00", "2025-12-19T00:00:00+09:00"),
    ],
)
def test_times_of_every_form(plant: Daemon, given: str, begin: str, end: str) -> None:
    status, body, _ = plant.get(f"/api/v1/machines/ShotBlast/samples?sensor=vib1&{given}")
    assert status == 200, body
    assert (body["from"], body["to"]) == (begin, end)
    first, last = (datetime.fromisoformat(text) for text in (begin, end))
    its = datetime(2025, 12, 18, 10, tzinfo=SEOUL), datetime(2025, 12, 18, 11, tzinfo=SEOUL)
    seconds = (min(last, its[1]) - max(first, its[0])).total_seconds()
    # Parts of a second are not in these two.
    assert abs(sum(point["count"] for point in body["points"]) - 3 * seconds) <= 2


def test_a_thousand_points_unless_it_says_otherwise(plant: Daemon) -> None:
    assert len(asked(plant, "ShotBlast", sensor="vib1", from_=f"{DAY}T10:00", to=f"{DAY}T11:00")) == 1000
    assert len(asked(plant, "ShotBlast", sensor="vib1", from_=f"{DAY}T10:00", to=f"{DAY}T11:00", max_points="")) == 1000
    assert len(asked(plant, "ShotBlast", sensor="vib1", from_=f"{DAY}T10:00", to=f"{DAY}T11:00", max_points=1)) == 1
    points = asked(plant, "ShotBlast", sensor="vib1", from_=f"{DAY}T10:00", to=f"{DAY}T11:00", max_points=100_000)
    assert [point["count"] for point in points] == [1] * 10_800


def test_what_came_a_moment_ago_is_in_the_answer(plant: Daemon) -> None:
    events = plant.subscribe("machine/Now/samples")
    machine = plant.daq(frame("name", "Now"))
    sent = 0
    for number in range(3):
        machine.sendall(update("v", "VIB", *[number + k / 30 for k in range(30)]))
        events.events(1, "samples")
        sent += 30
        before = datetime.now(SEOUL)
        status, body, _ = plant.get(path_of("Now", sensor="v"))
        after = datetime.now(SEOUL)
        assert status == 200
        begin, end = (datetime.fromisoformat(body[name]) for name in ("from", "to"))
        assert end - begin == timedelta(hours=1)
        assert before - timedelta(seconds=1) <= end <= after + timedelta(seconds=1)
        assert sum(point["count"] for point in body["points"]) == sent
        assert max(point["max"] for point in body["points"]) == number + 29 / 30


def test_compressed_files_say_the_same(plant: Daemon) -> None:
    for most in (7, 1000):
        query = {"from_": f"{DAY}T10:10", "to": f"{DAY}T10:50", "max_points": most}
        assert asked(plant, "ShotBlast", sensor="packed", **query) == asked(plant, "ShotBlast", sensor="vib1", **query)


def test_a_range_over_several_days(plant: Daemon) -> None:
    points = asked(plant, "Days", sensor="v", from_="2025-12-14", to=DAY, max_points=120)
    assert [point["min"] for point in points] == [number * 100.0 + n for number in range(3) for n in range(24)]
    assert points[0]["time"] == "2025-12-15T00:00:00.000+09:00"
    points = asked(plant, "Days", sensor="v", from_="2025-12-15T22:00", to="2025-12-17T02:00", max_points=1)
    assert [(point["min"], point["max"], point["count"]) for point in points] == [(22.0, 201.0, 28)]


def test_an_hour_that_comes_twice(tmp_path: Path) -> None:
    with running(tmp_path, timezone="Europe/Berlin") as daemon:
        seconds = [f"02:{minute:02}:00" for minute in range(60)]
        lines = ["01:00:00,1.0", *(f"{each},2.0" for each in seconds), *(f"{each},3.0" for each in seconds)]
        write(daemon, "M", "v", "2025-10-26", [*lines, "03:00:00,4.0", "03:30:00,5.0"])

        def found(begin: str, end: str) -> list[tuple[str, float, float, int]]:
            points = asked(daemon, "M", sensor="v", from_=begin, to=end, max_points=1)
            return [(point["time"], point["min"], point["max"], point["count"]) for point in points]

        day = "2025-10-26T"
        assert found(f"{day}02:00:00+02:00", f"{day}02:00:00+01:00") == [(f"{day}02:00:00.000+02:00", 2.0, 2.0, 60)]
        assert found(f"{day}02:00:00+01:00", f"{day}03:00:00+01:00") == [(f"{day}02:00:00.000+01:00", 3.0, 3.0, 60)]
        assert found("2025-10-26", "2025-10-26") == [(f"{day}00:00:00.000+02:00", 1.0, 5.0, 123)]
        # Over the moment at which the clocks go back the wall clock's later time is the earlier one.
        assert found(f"{day}02:30:00+02:00", f"{day}02:10:00+01:00") == [(f"{day}02:30:00.000+02:00", 2.0, 3.0, 40)]


@pytest.mark.parametrize(
    ("end", "begin"),
    [
        ("2025-10-26T02:30:00+01:00", "2025-10-26T02:30:00+02:00"),
        ("2025-10-26T03:10:00+01:00", "2025-10-26T02:10:00+01:00"),
        ("2025-03-30T03:30:00+02:00", "2025-03-30T01:30:00+01:00"),
    ],
)
def test_the_last_hour_is_one_where_the_clocks_are_set(berlin: Daemon, end: str, begin: str) -> None:
    status, body, _ = berlin.get(path_of("M", sensor="v", to=end))
    assert (status, body["from"], body["to"]) == (200, begin, end)


@pytest.fixture(scope="module")
def berlin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("berlin"), timezone="Europe/Berlin") as daemon:
        write(daemon, "M", "v", "2025-10-25", ["10:00:00,1.0"])
        yield daemon


# -- clients that read slowly, and that leave


class Reader:
    """A client that reads as much as it is told to."""

    def __init__(self, daemon: Daemon, path: str, *headers: str, version: str = "1.1") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", daemon.port))
        head = [f"GET {path} HTTP/{version}", "Host: plant", "Connection: close", *headers, "", ""]
        self.socket.sendall("\r\n".join(head).encode())
        self.head = b""

    def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self.head:
            self.head += self.socket.recv(1)
        return self.head

    def rest(self) -> tuple[bytes, bool]:
        """What else comes, and whether the connection was cut."""
        found = bytearray()
        try:
            while piece := self.socket.recv(65536):
                found += piece
        except ConnectionResetError:
            return bytes(found), True
        return bytes(found), False

    def reset(self) -> None:
        """Leave without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def unchunked(content: bytes) -> bytes:
    """A chunked body, which must be whole."""
    found = bytearray()
    position = 0
    while True:
        end = content.index(b"\r\n", position)
        size = int(content[position:end], 16)
        if not size:
            assert content[end:] == b"\r\n\r\n"
            return bytes(found)
        found += content[end + 2 : end + 2 + size]
        assert content[end + 2 + size : end + 4 + size] == b"\r\n"
        position = end + 4 + size


def rest_until_still(daemon: Daemon) -> None:
    """Wait until the daemon reads no raw file and writes to nobody, and not because others have the processors."""
    seen: list[tuple[str, bool]] = []

    def still() -> bool:
        process = Path(f"/proc/{daemon.process.pid}")
        states = [path.read_text("ascii").rpartition(")")[2].split()[0] for path in process.glob("task/*/stat")]
        seen.append(((process / "io").read_text("ascii"), set(states) == {"S"}))
        return len(seen) > 10 and len(set(seen[-10:])) == 1 and seen[-1][1]

    until(still, "the daemon is still")


def open_files(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_slow_readers_cost_no_memory_and_hold_up_nobody(plant: Daemon) -> None:
    status, body, headers = plant.get(BIG_PATH)
    points = body["points"]
    assert status == 200
    assert "content-length" not in headers
    assert 99_000 < len(points) <= 100_000
    assert sum(point["count"] for point in points) == 3 * PER_DAY
    assert all(earlier["time"] < later["time"] for earlier, later in pairwise(points))
    before = plant.resident_mib()
    readers = [Reader(plant, BIG_PATH) for _ in range(4)]
    for reader in readers:
        assert reader.read_head().startswith(b"HTTP/1.1 200 ")
    rest_until_still(plant)
    # The answers as a whole are 40 MB.
    assert plant.resident_mib() < before + 20
    assert plant.get("/healthz")[0] == 200
    assert len(asked(plant, "ShotBlast", sensor="packed", from_=DAY, to=DAY)) > 10
    assert plant.get(f"/stat/hour?machine=M&start={DAY}&end={DAY}")[:2] == (200, [])
    slowest, *others = readers
    for reader in others:
        reader.reset()
    for _ in range(100):
        slowest.head += slowest.socket.recv(100)
    content, cut = slowest.rest()
    assert not cut
    assert json.loads(unchunked((slowest.head + content).partition(b"\r\n\r\n")[2])) == body
    assert plant.resident_mib() < before + 20
    slowest.socket.close()


def test_more_answers_at_once_than_are_allowed(plant: Daemon) -> None:
    # A megabyte is more than buffers between them hold, and each takes a twelfth of what the three days take.
    path = path_of("Big", sensor="v", **{"from": BIG[1]}, to=f"{BIG[1]}T06:00:00", max_points=100_000)
    readers = [Reader(plant, path) for _ in range(32)]
    try:
        for reader in readers:
            assert reader.read_head().startswith(b"HTTP/1.1 200 ")
        status, body, headers = plant.get(path)
        assert (status, body["error"]) == (503, "busy")
        assert headers["retry-after"]
    finally:
        for reader in readers:
            reader.reset()
    small = path_of("M:1.a", sensor="v.x:y_z-1", **{"from": DAY}, to=DAY)
    until(lambda: plant.get(small)[0] == 200, "there is room again")


def test_clients_that_leave_cost_nothing(plant: Daemon) -> None:
    before, tracebacks = open_files(plant), plant.log().count("Traceback")
    for number in range(8):
        reader = Reader(plant, BIG_PATH, *(["Accept: text/csv"] if number % 2 else []))
        if number % 4:
            reader.read_head()
        if number % 3:
            reader.reset()
        else:
            reader.socket.close()
    until(lambda: open_files(plant) <= before, "the files are closed")
    until(lambda: plant.metric("cynow_connections", kind="http") == 1, "nobody is connected")
    assert plant.get("/healthz")[0] == 200
    assert plant.log().count("Traceback") == tracebacks


def test_a_client_that_leaves_while_a_file_is_read_leaves_it_closed(plant: Daemon) -> None:
    def files_of_big() -> list[str]:
        folder = Path(f"/proc/{plant.process.pid}/fd")
        links = []
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(folder / name))
        return [link for link in links if "/data/Big/" in link]

    def leaves() -> bool:
        """Ask, and leave while a file is open; whether it was seen before the answer came."""
        reader = Reader(plant, path_of("Big", sensor="v", **{"from": BIG[0]}, to=BIG[-1], max_points=1))
        try:
            while not files_of_big():
                if select.select([reader.socket], [], [], 0.01)[0]:
                    return False
            return True
        finally:
            reader.reset()

    for _ in range(4):
        until(leaves, "a client leaves while a file is read")
    until(lambda: not files_of_big(), "it is closed")


def test_the_end_of_the_daemon_waits_for_no_slow_reader(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        write(daemon, "Big", "v", DAY, (f"{clock(n)},{n / 7!r}" for n in range(86_400)))
        reader = Reader(daemon, path_of("Big", sensor="v", **{"from": DAY}, to=DAY, max_points=86_400))
        reader.read_head()
        rest_until_still(daemon)
        assert daemon.terminate() == 0
        assert "Traceback" not in daemon.log()
        reader.socket.close()


# -- compressed files that are broken


@pytest.fixture(scope="module")
def broken(plant: Daemon) -> dict[str, bytes]:
    """By sensor, compressed files that break at different places."""
    random = Random(5)
    lines = [f"{clock(n)},{random.gauss(0, 1)!r}" for n in range(70_000)]
    write(plant, "Broken", "whole", DAY, lines, compressed=True)
    folder = plant.folder / "data" / "Broken"
    whole = (folder / "20251218_whole.csv.gz").read_bytes()
    name = DAY.replace("-", "")
    contents = {
        "torn": whole[: len(whole) * 9 // 10],
        "wrong": whole[: len(whole) * 9 // 10] + bytes(1000) + whole[len(whole) * 9 // 10 + 1000 :],
        "sum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
        "early": whole[:1000],
        "rubbish": b"no gzip at all" * 100,
        "empty": b"",
    }
    for sensor, content in contents.items():
        (folder / f"{name}_{sensor}.csv.gz").write_bytes(content)
    return contents


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
@pytest.mark.parametrize("sensor", ["torn", "wrong", "sum"])
def test_a_file_that_breaks_in_the_middle_gives_no_whole_answer(
    plant: Daemon, broken: Mapping[str, bytes], sensor: str, accept: str
) -> None:
    path = path_of("Broken", sensor=sensor, **{"from": DAY}, to=DAY, max_points=10_000)
    tracebacks = plant.log().count("Traceback")
    connection = http.client.HTTPConnection("127.0.0.1", plant.port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Accept": accept})
    response = connection.getresponse()
    assert response.status == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()
    connection.close()
    # The end of the connection says all there is to say in HTTP/1.0.
    reader = Reader(plant, path, f"Accept: {accept}", version="1.0")
    assert reader.read_head().split()[1] == b"200"
    assert reader.rest()[1], "the connection was not cut"
    reader.socket.close()
    assert_says_which(plant, sensor, tracebacks)
    assert plant.get("/healthz")[0] == 200


def assert_says_which(plant: Daemon, sensor: str, tracebacks: int) -> None:
    """The log has a line for each of two answers, which names the file, and nothing else about it.

    :param tracebacks: so many were there before.
    """
    name = f"{DAY.replace('-', '')}_{sensor}.csv.gz"
    said = [line for line in plant.log().splitlines() if name in line]
    assert said
    assert len(said) % 2 == 0
    assert all("cannot read a raw file: " in line and f"/data/Broken/{name}: " in line for line in said)
    assert plant.log().count("Traceback") == tracebacks


@pytest.mark.parametrize("sensor", ["early", "rubbish"])
def test_a_file_that_breaks_at_once_is_an_error(plant: Daemon, broken: Mapping[str, bytes], sensor: str) -> None:
    tracebacks = plant.log().count("Traceback")
    for accept in ("application/json", "text/csv"):
        path = path_of("Broken", sensor=sensor, **{"from": DAY}, to=DAY)
        status, body, headers = plant.get(path, Accept=accept)
        assert (status, body) == (
            500,
            {"ok": False, "error": "unreadable_file", "message": "원시 데이터 파일을 읽을 수 없습니다"},
        )
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert "content-disposition" not in headers
    assert_says_which(plant, sensor, tracebacks)


# -- /stat


#: Threads that read the store.
READERS = 3

HOURS = {"a": 10_000, "b": 15_003, "c": 1}

DETAIL = ["name", "time", "data", "count", "min", "min_time", "max", "max_time", "rms", "std", "coverage", "start"]


def make_database(folder: Path) -> None:
    """25,000 hours of three sensors in the gateway's own tables, and one sensor of the old server."""
    folder.mkdir()
    random = Random(7)
    columns = {"start": "INTEGER", **BUCKET_COLUMNS}
    with sqlite3.connect(folder / "M.db") as connection:
        connection.execute(
            "CREATE TABLE anomaly (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
        )
        for sensor, count in HOURS.items():
            for period, step in (("hour", 1), ("day", 24), ("month", 24 * 31), ("year", 24 * 366)):
                name = f"{sensor}_{period}_avg"
                further = {**columns, "raw_end": "INTEGER"} if period == "hour" else columns
                text = ", ".join(f"{column} {kind}" for column, kind in further.items())
                connection.execute(
                    f"CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL, {text})"
                )
                names = ["time", "data", *columns]
                connection.executemany(
                    f"INSERT INTO {name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                    [row(random, number * step, period) for number in range(-(-count // step))],
                )
                connection.execute(f"CREATE INDEX {name}_time ON {name} (time)")
        # Written in another order than that of their times, twice the same time, one that is no number.
        connection.execute("INSERT INTO b_hour_avg (time, data) VALUES ('2020-06-01 10:00:00', 5.5)")
        connection.execute("INSERT INTO b_hour_avg (time, data) VALUES ('2019-06-01 10:00:00.250000', 6.5)")
        connection.execute("INSERT INTO b_hour_avg (time, data) VALUES ('2020-06-02 10:00:00', NULL)")
        connection.execute(
            "CREATE TABLE old_hour_avg (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
        )
        connection.execute("INSERT INTO old_hour_avg (time, data) VALUES ('2020-01-01 10:00:00.123456', 0.5)")
        connection.executemany(
            "INSERT INTO anomaly (time, threshold, score) VALUES (?, 1.0, ?)",
            [(f"2020-01-01 10:{n // 60:02}:{n % 60:02}.{n:06}", 1 + n / 7) for n in range(500)],
        )
    connection.close()


def row(random: Random, hour: int, period: str) -> tuple[Any, ...]:
    start = datetime(2020, 1, 1, tzinfo=SEOUL) + timedelta(hours=hour)
    start = {
        "hour": start,
        "day": start.replace(hour=0),
        "month": start.replace(day=1, hour=0),
        "year": start.replace(month=1, day=1, hour=0),
    }[period]
    time = f"{start:%Y-%m-%d %H:%M:%S}"
    values = [random.gauss(3, 1) for _ in range(5)]
    squares = math.fsum(value * value for value in values)
    bucket = (5, 5, math.fsum(values), 0.0, math.fsum(map(abs, values)), 0.0, squares, 0.0)
    return time, math.fsum(values) / 5, int(start.timestamp()), *bucket, min(values), time, max(values), time


@pytest.fixture(scope="module")
def statistician(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("stat")
    make_database(folder / "db")
    with running(folder, timezone="Asia/Seoul") as daemon:
        yield daemon


def query(daemon: Daemon, statement: str, *arguments: Any) -> list[sqlite3.Row]:
    connection = sqlite3.connect(daemon.folder / "db" / "M.db")
    connection.row_factory = sqlite3.Row
    try:
        return connection.execute(statement, arguments).fetchall()
    finally:
        connection.close()


def has_start(daemon: Daemon, table: str) -> bool:
    return any(column["name"] == "start" for column in query(daemon, f"PRAGMA table_info({table})"))


def rows_of(daemon: Daemon, period: str, start: str, end: str) -> list[tuple[str, sqlite3.Row]]:
    """What ``/stat/<period>`` must say, in its order."""
    # Those of the old server's sensor too, whose longer periods the start has ended.
    sensors = [
        found["name"].removesuffix(f"_{period}_avg")
        for found in query(daemon, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        if found["name"].endswith(f"_{period}_avg")
    ]
    return [
        (f"{sensor}_{period}_avg", found)
        for sensor in sensors
        for found in query(
            daemon,
            f"SELECT * FROM {sensor}_{period}_avg WHERE date(time) BETWEEN ? AND ? AND data IS NOT NULL"
            # Of two rows of one time the old server's, which does not say when it began, is the first.
            + (" ORDER BY time, start, id" if has_start(daemon, f"{sensor}_{period}_avg") else " ORDER BY time, id"),
            start,
            end,
        )
    ]


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", "2019-01-01", "2030-12-31"),
        ("hour", "2020-02-01", "2020-08-31"),
        ("hour", "2020-01-01", "2020-01-01"),
        ("day", "2000-01-01", "2099-12-31"),
        ("month", "2000-01-01", "2099-12-31"),
        ("year", "2000-01-01", "2099-12-31"),
    ],
)
def test_pages_say_what_the_tables_hold(statistician: Daemon, period: str, start: str, end: str) -> None:
    path = f"/stat/{period}?machine=M&start={start}&end={end}"
    rows = rows_of(statistician, period, start, end)
    assert rows
    status, items, headers = statistician.get(path)
    assert status == 200
    assert items == [{"name": name, "time": found["time"][:19], "data": found["data"]} for name, found in rows]
    # An answer of one page says how long it is.
    assert ("content-length" in headers) == (len(rows) < 1_000)
    status, details, _ = statistician.get(f"{path}&detail=1")
    assert status == 200
    assert [{name: item[name] for name in ("name", "time", "data")} for item in details] == items
    for item, (_, found) in zip(details, rows, strict=True):
        check_detail(item, found, period)
    for address, expected in ((path, items), (f"{path}&detail=true", details)):
        status, content, headers = statistician.get(address, Accept="text/csv")
        assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
        assert headers["content-disposition"] == f'attachment; filename="{period}.csv"'
        header, *lines = table(content)
        assert header == (DETAIL if "detail" in address else DETAIL[:3])
        assert lines == [[as_text(item[name]) for name in header] for item in expected]


def check_detail(item: Mapping[str, Any], found: sqlite3.Row, period: str) -> None:
    assert list(item) == DETAIL
    if "count" not in found.keys() or found["count"] is None:  # noqa: SIM118 - a Row's "in" looks at its values
        assert [item[name] for name in DETAIL[3:-1]] == [None] * 8
        return
    for name in ("count", "min", "min_time", "max", "max_time"):
        assert item[name] == found[name]
    count = found["count"]
    assert math.isclose(item["rms"], math.sqrt(found["squares"] / count), rel_tol=1e-12)
    variance = found["squares"] / count - (found["total"] / count) ** 2
    assert math.isclose(item["std"], math.sqrt(variance), rel_tol=1e-6)
    start = datetime.fromisoformat(found["time"])
    days = {"day": 1, "month": 32, "year": 366}.get(period, 0)
    end = start + (timedelta(days=days) if days else timedelta(hours=1))
    end = end.replace(day=1) if period == "month" else end.replace(month=1, day=1) if period == "year" else end
    assert math.isclose(item["coverage"], found["minutes"] * 60 / (end - start).total_seconds())


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_anomalies_as_csv(statistician: Daemon, accept: str) -> None:
    rows = query(statistician, "SELECT time, score, threshold FROM anomaly ORDER BY time")
    expected = [{"name": "M", **dict(found)} for found in rows]
    for path, items in (
        ("/stat/anomaly?machine=M&start=2020-01-01&end=2020-01-01", expected),
        ("/stat/anomaly/all?start=2020-01-01&end=2020-01-01", expected[::-1]),
    ):
        status, body, headers = statistician.get(path, Accept=accept)
        assert status == 200
        if accept == "application/json":
            assert body == items
        else:
            assert headers["content-type"] == "text/csv; charset=utf-8"
            header, *lines = table(body)
            assert header == ["name", "time", "score", "threshold"]
            assert lines == [[as_text(item[name]) for name in header] for item in items]


def test_pages_of_anomalies(statistician: Daemon) -> None:
    """Of three machines, many of one time, in tables as the old server made them."""
    random = Random(8)
    expected: list[dict[str, Any]] = []
    for name in ("Anomalous", "B", "쇼트"):
        rows = [(f"2021-05-05 10:00:{random.randrange(20):02}.000000", 1.0, n + 2.0) for n in range(12_000)]
        with contextlib.closing(sqlite3.connect(statistician.folder / "db" / f"{name}.db")) as connection, connection:
            connection.execute(
                "CREATE TABLE anomaly"
                " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
            )
            connection.executemany("INSERT INTO anomaly (time, threshold, score) VALUES (?, ?, ?)", rows)
        expected += [{"name": name, "time": time, "score": score, "threshold": 1.0} for time, _, score in rows]
    # Of one time by machine, and the last of it first.
    by_machine = sorted(expected, key=lambda item: (item["name"], -item["score"]))
    newest = sorted(by_machine, key=lambda item: item["time"], reverse=True)
    of_one = sorted((item for item in expected if item["name"] == "B"), key=lambda item: item["time"])
    days = "start=2021-05-05&end=2021-05-05"
    for path, items in ((f"/stat/anomaly/all?{days}", newest), (f"/stat/anomaly?machine=B&{days}", of_one)):
        status, body, headers = statistician.get(path)
        assert (status, "content-length" in headers) == (200, False)
        assert_same(body, items)
        status, content, headers = statistician.get(path, Accept="text/csv")
        assert (status, headers["content-disposition"]) == (200, 'attachment; filename="anomaly.csv"')
        header, *lines = table(content)
        assert header == ["name", "time", "score", "threshold"]
        assert_same(lines, [[as_text(item[name]) for name in header] for item in items])


@pytest.mark.parametrize("period", ["hour", "day", "month", "year"])
def test_nothing_as_csv_is_a_header(statistician: Daemon, period: str) -> None:
    path = f"/stat/{period}?machine=Nobody&start={DAY}&end={DAY}"
    assert statistician.get(path, Accept="text/csv")[:2] == (200, b"name,time,data\r\n")
    assert statistician.get(f"{path}&detail=1", Accept="text/csv")[1].decode() == ",".join(DETAIL) + "\r\n"
    assert statistician.get(f"{path}&detail=1")[:2] == (200, [])
    everything = f"/stat/anomaly/all?start={DAY}&end={DAY}"
    assert statistician.get(everything, Accept="text/csv")[:2] == (200, b"name,time,score,threshold\r\n")


@pytest.mark.parametrize(("flag", "has_detail"), [("0", False), ("false", False), ("", False), ("yes", True)])
def test_words_for_detail(statistician: Daemon, flag: str, has_detail: bool) -> None:
    items = statistician.get(f"/stat/year?machine=M&start=2020-01-01&end=2020-12-31&detail={flag}")[1]
    assert list(items[0]) == (DETAIL if has_detail else DETAIL[:3])


def test_a_refusal_is_json_for_who_wants_csv_too(statistician: Daemon) -> None:
    status, body, headers = statistician.get("/stat/hour?machine=M&detail=x", Accept="text/csv")
    assert (status, headers["content-type"]) == (422, "application/json; charset=utf-8")
    assert [(item["type"], item["loc"]) for item in body["detail"]] == [
        ("missing", ["query", "start"]),
        ("missing", ["query", "end"]),
        ("bool_parsing", ["query", "detail"]),
    ]


def test_head_of_pages(statistician: Daemon) -> None:
    path = "/stat/hour?machine=M&start=2019-01-01&end=2030-12-31"
    assert head(statistician, path) == (200, b"", "application/json; charset=utf-8")
    assert head(statistician, path, "text/csv") == (200, b"", "text/csv; charset=utf-8")


def test_clients_that_leave_between_pages_cost_nothing(statistician: Daemon) -> None:
    before = open_files(statistician)
    path = "/stat/hour?machine=M&start=2019-01-01&end=2030-12-31&detail=1"
    for number in range(6):
        reader = Reader(statistician, path)
        if number % 2:
            reader.read_head()
        reader.reset()
    slow = Reader(statistician, path)
    slow.read_head()
    rest_until_still(statistician)
    assert statistician.get("/healthz")[0] == 200
    content, cut = slow.rest()
    assert not cut
    assert len(json.loads(unchunked(content))) == sum(HOURS.values()) + 3
    slow.socket.close()
    # SQLite keeps a file that a thread has closed for the next that opens it, while the writer has it open. One
    # connection stays open, and has the file's log open too.
    until(lambda: open_files(statistician) <= before + READERS + 1, "the files are closed")
    assert "Traceback" not in statistician.log()
