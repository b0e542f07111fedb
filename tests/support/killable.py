"""The path of samples from the bus to the store, with real parts, which can be killed at any moment and started again.

Time is that of a ``Clock``; the wall clock follows it unless a test sets it. A kill loses what a killed process would
lose: lines that are not in a file, entries that are not in the store, and all memory.
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
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gateway.assembly.parts import Paths
from gateway.assembly.pipeline import build_pipeline
from gateway.config.settings import Settings
from gateway.model.entries import StoreEntry
from gateway.model.records import Batch, SensorBatch, Update
from gateway.raw.files import HEADER
from gateway.replay.recovery import Recovery
from gateway.runtime.clock import WallClock
from gateway.store.interface import Store
from gateway.store.sqlite.store import SqliteStore
from gateway.timeseries.calendar import PERIODS
from tests.support.runtime import make_runtime

#: A whole sample line.
_LINE: Final = re.compile(
    rb"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d),(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?|-?inf|nan)\r*"
)


@dataclass(slots=True)
class Sent:
    """A batch as it was sent, without samples that a kill has lost.

    :ivar types: types by sensor.
    :ivar samples: samples by sensor.
    """

    machine: str
    time: datetime
    types: Mapping[str, str]
    samples: dict[str, "array[float]"]


@dataclass(slots=True)
class ExpectedFile:
    """Expected content of a raw file.

    :ivar sent: batches with lines in the file, and their sensor.
    :ivar lines: number of lines after the earlier ones.
    :ivar before: number of earlier lines, from another program.
    """

    before: int = 0
    lines: int = 0
    size: int = 0
    sent: list[tuple[Sent, str]] = field(default_factory=list)


class Gate:
    """A gate between the writer and its store, at which entries wait until they are let through."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.waiting: list[tuple[list[StoreEntry], Deferred[list[StoreEntry]]]] = []

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        done: Deferred[list[StoreEntry]] = Deferred()
        self.waiting.append((list(entries), done))
        return await done

    async def let_through(self) -> None:
        """Write all waiting entries, and those that follow their acknowledgement."""
        while self.waiting:
            entries, done = self.waiting.pop(0)
            done.callback(await self._store.write(entries))

    async def let_some_through(self, count: int) -> None:
        """Write the first waiting entries without an acknowledgement."""
        if self.waiting:
            await self._store.write(self.waiting[0][0][:count])


class UnheldClock(WallClock):
    """A wall clock that follows immediately when it is set back."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), self.zone)


class Killable:
    """The parts of one gateway, over several starts.

    :param folder: parent of ``data`` and ``db``, which are created if missing.
    :param begin: initial time of the wall clock.
    :param clock: type of the clock.
    :ivar sent: all batches, without lost samples.
    :ivar heard: published updates.
    """

    def __init__(self, folder: Path, begin: datetime, clock: type[WallClock] = WallClock) -> None:
        zone = begin.tzinfo
        assert zone is not None
        self.zone: tzinfo = zone
        self.data, self.db = folder / "data", folder / "db"
        for path in (self.data, self.db):
            path.mkdir(parents=True, exist_ok=True)
        self.reactor = Clock()
        self.wall = begin.timestamp()
        self.sent: list[Sent] = []
        self.heard: list[Update] = []
        self.files: dict[str, ExpectedFile] = {}
        self.running = False
        self._clock_type = clock

    # -- time

    def now(self) -> datetime:
        return self.clock.now()

    def advance(self, seconds: float) -> None:
        """Advance the time, then run the timers that are due, once."""
        self.wall += seconds
        self.reactor.advance(seconds)
        self._date_files()

    def sleep(self, seconds: float) -> None:
        """Advance the time without running any timer."""
        self.wall += seconds
        self.reactor.rightNow += seconds

    def go_to(self, time: datetime) -> None:
        """Advance to a time, or set the wall clock back to it."""
        seconds = time.timestamp() - self.wall
        self.wall = time.timestamp()
        self.reactor.advance(max(0.0, seconds))
        self._date_files()

    # -- start and end

    async def start(self, *, entries: int | None = None) -> bool:
        """Start it as ``gateway.tap`` does.

        :param entries: it is killed when the store has taken so many of what recovery gave.
        :returns: whether it runs.
        """
        assert not self.running
        self.clock = self._clock_type(self.zone, lambda: self.wall, self.reactor.seconds)
        runtime = make_runtime(self.reactor, self.clock)
        self.counters, self.bus, self.live = runtime.counters, runtime.bus, runtime.live
        self.store = SqliteStore(real_reactor, self.clock, self.counters, str(self.db))
        self.store.open()
        self.gate = Gate(self.store)
        paths = Paths(str(self.data.parent), str(self.db), str(self.data), "")
        pipeline = build_pipeline(runtime, Settings(), paths, cast(Store, self.gate), lambda _: None)
        self.writer, self.rawlog = pipeline.writer, pipeline.raw_log
        rollup, new_rollup, self.damage = pipeline.rollup, pipeline.new_rollup, pipeline.damage
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
        for service in pipeline.services:
            service.startService()
        return True

    async def kill(self, tear: Callable[[int], int] = lambda _: 0, entries: int = 0) -> None:
        """Kill the gateway.

        :param tear: returns the number of bytes that reach a file, of those that wait for it.
        :param entries: number of waiting entries that reach the store without an acknowledgement.
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
        """Set the modification time of files that have grown to the wall clock."""
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
                count = max(0, len(readable(path)) - file.before)
            except FileNotFoundError:
                count = 0
            while file.lines > count:
                batch, sensor = file.sent[-1]
                samples = batch.samples[sensor]
                lost = min(len(samples), file.lines - count)
                del samples[len(samples) - lost :]
                file.lines -= lost
                if not samples:
                    file.sent.pop()

    # -- samples

    def send(self, machine: str, types: Mapping[str, str], samples: Mapping[str, Iterable[float]]) -> None:
        """Publish a batch."""
        sent = Sent(machine, self.clock.now(), types, {sensor: array("d", its) for sensor, its in samples.items()})
        self.sent.append(sent)
        for sensor, its in sent.samples.items():
            path = self.rawlog.path(machine, sensor, sent.time)
            file = self.files.get(path)
            if file is None:
                file = self.files[path] = ExpectedFile()
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
        """Let all waiting entries reach the store."""
        await self.gate.let_through()

    async def end(self, time: datetime) -> None:
        """Let all periods end, then end the gateway."""
        self.go_to(time)
        self.reactor.advance(1.0)
        await self.write()
        await self.kill(lambda count: count)

    # -- results

    def snapshot(self, machine: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = self.live.machine_snapshot(machine)["sensors"]
        return found

    def rows(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Return all rows by machine and table, in order, without columns that a kill may change."""
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
    """Return the samples of a raw file by the simplest means: times and numbers of whole lines."""
    found = []
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is not None:
            found.append((match[1], float(match[2])))
    return found


async def never_killed(killed: Killable, folder: Path, begin: datetime, end: datetime) -> Killable:
    """Run a gateway without kills, on exactly the samples that reached the files of a killed one."""
    reference = Killable(folder, begin, UnheldClock)
    await reference.start()
    for batch in killed.sent:
        samples = {sensor: its for sensor, its in batch.samples.items() if its}
        if samples:
            reference.go_to(batch.time)
            reference.send(batch.machine, batch.types, samples)
    await reference.end(end)
    return reference


def means_of_files(data: Path, types: Mapping[tuple[str, str], str]) -> dict[tuple[str, str, str], tuple[int, float]]:
    """Return number and mean of the samples by machine, table and time, computed from the lines of the files only."""
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
