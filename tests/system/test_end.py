"""How the daemon ends: asked to, or killed."""

import http.client
import json
import pickle
import random
import signal
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.daemon import PATIENCE, Daemon, running, until, with_constants


def test_sigterm_ends_with_status_0_and_everything_written(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        daemon.weigh(b"ST,+00001.00 kg")
        until(daemon.latest_is(1.0), "the weight")
        assert daemon.commit()[0] == 200
        events = daemon.subscribe("machine/M/samples")
        machine = daemon.daq(pickle.dumps(("name", "M")) + b"\0")
        machine.sendall(pickle.dumps(("DataUpdate", {"v": {"type": "VIB", "data": [0.5, 0.25]}})) + b"\0")
        machine.sendall(pickle.dumps(("FaultDetect", {"score": 2.0, "threshold": 1.0})) + b"\0")
        events.events(1, "samples")
        assert daemon.terminate() == 0
    finally:
        daemon.end()
    (csv,) = (tmp_path / "data" / "M").iterdir()
    assert [line.partition(",")[2] for line in csv.read_text().splitlines()] == ["data", "0.5", "0.25"]
    # Closed well: what was in the write-ahead logs is in the databases.
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["M.db", "cynow-gateway.sqlite3"]
    with sqlite3.connect(tmp_path / "db" / "M.db") as connection:
        assert connection.execute("SELECT score FROM anomaly").fetchall() == [(2.0,)]
    assert "Traceback" not in daemon.log()
    assert "the gateway has stopped" in daemon.log()


def test_ctrl_c_is_the_same(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.ended() == 0


def test_two_signals_are_as_good_as_one(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert "Traceback" not in daemon.log()


def test_two_signals_in_one_turn_of_the_reactor_are_as_good_as_one(daemon: Daemon) -> None:
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        daemon.process.send_signal(number)
    assert daemon.ended() == 0
    assert "Traceback" not in daemon.log()


def test_requests_in_flight_are_answered(tmp_path: Path) -> None:
    # Neither the store nor the end waits for a test that others keep from going on.
    limits = {"gateway.store.sqlite.machine_db._LOCK_WAIT": PATIENCE, "gateway.runtime.lifecycle._PATIENCE": PATIENCE}
    with running(tmp_path, twistd=with_constants(limits)) as daemon:
        requests_in_flight_are_answered(daemon)


def requests_in_flight_are_answered(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    path = daemon.folder / "db" / "cynow-gateway.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(daemon.commit)
        # The second connection is the one that asks.
        until(lambda: daemon.metric("cynow_connections", kind="http") == 2, "the request is in flight")
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: "the gateway is stopping" in daemon.log(), "it is stopping")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", daemon.port))
        other.execute("ROLLBACK")
        other.close()
        assert answer.result()[0] == 200
    assert daemon.ended() == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM scale_weight_log").fetchone() == (1,)


def test_clients_that_hang_do_not_keep_it_from_ending(daemon: Daemon) -> None:
    daemon.stream()  # answers no close
    half = daemon.scale(daemon.port)
    half.sendall(b"POST /api/scale-gateway/commit HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    daemon.scale()
    daemon.daq(b"\x80\x04")
    assert daemon.terminate() == 0


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_loses_no_acknowledged_commit(tmp_path: Path, seed: int) -> None:
    """Killed at a random moment under load, with half of the requests carrying a key."""
    chance = random.Random(seed)
    with running(tmp_path) as daemon:
        daemon.weigh(b"ST,+00001.00 kg")
        until(daemon.latest_is(1.0), "the weight")
        acknowledged: dict[str, int] = {}
        lock = threading.Lock()
        enough = threading.Event()

        def commit(worker: int) -> None:
            for number in range(10_000):
                cylinder = f"CY-{worker}-{number}"
                try:
                    status, body, _ = daemon.commit(cylinder, **({"key": cylinder} if number % 2 else {}))
                except (OSError, http.client.HTTPException, json.JSONDecodeError):
                    return
                assert status == 200
                with lock:
                    acknowledged[cylinder] = body["id"]
                    if len(acknowledged) > 30:
                        enough.set()

        with ThreadPoolExecutor(8) as pool:
            workers = [pool.submit(commit, worker) for worker in range(8)]
            was_enough = enough.wait(PATIENCE)
            time.sleep(chance.random() / 5)  # the moment is the test: anywhere in a transaction
            daemon.process.kill()
            daemon.process.wait()
            assert was_enough
        for each in workers:
            each.result()
        daemon.start()
        with sqlite3.connect(tmp_path / "db" / "cynow-gateway.sqlite3") as connection:
            rows = dict(connection.execute("SELECT cylinder_no, id FROM scale_weight_log"))
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert acknowledged.items() <= rows.items()
        # Whoever did not hear its answer asks again with its key, and there is still one row.
        for cylinder in [name for name in rows if int(name.rpartition("-")[2]) % 2]:
            status, body, _ = daemon.commit(cylinder, key=cylinder)
            assert (status, body["id"]) == (200, rows[cylinder])


def test_a_question_that_waits_for_locked_files_does_not_keep_it_from_ending(daemon: Daemon) -> None:
    """Each file would be waited for two seconds; the end is at most five."""
    names = [f"M{number}" for number in range(8)]
    for name in names:
        daemon.daq(pickle.dumps(("name", name)) + pickle_end(2.0))
    everything = "/stat/anomaly/all?start=2000-01-01&end=2099-12-31"
    until(lambda: len(daemon.get(everything)[1]) == 8, "the anomalies are stored")
    assert daemon.terminate() == 0
    others = []
    for name in names:
        other = sqlite3.connect(daemon.folder / "db" / f"{name}.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        others.append(other)
    daemon.start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(daemon.get, everything)
        until(lambda: daemon.metric("cynow_connections", kind="http") == 2, "the question is in flight")
        # systemd would wait no longer than this and then kill it.
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended() == 0
        assert isinstance(asked.exception(), OSError) or asked.result()[0] == 503
    for other in others:
        other.close()


def pickle_end(score: float) -> bytes:
    return b"\0" + pickle.dumps(("FaultDetect", {"score": score, "threshold": 1.0})) + b"\0"
