"""Commits with all guards and the record against commits without, paired in one run.

In both, each client has a scale of its own, which is emptied by a line between two commits.
"""

import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.committers import commit_for
from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from tests.support.daemon import TWISTD, Daemon, free_ports
from tests.support.plant import GUARDS

ROUNDS: Final = 5
COMMITTERS: Final = 20
GOAL: Final = 0.8

_CODE: Final = (
    "from gateway.record.book import RecordBook; RecordBook.write_commit = lambda *_: None; "
    "from twisted.scripts.twistd import run; run()"
)

#: A gateway whose commits are not in the record.
_NO_RECORD: Final = [
    sys.executable,
    "-c",
    _CODE,
    *TWISTD[1:],
]

_VARIANTS: Final[dict[str, tuple[list[str] | None, dict[str, Any]]]] = {
    # A millisecond, so that stability costs its check, and not the operator's wait.
    "all guards and the record": (None, {**GUARDS, "require_stable_ms": 1}),
    "the record alone": (None, {}),
    "neither": (_NO_RECORD, {}),
}


def rows(folder: Path, seconds: float) -> list[Row]:
    """Measure each variant in turn, for so many seconds in all."""
    rates: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    costs: dict[str, list[float]] = {name: [] for name in _VARIANTS}
    with contextlib.ExitStack() as stack:
        daemons = {}
        for name, (twistd, keys) in _VARIANTS.items():
            ports = free_ports(COMMITTERS)
            lines = {f"dock-{number}": {"listen": f"tcp:{port}"} for number, port in enumerate(ports)}
            place = folder / name.replace(" ", "-")
            place.mkdir()
            daemon = Daemon(place, twistd, scale=keys, scales=lines)
            stack.callback(daemon.end)
            daemon.start()
            commit_for(daemon.port, COMMITTERS, 2.0, ports)
            daemons[name] = daemon, ports
        part = max(0.5, seconds / ROUNDS / len(_VARIANTS))
        for _ in range(ROUNDS):
            for name, (daemon, ports) in daemons.items():
                before = cpu_seconds(daemon.process.pid)
                commits, took = commit_for(daemon.port, COMMITTERS, part, ports)
                rates[name].append(commits / took)
                costs[name].append((cpu_seconds(daemon.process.pid) - before) / commits)
    return [_row(name, rates, costs) for name in _VARIANTS if name != "all guards and the record"]


def _row(name: str, rates: dict[str, list[float]], costs: dict[str, list[float]]) -> Row:
    full = "all guards and the record"
    ratio = statistics.median(mine / its for mine, its in zip(rates[full], rates[name], strict=True))
    return Row(
        f"commits of {COMMITTERS} scales, embedded store: {full}",
        _text(rates[full], costs[full]),
        f">= {GOAL} x {name}",
        ratio >= GOAL,
        f"{name} {_text(rates[name], costs[name])}",
        ratio,
    )


def _text(rates: list[float], costs: list[float]) -> str:
    return f"{statistics.median(rates):.0f} a second, {1e6 * statistics.median(costs):.0f} us of CPU each"
