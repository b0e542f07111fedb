"""Networks and numbers of connections on a real daemon."""

import socket
from pathlib import Path

import websocket

from tests.support.daemon import PATIENCE, Daemon, running, until


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(source, 0))


def is_closed_at_once(port: int, source: str) -> bool:
    with connect(port, source) as client:
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True


def test_other_networks_are_closed_at_once(tmp_path: Path) -> None:
    sections = {section: {"allow": ["127.0.0.1", "10.0.0.0/8"]} for section in ("server", "daq", "scale")}
    with running(tmp_path, **sections) as daemon:
        for port in (daemon.port, daemon.daq_port, daemon.scale_port):
            assert is_closed_at_once(port, "127.0.0.2")
        assert daemon.metric("cynow_connections_refused_total", kind="not_allowed") == 3
        for section in ("server", "daq", "scale"):
            assert f"{section}.allow: connection of 127.0.0.2 refused: its address is not in" in daemon.log()
        assert "scale default: " not in daemon.log()
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")


def test_trusted_proxy_may_connect_although_it_is_not_allowed(tmp_path: Path) -> None:
    server = {"allow": ["127.0.0.1"], "trusted_proxies": ["127.0.0.2"]}
    with running(tmp_path, server=server) as daemon:
        with connect(daemon.port, "127.0.0.2") as proxy:
            proxy.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert proxy.recv(65536)
        assert is_closed_at_once(daemon.port, "127.0.0.3")


def count(daemon: Daemon, kind: str) -> float:
    return daemon.metric("cynow_connections", kind=kind)


def test_connections_of_one_address_are_limited_and_released(tmp_path: Path) -> None:
    with running(tmp_path, limits={"connections_per_address": 5}) as daemon:
        scales = [connect(daemon.scale_port, "127.0.0.2") for _ in range(5)]
        until(lambda: count(daemon, "scale") == 5, "five scales")
        assert is_closed_at_once(daemon.scale_port, "127.0.0.2")
        with connect(daemon.scale_port, "127.0.0.3") as other:
            other.sendall(b"ST , +000053.26 _kg\r\n")
            until(daemon.latest_is(53.26), "the weight of another address")
        scales.pop().close()
        until(lambda: count(daemon, "scale") == 4, "the end of one")
        scales.append(connect(daemon.scale_port, "127.0.0.2"))
        until(lambda: count(daemon, "scale") == 5, "one more")
        assert daemon.metric("cynow_connections_refused_total", kind="scale") == 1
        assert "scale: connection of 127.0.0.2 refused: limits.connections_per_address (5) is reached" in daemon.log()
        for client in scales:
            client.close()


def stream(daemon: Daemon) -> websocket.WebSocket:
    """Return a WebSocket from another address than that of the requests for metrics."""
    return daemon.stream(socket=connect(daemon.port, "127.0.0.2"))


def test_websockets_count_as_connections_of_their_address(tmp_path: Path) -> None:
    with running(tmp_path, limits={"connections_per_address": 4}) as daemon:
        clients = [stream(daemon) for _ in range(4)]
        until(lambda: count(daemon, "websocket") == 4, "four WebSockets")
        with connect(daemon.port, "127.0.0.2") as fifth:
            answer = b""
            while piece := fifth.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"too_many_connections"' in answer
        assert daemon.metric("cynow_connections_refused_total", kind="http") == 1
        for client in clients:
            client.close()
        until(lambda: count(daemon, "websocket") == 0, "the end of the WebSockets")
        # All are released, although none ended as an HTTP connection.
        again = [stream(daemon) for _ in range(4)]
        assert len(again) == 4
        assert daemon.metric("cynow_connections_refused_total", kind="http") == 1
