"""Live events: what one costs that goes to a thousand, what a subscriber costs, and what a slow one does to others."""

import contextlib
import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.crowd import Helper, number_of
from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from tests.support.daemon import Daemon, free_ports, running, until

#: Subscribers of one event, its times a second, and how often the gateway and a bare loop are measured in turn.
WIDE: Final = 1000
RATE: Final = 20
ROUNDS: Final = 3

#: Subscribers that have nothing to do, and seconds until each of them has been pinged and has answered.
IDLE: Final = 5000
PINGED: Final = 22

#: Those who never read and those who do, and the events a second that all of them get: eight sensors of a hundred
#: samples each, 16 KB of JSON.
STUCK: Final = 200
HEALTHY: Final = 5
FAST: Final = 40
SENSORS: Final = [f"vib{number}" for number in range(8)]
SAMPLES: Final = 100

#: Seconds until a crowd has come or has heard an event.
PATIENCE: Final = 120.0

#: Disconnections of one client, and the events a second meanwhile.
DISCONNECTIONS: Final = 100
STREAM: Final = 300


def rows(folder: Path, seconds: float) -> list[Row]:
    """All of them; the folder gets one for each."""
    found: list[Row] = []
    for work, share in ((fan_out, 0.6), (idle_subscribers, 0.0), (stuck_subscribers, 1.0), (resuming, 0.0)):
        (folder / work.__name__).mkdir()
        found += work(folder / work.__name__, *([share * seconds] if share else []))
    return found


# -- one event to a thousand


def fan_out(folder: Path, seconds: float) -> list[Row]:
    """Measure the CPU of a delivery against a bare loop, and how long the last subscriber waits for an event.

    The bare loop writes as many bytes to as many sockets, in turn.

    What the daemon needs to take the same events in while nobody listens is not counted; pings of subscribers are.
    """
    count = round(seconds / (2 * ROUNDS + 2) * RATE)
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(folder))
        device = stack.enter_context(Helper("device", port=daemon.daq_port, machine="M", sensors=["v"]))
        unheard = [_cpu(daemon.process.pid, device, count=count) for _ in range(2)]
        crowd = _crowd(stack, daemon.port, WIDE, ["machine/M/samples"])
        bare_port = free_ports(1)[0]
        sender = stack.enter_context(Helper("sender", port=bare_port, count=WIDE))
        sender.hear()
        bare_crowd = _crowd(stack, bare_port, WIDE, [])
        # An event, to see how long its frame is.
        device.ask("send", count=1, rate=RATE)
        _wait(crowd, 1)
        event = crowd.ask("first")
        _heard(crowd, 1)
        frame = b"\x81\x7e" + len(event).to_bytes(2) + event.encode()
        costs, bare_costs, waits = [], [], []
        for _ in range(ROUNDS):
            bare_costs.append(_cpu(sender.process.pid, sender, count=count, frame=frame.hex()) / (WIDE * count))
            _heard(bare_crowd, count)
            sent: dict[str, Any] = {}
            used = _cpu(daemon.process.pid, device, sent, count=count)
            costs.append((used - statistics.mean(unheard)) / (WIDE * count))
            waits += _waits(sent, _heard(crowd, count))
    cost, bare = statistics.median(costs), statistics.median(bare_costs)
    ratio = statistics.median(mine / its for mine, its in zip(costs, bare_costs, strict=True))
    p99 = _p99(waits)
    text = f"one event of {len(event)} bytes to {WIDE} subscribers, {RATE}/s"
    return [
        Row(f"{text}: CPU of a bare loop, median of {ROUNDS}", f"{1e6 * bare:.1f} us a delivery"),
        Row(
            f"{text}: CPU of the daemon, median of {ROUNDS}",
            f"{1e6 * cost:.1f} us a delivery, {ratio:.1f} x",
            "at most 3.0 x",
            ratio <= 3.0,
        ),
        Row(f"{text}: until the last has it, p99 of {len(waits)}", f"{p99:.1f} ms", "under 100 ms", p99 < 100),
    ]


