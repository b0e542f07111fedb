"""Command that copies the embedded store into PostgreSQL, ``--from db/ --to postgresql://...``.

It only adds rows and leaves existing ones unchanged. So it can be killed and run again at any time, and a gateway may
use the target meanwhile.
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
from gateway.migrate.source import SourceRow, open_source
from gateway.migrate.target import TargetDatabase
from gateway.model.names import is_name
from gateway.runtime.clock import zone_named
from gateway.store.postgres.refusals import error_text
from gateway.store.sqlite.queries import columns_of, quoted, sensors
from gateway.store.sqlitefile.files import GATEWAY_FILE
from gateway.timeseries.calendar import PERIODS

_COLUMNS: Final = ("table", "copied", "already there", "differing", "left out")


def _machines(directory: str) -> list[str]:
    names = (name.removesuffix(".db") for name in os.listdir(directory) if name.endswith(".db"))
    return sorted(filter(is_name, names))


def _is_used(directory: str) -> bool:
    """Return whether a gateway locks a directory; see :class:`gateway.runtime.directory_lock.DirectoryLock`."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


def _size(directory: str, machines: Sequence[str]) -> int:
    """Return the number of rows in all files that can be read."""
    size = 0
    for name in (GATEWAY_FILE, *(f"{machine}.db" for machine in machines)):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(open_source(os.path.join(directory, name))) as connection,
        ):
            if name == GATEWAY_FILE:
                tables = ["scale_weight_log", "idempotency", "sensor"]
            else:
                tables = ["anomaly", *(table for period in PERIODS for _, table in sensors(connection, period))]
            for table in tables:
                if columns_of(connection, table):
                    count = f"SELECT count(*) FROM {quoted(table)}"  # noqa: S608 - quoted
                    size += connection.execute(count).fetchone()[0]
    return size


def _summary(migration: Migration, *, is_dry: bool) -> str:
    lines: list[SourceRow] = [("table", "rows", "left out") if is_dry else _COLUMNS]
    for name, count in migration.counts.items():
        lines.append(
            (name, count.copied, count.left_out)
            if is_dry
            else (name, count.copied, count.existing, count.different, count.left_out)
        )
    return "".join(f"{name:<18}" + "".join(f"{cell:>15}" for cell in cells) + "\n" for name, *cells in lines)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Copy the embedded store into PostgreSQL. Existing rows stay unchanged; a second run adds the rows"
        " that are missing, after an interruption or when there are new ones.",
        epilog="The exit status is 1 if a row could not be read or was left out, or if there was nothing to do.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: every key's default)")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="folder of the store (default: database.path)")
    parser.add_argument(
        "--to", dest="url", metavar="URL", help="postgresql://user@host:port/database (default: database.url)"
    )
    parser.add_argument("--dry-run", action="store_true", help="read and count rows, without a connection to a server")
    return parser


def _migrate(directory: str, url: str | None, zone: tzinfo) -> Migration:
    """Copy a store.

    :param url: URL of the target; ``None`` to count rows only.
    :raises SystemExit: the directory does not hold a store.
    """
    machines = _machines(directory)
    if not machines and not os.path.exists(os.path.join(directory, GATEWAY_FILE)):
        raise SystemExit(f"migrate: --from: {directory} does not hold a store")
    if _is_used(directory):
        sys.stderr.write(
            f"migrate: a gateway is using {directory}: rows that it writes from now on may not be copied; run this"
            " command again after stopping it\n"
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


def main(arguments: Sequence[str] | None = None, prog: str = "python -m gateway.migrate") -> None:
    """Copy the embedded store into PostgreSQL."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    try:
        settings = load(options.config, os.environ)
    except ConfigError as error:
        raise SystemExit(f"migrate: {error}") from error
    directory = options.source or settings.database.path
    url = options.url or settings.database.url
    if url is None and not options.dry_run:
        parser.error("the target is missing: set --to or database.url")
    try:
        migration = _migrate(directory, None if options.dry_run else url, zone_named(settings.timezone))
    except OSError as error:
        path = Path(directory).absolute()
        raise SystemExit(f"migrate: --from: cannot read the store in {path}: {error.strerror}") from error
    except psycopg2.Error as error:
        raise SystemExit(f"migrate: PostgreSQL: {error_text(error)}") from error
    except KeyboardInterrupt:
        raise SystemExit("migrate: interrupted; run it again to continue") from None
    sys.stdout.write(_summary(migration, is_dry=options.dry_run))
    if migration.moved:
        sys.stdout.write(f"scale_weight_log: {migration.moved} rows have a new id, because other rows have theirs\n")
    for problem in migration.problems:
        sys.stderr.write(f"migrate: {problem}\n")
    if migration.problems:
        raise SystemExit(1)
