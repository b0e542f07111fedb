"""HTTP: ``latest`` against servers with the same answer, ``commit`` against bare transactions on the same store."""

import contextlib
import importlib.util
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg2
import pytest

from benchmarks.committers import commit_for
from benchmarks.peers.reading import VARIABLE
from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from tests.support.daemon import Daemon, free_ports, running, until
from tests.support.postgres import Server

#: How often everybody is measured in turn; the median counts.
ROUNDS: Final = 5

CONNECTIONS: Final = 50
COMMITTERS: Final = 20

#: Times the rate of the bare transactions.
COMMIT_GOAL: Final = 0.5

_LATEST: Final = "/api/scale-gateway/latest/"
_ROOT: Final = Path(__file__).parent.parent

_COLUMNS: Final = (
    "scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at, arrival_shipping_no, "
    "move_report_no"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of one process with the same answer.

    :ivar needs: the modules that must be there.
    :ivar command: how it is started; ``{port}`` is where it listens.
    :ivar goal: how many times its rate this gateway should have.
    """

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    goal: float

    def missing(self) -> str:
        """What is not installed."""
        return ", ".join(module for module in self.needs if importlib.util.find_spec(module) is None)

    @contextlib.contextmanager
    def running(self, port: int, latest: bytes) -> Iterator[None]:
        """Run it until the end of the block."""
        command = [sys.executable, "-m", *(word.format(port=port) for word in self.command)]
        process = subprocess.Popen(command, cwd=_ROOT, env={**os.environ, VARIABLE: latest.decode()})
        try:
            until(lambda: _answer(port) or process.poll(), f"{self.name} answers")
            yield
        finally:
            process.terminate()
            process.wait()


PEERS: Final = (
    Peer(
        "FastAPI on uvicorn[standard]",
        ("fastapi", "uvicorn", "httptools", "uvloop"),
        (
            *("uvicorn", "--port", "{port}", "--log-level", "warning", "--no-access-log"),
            *("--factory", "benchmarks.peers.fastapi_latest:app"),
        ),
        1.5,
    ),
    # Its usual worker is sync, which closes after each answer; gthread is no faster.
    Peer(
        "Django on gunicorn",
        ("django", "gunicorn"),
        (
            *("gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning"),
            "benchmarks.peers.django_latest:application()",
        ),
        4.0,
    ),
)


def rows(folder: Path, seconds: float) -> list[Row]:
    """Each is measured for so many seconds in all."""
    return [*_latest(folder, seconds), *_embedded(folder, seconds), *_on_server(folder, seconds)]


@contextlib.contextmanager
def _weighing(folder: Path, **settings: object) -> Iterator[Daemon]:
    """A gateway whose scale has shown a weight."""
    folder.mkdir()
    with running(folder, scale={"idle_timeout_sec": 3600}, **settings) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        until(daemon.latest_is(53.26), "the weight")
        yield daemon


# -- latest


def _latest(folder: Path, seconds: float) -> list[Row]:
    what = f"latest, {CONNECTIONS} connections kept alive"
    wrk = shutil.which("wrk")
    if wrk is None:
        return [Row(what, "missing: wrk", f">= {peer.goal} x {peer.name}") for peer in PEERS]
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(_weighing(folder / "latest"))
        expected = _answer(daemon.port)
        ports = {}
        for peer in PEERS:
            if not peer.missing():
                (ports[peer.name],) = free_ports(1)
                stack.enter_context(peer.running(ports[peer.name], expected))
                if _answer(ports[peer.name]) != expected:
                    raise RuntimeError(f"{peer.name} answers {_answer(ports[peer.name])!r}, and not {expected!r}")
        contenders = {"": daemon.port, **ports}
        for port in contenders.values():
            _rate(wrk, port, 1)
        before = cpu_seconds(daemon.process.pid)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, port in contenders.items():
                rates[name].append(_rate(wrk, port, max(1, round(seconds / ROUNDS))))
        used = cpu_seconds(daemon.process.pid) - before
    medians = {name: statistics.median(found) for name, found in rates.items()}
    answered = sum(rates[""]) * max(1, round(seconds / ROUNDS))
    ours = f"{medians['']:,.0f}/s, {1e6 * used / answered:.0f} us of CPU each"
    found = []
    for peer in PEERS:
        goal = f">= {peer.goal} x {peer.name}"
        if peer.name in medians:
            ratio = medians[""] / medians[peer.name]
            found.append(Row(what, ours, goal, ratio >= peer.goal, f"{peer.name}: {medians[peer.name]:,.0f}/s", ratio))
        else:
            found.append(Row(what, ours, goal, peer=f"missing: {peer.missing()}"))
    return found


def _answer(port: int) -> bytes:
    """What a server answers; nothing where there is none yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{_LATEST}", timeout=5) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError:
        raise
    except OSError:
        return b""


def _rate(wrk: str, port: int, seconds: int) -> float:
    """Good answers a second."""
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}{_LATEST}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if found is None or "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    return float(found[1])


