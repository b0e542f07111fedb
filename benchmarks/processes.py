"""Two gateway processes that share the ports of this machine against one, with the same load.

The load runs on the same cores, and so does PostgreSQL: what two processes gain in wall time is bounded by what these
take. CPU seconds are the gateways' alone.
"""

import json
import pickle
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.daq import messages
from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from tests.support.daemon import Daemon, until
from tests.support.postgres import Server
from tests.support.processes import Site, others

#: How often one process and two are measured in turn.
ROUNDS: Final = 3

#: Sensors and samples of a message of a machine.
SENSORS: Final = 4
SAMPLES: Final = 30


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of load.

    :ivar port: the attribute of a site that it goes to.
    :ivar count: the metric that counts it.
    :ivar pieces: in one write of a connection; the load has to be cheaper than the work.
    :ivar writes: of each connection, for each second that is asked for.
    """

    name: str
    port: str
    count: str
    connections: int
    pieces: int
    writes: float


WORK: Final = (
    Work(f"DAQ messages of {SENSORS} x {SAMPLES}", "daq_port", "cynow_daq_messages_total", 32, 64, 0.25),
    Work("scale lines", "scale_port", "cynow_scale_readings_total", 200, 20, 0.6),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What some processes did together.

    :ivar rate: pieces of work a second of the wall clock.
    :ivar cost: CPU seconds of the processes for each.
    :ivar busy: cores that the processes kept busy.
    """

    rate: float
    cost: float
    busy: float


def rows(folder: Path, seconds: float) -> list[Row]:
    """Both kinds of load on one process and on two, in turn."""
    server = Server()
    site = None
    found: dict[tuple[str, int], list[Figures]] = {}
    try:
        server.start()
        site = Site(folder, server.url)
        for number in range(ROUNDS):
            daemons: list[Daemon] = []
            for name in ("a", "b"):
                # In new folders: what a round before has written is not to be read again.
                daemons.append(site.process(f"{name}{number}"))
                site.start(daemons[-1])
                for daemon in daemons:
                    until(others(daemon, len(daemons) - 1), "they hear each other")
                for work in WORK:
                    figures = measured(site, work, daemons, max(1, round(seconds * work.writes)))
                    found.setdefault((work.name, len(daemons)), []).append(figures)
            for daemon in daemons:
                daemon.terminate()
                shutil.rmtree(daemon.folder / "data")
    finally:
        if site is not None:
            site.end()
        server.remove()
    return [_row(work, found[work.name, 1], found[work.name, 2]) for work in WORK]


def _row(work: Work, one: list[Figures], two: list[Figures]) -> Row:
    ratio = statistics.median(mine.rate / its.rate for mine, its in zip(two, one, strict=True))
    return Row(
        f"{work.name}, {work.connections} connections: two processes",
        _text(two),
        peer=f"one process {_text(one)}",
        ratio=ratio,
    )


def _text(figures: list[Figures]) -> str:
    rate, cost, busy = (statistics.median(getattr(each, name) for each in figures) for name in ("rate", "cost", "busy"))
    return f"{rate / 1000:.1f} k/s, {1e6 * cost:.0f} us each, {busy:.2f} cores"


def measured(site: Site, work: Work, daemons: list[Daemon], writes: int) -> Figures:
    """What the processes do with so many writes on each connection, all at once: until every piece is counted."""
    options = {
        "port": getattr(site, work.port),
        "kind": work.port,
        "connections": work.connections,
        "pieces": work.pieces,
        "writes": writes,
    }
    load = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.processes", json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert load.stdout is not None
    load.stdout.readline()
    until(lambda: sum(map(_open, daemons)) == work.connections, "they are connected")
    count, cpu, began = _done(work, daemons), _cpu(daemons), time.monotonic()
    wanted = count + work.connections * work.pieces * writes
    load.communicate("")
    until(lambda: _done(work, daemons) == wanted, f"{wanted} pieces of work")
    took, used = time.monotonic() - began, _cpu(daemons) - cpu
    until(lambda: not any(map(_open, daemons)), "the load is gone")
    return Figures((wanted - count) / took, used / (wanted - count), used / took)


def _cpu(daemons: list[Daemon]) -> float:
    return sum(cpu_seconds(daemon.process.pid) for daemon in daemons)


def _done(work: Work, daemons: list[Daemon]) -> float:
    return sum(sum(daemon.metrics(work.count)) for daemon in daemons)


def _open(daemon: Daemon) -> float:
    """Connections of devices."""
    return daemon.metric("cynow_connections", kind="scale") + daemon.metric("cynow_connections", kind="daq")


# -- the load, in a process of its own


def _load(kind: str, port: int, connections: int, pieces: int, writes: int) -> None:
    """Connect, say so, and once standard input ends write to each connection as fast as it takes it."""
    block = _messages(pieces) if kind == "daq_port" else _lines(pieces)
    sockets: dict[int, socket.socket] = {}
    #: Of each connection: what it has not taken yet of a block, and how many blocks are left.
    rest: dict[int, tuple[memoryview, int]] = {}
    waiting = select.epoll()
    for number in range(connections):
        each = socket.create_connection(("127.0.0.1", port))
        if kind == "daq_port":
            each.sendall(pickle.dumps(("name", f"M{number:02}")) + b"\\o")
        each.setblocking(False)
        sockets[each.fileno()] = each
        rest[each.fileno()] = memoryview(block), writes - 1
        waiting.register(each, select.EPOLLOUT)
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    sys.stdin.read()
    while rest:
        for fd, _ in waiting.poll():
            data, left = rest[fd]
            data = data[sockets[fd].send(data) :]
            if data:
                rest[fd] = data, left
            elif left:
                rest[fd] = memoryview(block), left - 1
            else:
                del rest[fd]
                waiting.unregister(fd)


def _messages(count: int) -> bytes:
    return b"".join(each + b"\\o" for each in messages(SENSORS, SAMPLES, count))


def _lines(count: int) -> bytes:
    return b"".join(b"ST , %+010.2f _kg\r\n" % (number / 100) for number in range(count))


if __name__ == "__main__":
    _load(**json.loads(sys.argv[1]))
