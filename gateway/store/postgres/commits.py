"""Commits in PostgreSQL: a row of ``scale_weight_log`` and the record of its request, in one transaction."""

from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import orjson
import psycopg2
from psycopg2.errors import UniqueViolation

from gateway.model.records import COMMIT_COLUMNS, Commit, CommitEntry
from gateway.store.interface import CommitResult, IdempotencyConflict, IdempotencyKey, RejectedByDatabase
from gateway.store.postgres.session import Session

#: Seconds for which an answer is kept for its Idempotency-Key; the contract promises at least a day.
KEY_LIFE: Final = 48 * 3600.0

#: Prefix of the gateway's own keys; those of clients contain no control character.
_OWN_KEY: Final = "\x01"

#: Statement that writes a commit, its details and the record of its key, unless there is a record of its key.
COMMIT: Final = """
WITH made AS (
    INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at,
        arrival_shipping_no, move_report_no)
    SELECT %(scale_id)s, %(cylinder_no)s, %(event_type)s, %(gross_kg)s, %(raw_line)s, %(received_at)s,
        %(committed_at)s, %(arrival_shipping_no)s, %(move_report_no)s
    WHERE NOT EXISTS (SELECT 1 FROM cynow_idempotency WHERE key = %(key)s)
        AND NOT EXISTS (SELECT 1 FROM cynow_commit WHERE request = %(request)s)
    RETURNING id
), noted AS (
    INSERT INTO cynow_commit (request, gateway, ticket, commit_id, undo_of, detail)
    SELECT %(request)s, %(gateway)s, %(ticket)s, id, %(undo_of)s, %(detail)s FROM made
)
INSERT INTO cynow_idempotency (key, fingerprint, request, answer, made_at)
SELECT %(key)s, %(fingerprint)s, %(request)s, %(before)s::text || id || %(behind)s::text, to_timestamp(%(now)s)
FROM made RETURNING answer
"""


class CommitSkipped(Exception):
    """Error for a commit that was neither written nor refused and has no record of its key; it must be rolled back."""


@dataclass(slots=True)
class PendingCommit:
    """Commit that is written at most once, however often it is tried.

    :ivar key: key of the client, or of the gateway.
    :ivar request: identifier of the request, unlike that of other requests with the same key.
    :ivar now: time of the request, in seconds since 1970.
    :ivar gateway: ``gateway.name`` of the gateway that took it.
    :ivar ticket: ticket that the commit waited as; ``None`` if it did not wait.
    :ivar is_in_doubt: whether it may have been written, and the outcome is unknown.
    :ivar is_sent: whether it was sent to the server.
    :ivar is_withdrawn: whether it must no longer be sent.
    """

    entry: CommitEntry
    key: IdempotencyKey
    request: str
    now: float
    gateway: str = ""
    ticket: str | None = None
    is_in_doubt: bool = False
    is_sent: bool = False
    is_withdrawn: bool = False

    @classmethod
    def of(cls, entry: CommitEntry, key: IdempotencyKey | None, now: float, gateway: str = "") -> "PendingCommit":
        """Return a new pending commit."""
        request = uuid4().hex
        return cls(entry, key or IdempotencyKey(_OWN_KEY + request, ""), request, now, gateway)

    def values(self) -> dict[str, Any]:
        """Return the parameters of :data:`COMMIT`.

        :raises ValueError: one of its texts cannot be encoded in UTF-8.
        """
        try:
            detail = orjson.dumps(self.entry.detail.record(), default=str).decode()
            before, _, behind = orjson.dumps(Commit(0, self.entry).answer()).decode().partition('"id":0')
        except orjson.JSONEncodeError as error:
            raise ValueError("a text is not valid UTF-8") from error
        values = {name: getattr(self.entry, name) for name in COMMIT_COLUMNS}
        values |= {"key": self.key.key, "fingerprint": self.key.fingerprint, "request": self.request, "now": self.now}
        values |= {
            "gateway": self.gateway,
            "ticket": self.ticket,
            "undo_of": self.entry.detail.undo_of,
            "detail": detail,
        }
        return values | {"before": f'{before}"id":', "behind": behind}

    async def write(self, session: Session) -> CommitResult:
        """Write the commit, unless it was written already.

        :raises IdempotencyConflict: its key was used for another request.
        :raises RejectedByDatabase: the database does not write it, though it reports no error.
        :raises psycopg2.Error: the server has refused it.
        """
        self.is_sent = True
        values = self.values()
        for _ in range(3):
            try:
                rows = await self._insert(session, values)
            except CommitSkipped:
                # Its key may have expired in between: try again. This cannot happen three times.
                continue
            if rows:
                answer = orjson.loads(rows[0][0])
                return CommitResult(answer, Commit(answer["id"], self.entry))
            earlier = await find_answer(session, self.key, self.now - KEY_LIFE)
            self.is_in_doubt = False
            if earlier is not None:
                answer, request = earlier
                # An earlier attempt has written it, and its answer was lost.
                is_ours = request == self.request
                return CommitResult(answer, Commit(answer["id"], self.entry) if is_ours else None)
            await remove_old_keys(session, self.now - KEY_LIFE)
        # A trigger that returns NULL drops the row, or writes it elsewhere with an unknown id.
        raise RejectedByDatabase("a trigger of scale_weight_log returns NULL instead of the row")

    async def _insert(self, session: Session, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        async def insert(session: Session) -> list[tuple[Any, ...]]:
            rows = await session.ask(COMMIT, values)
            if not rows and not await session.ask("SELECT FROM cynow_idempotency WHERE key = %s", [self.key.key]):
                raise CommitSkipped
            return rows

        try:
            # Without a transaction, a silent server could execute the statement later, after the request was refused.
            return await session.transaction(insert)
        except UniqueViolation as error:
            # Another request with this key was written first.
            if error.diag.table_name != "cynow_idempotency":
                raise
            return []
        except psycopg2.Error as error:
            self.is_in_doubt |= session.is_committing and session.is_lost(error)
            raise


async def find_answer(session: Session, key: IdempotencyKey, since: float) -> tuple[dict[str, Any], str] | None:
    """Return the first answer to a key that was used since a time, and its request; ``None`` if it was not used.

    :param since: earliest time, in seconds since 1970.
    :raises IdempotencyConflict: the key was used for another request.
    """
    rows = await session.ask(
        "SELECT fingerprint, answer, request FROM cynow_idempotency WHERE key = %s AND made_at >= to_timestamp(%s)",
        [key.key, since],
    )
    if not rows:
        return None
    ((fingerprint, answer, request),) = rows
    if fingerprint != key.fingerprint:
        raise IdempotencyConflict
    return orjson.loads(answer), request


async def remove_old_keys(session: Session, before: float) -> None:
    """Remove the records of keys that were used before a time, in seconds since 1970."""
    await session.ask("DELETE FROM cynow_idempotency WHERE made_at < to_timestamp(%s)", [before])
