"""The gateway on a real PostgreSQL server during outages: data that is kept, functions that go on, and reports."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.daemon import Daemon, Subscriber, until
from tests.support.frames import fault, frame
from tests.support.postgres import Server


@pytest.fixture
def plant(server: Server, tmp_path: Path) -> Iterator[Daemon]:
    """Return a gateway on the server, not yet started."""
    gateway = Daemon(tmp_path, database={"url": server.url}, gateway={"name": "hall 1"}, timezone="Asia/Seoul")
    yield gateway
    gateway.end()
    assert server.password not in gateway.log()


def rows(server: Server, statement: str = "SELECT cylinder_no FROM scale_weight_log ORDER BY id") -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in server.sql(statement)]


def anomalies(server: Server) -> list[float]:
    return rows(server, "SELECT score FROM cynow_anomaly ORDER BY time, entry")


def problems(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.get("/healthz")[1]["problems"]
    return found


def is_well(daemon: Daemon) -> bool:
    return problems(daemon) == []


def commits_work(daemon: Daemon) -> None:
    number = itertools.count()
    until(lambda: daemon.commit(f"AGAIN{next(number)}")[0] == 200, "commits work again")


def what_needs_no_server_works(daemon: Daemon, client: Subscriber, weight: float) -> None:
    """Check readings, the latest weight, live events and raw files, and that a commit is refused, not lost."""
    daemon.weigh(b"ST,+%08.2f kg" % weight)
    assert client.events(1, "reading")[0]["data"]["weight"] == weight
    status, latest, _ = daemon.get("/api/scale-gateway/latest/")
    assert (status, latest["weight"]) == (200, weight)
    status, answer, headers = daemon.commit("REFUSED")
    assert (status, answer["error"]) == (503, "store_unavailable")
    assert int(headers["retry-after"]) >= 1


def test_gateway_connects_with_the_url_in_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{server.url}\n")
    gateway = Daemon(tmp_path, database={"url_file": "$CREDENTIALS_DIRECTORY/url"})
    try:
        gateway.start(env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
        until(lambda: is_well(gateway), "PostgreSQL is connected")
        gateway.weigh(b"ST,+00053.26 kg")
        commits_work(gateway)
        assert rows(server)
        assert "every user may read" in gateway.log()
        assert server.password not in gateway.log()
    finally:
        gateway.end()


def test_gateway_writes_into_the_tables(plant: Daemon, server: Server) -> None:
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    plant.weigh(b"ST,+00053.26 kg")
    until(plant.latest_is(53.26), "the weight")
    status, answer, _ = plant.commit("CY1", key="k1")
    assert status == 200
    assert plant.commit("CY1", key="k1")[1] == answer
    assert plant.commit("CY2", key="k1")[0] == 422
    assert rows(server, "SELECT id, cylinder_no, event_type, gross_kg::text, raw_line FROM scale_weight_log") == [
        (answer["id"], "CY1", "SHIP", "53.26", "ST,+00053.26 kg")
    ]
    plant.daq(frame("name", "M"), fault(1.5))
    until(lambda: anomalies(server) == [1.5], "the anomaly")
    today = rows(server, "SELECT (time::date)::text FROM cynow_anomaly")[0]
    (found,) = plant.get(f"/stat/anomaly/all?start={today}&end={today}")[1]
    assert (found["name"], found["score"], found["threshold"]) == ("M", 1.5, 1.0)
    # The answer to a key is kept after a kill.
    plant.kill()
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    plant.weigh(b"ST,+00001.00 kg")
    until(plant.latest_is(1.0), "the weight")
    assert plant.commit("CY1", key="k1")[1] == answer
    assert len(rows(server)) == 1


def test_start_without_a_server_serves_and_recovers(plant: Daemon, server: Server) -> None:
    server.stop()
    plant.start()
    until(lambda: any("PostgreSQL is unavailable" in problem for problem in problems(plant)), "the problem is reported")
    what_needs_no_server_works(plant, plant.subscribe("scale/default"), 2.0)
    plant.daq(frame("name", "M"), fault(1.5))
    until(lambda: plant.metric("cynow_spool_waiting") >= 1, "the anomaly waits")
    server.start()
    until(lambda: is_well(plant), "PostgreSQL is back")
    until(lambda: anomalies(server) == [1.5], "the anomaly")
    assert plant.commit("CY1")[0] == 200
    assert rows(server) == ["CY1"]


@pytest.mark.parametrize("how", ["immediate", "silence"])
def test_outage_keeps_data_and_live_events(plant: Daemon, server: Server, how: str) -> None:
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    client = plant.subscribe("scale/default")
    plant.weigh(b"ST,+00001.00 kg")
    until(plant.latest_is(1.0), "the weight")
    assert plant.commit("BEFORE")[0] == 200
    machine = plant.daq(frame("name", "M"), fault(1, 0.5))
    until(lambda: anomalies(server) == [1], "the anomaly")
    if how == "immediate":
        server.stop()
    else:
        server.pause()
    # The outage is noticed within some seconds, whatever its cause.
    until(lambda: plant.commit("REFUSED")[0] == 503, "a commit is refused")
    until(lambda: any("PostgreSQL is unavailable" in problem for problem in problems(plant)), "the problem is reported")
    client.events(1, "reading")
    what_needs_no_server_works(plant, client, 2.0)
    machine.sendall(fault(2) + fault(3))
    until(lambda: plant.metric("cynow_spool_waiting") >= 2, "anomalies wait")
    # Also after a kill of the gateway.
    plant.kill()
    plant.start()
    plant.daq(frame("name", "M"), fault(4))
    until(lambda: plant.metric("cynow_spool_waiting") >= 3, "anomalies wait")
    if how == "immediate":
        server.start()
    else:
        server.resume()
    until(lambda: anomalies(server) == [1, 2, 3, 4], "the anomalies, once each and in order")
    until(lambda: is_well(plant), "PostgreSQL is back")
    plant.weigh(b"ST,+00003.00 kg")
    until(plant.latest_is(3.0), "the weight")
    commits_work(plant)
    assert set(rows(server)) & {"BEFORE", "REFUSED"} == {"BEFORE"}


def test_commits_while_the_server_is_killed_repeatedly(plant: Daemon, server: Server) -> None:
    """Acknowledged commits are stored once, also if a request with a key is repeated."""
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    plant.weigh(b"ST,+00001.00 kg")
    until(plant.latest_is(1.0), "the weight")
    over = threading.Event()
    acknowledged: list[str] = []
    lock = threading.Lock()

    def client(part: int) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            cylinder = f"C{part}-{number}"
            while plant.commit(cylinder, key=cylinder)[0] != 200:
                if over.is_set():
                    return
                # Retry-After asks for more; the test is faster.
                time.sleep(0.05)
            with lock:
                acknowledged.append(cylinder)

    clients = [threading.Thread(target=client, args=(part,)) for part in range(4)]
    for each in clients:
        each.start()
    try:
        for _ in range(3):
            count = len(acknowledged)
            until(lambda count=count: len(acknowledged) >= count + 30, "commits go on")
            server.stop()
            server.start()
        count = len(acknowledged)
        until(lambda: len(acknowledged) >= count + 30, "commits go on")
    finally:
        over.set()
        for each in clients:
            each.join()
    found = rows(server)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


def test_ended_sessions_are_replaced(plant: Daemon, server: Server) -> None:
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    plant.weigh(b"ST,+00001.00 kg")
    until(plant.latest_is(1.0), "the weight")
    for _ in range(3):
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        commits_work(plant)
    until(lambda: is_well(plant), "all is well")


def test_two_gateways_share_a_database(server: Server, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        gateways = []
        for name in ("hall 1", "hall 2"):
            (tmp_path / name).mkdir()
            gateway = Daemon(tmp_path / name, database={"url": server.url}, gateway={"name": name})
            stack.callback(gateway.end)
            # Both at once, on a database without tables.
            gateway.run()
            gateways.append(gateway)
        for number, gateway in enumerate(gateways):
            gateway.start_answers()
            until(lambda gateway=gateway: is_well(gateway), "PostgreSQL is connected")
            gateway.daq(frame("name", f"M{number}"), fault(number + 1, 0.5))
            gateway.weigh(b"ST,+00001.00 kg")
            until(gateway.latest_is(1.0), "the weight")
            assert gateway.commit(f"CY{number}")[0] == 200
        until(lambda: len(anomalies(server)) == 2, "both anomalies")
        assert rows(server) == ["CY0", "CY1"]
        for gateway in gateways:
            until(
                lambda gateway=gateway: gateway.get("/stat/machineList")[1] == {"machine_list": ["M0", "M1"]},
                "each knows all machines",
            )


def test_stop_with_a_silent_server_ends_in_time(plant: Daemon, server: Server) -> None:
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    server.pause()
    assert plant.terminate() == 0


def test_unknown_database_is_reported_and_other_functions_work(plant: Daemon, server: Server) -> None:
    tree = plant.config.read_text("utf-8").replace("/postgres", "/nowhere")
    plant.config.write_text(tree, "utf-8")
    plant.start()
    until(lambda: any("nowhere" in problem for problem in problems(plant)), "the problem is reported")
    what_needs_no_server_works(plant, plant.subscribe("scale/default"), 2.0)


def test_recompute_restores_statistics_on_the_server(plant: Daemon, server: Server) -> None:
    command = [sys.executable, "-m", "gateway.recompute", "--config", str(plant.config), "--from", "2025-12-18"]

    def run() -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=plant.folder, env=environment, capture_output=True, text=True, check=False)

    # Beside the gateway, which uses the directory of the spool.
    plant.start()
    until(lambda: is_well(plant), "PostgreSQL is connected")
    folder = plant.folder / "data" / "M"
    folder.mkdir(parents=True)
    lines = "".join(f"{hour:02}:00:{second:02},{hour + second / 8}\n" for hour in (9, 10) for second in range(8))
    (folder / "20251218_v.csv").write_text(f"time,data\n{lines}", "ascii")
    for outcome in ("new", "unchanged"):
        done = run()
        assert f"rows: 5 {outcome}" in done.stdout, done
    found = plant.get("/stat/hour?machine=M&start=2025-12-18&end=2025-12-18&detail=1")[1]
    assert [(item["data"], item["count"]) for item in found] == [(9.4375, 8), (10.4375, 8)]
    (day,) = plant.get("/stat/day?machine=M&start=2025-12-18&end=2025-12-18&detail=1")[1]
    assert (day["data"], day["count"]) == (9.9375, 16)
    server.stop()
    done = run()
    assert done.returncode == 1
    assert "recompute: " in done.stderr
    assert server.password not in done.stderr
