"""What DAQ programs in the field send, against a real daemon: names, sensors, storms, and what is said of them."""

import contextlib
import http.client
import json
import socket
import sqlite3
import time
import unicodedata
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE, Daemon, running, until
from tests.support.frames import frame

GOOD = {"type": "VIB", "data": [1.0]}
NFD = unicodedata.normalize("NFD", "진동기")


def connect(daemon: Daemon, *frames: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", daemon.daq_port), PATIENCE)
    connection.sendall(b"".join(frames))
    return connection


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


def test_two_programs_of_one_name_that_come_again_at_once_do_not_storm(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        programs = [connect(daemon, frame("name", "Twin")) for _ in range(2)]
        connections = 2
        began = time.monotonic()
        while time.monotonic() - began < 6:
            for number, program in enumerate(programs):
                program.settimeout(0.01)
                try:
                    program.sendall(frame("DataUpdate", {"v": GOOD}))
                    if program.recv(1):
                        continue
                except TimeoutError:
                    continue
                except OSError:
                    pass
                program.close()
                programs[number] = connect(daemon, frame("name", "Twin"))
                connections += 1
        assert connections / (time.monotonic() - began) < 5
        assert connections > 2
        assert daemon.metric("cynow_daq_takeovers_total") >= 2
        assert "machine Twin:" in daemon.log()
        assert "in a row; if two programs send" in daemon.log()
        assert daemon.metric("cynow_daq_samples_total") > 0
        for program in programs:
            program.close()


def test_a_name_that_is_refused_is_held_and_said(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        connection = connect(daemon, frame("name", "Press#1"))
        assert seconds_until_closed(connection) > 0.9
        until(lambda: "machine name 'Press#1': '#' is not allowed" in daemon.log(), "the reason in the log")


def test_a_held_peer_that_goes_frees_its_place_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        for machine in ("Press#1", "Press#1"):
            connection = connect(daemon, frame("name", machine), b"unread" * 100)
            until(lambda: daemon.metric("cynow_daq_refused_connections_total") >= 1, "it is refused")
            began = time.monotonic()
            connection.close()
            until(lambda: daemon.metric('cynow_connections{kind="daq"}') == 0, "it is gone")
            assert time.monotonic() - began < PATIENCE


def test_a_daemon_with_held_connections_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        # One that is not kept would be closed, and could be gone before the next one takes over.
        connections = [connect(daemon, frame("name", "Twin")) for _ in range(6)]
        until(lambda: daemon.metric("cynow_daq_takeovers_total") == 5, "all took over")
        began = time.monotonic()
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 5
        for connection in connections:
            connection.close()


def test_one_bad_sensor_is_left_out_and_said_in_health(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        data = {"vib1": GOOD, "온도 #2": {"type": "TEMP", "data": [20.0]}}
        connection = connect(daemon, frame("name", "M"), frame("DataUpdate", data))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 1, "the good one")
        assert daemon.metric("cynow_daq_left_out_sensors_total") == 1
        health = daemon.get("/healthz")[1]
        assert not health["ok"]
        assert "machine M: samples of sensor '온도 #2' are left out" in "".join(health["problems"])
        assert "sensor '온도 #2' is left out: its name is not allowed: '#' is not allowed" in daemon.log()
        connection.close()


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", lambda d: f"this is an HTTP request; HTTP is served on port {d.port}"),
        (b"ST,GS,+00053.26kg\r\n", lambda d: f"this is a line of a scale: its port is {d.scale_port}"),
    ],
)
def test_what_is_no_frame_is_told_where_it_belongs(
    tmp_path: Path, stream: bytes, words: Callable[[Daemon], str]
) -> None:
    with running(tmp_path) as daemon:
        seconds_until_closed(connect(daemon, stream))
        until(lambda: words(daemon) in daemon.log(), "the words in the log")


def test_new_sensors_make_no_tables_and_their_machine_is_listed(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        sensors = {f"s{number}": GOOD for number in range(900)}
        connection = connect(daemon, frame("name", "M"), frame("DataUpdate", sensors))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 900, "the samples")
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["M"]}, "the machine")
        # Not when nothing waits for the store: that may be so between two groups of them.
        until(lambda: kept_types(tmp_path) == 900, "the types")
        connection.close()
        with sqlite3.connect(tmp_path / "db" / "M.db") as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables <= {"anomaly", "sqlite_sequence"}


