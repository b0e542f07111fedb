"""Socket.IO: one event to many clients, against python-socketio on uvicorn with the same clients and events."""

import contextlib
import importlib.util
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu import run_seconds
from benchmarks.crowd import Helper, paced
from benchmarks.table import Row
from tests.support.daemon import free_ports, running, until

CLIENTS: Final = 500
MACHINE: Final = "ShotBlast"
NAMESPACE: Final = f"/sio/{MACHINE}"

#: Events a second, and how often the two are measured in turn.
RATE: Final = 20
ROUNDS: Final = 3

GOAL: Final = 5.0

#: Seconds until all clients have heard what was sent.
PATIENCE: Final = 60.0


class _Clients(Helper):
    """The process of the clients of one server."""

    def __init__(self, port: int) -> None:
        options = {"port": port, "count": CLIENTS, "namespace": NAMESPACE}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.socketio_clients", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.wait("joined", CLIENTS)

    def wait(self, what: str, count: int) -> None:
        """Wait until so many have joined, or so many events were heard by all together."""
        end = time.monotonic() + PATIENCE
        while (found := self.ask("count"))[what] < count:
            if time.monotonic() > end:
                raise RuntimeError(f"{found}, and not {count} {what}")
            time.sleep(0.05)
        if found["different"]:
            raise RuntimeError("not all clients got the same")


@dataclass(frozen=True, slots=True)
class _Side:
    """A server with its clients.

    :ivar send: gives it an event.
    """

    pid: int
    clients: _Clients
    send: Callable[[dict[str, float]], None]

    def rate(self, first: int, count: int) -> float:
        """Events delivered for each CPU second, while so many come one by one; every client gets each of them."""
        events = [{"score": float(number), "threshold": 1e9} for number in range(first, first + count)]
        before = run_seconds(self.pid)
        for number in paced(count, RATE):
            self.send(events[number])
        self.clients.wait("heard", count * CLIENTS)
        used = run_seconds(self.pid) - before
        if self.clients.ask("events") != [["anomaly", event] for event in events]:
            raise RuntimeError("other events than those that were sent")
        return count * CLIENTS / used


def rows(folder: Path, seconds: float) -> list[Row]:
    """One row; the faults are below their threshold, which the peer's application does not look at either."""
    missing = [name for name in ("socketio", "uvicorn") if importlib.util.find_spec(name) is None]
    what = f"one Socket.IO event to {CLIENTS} clients, {RATE}/s"
    goal = f"at least {GOAL} x"
    if missing:
        return [Row(what, "", goal, peer=f"missing: {', '.join(missing)}")]
    count = max(1, round(RATE * seconds / 4 / (2 * ROUNDS)))
    with _gateway(folder) as mine, _peer(folder) as its:
        rates, its_rates = [], []
        # The first round is not counted: both have much to do for the first time.
        for number in range(ROUNDS + 1):
            its_rates.append(its.rate(number * count, count))
            rates.append(mine.rate(number * count, count))
    ratio = statistics.median(rate / other for rate, other in list(zip(rates, its_rates, strict=True))[1:])
    return [
        Row(
            what,
            f"{statistics.median(rates[1:]) / 1e3:.0f} k delivered a CPU second",
            goal,
            ratio >= GOAL,
            f"python-socketio on uvicorn {statistics.median(its_rates[1:]) / 1e3:.0f} k",
            ratio,
        )
    ]


@contextlib.contextmanager
def _gateway(folder: Path) -> Iterator[_Side]:
    with running(folder) as daemon:
        machine = daemon.daq(pickle.dumps(("name", MACHINE)) + b"\\o")

        def send(event: dict[str, float]) -> None:
            machine.sendall(pickle.dumps(("FaultDetect", event)) + b"\\o")

        with _Clients(daemon.port) as clients:
            yield _Side(daemon.process.pid, clients, send)


@contextlib.contextmanager
def _peer(folder: Path) -> Iterator[_Side]:
    port, feed_port = free_ports(2)
    command = [sys.executable, "-m", "uvicorn", "--factory", "benchmarks.peers.socketio_server:application"]
    with (folder / "uvicorn.txt").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--log-level", "warning"],
            stdout=output,
            stderr=output,
            env={**os.environ, "NAMESPACE": NAMESPACE, "FEED_PORT": str(feed_port)},
        )
    try:
        feed = until(lambda: _connected(feed_port), "the peer's feed listens")
        until(lambda: _connected(port), "the peer listens").close()

        def send(event: dict[str, float]) -> None:
            feed.sendall(json.dumps(event).encode() + b"\n")

        with feed, _Clients(port) as clients:
            yield _Side(process.pid, clients, send)
    finally:
        process.terminate()
        process.wait()


def _connected(port: int) -> Any:
    with contextlib.suppress(OSError):
        return socket.create_connection(("127.0.0.1", port))
    return None
