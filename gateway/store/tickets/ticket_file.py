"""Tickets in a SQLite file of their own.

``cynow-gateway-tickets.sqlite3`` under ``database.path`` holds the commits that PostgreSQL could not take. A waiting
ticket stays until the server has its row; a written one stays for the repetitions of its request and for queries, and
a rejected one stays until somebody removes it.
"""

import os
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import orjson
from twisted.logger import Logger

from gateway.model.records import Commit, CommitEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of
from gateway.store.interface import (
    DirectoryUnusable,
    IdempotencyConflict,
    IdempotencyKey,
    OutcomeUnknown,
    StoreUnavailable,
    TicketState,
)
from gateway.store.sqlitefile.errors import explained
from gateway.store.sqlitefile.files import TICKET_FILE
from gateway.store.sqlitefile.group_writer import GroupWriter, Watch
from gateway.store.sqlitefile.steps import newer_version, prepare_checked, schema_steps
from gateway.store.sqlitefile.transactions import LOCK_WAIT, Job
from gateway.store.ticket_interface import NewTicket, QueuedTicket, TicketEnd, TicketQueue
from gateway.store.tickets.codec import decode_entry, encode_entry

log = Logger()

T = TypeVar("T")

_SCHEMA: Final = "gateway.store.tickets.schema"

#: Seconds for which written tickets are kept; the same as for keys in PostgreSQL.
_KEEP: Final = 48 * 3600.0

#: Maximum seconds for one ticket on the disk.
_PATIENCE: Final = 5.0

_MAX_LOG_BYTES: Final = 4 * 1024 * 1024


