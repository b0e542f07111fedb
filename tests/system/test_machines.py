"""Machines as DAQ programs and the old server's clients see them, on a real daemon."""

import json
import pickle
import re
import socket
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running, until
from tests.support.frames import fault, frame, update

#: Long enough for a test that runs over midnight.
EVER = "start=2000-01-01&end=2099-12-31"

CASES = Path(__file__).parent.parent / "cases" / "daq"


def closed(connection: socket.socket) -> bool:
    """Whether the gateway has closed a connection; waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def samples_of(daemon: Daemon, machine: str, sensor: str) -> list[float]:
    found = list((daemon.folder / "data" / machine).glob(f"*_{sensor}.csv"))
    lines = [line for path in found for line in path.read_text("ascii").splitlines()[1:]]
    return [float(line.partition(",")[2]) for line in lines]


def test_a_fresh_start_knows_no_machine(daemon: Daemon) -> None:
    assert daemon.get("/sio/machineList")[:2] == (200, {"machine_list": []})
    assert daemon.get("/stat/machineList")[:2] == (200, {"machine_list": []})
    assert daemon.get(f"/stat/anomaly/all?{EVER}")[:2] == (200, [])


def test_a_machine_comes_sends_and_goes(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    events = daemon.subscribe("machine/ShotBlast", "machine/ShotBlast/samples")
    connection = daemon.daq(frame("name", "ShotBlast"), update("vib1", "VIB", 0.5, -1.5))
    connected, batch = events.events(2, "connected", "samples")
    assert (connected["topic"], connected["data"]) == ("machine/ShotBlast", {"machine": "ShotBlast"})
    assert batch["topic"] == "machine/ShotBlast/samples"
    assert batch["data"] == {"vib1": {"type": "VIB", "data": [0.5, -1.5]}}
    assert "/ShotBlast" in daemon.get("/sio/machineList")[1]["machine_list"]
    until(lambda: "ShotBlast" in daemon.get("/stat/machineList")[1]["machine_list"], "stored data")
    connection.close()
    assert events.events(1)[0]["event"] == "disconnected"
    assert "/ShotBlast" not in daemon.get("/sio/machineList")[1]["machine_list"]
    assert "ShotBlast" in daemon.get("/stat/machineList")[1]["machine_list"]


def test_raw_csv(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    values = [0.1, -2.5e-7, 1e16, 1.7976931348623157e308, 5e-324, 3, float("nan"), float("-inf")]
    daemon.daq(frame("name", "Raw"), update("온도 1", "TEMP", *values))
    folder = daemon.folder / "data" / "Raw"
    path = until(lambda: next(iter(folder.glob("*_온도 1.csv")), None), "the file")
    until(lambda: len(path.read_text("ascii").splitlines()) == 1 + len(values), "the lines")
    header, *lines = path.read_text("ascii").splitlines()
    assert header == "time,data"
    assert re.fullmatch(r"\d{8}_온도 1\.csv", path.name)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d,\S+", line) for line in lines)
    read = [float(line.partition(",")[2]) for line in lines]
    assert struct.pack("8d", *read) == struct.pack("8d", *map(float, values))
    assert daemon.metric("cynow_daq_nonfinite_samples_total") >= 2


@pytest.mark.parametrize("case", ["protocol0-legacy", "separator-inside-protocol4-nul", "korean-names", "json"])
def test_wire_cases_reach_the_files(shared_daemon: Daemon, case: str) -> None:
    """What the frame reader's unit tests show for every case holds through sockets too."""
    messages = json.loads((CASES / "index.json").read_text("utf-8"))[case]["messages"]
    machine = messages[0][1]
    expected: dict[str, list[float]] = {}
    for event, data in messages:
        if event == "DataUpdate":
            for sensor, content in data.items():
                expected.setdefault(sensor, []).extend(content["data"])
    with shared_daemon.daq((CASES / f"{case}.bin").read_bytes()):
        for sensor, samples in expected.items():
            until(lambda s=sensor, x=samples: samples_of(shared_daemon, machine, s)[-len(x) :] == x, f"{sensor}'s file")


@pytest.mark.parametrize("case", sorted(path.stem for path in CASES.glob("hostile-*.bin")))
def test_hostile_frames_close_their_connection_only(shared_daemon: Daemon, case: str) -> None:
    daemon = shared_daemon
    bystander = daemon.daq(frame("name", "Bystander"))
    hostile = daemon.daq((CASES / f"{case}.bin").read_bytes())
    port = hostile.getsockname()[1]
    assert closed(hostile)
    events = daemon.subscribe("machine/Bystander/samples")
    bystander.sendall(update("vib1", "VIB", 1.0))
    events.events(1, "samples")
    assert daemon.resident_mib() < 150
    # Each is logged, until there are too many of a peer.
    assert f"127.0.0.1:{port}" in daemon.log() or daemon.metric("cynow_log_suppressed_total") > 0
    bystander.close()


def test_no_pickle_is_executed(shared_daemon: Daemon) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(shared_daemon.folder / "PWNED"), "w")

    assert closed(shared_daemon.daq(frame("name", "Bomb"), pickle.dumps(("DataUpdate", Bomb())) + b"\0"))
    assert not (shared_daemon.folder / "PWNED").exists()


