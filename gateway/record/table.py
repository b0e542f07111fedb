"""Statements of the record, for the file of commits and for a file of its own."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gateway.record.chain import GENESIS, EntryStamp, Head, Row, encode_entry, gateway_in_heads, link

#: Maximum number of other gateways whose heads are kept.
MAX_FOREIGN: Final = 1000

_LAST: Final = "SELECT number, hash FROM record ORDER BY number DESC LIMIT 1"


class HeadConflict(Exception):
    """Error for a head of another gateway that contradicts one that is stored."""


class TooManyGateways(Exception):
    """Error for the head of a further gateway, when the maximum of stored heads is reached."""


def append_entry(
    connection: sqlite3.Connection, stamp: EntryStamp, fields: Mapping[str, Any], keys: Iterable[str] = ()
) -> Head:
    """Append an entry to the record, within the current transaction.

    :param keys: texts such as ``commit:123`` by which the entry can be found.
    :raises ValueError: a text cannot be encoded in UTF-8.
    """
    # Read anew each time: a transaction that was rolled back takes its entries with it.
    number, previous = connection.execute(_LAST).fetchone() or (0, GENESIS)
    number += 1
    content = encode_entry(number, stamp, fields)
    digest = link(previous, content)
    connection.execute("INSERT INTO record (number, content, hash) VALUES (?, ?, ?)", (number, content, digest))
    for key in keys:
        connection.execute("INSERT OR REPLACE INTO record_key (key, number) VALUES (?, ?)", (key, number))
    return Head(gateway_in_heads(stamp.gateway), number, digest)


def read_head(connection: sqlite3.Connection, gateway: str) -> Head:
    """Return the head; of an empty record the number 0 with 32 zero bytes."""
    number, digest = connection.execute(_LAST).fetchone() or (0, GENESIS)
    return Head(gateway_in_heads(gateway), number, digest)


def find_entry(connection: sqlite3.Connection, key: str) -> Row | None:
    """Return the last entry with a key; ``None`` without one."""
    row: Row | None = connection.execute(
        "SELECT number, content, hash FROM record JOIN record_key USING (number) WHERE key = ?", (key,)
    ).fetchone()
    return row


def has_key(connection: sqlite3.Connection, key: str) -> bool:
    """Return whether the record has an entry with a key."""
    return connection.execute("SELECT 1 FROM record_key WHERE key = ?", (key,)).fetchone() is not None


def read_rows(connection: sqlite3.Connection) -> Iterator[Row]:
    """Return all rows in the order of their numbers, without holding them in memory."""
    rows: Iterator[Row] = connection.execute("SELECT number, content, hash FROM record ORDER BY number")
    return rows


def take_foreign_head(connection: sqlite3.Connection, head: Head, time: str) -> None:
    """Store the head of another gateway.

    :raises HeadConflict: it is behind the stored one, or has another hash for the same number.
    :raises TooManyGateways: too many gateways have sent heads.
    """
    query = "SELECT number, hash FROM foreign_head WHERE gateway = ?"
    row = connection.execute(query, (head.gateway,)).fetchone()
    if row is None:
        (count,) = connection.execute("SELECT count(*) FROM foreign_head").fetchone()
        if count >= MAX_FOREIGN:
            raise TooManyGateways(f"heads of {count} gateways are stored")
    elif head.number < row[0] or (head.number == row[0] and head.hash.hex() != row[1]):
        # Hashes are cut short, so that an audit against the log does not take this head for a published one.
        refused = f"head {head.number} ({head.hash.hex()[:16]}...)"
        raise HeadConflict(f"{refused} of {head.gateway} contradicts the stored head {row[0]} ({row[1][:16]}...)")
    connection.execute(
        "INSERT OR REPLACE INTO foreign_head (gateway, number, hash, time) VALUES (?, ?, ?, ?)",
        (head.gateway, head.number, head.hash.hex(), time),
    )


def check_record(connection: sqlite3.Connection) -> None:
    """Compile the statements of the record, without running them."""
    connection.execute("SELECT number, content, hash FROM record LIMIT 0")
    connection.execute("SELECT key, number FROM record_key LIMIT 0")
    connection.execute("SELECT gateway, number, hash, time FROM foreign_head LIMIT 0")
