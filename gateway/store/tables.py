"""Tables of a machine's own database, ``db/<machine>.db``, as the old monitoring server made them."""

import re
import sqlite3
from collections.abc import Iterator
from typing import Final

from gateway.model import PERIODS

#: What a table's name may add to its sensor's: see :func:`_stem`. No sensor's name holds a tilde.
_ADDED: Final = re.compile(r"^~|~[0-9]+$")

_ANOMALY: Final = (
    "CREATE TABLE IF NOT EXISTS anomaly"
    " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, threshold REAL, score REAL)"
)


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def create_anomaly(connection: sqlite3.Connection) -> None:
    """Make the table of anomalies where it is missing."""
    connection.execute(_ANOMALY)


def create_means(connection: sqlite3.Connection, sensor: str) -> None:
    """Make a sensor's tables where they are missing; an index on time is all that the old server did not have."""
    create_anomaly(connection)
    for period in PERIODS:
        table = table_of(connection, sensor, period)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {quoted(table)}"
            " (id INTEGER PRIMARY KEY AUTOINCREMENT, time TIMESTAMP, data REAL)"
        )
        connection.execute(f"CREATE INDEX IF NOT EXISTS {quoted(table + '_time')} ON {quoted(table)} (time)")


def table_of(connection: sqlite3.Connection, sensor: str, period: str) -> str:
    """The table of a sensor's means, made or not.

    It is ``<sensor>_<period>_avg``. SQLite takes ``Vib_hour_avg`` and ``vib_hour_avg`` for one table, and allows no
    name that begins with ``sqlite_``: the second sensor's becomes ``vib~2_hour_avg``, the other's ``~sqlite_...``.
    """
    suffix = f"_{period}_avg"
    tables = {table.lower(): table for table in _tables(connection, suffix)}
    stem = f"~{sensor}" if sensor.lower().startswith("sqlite_") else sensor
    table = stem + suffix
    number = 1
    while tables.get(table.lower(), table) != table:
        number += 1
        table = f"{stem}~{number}{suffix}"
    return table


def sensors(connection: sqlite3.Connection, period: str) -> list[tuple[str, str]]:
    """Every sensor with means of a period and its table, sorted by sensor."""
    suffix = f"_{period}_avg"
    return sorted((_ADDED.sub("", table.removesuffix(suffix)), table) for table in _tables(connection, suffix))


def _tables(connection: sqlite3.Connection, suffix: str) -> Iterator[str]:
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table.endswith(suffix):
            yield table
