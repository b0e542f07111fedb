"""What holds for every answer, on a real daemon."""

import json
import socket
from pathlib import Path

import pytest

from tests.daemon import Daemon, running

PAGE = "https://plant.example"

PATHS = [
    ("GET", "/healthz", 200),
    ("GET", "/metrics", 200),
    ("GET", "/", 200),
    ("GET", "/nothing/here", 404),
    ("GET", "/api/nothing", 404),
    ("GET", "/stat/nothing", 404),
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
def test_an_allowed_page_may_read_every_answer(open_daemon: Daemon, method: str, path: str, status: int) -> None:
    found, body, headers = open_daemon.request(method, path, Origin=PAGE)
    assert found == status
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["vary"] == "Origin"
    if status >= 400 and status != 422:
        assert body["ok"] is False
        assert body["error"]
        assert body["message"]
    found, _, headers = open_daemon.request(method, path, Origin="https://evil.example")
    assert found == status
    assert "access-control-allow-origin" not in headers


def test_preflight(open_daemon: Daemon) -> None:
    path = "/api/scale-gateway/commit/"
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "idempotency-key"}
    status, _, headers = open_daemon.request("OPTIONS", path, Origin=PAGE, **asked)
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert "POST" in headers["access-control-allow-methods"]
    assert "idempotency-key" in headers["access-control-allow-headers"].lower()
    status, _, headers = open_daemon.request("OPTIONS", path, Origin="https://evil.example", **asked)
    assert "access-control-allow-origin" not in headers


def test_no_page_may_by_default(shared_daemon: Daemon) -> None:
    _, _, headers = shared_daemon.request("GET", "/healthz", Origin=PAGE)
    assert "access-control-allow-origin" not in headers


def test_any_page_may_where_all_are_allowed(tmp_path: Path) -> None:
    with running(tmp_path, server={"cors_origins": ["*"]}) as daemon:
        _, _, headers = daemon.request("GET", "/healthz", Origin=PAGE)
        assert headers["access-control-allow-origin"] in ("*", PAGE)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large(tmp_path: Path, chunked: bool) -> None:
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


def test_a_body_without_end_is_cut_off(tmp_path: Path) -> None:
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


def test_head(shared_daemon: Daemon) -> None:
    status, body, headers = shared_daemon.request("HEAD", "/metrics")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_metrics_count_answers(shared_daemon: Daemon) -> None:
    before = shared_daemon.metric("cynow_http_requests_total", status="404")
    shared_daemon.get("/nothing")
    assert shared_daemon.metric("cynow_http_requests_total", status="404") == before + 1


def test_a_request_that_is_none(shared_daemon: Daemon) -> None:
    client = shared_daemon.scale(shared_daemon.port)
    client.sendall(b"\x80\x04nonsense\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    client.shutdown(socket.SHUT_RDWR)
    assert shared_daemon.get("/healthz")[0] == 200


def test_headers_that_are_no_text(shared_daemon: Daemon) -> None:
    for head in (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: \xff\r\n",
        b"POST /api/scale-gateway/commit HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\nContent-Length: 0\r\n",
    ):
        client = shared_daemon.scale(shared_daemon.port)
        client.sendall(head + b"Connection: close\r\n\r\n")
        answer = client.recv(65536)
        assert answer.split()[1] in (b"400", b"426"), answer
    assert "Traceback" not in shared_daemon.log()


def test_a_wrong_request_is_logged_with_its_peer_and_without_its_query(daemon: Daemon) -> None:
    for _ in range(20):
        daemon.get("/stat/hour?machine=SECRET-QUERY&start=x")
    lines = [line for line in daemon.log().splitlines() if "is refused" in line]
    assert len(lines) == 5
    assert "127.0.0.1" in lines[0]
    assert "422" in lines[0]
    assert "SECRET-QUERY" not in daemon.log()
