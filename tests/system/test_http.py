"""Common rules for all answers, on a real daemon."""

import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running, until

PAGE = "https://plant.example"

PATHS = [
    ("GET", "/healthz", 200),
    ("GET", "/metrics", 200),
    ("GET", "/", 200),
    ("GET", "/nothing/here", 404),
    ("GET", "/api/nothing", 404),
    ("GET", "/stat/nothing", 404),
    ("GET", "/stat/hour//", 404),
    ("GET", "/stat/anomaly//all", 404),
    ("GET", "/api/scale-gateway/latest/", 404),
    ("POST", "/api/scale-gateway/commit/", 400),
    ("DELETE", "/api/scale-gateway/commit/", 405),
    ("GET", "/stat/hour", 422),
    ("GET", "/ws", 426),
    ("GET", "/%ff", 400),
]


@pytest.fixture(scope="module")
def open_daemon(tmp_path_factory: pytest.TempPathFactory) -> object:
    with running(tmp_path_factory.mktemp("cors"), server={"cors_origins": [PAGE]}) as daemon:
        yield daemon


@pytest.mark.parametrize(("method", "path", "status"), PATHS)
def test_listed_page_may_read_every_answer(open_daemon: Daemon, method: str, path: str, status: int) -> None:
    found, body, headers = open_daemon.request(method, path, Origin=PAGE)
    assert found == status
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["vary"].startswith("Origin")
    if status >= 400 and status != 422:
        assert body["ok"] is False
        assert body["error"]
        assert body["message"]
    found, _, headers = open_daemon.request(method, path, Origin="https://evil.example")
    assert found == (status if method == "GET" else 403)
    assert "access-control-allow-origin" not in headers


def test_preflight(open_daemon: Daemon) -> None:
    path = "/api/scale-gateway/commit/"
    asked: dict[str, Any] = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "idempotency-key",
    }
    status, _, headers = open_daemon.request("OPTIONS", path, Origin=PAGE, **asked)
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    assert "idempotency-key" in headers["access-control-allow-headers"].lower()
    status, _, headers = open_daemon.request("OPTIONS", path, Origin="https://evil.example", **asked)
    assert "access-control-allow-origin" not in headers


def test_unlisted_page_gets_no_permission(shared_daemon: Daemon) -> None:
    _, _, headers = shared_daemon.request("GET", "/healthz", Origin=PAGE)
    assert "access-control-allow-origin" not in headers


