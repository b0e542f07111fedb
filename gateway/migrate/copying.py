"""Migration of the source into the tables of the target, row by row."""

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import Any

import psycopg2
from tqdm import tqdm

from gateway.migrate.source import (
    INVALID_TIME,
    InvalidRow,
    SourceRow,
    UniqueStarts,
    batches,
    kilograms_of,
    number_of,
    open_source,
    time_of,
    utc_of,
)
from gateway.migrate.target import (
    ANOMALY,
    ANSWER,
    COMMIT,
    MACHINE,
    MEAN,
    MIGRATED,
    SENSOR,
    TABLES,
    TYPE,
    TargetDatabase,
    TargetTable,
)
from gateway.store.postgres.entries import OLD, OURS
from gateway.store.rows import BUCKET_COLUMNS
from gateway.store.sqlite.queries import columns_of, quoted, sensors
from gateway.store.sqlitefile.files import GATEWAY_FILE
from gateway.timeseries.calendar import PERIODS


@dataclass(slots=True)
class CopyCount:
    """Number of rows of one table by outcome.

    :ivar existing: rows that the target already had.
    :ivar different: rows among the existing ones whose values differ.
    """

    copied: int = 0
    existing: int = 0
    different: int = 0
    left_out: int = 0


class Migration:
    """Migration of one directory.

    :param target: database to copy to; ``None`` to count rows only.
    :param zone: time zone of rows of the old server.
    :param progress: progress bar, in rows.
    :ivar counts: number of rows by table of the target.
    :ivar moved: number of commits that got a new id.
    """

    def __init__(self, directory: str, target: TargetDatabase | None, zone: tzinfo, progress: "tqdm[Any]") -> None:
        self._directory = directory
        self._target = target
        self._zone = zone
        self._progress = progress
        self._unreadable: list[str] = []
        self._left_out: Counter[tuple[str, str]] = Counter()
        #: Sensors with a known type.
        self._typed: set[tuple[str, str]] = set()
        self.counts = {name: CopyCount() for name in TABLES}
        self.moved = 0

    @property
    def problems(self) -> list[str]:
        """Return the tables and rows that could not be read or written, one line each."""
        left_out = [
            f"{where}: left out {count} row{'' if count == 1 else 's'}: {why}"
            for (where, why), count in self._left_out.items()
        ]
        return self._unreadable + left_out

    def run(self, machines: Sequence[str]) -> None:
        """Copy the file of the gateway and the files of machines.

        :raises psycopg2.Error: the server is unavailable, or refuses.
        """
        if os.path.exists(os.path.join(self._directory, GATEWAY_FILE)):
            with self._reading(GATEWAY_FILE), self._opened(GATEWAY_FILE) as connection:
                self._copy_gateway(connection)
        for machine in machines:
            with self._reading(f"{machine}.db"), self._opened(f"{machine}.db") as connection:
                self._copy_machine(connection, machine)

    @contextlib.contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """Note a table or file that cannot be read, so that the others are copied all the same."""
        try:
            yield
        except sqlite3.Error as error:
            self._unreadable.append(f"{where}: cannot read: {error}")

    def _opened(self, name: str) -> "contextlib.closing[sqlite3.Connection]":
        return contextlib.closing(open_source(os.path.join(self._directory, name)))

    # -- file of the gateway

    def _copy_gateway(self, connection: sqlite3.Connection) -> None:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "scale_weight_log" in tables:
            with self._reading(f"{GATEWAY_FILE} scale_weight_log"):
                self._copy_commits(connection)
        if "idempotency" in tables:
            with self._reading(f"{GATEWAY_FILE} idempotency"):
                rows = connection.execute("SELECT key, fingerprint, answer, made_at FROM idempotency").fetchall()
                self._copy(ANSWER, f"{GATEWAY_FILE} idempotency", rows, _answer)
        if "sensor" in tables:
            with self._reading(f"{GATEWAY_FILE} sensor"):
                rows = connection.execute("SELECT machine, sensor, type FROM sensor").fetchall()
                self._typed = {row[:2] for row in rows}
                self._copy(TYPE, f"{GATEWAY_FILE} sensor", rows, _unchanged)

    def _copy_commits(self, connection: sqlite3.Connection) -> None:
        ((last,),) = connection.execute("SELECT max(id) FROM scale_weight_log")
        if last is None:
            return
        target = self._target
        if target is not None:
            target.transaction(lambda: target.reserve_ids(last))
        columns = ", ".join(COMMIT)
        # While the wall clock was held back, two commits could be equal to the microsecond.
        numbers = dict(
            connection.execute(
                "SELECT id, n FROM (SELECT id, row_number() OVER"  # noqa: S608 - fixed text
                f" (PARTITION BY {columns} ORDER BY id) AS n FROM scale_weight_log) WHERE n > 1"
            )
        )
        for rows in batches(connection, "scale_weight_log", columns, last):
            valid = self._converted("scale_weight_log", f"{GATEWAY_FILE} scale_weight_log", rows, _commit)
            commits = [(*row, numbers.get(row[0], 1)) for row in valid]
            self._write("scale_weight_log", f"{GATEWAY_FILE} scale_weight_log", commits, TargetDatabase.add_commits)
            self._progress.update(len(rows))

    # -- files of machines

    def _copy_machine(self, connection: sqlite3.Connection, machine: str) -> None:
        file = f"{machine}.db"
        tables = {period: sensors(connection, period) for period in PERIODS}
        names = {(machine, sensor) for found in tables.values() for sensor, _ in found}
        self._copy(MACHINE, file, [(machine,)], _unchanged, is_read=False)
        self._copy(SENSOR, file, sorted(names - self._typed), _unchanged, is_read=False)
        for period, found in tables.items():
            starts = sensor = None
            for name, table in found:
                if starts is None or name != sensor:
                    sensor, starts = name, UniqueStarts(self._zone)
                with self._reading(f"{file} {table}"):
                    self._copy_means(connection, (machine, sensor, period), table, starts)
        if columns_of(connection, "anomaly"):
            with self._reading(f"{file} anomaly"):
                for rows in batches(connection, "anomaly", "time, threshold, score"):
                    self._copy(ANOMALY, f"{file} anomaly", rows, partial(_anomaly, machine))

    def _copy_means(
        self, connection: sqlite3.Connection, key: tuple[str, str, str], table: str, starts: UniqueStarts
    ) -> None:
        """Copy a table of means.

        :param key: machine, sensor and period.
        """
        existing = columns_of(connection, table)
        further = [quoted(name) if name in existing else "NULL" for name in ("start", *BUCKET_COLUMNS, "raw_end")]
        raw_ends = _corrected_raw_ends(connection, table) if {"start", "raw_end"} <= existing else {}

        def convert(row: SourceRow) -> SourceRow:
            number, time, data, start, *bucket, raw_end = row
            wall_time = time_of(time)
            if data is not None:
                number_of(data)
            if start is None:
                return (*key, starts.next_start(wall_time), OLD, wall_time.isoformat(" "), data, *bucket, None)
            return (*key, start, OURS, wall_time.isoformat(" "), data, *bucket, raw_ends.get(number, raw_end))

        for rows in batches(connection, table, f"time, data, {', '.join(further)}"):
            self._copy(MEAN, f"{key[0]}.db {table}", rows, convert)

    # -- rows

    def _copy(
        self,
        table: TargetTable,
        where: str,
        rows: list[SourceRow],
        convert: Callable[[SourceRow], SourceRow],
        *,
        is_read: bool = True,
    ) -> None:
        """Copy rows.

        :param convert: converts a row of the source into one of the target.
        :param is_read: whether the rows count as read from the source.
        """
        valid = self._converted(table.name, where, rows, convert)
        self._write(table.name, where, valid, lambda target, batch: (*target.add(table, batch), 0))
        if is_read:
            self._progress.update(len(rows))

    def _converted(
        self, name: str, where: str, rows: list[SourceRow], convert: Callable[[SourceRow], SourceRow]
    ) -> list[SourceRow]:
        """Return rows for the target, and leave out those that cannot be converted."""
        converted = []
        for row in rows:
            try:
                converted.append(convert(row))
            except InvalidRow as error:
                self._leave_out(name, where, str(error))
        return converted

    def _write(
        self,
        name: str,
        where: str,
        rows: list[SourceRow],
        add: Callable[[TargetDatabase, list[SourceRow]], tuple[int, int, int]],
    ) -> None:
        """Write rows in a transaction, and leave out those that the server can never accept."""
        count, target = self.counts[name], self._target
        if target is None or not rows:
            count.copied += len(rows)
            return
        try:
            copied, different, moved = target.transaction(lambda: add(target, rows))
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as error:
            if len(rows) == 1:
                self._leave_out(name, where, f"PostgreSQL does not accept a value ({type(error).__name__})")
                return
            half = len(rows) // 2
            self._write(name, where, rows[:half], add)
            self._write(name, where, rows[half:], add)
        else:
            count.copied += copied
            count.existing += len(rows) - copied
            count.different += different
            self.moved += moved

    def _leave_out(self, name: str, where: str, why: str) -> None:
        self.counts[name].left_out += 1
        self._left_out[where, why] += 1


