"""Queries of the log of commits in PostgreSQL."""

from typing import Any, Final

from gateway.store.commit_rows import ROW_COLUMNS, commit_page_size
from gateway.store.interface import CommitQuery, PageRequest
from gateway.store.postgres.session import Session

_ROWS: Final = ", ".join(ROW_COLUMNS)

#: Details of the selected rows ``l``. A table that was emptied may count from 1 again, so that the latest details of an
#: id are those of the row, and a commit is undone only by a later one.
_DETAILS: Final = (
    " LEFT JOIN LATERAL (SELECT ticket, undo_of, detail FROM cynow_commit WHERE commit_id = l.id"
    " ORDER BY number DESC LIMIT 1) AS d ON true"
    " LEFT JOIN LATERAL (SELECT commit_id FROM cynow_commit WHERE undo_of = l.id AND commit_id > l.id) AS u ON true"
)


def _statement(rows: str) -> str:
    """Return the statement for rows of ``scale_weight_log`` with their details, newest first."""
    columns = ", ".join(f"l.{name}" for name in ROW_COLUMNS)
    return (
        f"SELECT {columns}, d.ticket, d.undo_of, d.detail, u.commit_id FROM ({rows}) AS l{_DETAILS} ORDER BY l.id DESC"  # noqa: S608 - fixed text
    )


async def commit_rows(session: Session, query: CommitQuery, page: PageRequest) -> list[tuple[Any, ...]]:
    """Return the rows of a page of commits and, if there are further ones, the next row."""
    conditions = {
        "cylinder_no = %s": query.cylinder_no,
        "event_type = %s": query.event_type,
        "scale_id = %s": query.scale_id,
        "committed_at >= %s": query.start,
        "committed_at < %s": query.end,
        "id < %s": page.after,
    }
    chosen = {condition: value for condition, value in conditions.items() if value is not None}
    where = f" WHERE {' AND '.join(chosen)}" if chosen else ""
    # The limit is inside, so that details are read for the rows of the page only.
    rows = f"SELECT {_ROWS} FROM scale_weight_log{where} ORDER BY id DESC LIMIT %s"  # noqa: S608 - fixed text
    return await session.ask(_statement(rows), [*chosen.values(), commit_page_size(page.limit) + 1])


async def commit_row(session: Session, commit_id: int) -> list[tuple[Any, ...]]:
    """Return the row of the commit with an id, if there is one."""
    return await session.ask(_statement(f"SELECT {_ROWS} FROM scale_weight_log WHERE id = %s"), [commit_id])  # noqa: S608 - fixed text
