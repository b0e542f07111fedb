"""Machines: what a message costs from the socket to raw CSV and statistics, against a bare loop, and decoding alone."""

import contextlib
import itertools
import json
import os
import pickle
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.crowd import Helper, paced
from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from gateway.wire.frames import NEED_DATA, FrameReader
from tests.support.daemon import Daemon, running, until

#: Sensors and samples of a message, how many messages make a round, and the goals: the better one, and the least.
WORK: Final = ((4, 30, 20_000, 1.0, 2.0), (4, 1000, 1_000, 0.6, 1.5))

#: How often the gateway and the bare loop are measured in turn.
ROUNDS: Final = 5

#: Different messages that are sent again and again.
VARIETY: Final = 64

#: Machines with a message a second each, of two sensors.
MACHINES: Final = 1000
SENSORS: Final = 2
SAMPLES: Final = 30


def rows(folder: Path, seconds: float) -> list[Row]:
    """All of them."""
    found: list[Row] = []
    for number, work in enumerate(WORK):
        (folder / str(number)).mkdir()
        found.append(flat_out(folder / str(number), *work))
    found += [decoding(4, 30, 2.0), decoding(4, 1000, 1.0)]
    (folder / "many").mkdir()
    return found + many_machines(folder / "many", seconds / 4)


def messages(sensors: int, samples: int, count: int = VARIETY) -> list[bytes]:
    """Pickled messages of samples as a DAQ program sends them, without separators."""
    chance = random.Random(1)
    return [
        pickle.dumps(
            (
                "DataUpdate",
                {
                    f"vib{number}": {"type": "VIB", "data": [chance.gauss(0.0, 1.0) for _ in range(samples)]}
                    for number in range(sensors)
                },
            )
        )
        for _ in range(count)
    ]


# -- from the socket to the disk


def flat_out(folder: Path, sensors: int, samples: int, count: int, goal: float, least: float) -> Row:
    """One connection that sends as fast as it can; every sample must be counted and stand in the raw files."""
    costs, bare_costs = [], []
    with running(folder) as daemon:
        # The first message of a connection is another kind of work.
        _send(daemon, sensors, samples, 100)
        total = 100
        for _ in range(ROUNDS):
            bare_costs.append(_bare(sensors, samples, count))
            before = cpu_seconds(daemon.process.pid)
            _send(daemon, sensors, samples, count)
            total += count
            _all_there(daemon, total * sensors * samples)
            costs.append((cpu_seconds(daemon.process.pid) - before) / count)
    ratio = statistics.median(mine / its for mine, its in zip(costs, bare_costs, strict=True))
    cost, bare = statistics.median(costs), statistics.median(bare_costs)
    rate = sensors * samples / cost / 1e6
    return Row(
        f"DAQ message of {sensors} x {samples}, socket to CSV and statistics",
        f"{1e6 * cost:.0f} us, {rate:.1f} M samples a CPU second",
        f"at most {goal} x, {least} x at the least",
        ratio <= goal,
        f"bare loop {1e6 * bare:.0f} us",
        ratio,
    )


def _send(daemon: Daemon, sensors: int, samples: int, count: int) -> None:
    _run("load", port=daemon.daq_port, sensors=sensors, samples=samples, count=count)


def _bare(sensors: int, samples: int, count: int) -> float:
    """CPU seconds of the bare loop for each message."""
    return float(_run("bare", sensors=sensors, samples=samples, count=count)) / count


def _run(kind: str, **options: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.daq", kind, json.dumps(options)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def _all_there(daemon: Daemon, samples: int) -> None:
    """Wait until every sample was counted and every line has reached the operating system."""
    until(lambda: daemon.metric("cynow_daq_samples_total") >= samples, f"{samples} samples")
    until(lambda: _lines(daemon) == samples, f"{samples} lines")


def _lines(daemon: Daemon) -> int:
    """Lines of samples in all raw files."""
    return sum(_count(path) - 1 for path in (daemon.folder / "data").rglob("*.csv"))


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1024 * 1024), b""))


# -- decoding


