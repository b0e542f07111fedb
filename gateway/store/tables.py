"""Tables of a machine's own database, ``db/<machine>.db``, as the old monitoring server made them."""

import re
import sqlite3
from collections.abc import Iterator
from typing import Final

from gateway.model import PERIODS

#: What a table's name may add to its sensor's: see :meth:`MachineTables.means`. No sensor's name holds a tilde.
_ADDED: Final = re.compile(r"^~|~[0-9]+$")


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


class MachineTables:
    """The tables of one machine's database, as its one writer knows them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        #: By their names in lower case, as SQLite compares them.
        self._names = {table.lower(): table for table in _tables(connection, "")}

    def create_anomaly(self) -> None:
        """Make the table of anomalies where it is missing."""
        self._create("anomaly", "time TIMESTAMP, threshold REAL, score REAL")

    def create_means(self, sensor: str) -> None:
        """Make a sensor's tables where they are missing."""
        for period in PERIODS:
            self._create(self.means(sensor, period), "time TIMESTAMP, data REAL")

    def means(self, sensor: str, period: str) -> str:
        """The table of a sensor's means, made or not.

        It is ``<sensor>_<period>_avg``. SQLite takes ``Vib_hour_avg`` and ``vib_hour_avg`` for one table, and allows
        no name that begins with ``sqlite_``: the second sensor's becomes ``vib~2_hour_avg``, the other's
        ``~sqlite_...``.
        """
        stem = f"~{sensor}" if sensor.lower().startswith("sqlite_") else sensor
        table = f"{stem}_{period}_avg"
        number = 1
        while self._names.get(table.lower(), table) != table:
            number += 1
            table = f"{stem}~{number}_{period}_avg"
        return table

    def _create(self, table: str, columns: str) -> None:
        if table.lower() not in self._names:
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {quoted(table)} (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns})"
            )
            self._names[table.lower()] = table


def sensors(connection: sqlite3.Connection, period: str) -> list[tuple[str, str]]:
    """Every sensor with means of a period and its table, sorted by sensor."""
    suffix = f"_{period}_avg"
    return sorted((_ADDED.sub("", table.removesuffix(suffix)), table) for table in _tables(connection, suffix))


def _tables(connection: sqlite3.Connection, suffix: str) -> Iterator[str]:
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table.endswith(suffix):
            yield table