class TicketFile(TicketQueue):
    """Queue of tickets in one SQLite file.

    :param directory: ``database.path``; it exists, and no other gateway uses it.
    :param gateway: ``gateway.name``, with which the tickets' names begin.
    :param max_tickets: maximum tickets that wait or are rejected; further ones are refused.
    """

    def __init__(
        self, reactor: Any, clock: WallClock, counters: Counters, directory: str, gateway: str, max_tickets: int
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._path = os.path.join(directory, TICKET_FILE)
        self._prefix = f"{gateway}-"
        self._max_tickets = max_tickets
        self._pool = pool_of(1, "tickets")
        self._warnings = LimitedLog(log, clock, counters)
        self._writer: GroupWriter | None = None
        self._stored = 0
        self._making = 0
        self.rejected = 0
        #: Whether there is any ticket, so that most commits need not look for their keys in the file.
        self._is_used = False

    @property
    def waiting(self) -> int:
        return self._stored + self._making

    @property
    def problem(self) -> str | None:
        if self._writer is not None and self._writer.problem is not None:
            return f"cannot write tickets: {self._writer.problem}"
        if self.waiting + self.rejected >= self._max_tickets:
            return (
                f"{self.waiting} tickets wait and {self.rejected} are rejected, which is the maximum: commits are"
                " refused; see database.max_tickets"
            )
        return None

    def check_version(self) -> None:
        newer = newer_version(self._path, max(schema_steps(_SCHEMA)))
        if newer is not None:
            raise DirectoryUnusable(newer)

    def open(self) -> None:
        self.check_version()
        try:
            connection = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection)
                counts = dict(connection.execute("SELECT state, count(*) FROM ticket GROUP BY state").fetchall())
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise DirectoryUnusable(explained(error, self._path)) from error
        self.rejected = counts.get("rejected", 0)
        self._is_used = bool(counts)
        self._count(counts.get("waiting", 0))
        self._pool.start()
        watch = Watch("tickets", _check, _touch, self._remove_old)
        self._writer = GroupWriter(self._reactor, self._pool, connection, self._path, watch, self._warnings)

    def _remove_old(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM ticket WHERE state = 'written' AND ended_at < ?", (self._clock.wall() - _KEEP,))

    async def make(self, entry: CommitEntry, request: str, key: IdempotencyKey | None) -> NewTicket:
        if self.waiting + self.rejected >= self._max_tickets:
            self._counters.tickets.labels("full").inc()
            raise StoreUnavailable(self.problem or "there are too many tickets")
        text = encode_entry(entry)
        made_at = self._clock.wall()

        def job(connection: sqlite3.Connection) -> NewTicket:
            earlier = None if key is None else _find_answer(connection, key)
            if earlier is not None:
                return NewTicket(None, earlier)
            values = (request, None if key is None else key.key, "" if key is None else key.fingerprint, text, made_at)
            n = connection.execute(
                "INSERT INTO ticket (request, key, fingerprint, entry, made_at, answer) VALUES (?, ?, ?, ?, ?, '')",
                values,
            ).lastrowid
            ticket = f"{self._prefix}{n}"
            answer = Commit(None, entry, ticket).answer()
            encoded = orjson.dumps(answer, default=str).decode()
            connection.execute("UPDATE ticket SET answer = ? WHERE n = ?", (encoded, n))
            return NewTicket(ticket, orjson.loads(encoded))

        # Counted before it is durable, so that no later commit overtakes it.
        self._making += 1
        try:
            made = await self._run(job, _PATIENCE, once=True)
        except OutcomeUnknown:
            # It may be there: the next look into the file counts again.
            self._stored += 1
            raise
        finally:
            self._making -= 1
        if made.ticket is not None:
            self._is_used = True
            self._count(self._stored + 1)
            self._counters.tickets.labels("made").inc()
        return made

    async def answer_to(self, key: IdempotencyKey) -> dict[str, Any] | None:
        if not self._is_used and not self.waiting:
            return None
        return await self._run(lambda connection: _find_answer(connection, key), _PATIENCE)

    async def first(self, limit: int) -> Sequence[QueuedTicket]:
        def job(connection: sqlite3.Connection) -> tuple[list[Any], int]:
            rows = connection.execute(
                "SELECT n, request, key, fingerprint, entry, answer, made_at FROM ticket WHERE state = 'waiting'"
                " ORDER BY n LIMIT ?",
                (limit,),
            ).fetchall()
            return rows, _count_waiting(connection)

        rows, stored = await self._run(job)
        self._count(stored)
        return [
            QueuedTicket(
                n,
                f"{self._prefix}{n}",
                request,
                None if key is None else IdempotencyKey(key, fingerprint),
                decode_entry(entry),
                answer,
                made_at,
            )
            for n, request, key, fingerprint, entry, answer, made_at in rows
        ]

    async def end(self, ends: Sequence[TicketEnd]) -> None:
        now = self._clock.wall()

        def job(connection: sqlite3.Connection) -> int:
            connection.executemany(
                "UPDATE ticket SET state = ?, commit_id = ?, reason = ?, ended_at = ?"
                " WHERE n = ? AND state = 'waiting'",
                [(each.state, each.commit_id, each.reason, now, each.n) for each in ends],
            )
            return _count_waiting(connection)

        stored = await self._run(job)
        self.rejected += sum(each.state == "rejected" for each in ends)
        self._count(stored)

    async def find(self, ticket: str) -> TicketState | None:
        number = ticket.removeprefix(self._prefix)
        # SQLite's integers have 64 bits.
        if number == ticket or not number.isascii() or not number.isdigit() or len(number) > 18:
            return None
        row = await self._run(
            lambda connection: connection.execute(
                "SELECT commit_id, state, entry FROM ticket WHERE n = ?", (int(number),)
            ).fetchone(),
            _PATIENCE,
        )
        return None if row is None else TicketState(ticket, row[0], row[1], decode_entry(row[2]))

    def _count(self, stored: int) -> None:
        self._stored = stored
        self._counters.tickets_waiting.set(self.waiting)

    async def _run(self, job: Job[T], patience: float | None = None, *, once: bool = False) -> T:
        if self._writer is None:
            raise StoreUnavailable("the file of tickets is not open")
        try:
            return await self._writer.run(job, patience, once=once)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"cannot write tickets: {error}") from error

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()
            self._pool.stop()


def _find_answer(connection: sqlite3.Connection, key: IdempotencyKey) -> dict[str, Any] | None:
    row = connection.execute("SELECT fingerprint, answer FROM ticket WHERE key = ?", (key.key,)).fetchone()
    if row is None:
        return None
    if row[0] != key.fingerprint:
        raise IdempotencyConflict
    answer: dict[str, Any] = orjson.loads(row[1])
    return answer


def _count_waiting(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM ticket WHERE state = 'waiting'").fetchone()[0])


def _check(connection: sqlite3.Connection) -> None:
    connection.execute("SELECT 1 FROM ticket LIMIT 0")


def _touch(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE sqlite_sequence SET seq = seq")


def _prepare(connection: sqlite3.Connection) -> None:
    """Check the file, and apply the numbered steps of the schema that it lacks.

    :raises DirectoryUnusable: the file is damaged.
    """
    damage = prepare_checked(connection, schema_steps(_SCHEMA), _MAX_LOG_BYTES)
    if damage is not None:
        raise DirectoryUnusable(
            f"{TICKET_FILE}: {damage}; restore it from a backup, or recover it with sqlite3 .recover: moving it away"
            " loses the waiting commits"
        )
