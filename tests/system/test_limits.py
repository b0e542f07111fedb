"""Limits of clients on a real daemon: rates of requests, proxies, deadlines that are configured, endless lines."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

from tests.support.daemon import PATIENCE, Daemon, running, until

#: Addresses of the loopback: a trusted proxy, and a client that reaches the gateway directly.
PROXY, DIRECT = "127.0.0.1", "127.0.0.2"


def ask(daemon: Daemon, head: bytes, source: str = PROXY) -> tuple[int, bytes]:
    """Return the status and the whole answer to a request, which ends its connection.

    :param head: request without its last two lines.
    :param source: address that it comes from.
    """
    address = ("127.0.0.1", daemon.port)
    with socket.create_connection(address, PATIENCE, source_address=(source, 0)) as client:
        client.sendall(head + b"\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as stream:
            answer = stream.read()
    return int(answer.split(b" ")[1]), answer


def until_closed(client: socket.socket) -> bytes:
    """Return what is received until the gateway closes the connection."""
    client.settimeout(PATIENCE)
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


# -- rates


LIST = b"GET /sio/machineList HTTP/1.1\r\nHost: 127.0.0.1"


def test_requests_beyond_the_rate_get_429(tmp_path: Path) -> None:
    with running(tmp_path, limits={"requests_per_second": 0.001, "request_burst": 4}) as daemon:
        assert [ask(daemon, LIST)[0] for _ in range(4)] == [200] * 4
        # Each of these counts as one request, whatever follows it.
        for head in (
            LIST,
            b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x",
            b"GET /events?topics=*/* HTTP/1.1\r\nHost: x",
            b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0",
            b"GET /unknown HTTP/1.1\r\nHost: x",
        ):
            status, answer = ask(daemon, head)
            assert status == 429
            match = re.search(rb"\r\nRetry-After: ([0-9]+)\r\n", answer)
            assert match is not None
            assert 1 <= int(match[1]) <= 1000
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert (body["ok"], body["error"]) == (False, "too_many_requests")
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            websocket.create_connection(f"ws://127.0.0.1:{daemon.port}/ws", timeout=PATIENCE)
        # A supervisor, and another client.
        assert [daemon.get("/healthz")[0] for _ in range(10)] == [200] * 10
        status, metrics = ask(daemon, b"GET /metrics HTTP/1.1\r\nHost: x", DIRECT)
        assert status == 200
        assert b"\ncynow_http_limited_requests_total 6.0\n" in metrics
        assert "429: b'GET /sio/machineList': more than limits.requests_per_second (0.001)" in daemon.log()


def test_client_beyond_its_rate_is_admitted_again(tmp_path: Path) -> None:
    with running(tmp_path, limits={"requests_per_second": 0.5, "request_burst": 1}) as daemon:
        until(lambda: ask(daemon, LIST)[0] == 429, "the client is refused")
        until(lambda: ask(daemon, LIST)[0] == 200, "the client is admitted again")


# -- proxies


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A gateway behind a proxy, with two networks of clients."""
    server = {
        "allow": ["127.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"],
        "trusted_proxies": [PROXY, "10.0.0.0/8", "fd00::/8"],
    }
    with running(tmp_path_factory.mktemp("proxied"), server=server) as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("headers", "client", "status"),
    [
        ([], PROXY, 404),
        (["192.0.2.7"], "192.0.2.7", 404),
        (["192.0.2.7:51022"], "192.0.2.7", 404),
        (["2001:db8::7"], "2001:db8::7", 404),
        (["[2001:DB8::7]:443"], "2001:db8::7", 404),
        (["192.0.2.7, 10.0.0.2, fd00::1"], "192.0.2.7", 404),
        (["192.0.2.7", "10.0.0.2"], "192.0.2.7", 404),
        (["203.0.113.5"], "203.0.113.5", 403),
        (["203.0.113.5, 10.0.0.2"], "203.0.113.5", 403),
        (["2001:db9::7"], "2001:db9::7", 403),
        # A client outside the networks invents an address inside them, or the proxy's.
        (["192.0.2.7, 203.0.113.5"], "203.0.113.5", 403),
        (["192.0.2.7", "203.0.113.5"], "203.0.113.5", 403),
        (["127.0.0.1, 203.0.113.5"], "203.0.113.5", 403),
        (["10.0.0.2, 203.0.113.5, 10.0.0.3"], "203.0.113.5", 403),
        # Text that a client invents changes nothing.
        (["x" * 5000 + ", 192.0.2.7"], "192.0.2.7", 404),
        (["\x7f,,;=, 192.0.2.7"], "192.0.2.7", 404),
        # The proxy itself names nobody.
        (["unknown"], PROXY, 404),
        (["192.0.2.7, unknown"], PROXY, 404),
        (["fe80::1%eth0"], PROXY, 404),
        ([""], PROXY, 404),
    ],
)
def test_client_behind_a_proxy_is_named_and_judged_by_its_address(
    proxied: Daemon, headers: list[str], client: str, status: int
) -> None:
    lines = "".join(f"\r\nX-Forwarded-For: {header}" for header in headers)
    before = proxied.log()
    found, answer = ask(proxied, f"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1{lines}".encode())
    assert found == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == ("forbidden" if status == 403 else "not_found")
    logged = proxied.log()[len(before) :]
    # A few lines of each kind are logged in a minute.
    assert not logged or f"HTTP request from {client} refused with {status}" in logged


