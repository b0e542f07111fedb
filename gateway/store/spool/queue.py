"""Queue of entries in the spool file, in the order of their arrival."""

import sqlite3
from datetime import date, tzinfo
from typing import Any

from gateway.model.entries import StoreEntry
from gateway.store.spool.codec import ROWS, SpoolRow, read_entries
from gateway.store.spool.marks import count_entry


def insert_entries(
    connection: sqlite3.Connection, admitted: "list[tuple[StoreEntry, tuple[Any, ...]]]", zone: tzinfo, today: date
) -> None:
    """Append entries with their rows, and update the progress of their sensors."""
    connection.executemany(
        "INSERT INTO entry (form, kind, machine, sensor, cost, body) VALUES (?, ?, ?, ?, ?, ?)",
        [row for _, row in admitted],
    )
    for entry, _ in admitted:
        count_entry(connection, entry, zone, today)


def oldest_entries(
    connection: sqlite3.Connection, limit: int, zone: tzinfo
) -> tuple[list[tuple[int, StoreEntry]], int, int]:
    """Return the oldest entries, and the number and cost of unreadable rows before them, which are removed."""
    found: list[tuple[int, StoreEntry]] = []
    broken: list[SpoolRow] = []
    while not found and (rows := connection.execute(ROWS + " LIMIT ?", (limit,)).fetchall()):
        for row, entry in read_entries(rows, zone):
            if entry is not None:
                found.append((row[0], entry))
            else:
                # An unreadable row must not block the entries after it.
                broken.append(row)
                connection.execute("DELETE FROM entry WHERE number = ?", row[:1])
    return found, len(broken), sum(row[5] for row in broken)
