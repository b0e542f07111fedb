"""Slow clients on a real daemon with its default deadlines."""

import contextlib
import json
import socket
import sqlite3
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support.daemon import Daemon, running, until

#: Anomalies in an answer of about 1 MB.
ROWS: Final = 12_000
DAY: Final = "start=2000-01-01&end=2100-01-01"

#: First byte of TCP_INFO of Linux for an open connection.
ESTABLISHED: Final = 1


def store_anomalies(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE anomaly (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
        )
        connection.executemany(
            "INSERT INTO anomaly (time, threshold, score) VALUES (?, 1.0, 1.5)",
            [(f"2026-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.000000",) for n in range(ROWS)],
        )
        connection.commit()


def connected(daemon: Daemon, sent: bytes) -> socket.socket:
    """Return a connection of a client with a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(1)
    client.connect(("127.0.0.1", daemon.port))
    client.sendall(sent)
    return client


def is_open(client: socket.socket) -> bool:
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def test_slow_clients_are_closed_and_cost_little(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        store_anomalies(tmp_path / "db" / "M.db")
        large = f"/stat/anomaly?machine=M&{DAY}"
        until(lambda: len(daemon.get(large)[1]) == ROWS, "the anomalies")
        before = daemon.resident_mib()
        asked = f"GET {large} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        heads = [connected(daemon, b"GET / HTTP/1.1\r\nX: ") for _ in range(30)]
        bodies = [connected(daemon, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n") for _ in range(30)]
        readers = [connected(daemon, asked) for _ in range(100)]
        pipelined = [connected(daemon, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 190) for _ in range(10)]
        slow = {"head": len(heads), "body": len(bodies), "reader": len(readers) + len(pipelined)}
        largest = before

        def all_ended() -> bool:
            nonlocal largest
            for client in [*heads, *bodies]:
                with contextlib.suppress(OSError):
                    client.send(b"y")
            largest = max(largest, daemon.resident_mib())
            assert daemon.get("/api/scale-gateway/latest/")[0] == 200
            # Once a second, as much as they send.
            time.sleep(1)
            return all(
                count <= daemon.metric("cynow_http_slow_connections_total", what=what) for what, count in slow.items()
            )

        until(all_ended, "all are ended")
        until(lambda: not any(map(is_open, [*heads, *bodies, *readers, *pipelined])), "and closed")
        assert largest - before < 60
        # Clients that could still read got the reason.
        for client in (heads[0], bodies[0]):
            answer = b""
            with contextlib.suppress(OSError):
                while piece := client.recv(65536):
                    answer += piece
            assert answer == b"" or b"request_timeout" in answer
        for client in [*heads, *bodies, *readers, *pipelined]:
            client.close()
        until(lambda: daemon.metric("cynow_connections", kind="http") == 1, "no place is held")
        # Lines of one kind and peer are limited.
        assert "closed with 408: the " in daemon.log()
        assert "does not read the answer" in daemon.log()
        assert "Traceback" not in daemon.log()


def test_late_reader_gets_a_large_answer_completely(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        store_anomalies(tmp_path / "db" / "M.db")
        client = connected(daemon, f"GET /stat/anomaly?machine=M&{DAY} HTTP/1.0\r\n\r\n".encode())
        # Slower than a browser on a bad network, and faster than the bound: 40 KB/s at first.
        answer = b""
        for _ in range(20):
            answer += client.recv(4096)
            time.sleep(0.1)
        while piece := client.recv(1 << 20):
            answer += piece
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])) == ROWS


@pytest.mark.parametrize("path", ["/events?topics=*/*", "/socket.io/?EIO=4&transport=polling"])
def test_client_that_waits_for_events_is_not_slow(tmp_path: Path, path: str) -> None:
    """Without unread bytes, the deadlines of answers do not apply."""
    with running(tmp_path) as daemon:
        client = connected(daemon, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(13)
        assert is_open(client)
        assert daemon.metric("cynow_http_slow_connections_total", what="reader") == 0
        client.close()
