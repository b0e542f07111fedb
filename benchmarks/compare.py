"""Comparison of the micro-benchmarks of two revisions, run alternately.

Instructions are counted by ``valgrind --tool=callgrind`` where that works: the count is the same on a busy machine.
Otherwise the CPU time of the fastest of several alternate rounds is compared.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import micro

ROOT: Final = Path(__file__).parent.parent

#: A benchmark that is slower by this factor fails the comparison.
LIMIT: Final = 1.10

#: Alternate rounds where CPU time is compared.
_ROUNDS: Final = 7

_COLLECTED: Final = re.compile(r"Collected : (\d+)")


def compare(base: str) -> int:
    """Print the ratios of the working tree to a revision; return the exit status.

    :param base: revision as git knows it.
    """
    with tempfile.TemporaryDirectory(prefix="cynow-compare-") as folder:
        archive = subprocess.run(["git", "archive", base, "gateway"], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            sys.stderr.write(f"{base}: {archive.stderr.decode().strip()}\n")
            return 2
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        trees = (Path(folder), ROOT)
        counts = _works()
        unit = "instructions" if counts else "ns of CPU time"
        sys.stdout.write(f"{'':<50} {base[:14]:>14} {'working tree':>14}  ratio   ({unit})\n")
        slower = False
        for name in micro.BENCHMARKS:
            before, after = _instructions(name, trees) if counts else _times(name, trees)
            ratio = after / before
            slower = slower or ratio > LIMIT
            verdict = f"more than {LIMIT - 1:.0%} slower" if ratio > LIMIT else ""
            sys.stdout.write(f"{name:<50} {before:>14,.0f} {after:>14,.0f}  {ratio:.3f} {verdict}\n")
            sys.stdout.flush()
    return int(slower)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "micro.py"), *arguments]


def _run(tree: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)


def _works() -> bool:
    """Return whether instructions can be counted."""
    if shutil.which("valgrind") is None:
        return False
    done = subprocess.run([*_valgrind(), "true"], capture_output=True, text=True, check=False)
    return _COLLECTED.search(done.stderr) is not None


def _valgrind() -> list[str]:
    return ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]


def _instructions(name: str, trees: tuple[Path, Path]) -> tuple[float, float]:
    """Return the instructions of one round in each tree, without those of the start."""
    counts = []
    for tree in trees:
        by_rounds = []
        for rounds in ("1", "3"):
            done = _run(tree, [*_valgrind(), *_command(name, rounds)])
            found = _COLLECTED.search(done.stderr)
            if found is None:
                raise RuntimeError(f"valgrind: {done.stderr}")
            by_rounds.append(int(found[1]))
        # The first round fills caches, so the difference of later ones counts.
        counts.append((by_rounds[1] - by_rounds[0]) / 2)
    return counts[0], counts[1]


def _times(name: str, trees: tuple[Path, Path]) -> tuple[float, float]:
    """Return the fastest time of an operation in each tree, in nanoseconds."""
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for measured, tree in zip(times, trees, strict=True):
            measured.append(float(_run(tree, _command(name)).stdout))
    return min(times[0]), min(times[1])
