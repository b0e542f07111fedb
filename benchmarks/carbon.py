"""Scale lines and DAQ messages against the line and pickle receivers of ``carbon-cache``, values for CPU time.

Its values are cached and not written (see ``peers/carbon_cache.py``), while this gateway's are live at once and, of
machines, in statistics and on the disk.
"""

import json
import math
import pickle
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu import run_seconds
from benchmarks.daq import messages
from benchmarks.peers.carbon_cache import VARIABLE, CarbonCache, script
from benchmarks.table import Row
from tests.support.daemon import Daemon, running

#: How often this gateway and carbon-cache are measured in turn.
ROUNDS: Final = 3

#: Values of one round for each second of the benchmark. carbon-cache takes about six seconds for 1,000,000.
VALUES: Final = 4_000

#: Seconds until samples that were received have been written to the operating system too.
WRITTEN: Final = 1.2

#: A message of a machine.
SENSORS: Final = 4
SAMPLES: Final = 30

#: What carbon's own relay sends at a time (MAX_DATAPOINTS_PER_MESSAGE).
BATCH: Final = 500

GOAL: Final = 3.0

_SCALE: Final = "plant.scale.default.weight"
_MACHINE: Final = [f"plant.machine.shot_blast.vib{number}" for number in range(SENSORS)]


@dataclass(frozen=True, slots=True)
class _Side:
    """A server that is sent values.

    :ivar kind: of the values.
    :ivar count: of those that it says it has got.
    :ivar rest: seconds for which it goes on working after it has read everything.
    """

    pid: int
    port: int
    kind: str
    count: Callable[[], int]
    rest: float = 0.0

    def cost(self, first: int, values: int) -> float:
        """CPU seconds for so many values, which all arrive."""
        before = run_seconds(self.pid)
        options = {"kind": self.kind, "port": self.port, "first": first, "values": values}
        subprocess.run([sys.executable, "-m", "benchmarks.carbon", json.dumps(options)], check=True)
        time.sleep(self.rest)
        used = run_seconds(self.pid) - before
        # Asking costs too.
        found = self.count()
        if found != first + values:
            raise RuntimeError(f"{self.kind}: {found} values, and not {first + values}")
        return used


def rows(folder: Path, seconds: float) -> list[Row]:
    """Lines against lines, messages against pickles."""
    command = script()
    if command is None:
        missing = f"missing: carbon ({VARIABLE} names carbon-cache.py)"
        return [Row("values, against carbon-cache", "", f"at least {GOAL} x", peer=missing)]
    for name in ("gateway", "lines", "pickles"):
        (folder / name).mkdir()
    # Whole messages and whole batches.
    step = math.lcm(BATCH, SENSORS * SAMPLES)
    values = max(1, round(VALUES * seconds / step)) * step
    with (
        running(folder / "gateway") as daemon,
        CarbonCache(folder / "lines", command) as lines,
        CarbonCache(folder / "pickles", command) as pickles,
    ):
        pid = daemon.process.pid
        return [
            _row(
                "scale lines on one connection, against carbon's line receiver",
                _Side(pid, daemon.scale_port, "scale", lambda: _total(daemon, "cynow_scale_readings_total")),
                _Side(lines.process.pid, lines.line_port, "line", lambda: lines.count([_SCALE])),
                values,
            ),
            _row(
                f"DAQ messages of {SENSORS} x {SAMPLES}, against carbon's pickle receiver ({BATCH} a batch)",
                _Side(pid, daemon.daq_port, "daq", lambda: _total(daemon, "cynow_daq_samples_total"), WRITTEN),
                _Side(pickles.process.pid, pickles.pickle_port, "pickle", lambda: pickles.count(_MACHINE)),
                values,
            ),
        ]


def _total(daemon: Daemon, name: str) -> int:
    return round(sum(daemon.metrics(name)))


def _row(what: str, mine: _Side, its: _Side, values: int) -> Row:
    """The same number of values to one and the other, in turn."""
    rates, its_rates = [], []
    for number in range(ROUNDS):
        its_rates.append(values / its.cost(number * values, values))
        rates.append(values / mine.cost(number * values, values))
    ratio = statistics.median(rate / other for rate, other in zip(rates, its_rates, strict=True))
    return Row(
        f"{what}, {values} values",
        f"{statistics.median(rates) / 1e6:.2f} M values a CPU second",
        f"at least {GOAL} x",
        ratio >= GOAL,
        f"carbon-cache {statistics.median(its_rates) / 1e6:.2f} M values a CPU second",
        ratio,
    )


# -- the process that sends


def _send(kind: str, port: int, first: int, values: int) -> None:
    """Send so many values as fast as they are taken; done when all of them were read.

    :param first: the number of the first of them; carbon-cache keeps one value for each time.
    """
    blocks = _BLOCKS[kind](random.Random(first), first, values)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for block in blocks:
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _scale_lines(chance: random.Random, _: int, values: int) -> list[bytes]:
    return [b"".join(b"ST , %+010.2f _kg\r\n" % chance.uniform(0, 100) for _ in range(values))]


def _carbon_lines(chance: random.Random, first: int, values: int) -> list[bytes]:
    times = range(1_700_000_000 + first, 1_700_000_000 + first + values)
    return [b"".join(b"%b %.2f %d\n" % (_SCALE.encode(), chance.uniform(0, 100), time) for time in times)]


def _daq_messages(_: random.Random, __: int, values: int) -> list[bytes]:
    frames = [each + b"\\o" for each in messages(SENSORS, SAMPLES)]
    count = values // (SENSORS * SAMPLES)
    whole, rest = divmod(count, len(frames))
    return [pickle.dumps(("name", "ShotBlast")) + b"\\o", *[b"".join(frames)] * whole, *frames[:rest]]


def _carbon_pickles(chance: random.Random, first: int, values: int) -> list[bytes]:
    blocks = []
    for start in range(first, first + values, BATCH):
        points = [
            (_MACHINE[number % SENSORS], (1_700_000_000.0 + number // SENSORS, chance.gauss(0.0, 1.0)))
            for number in range(start, start + BATCH)
        ]
        text = pickle.dumps(points, protocol=2)
        blocks.append(len(text).to_bytes(4) + text)
    return [b"".join(blocks)]


_BLOCKS: Final[dict[str, Callable[[random.Random, int, int], list[bytes]]]] = {
    "scale": _scale_lines,
    "line": _carbon_lines,
    "daq": _daq_messages,
    "pickle": _carbon_pickles,
}


def _main(options: dict[str, Any]) -> None:
    _send(**options)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
