"""Scales and commits as their clients see them, on a real daemon."""

import json
import os
import re
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import PATIENCE, Daemon, Stopwatch, free_ports, running, until, with_constants

LATEST = "/api/scale-gateway/latest/"
COMMIT = "/api/scale-gateway/commit/"

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+09:00")


def rows(daemon: Daemon) -> list[tuple[Any, ...]]:
    with sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3") as connection:
        return connection.execute(
            "SELECT id, scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at,"
            " arrival_shipping_no, move_report_no FROM scale_weight_log ORDER BY id"
        ).fetchall()


def test_no_data_yet(daemon: Daemon) -> None:
    for path in (LATEST, LATEST.rstrip("/"), LATEST + "?scale_id=default"):
        status, body, _ = daemon.get(path)
        assert (status, body) == (404, {"ok": False, "error": "no_data", "message": "저울 데이터가 없습니다"})
    status, body, _ = daemon.commit()
    assert status == 400
    assert body == {"ok": False, "error": "no_stable_weight", "message": "안정된 저울 데이터(ST)가 없습니다"}


def test_latest_in_full(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    daemon.weigh(b"ST , +000053.26 _kg")
    until(daemon.latest_is(53.26), "the weight")
    status, body, headers = daemon.get(LATEST)
    assert status == 200
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert RFC3339.fullmatch(body.pop("received_at"))
    assert body.pop("reading_id")
    assert 0 <= body.pop("age_ms") < 10_000
    assert body == {
        "ok": True,
        "kind": "gross",
        "out_of_range": False,
        "commit": {"allowed": True, "error": None, "message": ""},
        "scale_id": "default",
        "status": "ST",
        "weight": 53.26,
        "raw": "ST , +000053.26 _kg",
        "stale": False,
    }


def test_only_a_stable_gross_weight_becomes_the_latest(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    events = daemon.subscribe("scale/default")
    daemon.weigh(
        b"ST,+00010.00 kg",
        b"US,+00011.00 kg",
        b"ST,NT,+0012.00kg",
        b"ST,TR,+0013.00kg",
        b"OL,+9999999E+19",
        b"no reading",
        b"ST,GS,+0014.00kg",
    )
    readings = [event["data"] for event in events.events(6, "reading")]
    assert [(r["status"], r["weight"], r["kind"]) for r in readings] == [
        ("ST", 10.0, "gross"),
        ("US", 11.0, "gross"),
        ("ST", 12.0, "net"),
        ("ST", 13.0, "tare"),
        ("OL", None, "gross"),
        ("ST", 14.0, "gross"),
    ]
    assert daemon.get(LATEST)[1]["weight"] == 14.0
    assert "overload" in daemon.log()


def test_every_line_end_and_any_pieces(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    events = daemon.subscribe("scale/default")
    scale = daemon.scale()
    for byte in b"ST,+00001.00 kg\rST,+00002.00 kg\nST,+00003.00 kg\r\n\r\n\n\rST,+00004.00 kg\r":
        scale.sendall(bytes([byte]))
    assert [event["data"]["weight"] for event in events.events(4, "reading")] == [1.0, 2.0, 3.0, 4.0]


def test_bad_bytes_cost_one_line_and_no_connection(shared_daemon: Daemon) -> None:
    daemon = shared_daemon
    events = daemon.subscribe("scale/default")
    rejected = daemon.metric("cynow_scale_rejected_lines_total", scale_id="default")
    overlong = daemon.metric("cynow_scale_overlong_lines_total", scale_id="default")
    scale = daemon.scale()
    scale.sendall(b"\xff\xfe\x80\r\n" + b"A" * 1_000_000 + b"\r\nST,+00005.00 kg\r\n" + b"\0" * 5000)
    scale.sendall(b"\nST,+00006.00 kg\n")
    assert [event["data"]["weight"] for event in events.events(2, "reading")] == [5.0, 6.0]
    assert daemon.metric("cynow_scale_rejected_lines_total", scale_id="default") == rejected + 1
    assert daemon.metric("cynow_scale_overlong_lines_total", scale_id="default") == overlong + 2
    log = daemon.log()
    assert "A" * 51 not in log
    assert "a line of more than 1024 bytes is skipped" in log


def test_an_unknown_scale(shared_daemon: Daemon) -> None:
    status, body, _ = shared_daemon.get(LATEST + "?scale_id=nobody")
    assert (status, body["error"]) == (404, "unknown_scale")
    status, body, _ = shared_daemon.commit(scale_id="nobody")
    assert (status, body["error"]) == (404, "unknown_scale")


def test_commit_writes_one_row_in_full(tmp_path: Path) -> None:
    with running(tmp_path, timezone="Asia/Seoul") as daemon:
        # 53.265 kg, and half goes up.
        daemon.weigh(b"\x02ST , +000053.265 _kg\x03")
        until(daemon.latest_is(53.265), "the weight")
        events = daemon.subscribe("scale/*")
        status, body, _ = daemon.commit(
            " CY123456789 ",
            event_type="return",
            arrival_shipping_no="AS20251218-0001",
            move_report_no="",
        )
        assert status == 200
        committed_at = body.pop("committed_at")
        assert RFC3339.fullmatch(committed_at)
        assert body == {"ok": True, "id": 1, "cylinder_no": "CY123456789", "event_type": "RETURN", "gross_kg": 53.27}
        (event,) = events.events(1, "commit")
        assert event["topic"] == "scale/default"
        assert event["data"] == {**body, "committed_at": committed_at, "scale_id": "default"}
        (row,) = rows(daemon)
        assert row[:6] == (1, "default", "CY123456789", "RETURN", 53.27, "ST , +000053.265 _kg")
        assert row[8:] == ("AS20251218-0001", None)
        # As Django keeps it on SQLite: UTC, without an offset.
        assert (int(committed_at[11:13]) - int(row[7][11:13])) % 24 == 9
        assert "CY123456789" not in daemon.log()


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", "invalid_json", "JSON 파싱 실패"),
        (b"{", "invalid_json", "JSON 파싱 실패"),
        (b'{"cylinder_no": "\xff"}', "invalid_json", "JSON 파싱 실패"),
        (b"[" * 50_000, "invalid_json", "JSON 파싱 실패"),
        (b"[]", "invalid_request", "객체"),
        (b"null", "invalid_request", "객체"),
        (b"{}", "invalid_request", "cylinder_no가 필요합니다"),
        (b'{"cylinder_no": "  ", "event_type": "SHIP"}', "invalid_request", "cylinder_no가 필요합니다"),
        (b'{"cylinder_no": null, "event_type": "SHIP"}', "invalid_request", "cylinder_no가 필요합니다"),
        (b'{"cylinder_no": 5, "event_type": "SHIP"}', "invalid_request", "cylinder_no"),
        (b'{"cylinder_no": "a\\u0000b", "event_type": "SHIP"}', "invalid_request", "cylinder_no"),
        (b'{"cylinder_no": "C"}', "invalid_request", "event_type은 SHIP 또는 RETURN이어야 합니다"),
        (b'{"cylinder_no": "C", "event_type": "X"}', "invalid_request", "event_type은 SHIP 또는 RETURN이어야 합니다"),
        (b'{"cylinder_no": "C", "event_type": 1}', "invalid_request", "event_type은 SHIP 또는 RETURN이어야 합니다"),
        (b'{"cylinder_no": "%s", "event_type": "SHIP"}' % (b"C" * 51), "invalid_request", "cylinder_no"),
        (
            b'{"cylinder_no": "C", "event_type": "SHIP", "move_report_no": "%s"}' % (b"M" * 51),
            "invalid_request",
            "move_report_no",
        ),
        (
            b'{"cylinder_no": "C", "event_type": "SHIP", "arrival_shipping_no": []}',
            "invalid_request",
            "arrival_shipping_no",
        ),
        (b'{"cylinder_no": "C", "event_type": "SHIP", "scale_id": 1}', "invalid_request", "scale_id"),
    ],
)
def test_commit_errors(shared_daemon: Daemon, body: bytes, error: str, message: str) -> None:
    status, answer, _ = shared_daemon.request("POST", COMMIT, body)
    assert (status, answer["ok"], answer["error"]) == (400, False, error)
    assert message in answer["message"]


def test_commit_takes_fifty_characters_and_any_case(shared_daemon: Daemon) -> None:
    shared_daemon.weigh(b"ST,+00001.00 kg")
    until(shared_daemon.latest_is(1.0), "the weight")
    status, body, _ = shared_daemon.commit("용" * 50, event_type=" Ship ")
    assert (status, body["cylinder_no"], body["event_type"]) == (200, "용" * 50, "SHIP")


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", COMMIT, "POST"), ("POST", LATEST, "GET")])
def test_wrong_method(shared_daemon: Daemon, method: str, path: str, allowed: str) -> None:
    status, body, headers = shared_daemon.request(method, path)
    assert (status, body["error"]) == (405, "method_not_allowed")
    assert allowed in headers["allow"].split(", ")


def test_units_become_kilograms(shared_daemon: Daemon) -> None:
    shared_daemon.weigh(b"ST,+00100.00 lb")
    until(shared_daemon.latest_is(45.359237), "the weight")
    assert shared_daemon.commit()[1]["gross_kg"] == 45.36


def test_a_weight_that_rounds_to_zero_has_no_sign(shared_daemon: Daemon) -> None:
    shared_daemon.weigh(b"ST,-0.004 kg")
    until(shared_daemon.latest_is(-0.004), "the weight")
    assert str(shared_daemon.commit()[1]["gross_kg"]) == "0.0"


def test_stale_and_too_old_to_commit(tmp_path: Path) -> None:
    with running(tmp_path, scale={"idle_timeout_sec": 0.3, "commit_max_age_sec": 0.6}) as daemon:

        def commits_early() -> bool:
            daemon.weigh(b"ST,+00001.00 kg")
            return daemon.commit(key="early")[0] == 200

        # On a busy machine a weight may be too old before it is asked for.
        until(commits_early, "a commit in time")
        until(lambda: daemon.get(LATEST)[1]["stale"], "staleness")
        until(lambda: daemon.commit()[0] == 409, "the weight is too old")
        assert daemon.commit()[1]["error"] == "stale_weight"
        # A repeated request gets its first answer all the same.
        assert daemon.commit(key="early")[0] == 200


def test_idempotency_key(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        daemon.weigh(b"ST,+00001.00 kg")
        until(daemon.latest_is(1.0), "the weight")
        first = daemon.commit("CY1", key="k-1")
        assert first[0] == 200
        daemon.weigh(b"ST,+00002.00 kg")
        until(daemon.latest_is(2.0), "the weight")
        assert daemon.commit("CY1", key="k-1")[:2] == first[:2]
        # The same request in other words.
        again = daemon.request(
            "POST", COMMIT, b'{"event_type":"ship",  "cylinder_no":"CY1", "scale_id": null}', Idempotency_Key="k-1"
        )
        assert again[:2] == first[:2]
        status, body, _ = daemon.commit("CY2", key="k-1")
        assert (status, body["error"]) == (422, "idempotency_conflict")
        assert daemon.commit("CY1", key="k-2")[1]["gross_kg"] == 2.0
        # As UTF-8; urllib would refuse what is not Latin-1.
        korean = "용기-1".encode().decode("latin-1")
        first_korean = daemon.commit("CY1", key=korean)
        assert first_korean[0] == 200
        assert daemon.commit("CY1", key=korean)[:2] == first_korean[:2]
        daemon.kill()
        daemon.start()
        # No weight is known any more, but the answer is.
        assert daemon.commit("CY1", key="k-1")[:2] == first[:2]
        assert daemon.commit("CY1", key="k-3")[1]["error"] == "no_stable_weight"
        assert len(rows(daemon)) == 3
    finally:
        daemon.end()


def test_twenty_requests_with_one_key_write_one_row(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: daemon.commit("CY1", key="k"), range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert len({json.dumps(body) for _, body, _ in answers}) == 1
    assert len(rows(daemon)) == 1


def test_a_locked_database_gives_503_and_writes_nothing(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    other = sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    slowest = 0.0
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(daemon.commit, "CY1", key="k")
        while not refused.done():
            watch = Stopwatch()
            assert daemon.get(LATEST)[0] == 200
            slowest = max(slowest, watch.seconds())
    status, body, headers = refused.result()
    assert (status, body["error"]) == (503, "store_unavailable")
    assert int(headers["retry-after"]) >= 1
    # The two seconds of waiting for the lock were not the reactor's.
    assert slowest < 1.5
    other.execute("ROLLBACK")
    other.close()
    assert rows(daemon) == []
    assert daemon.commit("CY1", key="k")[0] == 200
    assert len(rows(daemon)) == 1


def test_a_client_that_leaves_does_not_undo_its_commit(tmp_path: Path) -> None:
    # The store does not give up before the client is gone.
    with running(tmp_path, twistd=with_constants({"gateway.store.sqlite.machine_db._LOCK_WAIT": PATIENCE})) as daemon:
        a_client_that_leaves_does_not_undo_its_commit(daemon)


def a_client_that_leaves_does_not_undo_its_commit(daemon: Daemon) -> None:
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    other = sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    body = b'{"cylinder_no": "CY1", "event_type": "SHIP"}'
    client = daemon.scale(daemon.port)
    client.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (COMMIT.encode(), len(body), body))
    # The second is the one that asks.
    until(lambda: daemon.metric("cynow_connections", kind="http") == 2, "the request")
    client.close()
    until(lambda: daemon.metric("cynow_connections", kind="http") == 1, "the client is gone")
    other.execute("ROLLBACK")
    other.close()
    until(lambda: len(rows(daemon)) == 1, "the row")


def test_several_scales_of_every_kind(tmp_path: Path) -> None:
    """One dials in, one is dialled; each keeps its own weight, and the first is meant where none is named."""
    converter = socket.create_server(("127.0.0.1", 0))
    converter.settimeout(PATIENCE)
    dialled = converter.getsockname()[1]
    (listening,) = free_ports(1)
    scales = {
        "dock-1": {"listen": f"tcp:{listening}:interface=127.0.0.1"},
        "dock-2": {"connect": f"tcp:127.0.0.1:{dialled}"},
    }
    with running(tmp_path, scales=scales) as daemon, converter:
        events = daemon.subscribe("scale/*")
        line, _ = converter.accept()
        line.sendall(b"ST,+00002.00 kg\r\n")
        daemon.scale(listening).sendall(b"ST,+00001.00 kg\r\n")
        assert {event["topic"] for event in events.events(2, "reading")} == {"scale/dock-1", "scale/dock-2"}
        assert daemon.get(LATEST)[1]["weight"] == 1.0
        assert daemon.get(LATEST + "?scale_id=dock-2")[1]["weight"] == 2.0
        assert daemon.commit(scale_id="dock-2")[1]["gross_kg"] == 2.0
        assert daemon.get(LATEST + "?scale_id=default")[0] == 404
        # The converter restarts: the gateway dials again.
        line.close()
        assert events.events(1, "disconnected")[0]["topic"] == "scale/dock-2"
        line, _ = converter.accept()
        line.sendall(b"ST,+00003.00 kg\r\n")
        assert events.events(1, "reading")[0]["data"]["weight"] == 3.0
        line.close()


def test_a_serial_line(tmp_path: Path) -> None:
    """A pseudo-terminal is a serial line to pyserial; one that is missing is waited for."""
    pytest.importorskip("serial")
    host, device = os.openpty()
    link = tmp_path / "ttyUSB0"
    with running(tmp_path, scales={"bench": {"serial": str(link), "bytesize": 8, "parity": "N"}}) as daemon:
        assert "cannot be opened" in daemon.log()
        link.symlink_to(os.ttyname(device))
        events = daemon.subscribe("scale/bench")
        events.events(1, "connected")
        os.write(host, b"ST,+00007.50 kg\r\n")
        assert events.events(1, "reading")[0]["data"]["weight"] == 7.5
    os.close(host)
    os.close(device)


def test_several_connections_of_one_scale(daemon: Daemon) -> None:
    events = daemon.subscribe("scale/default")
    first, second = daemon.scale(), daemon.scale()
    events.events(1, "connected")
    for connection, weight in ((first, b"1"), (second, b"2"), (first, b"3")):
        connection.sendall(b"ST,+0000%s.00 kg\r\n" % weight)
        assert events.events(1, "reading")[0]["data"]["weight"] == float(weight)
    first.close()
    second.sendall(b"ST,+00004.00 kg\r\n")
    # Nobody is told that the scale is gone while one line is left.
    assert events.events(1)[0]["event"] == "reading"
    second.close()
    assert events.events(1)[0]["event"] == "disconnected"


def test_group_commit_under_load(daemon: Daemon) -> None:
    """Every acknowledged commit has a row, whoever shares its transaction."""
    daemon.weigh(b"ST,+00001.00 kg")
    until(daemon.latest_is(1.0), "the weight")
    acknowledged: list[int] = []
    lock = threading.Lock()

    def commit(number: int) -> None:
        status, body, _ = daemon.commit(f"CY{number}")
        assert status == 200
        with lock:
            acknowledged.append(body["id"])

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(commit, range(200)))
    assert sorted(acknowledged) == [row[0] for row in rows(daemon)]
    assert len(set(acknowledged)) == 200


def test_a_silent_peer_is_probed(daemon: Daemon) -> None:
    """The kernel's own table says that the keep-alive timer of each connection runs: 02 is that timer."""
    for port, mine in ((daemon.scale_port, daemon.scale()), (daemon.daq_port, daemon.daq(b""))):
        peer = mine.getsockname()[1]

        def probing(port: int = port, peer: int = peer) -> str | None:
            for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]:
                _, local, remote, _, _, timer, *_ = line.split()
                if (
                    local.endswith(f":{port:04X}")
                    and remote.endswith(f":{peer:04X}")
                    and timer.partition(":")[0] == "02"
                ):
                    return timer.partition(":")[2]
            return None

        # In hundredths of a second, at most what is said in gateway/ingest/transport.py.
        assert int(until(probing, "the timer"), 16) <= 15 * 100