# -- commit


def _embedded(folder: Path, seconds: float) -> list[Row]:
    with _weighing(folder / "embedded") as daemon:
        path = daemon.folder / "db" / "cynow-gateway.sqlite3"
        # As the gateway has it.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as store:
            store.execute("PRAGMA synchronous = FULL")
            daemon.commit()
            row = store.execute(f"SELECT {_COLUMNS} FROM scale_weight_log").fetchone()
            insert = f"INSERT INTO scale_weight_log ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})"

            def transaction() -> None:
                store.execute("BEGIN IMMEDIATE")
                store.execute(insert, row)
                store.execute("COMMIT")

            def count() -> int:
                return int(store.execute("SELECT count(*) FROM scale_weight_log").fetchone()[0])

            return _commits("embedded", daemon, transaction, count, seconds)


def _on_server(folder: Path, seconds: float) -> list[Row]:
    what = f"commit, PostgreSQL, {COMMITTERS} connections, each durable"
    try:
        server = Server(on_disk=True)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        return [Row(what, f"missing: {error}", f">= {COMMIT_GOAL} x bare transactions")]
    try:
        # Tests do without.
        with (server.folder / "data" / "postgresql.conf").open("a") as file:
            file.write("fsync = on\n")
        server.start()
        with (
            _weighing(folder / "server", database={"url": server.url}) as daemon,
            contextlib.closing(psycopg2.connect(server.url)) as connection,
        ):
            until(lambda: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is there")
            daemon.commit()
            cursor = connection.cursor()
            cursor.execute(f"SELECT {_COLUMNS} FROM scale_weight_log")
            row = cursor.fetchone()
            assert row is not None
            insert = f"INSERT INTO scale_weight_log ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(row))})"
            connection.commit()

            def transaction() -> None:
                cursor.execute(insert, row)
                connection.commit()

            def count() -> int:
                return int(server.sql("SELECT count(*) FROM scale_weight_log")[0][0])

            return _commits("PostgreSQL", daemon, transaction, count, seconds)
    finally:
        server.remove()


def _commits(
    store: str, daemon: Daemon, transaction: Callable[[], None], count: Callable[[], int], seconds: float
) -> list[Row]:
    """Commits and bare transactions in turn, on one table.

    :param transaction: writes one row as a commit does.
    :param count: of the rows that are there.
    """
    part = seconds / ROUNDS
    commit_for(daemon.port, COMMITTERS, 0.5)
    expected = count()
    used, answered = 0.0, 0
    rates: list[float] = []
    bare: list[float] = []
    for _ in range(ROUNDS):
        before = cpu_seconds(daemon.process.pid)
        commits, took = commit_for(daemon.port, COMMITTERS, part)
        used += cpu_seconds(daemon.process.pid) - before
        answered += commits
        rates.append(commits / took)
        done, began = 0, time.monotonic()
        while time.monotonic() - began < part:
            transaction()
            done += 1
        bare.append(done / (time.monotonic() - began))
        expected += commits + done
    if count() != expected:
        raise RuntimeError(f"{count()} rows, and not {expected}")
    ours, its = statistics.median(rates), statistics.median(bare)
    return [
        Row(
            f"commit, {store}, {COMMITTERS} connections, each durable",
            f"{ours:,.0f}/s, {1e6 * used / answered:.0f} us of CPU each",
            f">= {COMMIT_GOAL} x bare transactions",
            ours / its >= COMMIT_GOAL,
            f"bare transactions: {its:,.0f}/s",
            ours / its,
        )
    ]
