"""Commits as JSON text in the file of tickets."""

from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson

from gateway.model.records import CommitDetail, CommitEntry

#: Fields of an entry that are not text.
_TIMES = ("received_at", "committed_at")


def encode_entry(entry: CommitEntry) -> str:
    """Return an entry as JSON.

    :raises ValueError: a text is not valid UTF-8.
    """
    fields: dict[str, Any] = {name: getattr(entry, name) for name in CommitEntry.__slots__}
    fields |= {name: getattr(entry, name).isoformat() for name in _TIMES}
    fields["gross_kg"] = str(entry.gross_kg)
    detail = {name: getattr(entry.detail, name) for name in CommitDetail.__slots__}
    detail["cylinder"] = None if entry.detail.cylinder is None else dict(entry.detail.cylinder)
    fields["detail"] = detail
    try:
        return orjson.dumps(fields, default=str).decode()
    except orjson.JSONEncodeError as error:
        raise ValueError("a text is not valid UTF-8") from error


def decode_entry(text: str) -> CommitEntry:
    """Return the entry of a JSON text."""
    fields = orjson.loads(text)
    fields |= {name: datetime.fromisoformat(fields[name]) for name in _TIMES}
    fields["gross_kg"] = Decimal(fields["gross_kg"])
    detail = fields.pop("detail")
    detail |= {name: tuple(detail[name]) for name in ("overridden", "warnings")}
    return CommitEntry(**fields, detail=CommitDetail(**detail))
