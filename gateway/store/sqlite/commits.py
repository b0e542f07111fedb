"""Statements of commits, Idempotency-Keys and types of sensors in the file of commits."""

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import orjson

from gateway.model.entries import Sighting
from gateway.model.records import Commit, CommitEntry
from gateway.store.interface import (
    CommitResult,
    IdempotencyConflict,
    IdempotencyKey,
    RejectedByDatabase,
)

#: Function that writes a commit to the record, in the transaction of its row.
OnWrite: TypeAlias = Callable[[sqlite3.Connection, Commit], None]

#: Lifetime of an Idempotency-Key, in seconds; the contract is a day at least.
_KEY_LIFE: Final = 48 * 3600.0

_INSERT_COMMIT: Final = (
    "INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at,"
    " committed_at, arrival_shipping_no, move_report_no) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)

_INSERT_DETAIL: Final = "INSERT INTO commit_detail (commit_id, undo_of, detail) VALUES (?, ?, ?)"


def write_commit(
    connection: sqlite3.Connection,
    entry: CommitEntry,
    key: IdempotencyKey | None,
    now: float,
    on_write: OnWrite | None = None,
) -> CommitResult:
    """Insert a commit and its key; if the key is known, return the first answer and insert nothing.

    :param now: seconds since 1970.
    :param on_write: function that writes the commit to the record; ``None`` for no record.
    :raises IdempotencyConflict: the key was used for another request.
    :raises RejectedByDatabase: a rule of the database rejects the row.
    """
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
        inserted = connection.execute(_INSERT_COMMIT, values)
    except (sqlite3.IntegrityError, UnicodeError) as error:
        # Not chained to the error: a trigger may put any text into it.
        raise RejectedByDatabase(_rule(error, values)) from None
    row = inserted.lastrowid
    if inserted.rowcount != 1 or row is None:
        # RAISE(IGNORE) leaves the row out, and `lastrowid` is the id of an earlier row.
        raise RejectedByDatabase("a trigger of scale_weight_log leaves the row out")
    commit = Commit(row, entry)
    detail = orjson.dumps(entry.detail.record(), default=str).decode()
    try:
        connection.execute(_INSERT_DETAIL, (row, entry.detail.undo_of, detail))
    except sqlite3.IntegrityError:
        raise RejectedByDatabase("another commit has undone the same commit") from None
    if key is not None:
        connection.execute(
            "INSERT INTO idempotency (key, fingerprint, answer, made_at) VALUES (?, ?, ?, ?)",
            (key.key, key.fingerprint, orjson.dumps(commit.answer()).decode(), now),
        )
        connection.execute("DELETE FROM idempotency WHERE made_at < ?", (now - _KEY_LIFE,))
    if on_write is not None:
        on_write(connection, commit)
    return CommitResult(commit.answer(), commit)


def _rule(error: Exception, values: Sequence[str | None]) -> str:
    """Return the rule that rejected a row, without anything from the row itself."""
    if isinstance(error, UnicodeError):
        return "a text that is not Unicode"
    text = str(error)
    if any(value and value in text for value in values):
        return str(getattr(error, "sqlite_errorname", "a constraint"))
    return text


def replay_commit(connection: sqlite3.Connection, key: IdempotencyKey) -> dict[str, Any] | None:
    """Return the first answer to a key; ``None`` if the key is new.

    :raises IdempotencyConflict: the key was used for another request.
    """
    row = connection.execute("SELECT fingerprint, answer FROM idempotency WHERE key = ?", (key.key,)).fetchone()
    if row is None:
        return None
    fingerprint, answer = row
    if fingerprint != key.fingerprint:
        raise IdempotencyConflict
    found: dict[str, Any] = orjson.loads(answer)
    return found


def write_types(connection: sqlite3.Connection, sightings: Sequence[Sighting]) -> None:
    """Write the types of sensors."""
    connection.executemany(
        "INSERT OR REPLACE INTO sensor (machine, sensor, type) VALUES (?, ?, ?)",
        [(sighting.machine, sighting.sensor, sighting.type) for sighting in sightings],
    )


def check_schema(connection: sqlite3.Connection) -> None:
    """Compile the statements of a commit, triggers included, without running them."""
    connection.execute("SELECT key, fingerprint, answer, made_at FROM idempotency LIMIT 0")
    connection.execute("SELECT machine, sensor, type FROM sensor LIMIT 0")
    connection.execute("SELECT reserved FROM event_seq LIMIT 0")
    connection.execute("SELECT commit_id, undo_of, detail FROM commit_detail LIMIT 0")
    # This reads the current schema; a statement with unchanged text would not be compiled again.
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute(f"EXPLAIN /* schema {version} */ {_INSERT_COMMIT}", (None,) * 9).fetchone()


def touch(connection: sqlite3.Connection) -> None:
    """Write a row without changing it."""
    connection.execute("UPDATE event_seq SET reserved = reserved")


def _utc(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