def _cpu(pid: int, helper: Helper, sent: dict[str, Any] | None = None, **order: Any) -> float:
    """CPU seconds that a process takes while something is sent."""
    before = cpu_seconds(pid)
    answer = helper.ask("send", rate=RATE, **order)
    if sent is not None:
        sent.update(answer)
    # The last one is on its way yet.
    time.sleep(0.2)
    return cpu_seconds(pid) - before


# -- nothing to do


def idle_subscribers(folder: Path) -> list[Row]:
    """What the daemon grows by for each subscriber, with compression and without; all of them have been pinged."""
    found = []
    offers = {"no compression": "", "a browser's compression": "permessage-deflate; client_max_window_bits"}
    with contextlib.ExitStack() as stack:
        begun = []
        for number, (name, offer) in enumerate(offers.items()):
            (folder / str(number)).mkdir()
            # All of them come from one address.
            limits = {"connections_per_address": 2 * IDLE}
            daemon = stack.enter_context(running(folder / str(number), limits=limits))
            time.sleep(1)
            before = daemon.resident_mib()
            crowd = _crowd(stack, daemon.port, IDLE, ["scale/default"], offer=offer)
            begun.append((name, daemon, before, crowd))
        time.sleep(PINGED)
        for name, daemon, before, crowd in begun:
            if crowd.ask("count")["open"] != IDLE:
                raise RuntimeError("a subscriber has gone")
            size = (daemon.resident_mib() - before) * 1024 / IDLE
            found.append(
                Row(f"{IDLE} idle subscribers that offer {name}", f"{size:.1f} KB each", "under 25 KB", size < 25)
            )
    return found


# -- some do not read


def stuck_subscribers(folder: Path, seconds: float) -> list[Row]:
    """Subscribers that never read, and come back whenever all of them have been closed, beside some that do read."""
    topics = ["machine/*/samples", "machine/*"]
    # The backlog has a bound of its own, and would hide what waits for subscribers.
    limits = {"backlog_bytes": 1024 * 1024}
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(folder, limits=limits))
        device = stack.enter_context(
            Helper("device", port=daemon.daq_port, machine="M", sensors=SENSORS, samples=SAMPLES, faults=10)
        )
        healthy = _crowd(stack, daemon.port, HEALTHY, topics)
        sent = device.ask("send", count=round(FAST * seconds / 4), rate=FAST)
        calm = _waits(sent, _heard(healthy, len(sent["times"])))
        before = daemon.resident_mib()
        device.tell("send", count=round(FAST * seconds), rate=FAST)
        watch = stack.enter_context(_Watch(daemon))
        ends = time.monotonic() + seconds
        stuck = stack.enter_context(Helper("subscribers", port=daemon.port, count=STUCK, topics=topics, stuck=True))
        closed = 0
        while True:
            came = time.monotonic()
            _settle(stuck, STUCK)
            closed += STUCK
            while daemon.metric("cynow_slow_subscribers_total") < closed:
                if time.monotonic() > ends:
                    raise RuntimeError("not all of them were closed while events came")
                time.sleep(0.1)
            # Now they read what was sent before, and how it ended.
            stuck.tell("read")
            until(lambda: stuck.ask("count")["open"] == 0, "all of them are closed")
            now = time.monotonic()
            # No more come than can be closed before the last event.
            if now + 1.5 * (now - came) > ends:
                break
            stuck.tell("join")
        codes = stuck.ask("count")["codes"]
        sent = device.hear()
        pressed = _waits(sent, _heard(healthy, len(sent["times"])))
        counted = daemon.metric("cynow_slow_subscribers_total")
    grown = watch.most - before
    bound = STUCK * 1.0
    p99, its = map(_p99, (pressed, calm))
    text = f"{STUCK} subscribers that never read, {FAST} events/s of 16 KB"
    return [
        Row(f"{text}: the daemon grows by, at most", f"{grown:.0f} MiB", f"under {bound:.0f} MiB", grown < bound),
        Row(
            f"{text}: closed with 4008 of {closed}, and counted",
            f"{codes.get('4008', 0)}, {counted:.0f}",
            f"{closed}",
            codes == {"4008": closed} and counted == closed,
        ),
        Row(f"{text}: what others wait for an event, p99 of {len(calm)} before", f"{its:.1f} ms"),
        Row(f"{text}: the same beside them, p99 of {len(pressed)}", f"{p99:.1f} ms", "under 100 ms", p99 < 100),
    ]


