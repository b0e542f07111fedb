"""Query of the commits that a gateway has written, for the record on its own disk."""

from typing import Any, Final

import orjson

from gateway.model.records import COMMIT_COLUMNS
from gateway.store.postgres.session import Session

_QUERY: Final = (
    f"SELECT number, request, ticket, commit_id, detail, {', '.join(COMMIT_COLUMNS)}"  # noqa: S608 - fixed text
    " FROM cynow_commit LEFT JOIN scale_weight_log ON id = commit_id"
    " WHERE gateway = %s AND number > %s ORDER BY number LIMIT %s"
)


async def own_commits(session: Session, gateway: str, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
    """Return commits of a gateway, each with its number in ``cynow_commit``, in ascending order.

    The columns of a row that was removed are ``None``.
    """
    rows = await session.ask(_QUERY, [gateway, after, limit])
    commits = []
    for number, request, ticket, commit_id, detail, *columns in rows:
        named = {"request": request, "ticket": ticket, "commit_id": commit_id, "detail": orjson.loads(detail)}
        commits.append((number, named | dict(zip(COMMIT_COLUMNS, columns, strict=True))))
    return commits