def test_forwarded_address_of_a_direct_client_is_ignored(proxied: Daemon) -> None:
    head = b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 203.0.113.5"
    assert ask(proxied, head, DIRECT)[0] == 404
    assert f"HTTP request from {DIRECT} refused with 404" in proxied.log()


def test_forwarded_client_has_a_rate_of_its_own(tmp_path: Path) -> None:
    limits = {"requests_per_second": 0.001, "request_burst": 1}
    with running(tmp_path, server={"trusted_proxies": [PROXY]}, limits=limits) as daemon:
        head = "GET /sio/machineList HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: {}"
        forwarded = ["192.0.2.1", "192.0.2.2", "127.0.0.1, 192.0.2.1", "x, 192.0.2.2", "2001:db8::1", "2001:db8::2"]
        statuses = [ask(daemon, head.format(addresses).encode())[0] for addresses in forwarded]
        assert statuses == [200, 200, 429, 429, 200, 429]


# -- deadlines


def test_configured_deadlines_are_kept(tmp_path: Path) -> None:
    limits = {"head_timeout_sec": 2, "idle_timeout_sec": 3, "min_bytes_per_second": 1000, "grace_sec": 2}
    with running(tmp_path, limits=limits, daq={"name_timeout_sec": 2}) as daemon:
        idle, head, body = (daemon.scale(daemon.port) for _ in range(3))
        head.sendall(b"GET / HTTP/1.1\r\nX: ")
        body.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
        nameless = daemon.daq(b'["name"')
        assert until_closed(head).startswith(b"HTTP/1.1 408 ")
        assert until_closed(body).startswith(b"HTTP/1.1 408 ")
        assert until_closed(idle) == b""
        assert until_closed(nameless) == b""
        log = daemon.log()
        assert "closed with 408: the request head took more than 2 s" in log
        assert "closed with 408: the request body arrived slower than 1000 bytes/s" in log
        assert "is closed: it has not sent its name in 2 s" in log
        for phase in ("head", "body", "idle"):
            assert daemon.metric("cynow_http_slow_connections_total", what=phase) >= 1


def test_reload_changes_rates_proxies_and_deadlines(tmp_path: Path) -> None:
    with running(tmp_path, daq={"name_timeout_sec": 1000}) as daemon:
        idle = daemon.scale(daemon.port)
        forwarded = LIST + b"\r\nX-Forwarded-For: 203.0.113.5"
        assert ask(daemon, forwarded)[0] == 200
        daemon.configure(
            server={"trusted_proxies": [PROXY], "allow": ["127.0.0.0/8"]},
            limits={"requests_per_second": 0.001, "request_burst": 2, "idle_timeout_sec": 1},
            daq={"name_timeout_sec": 1},
        )
        daemon.reload()
        assert ask(daemon, forwarded)[0] == 403
        assert [ask(daemon, LIST)[0] for _ in range(3)] == [200, 200, 429]
        assert until_closed(idle) == b""
        assert until_closed(daemon.daq()) == b""
        daemon.configure(server={"trusted_proxies": []}, limits={"requests_per_second": None})
        daemon.reload()
        assert {ask(daemon, forwarded)[0] for _ in range(20)} == {200}


# -- lines without an end


def test_scale_that_never_ends_a_line_costs_no_memory(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.weigh(b"ST,+00001.00 kg")
        until(daemon.latest_is(1.0), "the weight")
        before = daemon.resident_mib()
        endless = daemon.scale()
        for byte in (b"x", b"\0", b"\xff", b"S"):
            endless.sendall(byte * 8 * 1024 * 1024)
        # The same connection goes on once it ends its line.
        endless.sendall(b"\r\nST,+00002.00 kg\r\n")
        until(daemon.latest_is(2.0), "the weight after the endless line")
        assert daemon.resident_mib() < before + 8
        assert daemon.metric("cynow_scale_overlong_lines_total") == 1
        assert daemon.log().count("a line of more than 1024 bytes is skipped") == 1
