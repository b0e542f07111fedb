"""Clients that are slow on purpose, all at once: what they can make the daemon hold, and what others notice of them."""

import contextlib
import json
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.table import Row
from tests.support.daemon import Daemon, running, until

#: Connections that send a head byte by byte, that send a body byte by byte, and that read an answer byte by byte.
HEADS: Final = 500
BODIES: Final = 200
DRIPS: Final = 50

#: Connections that ask for a large answer, or for many small ones, and never read.
READERS: Final = 300
PIPELINED: Final = 100

#: Anomalies in an answer of about 1 MB.
ROWS: Final = 12_000

#: The first byte of what Linux says of a TCP connection.
_ESTABLISHED: Final = 1

#: Seconds of grace of a body and of a reader, the deadline of a head, and what the daemon's looks may add.
DEADLINE: Final = 10.0
SLACK: Final = 5.0

_DAY: Final = "start=2000-01-01&end=2100-01-01"
_LARGE: Final = f"GET /stat/anomaly?machine=M&{_DAY} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def rows(folder: Path, seconds: float) -> list[Row]:
    """The deadlines say how long it takes, whatever time of load is given."""
    with running(folder) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        _store_anomalies(folder / "db" / "M.db")
        for _ in range(20):
            daemon.get("/api/scale-gateway/latest/")
        # What a large answer costs an honest client is no part of the figure.
        until(lambda: len(daemon.get(f"/stat/anomaly?machine=M&{_DAY}")[1]) == ROWS, "the anomalies")
        before = daemon.resident_mib()
        quiet = _asked(daemon, lambda: False, 3.0)
        crowd = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.slow_peers", json.dumps({"port": daemon.port})],
            stdout=subprocess.PIPE,
            text=True,
        )
        sizes: list[float] = []
        try:
            waits = _asked(daemon, lambda: crowd.poll() is not None, 90.0, sizes)
            told = json.loads(crowd.communicate()[0])
        finally:
            crowd.kill()
            crowd.wait()
        until(lambda: daemon.metric("cynow_connections", kind="http") <= 2, "all are gone")
        after = daemon.resident_mib()
    count = HEADS + BODIES + DRIPS + READERS + PIPELINED
    text = f"{HEADS} heads and {BODIES} bodies that drip, {DRIPS + READERS + PIPELINED} readers that do not read"
    late = DEADLINE + SLACK
    return [
        Row(f"{text}: closed of {count}", f"{told['closed']}", f"{count}", told["closed"] == count),
        Row(
            "the same: until the last was closed",
            f"{told['last']:.1f} s",
            f"within the deadline and {SLACK:.0f} s ({late:.0f} s)",
            told["last"] <= late,
        ),
        Row(
            "the same: resident above the start, at most",
            f"{max(sizes) - before:.0f} MiB",
            "never more than 100 MB (95 MiB)",
            max(sizes) - before < 100e6 / 2**20,
        ),
        Row("the same: resident above the start, afterwards", f"{after - before:.0f} MiB"),
        Row(
            f"the same: latest for others, p99 of {len(waits)}",
            f"{_p99(waits):.1f} ms",
            "under 100 ms",
            _p99(waits) < 100,
            f"{_p99(quiet):.1f} ms before",
            _p99(waits) / _p99(quiet),
        ),
    ]


def _store_anomalies(path: Path) -> None:
    """Write a machine's database as the old server wrote it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE anomaly (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
        )
        connection.executemany(
            "INSERT INTO anomaly (time, threshold, score) VALUES (?, 1.0, 1.5)",
            [(f"2026-01-01 {n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}.000000",) for n in range(ROWS)],
        )
        connection.commit()


def _asked(
    daemon: Daemon, is_over: Callable[[], bool], seconds: float, sizes: list[float] | None = None
) -> list[float]:
    """Ask for ``latest`` again and again; the seconds that each answer took."""
    waits = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not is_over():
        asked = time.monotonic()
        if daemon.get("/api/scale-gateway/latest/")[0] != 200:
            raise RuntimeError("latest is not answered")
        waits.append(time.monotonic() - asked)
        if sizes is not None:
            sizes.append(daemon.resident_mib())
        time.sleep(0.02)
    return waits


def _p99(waits: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(waits, n=100)[98] * 1000


# -- the crowd, a process of its own


class _Client:
    """One connection, and when the daemon closed it."""

    def __init__(self, port: int, first: bytes, drip: bytes = b"", reads: bool = False) -> None:
        self.closed_after: float | None = None
        self._drip = drip
        self._reads = reads
        self._socket = socket.socket()
        # So that little waits in the operating system.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(first)
        self._began = time.monotonic()
        self._socket.setblocking(False)

    def step(self) -> None:
        """Send or read one byte more, and see whether the daemon has closed."""
        if self.closed_after is not None:
            return
        try:
            if self._drip:
                self._socket.send(self._drip)
                # A refusal is an answer: nobody reads those of the others.
                with contextlib.suppress(BlockingIOError):
                    if not self._socket.recv(65536):
                        self._over()
            elif self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
                # What has come before the end can still be read.
                self._over()
            elif self._reads:
                with contextlib.suppress(BlockingIOError):
                    self._socket.recv(1)
        except OSError:
            self._over()

    def _over(self) -> None:
        self.closed_after = time.monotonic() - self._began
        self._socket.close()


def _crowd(port: int) -> None:
    """All of them at once, until each is closed; tell how many were, and after how many seconds the last."""
    commit = b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    pipelined = [b"/metrics", b"/healthz", b"/none"]
    kinds: list[Callable[[], _Client]] = [
        *[lambda: _Client(port, b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"y")] * HEADS,
        *[lambda: _Client(port, commit, b"z")] * BODIES,
        *[lambda: _Client(port, _LARGE, reads=True)] * DRIPS,
        *[lambda: _Client(port, _LARGE)] * READERS,
        *[
            lambda path=pipelined[number % 3]: _Client(port, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path * 190)
            for number in range(PIPELINED)
        ],
    ]
    random.shuffle(kinds)
    clients: list[_Client] = []
    threads = [threading.Thread(target=_open, args=(kinds[start::4], clients)) for start in range(4)]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + 60
    while time.monotonic() < ends and (
        any(thread.is_alive() for thread in threads) or any(client.closed_after is None for client in clients)
    ):
        began = time.monotonic()
        for client in clients:
            client.step()
        time.sleep(max(0.0, 1 - (time.monotonic() - began)))
    closed = [client.closed_after for client in clients if client.closed_after is not None]
    sys.stdout.write(json.dumps({"closed": len(closed), "last": max(closed, default=0.0)}))


def _open(kinds: list[Callable[[], _Client]], clients: list[_Client]) -> None:
    for kind in kinds:
        clients.append(kind())  # noqa: PERF401 - others look at those that are there


if __name__ == "__main__":
    _crowd(**json.loads(sys.argv[1]))
