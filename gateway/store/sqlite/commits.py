"""Commits in the gateway's SQLite file."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Commit, CommitEntry, Fault
from gateway.model.timestamps import wall_time
from gateway.store.interface import (
    CommitResult,
    IdempotencyConflict,
    IdempotencyKey,
    RejectedByDatabase,
)
from gateway.store.sqlite.machine_tables import MachineTables

#: Seconds for which an answer is kept for its Idempotency-Key; the contract is a day at least.
_KEY_LIFE: Final = 48 * 3600.0


INSERT_COMMIT: Final = (
    "INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at,"
    " committed_at, arrival_shipping_no, move_report_no) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def write_commit(
    connection: sqlite3.Connection, entry: CommitEntry, key: IdempotencyKey | None, now: float
) -> CommitResult:
    if key is not None:
        answer = replay_commit(connection, key)
        if answer is not None:
            return CommitResult(answer, None)
    values = (
        entry.scale_id,
        entry.cylinder_no,
        entry.event_type,
        str(entry.gross_kg),
        entry.raw_line,
        _utc(entry.received_at),
        _utc(entry.committed_at),
        entry.arrival_shipping_no,
        entry.move_report_no,
    )
    try:
        inserted = connection.execute(INSERT_COMMIT, values)
    except (sqlite3.IntegrityError, UnicodeError) as error:
        # Not chained to the error: a trigger may put any text into it.
        raise RejectedByDatabase(_rule(error, values)) from None
    row = inserted.lastrowid
    if inserted.rowcount != 1 or row is None:
        # By RAISE(IGNORE), and `lastrowid` is the id of an earlier row.
        raise RejectedByDatabase("a trigger of scale_weight_log leaves the row out")
    commit = Commit(row, entry)
    if key is not None:
        connection.execute(
            "INSERT INTO idempotency (key, fingerprint, answer, made_at) VALUES (?, ?, ?, ?)",
            (key.key, key.fingerprint, orjson.dumps(commit.answer()).decode(), now),
        )
        connection.execute("DELETE FROM idempotency WHERE made_at < ?", (now - _KEY_LIFE,))
    return CommitResult(commit.answer(), commit)


def _rule(error: Exception, values: Sequence[str | None]) -> str:
    """Return the rule that refused a row, without anything from the row itself."""
    if isinstance(error, UnicodeError):
        return "a text that is not Unicode"
    text = str(error)
    if any(value and value in text for value in values):
        return str(getattr(error, "sqlite_errorname", "a constraint"))
    return text


def replay_commit(connection: sqlite3.Connection, key: IdempotencyKey) -> dict[str, Any] | None:
    row = connection.execute("SELECT fingerprint, answer FROM idempotency WHERE key = ?", (key.key,)).fetchone()
    if row is None:
        return None
    fingerprint, answer = row
    if fingerprint != key.fingerprint:
        raise IdempotencyConflict
    found: dict[str, Any] = orjson.loads(answer)
    return found


def insert_commit(connection: sqlite3.Connection, its: MachineTables, entry: StoreEntry) -> None:
    its.create_anomaly()
    match entry:
        case Sighting():
            # Its type is stored elsewhere; its tables are created with their first rows.
            pass
        case ClosedHour():
            its.write_hour(entry)
        case ClosedPeriod():
            its.write_period(entry)
        case Fault(score=score, threshold=threshold, received_at=received_at):
            connection.execute(
                "INSERT INTO anomaly (time, threshold, score) VALUES (?, ?, ?)",
                (wall_time(received_at, "microseconds"), threshold, score),
            )


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
