"""The record of this gateway: appends entries, and reads them and the head."""

import sqlite3
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from twisted.logger import Logger

from gateway.model.records import Commit
from gateway.model.timestamps import rfc3339
from gateway.record.chain import EntryStamp, Head, Row, parse_head
from gateway.record.commit_fields import commit_fields, keys_of
from gateway.record.table import append_entry, find_entry, has_key, read_head, take_foreign_head
from gateway.runtime.clock import WallClock
from gateway.store.interface import StoreUnavailable
from gateway.store.sqlitefile.transactions import Job

log = Logger()

T = TypeVar("T")

#: Maximum entries that wait for the disk; further ones are refused.
_MAX_WAITING: Final = 1000


class RunJob(Protocol):
    """Function that runs a job in a transaction of the thread that writes the record."""

    def __call__(self, job: Job[T], /) -> Awaitable[T]:
        """Run a job, and return when it is durable.

        :raises StoreUnavailable: nothing was written.
        """


class RecordBook:
    """The record of this gateway.

    :param gateway: ``gateway.name``, or the name of the machine.
    :param run: runs jobs in the file that holds the record.
    :ivar has_gaps: whether the other store may have commits that the record lacks.
    """

    def __init__(self, clock: WallClock, gateway: str, run: RunJob) -> None:
        self.gateway = gateway
        self._clock = clock
        self._run = run
        self._waiting = 0
        self._problem: str | None = None
        #: Whether commits must be recovered from the other store.
        self.has_gaps = True

    @property
    def problem(self) -> str | None:
        """Return why entries cannot be written now; ``None`` if they can."""
        return self._problem

    async def append(self, kind: str, fields: Mapping[str, Any]) -> Head:
        """Append an entry, and return its head when it is durable.

        The entry can be found by its fields ``commit_id``, ``ticket`` and ``request``.

        :raises StoreUnavailable: too many entries wait, or the file cannot be written; nothing was written.
        """
        stamp = self._stamp(kind)
        keys = keys_of(fields.get("commit_id"), fields.get("ticket"), fields.get("request"))
        return await self._write(lambda connection: append_entry(connection, stamp, fields, keys))

    def write_commit(self, connection: sqlite3.Connection, commit: Commit) -> None:
        """Append a commit in the transaction of its row, in the thread that writes it."""
        keys = keys_of(commit.id, commit.ticket, None)
        append_entry(connection, self._stamp("commit"), commit_fields(commit), keys)

    async def note_written(self, commit: Commit, request: str) -> None:
        """Append a commit that another store has written, before it is answered.

        A commit that cannot be recorded now stays written: it is in ``cynow_commit``, and is recovered from there.
        """
        try:
            await self.append_missing(commit_fields(commit, request))
        except StoreUnavailable:
            self.has_gaps = True

    async def append_missing(self, fields: Mapping[str, Any]) -> Head | None:
        """Append the fields of a commit, unless an entry has their request; return ``None`` then."""
        return await self._write(partial(_append_missing, stamp=self._stamp("commit"), fields=fields))

    async def append_all_missing(self, commits: Sequence[Mapping[str, Any]], mark: str, value: int) -> int:
        """Append the commits whose requests no entry has, and set a mark; return their number."""
        stamp = self._stamp("commit")

        def job(connection: sqlite3.Connection) -> int:
            added = sum(_append_missing(connection, stamp, fields) is not None for fields in commits)
            connection.execute("INSERT OR REPLACE INTO record_mark (name, value) VALUES (?, ?)", (mark, value))
            return added

        return await self._write(job)

    async def mark(self, name: str) -> int:
        """Return the value of a mark; 0 without one."""

        def job(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT value FROM record_mark WHERE name = ?", (name,)).fetchone()
            return 0 if row is None else int(row[0])

        return await self._write(job)

    async def read_head(self) -> Head:
        """Return the head; of an empty record the number 0 with 32 zero bytes.

        :raises StoreUnavailable: the file cannot be read.
        """
        return await self._write(partial(read_head, gateway=self.gateway))

    async def find(self, key: str) -> Row | None:
        """Return the entry with a key, such as ``commit:123`` or ``ticket:dock-7``; ``None`` without one."""
        return await self._write(partial(find_entry, key=key))

    async def take_foreign_head(self, text: str) -> Head:
        """Store the head of another gateway.

        :raises ValueError: the text is not a head.
        :raises HeadConflict: it contradicts the stored head.
        :raises TooManyGateways: too many gateways have sent heads.
        """
        head = parse_head(text)
        await self._write(partial(take_foreign_head, head=head, time=rfc3339(self._clock.now())))
        return head

    def _stamp(self, kind: str) -> EntryStamp:
        return EntryStamp(self.gateway, kind, rfc3339(self._clock.now(), "microseconds"))

    async def _write(self, job: Job[T]) -> T:
        if self._waiting >= _MAX_WAITING:
            raise StoreUnavailable("too many entries wait for the record")
        self._waiting += 1
        try:
            result = await self._run(job)
        except StoreUnavailable as error:
            if self._problem is None:
                log.error("record: cannot be written: {error}", error=error)
            self._problem = f"the record cannot be written: {error}"
            raise
        finally:
            self._waiting -= 1
        if self._problem is not None:
            log.info("record: can be written again")
        self._problem = None
        return result


def _append_missing(connection: sqlite3.Connection, stamp: EntryStamp, fields: Mapping[str, Any]) -> Head | None:
    if has_key(connection, f"request:{fields['request']}"):
        return None
    return append_entry(connection, stamp, fields, keys_of(fields["commit_id"], fields["ticket"], fields["request"]))
