"""Start of the daemon against ``twistd web``, and its memory when it has nothing to do."""

import contextlib
import os
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.table import Row
from tests.support.daemon import TWISTD, Daemon, free_ports

#: How often the two are started in turn.
ROUNDS: Final = 5

GOAL: Final = 2.0


def rows(folder: Path, seconds: float) -> list[Row]:
    """Seconds from the start of the process to its first answer by HTTP, and MiB resident a second later.

    Both find their modules compiled, as they are where pip has installed them: what the first start of each compiles
    is kept for the next ones, wherever the environment would have it.
    """
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    starts, its_starts, sizes = [], [], []
    for number in range(ROUNDS + 1):
        home = folder / str(number)
        home.mkdir()
        its_starts.append(_start_web(home, env))
        daemon = Daemon(home)
        began = time.monotonic()
        daemon.run(env=env)
        try:
            _answers(daemon.process, daemon.port)
            starts.append(time.monotonic() - began)
            time.sleep(1)
            sizes.append(daemon.resident_mib())
        finally:
            daemon.end()
    ratio = statistics.median(mine / its for mine, its in zip(starts[1:], its_starts[1:], strict=True))
    size = statistics.median(sizes)
    return [
        Row(
            f"start to the first answer, median of {ROUNDS}",
            f"{statistics.median(starts[1:]):.2f} s",
            f"under {GOAL} x",
            ratio < GOAL,
            f"twistd web {statistics.median(its_starts[1:]):.2f} s",
            ratio,
        ),
        Row(f"resident at idle, median of {ROUNDS}", f"{size:.1f} MiB", "under 80 MB (76.3 MiB)", size * 2**20 < 80e6),
    ]


def _start_web(folder: Path, env: dict[str, str]) -> float:
    """Seconds until ``twistd web`` answers."""
    (port,) = free_ports(1)
    site = folder / "site"
    site.mkdir()
    listen = f"tcp:{port}:interface=127.0.0.1"
    began = time.monotonic()
    with (folder / "web.txt").open("wb") as output:
        process = subprocess.Popen(
            [*TWISTD[:-1], "web", "--listen", listen, "--path", str(site)],
            cwd=folder,
            stdout=output,
            stderr=output,
            env={**os.environ, **env},
        )
    try:
        _answers(process, port)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


def _answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait for an answer, whatever it is."""
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if client.recv(4096).startswith(b"HTTP/1.1 "):
                return
        time.sleep(0.002)
    raise RuntimeError("it has ended instead of answering")
