"""Copy the embedded store into PostgreSQL: ``python -m gateway.migrate --from db/ --to postgresql://...``.

It only adds rows: what is there already stays as it is. So it can be killed and run again at any time, and a gateway
may use the target meanwhile.
"""

import argparse
import contextlib
import fcntl
import os
import sqlite3
import sys
from collections.abc import Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Final

import psycopg2
from tqdm import tqdm

from gateway.config.loader import ConfigError, load
from gateway.migrate.copying import Migration
from gateway.migrate.source import SourceRow, opened
from gateway.migrate.target import TargetDatabase
from gateway.model.names import is_name
from gateway.runtime.clock import zone_named
from gateway.store.postgres.refusals import error_text
from gateway.store.sqlite.queries import columns_of, quoted, sensors
from gateway.store.sqlitefile.files import GATEWAY_FILE
from gateway.timeseries.calendar import PERIODS

_HEAD: Final = ("table", "copied", "already there", "differing", "left out")


def _machines(directory: str) -> list[str]:
    names = (name.removesuffix(".db") for name in os.listdir(directory) if name.endswith(".db"))
    return sorted(filter(is_name, names))


def _is_used(directory: str) -> bool:
    """Whether a gateway holds its lock; see :class:`gateway.runtime.directory_lock.DirectoryLock`."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


def _size(directory: str, machines: Sequence[str]) -> int:
    """How many rows there are, as far as they can be counted."""
    size = 0
    for name in (GATEWAY_FILE, *(f"{machine}.db" for machine in machines)):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(opened(os.path.join(directory, name))) as its:
            if name == GATEWAY_FILE:
                tables = ["scale_weight_log", "idempotency", "sensor"]
            else:
                tables = ["anomaly", *(table for period in PERIODS for _, table in sensors(its, period))]
            for table in tables:
                if columns_of(its, table):
                    size += its.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0]  # noqa: S608 - quoted
    return size


def _table(migration: Migration, *, is_dry: bool) -> str:
    lines: list[SourceRow] = [("table", "rows", "left out") if is_dry else _HEAD]
    for name, count in migration.counts.items():
        lines.append(
            (name, count.copied, count.left_out)
            if is_dry
            else (name, count.copied, count.there, count.different, count.left_out)
        )
    return "".join(f"{name:<18}" + "".join(f"{cell:>15}" for cell in cells) + "\n" for name, *cells in lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.migrate",
        description="Copy what the embedded store holds into PostgreSQL. What is there already stays as it is: run it"
        " again, after a kill or when there is more, and it adds what is missing.",
        epilog="The exit status is 1 where something could not be read or was left out, or there was nothing to do.",
    )
    parser.add_argument("--config", type=Path, help="the gateway's configuration (default: every default)")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="of the store (default: database.path)")
    parser.add_argument(
        "--to", dest="url", metavar="URL", help="postgresql://user@host:port/database (default: database.url)"
    )
    parser.add_argument("--dry-run", action="store_true", help="read and count, and ask no server")
    return parser.parse_args(arguments)


def _migrate(directory: str, url: str | None, zone: tzinfo) -> Migration:
    """Do it all.

    :param url: of the target; ``None``: rows are counted only.
    """
    machines = _machines(directory)
    if not machines and not os.path.exists(os.path.join(directory, GATEWAY_FILE)):
        raise SystemExit(f"migrate: there is no store in {directory}")
    if _is_used(directory):
        sys.stderr.write(
            f"migrate: a gateway uses {directory}: what it writes there from now on may be missing, so run this again"
            " when it has ended\n"
        )
    target = None if url is None else TargetDatabase(url)
    try:
        with tqdm(total=_size(directory, machines), unit=" rows", unit_scale=True, disable=None) as progress:
            migration = Migration(directory, target, zone, progress)
            migration.run(machines)
    finally:
        if target is not None:
            target.close()
    return migration


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _options(arguments)
    try:
        settings = load(options.config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"migrate: {error}") from error
    directory = options.source or settings.database.path
    url = options.url or settings.database.url
    if url is None and not options.dry_run:
        raise SystemExit("migrate: where to? --to and database.url are empty")
    try:
        migration = _migrate(directory, None if options.dry_run else url, zone_named(settings.timezone))
    except OSError as error:
        raise SystemExit(f"migrate: --from: {directory}, below {Path.cwd()}: {error.strerror}") from error
    except psycopg2.Error as error:
        raise SystemExit(f"migrate: PostgreSQL: {error_text(error)}") from error
    except KeyboardInterrupt:
        raise SystemExit("migrate: stopped; run it again, and it goes on") from None
    sys.stdout.write(_table(migration, is_dry=options.dry_run))
    if migration.moved:
        sys.stdout.write(f"scale_weight_log: {migration.moved} have new ids, for others have theirs\n")
    for problem in migration.problems:
        sys.stderr.write(f"migrate: {problem}\n")
    if migration.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
