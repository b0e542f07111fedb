"""A simulated plant with twelve kinds of error: what is committed wrongly, and how many good weighings are refused.

``python -m benchmarks plant --weighings 100000`` runs it without and with the master data of cylinders.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from math import inf
from pathlib import Path
from typing import Final

from tests.support.plant_truth import Tally, planned, run

DOCKS: Final = 200

#: Part of the weighings that have an error.
ERRORS: Final = 0.3

_HEADS: Final = ("kind", "weighings", "right", "wrong: detectable", "wrong: undetectable", "missing", "refused")


def main(arguments: list[str]) -> int:
    """Run the plant and print its table; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plant", description=__doc__)
    parser.add_argument("--weighings", type=int, default=100_000, help="of each run (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=inf, help="begin no weighing after so long")
    parser.add_argument("--docks", type=int, default=DOCKS, help="scales in parallel (default %(default)s)")
    parser.add_argument("--errors", type=float, default=ERRORS, help="part of them with an error (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--master", choices=("both", "with", "without"), default="both")
    options = parser.parse_args(arguments)
    is_met = True
    for with_master in (False, True):
        if options.master == ("without" if with_master else "with"):
            continue
        plan = planned(options.weighings, options.docks, options.errors, options.seed)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cynow-plant-") as folder:
            tallies = run(Path(folder), plan, with_master=with_master, seconds=options.seconds)
        weighings = sum(tally.weighings for tally in tallies.values())
        name = "with master data" if with_master else "without master data"
        sys.stdout.write(f"\n{name}: {weighings} weighings in {time.monotonic() - began:.0f} s\n\n")
        sys.stdout.write(text(tallies))
        sys.stdout.flush()
        is_met = is_met and goals_are_met(tallies)
    return 0 if is_met else 1


def text(tallies: dict[str, Tally]) -> str:
    """Return the outcome as a table, and what lies behind it."""
    cells = [_HEADS] + [
        (
            kind,
            str(tally.weighings),
            str(tally.right),
            str(len(tally.wrong)),
            str(tally.undetectable.total()),
            str(len(tally.missing)),
            _counts(tally.refused),
        )
        for kind, tally in tallies.items()
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    lines += [""] + [f"{kind}: undetectable: {_counts(tally.undetectable)}" for kind, tally in tallies.items()]
    lines += [f"{kind}: {line}" for kind, tally in tallies.items() for line in (*tally.wrong, *tally.missing)[:5]]
    refused = refused_good(tallies)
    good = sum(tally.right for tally in tallies.values())
    lines.append(f"detectable errors committed: {sum(len(tally.wrong) for tally in tallies.values())}")
    lines.append(f"good weighings refused: {refused.total()} of {good} ({_counts(refused) or '-'})")
    return "\n".join(line for line in lines if not line.endswith("undetectable: ")) + "\n"


def refused_good(tallies: dict[str, Tally]) -> Counter[str]:
    return sum((tally.good_refused for tally in tallies.values()), Counter[str]())


def goals_are_met(tallies: dict[str, Tally]) -> bool:
    """Return whether no detectable error was committed, no good weighing is missing, and few were refused."""
    is_right = not any(tally.wrong or tally.missing for tally in tallies.values())
    return is_right and refused_good(tallies).total() * 1000 <= sum(tally.right for tally in tallies.values())


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
