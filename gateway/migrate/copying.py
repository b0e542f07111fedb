"""Copying, row by row: what each table of the source becomes."""

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
    NO_TIME,
    SourceRow,
    Starts,
    Unfit,
    batches,
    kilograms_of,
    number_of,
    opened,
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
    """What became of the rows of a table.

    :ivar different: of those that were there, how many say something else.
    """

    copied: int = 0
    there: int = 0
    different: int = 0
    left_out: int = 0


class Migration:
    """Copies a directory.

    :param target: ``None``: rows are counted only.
    :param zone: of the wall clock in rows of the old server.
    :param progress: counts rows.
    :ivar counts: by table of the target.
    :ivar moved: commits that got a new id.
    """

    def __init__(self, directory: str, target: TargetDatabase | None, zone: tzinfo, progress: "tqdm[Any]") -> None:
        self._directory = directory
        self._target = target
        self._zone = zone
        self._progress = progress
        self._unread: list[str] = []
        self._left_out: Counter[tuple[str, str]] = Counter()
        #: Sensors whose types are known.
        self._typed: set[tuple[str, str]] = set()
        self.counts = {name: CopyCount() for name in TABLES}
        self.moved = 0

    @property
    def problems(self) -> list[str]:
        """What could not be read or written, a line each."""
        left_out = [f"{where}: left out {count}: {why}" for (where, why), count in self._left_out.items()]
        return self._unread + left_out

    def run(self, machines: Sequence[str]) -> None:
        """Copy everything.

        :raises psycopg2.Error: the server is gone, or does not allow it.
        """
        if os.path.exists(os.path.join(self._directory, GATEWAY_FILE)):
            with self._reading(GATEWAY_FILE), self._opened(GATEWAY_FILE) as connection:
                self._copy_gateway(connection)
        for machine in machines:
            with self._reading(f"{machine}.db"), self._opened(f"{machine}.db") as connection:
                self._copy_machine(connection, machine)

    @contextlib.contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """What cannot be read there is told, and keeps nothing else from being copied."""
        try:
            yield
        except sqlite3.Error as error:
            self._unread.append(f"{where} cannot be read: {error}")

    def _opened(self, name: str) -> "contextlib.closing[sqlite3.Connection]":
        return contextlib.closing(opened(os.path.join(self._directory, name)))

    # -- the gateway's file

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
                self._copy(TYPE, f"{GATEWAY_FILE} sensor", rows, _same)

    def _copy_commits(self, connection: sqlite3.Connection) -> None:
        ((last,),) = connection.execute("SELECT max(id) FROM scale_weight_log")
        if last is None:
            return
        target = self._target
        if target is not None:
            target.transaction(lambda: target.beyond(last))
        columns = ", ".join(COMMIT)
        # While the wall clock was held, two could come that say the same to the microsecond.
        numbers = dict(
            connection.execute(
                "SELECT id, n FROM (SELECT id, row_number() OVER"  # noqa: S608 - fixed text
                f" (PARTITION BY {columns} ORDER BY id) AS n FROM scale_weight_log) WHERE n > 1"
            )
        )
        for rows in batches(connection, "scale_weight_log", columns, last):
            fit = self._fit("scale_weight_log", f"{GATEWAY_FILE} scale_weight_log", rows, _commit)
            its = [(*row, numbers.get(row[0], 1)) for row in fit]
            self._put("scale_weight_log", f"{GATEWAY_FILE} scale_weight_log", its, TargetDatabase.add_commits)
            self._progress.update(len(rows))

    # -- machines' files

    def _copy_machine(self, connection: sqlite3.Connection, machine: str) -> None:
        file = f"{machine}.db"
        tables = {period: sensors(connection, period) for period in PERIODS}
        names = {(machine, sensor) for its in tables.values() for sensor, _ in its}
        self._copy(MACHINE, file, [(machine,)], _same, is_read=False)
        self._copy(SENSOR, file, sorted(names - self._typed), _same, is_read=False)
        for period, its in tables.items():
            starts = sensor = None
            for name, table in its:
                if starts is None or name != sensor:
                    sensor, starts = name, Starts(self._zone)
                with self._reading(f"{file} {table}"):
                    self._copy_means(connection, (machine, sensor, period), table, starts)
        if columns_of(connection, "anomaly"):
            with self._reading(f"{file} anomaly"):
                for rows in batches(connection, "anomaly", "time, threshold, score"):
                    self._copy(ANOMALY, f"{file} anomaly", rows, partial(_anomaly, machine))

    def _copy_means(
        self, connection: sqlite3.Connection, whose: tuple[str, str, str], table: str, starts: Starts
    ) -> None:
        there = columns_of(connection, table)
        further = [quoted(name) if name in there else "NULL" for name in ("start", *BUCKET_COLUMNS, "raw_end")]
        ends = _ends(connection, table) if {"start", "raw_end"} <= there else {}

        def mean(row: SourceRow) -> SourceRow:
            number, time, data, start, *bucket, raw_end = row
            begun = time_of(time)
            if data is not None:
                number_of(data)
            if start is None:
                return (*whose, starts.of(begun), OLD, begun.isoformat(" "), data, *bucket, None)
            return (*whose, start, OURS, begun.isoformat(" "), data, *bucket, ends.get(number, raw_end))

        for rows in batches(connection, table, f"time, data, {', '.join(further)}"):
            self._copy(MEAN, f"{whose[0]}.db {table}", rows, mean)

    # -- rows

    def _copy(
        self,
        table: TargetTable,
        where: str,
        rows: list[SourceRow],
        made: Callable[[SourceRow], SourceRow],
        *,
        is_read: bool = True,
    ) -> None:
        """Copy rows.

        :param made: makes a row of the target of one.
        :param is_read: whether they are rows of the source too.
        """
        its = self._fit(table.name, where, rows, made)
        self._put(table.name, where, its, lambda target, its: (*target.add(table, its), 0))
        if is_read:
            self._progress.update(len(rows))

    def _fit(
        self, name: str, where: str, rows: list[SourceRow], made: Callable[[SourceRow], SourceRow]
    ) -> list[SourceRow]:
        """Rows of the target; those that cannot be any are left out."""
        fit = []
        for row in rows:
            try:
                fit.append(made(row))
            except Unfit as error:
                self._leave_out(name, where, str(error))
        return fit

    def _put(
        self,
        name: str,
        where: str,
        rows: list[SourceRow],
        add: Callable[[TargetDatabase, list[SourceRow]], tuple[int, int, int]],
    ) -> None:
        """Write rows in a transaction; those that the server can never take are left out."""
        count, target = self.counts[name], self._target
        if target is None or not rows:
            count.copied += len(rows)
            return
        try:
            copied, different, moved = target.transaction(lambda: add(target, rows))
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as error:
            if len(rows) == 1:
                self._leave_out(name, where, f"PostgreSQL does not take what is in it ({type(error).__name__})")
                return
            half = len(rows) // 2
            self._put(name, where, rows[:half], add)
            self._put(name, where, rows[half:], add)
        else:
            count.copied += copied
            count.there += len(rows) - copied
            count.different += different
            self.moved += moved

    def _leave_out(self, name: str, where: str, why: str) -> None:
        self.counts[name].left_out += 1
        self._left_out[where, why] += 1