def kept_types(folder: Path) -> int:
    """How many sensors have their types in the store."""
    with contextlib.closing(sqlite3.connect(folder / "db" / "cynow-gateway.sqlite3")) as database:
        ((count,),) = database.execute("SELECT count(*) FROM sensor")
    return int(count)


def test_new_sensors_beyond_the_bound_are_left_out_and_known_ones_have_their_place_after_a_start(
    tmp_path: Path,
) -> None:
    daemon = Daemon(tmp_path, daq={"max_new_sensors_per_minute": 3, "max_machines": 1})
    sensors = {f"s{number}": GOOD for number in range(5)}
    try:
        daemon.start()
        connect(daemon, frame("name", "M"), frame("DataUpdate", sensors))
        until(lambda: daemon.metric("cynow_daq_left_out_sensors_total") == 2, "two are left out")
        assert daemon.metric("cynow_daq_samples_total") == 3
        assert "daq.max_new_sensors_per_minute (3)" in "".join(daemon.get("/healthz")[1]["problems"])
        until(lambda: len(list((tmp_path / "data" / "M").glob("*.csv"))) == 3, "the raw files")
        until(lambda: daemon.metric("cynow_store_waiting") == 0, "the types")
        daemon.terminate()
        daemon.start()
        # Another has no place, for the one machine that may be known is known already.
        seconds_until_closed(connect(daemon, frame("name", "N")))
        assert "machine 'N' was refused" in "".join(daemon.get("/healthz")[1]["problems"])
        connect(daemon, frame("name", "M"), frame("DataUpdate", sensors))
        # Three are known, and of new ones there may be three.
        until(lambda: daemon.metric("cynow_daq_samples_total") == 5, "all five")
    finally:
        daemon.end()


def test_a_machine_whose_name_is_decomposed_is_the_same_everywhere(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        connection = connect(daemon, frame("name", NFD), frame("DataUpdate", {NFD: GOOD}))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 1, "the sample")
        until(lambda: daemon.get("/stat/machineList")[1] == {"machine_list": ["진동기"]}, "the machine")
        assert daemon.get("/sio/machineList")[1] == {"machine_list": ["/진동기"]}
        for form in (NFD, "진동기"):
            name = urllib.parse.quote(form)
            path = f"/api/v1/machines/{name}/samples?sensor={name}"
            assert until(lambda path=path: daemon.get(path), "the samples")[1]["machine"] == "진동기"
            found = daemon.get(f"/stat/hour?machine={name}&start=2025-01-01&end=2025-01-02")
            assert found[:2] == (200, [])
        assert not daemon.get("/healthz")[1]["problems"]
        connection.close()
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["진동기"]


def test_old_files_whose_names_are_decomposed_are_served(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with sqlite3.connect(tmp_path / "db" / f"{NFD}.db") as database:
        for period in ("hour", "day", "month", "year"):
            database.execute(
                f'CREATE TABLE "{NFD}_{period}_avg" (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)'
            )
        database.execute(f"INSERT INTO \"{NFD}_hour_avg\" (time, data) VALUES ('2025-12-18 10:00:00', 1.5)")
    with running(tmp_path) as daemon:
        assert daemon.get("/stat/machineList")[1] == {"machine_list": ["진동기"]}
        for form in (NFD, "진동기"):
            path = f"/stat/hour?machine={urllib.parse.quote(form)}&start=2025-12-18&end=2025-12-18"
            assert daemon.get(path)[1] == [{"name": "진동기_hour_avg", "time": "2025-12-18 10:00:00", "data": 1.5}]


def test_a_json_frame_of_16_mib_lets_others_have_their_turn(tmp_path: Path) -> None:
    head = b'["DataUpdate",{"s":{"type":"VIB","data":['
    body = b"1," * ((16 * 2**20 - 1000) // 2)
    with running(tmp_path) as daemon:
        connection = connect(daemon, b'["name","M"]\0')
        client = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        waits = []
        connection.setblocking(False)
        stream = memoryview(head + body + b"1]}}]\0")
        while stream or daemon.metric("cynow_daq_samples_total") == 0:
            if stream:
                with contextlib.suppress(BlockingIOError):
                    stream = stream[connection.send(stream) :]
            began = time.monotonic()
            client.request("GET", "/healthz")
            json.loads(client.getresponse().read())
            waits.append(time.monotonic() - began)
        # It was one turn that took most of the time; how long that is depends on the machine and on what else runs.
        assert max(waits) < sum(waits) / 3
        connection.close()
