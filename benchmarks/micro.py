"""Micro-benchmarks of parsers and statistics, without sockets and reactor.

The file is a program of its own, so that :mod:`benchmarks.compare` can run it on another revision of the gateway: it
imports nothing but the standard library and, by the names of either revision, the gateway.

    python -m benchmarks.micro                 all, in five seconds
    python -m benchmarks.micro NAME ROUNDS     one of them, for a profiler or an instruction counter
"""

import importlib
import pickle
import random
import sys
import time
from array import array
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

#: Seconds for each benchmark, of which the fastest round counts.
_SECONDS: Final = 0.7

#: A benchmark: returns a function that does one round, and the operations in a round.
Benchmark = Callable[[], tuple[Callable[[], None], int]]


def _load(name: str, *modules: str) -> Any:
    """Return a name from the first module that has it, newest name of the module first."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this revision has no {name} in {' or '.join(modules)}")


def _sample_messages(count: int, samples: int) -> list[tuple[str, Any]]:
    chance = random.Random(2)
    return [
        (
            "DataUpdate",
            {
                sensor: {"type": "VIB", "data": [chance.uniform(-2.0, 2.0) for _ in range(samples)]}
                for sensor in ("vib1", "vib2", "vib3", "temp")
            },
        )
        for _ in range(count)
    ]


def _read_frames(frames: list[bytes]) -> Callable[[], None]:
    reader_type = _load("FrameReader", "gateway.wire.frames")
    if hasattr(reader_type, "receive_data"):
        need_data = _load("NEED_DATA", "gateway.wire.frames")

        def read() -> None:
            reader = reader_type()
            for frame in frames:
                reader.receive_data(frame)
                while reader.next_message() is not need_data:
                    pass
    else:

        def read() -> None:
            reader = reader_type()
            for frame in frames:
                for _ in reader.feed(frame):
                    pass

    return read


def _pickled(count: int, samples: int) -> tuple[Callable[[], None], int]:
    messages = [("name", "press"), *_sample_messages(count, samples)]
    return _read_frames([pickle.dumps(message, protocol=4) + b"\0" for message in messages]), count


def _json_frames() -> tuple[Callable[[], None], int]:
    import json

    messages = [["name", "press"], *map(list, _sample_messages(40, 30))]
    return _read_frames([json.dumps(message).encode() + b"\0" for message in messages]), 40


def _scale_lines() -> tuple[Callable[[], None], int]:
    parse_line = _load("parse_line", "gateway.wire.scale")
    chance = random.Random(1)
    lines = [b"%s ,%+011.2f _kg" % (chance.choice((b"ST", b"US")), chance.uniform(0.0, 300.0)) for _ in range(1000)]

    def parse() -> None:
        for line in lines:
            parse_line(line)

    return parse, len(lines)


def _rollup() -> tuple[Callable[[], None], int]:
    rollup_type = _load("Rollup", "gateway.stats.rollup")
    batch_type = _load("Batch", "gateway.model.records", "gateway.model")
    sensors_type = _load("SensorBatch", "gateway.model.records", "gateway.model")
    chance = random.Random(3)
    begin = datetime(2025, 12, 18, 10, tzinfo=UTC)
    sensors = {
        name: sensors_type("VIB", array("d", [chance.uniform(-2.0, 2.0) for _ in range(30)]))
        for name in ("vib1", "vib2", "vib3", "temp")
    }
    batches = [batch_type("press", sensors, begin + timedelta(seconds=second)) for second in range(600)]

    def add() -> None:
        rollup = rollup_type(UTC, {"vib": "ABS"})
        for batch in batches:
            rollup.add(batch)

    return add, len(batches)


def _bucket() -> tuple[Callable[[], None], int]:
    bucket_type = _load("Bucket", "gateway.timeseries.bucket", "gateway.bucket")
    chance = random.Random(4)
    samples = array("d", [chance.uniform(-2.0, 2.0) for _ in range(200)])

    def make() -> None:
        for _ in range(100):
            bucket_type.of(samples, str)

    return make, 100


BENCHMARKS: Final[dict[str, Benchmark]] = {
    "wire: line of a scale": _scale_lines,
    "wire: pickled frame, 4 x 30 samples": lambda: _pickled(200, 30),
    "wire: pickled frame, 4 x 1000 samples": lambda: _pickled(20, 1000),
    "wire: JSON frame, 4 x 30 samples": _json_frames,
    "stats: batch of 4 x 30 samples into the rollup": _rollup,
    "timeseries: bucket of 200 samples": _bucket,
}


def fastest(name: str, seconds: float = _SECONDS) -> float:
    """Return the CPU time of one operation in the fastest round, in nanoseconds."""
    run, operations = BENCHMARKS[name]()
    best = float("inf")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.process_time_ns()
        run()
        best = min(best, time.process_time_ns() - began)
    return best / operations


def main(arguments: list[str]) -> None:
    """Run all benchmarks, or a number of rounds of one."""
    if not arguments:
        for name in BENCHMARKS:
            sys.stdout.write(f"{name:<50} {fastest(name):>12,.0f} ns\n")
        return
    if len(arguments) == 1:
        sys.stdout.write(f"{fastest(arguments[0])}\n")
        return
    name, rounds = arguments
    run, _ = BENCHMARKS[name]()
    for _ in range(int(rounds)):
        run()


if __name__ == "__main__":
    main(sys.argv[1:])
