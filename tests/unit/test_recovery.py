"""Recovery: a gateway that is killed at any moment and started again reports the same means as without a kill.

This holds for all samples that reached the operating system; see :mod:`tests.support.killable`.
"""

import gzip
import math
import os
import random
import shutil
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from gateway.live.state import RECENT_UPDATES
from gateway.model.entries import ClosedHour
from gateway.model.records import Batch, SensorBatch
from gateway.model.timestamps import wall_time
from gateway.store.sqlite import machine_db
from gateway.store.sqlite.machine_tables import MachineTables
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import PERIODS, end_of, start_of
from tests.support.killable import Killable, means_of_files, never_killed
from tests.support.trial import new_folder

SEOUL = ZoneInfo("Asia/Seoul")
KOLKATA = ZoneInfo("Asia/Kolkata")
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")

#: One sensor of each mode, and one of a type that is not configured.
SENSORS: Final = {("M", "vib"): "VIB", ("M", "온도 1"): "TEMP", ("N", "x.y"): "Flow"}

#: Seconds between a kill and the next start, up to weeks.
DOWN: Final = (0.0, 0.2, 5.0, 100.0, 4_000.0, 30_000.0, 300_000.0, 2_000_000.0)


def at(text: str, zone: ZoneInfo = SEOUL, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def any_step(chance: random.Random) -> float:
    return chance.choice(
        (chance.uniform(0, 0.4), chance.uniform(0, 5), chance.uniform(10, 100), chance.uniform(0, 9000))
    )


def short_step(chance: random.Random) -> float:
    return chance.choice((chance.uniform(0, 0.3), chance.uniform(0, 3), chance.uniform(0, 30)))


class RecoveryCase(TestCase):
    """A folder, and the comparison with a gateway that was never killed."""

    def setUp(self) -> None:
        # These tests are not about disks, and a thousand starts would wait for them.
        self.folder = new_folder(self, "recovery", in_memory=True)
        self.addCleanup(self.stop)
        self.killables: list[Killable] = []

    async def stop(self) -> None:
        for each in self.killables:
            if each.running:
                await each.kill()

    async def started(self, begin: datetime, name: str = "killed") -> Killable:
        killable = Killable(self.folder / name, begin)
        self.killables.append(killable)
        await killable.start()
        return killable

    async def compare(
        self,
        killed: Killable,
        begin: datetime,
        end: datetime,
        what: str = "",
        *,
        ran: bool = True,
        types: Mapping[tuple[str, str], str] = SENSORS,
        slack: float = 0.0,
    ) -> Killable:
        """End a gateway, and compare it with one that was never killed, and with the files.

        :param what: description of the run for messages.
        :param ran: whether it is running; otherwise it is started after the end of all periods.
        :param slack: allowed difference of means to those of the files, relative to the magnitudes of the samples.
        """
        if ran:
            await killed.end(end)
        else:
            killed.go_to(end)
            await killed.start()
            await killed.kill()
        folder = self.folder / f"reference {killed.data.parent.name}"
        reference = await never_killed(killed, folder, begin, end)
        mine, its = killed.rows(), reference.rows()
        self.assertEqual(set(mine) >= set(its), True, f"{what}: {set(its) - set(mine)}")
        for key in mine:
            self.assertEqual(
                [repr(row) for row in mine[key]], [repr(row) for row in its.get(key, [])], f"{what}: rows of {key}"
            )
        self.check_files(killed, what, types, slack)
        return reference

    def check_files(
        self, killed: Killable, what: str, types: Mapping[tuple[str, str], str], slack: float = 0.0
    ) -> None:
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for (machine, table), rows in killed.rows().items():
            for row in rows:
                found.setdefault((machine, table, row["time"]), []).append(row)
        means = means_of_files(killed.data, types)
        self.assertEqual(sorted(found), sorted(means), what)
        for key, (count, mean) in means.items():
            # A repeated hour has two rows.
            rows = found[key]
            self.assertEqual(sum(row["count"] for row in rows), count, f"{what}: {key}")
            if len(rows) == 1:
                magnitude = max(abs(rows[0]["min"]), abs(rows[0]["max"]))
                self.assertLessEqual(abs(rows[0]["data"] - mean), slack * magnitude, f"{what}: {key}")
            else:
                self.assertAlmostEqual(sum(row["data"] * row["count"] for row in rows) / count, mean)


class RandomKills(RecoveryCase):
    """Random batches, and kills at random moments."""

    async def run_seed(
        self,
        seed: int,
        begin: datetime,
        *,
        steps: int,
        steps_of: Callable[[random.Random], float],
        down: tuple[float, ...] = DOWN,
        everybody: bool = False,
        exact: bool = True,
        with_updates: bool = True,
    ) -> None:
        """Run once.

        :param steps_of: returns the seconds until the next batch.
        :param everybody: whether every sensor sends every time, and the store writes immediately.
        :param exact: whether every sum of the samples is exact.
        :param with_updates: whether wall-clock arithmetic gives the expected last updates.
        """
        chance = random.Random(seed)
        what = f"seed {seed} from {begin.isoformat()} in {begin.tzinfo}"
        killed = await self.started(begin, f"killed {begin:%Y%m%d} {seed}")
        typed: set[tuple[str, str]] = set()
        written = begin.timestamp()
        for _ in range(steps):
            self.move(killed, chance, steps_of)
            fresh = self.send(killed, chance, everybody, exact) - typed
            if fresh or everybody or chance.random() < 0.3 or killed.wall - written > 20 * 3600:
                # Types that the store does not have yet are tested elsewhere.
                typed |= fresh
                await killed.write()
                written = killed.wall
            if chance.random() < 0.08:
                await killed.kill(lambda count: chance.randint(0, count), chance.choice((0, 0, 1, 2, 5, 1000)))
                self.be_down(killed, chance, down)
                while not await killed.start(entries=chance.choice((None, None, None, 0, 1, 3, 1000))):
                    self.be_down(killed, chance, down[:4])
                written = killed.wall
                if with_updates:
                    self.check_updates(killed, what)
        end = at("2100-01-01", begin.tzinfo)  # type: ignore[arg-type]
        ran = chance.random() < 0.5
        if not ran:
            await killed.kill(lambda count: chance.randint(0, count), chance.choice((0, 1, 3)))
        await self.compare(killed, begin, end, what, ran=ran, slack=0.0 if exact else 1e-15)

    def move(self, killed: Killable, chance: random.Random, steps_of: Callable[[random.Random], float]) -> None:
        seconds = steps_of(chance)
        if chance.random() < 0.3:
            # To the end of a period that ends soon, or just before or after it.
            now = datetime.fromtimestamp(killed.wall, killed.zone)
            edges = [end_of(period, start_of(period, now)).timestamp() - killed.wall for period in PERIODS]
            edges.append(60 - killed.wall % 60)
            edge = chance.choice([edge for edge in edges if edge <= max(edges[0], 60 * seconds)])
            seconds = max(0.0, edge + chance.choice((-1.0, -0.2, -1e-3, 0.0, 1e-3, 0.2, 1.0)))
        (killed.sleep if chance.random() < 0.3 else killed.advance)(seconds)

    def be_down(self, killed: Killable, chance: random.Random, down: tuple[float, ...]) -> None:
        killed.sleep(chance.choice(down) * chance.uniform(0.5, 1.5))

    def send(self, killed: Killable, chance: random.Random, everybody: bool, exact: bool) -> set[tuple[str, str]]:
        sent = set()
        for machine in ("M", "N"):
            sensors = [key for key in SENSORS if key[0] == machine and (everybody or chance.random() < 0.7)]
            if sensors:
                killed.send(
                    machine,
                    {sensor: SENSORS[machine, sensor] for _, sensor in sensors},
                    {sensor: list(self.samples(chance, exact)) for _, sensor in sensors},
                )
                sent.update(sensors)
        return sent

    def samples(self, chance: random.Random, exact: bool) -> Iterable[float]:
        for _ in range(chance.choice((1, 1, 1, 3, 3, 10, 30)) if chance.random() < 0.98 else 1100):
            if chance.random() < 0.01:
                yield chance.choice((math.nan, math.inf, -math.inf))
            else:
                yield chance.randint(-(2**20), 2**20) / 2**12 if exact else chance.gauss(1.0, 2.0)

    def check_updates(self, killed: Killable, what: str) -> None:
        """Check that the restored updates are the last ones: at least an hour, each once, without a gap."""
        minutes: dict[tuple[str, str], dict[datetime, bool]] = {}
        for batch in killed.sent:
            for sensor, its in batch.samples.items():
                if its:
                    over = minutes.setdefault((batch.machine, sensor), {})
                    minute = batch.time.replace(second=0, microsecond=0)
                    over[minute] = over.get(minute, False) or any(map(math.isfinite, its))
        for (machine, sensor), its_minutes in minutes.items():
            last = max(its_minutes)
            ends = [
                minute + timedelta(minutes=1)
                for minute, has_mean in its_minutes.items()
                if has_mean and minute + timedelta(minutes=1) <= killed.now()
            ][-RECENT_UPDATES:]
            restored = [update["time"] for update in killed.snapshot(machine).get(sensor, [])]
            self.assertEqual(
                restored,
                [wall_time(end, "microseconds") for end in ends[len(ends) - len(restored) :]],
                f"{what}: updates of {machine}/{sensor}",
            )
            if last.date() >= killed.now().date() - timedelta(days=1):
                recent = [end for end in ends if end > last - timedelta(minutes=RECENT_UPDATES)]
                self.assertGreaterEqual(len(restored), len(recent), f"{what}: updates of {machine}/{sensor}")

    async def test_random_kills_around_the_end_of_a_year(self) -> None:
        for seed in range(6):
            await self.run_seed(seed, at("2025-12-30 21:07:13"), steps=60, steps_of=any_step)

    async def test_random_kills_with_inexact_sums(self) -> None:
        for seed in range(4):
            await self.run_seed(seed, at("2025-12-31 22:07:13"), steps=60, steps_of=any_step, exact=False)

    async def test_random_kills_within_seconds_and_minutes(self) -> None:
        for seed in range(4):
            await self.run_seed(
                seed, at("2025-12-31 23:55:13"), steps=80, steps_of=short_step, down=(0.0, 0.1, 1.0, 10.0, 70.0)
            )

    async def test_random_kills_in_a_half_hour_zone(self) -> None:
        for seed in range(3):
            await self.run_seed(seed, at("2025-12-30 21:07:13", KOLKATA), steps=60, steps_of=any_step)

    async def test_random_kills_over_a_skipped_hour(self) -> None:
        for seed in range(3):
            await self.run_seed(seed, at("2025-03-29 22:07:13", BERLIN), steps=60, steps_of=any_step)

    async def test_random_kills_over_a_repeated_hour(self) -> None:
        for seed in range(5):
            await self.run_seed(
                seed,
                at("2025-10-26 00:37:13", BERLIN),
                steps=70,
                steps_of=lambda chance: chance.uniform(0, 400),
                down=(0.0, 0.2, 5.0, 100.0, 600.0, 1000.0),
                everybody=True,
                with_updates=False,
            )

    async def test_random_kills_over_clock_changes_of_lord_howe(self) -> None:
        for seed in range(3):
            for begin in ("2025-04-06 00:37:13", "2025-10-05 00:37:13"):
                await self.run_seed(
                    seed,
                    at(begin, LORD_HOWE),
                    steps=60,
                    steps_of=lambda chance: chance.uniform(0, 400),
                    down=(0.0, 0.2, 5.0, 100.0, 600.0),
                    everybody=True,
                    with_updates=False,
                )


V: Final = {("M", "v"): "VIB"}


class NamedKills(RecoveryCase):
    """One or two kills at particular moments."""

    begin = at("2025-12-18 10:00:00")
    end = at("2026-02-01 00:00:00")

    async def run_through(self, killed: Killable, until: str, every: float = 20.0) -> None:
        """Send samples up to a time, and let all entries reach the store."""
        zone = killed.zone
        while killed.wall + every < datetime.fromisoformat(until).replace(tzinfo=zone).timestamp():
            killed.advance(every)
            self.send(killed)
            await killed.write()
        killed.go_to(datetime.fromisoformat(until).replace(tzinfo=zone))

    def send(self, killed: Killable, count: int = 3) -> None:
        number = len(killed.sent)
        killed.send_one(*((-1) ** (number + index) * (number + index / 4.0) for index in range(count)))

    def query(self, killed: Killable, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(killed.db / "M.db", isolation_level=None)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    # -- moments

    async def test_kill_at_the_end_of_a_minute_or_an_hour(self) -> None:
        for moment in ("2025-12-18 10:07:00", "2025-12-18 11:00:00"):
            for number, (before, after) in enumerate(
                ((-0.3, 0.0), (-0.001, 0.002), (0.0, 0.0), (0.001, 5.0), (-9, 90))
            ):
                killed = await self.started(self.begin, f"{moment} {number}")
                await self.run_through(killed, "2025-12-18 10:06:50")
                killed.go_to(at(moment) + timedelta(seconds=before))
                self.send(killed)
                await killed.write()
                await killed.kill(lambda count: count)
                killed.sleep(after)
                await killed.start()
                self.send(killed)
                killed.advance(0.25)
                await self.compare(killed, self.begin, self.end, f"{moment} {before:+}", types=V)

    async def test_kill_between_the_rows_of_the_end_of_a_year(self) -> None:
        begin = at("2025-12-31 23:50:00")
        for count in range(6):
            killed = await self.started(begin, f"{count}")
            await self.run_through(killed, "2025-12-31 23:59:59")
            killed.advance(2.0)
            self.send(killed)
            killed.advance(1.0)
            (waiting,) = killed.gate.waiting
            self.assertEqual(len(waiting[0]), 4)
            await killed.kill(entries=count)
            self.assertEqual(sum(map(len, killed.rows().values())), min(count, 4))
            await killed.start()
            await self.compare(killed, begin, at("2027-01-01"), f"{count} entries", types=V)

    async def test_kill_while_rows_of_a_recovery_are_written(self) -> None:
        begin = at("2025-12-31 22:50:00")
        for count in range(6):
            killed = await self.started(begin, f"{count}")
            await self.run_through(killed, "2025-12-31 22:59:00")
            await killed.kill(lambda count: count)
            killed.sleep(3 * 3600)
            for _ in range(2):
                self.assertFalse(await killed.start(entries=count))
                killed.sleep(10)
            await killed.start()
            await self.compare(killed, begin, at("2027-01-01"), f"{count} entries", types=V)

    async def test_two_kills_in_a_minute(self) -> None:
        killed = await self.started(self.begin)
        for seconds in (10, 10, 10, 25, 10, 0.1, 0.1):
            killed.advance(seconds)
            self.send(killed)
            await killed.write()
            await killed.kill(lambda count: count - 5)
            killed.sleep(3)
            await killed.start()
        await self.compare(killed, self.begin, self.end, types=V)

    async def test_kill_without_a_sample(self) -> None:
        killed = await self.started(self.begin)
        await killed.kill()
        await killed.start()
        await killed.end(self.end)
        self.assertEqual(killed.rows(), {})

    # -- samples

    async def test_kill_with_samples_that_are_not_finite(self) -> None:
        killed = await self.started(self.begin)
        for _ in range(3):
            killed.advance(15)
            killed.send_one(math.nan, math.inf)
            await killed.write()
            killed.advance(1)
            await killed.kill()
            await killed.start()
        self.assertEqual(killed.snapshot("M").get("v", []), [])
        killed.advance(3600)
        killed.send_one(math.nan, -2.5)
        killed.advance(1)
        await killed.kill()
        await killed.start()
        await self.compare(killed, self.begin, self.end, types=V)
        self.assertEqual(
            self.query(killed, "SELECT time, data, count FROM v_hour_avg"), [("2025-12-18 11:00:00", 2.5, 1)]
        )

    async def test_kill_with_many_samples_a_minute(self) -> None:
        killed = await self.started(self.begin)
        chance = random.Random(1)
        for _ in range(24):
            killed.advance(chance.uniform(0.0, 8.0))
            killed.send_one(*(chance.gauss(0.0, 1.0) for _ in range(chance.randint(1, 900))))
            await killed.write()
            if chance.random() < 0.3:
                await killed.kill(lambda count: chance.randint(0, count))
                await killed.start()
        await self.compare(killed, self.begin, self.end, types=V, slack=1e-15)

    async def test_kill_before_the_type_is_stored(self) -> None:
        killed = await self.started(self.begin)
        killed.advance(10)
        self.send(killed)
        killed.advance(1)
        # The entry with the type is waiting.
        await killed.kill()
        self.assertEqual(killed.rows(), {})
        await killed.start()
        self.send(killed)
        await self.compare(killed, self.begin, self.end, types=V)

    async def test_large_first_message_waits_for_its_type(self) -> None:
        killed = await self.started(self.begin)
        killed.send_one(*(-1.0 for _ in range(20_000)))
        await killed.kill()
        self.assertEqual(list(killed.data.iterdir()), [], "lines without their type")
        await killed.start()
        killed.send_one(-0.5)
        await killed.write()
        killed.send_one(*(-1.0 for _ in range(20_000)))
        await killed.kill()
        await killed.start()
        self.assertEqual(killed.recovered.samples, 20_001)
        await self.compare(killed, self.begin, self.end, types=V)

    async def test_sensor_without_a_stored_type_uses_the_default_mean(self) -> None:
        killed = await self.started(self.begin)
        killed.send_one(-1.0, 2.0)
        killed.advance(1)
        await killed.kill()
        await killed.start()
        await killed.end(self.end)
        # The mean is that of a type without an entry in ``stat``; the row has both sums.
        self.assertEqual(self.query(killed, "SELECT data, count, magnitudes FROM v_hour_avg"), [(0.5, 2, 3.0)])

    # -- the store

    def locked(self, killed: Killable) -> sqlite3.Connection:
        self.patch(machine_db, "_LOCK_WAIT", 0.02)
        other = sqlite3.connect(killed.db / "M.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        self.addCleanup(other.close)
        return other

    async def test_store_that_could_not_be_written_for_hours(self) -> None:
        for is_free in (True, False):
            killed = await self.started(self.begin, f"free at the start: {is_free}")
            await self.run_through(killed, "2025-12-18 10:30:00", 300)
            await killed.kill()
            await killed.start()
            other = self.locked(killed)
            await self.run_through(killed, "2025-12-18 13:30:00", 600)
            self.assertEqual(sum(map(len, killed.rows().values())), 0)
            await killed.kill(lambda count: count)
            killed.sleep(1000)
            if is_free:
                other.execute("ROLLBACK")
            await killed.start()
            await self.run_through(killed, "2025-12-19 01:30:00", 1200)
            if not is_free:
                await killed.kill(lambda count: count)
                await killed.start()
                other.execute("ROLLBACK")
            await self.run_through(killed, "2025-12-19 02:30:00", 1200)
            await self.compare(killed, self.begin, self.end, f"free at the start: {is_free}", types=V)

    async def test_row_with_a_wrong_raw_end(self) -> None:
        for text in ("NULL", "raw_end + 7", "raw_end - 7", "raw_end + 1000000"):
            killed = await self.started(self.begin, text)
            await self.run_through(killed, "2025-12-18 12:20:00", 55)
            await killed.kill(lambda count: count)
            self.query(killed, f"UPDATE v_hour_avg SET raw_end = {text}")
            killed.sleep(5)
            await killed.start()
            await self.run_through(killed, "2025-12-18 13:20:00", 55)
            await self.compare(killed, self.begin, self.end, text, types=V)

    async def test_raw_end_of_rows_is_the_begin_of_later_lines(self) -> None:
        # A torn line stays at the end of the file until the next line is written.
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 10:30:00")
        self.send(killed)
        await killed.kill(lambda count: count - 3)
        await killed.start()
        await self.run_through(killed, "2025-12-18 10:30:30", 60)
        killed.go_to(at("2025-12-18 11:00:10"))
        await killed.write()
        await self.run_through(killed, "2025-12-18 11:05:00")
        await killed.kill(lambda count: count)
        content = (killed.data / "M" / "20251218_v.csv").read_bytes()
        ((raw_end,),) = self.query(killed, "SELECT raw_end FROM v_hour_avg")
        self.assertTrue(content[:raw_end].endswith(b"\n"), content[:raw_end][-30:])
        self.assertTrue(content[raw_end:].startswith(b"11:"), content[raw_end:][:30])
        await killed.start()
        await self.compare(killed, self.begin, self.end, types=V)

    async def test_torn_line_as_long_as_the_next_line(self) -> None:
        killed = await self.started(self.begin)
        killed.advance(60)
        killed.send_one(1.5)
        await killed.write()
        killed.advance(60)
        # Without its last two bytes, it is as long as the next line, which is in the next hour.
        killed.send_one(2.555)
        await killed.kill(lambda count: count - 2)
        await killed.start()
        killed.go_to(at("2025-12-18 11:00:10"))
        await killed.write()
        killed.send_one(3.5)
        killed.advance(1)
        killed.send_one(4.5)
        killed.advance(1)
        await killed.kill()
        await killed.start()
        await self.compare(killed, self.begin, self.end, types=V)

    # -- clocks

    async def test_clock_set_back_by_seconds(self) -> None:
        for number, (before, step) in enumerate(
            (("10:05:10", 20), ("11:00:05", 20), ("10:07:30", 5), ("11:00:50", 59))
        ):
            for is_killed_first in (True, False):
                what = f"{before} - {step} s, killed first: {is_killed_first}"
                killed = await self.started(self.begin, f"{number} {is_killed_first}")
                await self.run_through(killed, f"2025-12-18 {before}", 7)
                if is_killed_first:
                    await killed.kill(lambda count: count)
                    killed.wall -= step
                    await killed.start()
                else:
                    killed.wall -= step
                    self.send(killed)
                    killed.advance(0.3)
                    self.send(killed)
                    await killed.kill(lambda count: count // 2)
                    await killed.start()
                self.send(killed)
                await self.run_through(killed, "2025-12-18 11:20:00", 7)
                await killed.kill(lambda count: count // 2)
                await killed.start()
                await self.compare(killed, self.begin, self.end, what, types=V)

    async def test_clock_set_back_by_hours(self) -> None:
        for written in (True, False):
            killed = await self.started(self.begin, f"{written}")
            await self.run_through(killed, "2025-12-18 14:10:00", 300)
            killed.wall -= 3 * 3600
            self.send(killed)
            if written:
                await killed.write()
            await killed.kill(lambda count: count)
            killed.sleep(5)
            await killed.start()
            self.send(killed)
            await self.run_through(killed, "2025-12-18 15:10:00", 300)
            await killed.kill(lambda count: count)
            await killed.start()
            await self.compare(killed, self.begin, self.end, f"written: {written}", types=V)

    async def test_clock_set_back_over_midnight(self) -> None:
        begin = at("2025-12-18 23:30:00")
        killed = await self.started(begin)
        await self.run_through(killed, "2025-12-19 00:00:05", 10)
        await killed.kill(lambda count: count)
        killed.wall -= 20
        await killed.start()
        await self.run_through(killed, "2025-12-19 00:10:00", 10)
        await killed.kill(lambda count: count)
        await killed.start()
        await killed.end(self.end)
        # Two files do not tell the number of minutes with samples.
        self.check_files(killed, "", V)

    async def test_clock_set_back_into_a_day_with_a_row(self) -> None:
        begin = at("2025-12-18 22:00:00")
        killed = await self.started(begin)
        await self.run_through(killed, "2025-12-19 00:10:00", 300)
        killed.wall -= 3 * 3600
        self.send(killed)
        await self.run_through(killed, "2025-12-18 22:05:00", 300)
        # The hour from 21:00 has its row; the earlier row of the day lacks it.
        await killed.write()
        await killed.kill()
        killed.sleep(2 * 86400)
        await killed.start()
        await killed.end(self.end)
        self.check_files(killed, "", V)

    # -- repeated hours

    async def test_kill_within_a_repeated_hour(self) -> None:
        begin = at("2025-10-26 01:10:00", BERLIN)
        for moments in (("02:30", 0), ("02:30", 1)), (("02:59", 0),), (("02:05", 1),), (("01:59", 0), ("03:01", 0)):
            killed = await self.started(begin, f"{moments}")
            for clock, fold in moments:
                until = at(f"2025-10-26 {clock}:00", BERLIN, fold).timestamp()
                while killed.wall + 240 < until:
                    killed.advance(240)
                    self.send(killed)
                    await killed.write()
                await killed.kill(lambda count: count)
                killed.sleep(70)
                await killed.start()
            for _ in range(40):
                killed.advance(240)
                self.send(killed)
                await killed.write()
            await self.compare(killed, begin, self.end.replace(tzinfo=BERLIN), f"killed at {moments}", types=V)

    async def test_kill_in_the_second_hour_without_samples_in_the_first(self) -> None:
        begin = at("2025-10-26 01:10:00", BERLIN)
        killed = await self.started(begin)
        self.send(killed)
        await killed.write()
        await killed.kill(lambda count: count)
        killed.wall = at("2025-10-26 02:10:00", BERLIN, 1).timestamp()
        await killed.start()
        for _ in range(3):
            killed.advance(300)
            self.send(killed)
        killed.advance(1)
        await killed.kill()
        await killed.start()
        killed.advance(300)
        self.send(killed)
        await self.compare(killed, begin, self.end.replace(tzinfo=BERLIN), types=V)

    async def test_second_hour_is_found_by_the_row_of_the_first(self) -> None:
        """Only the row of the first hour distinguishes the lines of the two."""
        begin = at("2025-10-26 01:10:00", BERLIN)
        for first, second in (("02:59:50", "02:59:55"), ("02:10:00", "02:40:00"), ("02:30:00", "02:30:00")):
            for kills in range(3):
                what = f"{first} and {second}, kills: {kills + 1}"
                killed = await self.started(begin, what)
                killed.go_to(at(f"2025-10-26 {first}", BERLIN))
                self.send(killed, 5)
                await killed.write()
                if kills == 2:
                    await killed.kill(lambda count: count)
                    killed.sleep(1)
                    await killed.start()
                killed.go_to(at("2025-10-26 02:00:01", BERLIN, 1))
                await killed.write()
                killed.go_to(at(f"2025-10-26 {second}", BERLIN, 1))
                self.send(killed, 5)
                await killed.write()
                for _ in range(min(kills, 1) + 1):
                    await killed.kill(lambda count: count)
                    killed.sleep(30)
                    await killed.start()
                killed.go_to(at("2025-10-26 05:00:00", BERLIN))
                self.send(killed)
                await self.compare(killed, begin, self.end.replace(tzinfo=BERLIN), what, types=V)
                counts = self.query(killed, "SELECT count FROM v_hour_avg ORDER BY start")
                self.assertEqual(counts, [(5,), (5,), (3,)], what)

    async def test_repeated_hour_at_the_end_of_a_day(self) -> None:
        """Clocks go back at midnight in Cairo."""
        zone = ZoneInfo("Africa/Cairo")
        begin = at("2025-10-30 22:10:00", zone)
        killed = await self.started(begin)
        killed.go_to(at("2025-10-30 23:10:00", zone))
        self.send(killed, 5)
        killed.go_to(at("2025-10-30 23:00:01", zone, 1))
        await killed.write()
        killed.go_to(at("2025-10-30 23:40:00", zone, 1))
        self.send(killed, 5)
        await killed.kill(lambda count: count)
        killed.sleep(5)
        await killed.start()
        await self.compare(killed, begin, self.end.replace(tzinfo=zone), types=V)
        self.assertEqual(self.query(killed, "SELECT count FROM v_hour_avg"), [(5,), (5,)])

    async def test_repeated_hour_with_an_unknown_raw_end(self) -> None:
        begin = at("2025-10-26 01:50:00", BERLIN)
        killed = await self.started(begin)
        for _ in range(25):
            killed.advance(240)
            self.send(killed)
            await killed.write()
        await killed.kill(lambda count: count)
        self.query(killed, "UPDATE v_hour_avg SET raw_end = NULL")
        await killed.start()
        await self.compare(killed, begin, self.end.replace(tzinfo=BERLIN), types=V)

    # -- updates

    async def test_last_updates_over_midnight(self) -> None:
        killed = await self.started(at("2025-12-18 22:50:00"))
        for minutes in (50, 60, 45):
            for _ in range(minutes):
                killed.advance(60)
                self.send(killed)
                await killed.write()
            killed.advance(1)
            await killed.kill()
            killed.sleep(2)
            await killed.start()
            expected = [update.payload() for update in killed.heard[-60:]]
            self.assertEqual(killed.snapshot("M"), {"v": expected})
        self.assertEqual(len(expected), 60)
        self.assertEqual(expected[0]["time"], "2025-12-19 00:26:00.000000")

    async def test_last_updates_if_the_newest_file_has_no_line(self) -> None:
        killed = await self.started(at("2025-12-18 23:50:00"))
        await self.run_through(killed, "2025-12-19 00:00:00")
        killed.advance(1)
        await killed.write()
        self.send(killed)
        # A kill has torn the first line.
        await killed.kill(lambda _: 15)
        await killed.start()
        self.assertEqual(killed.snapshot("M"), {"v": [update.payload() for update in killed.heard[-60:]]})

    async def test_last_updates_after_a_repeated_hour(self) -> None:
        for until in ("2025-10-26 02:20:00", "2025-10-26 03:10:00"):
            killed = await self.started(at("2025-10-26 01:30:00", BERLIN), until)
            while killed.wall < at(until, BERLIN, 1).timestamp():
                killed.advance(60)
                self.send(killed)
                await killed.write()
            killed.advance(1)
            await killed.kill()
            await killed.start()
            restored = killed.snapshot("M")["v"]
            expected = [update.payload() for update in killed.heard[-60:]]
            self.assertEqual(restored, expected[len(expected) - len(restored) :])
            self.assertGreaterEqual(len(restored), 59)

    # -- rows of other days

    async def test_rows_added_later_do_not_repeat_samples(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 11:30:00", 60)
        await killed.kill(lambda count: count)
        before = killed.rows()
        # As the recompute command adds them, with the highest ids.
        with sqlite3.connect(killed.db / "M.db") as connection:
            tables = MachineTables(connection)
            for number in range(1, 150):
                start = at("2025-12-17 00:00:00") - timedelta(hours=number)
                bucket = Bucket(1, 1, 1.0, least=1.0, greatest=1.0)
                tables.write(ClosedHour("M", "v", start, bucket, "ABS", replaces=True))
        connection.close()
        for _ in range(2):
            await killed.start()
            await killed.kill(lambda count: count)
        hours = [row for row in killed.rows()["M", "v_hour_avg"] if row["time"] >= "2025-12-18"]
        self.assertEqual(hours, before["M", "v_hour_avg"])

    async def test_clock_that_was_ahead_for_a_minute(self) -> None:
        counts = []
        for kills in (False, True):
            killed = await self.started(at("2025-12-18 22:30:00"), f"ahead {kills}")
            await self.run_through(killed, "2025-12-18 22:40:00")
            # Ahead by more than a year for a minute, and back.
            killed.wall += 400 * 86400
            for _ in range(4):
                killed.advance(20)
                self.send(killed)
            await killed.write()
            killed.wall -= 400 * 86400
            for until in ("2025-12-18 23:10:00", "2025-12-18 23:50:00", "2025-12-19 00:20:00", "2025-12-20 01:10:00"):
                await self.run_through(killed, until, 60)
                if kills:
                    await killed.kill(lambda count: count)
                    await killed.start()
            await killed.end(at("2025-12-21 00:00:00"))
            rows = killed.rows()
            counts.append(
                {
                    (table, row["time"], row["count"], row["data"])
                    for (_, table), its in rows.items()
                    for row in its
                    if row["time"] < "2026" and "year" not in table
                }
            )
        self.assertEqual(counts[1], counts[0])
        self.assertIn("2025-12-18 23:00:00", {time for _, time, _, _ in counts[0]})

    async def test_unreadable_database_does_not_repeat_samples(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 11:30:00", 60)
        await killed.kill(lambda count: count)
        before = killed.rows()["M", "v_hour_avg"]
        # A foreign table is skipped, and a broken file is not touched.
        self.query(killed, "CREATE TABLE notes_hour_avg (id, text)")
        await killed.start()
        await killed.kill(lambda count: count)
        self.query(killed, "DROP TABLE notes_hour_avg")
        self.assertEqual(killed.rows()["M", "v_hour_avg"], before)
        whole = (killed.db / "M.db").read_bytes()
        (killed.db / "M.db").write_bytes(b"no database" * 1000)
        with capturedLogs() as events:
            await killed.start()
        texts = "".join(event["log_format"] for event in events)
        self.assertIn("statistics lack the samples from before this start", texts)
        self.assertEqual((killed.recovered.entries, killed.recovered.samples), ([], 0))
        await killed.kill(lambda count: count)
        (killed.db / "M.db").write_bytes(whole)
        await killed.start()
        self.assertEqual(killed.recovered.samples, 90)

    async def test_invalid_row_does_not_affect_the_others(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 11:30:00", 60)
        self.query(
            killed, "INSERT INTO v_hour_avg (time, data) VALUES ('9999-12-31 23:00:00', 1), ('x', 1), (x'00', 1)"
        )
        await killed.kill(lambda count: count)
        await killed.start()
        await killed.end(self.end)
        days = self.query(killed, "SELECT time, count FROM v_day_avg")
        self.assertEqual([time for time, _ in days], ["2025-12-18 00:00:00"])
        self.assertGreater(days[0][1], 0)
        self.assertEqual(killed.counters.store_lost._value.get(), 0)

    async def test_raw_file_that_was_moved_and_written_again(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 11:00:30", 60)
        path = killed.data / "M" / "20251218_v.csv"
        path.rename(path.with_suffix(".old"))
        moved = len(path.with_suffix(".old").read_bytes())
        await self.run_through(killed, "2025-12-18 11:59:00", 20)
        self.assertGreater(len(path.read_bytes()), moved)
        await killed.kill(lambda count: count)
        lines = path.read_bytes().count(b"\n") - 1
        await killed.start()
        self.assertEqual(killed.recovered.samples, lines)

    async def test_last_updates_are_found_over_gaps_without_samples(self) -> None:
        killed = await self.started(at("2025-12-17 15:00:00"))
        await self.run_through(killed, "2025-12-17 17:00:00", 60)
        # No samples in the night, and a few in the morning.
        killed.go_to(at("2025-12-18 08:00:00"))
        await self.run_through(killed, "2025-12-18 08:10:30", 60)
        await killed.kill(lambda count: count)
        await killed.start()
        self.assertEqual(killed.snapshot("M"), {"v": [update.payload() for update in killed.heard[-60:]]})

    # -- files

    async def test_machine_without_raw_files_is_known(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 12:20:00", 60)
        await killed.kill(lambda count: count)
        shutil.rmtree(killed.data)
        killed.data.mkdir()
        killed.sleep(86400)
        await killed.start()
        await killed.end(self.end)
        counts = {table: [row["count"] for row in rows] for (_, table), rows in killed.rows().items()}
        self.assertEqual(
            counts, {"v_hour_avg": [177, 180], "v_day_avg": [357], "v_month_avg": [357], "v_year_avg": [357]}
        )

    async def test_unreadable_files_do_not_affect_the_others(self) -> None:
        whole = gzip.compress(b"time,data\n10:00:00,1\n" * 1000)

        def broken(path: Path) -> None:
            path.write_bytes(b"no gzip at all")

        def cut(path: Path) -> None:
            path.write_bytes(whole[: len(whole) // 2])

        def damaged(path: Path) -> None:
            path.write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])

        def folder(path: Path) -> None:
            path.mkdir()

        def nowhere(path: Path) -> None:
            path.symlink_to("nowhere")

        for make in (broken, cut, damaged, folder, nowhere):
            killed = await self.started(self.begin, make.__name__)
            types = {"v": "VIB", "w": "TEMP"}
            for _ in range(10):
                killed.advance(60)
                killed.send("M", types, {"v": [1.0], "w": [2.0]})
                await killed.write()
            killed.advance(1)
            await killed.kill()
            make(killed.data / "M" / "20251217_v.csv.gz")
            (killed.data / "M" / "20251216_w.csv").mkdir()
            (killed.data / "M" / "20251399_w.csv").write_bytes(b"no day")
            (killed.data / "file").write_bytes(b"no machine")
            with capturedLogs() as events:
                await killed.start()
            said = [event for event in events if event.get("machine") == "M" and event["log_level"].name == "error"]
            self.assertEqual([event["sensor"] for event in said], ["v"] if make in (broken, cut, damaged) else [])
            killed.advance(60)
            killed.send("M", types, {"v": [1.0], "w": [2.0]})
            await killed.end(self.end)
            self.assertEqual(self.query(killed, "SELECT count FROM w_hour_avg"), [(11,)], make.__name__)
            # The file of the day before is unreadable; that of the open hour is readable.
            self.assertEqual(self.query(killed, "SELECT count FROM v_hour_avg"), [(11,)], make.__name__)

    async def test_folder_instead_of_a_raw_file(self) -> None:
        killed = await self.started(self.begin)
        (killed.data / "M" / "20251218_v.csv").mkdir(parents=True)
        for _ in range(2):
            killed.advance(60)
            killed.bus.publish(self.batch_of(killed))
            await killed.write()
            killed.advance(1)
        killed.go_to(at("2025-12-18 11:00:01"))
        await killed.write()
        self.assertEqual(self.query(killed, "SELECT count, raw_end FROM v_hour_avg"), [(2, None)])
        await killed.kill()
        await killed.start()
        await killed.end(self.end)
        self.assertEqual(self.query(killed, "SELECT count, raw_end FROM v_hour_avg"), [(2, None)])

    def batch_of(self, killed: Killable) -> Batch:
        return Batch("M", {"v": SensorBatch("VIB", array("d", [1.0]))}, killed.now())

    async def test_compressed_file_is_not_read_again(self) -> None:
        killed = await self.started(self.begin)
        await self.run_through(killed, "2025-12-18 12:20:00", 60)
        await killed.kill(lambda count: count)
        killed.sleep(2 * 86400)
        await killed.start()
        await killed.kill()
        path = killed.data / "M" / "20251218_v.csv"
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        os.utime(f"{path}.gz", (path.stat().st_atime, path.stat().st_mtime))
        # Kills before and after the removal of the file.
        for _ in range(2):
            await killed.start()
            self.assertEqual(killed.recovered.entries, [])
            await killed.kill()
            path.unlink(missing_ok=True)

    async def test_more_files_without_rows_than_the_maximum_are_logged(self) -> None:
        killed = Killable(self.folder / "killed", at("2025-12-18 10:00:00"))
        self.killables.append(killed)
        (killed.data / "M").mkdir()
        for day in range(10, 19):
            (killed.data / "M" / f"202512{day}_v.csv").write_bytes(b"time,data\n09:00:00,1.5\n09:00:01,2.5\n")
        with capturedLogs() as events:
            await killed.start()
        (warning,) = (event for event in events if event["log_level"].name == "warn")
        self.assertIn("cynow-gateway recompute", warning["log_format"])
        self.assertEqual((warning["machine"], warning["sensor"]), ("M", "v"))
        self.assertEqual(f"{warning['day']}", "2025-12-16")
        await killed.end(self.end)
        days = self.query(killed, "SELECT time, data, count FROM v_day_avg")
        self.assertEqual(days, [(f"2025-12-{day} 00:00:00", 2.0, 2) for day in (16, 17, 18)])

    async def test_lines_that_are_not_sample_lines(self) -> None:
        killed = Killable(self.folder / "killed", at("2025-12-18 10:30:00"))
        self.killables.append(killed)
        (killed.data / "M").mkdir()
        (killed.data / "M" / "20251218_v.csv").write_bytes(
            b"time,data\n10:00:00,1.0\n10:00:01,2.010:00:02,3.0\nxx:00:03,4.0\n\n10:00:04,\n25:00:05,6.0\n"
            + b"\0" * 9000
            + b"\n10:00:06,7.0\n10:00:07,8"
        )
        await killed.start()
        killed.send_one(1.0)
        await killed.end(self.end)
        self.assertEqual(self.query(killed, "SELECT data, count FROM v_hour_avg"), [(3.0, 3)])

    # -- the old server

    def old_directory(self, killed: Killable) -> bytes:
        connection = sqlite3.connect(killed.db / "M.db")
        for period in PERIODS:
            connection.execute(
                f"CREATE TABLE v_{period}_avg (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
            )
        connection.executemany(
            "INSERT INTO v_hour_avg (time, data) VALUES (?, ?)",
            [(f"2025-12-18 {hour:02}:00:00", 1.0 + hour / 4) for hour in range(10)],
        )
        connection.execute("INSERT INTO v_day_avg (time, data) VALUES ('2025-12-17 00:00:00', 3.25)")
        connection.execute("INSERT INTO v_month_avg (time, data) VALUES ('2025-11-01 00:00:00', 4.5)")
        connection.commit()
        connection.close()
        lines = [
            f"{minute // 60:02}:{minute % 60:02}:{second},{-minute / 4}\r\n"
            for minute in range(616)
            for second in (10, 40)
        ]
        content = ("time,data\r\n" + "".join(lines) + "10:16:1").encode()
        (killed.data / "M").mkdir()
        (killed.data / "M" / "20251218_v.csv").write_bytes(content)
        return content

    async def test_directory_of_the_old_server_is_continued(self) -> None:
        killed = Killable(self.folder / "killed", at("2025-12-18 10:20:00"))
        self.killables.append(killed)
        before = self.old_directory(killed)
        old = {period: self.query(killed, f"SELECT id, time, data FROM v_{period}_avg") for period in PERIODS}
        await killed.start()
        samples = [-minute / 4 for minute in range(600, 616) for _ in range(2)]
        for number in range(2):
            for _ in range(10):
                killed.advance(60)
                killed.send_one(-0.25, 0.5)
                samples += [0.25, 0.5]
                await killed.write()
            killed.advance(1)
            await killed.kill()
            killed.sleep(number)
            await killed.start()
        killed.go_to(at("2025-12-18 11:30:00"))
        killed.send_one(8.0)
        await killed.end(self.end)
        for period in PERIODS:
            rows = self.query(killed, f"SELECT id, time, data FROM v_{period}_avg ORDER BY id")
            self.assertEqual(rows[: len(old[period])], old[period])
        content = (killed.data / "M" / "20251218_v.csv").read_bytes()
        self.assertTrue(content.startswith(before[: -len("10:16:1")]))
        hours = self.query(killed, "SELECT time, data, count, minutes FROM v_hour_avg WHERE count IS NOT NULL")
        mean = math.fsum(map(abs, samples)) / len(samples)
        self.assertEqual(hours, [("2025-12-18 10:00:00", mean, len(samples), 36), ("2025-12-18 11:00:00", 8.0, 1, 1)])
        # An hour without a count has the weight of an hour with samples at the same rate as in the others.
        weight = 60 * (len(samples) + 1) / 37
        total = math.fsum([*map(abs, samples), 8.0, *((1.0 + hour / 4) * weight for hour in range(10))])
        (_, (time, data, count)) = self.query(killed, "SELECT time, data, count FROM v_day_avg ORDER BY id")
        self.assertEqual((time, count), ("2025-12-18 00:00:00", None))
        self.assertAlmostEqual(data, total / (len(samples) + 1 + 10 * weight), places=12)
        (_, month) = self.query(killed, "SELECT time, data, count FROM v_month_avg ORDER BY id")
        self.assertEqual(month, ("2025-12-01 00:00:00", (3.25 + data) / 2, None))
