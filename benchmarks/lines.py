"""Lines of scales: what one costs from the socket to the bus, against a Twisted receiver that drops its lines."""

import contextlib
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu import run_seconds
from benchmarks.table import Row
from tests.support.daemon import Daemon, free_ports, running, until

#: Scales that send at the same time.
CONNECTIONS: Final = 200

#: Lines of a round: where each is read before its scale sends the next; as fast as they are taken; of a lone scale.
IN_TURN: Final = 50_000
FLAT_OUT: Final = 100_000
BULK: Final = 400_000

#: How often the gateway and the bare receiver are measured in turn.
ROUNDS: Final = 5

#: Different lines that are sent again and again.
VARIETY: Final = 5_000


def rows(folder: Path, seconds: float) -> list[Row]:
    """All of them; a round of one server takes about a second where ``seconds`` is 60."""
    scale = seconds / 60
    with running(folder) as daemon, _bare() as (bare, bare_port):
        servers = ((daemon.process.pid, daemon.scale_port), (bare, bare_port))
        sent = 0

        def load(lines: int, **options: Any) -> list[list[tuple[float, float]]]:
            """For each round of each server: lines a CPU second of it, and lines a second."""
            nonlocal sent
            options["count"] = count = round(scale * lines / CONNECTIONS) * CONNECTIONS
            found = []
            for _ in range(ROUNDS):
                found.append([_round(pid, port, options) for pid, port in servers])
                sent += count
            return found

        in_turn = load(IN_TURN, connections=CONNECTIONS, waits=True)
        flat_out = load(FLAT_OUT, connections=CONNECTIONS)
        bulk = load(BULK, connections=1)
        _all_there(daemon, sent)
    work = f"lines of {CONNECTIONS} scales, one a write"
    per_cpu_second = statistics.median(mine for ((mine, _), _) in bulk)
    return [
        _against(f"{work}, one a read", "a CPU second", [(mine, its) for ((mine, _), (its, _)) in in_turn]),
        _against(f"{work}, flat out", "a second", [(mine, its) for ((_, mine), (_, its)) in flat_out]),
        Row(
            "lines of one scale, flat out",
            f"{per_cpu_second / 1e6:.2f} M readings a CPU second, {1e6 / per_cpu_second:.1f} us each",
            "at least 0.3 M",
            per_cpu_second >= 0.3e6,
            f"bare LineOnlyReceiver {statistics.median(bare for (_, (bare, _)) in bulk) / 1e6:.2f} M",
        ),
    ]


def _against(what: str, unit: str, rates: list[tuple[float, float]]) -> Row:
    mine, bare = (statistics.median(each) for each in zip(*rates, strict=True))
    ratio = statistics.median(mine / bare for mine, bare in rates)
    return Row(
        what,
        f"{mine / 1000:.0f} k readings {unit}",
        "at least 0.5 of its rate",
        ratio >= 0.5,
        f"bare LineOnlyReceiver {bare / 1000:.0f} k",
        ratio,
    )


def _round(pid: int, port: int, options: dict[str, Any]) -> tuple[float, float]:
    """Lines a CPU second of a server, and lines a second."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lines", "load", json.dumps({"pid": pid, "port": port, **options})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the scales could not connect")
        before = run_seconds(pid)
        process.stdin.write("go\n")
        took = float(process.stdout.readline())
        used = run_seconds(pid) - before
    return options["count"] / used, options["count"] / took


def _all_there(daemon: Daemon, sent: int) -> None:
    """Every line became a reading, and the last of a round is what ``latest`` shows."""
    until(lambda: sum(daemon.metrics("cynow_scale_readings_total")) >= sent, f"{sent} readings")
    heard = sum(daemon.metrics("cynow_scale_readings_total"))
    if heard != sent:
        raise RuntimeError(f"{heard:.0f} readings of {sent} lines")
    status, latest, _ = daemon.get("/api/scale-gateway/latest/")
    if status != 200 or latest["raw"].encode() + b"\r\n" not in lines():
        raise RuntimeError(f"latest answered {status} {latest}")


def lines() -> list[bytes]:
    """Lines as scales send them, most of them stable, of two makes and many weights."""
    chance = random.Random(1)
    return [
        b"%s%s%s\r\n"
        % (
            chance.choice((b"ST", b"ST", b"US")),
            *chance.choice(((b",+%08.2f" % weight, b" kg"), (b" , +%09.2f" % weight, b" _kg"))),
        )
        for weight in (chance.uniform(0.0, 300.0) for _ in range(VARIETY))
    ]


# -- the processes


@contextlib.contextmanager
def _bare() -> Iterator[tuple[int, int]]:
    """The bare receiver; its process and its port."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lines", "bare", json.dumps({"port": port})], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the bare receiver did not start")
        yield process.pid, port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _receive(port: int) -> None:
    """Receive lines and drop them."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory
    from twisted.protocols.basic import LineOnlyReceiver

    class Drop(LineOnlyReceiver):
        def lineReceived(self, line: bytes) -> None:
            pass

    its: Any = reactor
    its.listenTCP(port, Factory.forProtocol(Drop), interface="127.0.0.1")
    its.callWhenRunning(_say, "ready")
    its.run()


def _load(pid: int, port: int, connections: int, count: int, waits: bool = False) -> None:
    """Send so many lines, in turn on all connections, one a write; a lone connection gets many in one.

    It says the seconds from the first line until the server, which closes a connection that has ended, has read all.

    :param pid: of the server.
    :param waits: whether each line of a connection is read before its next one is sent.
    """
    variety = lines()
    scales = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for scale in scales:
        scale.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _say("ready")
    sys.stdin.readline()
    began = time.perf_counter()
    if connections == 1:
        together = b"".join(variety)
        for _ in range(count // VARIETY):
            scales[0].sendall(together)
        scales[0].sendall(b"".join(variety[: count % VARIETY]))
    else:
        sends = [scale.send for scale in scales]
        supply = itertools.cycle(variety)
        for _ in range(count // connections):
            for send in sends:
                send(next(supply))
            while waits and _is_busy(pid):
                time.sleep(0.0002)
    for scale in scales:
        scale.shutdown(socket.SHUT_WR)
    for scale in scales:
        while scale.recv(4096):
            pass
    _say(f"{time.perf_counter() - began}")


def _is_busy(pid: int) -> bool:
    """Whether a server's reactor has something to do; when it sleeps, it has read all that was sent."""
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0] != "S"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"load": _load, "bare": _receive}
    commands[sys.argv[1]](**json.loads(sys.argv[2]))