class _Watch:
    """Looks at the daemon's memory again and again; ``most`` is what it saw at most, in MiB."""

    def __init__(self, daemon: Daemon) -> None:
        self.most = 0.0
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self._daemon.resident_mib())


# -- one comes back again and again


def resuming(folder: Path) -> list[Row]:
    """A client that loses its connection at random and comes back with ``since``: what it missed, or got twice."""
    chance = random.Random(1)
    topics = ("scale/*", "machine/*/samples", "machine/*")
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running(folder))
        device = stack.enter_context(
            Helper("device", port=daemon.daq_port, machine="M", sensors=["v"], faults=10, scale_port=daemon.scale_port)
        )
        subscriber = daemon.subscribe(*topics)
        since = subscriber.hear()["seq"]
        count = round(STREAM * DISCONNECTIONS * 0.06)
        device.tell("send", count=count, rate=STREAM)
        numbers: list[int] = []
        disordered = disconnected = 0
        while len(numbers) < count:
            for _ in range(chance.randrange(30)) if disconnected < DISCONNECTIONS else itertools.count():
                message = subscriber.hear()
                if message["type"] != "event":
                    continue
                if message["event"] == "snapshot":
                    if not disconnected:
                        continue
                    raise RuntimeError("the backlog is too short")
                disordered += message["seq"] <= since
                since = message["seq"]
                number = number_of(message)
                if number >= 0:
                    numbers.append(number)
                if len(numbers) == count:
                    break
            if disconnected < DISCONNECTIONS:
                disconnected += 1
                subscriber.client.shutdown()
                time.sleep(chance.uniform(0.0, 0.04))
                subscriber = daemon.subscribe(*topics, since=since)
    lost, twice = count - len(set(numbers)), len(numbers) - len(set(numbers))
    # Scale and machine are connections of their own, and nobody says whose bytes are read first.
    disordered += sum(later < earlier for part in (0, 1) for earlier, later in _pairs(numbers, part))
    return [
        Row(
            f"{disconnected} disconnections in {count} events, {STREAM}/s: lost, twice, in disorder",
            f"{lost}, {twice}, {disordered}",
            "0, 0, 0",
            disconnected == DISCONNECTIONS and lost == twice == disordered == 0,
        )
    ]


def _pairs(numbers: list[int], part: int) -> Iterator[tuple[int, int]]:
    return itertools.pairwise(number for number in numbers if number % 2 == part)


# -- all of them


def _crowd(stack: contextlib.ExitStack, port: int, count: int, topics: list[str], **options: Any) -> Helper:
    """Subscribers that have settled."""
    crowd = stack.enter_context(Helper("subscribers", port=port, count=count, topics=topics, **options))
    _settle(crowd, count)
    return crowd


def _settle(crowd: Helper, count: int) -> None:
    _wait(crowd, count, "settled")


def _wait(crowd: Helper, count: int, what: str = "heard") -> None:
    """Wait until all subscribers have settled, or have heard so many events."""
    end = time.monotonic() + PATIENCE
    while crowd.ask("count")[what] < count:
        if time.monotonic() > end:
            raise RuntimeError(f"{crowd.ask('count')}, and not {count} {what}")
        time.sleep(0.05)


def _heard(crowd: Helper, count: int) -> dict[int, float]:
    """When the last of all subscribers got each of so many events, by its number; every one got them all."""
    _wait(crowd, count)
    if crowd.ask("count")["different"]:
        raise RuntimeError("not all subscribers got the same")
    events = crowd.ask("events")
    if len(events) != count or not all(last for _, last in events):
        raise RuntimeError(f"{len(events)} events, and not {count}")
    return dict(events)


def _waits(sent: dict[str, Any], heard: dict[int, float]) -> list[float]:
    """Seconds from the sending of each event until the last had it."""
    return [heard[number] - began for number, began in enumerate(sent["times"], sent["first"])]


def _p99(waits: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(waits, n=100)[98] * 1000