def test_any_page_gets_permission_if_all_are_listed(tmp_path: Path) -> None:
    with running(tmp_path, server={"cors_origins": ["*"]}) as daemon:
        _, _, headers = daemon.request("GET", "/healthz", Origin=PAGE)
        assert headers["access-control-allow-origin"] in ("*", PAGE)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_above_the_bound_is_refused(tmp_path: Path, chunked: bool) -> None:
    with running(tmp_path, limits={"body_bytes": 1000}, server={"cors_origins": [PAGE]}) as daemon:
        client = daemon.scale(daemon.port)
        head = f"POST /api/scale-gateway/commit HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nConnection: close\r\n"
        if chunked:
            client.sendall(
                head.encode() + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
            )
        else:
            client.sendall(head.encode() + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert f"access-control-allow-origin: {PAGE}".encode() in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "body_too_large"


def test_endless_body_closes_the_connection(tmp_path: Path) -> None:
    with running(tmp_path, limits={"body_bytes": 1000}) as daemon:
        client = daemon.scale(daemon.port)
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        before = daemon.resident_mib()
        sent = 0
        with pytest.raises(OSError, match=r"reset|Broken|closed"):  # noqa: PT012 - which of the sends it is, is open
            while sent < 100_000_000:
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        assert sent < 50_000_000
        assert daemon.resident_mib() < before + 20


def test_head_has_no_body(shared_daemon: Daemon) -> None:
    status, body, headers = shared_daemon.request("HEAD", "/metrics")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_metrics_count_answers(shared_daemon: Daemon) -> None:
    before = shared_daemon.metric("cynow_http_requests_total", status="404")
    shared_daemon.get("/nothing")
    assert shared_daemon.metric("cynow_http_requests_total", status="404") == before + 1


def test_invalid_request_is_refused(shared_daemon: Daemon) -> None:
    client = shared_daemon.scale(shared_daemon.port)
    client.sendall(b"\x80\x04nonsense\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    client.shutdown(socket.SHUT_RDWR)
    assert shared_daemon.get("/healthz")[0] == 200


def test_headers_that_are_not_text_are_accepted(shared_daemon: Daemon) -> None:
    for head in (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: \xff\r\n",
        b"POST /api/scale-gateway/commit HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nContent-Length: 0\r\n",
    ):
        client = shared_daemon.scale(shared_daemon.port)
        client.sendall(head + b"Connection: close\r\n\r\n")
        answer = client.recv(65536)
        assert answer.split()[1] in (b"400", b"426"), answer
    assert "Traceback" not in shared_daemon.log()


def test_refused_request_is_logged_with_its_peer_and_without_its_query(daemon: Daemon) -> None:
    for _ in range(20):
        daemon.get("/stat/hour?machine=SECRET-QUERY&start=x")
    lines = [line for line in daemon.log().splitlines() if "refused with" in line]
    assert len(lines) == 5
    assert "127.0.0.1" in lines[0]
    assert "422" in lines[0]
    assert "start: Input should be a valid date" in lines[0]
    assert "end: Field required" in lines[0]
    assert "SECRET-QUERY" not in daemon.log()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing?SECRET", "refused with 404: b'GET /nothing': not_found"),
        ("/api/scale-gateway/latest?scale_id=SECRET", "404: b'GET /api/scale-gateway/latest': unknown_scale"),
        ("/ws", "refused with 426: b'GET /ws': upgrade_required"),
        ("/socket.io/?EIO=3&transport=polling", "400: b'GET /socket.io/': Socket.IO: Unsupported protocol version"),
        ("/socket.io/?EIO=4&transport=polling&sid=SECRET", "400: b'GET /socket.io/': Socket.IO: Session ID unknown"),
    ],
)
def test_each_refusal_is_logged_with_its_reason(daemon: Daemon, path: str, reason: str) -> None:
    assert daemon.get(path)[0] >= 400
    until(lambda: reason in daemon.log(), reason)
    assert "SECRET" not in daemon.log()


def test_polls_before_the_first_weight_are_not_logged(daemon: Daemon) -> None:
    assert daemon.get("/api/scale-gateway/latest")[1]["error"] == "no_data"
    assert "no_data" not in daemon.log()


def exchange(daemon: Daemon, head: str, body: str = "") -> str:
    """Return the answers on a new connection until its end, without the date."""
    client = daemon.scale(daemon.port)
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    client.sendall(f"{head}\r\nHost: x\r\nConnection: close\r\nOrigin: {PAGE}\r\n{length}\r\n{body}".encode())
    answer = b""
    while piece := client.recv(65536):
        answer += piece
    client.close()
    return re.sub(r"\r\nDate: [^\r]+", "", answer.decode())


