"""The way of samples from the bus to the store, on real parts, that can be killed at any moment and started again.

Time is a ``Clock``'s; the wall clock goes with it unless a test sets it. What a killed process would lose is lost:
lines that no file has, entries that the store has not, and all memory.
"""

import math
import os
import re
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, Final

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gateway.bus.bus import Bus
from gateway.live.state import LiveState
from gateway.model.entries import StoreEntry
from gateway.model.records import Batch, SensorBatch, Update
from gateway.raw.damage import DamageLog
from gateway.raw.files import HEADER
from gateway.raw.log import RawLog
from gateway.replay.recovery import Recovery
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.stats.rollup import Rollup
from gateway.stats.statistics import Statistics
from gateway.store.sqlite.store import SqliteStore
from gateway.store.writer import Writer
from gateway.timeseries.calendar import PERIODS

#: A whole line of a sample.
_LINE: Final = re.compile(
    rb"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d),(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?|-?inf|nan)\r*"
)

#: As in the configuration's default; any other type is REAL.
MODES: Final = {"vib": "ABS", "temp": "REAL"}


@dataclass(slots=True)
class Sent:
    """A batch as it was sent; samples that a kill took are taken from it.

    :ivar types: by sensor.
    :ivar samples: by sensor.
    """

    machine: str
    time: datetime
    types: Mapping[str, str]
    samples: dict[str, "array[float]"]


@dataclass(slots=True)
class File:
    """What a raw file should hold.

    :ivar sent: the batches that have lines in it, and which sensor's.
    :ivar lines: how many, behind those that were there before.
    :ivar before: lines that somebody else wrote.
    """

    before: int = 0
    lines: int = 0
    size: int = 0
    sent: list[tuple[Sent, str]] = field(default_factory=list)


class Gate:
    """Between the writer and its store: what is written waits here until it is let through."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.waiting: list[tuple[list[StoreEntry], Deferred[list[StoreEntry]]]] = []

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        done: Deferred[list[StoreEntry]] = Deferred()
        self.waiting.append((list(entries), done))
        return await done

    async def let_through(self) -> None:
        """Write everything that waits, and what comes when that is acknowledged."""
        while self.waiting:
            entries, done = self.waiting.pop(0)
            done.callback(await self._store.write(entries))

    async def let_some_through(self, count: int) -> None:
        """Write the first entries of what is in hand, and acknowledge nothing."""
        if self.waiting:
            await self._store.write(self.waiting[0][0][:count])


class Unheld(WallClock):
    """A wall clock that goes back as soon as it is set back."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), self.zone)