def decoding(sensors: int, samples: int, goal: float) -> Row:
    """The frame reader against C ``pickle.loads`` of the same bytes, in turn; it stays safe, which the other is not."""
    pickles = messages(sensors, samples)
    frames = [each + b"\\o" for each in pickles]
    reader = FrameReader()
    reader.receive_data(pickle.dumps(("name", "M")) + b"\0")
    reader.next_message()
    repeats = 200_000 // (sensors * samples)
    ratios, mine, its = [], [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        for frame in itertools.islice(itertools.cycle(frames), repeats):
            reader.receive_data(frame)
            while reader.next_message() is not NEED_DATA:
                pass
        between = time.process_time()
        for each in itertools.islice(itertools.cycle(pickles), repeats):
            pickle.loads(each)
        ended = time.process_time()
        mine.append((between - began) / repeats)
        its.append((ended - between) / repeats)
        ratios.append(mine[-1] / its[-1])
    ratio = statistics.median(ratios)
    return Row(
        f"decoding a message of {sensors} x {samples}",
        f"{1e6 * statistics.median(mine):.1f} us",
        f"at most {goal} x",
        ratio <= goal,
        f"C pickle.loads {1e6 * statistics.median(its):.1f} us",
        ratio,
    )


# -- many machines


def many_machines(folder: Path, seconds: float) -> list[Row]:
    """A thousand machines at a message a second each, and how long until a subscriber of all has it."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(folder))
        crowd = stack.enter_context(
            Helper("subscribers", port=daemon.port, count=1, topics=["machine/*/samples"], stuck=False)
        )
        until(lambda: crowd.ask("count")["settled"] == 1, "the subscriber")
        load = stack.enter_context(
            Helper("machines", "benchmarks.daq", port=daemon.daq_port, count=round(seconds * MACHINES))
        )
        load.hear()
        # The first message that a machine ever sends makes its files and its database.
        until(lambda: _lines(daemon) == MACHINES * SENSORS * SAMPLES, "the first messages")
        until(lambda: daemon.metric("cynow_store_waiting") == 0, "the store knows all sensors")
        time.sleep(1)
        crowd.ask("events")
        before, began = cpu_seconds(daemon.process.pid), time.monotonic()
        sent = load.ask("send")
        used, took = cpu_seconds(daemon.process.pid) - before, time.monotonic() - began
        until(lambda: crowd.ask("count")["heard"] >= len(sent), "every event")
        waits = [at - sent[number] for number, at in crowd.ask("events")]
        size = daemon.resident_mib()
    if len(waits) != len(sent):
        raise RuntimeError(f"{len(waits)} events of {len(sent)} messages")
    p99 = 1000 * statistics.quantiles(waits, n=100)[98]
    share = used / took
    text = f"{MACHINES} machines, a message of {SENSORS} x {SAMPLES} a second each, {seconds:.0f} s"
    return [
        Row(
            f"{text}: CPU",
            f"{100 * share:.0f} % of a core, {1e6 * used / len(sent):.0f} us a message",
            "under 25 %",
            share < 0.25,
        ),
        Row(f"{text}: socket to /ws, p99", f"{p99:.1f} ms", "under 50 ms", p99 < 50),
        Row(f"{text}: resident", f"{size:.0f} MiB"),
    ]


# -- the processes


def _load(port: int, sensors: int, samples: int, count: int) -> None:
    """Send messages as fast as they are taken."""
    frames = [each + b"\\o" for each in messages(sensors, samples)]
    with socket.create_connection(("127.0.0.1", port)) as daq:
        daq.sendall(pickle.dumps(("name", "M")) + b"\\o")
        together = b"".join(frames)
        for _ in range(count // VARIETY):
            daq.sendall(together)
        daq.sendall(b"".join(frames[: count % VARIETY]))
        daq.shutdown(socket.SHUT_WR)
        # Until everything was read.
        while daq.recv(4096):
            pass
    sys.stdout.write("null\n")


def _bare_loop(sensors: int, samples: int, count: int) -> None:
    """The work that cannot be left out, and no more: loads, a sum of magnitudes, decimal text, a write a sensor."""
    pickles = messages(sensors, samples)
    with tempfile.TemporaryDirectory(prefix="cynow-benchmark-", dir=os.getcwd()) as folder:
        files = {f"vib{number}": os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY) for number in range(sensors)}
        sums = dict.fromkeys(files, 0.0)
        before = time.process_time()
        for each in itertools.islice(itertools.cycle(pickles), count):
            _, data = pickle.loads(each)
            for name, sensor in data.items():
                values = sensor["data"]
                sums[name] += sum(map(abs, values))
                os.write(files[name], b"12:00:00," + orjson.dumps(values)[1:-1].replace(b",", b"\n12:00:00,") + b"\n")
        used = time.process_time() - before
        for file in files.values():
            os.close(file)
    sys.stdout.write(f"{used}\n")


def _machines(port: int, count: int) -> None:
    """A thousand machines, a message a second each, evenly spread; the first sample of a message is its number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = []
    for number in range(MACHINES):
        connections.append(socket.create_connection(("127.0.0.1", port)))
        connections[-1].sendall(pickle.dumps(("name", f"machine {number}")) + b"\\o")
    chance = random.Random(1)
    data: dict[str, Any] = {
        f"vib{number}": {"type": "VIB", "data": [chance.gauss(0.0, 1.0) for _ in range(SAMPLES)]}
        for number in range(SENSORS)
    }
    for connection in connections:
        connection.sendall(pickle.dumps(("DataUpdate", data)) + b"\\o")
    sys.stdout.write('"connected"\n')
    sys.stdout.flush()
    sys.stdin.readline()
    times = []
    for number, connection in zip(paced(count, MACHINES), _turns(connections), strict=False):
        data["vib0"]["data"][0] = float(number)
        frame = pickle.dumps(("DataUpdate", data)) + b"\\o"
        times.append(time.monotonic())
        connection.sendall(frame)
    sys.stdout.write(json.dumps(times) + "\n")
    sys.stdout.flush()
    # Until all was heard.
    sys.stdin.readline()


def _turns(connections: list[socket.socket]) -> Iterator[socket.socket]:
    return itertools.cycle(connections)


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"load": _load, "bare": _bare_loop, "machines": _machines}
    commands[sys.argv[1]](**json.loads(sys.argv[2]))