def _unchanged(row: SourceRow) -> SourceRow:
    return row


def _commit(row: SourceRow) -> SourceRow:
    number, *texts = row
    values = dict(zip(COMMIT, texts, strict=True))
    values["gross_kg"] = kilograms_of(values["gross_kg"])
    values["received_at"] = utc_of(values["received_at"])
    values["committed_at"] = utc_of(values["committed_at"])
    return (number, *values.values())


def _answer(row: SourceRow) -> SourceRow:
    key, fingerprint, answer, made_at = row
    try:
        made = datetime.fromtimestamp(made_at, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise InvalidRow(INVALID_TIME) from error
    return key, fingerprint, MIGRATED, answer, made.isoformat(" ")


def _anomaly(machine: str, row: SourceRow) -> SourceRow:
    number, time, threshold, score = row
    return machine, time_of(time).isoformat(" "), MIGRATED, number, number_of(threshold), number_of(score)


def _corrected_raw_ends(connection: sqlite3.Connection, table: str) -> dict[int, int | None]:
    """Return corrected values of ``raw_end`` by row id.

    In the source, the row with the highest id says how many bytes of the day's raw file are counted; in the target, the
    row with the latest start. They differ if the clock was set back, or if the old server ran after the gateway.
    """
    return dict(
        connection.execute(
            # With max(), SQLite takes bare columns from the same row ("Bare columns in an aggregate query").
            "SELECT l.id, h.raw_end FROM"  # noqa: S608 - quoted
            f" (SELECT substr(time, 1, 10) AS day, max(id) AS id, raw_end FROM {quoted(table)} GROUP BY 1) AS h JOIN"
            f" (SELECT substr(time, 1, 10) AS day, max(start), id FROM {quoted(table)} WHERE start IS NOT NULL"
            " GROUP BY 1) AS l ON l.day = h.day AND l.id <> h.id"
        )
    )