class Killable:
    """The parts of one gateway, over several starts.

    :param folder: for ``data`` and ``db``; made where they are missing.
    :param begin: what the wall clock shows at first.
    :param clock: the kind of clock.
    :ivar sent: all batches, without what was lost.
    :ivar heard: updates that were published while it ran.
    """

    def __init__(self, folder: Path, begin: datetime, clock: type[WallClock] = WallClock) -> None:
        zone = begin.tzinfo
        assert zone is not None
        self.zone: tzinfo = zone
        self.data, self.db = folder / "data", folder / "db"
        for each in (self.data, self.db):
            each.mkdir(parents=True, exist_ok=True)
        self.reactor = Clock()
        self.wall = begin.timestamp()
        self.sent: list[Sent] = []
        self.heard: list[Update] = []
        self.files: dict[str, File] = {}
        self.running = False
        self._clock_type = clock

    # -- time

    def now(self) -> datetime:
        return self.clock.now()

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that are due run once, at its end."""
        self.wall += seconds
        self.reactor.advance(seconds)
        self._date_files()

    def sleep(self, seconds: float) -> None:
        """Let time pass before any timer has a chance to run."""
        self.wall += seconds
        self.reactor.rightNow += seconds  # type: ignore[attr-defined]

    def go_to(self, time: datetime) -> None:
        """Advance to a time, or set the wall clock back to it."""
        seconds = time.timestamp() - self.wall
        self.wall = time.timestamp()
        self.reactor.advance(max(0.0, seconds))
        self._date_files()

    # -- life

    async def start(self, *, entries: int | None = None) -> bool:
        """Start it as ``gateway.tap`` does.

        :param entries: it is killed when the store has taken so many of what recovery gave.
        :returns: whether it runs.
        """
        assert not self.running
        self.clock = self._clock_type(self.zone, lambda: self.wall, self.reactor.seconds)
        self.counters = Counters()
        self.bus = Bus(self.clock, self.counters)
        self.live = LiveState(self.bus, self.clock, {})
        self.store = SqliteStore(real_reactor, self.clock, self.counters, str(self.db))  # type: ignore[arg-type]
        self.store.open()
        self.gate = Gate(self.store)
        self.writer = Writer(self.reactor, self.bus, self.counters, self.gate, lambda _: None)  # type: ignore[arg-type]
        self.damage = DamageLog(self.clock, self.counters)
        self.rawlog = RawLog(self.reactor, self.clock, self.counters, str(self.data), self.writer.knows, self.damage)
        new_rollup = partial(Rollup, self.zone, MODES)
        rollup = new_rollup()
        self.statistics = Statistics(
            self.reactor, self.bus, self.clock, self.counters, rollup, self.rawlog, self.writer.add
        )
        self.bus.attach(Batch, self.rawlog.name, self.rawlog.write)
        self.bus.attach(Update, "test", self.heard.append)
        self.running = True
        recovery = Recovery(str(self.data), self.zone, rollup, new_rollup, self.damage)
        now = self.clock.now()
        self.recovered = recovery.run(await self.store.rollup_progress(recovery.find_files(now), now), now)
        self.live.restore(self.recovered.updates)
        self.writer.add(self.recovered.entries)
        if entries is not None:
            await self.kill(entries=entries)
            return False
        settled = self.writer.settled()
        await self.gate.let_through()
        await settled
        for part in (self.writer, self.rawlog, self.statistics):
            part.startService()
        return True

    async def kill(self, tear: Callable[[int], int] = lambda _: 0, entries: int = 0) -> None:
        """Kill it.

        :param tear: how many bytes of so many that wait for a file have reached it all the same.
        :param entries: how many of those in hand the store has taken; nobody has heard of it.
        """
        self.running = False
        await self.gate.let_some_through(entries)
        for call in list(self.reactor.getDelayedCalls()):
            call.cancel()
        for path, lines in list(self.rawlog._waiting.items()):
            self._tear(path, bytes(lines.text()), tear)
        while self.rawlog._files:
            self.rawlog._close(next(iter(self.rawlog._files)))
        self._date_files()
        await self.store.close()
        self._forget_lost()

    def _tear(self, path: str, lines: bytes, tear: Callable[[int], int]) -> None:
        if os.path.exists(path):
            count = tear(len(lines))
            if count:
                os.write(self.rawlog._open(path), lines[:count])
            return
        count = tear(len(HEADER) + len(lines))
        if count:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).write_bytes((HEADER + lines)[:count])

    def _date_files(self) -> None:
        """Give files that have grown the time of change that they would have."""
        for path, file in self.files.items():
            try:
                size = os.stat(path).st_size
            except OSError:
                continue
            if size != file.size:
                file.size = size
                os.utime(path, (self.wall, self.wall))

    def _forget_lost(self) -> None:
        for path, file in self.files.items():
            try:
                there = max(0, len(readable(path)) - file.before)
            except FileNotFoundError:
                there = 0
            while file.lines > there:
                batch, sensor = file.sent[-1]
                samples = batch.samples[sensor]
                lost = min(len(samples), file.lines - there)
                del samples[len(samples) - lost :]
                file.lines -= lost
                if not samples:
                    file.sent.pop()

    # -- samples

    def send(self, machine: str, types: Mapping[str, str], samples: Mapping[str, Iterable[float]]) -> None:
        """Let a batch arrive."""
        sent = Sent(machine, self.clock.now(), types, {sensor: array("d", its) for sensor, its in samples.items()})
        self.sent.append(sent)
        for sensor, its in sent.samples.items():
            path = self.rawlog.path(machine, sensor, sent.time)
            file = self.files.get(path)
            if file is None:
                file = self.files[path] = File()
                if os.path.exists(path):
                    file.before = len(readable(path))
            if its:
                file.lines += len(its)
                file.sent.append((sent, sensor))
        self.bus.publish(
            Batch(
                machine,
                {sensor: SensorBatch(types[sensor], its[:]) for sensor, its in sent.samples.items()},
                sent.time,
            )
        )

    def send_one(self, *samples: float, machine: str = "M", sensor: str = "v", kind: str = "VIB") -> None:
        self.send(machine, {sensor: kind}, {sensor: samples})

    async def write(self) -> None:
        """Let the store have what is over."""
        await self.gate.let_through()

    async def end(self, time: datetime) -> None:
        """Let all periods end, and then the gateway."""
        self.go_to(time)
        self.reactor.advance(1.0)
        await self.write()
        await self.kill(lambda count: count)

    # -- what came of it

    def snapshot(self, machine: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = self.live.machine_snapshot(machine)["sensors"]
        return found

    def rows(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """By machine and table: all rows in order, without what a kill may change."""
        found = {}
        for path in sorted(self.db.glob("*.db")):
            connection = sqlite3.connect(path)
            connection.row_factory = sqlite3.Row
            tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%~_avg' ESCAPE '~'").fetchall()
            for (table,) in tables:
                rows = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}" ORDER BY time, start')]
                found[path.stem, table] = [
                    {name: value for name, value in row.items() if name not in {"id", "raw_end"}} for row in rows
                ]
            connection.close()
        return found


def readable(path: str | Path) -> list[tuple[bytes, float]]:
    """Return the samples of a raw file by the plainest means: whole lines, their times and numbers."""
    found = []
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is not None:
            found.append((match[1], float(match[2])))
    return found


async def never_killed(killed: Killable, folder: Path, begin: datetime, end: datetime) -> Killable:
    """A gateway that ran through and had exactly the samples that reached the files of another."""
    reference = Killable(folder, begin, Unheld)
    await reference.start()
    for batch in killed.sent:
        samples = {sensor: its for sensor, its in batch.samples.items() if its}
        if samples:
            reference.go_to(batch.time)
            reference.send(batch.machine, batch.types, samples)
    await reference.end(end)
    return reference


def means_of_files(data: Path, types: Mapping[tuple[str, str], str]) -> dict[tuple[str, str, str], tuple[int, float]]:
    """By machine, table and time: how many samples and their mean, of what the files' lines say and no more."""
    samples: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for path in sorted(data.glob("*/*.csv")):
        day, _, sensor = path.stem.partition("_")
        machine = path.parent.name
        is_abs = types[machine, sensor] == "VIB"
        for time, sample in readable(path):
            if math.isfinite(sample):
                for period, start in zip(
                    PERIODS,
                    (
                        f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2].decode()}:00:00",
                        f"{day[:4]}-{day[4:6]}-{day[6:]} 00:00:00",
                        f"{day[:4]}-{day[4:6]}-01 00:00:00",
                        f"{day[:4]}-01-01 00:00:00",
                    ),
                    strict=True,
                ):
                    samples[machine, f"{sensor}_{period}_avg", start].append(abs(sample) if is_abs else sample)
    return {key: (len(its), math.fsum(its) / len(its)) for key, its in samples.items()}
