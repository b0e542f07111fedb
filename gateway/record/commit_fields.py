"""Fields of a commit in the record: the columns of ``scale_weight_log`` as texts, and the details of the request."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from gateway.model.records import COMMIT_COLUMNS, Commit


def column_text(value: Any) -> str | None:
    """Return the text of a column in the record: times in UTC, weights with two decimals."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat("T", "microseconds")
    if isinstance(value, Decimal):
        return f"{value:.2f}"
    return None if value is None else str(value)


def commit_fields(commit: Commit, request: str | None = None) -> dict[str, Any]:
    """Return the fields of a commit's entry.

    :param request: identifier of the request, by which a commit is recorded once.
    """
    fields: dict[str, Any] = {name: column_text(getattr(commit.entry, name)) for name in COMMIT_COLUMNS}
    return fields | {
        "commit_id": commit.id,
        "ticket": commit.ticket,
        "request": request,
        "detail": commit.entry.detail.record(),
    }


def keys_of(commit_id: int | None, ticket: str | None, request: str | None) -> list[str]:
    """Return the texts by which an entry can be found."""
    named = {"commit": commit_id, "ticket": ticket, "request": request}
    return [f"{name}:{value}" for name, value in named.items() if value is not None]
