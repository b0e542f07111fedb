"""Verification of the record of commits, against published heads and against ``scale_weight_log``."""

import argparse
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import psycopg2

from gateway.commands.check import check_config
from gateway.commands.commit_logs import PostgresCommitLog, SqliteCommitLog
from gateway.config.settings import Settings
from gateway.record.chain import ChainBroken, Head, HeadCheck, Row, find_heads, gateway_in_heads, parse_head, verify
from gateway.record.comparison import Comparison
from gateway.record.table import read_rows
from gateway.store.sqlitefile.files import GATEWAY_FILE, RECORD_FILE

#: Seconds for which a row that was just written may be missing from the record.
_PATIENCE: Final = 5.0


class AuditError(Exception):
    """Error that prevents the verification."""


@dataclass(slots=True)
class AuditResult:
    """The result of an audit.

    :ivar problems: everything that was found, one line each.
    """

    entries: int
    head: Head | None
    heads_checked: int
    commits: int
    problems: list[str]


def main(arguments: Sequence[str] | None = None, prog: str = "cynow-gateway audit") -> int:
    """Verify the record of a gateway, which may be running.

    :returns: exit status: 1 if something was changed, 2 if nothing could be verified.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--config", metavar="FILE", type=Path, help="configuration of the gateway")
    parser.add_argument(
        "--against",
        metavar="HEAD|FILE",
        action="append",
        default=[],
        help="a published head, or a file with heads, such as a log file; - is the standard input; may be repeated",
    )
    parser.add_argument("--record", metavar="FILE", type=Path, help="another file with a record, such as a copy")
    parser.add_argument("--chain-only", action="store_true", help="do not compare commits with scale_weight_log")
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options.config)
        heads = [head for text in options.against for head in _heads(text)]
        result = _audit(settings, options.record, heads, is_compared=not options.chain_only)
    except AuditError as error:
        sys.stderr.write(f"audit: {error}\n")
        return 2
    for problem in result.problems:
        sys.stderr.write(f"audit: {problem}\n")
    if result.problems:
        return 1
    sys.stdout.write(
        f"{result.entries} entries verified; {result.heads_checked} published heads match;"
        f" {result.commits} commits are as in scale_weight_log\n"
    )
    if not heads:
        sys.stdout.write("without --against, a record that was recomputed as a whole cannot be noticed\n")
    if result.head is not None:
        sys.stdout.write(f"{result.head}\n")
    return 0


def _settings(path: Path | None) -> Settings:
    checked = check_config(path, os.environ, str(Path.cwd()))
    if checked.settings is None or checked.fatal:
        raise AuditError("; ".join(str(problem) for problem in checked.fatal) or "the configuration cannot be read")
    return checked.settings


def _heads(text: str) -> Iterable[Head]:
    """Return the heads that a value of ``--against`` has.

    :raises AuditError: it has none.
    """
    if text != "-" and not os.path.exists(text):
        try:
            return [parse_head(text)]
        except ValueError as error:
            raise AuditError(f"--against: {text} is not a file and {error}") from error
    try:
        with contextlib.ExitStack() as stack:
            lines = sys.stdin if text == "-" else stack.enter_context(open(text, encoding="utf-8", errors="replace"))
            # Heads repeat while nothing is written.
            heads = dict.fromkeys(head for line in lines for head in find_heads(line))
    except OSError as error:
        raise AuditError(f"--against: {text}: {error.strerror}") from error
    if not heads:
        raise AuditError(f"--against: {text} contains no head")
    return list(heads)


def _audit(settings: Settings, path: Path | None, heads: Sequence[Head], *, is_compared: bool) -> AuditResult:
    url = settings.database.url
    if path is None:
        path = Path(settings.database.path, GATEWAY_FILE if url is None else RECORD_FILE)
    if not path.is_file():
        raise AuditError(f"{path} does not exist: the gateway has no record yet, or it was removed")
    server: PostgresCommitLog | None = None
    try:
        with contextlib.closing(sqlite3.connect(path.absolute().as_uri() + "?mode=ro", uri=True)) as connection:
            gateways = _gateways(connection)
            check = HeadCheck(gateways, heads)
            if heads and gateways and check.foreign == len(heads):
                raise AuditError(f"--against: no head is of the gateway {' or '.join(sorted(gateways))}")
            comparison = None
            if is_compared:
                if url is None:
                    comparison = Comparison(SqliteCommitLog(connection))
                else:
                    server = PostgresCommitLog(url, _raw_gateway(connection))
                    comparison = Comparison(server)
            if url is None:
                # Commits that are written meanwhile must not look like added ones.
                connection.execute("BEGIN")
            return _run(connection, check, comparison)
    except sqlite3.Error as error:
        raise AuditError(f"{path}: {error}") from error
    except psycopg2.Error as error:
        raise AuditError(f"database.url: cannot read scale_weight_log: {str(error).strip()}") from error
    finally:
        if server is not None:
            server.close()


def _run(connection: sqlite3.Connection, check: HeadCheck, comparison: Comparison | None) -> AuditResult:
    problems: list[str] = []
    last: Row | None = None
    try:
        for row in verify(read_rows(connection)):
            check.feed(row[0], row[2])
            if comparison is not None:
                comparison.feed(row)
            last = row
        check.finish(0 if last is None else last[0])
    except ChainBroken as error:
        problems.append(f"record: {error}")
    if comparison is not None and not problems:
        for added in comparison.finish():
            if not _is_recorded_soon(connection, 0 if last is None else last[0], added):
                comparison.report(f"scale_weight_log: row {added} was added: the record does not have it")
    if comparison is not None:
        problems += comparison.problems
        if comparison.count > len(comparison.problems):
            problems.append(f"scale_weight_log: {comparison.count - len(comparison.problems)} further differences")
    entries = 0 if last is None else last[0]
    head = None if last is None else Head(gateway_in_heads(_gateway_of(last[1])), last[0], last[2])
    return AuditResult(entries, head, check.checked, 0 if comparison is None else comparison.commits, problems)


def _is_recorded_soon(connection: sqlite3.Connection, last: int, commit_id: int) -> bool:
    """Return whether a row that is on the server gets into the record within some seconds.

    :param last: last verified entry. Only later ones count: whoever adds a row can also add a key of the record.
    """
    query = "SELECT content FROM record WHERE number > ? ORDER BY number"
    until = time.monotonic() + _PATIENCE
    while not connection.in_transaction and time.monotonic() < until:
        if any(orjson.loads(row[0]).get("commit_id") == commit_id for row in connection.execute(query, (last,))):
            return True
        time.sleep(0.2)
    return False


def _gateways(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the gateway in heads; it may have been renamed."""
    query = "SELECT content FROM record ORDER BY number {} LIMIT 1"
    rows = [connection.execute(query.format(order)).fetchone() for order in ("", "DESC")]
    return {gateway_in_heads(_gateway_of(row[0])) for row in rows if row is not None}


def _raw_gateway(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT content FROM record ORDER BY number DESC LIMIT 1").fetchone()
    return "" if row is None else _gateway_of(row[0])


def _gateway_of(content: object) -> str:
    try:
        return str(orjson.loads(content)["gateway"])  # type: ignore[arg-type]  # a changed row may have any type
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""
