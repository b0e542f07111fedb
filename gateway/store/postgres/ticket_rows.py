"""Rows of tickets in PostgreSQL: the commits of a batch in their order, in one transaction, and once each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson

from gateway.model.records import CommitDetail, CommitEntry
from gateway.store.interface import RejectedByDatabase, TicketState
from gateway.store.postgres.commits import COMMIT, KEY_LIFE, PendingCommit
from gateway.store.postgres.session import Session
from gateway.store.ticket_interface import QueuedTicket

#: :data:`COMMIT` with the answer that the client of the ticket got.
_FORWARD: Final = COMMIT.replace("%(before)s::text || id || %(behind)s::text", "%(answer)s::text")

_KEYS: Final = (
    "SELECT i.key, i.fingerprint, c.commit_id, i.answer FROM cynow_idempotency i"
    " LEFT JOIN cynow_commit c ON c.request = i.request WHERE i.key = ANY(%(keys)s)"
)
_REQUESTS: Final = "SELECT request, commit_id, ticket FROM cynow_commit WHERE request = ANY(%(requests)s)"
_NAMES: Final = "SELECT ticket, request FROM cynow_commit WHERE ticket = ANY(%(names)s)"

#: A commit that was on its way when it became a ticket is written without the ticket.
_ADOPT: Final = (
    "UPDATE cynow_commit SET ticket = %(ticket)s WHERE request = %(request)s AND ticket IS NULL;"
    "UPDATE cynow_idempotency SET answer = %(answer)s WHERE request = %(request)s"
)

_STATE: Final = """
SELECT c.commit_id, c.detail, w.scale_id, w.cylinder_no, w.event_type, w.gross_kg, w.raw_line, w.received_at,
    w.committed_at, w.arrival_shipping_no, w.move_report_no
FROM cynow_commit c JOIN scale_weight_log w ON w.id = c.commit_id WHERE c.ticket = %s
"""


@dataclass(frozen=True, slots=True)
class ForwardedTicket:
    """Row of a ticket.

    :ivar outcome: ``written`` for a row of this ticket, ``known`` for that of another request with the same key.
    :ivar warning: what an operator should know; ``None`` if there is nothing.
    """

    queued: QueuedTicket
    commit_id: int
    outcome: Literal["written", "known"]
    warning: str | None = None


class _Known:
    """Rows and keys that the server has for the tickets of a batch before it is written."""

    def __init__(self) -> None:
        self.requests: dict[str, tuple[int, str | None]] = {}
        self.keys: dict[str, tuple[str, int | None]] = {}
        self.names: dict[str, str] = {}

    @classmethod
    async def of(cls, session: Session, tickets: Sequence[QueuedTicket]) -> "_Known":
        """Ask the server."""
        known = cls()
        keys = [each.key.key for each in tickets if each.key is not None]
        for request, commit_id, ticket in await session.ask(
            _REQUESTS, {"requests": [each.request for each in tickets]}
        ):
            known.requests[request] = commit_id, ticket
        for ticket, request in await session.ask(_NAMES, {"names": [each.ticket for each in tickets]}):
            known.names[ticket] = request
        if keys:
            oldest = min(each.made_at for each in tickets) - KEY_LIFE
            await session.ask(
                "DELETE FROM cynow_idempotency WHERE key = ANY(%s) AND made_at < to_timestamp(%s)", [keys, oldest]
            )
            for key, fingerprint, commit_id, answer in await session.ask(_KEYS, {"keys": keys}):
                known.keys[key] = fingerprint, orjson.loads(answer)["id"] if commit_id is None else commit_id
        return known


async def forward(session: Session, tickets: Sequence[QueuedTicket], now: float, gateway: str) -> list[ForwardedTicket]:
    """Write the rows of tickets that have none, in their order; return the row of each.

    :param now: time at which their keys begin to be kept, in seconds since 1970.
    :raises RejectedByDatabase: a trigger drops one of the rows.
    :raises ValueError: a text cannot be encoded.
    :raises psycopg2.Error: the server has refused all of them.
    """

    async def work(session: Session) -> list[ForwardedTicket]:
        known = await _Known.of(session, tickets)
        found: dict[int, ForwardedTicket] = {}
        statements: list[str] = []
        values: dict[str, Any] = {}
        warnings: dict[int, str] = {}
        for each in tickets:
            if each.request in known.requests:
                found[each.n] = ForwardedTicket(each, known.requests[each.request][0], "written")
                statement = _ADOPT
                fields: dict[str, Any] = {"ticket": each.ticket, "request": each.request, "answer": each.answer}
            else:
                of_key = None if each.key is None else known.keys.get(each.key.key)
                if of_key is not None and each.key is not None and of_key[0] == each.key.fingerprint:
                    if of_key[1] is None:
                        raise RejectedByDatabase("the row of its Idempotency-Key is not known")
                    found[each.n] = ForwardedTicket(each, of_key[1], "known")
                    continue
                statement = _FORWARD
                fields, warning = _values(each, of_key is not None, known.names.get(each.ticket), now, gateway)
                if warning is not None:
                    warnings[each.n] = warning
            statements.append(statement.replace("%(", f"%({each.n} "))
            values |= {f"{each.n} {name}": value for name, value in fields.items()}
        if statements:
            requests = {"requests": [each.request for each in tickets]}
            rows = await session.ask(";".join([*statements, _REQUESTS]), values | requests)
            ids = {request: commit_id for request, commit_id, _ in rows}
            for each in tickets:
                if each.n not in found:
                    if each.request not in ids:
                        raise RejectedByDatabase("a trigger of scale_weight_log returns NULL instead of the row")
                    found[each.n] = ForwardedTicket(each, ids[each.request], "written", warnings.get(each.n))
        return [found[each.n] for each in tickets]

    return await session.transaction(work)


def _values(
    each: QueuedTicket, is_key_taken: bool, named: str | None, now: float, gateway: str
) -> tuple[dict[str, Any], str | None]:
    """Return the parameters of a ticket's row, and a warning."""
    pending = PendingCommit.of(each.entry, None if is_key_taken else each.key, now, gateway)
    own_key = pending.key.key.replace(pending.request, each.request) if each.key is None or is_key_taken else None
    values = pending.values() | {"request": each.request, "answer": each.answer, "ticket": each.ticket}
    if own_key is not None:
        values["key"] = own_key
    warning = None
    if is_key_taken:
        warning = "its Idempotency-Key was used for another request meanwhile; both rows are written"
    if named is not None:
        # The file of tickets was lost, or another gateway has the same name: the row matters more than its name.
        values["ticket"] = None
        warning = "another commit has the same ticket: gateway.name must be unique, and the file of tickets kept"
    return values, warning


async def find_ticket(session: Session, ticket: str) -> TicketState | None:
    """Return the state of a ticket that has a row, whichever gateway made it."""
    rows = await session.ask(_STATE, [ticket])
    if not rows:
        return None
    commit_id, detail, *columns = rows[0]
    entry = replace(CommitEntry(*columns), detail=_detail(orjson.loads(detail)))
    return TicketState(ticket, commit_id, "written", entry)


def _detail(fields: dict[str, Any]) -> CommitDetail:
    by, override, undo_of = fields.pop("by", "operator"), fields.pop("override", None), fields.pop("undo_of", None)
    overridden, warnings = tuple(fields.pop("overridden", ())), tuple(fields.pop("warnings", ()))
    return CommitDetail(by, override, overridden, warnings, undo_of, fields or None)
