"""Run the benchmarks and print a table: what, this gateway's figure, the goal, whether it is met."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import events, outage, recovery
from benchmarks.idle import idle
from benchmarks.scales import thousand_scales
from benchmarks.table import Row, table


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (default %(default)s)")
    parser.add_argument("--save", type=Path, help="also write the rows as JSON to this file")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
        rows += idle(Path(folder))
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
        rows += thousand_scales(Path(folder), options.seconds)
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
        rows += recovery.rows(Path(folder))
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
        rows += events.rows(Path(folder), options.seconds)
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-") as folder:
        rows += outage.rows(Path(folder), options.seconds)
    sys.stdout.write(table(rows))
    if options.save is not None:
        options.save.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