def _same(row: SourceRow) -> SourceRow:
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
        raise Unfit(NO_TIME) from error
    return key, fingerprint, MIGRATED, answer, made.isoformat(" ")


def _anomaly(machine: str, row: SourceRow) -> SourceRow:
    number, time, threshold, score = row
    return machine, time_of(time).isoformat(" "), MIGRATED, number, number_of(threshold), number_of(score)


def _ends(connection: sqlite3.Connection, table: str) -> dict[int, int | None]:
    """Of days whose last row by its id is not the last by its start: that one's ``raw_end``, by the other's id.

    Here the row with the highest id says how much of a day's raw file is counted, there the one with the last start.
    They are two after the clock was set back, and where the old server has gone on behind the gateway.
    """
    return dict(
        connection.execute(
            # Of the row that has the greatest are the other columns too (SQLite, "Bare columns in an aggregate query").
            "SELECT l.id, h.raw_end FROM"  # noqa: S608 - quoted
            f" (SELECT substr(time, 1, 10) AS day, max(id) AS id, raw_end FROM {quoted(table)} GROUP BY 1) AS h JOIN"
            f" (SELECT substr(time, 1, 10) AS day, max(start), id FROM {quoted(table)} WHERE start IS NOT NULL"
            " GROUP BY 1) AS l ON l.day = h.day AND l.id <> h.id"
        )
    )
