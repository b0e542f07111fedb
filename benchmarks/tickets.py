"""Commits as tickets while PostgreSQL is killed, silent and read-only, and the gateway is killed at random."""

import random
import statistics
from pathlib import Path
from typing import Final

from benchmarks.table import Row
from tests.support.daemon import Daemon, until
from tests.support.postgres import Server
from tests.support.tickets import CommitClient, failures, restart, wait_forwarded

#: Commits at 60 seconds of load, and between two failures or their ends.
COMMITS: Final = 10_000
STEP: Final = 250

#: Part of the steps after which the gateway is killed.
KILLS: Final = 0.3


def rows(folder: Path, seconds: float) -> list[Row]:
    """Return what became of the commits; fewer with less time."""
    chance = random.Random(15)
    server = Server()
    server.start()
    scale = {"commit_when_away": "ticket"}
    daemon = Daemon(folder, database={"url": server.url}, gateway={"name": "hall-1"}, scale=scale)
    count = max(STEP * 4, round(COMMITS * min(1.0, seconds / 60)))
    try:
        daemon.start()
        until(lambda: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is connected")
        client = CommitClient(daemon)
        ways = list(failures(server).values())
        kills = 0
        for begin in range(0, count, STEP):
            step = begin // STEP
            fail, mend = ways[step // 2 % len(ways)]
            (mend if step % 2 else fail)()
            killed_at = chance.randrange(STEP) if chance.random() < KILLS else -1
            for number in range(STEP):
                client.commit(begin + number)
                if number == killed_at:
                    restart(daemon)
                    kills += 1
        # An even number of steps leaves the server mended.
        server.resume()
        wait_forwarded(daemon)
        lost, twice, disordered = client.lost_twice_disordered(server)
    finally:
        daemon.end()
        server.remove()
    p99 = statistics.quantiles(client.waits, n=100)[98] * 1000
    tickets = sum(answer["id"] is None for answer in client.answers.values())
    text = f"{count} commits ({tickets} tickets), PostgreSQL fails in 3 ways, gateway killed {kills} times"
    return [
        Row(f"{text}: lost", f"{lost}", "0", lost == 0),
        Row(f"{text}: written twice", f"{twice}", "0", twice == 0),
        Row(f"{text}: out of order", f"{disordered}", "0", disordered == 0),
        Row(f"{text}: p99", f"{p99:.1f} ms", "under 100 ms", p99 < 100),
        Row(f"{text}: longest", f"{max(client.waits) * 1000:.0f} ms", "", True),
    ]
