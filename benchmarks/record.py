"""The record of commits: tampering by somebody with all rights, and the time of a verification."""

import contextlib
import sqlite3
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.table import Row
from gateway.record.chain import GENESIS, EntryStamp, encode_entry, link, verify
from gateway.record.table import read_rows
from gateway.store.sqlitefile.steps import apply_steps, schema_steps
from tests.support.record import GATEWAY, fields_of, new_record, tamper, verify_against

#: Tampered records and their entries, and entries that are verified, of a whole benchmark: 60 seconds.
TAMPERINGS: Final = 1000
ENTRIES: Final = 100_000
VERIFIED: Final = 10_000_000

_GOAL: Final = 60.0


def rows(folder: Path, seconds: float) -> list[Row]:
    """Tamper with a record at random, and verify a long one; shorter ones with less than 60 seconds."""
    part = min(1.0, seconds / 60)
    return [
        _tamper(folder / "tampered.sqlite3", max(20, round(TAMPERINGS * part)), round(ENTRIES * max(0.02, part))),
        _verify(folder / "long.sqlite3", max(100_000, round(VERIFIED * part))),
    ]


def _tamper(path: Path, count: int, entries: int) -> Row:
    head = new_record(path, entries)
    random = Random(15)
    found = named = exact = 0
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for _ in range(count):
            connection.execute("BEGIN")
            kind, number = tamper(connection, random, head.number)
            broken = verify_against(connection, head)
            connection.execute("ROLLBACK")
            found += broken is not None
            if not kind.startswith("recompute"):
                exact += 1
                named += broken is not None and broken.number == number
        is_intact = verify_against(connection, head) is None
    sys.stderr.write(f"record: the first entry was named in {named} of {exact} tamperings without recomputation\n")
    return Row(
        f"record: {count} tamperings with {entries} entries, found against one head",
        f"{found} of {count}, first entry named in {named} of {exact}",
        "all",
        found == count and named == exact and is_intact,
    )


def _verify(path: Path, entries: int) -> Row:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        apply_steps(connection, schema_steps("gateway.record.schema"), 0)
        _write(connection, entries)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        began = time.monotonic()
        used = time.process_time()
        count = sum(1 for _ in verify(read_rows(connection)))
        took, used = time.monotonic() - began, time.process_time() - used
    assert count == entries
    size = path.stat().st_size / 2**20
    sys.stderr.write(f"record: {took:.1f} s, {used:.1f} s of a processor, {size:.0f} MiB\n")
    goal = _GOAL * entries / VERIFIED
    return Row(f"record: {entries} entries verified", f"{took:.1f} s", f"< {goal:.1f} s", took < goal)


def _write(connection: sqlite3.Connection, entries: int) -> None:
    stamp = EntryStamp(GATEWAY, "commit", "2025-12-18T10:11:12.000000+09:00")
    template = encode_entry(0, stamp, fields_of(1))
    before, behind = template.split(b'"number":0,')
    previous = GENESIS
    connection.execute("BEGIN")
    for first in range(1, entries + 1, 10_000):
        made = []
        for number in range(first, min(first + 10_000, entries + 1)):
            content = b'%b"number":%d,%b' % (before, number, behind)
            previous = link(previous, content)
            made.append((number, content, previous))
        connection.executemany("INSERT INTO record VALUES (?, ?, ?)", made)
    connection.execute("COMMIT")
