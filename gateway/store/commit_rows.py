"""Rows of commits, the same for every backend: columns, details and positions of pages."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from typing import Any, Final

import orjson

from gateway.model.records import COMMIT_COLUMNS, Commit, CommitEntry
from gateway.store.interface import MAX_COMMITS, Page, PageRequest, StoredCommit
from gateway.store.rows import encoded

#: Columns of ``scale_weight_log``, in the order of :func:`stored_commit`.
ROW_COLUMNS: Final = ("id", *COMMIT_COLUMNS)

_CENT: Final = Decimal("0.01")


def commit_page_size(limit: int | None) -> int:
    """Return the maximum number of commits in a page, given the caller's ``limit``."""
    return MAX_COMMITS if limit is None else min(limit, MAX_COMMITS)


def stored_commit(row: Sequence[Any], zone: tzinfo) -> StoredCommit:
    """Return the commit of a row: the columns of :data:`ROW_COLUMNS`, ticket, undo_of, detail and undone_by."""
    number, scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at, *rest = row
    arrival_shipping_no, move_report_no, ticket, undo_of, text, undone_by = rest
    detail = orjson.loads(text) if text else {}
    entry = CommitEntry(
        scale_id=scale_id,
        cylinder_no=cylinder_no,
        event_type=event_type,
        # SQLite returns a decimal column as a float or an integer.
        gross_kg=Decimal(str(gross_kg)).quantize(_CENT),
        raw_line=raw_line,
        received_at=_moment(received_at, zone),
        committed_at=_moment(committed_at, zone),
        arrival_shipping_no=arrival_shipping_no,
        move_report_no=move_report_no,
    )
    return StoredCommit(Commit(number, entry, ticket), detail.get("by"), undo_of, undone_by, detail)


def commit_page(rows: Sequence[Sequence[Any]], page: PageRequest, zone: tzinfo) -> Page:
    """Return a page made from its rows and, if there are further ones, the next row; called in a thread."""
    size = commit_page_size(page.limit)
    items = [stored_commit(row, zone) for row in rows[:size]]
    return Page(encoded(items, page.encode), items[-1].commit.id if len(rows) > size else None)


def _moment(time: Any, zone: tzinfo) -> datetime:
    """Return a time in a zone; a text without an offset is UTC, as Django keeps it in SQLite."""
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(zone)
