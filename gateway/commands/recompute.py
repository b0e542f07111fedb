"""Command that makes statistics of past days again from raw files, ``--from DAY [--to DAY]``.

The gateway may run meanwhile: the command leaves the current day to it.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from gateway.commands.recomputation import Recompute, RecomputeJob, size_of
from gateway.config.loader import ConfigError, load
from gateway.config.settings import Settings
from gateway.raw import files
from gateway.raw.damage import MAX_FILES, DamageLog
from gateway.raw.files import RawFile
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.metrics import Counters
from gateway.store.interface import MachineDamaged, Store, StoreUnavailable
from gateway.store.postgres.command_store import CommandPostgresStore
from gateway.store.spool.spool import Spool
from gateway.store.sqlite.store import SqliteStore

#: Maximum bytes of rows that wait for PostgreSQL.
_SPOOL_BYTES: Final = 1024 * 1024 * 1024


def day(text: str) -> date:
    """Return a day of the command line; argparse shows the name of this function if the text is not valid."""
    return date.fromisoformat(text)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make statistics of past days again from raw files, and show each row that differs. The gateway may"
        " run meanwhile; the current day is left to it.",
        epilog="Days, months and years are computed from written hours, so --dry-run shows hours only. The exit status"
        " is 1 if a file could not be read or is damaged, or if there was nothing to do.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: every key's default)")
    parser.add_argument("--from", dest="first", type=day, required=True, metavar="DAY", help="first day, YYYY-MM-DD")
    parser.add_argument("--to", dest="last", type=day, metavar="DAY", help="last day (default: the first day)")
    parser.add_argument("--machine", help="only this machine")
    parser.add_argument("--sensor", help="only this sensor")
    parser.add_argument("--type", help="type of sensors whose type is not stored")
    parser.add_argument("--dry-run", action="store_true", help="show differences of hours, and write nothing")
    parser.add_argument("--force", action="store_true", help="replace rows with more samples than the raw files hold")
    return parser


def _jobs(
    options: argparse.Namespace, settings: Settings, types: dict[tuple[str, str], str | None]
) -> list[RecomputeJob]:
    jobs = []
    for machine in files.machines(settings.data.path):
        if options.machine in (None, machine):
            by_sensor: dict[str, list[RawFile]] = {}
            for file in files.raw_files(settings.data.path, machine):
                if options.first <= file.day <= options.last and options.sensor in (None, file.sensor):
                    by_sensor.setdefault(file.sensor, []).append(file)
            for sensor, raw_files in sorted(by_sensor.items()):
                kind = types.get((machine, sensor)) or options.type
                if kind is None:
                    sys.stderr.write(
                        f"recompute: {machine} {sensor}: the type of the sensor is not stored; its mean is computed as"
                        " REAL; use --type to set the type\n"
                    )
                mode = settings.stat.get((kind or "").lower(), "REAL")
                jobs.append(RecomputeJob(machine, sensor, mode, raw_files))
    return jobs


async def _run(reactor: Any, options: argparse.Namespace, settings: Settings, clock: WallClock) -> None:
    counters = Counters()
    store = _open_store(reactor, clock, counters, settings)
    try:
        stored = await store.rollup_progress({}, clock.now())
        types = {(state.machine, state.sensor): state.type for state in stored.sensors}
        jobs = _jobs(options, settings, types)
        size = sum(size_of(file) for job in jobs for file in job.raw_files)
        damage = DamageLog(clock, counters, MAX_FILES)
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
            recompute = Recompute(
                store, clock, write=not options.dry_run, force=options.force, progress=progress, damage=damage
            )
            for job in jobs:
                lost = _lost(counters)
                try:
                    await recompute.run(job)
                except MachineDamaged as error:
                    recompute.problems.append(f"{job.machine}: cannot read the database of the machine: {error}")
                if _lost(counters) > lost:
                    recompute.problems.append(f"{job.machine}: cannot write to the database of the machine")
    except (StoreUnavailable, OSError) as error:
        raise SystemExit(f"recompute: {error}") from error
    finally:
        await store.close()
    # Statistics are computed from the undamaged lines.
    recompute.problems += damage.problems
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(recompute.outcomes.items()))
    sys.stdout.write(f"{len(jobs)} sensors; rows: {counts or 'none'}\n")
    if not jobs:
        recompute.problems.append(f"data.path: no matching raw files in {settings.data.path}")
    for problem in recompute.problems:
        sys.stderr.write(f"recompute: {problem}\n")
    if recompute.problems:
        raise SystemExit(1)


def _open_store(reactor: Any, clock: WallClock, counters: Counters, settings: Settings) -> Store:
    """Return the open store.

    :raises SystemExit: the store cannot be opened.
    """
    database = settings.database
    store: Store
    if database.url is None:
        store = SqliteStore(reactor, clock, counters, database.path, gives_numbers=False)
        subject = f"database.path: cannot open the store in {Path(database.path).absolute()}"
    else:
        gateway = settings.gateway.name or platform.node()
        store = CommandPostgresStore(
            reactor,
            clock,
            counters,
            lambda directory: Spool(reactor, clock, counters, directory, _SPOOL_BYTES),
            database.url,
            f"{gateway} recompute",
        )
        subject = "database.url: cannot open the store"
    try:
        store.open()
    except StoreUnavailable as error:
        raise SystemExit(f"recompute: {subject}: {error}") from error
    return store


def _lost(counters: Counters) -> float:
    """Return the number of rows that the store has given up."""
    return counters.registry.get_sample_value("cynow_store_lost_total") or 0.0


def main(arguments: Sequence[str] | None = None, prog: str = "python -m gateway.recompute") -> None:
    """Make statistics of past days again."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    try:
        settings = load(options.config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"recompute: {error}") from error
    clock = WallClock(zone_named(settings.timezone))
    today = clock.now().date()
    if options.last is not None and options.last < options.first:
        parser.error("--to is before --from")
    if options.first >= today:
        parser.error(f"--from: {options.first} has not ended")
    options.last = min(options.last or options.first, today - timedelta(days=1))
    react(lambda reactor: Deferred.fromCoroutine(_run(reactor, options, settings, clock)))