#: Requests of fast routes and similar ones, and the status once there is a weight.
DIRECT = [
    ("GET", "scale-gateway/latest/", 200),
    ("GET", "scale-gateway/latest", 200),
    ("GET", "scale-gateway/latest/?scale_id=default", 200),
    ("GET", "scale-gateway/latest/?scale_id=", 200),
    ("GET", "scale-gateway/latest/?scale_id=none&scale_id=default", 200),
    ("GET", "scale-gateway/latest/?scale_id=default&scale_id=none", 404),
    ("GET", "scale-gateway/latest?scale_id=%ec%a0%80", 404),
    ("GET", "scale-gateway/latest?scale_id=%ff", 404),
    ("GET", "scale%2Dgateway/lat%65st/", 200),
    ("GET", "scale-gateway%2Flatest", 200),
    ("GET", "scale-gateway/latest//", 404),
    ("GET", "scale-gateway/latest/more", 404),
    ("GET", "scale-gateway/latest/%00", 404),
    ("GET", "scale-gateway/Latest", 404),
    ("GET", "scale-gateway/%ff", 400),
    ("GET", "scale-gateway", 404),
    ("HEAD", "scale-gateway/latest/", 200),
    ("HEAD", "scale-gateway/latest?scale_id=none", 404),
    ("POST", "scale-gateway/latest/", 405),
    ("DELETE", "scale-gateway/latest/", 405),
    ("DELETE", "scale-gateway/latest", 405),
    ("OPTIONS", "scale-gateway/latest/", 405),
    ("get", "scale-gateway/latest/", 200),
    ("GET", "scale-gateway/commit/", 405),
    ("PUT", "scale-gateway/commit/", 405),
    ("PUT", "scale-gateway/commit", 405),
    ("GET", "scale-gateway/commit", 405),
    ("POST", "scale-gateway/commit/", 400),
    ("POST", "scale-gateway/commit/more", 404),
]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("weight", [False, True])
def test_fast_route_answers_like_klein(tmp_path: Path, weight: bool, version: str) -> None:
    """Compare a path with its form with two slashes, which only Klein routes."""
    with running(tmp_path, server={"cors_origins": [PAGE]}, scale={"idle_timeout_sec": 3600}) as daemon:
        if weight:
            daemon.weigh(b"ST , +000053.26 _kg")
            until(daemon.latest_is(53.26), "the weight")
        for method, path, status in DIRECT:
            answer = exchange(daemon, f"{method} /api/{path} {version}")
            slow = exchange(daemon, f"{method} /api//{path} {version}")
            # The weight gets older, which may take a digit more.
            aged = [re.sub(r'(Content-Length: )\d+|("age_ms":)\d+', r"\1\2", each) for each in (answer, slow)]
            assert aged[0] == aged[1], path
            if status == 200 and not weight:
                status = 404
            assert answer.startswith(f"{version} {status} "), (method, path, answer)
            assert f"\r\nAccess-Control-Allow-Origin: {PAGE}\r\n" in answer
            assert ("\r\nAllow: " in answer) == (status == 405)


def test_fast_commit_answers_like_klein(tmp_path: Path) -> None:
    with running(tmp_path, server={"cors_origins": [PAGE]}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        good = '{"cylinder_no": "C", "event_type": "SHIP"'
        for body, head, status in [
            (good + "}", "", 200),
            (good + "}", "Idempotency-Key: k\r\n", 200),
            (good + ', "move_report_no": "M"}', "Idempotency-Key: k\r\n", 422),
            (good + "}", "Content-Type: application/x-www-form-urlencoded\r\n", 200),
            (good + "}", "Content-Type: multipart/form-data\r\n", 200),
            (good + ', "scale_id": "none"}', "", 404),
            (good, "", 400),
            ("[]", "", 400),
        ]:
            answers = [
                re.sub(r'"id":\d+|"committed_at":"[^"]+"', "", answer)
                for path in ("/api/scale-gateway/commit", "/api//scale-gateway/commit")
                if (answer := exchange(daemon, f"POST {path} HTTP/1.1\r\n{head}X: x", body))
            ]
            assert answers[0] == answers[1], body
            assert answers[0].startswith(f"HTTP/1.1 {status} "), answers[0]
        # Both of each valid commit, but only one of those with the key.
        assert daemon.commit()[1]["id"] == 8


def test_client_that_reads_late_gets_all_answers_in_order(shared_daemon: Daemon) -> None:
    count = 200
    client = shared_daemon.scale(shared_daemon.port)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    paths = ["/metrics" if number % 2 else f"/api/scale-gateway/latest?scale_id=s{number}" for number in range(count)]
    asked = b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)
    sender = threading.Thread(target=client.sendall, args=(asked,))
    sender.start()
    # Unread answers wait in the operating systems, not in the daemon's memory.
    stream = client.makefile("rb")
    for number in range(count):
        status = stream.readline()
        length = 0
        while (line := stream.readline()) != b"\r\n":
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        body = stream.read(length)
        if number % 2:
            assert status == b"HTTP/1.1 200 OK\r\n"
            assert b"cynow_http_requests_total" in body
        else:
            assert status == b"HTTP/1.1 404 Not Found\r\n"
            assert json.loads(body)["error"] == "unknown_scale"
    sender.join()