@pytest.mark.parametrize(
    "first",
    [
        update("vib1", "VIB", 1.0),
        frame("name", "../../etc"),
        frame("name", ".."),
        frame("name", ""),
        frame("name", "x" * 65),
        frame("name", "a\0b"),
        frame("name", 5),
        b'{"event": "hello", "data": null}\0',
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_first_frame_that_is_no_name(shared_daemon: Daemon, first: bytes) -> None:
    before = shared_daemon.metric("cynow_daq_refused_connections_total")
    assert closed(shared_daemon.daq(first))
    assert shared_daemon.metric("cynow_daq_refused_connections_total") == before + 1
    assert not (shared_daemon.folder.parent / "etc").exists()


@pytest.mark.parametrize(
    "data",
    [
        frame("Unknown", {}),
        frame("FaultDetect", {"score": 1.0}),
        frame("FaultDetect", {"score": "high", "threshold": 1.0}),
        frame("FaultDetect", {"score": True, "threshold": 1.0}),
        frame("FaultDetect", {"score": float("nan"), "threshold": 1.0}),
        frame("DataUpdate", {"vib1": {"type": "VIB", "data": [1.0, "2.0"]}}),
        frame("DataUpdate", {"vib1": {"data": [1.0]}}),
        frame("DataUpdate", {"vib1": {"type": "VIB", "data": [10**400]}}),
        frame("DataUpdate", {"../vib1": {"type": "VIB", "data": [1.0]}}),
        frame("DataUpdate", {5: {"type": "VIB", "data": [1.0]}}),
        frame("DataUpdate", [1.0, 2.0]),
        frame("name", "Another"),
        pickle.dumps(None) + b"\0",
        b"[]\0",
    ],
)
def test_a_misshapen_frame_is_dropped_and_the_connection_lives_on(shared_daemon: Daemon, data: bytes) -> None:
    events = shared_daemon.subscribe("machine/Dropper", "machine/Dropper/samples")
    before = shared_daemon.metric("cynow_daq_dropped_messages_total")
    connection = shared_daemon.daq(frame("name", "Dropper"), data, update("vib1", "VIB", 7.0))
    names = [event["event"] for event in events.events(2, "connected", "samples", "anomaly")]
    assert names == ["connected", "samples"]
    assert shared_daemon.metric("cynow_daq_dropped_messages_total") == before + 1
    connection.close()
    events.events(1, "disconnected")


def test_a_second_connection_takes_over(shared_daemon: Daemon) -> None:
    events = shared_daemon.subscribe("machine/Twice", "machine/Twice/samples")
    first = shared_daemon.daq(frame("name", "Twice"))
    events.events(1, "connected")
    second = shared_daemon.daq(frame("name", "Twice"), update("vib1", "VIB", 2.0))
    assert closed(first)
    # For whoever watches it was connected all the time.
    assert events.events(1)[0]["event"] == "samples"
    assert shared_daemon.get("/sio/machineList")[1]["machine_list"].count("/Twice") == 1
    second.close()
    assert events.events(1)[0]["event"] == "disconnected"


def test_anomalies(daemon: Daemon) -> None:
    events = daemon.subscribe("machine/*")
    daemon.daq(frame("name", "ShotBlast"), fault(1.5), fault(0.5), fault(1.0), fault(2, 1))
    daemon.daq(frame("name", "Pump"), fault(3.5, 3.0))
    found = events.events(5, "anomaly")
    assert sorted((e["data"]["score"], e["data"]["threshold"]) for e in found) == [
        (0.5, 1.0),
        (1.0, 1.0),
        (1.5, 1.0),
        (2.0, 1.0),
        (3.5, 3.0),
    ]
    until(lambda: len(daemon.get(f"/stat/anomaly/all?{EVER}")[1]) == 3, "three rows: above the threshold only")
    everything = daemon.get(f"/stat/anomaly/all?{EVER}")[1]
    assert [item["time"] for item in everything] == sorted((item["time"] for item in everything), reverse=True)
    of_one = daemon.get(f"/stat/anomaly?machine=ShotBlast&{EVER}")[1]
    assert [(item["name"], item["score"], item["threshold"]) for item in of_one] == [
        ("ShotBlast", 1.5, 1.0),
        ("ShotBlast", 2.0, 1.0),
    ]
    for item in everything:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", item["time"])
    assert daemon.get(f"/stat/anomaly?machine=Nobody&{EVER}")[:2] == (200, [])
    assert daemon.get("/stat/anomaly?machine=ShotBlast&start=2000-01-01&end=2000-12-31")[:2] == (200, [])
    with sqlite3.connect(daemon.folder / "db" / "ShotBlast.db") as connection:
        assert connection.execute("SELECT id, threshold, score FROM anomaly").fetchall() == [
            (1, 1.0, 1.5),
            (2, 1.0, 2.0),
        ]


@pytest.mark.parametrize("machine", ["Nobody", "", ".", "..", "../ShotBlast", "a%00b", "%ff", "x" * 300])
def test_an_impossible_machine_has_no_statistics(shared_daemon: Daemon, machine: str) -> None:
    for question in ("hour", "day", "month", "year", "anomaly"):
        path = f"/stat/{question}?machine={machine}&{EVER}"
        assert shared_daemon.get(path)[:2] == (200, []), path


def test_a_bad_query_gets_the_old_servers_answer(shared_daemon: Daemon) -> None:
    status, body, _ = shared_daemon.get("/stat/hour?machine=M&start=2025-13-01&end=")
    assert status == 422
    start, end = body["detail"]
    assert (start["type"], start["loc"], start["input"]) == (
        "date_from_datetime_parsing",
        ["query", "start"],
        "2025-13-01",
    )
    assert (end["type"], end["loc"]) == ("date_from_datetime_parsing", ["query", "end"])
    status, body, _ = shared_daemon.get("/stat/anomaly/all")
    assert status == 422
    assert [(item["type"], item["loc"]) for item in body["detail"]] == [
        ("missing", ["query", "start"]),
        ("missing", ["query", "end"]),
    ]


def test_an_old_servers_directory_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    with sqlite3.connect(folder / "ShotBlast.db") as connection:
        for sensor in ("shot_blast_vib2", "shot_blast_vib1"):
            for period in ("hour", "day", "month", "year"):
                connection.execute(
                    f"CREATE TABLE {sensor}_{period}_avg"
                    " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
                )
        connection.execute(
            "CREATE TABLE anomaly (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
        )
        for time, data in (("2025-12-18 23:00:00", 0.75), ("2025-12-18 10:00:00", 0.734), ("2025-12-19 00:00:00", 9.0)):
            connection.execute("INSERT INTO shot_blast_vib1_hour_avg (time, data) VALUES (?, ?)", (time, data))
        connection.execute("INSERT INTO shot_blast_vib2_hour_avg (time, data) VALUES ('2025-12-18 10:00:00', 0.5)")
        connection.execute("INSERT INTO shot_blast_vib1_day_avg (time, data) VALUES ('2025-12-18 00:00:00', 0.6)")
        connection.execute("INSERT INTO anomaly (time, threshold, score) VALUES ('2025-12-18 10:11:12.123456', 1, 1.5)")
    connection.close()
    (folder / "Broken.db").write_bytes(b"no database at all" * 100)
    with running(tmp_path) as daemon:
        assert daemon.get("/stat/machineList")[1] == {"machine_list": ["Broken", "ShotBlast"]}
        period = "start=2025-12-18&end=2025-12-18"
        assert daemon.get(f"/stat/hour?machine=ShotBlast&{period}")[1] == [
            {"name": "shot_blast_vib1_hour_avg", "time": "2025-12-18 10:00:00", "data": 0.734},
            {"name": "shot_blast_vib1_hour_avg", "time": "2025-12-18 23:00:00", "data": 0.75},
            {"name": "shot_blast_vib2_hour_avg", "time": "2025-12-18 10:00:00", "data": 0.5},
        ]
        # What it reported stays, also where its own hours say something else; what it never ended is ended now.
        assert daemon.get(f"/stat/day?machine=ShotBlast&{period}")[1] == [
            {"name": "shot_blast_vib1_day_avg", "time": "2025-12-18 00:00:00", "data": 0.6},
            {"name": "shot_blast_vib2_day_avg", "time": "2025-12-18 00:00:00", "data": 0.5},
        ]
        anomaly = {"name": "ShotBlast", "time": "2025-12-18 10:11:12.123456", "score": 1.5, "threshold": 1.0}
        assert daemon.get(f"/stat/anomaly?machine=ShotBlast&{period}")[1] == [anomaly]
        # A file that is no database costs nobody else anything.
        assert daemon.get(f"/stat/anomaly/all?{period}")[1] == [anomaly]
        # It goes on in place.
        daemon.daq(frame("name", "ShotBlast"), fault(2.0))
        until(lambda: len(daemon.get(f"/stat/anomaly?machine=ShotBlast&{EVER}")[1]) == 2, "the new row")


def test_a_frame_of_more_than_the_limit(tmp_path: Path) -> None:
    with running(tmp_path, daq={"max_frame_bytes": 1000}) as daemon:
        big = frame("DataUpdate", {"vib1": {"type": "VIB", "data": [0.5] * 200}}, protocol=2)
        assert closed(daemon.daq(frame("name", "Big"), big))
        assert "a frame of more than 1000 bytes" in daemon.log()


def test_more_machines_and_sensors_than_allowed(tmp_path: Path) -> None:
    with running(tmp_path, daq={"max_machines": 1, "max_sensors": 2}) as daemon:
        events = daemon.subscribe("machine/*/samples")
        connection = daemon.daq(frame("name", "First"), update("a", "VIB", 1.0), update("b", "VIB", 1.0))
        connection.sendall(update("c", "VIB", 1.0) + update("a", "VIB", 2.0))
        assert [list(event["data"]) for event in events.events(3)] == [["a"], ["b"], ["a"]]
        assert closed(daemon.daq(frame("name", "Second")))
