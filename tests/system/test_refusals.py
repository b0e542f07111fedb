"""HTTP as it is written by hand: what is refused, and how; what looks odd and is served."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running, until


def exchange(daemon: Daemon, sent: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Send bytes on a connection of their own; every answer up to its end."""
    client = daemon.scale(daemon.port)
    client.sendall(sent)
    answers = []
    with client.makefile("rb") as stream:
        while line := stream.readline():
            status = int(line.split()[1])
            headers: dict[str, str] = {}
            while (line := stream.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if status != 100:
                answers.append((status, headers, stream.read(int(headers.get("content-length", "0")))))
    client.close()
    return answers


def refusal(daemon: Daemon, sent: bytes) -> tuple[int, str]:
    """Status and error of the only answer, which bears what every answer does."""
    ((status, headers, body),) = exchange(daemon, sent)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/json; charset=utf-8"
    answer: Any = json.loads(body)
    assert answer["ok"] is False
    assert answer["message"]
    return status, answer["error"]


CLOSE = b"Connection: close\r\n\r\n"


def test_absolute_target_is_served(shared_daemon: Daemon) -> None:
    host = b"127.0.0.1:%d" % shared_daemon.port
    for target in (b"http://" + host + b"/healthz", b"HTTP://" + host + b"/healthz?x=y", b"https://plant/healthz"):
        ((status, _, body),) = exchange(
            shared_daemon, b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE
        )
        assert status == 200
        assert json.loads(body)["ok"] is True
    ((status, _, body),) = exchange(
        shared_daemon, b"GET http://" + host + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + CLOSE
    )
    assert status == 200
    assert json.loads(body)["name"] == "cynow-gateway"


@pytest.mark.parametrize(
    "target",
    [b"ftp://plant/healthz", b"http://", b"http:///healthz", b"healthz", b"plant:80", b"http://u@plant/healthz"],
)
def test_target_that_is_neither_a_path_nor_a_url_is_refused(shared_daemon: Daemon, target: bytes) -> None:
    assert refusal(shared_daemon, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE)[0] == 400


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (b"", 400),
        (b"Host: a\r\nHost: b\r\n", 400),
        (b"Host: a\r\nHost: a\r\n", 400),
        (b"Host: a b\r\n", 400),
        (b"Host: a/b\r\n", 400),
        (b"Host: u@a\r\n", 400),
        (b"Host: a\r\n", 200),
        (b"Host: a:80\r\n", 200),
        (b"Host: [::1]:80\r\n", 200),
        (b"Host:\r\n", 200),
    ],
)
def test_one_valid_host_is_needed(shared_daemon: Daemon, hosts: bytes, status: int) -> None:
    sent = b"GET /healthz HTTP/1.1\r\n" + hosts + CLOSE
    if status == 200:
        assert exchange(shared_daemon, sent)[0][0] == 200
    else:
        assert refusal(shared_daemon, sent) == (400, "bad_request")
    ((status, _, _),) = exchange(shared_daemon, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert status == 200


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"deflate", b"br", b"identity, gzip", b"x"])
def test_encoded_body_is_refused(shared_daemon: Daemon, encoding: bytes) -> None:
    head = b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: x\r\nContent-Encoding: " + encoding + b"\r\n"
    assert refusal(shared_daemon, head + b"Content-Length: 2\r\n" + CLOSE + b"{}") == (415, "unsupported_encoding")
    chunked = b"Transfer-Encoding: chunked\r\n" + CLOSE + b"2\r\n{}\r\n0\r\n\r\n"
    assert refusal(shared_daemon, head + chunked) == (415, "unsupported_encoding")


def test_body_that_says_it_is_not_encoded_is_read(shared_daemon: Daemon) -> None:
    head = b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: x\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n"
    assert refusal(shared_daemon, head + CLOSE + b"{}") == (400, "invalid_request")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 17_000 + b"\r\n\r\n",
        b"GET /healthz?" + b"y" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"Cookie: yyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 600 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 300_000 + b"\r\n\r\n",
    ],
)
def test_head_that_is_too_long_is_answered_counted_and_logged(shared_daemon: Daemon, head: bytes) -> None:
    before = shared_daemon.metric("cynow_http_requests_total", status="431")
    # All of it is sent, and nothing of the answer is lost by a reset.
    assert refusal(shared_daemon, head) == (431, "head_too_large")
    assert shared_daemon.metric("cynow_http_requests_total", status="431") == before + 1
    until(lambda: "closed with 431: a " in shared_daemon.log(), "the line")


