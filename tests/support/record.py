"""Records of commits, and tampering with them by somebody with all rights on the tables."""

import sqlite3
from pathlib import Path
from random import Random

from gateway.record.chain import GENESIS, ChainBroken, EntryStamp, Head, HeadCheck, link, verify
from gateway.record.table import append_entry, read_head, read_rows
from gateway.store.sqlitefile.steps import apply_steps, schema_steps

GATEWAY = "dock-1"


def new_record(path: Path, count: int) -> Head:
    """Write a record of commits; return its head."""
    connection = sqlite3.connect(path, isolation_level=None)
    apply_steps(connection, schema_steps("gateway.record.schema"), 0)
    connection.execute("BEGIN")
    stamp = EntryStamp(GATEWAY, "commit", "2025-12-18T10:11:12.000000+09:00")
    for number in range(1, count + 1):
        append_entry(connection, stamp, fields_of(number), [f"commit:{number}"])
    connection.execute("COMMIT")
    head = read_head(connection, GATEWAY)
    connection.close()
    return head


def fields_of(number: int) -> dict[str, object]:
    return {
        "commit_id": number,
        "ticket": None,
        "request": None,
        "scale_id": "dock-1",
        "cylinder_no": f"CY{number:09}",
        "event_type": "SHIP",
        "gross_kg": f"{number % 150}.26",
        "raw_line": f"ST , +{number % 150:06}.26 _kg",
        "received_at": "2025-12-18T01:11:12.000000+00:00",
        "committed_at": "2025-12-18T01:11:12.000000+00:00",
        "arrival_shipping_no": None,
        "move_report_no": None,
        "detail": {"by": "operator"},
    }


def recompute(connection: sqlite3.Connection, first: int) -> None:
    """Renumber the entries from ``first`` on and compute their hashes anew, as somebody who knows the format would."""
    row = connection.execute("SELECT hash FROM record WHERE number = ?", (first - 1,)).fetchone()
    previous = GENESIS if row is None else row[0]
    rows = connection.execute("SELECT number, content FROM record WHERE number >= ? ORDER BY number", (first,))
    made = []
    for number, (old, content) in enumerate(rows.fetchall(), first):
        if b'"number":%d,' % old in content:
            content = content.replace(b'"number":%d,' % old, b'"number":%d,' % number)
        previous = link(previous, content)
        made.append((number, content, previous))
    connection.execute("DELETE FROM record WHERE number >= ?", (first,))
    connection.executemany("INSERT INTO record VALUES (?, ?, ?)", made)


def tamper(connection: sqlite3.Connection, random: Random, last: int) -> tuple[str, int]:
    """Tamper with a record at random; return what was done, and the first entry concerned."""
    number = random.randint(1, last)
    kind = random.choice(
        ["change", "delete", "insert", "reorder", "cut off", "recompute change", "recompute delete", "recompute insert"]
    )
    if kind.endswith("change"):
        (content,) = connection.execute("SELECT content FROM record WHERE number = ?", (number,)).fetchone()
        changed = content.replace(b'"gross_kg":"', b'"gross_kg":"9')
        connection.execute("UPDATE record SET content = ? WHERE number = ?", (changed, number))
    elif kind.endswith("delete"):
        # The last entry would be cut off.
        number = min(number, last - 1)
        connection.execute("DELETE FROM record WHERE number = ?", (number,))
    elif kind.endswith("insert"):
        number = max(number, 2)
        connection.execute("UPDATE record SET number = -number WHERE number >= ?", (number,))
        connection.execute("UPDATE record SET number = 1 - number WHERE number < 0")
        connection.execute(
            "INSERT INTO record SELECT number + 1, content, hash FROM record WHERE number = ?", (number - 1,)
        )
    elif kind == "reorder":
        number, other = sorted(random.sample(range(1, last + 1), 2))
        rows = connection.execute("SELECT content, hash, number FROM record WHERE number IN (?, ?)", (number, other))
        one, two = rows.fetchall()
        query = "UPDATE record SET content = ?, hash = ? WHERE number = ?"
        connection.executemany(query, [(*one[:2], two[2]), (*two[:2], one[2])])
    else:
        connection.execute("DELETE FROM record WHERE number >= ?", (number,))
    if kind.startswith("recompute"):
        recompute(connection, number)
    return kind, number


def verify_against(connection: sqlite3.Connection, head: Head) -> ChainBroken | None:
    """Verify a record against a published head; return what was found."""
    check = HeadCheck({head.gateway}, [head])
    last = 0
    try:
        for last, _, digest in verify(read_rows(connection)):
            check.feed(last, digest)
        check.finish(last)
    except ChainBroken as broken:
        return broken
    return None
