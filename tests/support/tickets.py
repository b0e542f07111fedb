"""A client that commits one cylinder after the other, while the gateway and its server fail."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import pairwise
from typing import Any

from tests.support.daemon import Daemon, until
from tests.support.postgres import Server

#: Maximum seconds until a commit is answered with 200, restarts of the gateway included.
_MAX_TRIES = 20.0


@dataclass(slots=True)
class CommitClient:
    """Client that repeats each commit with its key until it is answered with 200.

    :ivar waits: seconds of each request that was answered with 200.
    :ivar answers: answers by cylinder, in their order.
    """

    daemon: Daemon
    waits: list[float] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def commit(self, number: int) -> None:
        """Commit one cylinder."""
        name = f"CY-{number:06}"
        end = time.monotonic() + _MAX_TRIES
        while time.monotonic() < end:
            began = time.monotonic()
            with contextlib.suppress(OSError, HTTPException):
                status, answer, _ = self.daemon.commit(name, key=name)
                if status == 200:
                    self.waits.append(time.monotonic() - began)
                    self.answers[name] = answer
                    return
                # The gateway was started again, and has no weight yet; if it cannot look up the key, it answers 503.
                self.daemon.weigh(b"ST,+00053.26 kg")
            time.sleep(0.02)
        raise AssertionError(f"{name} is not committed")

    def lost_twice_disordered(self, server: Server) -> tuple[int, int, int]:
        """Return how many commits have no row, how many rows are too many, and how many come too early."""
        rows = [name for (name,) in server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id")]
        lost = len(set(self.answers) - set(rows))
        disordered = sum(one > other for one, other in pairwise(rows))
        return lost, len(rows) - len(set(rows)), disordered


def set_read_only(server: Server, *, is_read_only: bool) -> None:
    """Let new sessions be read-only, and end those that are not."""
    server.sql(
        f"ALTER SYSTEM {'SET' if is_read_only else 'RESET'} default_transaction_read_only" + " = on" * is_read_only
    )
    server.sql("SELECT pg_reload_conf()")


def wait_forwarded(daemon: Daemon) -> None:
    """Wait until no ticket waits."""
    until(lambda: daemon.metric("cynow_tickets_waiting") == 0, "no ticket waits")


def failures(server: Server) -> "dict[str, tuple[Callable[[], object], Callable[[], object]]]":
    """Return the ways in which the server fails, each with its end."""
    return {
        "killed": (server.stop, server.start),
        "silent": (server.pause, server.resume),
        "read-only": (
            lambda: set_read_only(server, is_read_only=True),
            lambda: set_read_only(server, is_read_only=False),
        ),
    }


def restart(daemon: Daemon) -> None:
    """Kill the gateway with SIGKILL, and start it."""
    daemon.kill()
    daemon.start()
