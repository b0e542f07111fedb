"""Run the benchmarks and print a table: what, this gateway's figure, what it is held against, the ratio, the goal.

Daemons, peers and loads are processes of their own; what one of them uses is read from /proc.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import (
    access,
    carbon,
    connections,
    daq,
    events,
    guards,
    hostile_frames,
    http,
    lines,
    micro,
    outage,
    plant,
    processes,
    record,
    recovery,
    reloads,
    scales,
    slow_peers,
    socketio_peer,
    start,
    storm,
    tickets,
)
from benchmarks.compare import compare
from benchmarks.table import Row, table

#: By name: the rows of a benchmark, which has a folder of its own and some seconds of load, and the part of
#: ``--seconds`` that these are.
BENCHMARKS: Final[dict[str, tuple[Callable[[Path, float], list[Row]], float]]] = {
    "start": (start.rows, 1.0),
    "connections": (connections.rows, 1.0),
    "daq": (daq.rows, 1.0),
    "lines": (lines.rows, 1.0),
    "scales": (scales.thousand_scales, 0.5),
    "carbon": (carbon.rows, 1.0),
    "http": (http.rows, 0.15),
    "access": (access.rows, 0.5),
    "guards": (guards.rows, 0.5),
    "events": (events.rows, 0.5),
    "slow": (slow_peers.rows, 0.0),
    "socketio": (socketio_peer.rows, 1.0),
    "processes": (processes.rows, 1.0),
    "recovery": (lambda folder, _: recovery.rows(folder), 0.0),
    "reloads": (lambda folder, _: reloads.rows(folder), 0.0),
    "record": (record.rows, 1.0),
    "outage": (outage.rows, 0.4),
    "storm": (storm.rows, 1.0),
    "tickets": (tickets.rows, 1.0),
    "frames": (lambda _folder, _seconds: hostile_frames.rows(), 0.0),
}


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["plant"]:
        raise SystemExit(plant.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"only these: {', '.join(BENCHMARKS)}; or micro; or plant; or compare REVISION",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="the length of a long load (default %(default)s)")
    parser.add_argument("--save", type=Path, help="also write the rows as JSON to this file")
    options = parser.parse_args()
    if options.names == ["micro"]:
        micro.main([])
        return
    if options.names[:1] == ["compare"]:
        if len(options.names) != 2:
            parser.error("compare needs a revision to compare with")
        raise SystemExit(compare(options.names[1]))
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark: {', '.join(unknown)}")
    rows: list[Row] = []
    for name in options.names or BENCHMARKS:
        work, part = BENCHMARKS[name]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
            rows += work(Path(folder), options.seconds * part)
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(table(rows))
    if options.save is not None:
        options.save.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
