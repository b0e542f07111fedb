"""REST interface of the log of commits: ``/api/v1/commits``."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import IResource

from gateway.bus.bus import Bus
from gateway.model.records import Commit
from gateway.runtime.clock import WallClock
from gateway.store.interface import (
    MAX_COMMITS,
    CommitQuery,
    IdempotencyConflict,
    IdempotencyKey,
    OutcomeUnknown,
    PageRequest,
    RejectedByDatabase,
    Store,
    StoredCommit,
    StoreUnavailable,
)
from gateway.web.http.answers import (
    Refusal,
    answer,
    argument,
    body,
    encoded_answer,
    handle_errors,
    prefers_english,
    refusal_of,
    shield,
)
from gateway.web.http.root import WithSlash
from gateway.web.http.scopes import ScopedApp
from gateway.web.http.tabular import TableAnswer, preferred_type, wants_csv
from gateway.web.rest.arguments import (
    choice_argument,
    flag_argument,
    is_plain,
    number_argument,
    text_argument,
    time_argument,
)
from gateway.web.rest.commit_fields import COMMIT_FIELDS, commit_fields, csv_rows
from gateway.web.rest.commit_request import idempotency_key, json_body
from gateway.web.rest.receipt import RECEIPT_POLICY, Language, RecordPlace, html_receipt, receipt_lines, text_receipt
from gateway.web.rest.undo import UndoRequest, check_undoable, opposite_entry, parse_undo_request

log = Logger()

#: Default of ``limit``.
_LIMIT: Final = 100

#: Highest id: a bigint.
_MAX_ID: Final = 2**63 - 1

_EVENT_TYPES: Final = ("SHIP", "RETURN")

_TEXT_TYPES: Final = {"text": "text/plain", "html": "text/html"}


@dataclass(frozen=True, slots=True)
class CommitHooks:
    """Functions of other parts of the gateway that the log of commits uses, if they are there.

    :ivar head: returns the head of the record.
    :ivar find_entry: returns number and hash of a commit's entry in the record, by the id of the commit.
    :ivar on_undone: called after an undo with scale, cylinder, event and id of the commit that was undone.
    """

    head: Callable[[], Awaitable[str | None]] | None = None
    find_entry: Callable[[int], Awaitable[tuple[int, str] | None]] | None = None
    on_undone: Callable[[str, str, str, int], None] | None = None


class CommitApi:
    """``/api/v1/commits``.

    :param gateway: name of the gateway, for receipts.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(
        self, store: Store, bus: Bus, clock: WallClock, gateway: str, hooks: CommitHooks = CommitHooks()
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._gateway = gateway
        self._hooks = hooks

    def resource(self) -> IResource:
        """Return the resource of all routes."""
        return WithSlash(self.app.resource())

    # -- the log

    @app.route("/", methods=["GET"], scope="read")
    async def commits(self, request: Request) -> bytes:
        query = self._query(request)
        after = _cursor(argument(request, "after"))
        form = choice_argument(request, "format", ("json", "csv"))
        for_excel = flag_argument(request, "excel")
        limit = number_argument(request, "limit", _LIMIT, MAX_COMMITS)
        is_csv = wants_csv(request) if form is None else form == "csv"
        if is_csv:
            rest = limit if argument(request, "limit") else None
            table = TableAnswer(request, "commits", COMMIT_FIELDS, csv_form=True, for_excel=for_excel)
            return await table.send(self._pages(query, after, rest, table))
        page = await self._store.commits(query, PageRequest(after, limit, _encode))
        after_text = None if page.after is None else str(page.after)
        text = b'{"ok":true,"commits":[%b],"next":%b}' % (b",".join(page.items), orjson.dumps(after_text))
        return encoded_answer(request, text)

    async def _pages(
        self, query: CommitQuery, after: int | None, rest: int | None, table: TableAnswer
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield the encoded pages of a selection.

        :param rest: maximum number of commits; ``None`` for all.
        """
        encode = lambda commits: table.encode(csv_rows(commits))  # noqa: E731
        # A limit is at most a page.
        page = await self._store.commits(query, PageRequest(after, rest, encode))
        yield page.items
        while rest is None and page.after is not None:
            page = await self._store.commits(query, PageRequest(page.after, None, encode))
            yield page.items

    def _query(self, request: Request) -> CommitQuery:
        zone = self._clock.zone
        start = time_argument(request, "from", zone, whole_day=False)
        end = time_argument(request, "to", zone, whole_day=True)
        if start is not None and end is not None and start.timestamp() >= end.timestamp():
            raise Refusal(400, "invalid_request", "from은 to보다 앞서야 합니다")
        return CommitQuery(
            text_argument(request, "cylinder_no"),
            choice_argument(request, "event_type", _EVENT_TYPES),
            text_argument(request, "scale_id"),
            start,
            end,
        )

    @app.route("/<commit>", methods=["GET"], scope="read", strict_slashes=False)
    async def commit(self, request: Request, commit: str) -> bytes:
        return answer(request, {"ok": True, **commit_fields(await self._find(commit))})

    async def _find(self, text: str) -> StoredCommit:
        """Return the commit with an id or a ticket.

        :raises Refusal: ``unknown_commit``.
        """
        found = None
        if text.isascii() and text.isdigit():
            number = int(text) if len(text) < 20 else 0
            found = await self._store.find_commit(number) if 0 < number <= _MAX_ID else None
        elif len(text) < 256 and is_plain(text):
            found = await self._find_ticket(text)
        if found is None:
            raise Refusal(404, "unknown_commit")
        return found

    async def _find_ticket(self, ticket: str) -> StoredCommit | None:
        state = await self._store.ticket(ticket)
        if state is None:
            return None
        if state.commit_id is not None:
            try:
                return await self._store.find_commit(state.commit_id)
            except StoreUnavailable:
                # Its id is known here, although the row cannot be read now.
                pass
        detail = state.entry.detail
        commit = Commit(state.commit_id, state.entry, ticket)
        return StoredCommit(commit, detail.by, detail.undo_of, detail=detail.record())

    # -- receipts

    @app.route("/<commit>/receipt", methods=["GET"], scope="read", strict_slashes=False)
    async def receipt(self, request: Request, commit: str) -> bytes:
        form = choice_argument(request, "format", tuple(_TEXT_TYPES))
        # Asked in any case, so that caches know that the answer depends on it.
        preferred = preferred_type(request, *_TEXT_TYPES.values())
        kind = preferred if form is None else _TEXT_TYPES[form]
        language = _language(request)
        request.setHeader(b"vary", b"Origin, Accept, Accept-Language")
        stored = await self._find(commit)
        lines = receipt_lines(stored, self._gateway, await self._place(stored), language)
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-language", language.encode())
        if kind == "text/html":
            request.setHeader(b"content-security-policy", RECEIPT_POLICY)
            return body(request, html_receipt(lines, language).encode(), b"text/html; charset=utf-8")
        return body(request, text_receipt(lines, language).encode(), b"text/plain; charset=utf-8")

    async def _place(self, stored: StoredCommit) -> RecordPlace:
        hooks, commit_id = self._hooks, stored.commit.id
        found = None
        if hooks.find_entry is not None and commit_id is not None:
            found = await hooks.find_entry(commit_id)
        number, entry_hash = found or (None, None)
        return RecordPlace(number, entry_hash, None if hooks.head is None else await hooks.head())

    # -- undo

    @app.route("/<commit>/undo", methods=["POST"], scope="commit", strict_slashes=False)
    def undo(self, request: Request, commit: str) -> "Deferred[bytes]":
        # It continues even if the client leaves.
        return shield(Deferred.fromCoroutine(self._undo(request, commit)))

    async def _undo(self, request: Any, commit: str) -> bytes:
        undo = parse_undo_request(commit, json_body(request))
        key = idempotency_key(request, undo.fingerprint())
        by = request.principal.name or "operator"
        try:
            return answer(request, await self._write_undo(undo, key, by))
        except RejectedByDatabase as error:
            # Another request may have undone the commit meanwhile.
            check_undoable(await self._find(commit))
            raise refusal_of(error) from error
        except (IdempotencyConflict, OutcomeUnknown) as error:
            raise refusal_of(error) from error

    async def _write_undo(self, undo: UndoRequest, key: IdempotencyKey | None, by: str) -> dict[str, Any]:
        stored = await self._find(undo.commit)
        try:
            check_undoable(stored)
        except Refusal:
            # A repeated request gets its first answer.
            first = None if key is None else await self._store.replay(key)
            if first is None:
                raise
            return first
        entry = opposite_entry(stored, by, undo.reason, self._clock.now())
        result = await self._store.commit(entry, key)
        made = result.commit
        if made is not None:
            log.info(
                "scale {scale_id}: commit {id} written by {by}; it undoes commit {undone}",
                scale_id=entry.scale_id,
                id=made.id,
                by=by,
                undone=stored.commit.id,
            )
            self._bus.publish(made)
            if self._hooks.on_undone is not None and stored.commit.id is not None:
                undone = stored.commit.entry
                self._hooks.on_undone(undone.scale_id, undone.cylinder_no, undone.event_type, stored.commit.id)
        return result.answer


def _encode(commits: list[StoredCommit]) -> bytes:
    """Return commits as items of a JSON array; called in a thread."""
    return orjson.dumps(list(map(commit_fields, commits)))[1:-1]


def _cursor(text: str | None) -> int | None:
    """Return the position that a cursor names; ``None`` without one.

    :raises Refusal: ``invalid_request``.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= _MAX_ID):
        raise Refusal(400, "invalid_request", "after: 앞선 응답의 next 값이어야 합니다")
    return int(text)


def _language(request: Request) -> Language:
    """Return the language of a receipt: that of ``lang``, else the preferred one, else Korean."""
    chosen = choice_argument(request, "lang", ("ko", "en"))
    if chosen is None:
        return "en" if prefers_english(request) else "ko"
    return "en" if chosen == "en" else "ko"
