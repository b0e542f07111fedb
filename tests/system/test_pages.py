"""Rights of web pages and names of the gateway, on a real daemon."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.support.daemon import PATIENCE, Daemon, running, until

COMMIT = json.dumps({"cylinder_no": "CY001", "event_type": "SHIP"}).encode()

#: The fast route, and Klein's.
COMMIT_PATHS = ("/api/scale-gateway/commit/", "/api/scale-gateway/commit", "/api//scale-gateway/commit/")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Yield a gateway with a weight and one listed page."""
    server = {"cors_origins": ["http://friend.example:9090/"]}
    with running(tmp_path_factory.mktemp("pages"), server=server, scale={"idle_timeout_sec": 3600}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        yield daemon


def ask(
    daemon: Daemon, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Send a request like :meth:`Daemon.request`, with any headers, including ``Host``."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host=headers is not None and "Host" in headers, skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    found = {name.lower(): value for name, value in response.getheaders()}
    return response.status, json.loads(content) if content.startswith(b"{") else content, found


def last_id(daemon: Daemon) -> int:
    status, answer, _ = daemon.commit("LAST")
    assert status == 200
    return int(answer["id"])


@pytest.mark.parametrize("path", COMMIT_PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain", "Origin": "http://evil.example"},
        {"Content-Type": "application/json", "Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "file://"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://friend.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example:8080", "Host": "evil.example:8080"},
    ],
)
def test_commit_of_a_foreign_page_writes_nothing(plant: Daemon, path: str, headers: dict[str, str]) -> None:
    before = last_id(plant)
    refused = plant.metric("cynow_http_requests_total", status="403")
    status, answer, found = ask(plant, "POST", path, COMMIT, headers)
    assert (status, answer["ok"], answer["error"]) == (403, False, "origin_not_allowed")
    assert found["content-type"] == "application/json; charset=utf-8"
    assert "access-control-allow-origin" not in found
    assert last_id(plant) == before + 1
    assert plant.metric("cynow_http_requests_total", status="403") == refused + 1


@pytest.mark.parametrize("path", COMMIT_PATHS)
def test_commit_of_an_own_or_a_listed_page_is_written(plant: Daemon, path: str) -> None:
    own = f"http://127.0.0.1:{plant.port}"
    local = {"Host": f"localhost:{plant.port}", "Origin": f"http://localhost:{plant.port}"}
    machine = socket.gethostname()
    named = {"Host": f"{machine}:{plant.port}", "Origin": f"http://{machine}:{plant.port}"}
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://friend.example:9090", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "HTTP://Friend.example:9090"},
        local,
        named,
    ):
        status, answer, _ = ask(plant, "POST", path, COMMIT, headers)
        assert (status, answer["ok"]) == (200, True), headers


def test_refused_page_is_logged_with_its_origin_and_the_key(daemon: Daemon) -> None:
    ask(daemon, "POST", COMMIT_PATHS[0], COMMIT, {"Origin": "http://logged.example"})
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(f"ws://127.0.0.1:{daemon.port}/ws", timeout=PATIENCE, origin="file://")
    for origin in ("http://logged.example", "file://"):
        text = f"origin '{origin}' is not in server.cors_origins"
        until(lambda text=text: text in daemon.log(), "the line")
        (line,) = [line for line in daemon.log().splitlines() if text in line]
        assert "[gateway.web.http#warn]" in line
        assert "127.0.0.1" in line


def test_listed_page_may_send_credentials_and_the_headers_it_asks_for(plant: Daemon) -> None:
    page = "http://friend.example:9090"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-app, idempotency-key"}
    status, _, headers = ask(plant, "OPTIONS", COMMIT_PATHS[0], None, {"Origin": page, **asked})
    assert status in (200, 204)
    assert headers["access-control-allow-origin"] == page
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["access-control-allow-headers"] == "x-app, idempotency-key"
    assert "POST" in headers["access-control-allow-methods"]
    status, _, headers = ask(plant, "GET", "/healthz", None, {"Origin": page, "Cookie": "a=b", "X-App": "1"})
    assert (status, headers["access-control-allow-credentials"]) == (200, "true")
    # An invalid list of names is not repeated.
    asked["Access-Control-Request-Headers"] = "x\xe9"
    _, _, headers = ask(plant, "OPTIONS", COMMIT_PATHS[0], None, {"Origin": page, **asked})
    assert "idempotency-key" in headers["access-control-allow-headers"].lower()


def test_unlisted_page_gets_no_permission(plant: Daemon) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-app"}
    _, _, headers = ask(plant, "OPTIONS", COMMIT_PATHS[0], None, {"Origin": "http://evil.example", **asked})
    assert not [name for name in headers if name.startswith("access-control-")]


READING = ("/healthz", "/metrics", "/", "/api/scale-gateway/latest/", "/stat/machineList", "/sio/machineList", "/none")
LIVE = ("/events?topics=*/*", "/socket.io/?EIO=4&transport=polling")


@pytest.mark.parametrize("path", [*READING, *LIVE, "/ws"])
def test_page_after_dns_rebinding_reads_nothing(plant: Daemon, path: str) -> None:
    """For the browser, the page has the same origin as the gateway."""
    headers = {"Origin": "http://evil.example:8080", "Host": "evil.example:8080"}
    status, answer, found = ask(plant, "GET", path, None, headers)
    assert (status, answer["error"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in found


@pytest.mark.parametrize("path", LIVE)
def test_foreign_page_receives_no_events(plant: Daemon, path: str) -> None:
    for origin in ("http://evil.example", "null", "file://"):
        assert ask(plant, "GET", path, None, {"Origin": origin})[0] == 403, origin


@pytest.mark.parametrize("path", ["/ws", "/socket.io/?EIO=4&transport=websocket"])
def test_origin_of_a_websocket_is_checked(plant: Daemon, path: str) -> None:
    url = f"ws://127.0.0.1:{plant.port}{path}"
    for origin in ("http://evil.example", "null", "file://"):
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(url, timeout=PATIENCE, origin=origin)
        assert caught.value.status_code == 403
    for origin in (f"http://127.0.0.1:{plant.port}", "http://friend.example:9090"):
        client = websocket.create_connection(url, timeout=PATIENCE, origin=origin)
        headers = client.getheaders()
        assert headers is not None
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["date"]
        client.close()


@pytest.mark.parametrize("listed", [["*"], ["null", "file://"]])
def test_websocket_of_a_file_is_opened_if_listed(tmp_path: Path, listed: list[str]) -> None:
    with running(tmp_path, server={"cors_origins": listed}) as daemon:
        for path in ("/ws", "/socket.io/?EIO=4&transport=websocket"):
            for origin in ("null", "file://"):
                url = f"ws://127.0.0.1:{daemon.port}{path}"
                websocket.create_connection(url, timeout=PATIENCE, origin=origin).close()
        assert ask(daemon, "GET", "/healthz", None, {"Origin": "null"})[2]["access-control-allow-origin"] == "null"


def test_server_names_apply_to_every_request(tmp_path: Path) -> None:
    with running(tmp_path, server={"names": ["plant.example"]}) as daemon:
        own = {"Host": "plant.example", "Origin": "http://plant.example"}
        assert ask(daemon, "GET", "/healthz", None, own)[0] == 200
        assert ask(daemon, "POST", COMMIT_PATHS[0], COMMIT, own)[0] == 400
        for host in (f"127.0.0.1:{daemon.port}", "localhost", "[::1]", "PLANT.example.", socket.gethostname()):
            assert ask(daemon, "GET", "/healthz", None, {"Host": host})[0] == 200, host
        for path in READING:
            status, answer, _ = ask(daemon, "GET", path, None, {"Host": "evil.example"})
            assert (status, answer["error"]) == (421, "misdirected_request"), path
        assert ask(daemon, "POST", COMMIT_PATHS[0], COMMIT, {"Host": "evil.example"})[0] == 421
        until(lambda: "host 'evil.example' is not in server.names" in daemon.log(), "the line")
        # The host of the target overrides the Host header.
        assert ask(daemon, "GET", "http://evil.example/healthz", None, {"Host": "plant.example"})[0] == 421
        assert ask(daemon, "GET", "http://plant.example/healthz", None, {"Host": "evil.example"})[0] == 200