def test_raw_utf_8_in_a_target_is_served(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        connection = daemon.daq()
        for frame in (["name", "진동기 é"], ["DataUpdate", {"온도": {"type": "TEMP", "data": [1.5]}}]):
            connection.sendall(json.dumps(frame).encode() + b"\0")
        until(lambda: daemon.metric("cynow_daq_samples_total") == 1, "the sample")
        for target in (
            "/api/v1/machines/진동기%20é/samples?sensor=온도",
            "/api/v1/machines/%EC%A7%84%EB%8F%99%EA%B8%B0%20%C3%A9/samples?sensor=%EC%98%A8%EB%8F%84",
        ):
            sent = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            client = daemon.scale(daemon.port)
            client.sendall(sent)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert '"machine":"진동기 é"'.encode() in answer
        sent = "GET /stat/hour?machine=진동기&start=2026-01-01&end=2026-01-01 HTTP/1.1\r\nHost: x\r\n".encode()
        assert exchange(daemon, sent + CLOSE)[0][::2] == (200, b"[]")
    # Raw text of another encoding is told so.


@pytest.mark.parametrize("path", ["/진동기".encode("euc-kr"), b"/\xff", b"/%ff"])
def test_path_that_is_not_utf_8_is_refused(shared_daemon: Daemon, path: bytes) -> None:
    before = shared_daemon.metric("cynow_http_requests_total", status="400")
    assert refusal(shared_daemon, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE) == (400, "invalid_url")
    assert shared_daemon.metric("cynow_http_requests_total", status="400") == before + 1


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/metrics", "/api/scale-gateway/latest/", "/stat/machineList", "/stat/hour", "/asyncapi.json",
     "/ws", "/events", "/socket.io/", "/none", "/api/v1/machines/x/samples"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "BREW"])
def test_every_answer_bears_its_date_and_forbids_guessing(shared_daemon: Daemon, method: str, path: str) -> None:
    sent = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    client = shared_daemon.scale(shared_daemon.port)
    client.sendall(sent)
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(65536)
    lines = head.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"date: ")]
    assert b"x-content-type-options: nosniff" in lines
    if any(line.startswith(b"content-type: application/json") for line in lines):
        assert b"content-type: application/json; charset=utf-8" in lines


def test_clients_that_leave_in_the_middle_of_large_answers_are_nobodys_fault(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        connection = daemon.daq(json.dumps(["name", "M"]).encode() + b"\0")
        fault = json.dumps(["FaultDetect", {"score": 2.0, "threshold": 1.0}]).encode() + b"\0"
        connection.sendall(fault * 4000)
        day = "start=2000-01-01&end=2100-01-01"
        until(lambda: len(daemon.get(f"/stat/anomaly?machine=M&{day}")[1]) == 4000, "the anomalies")
        asked = f"GET /stat/anomaly?machine=M&{day} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3
        clients = []
        for _ in range(30):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", daemon.port))
            client.sendall(asked)
            client.recv(1000)
            clients.append(client)
        for client in clients:
            client.close()
        until(lambda: daemon.metric("cynow_connections", kind="http") == 1, "they are gone")
        assert "not unregistered" not in daemon.log()
        assert "Traceback" not in daemon.log()
        assert len(daemon.get(f"/stat/anomaly?machine=M&{day}")[1]) == 4000


HEAD = b"POST /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"GET / HTTP/1.2\r\n\r\n", "HTTP/1.2 is not supported"),
        (b"GET /\r\n\r\n", "a request line has three parts, not 2"),
        (HEAD + b"nonsense\r\n\r\n", "a header line without a colon"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", "the length of the body is sent twice"),
        (
            HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "the length of the body is sent twice",
        ),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "a body in chunks that cannot be read"),
        # The second request of a connection is no different.
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/3\r\n\r\n", "HTTP/3 is not supported"),
    ],
)
def test_request_that_is_not_http_is_logged_with_its_reason(daemon: Daemon, request_bytes: bytes, reason: str) -> None:
    exchange(daemon, request_bytes)
    until(lambda: f"closed with 400: {reason}" in daemon.log(), reason)
    assert daemon.metric("cynow_http_requests_total", status="400") == 1


def test_head_of_what_has_a_body_is_answered_without_a_line_in_the_log(daemon: Daemon) -> None:
    for path in (b"/events", b"/asyncapi.json", b"/healthz", b"/metrics", b"/stat/hour", b"/nowhere", b"/api/v1/x"):
        client = daemon.scale(daemon.port)
        client.sendall(b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE)
        with client.makefile("rb") as stream:
            head, end, body = stream.read().partition(b"\r\n\r\n")
        assert (end, body) == (b"\r\n\r\n", b""), path
        assert re.search(rb"(?i)\r\ncontent-length: [1-9]", head), path
    assert "message body" not in daemon.log()
