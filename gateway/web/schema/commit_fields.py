"""Schemas of guards and of the details of commits, which live events and REST answers share."""

from collections.abc import Mapping
from typing import Any, Final

_NUMBER_OR_NULL: Final = {"type": ["number", "null"]}
_ERROR_CODES: Final = {"type": "array", "items": {"type": "string"}}

#: What a commit would be answered now.
VERDICT: Final[Mapping[str, Any]] = {
    "type": "object",
    "description": "What a commit would be answered now.",
    "properties": {
        "allowed": {"type": "boolean"},
        "error": {"type": ["string", "null"], "description": "Error code of the refusal."},
        "message": {"type": "string", "description": "What to do, in Korean; empty if a commit is allowed."},
    },
    "required": ["allowed", "error", "message"],
    "additionalProperties": False,
}

#: Fields of a reading that concern commits.
READING_FIELDS: Final[Mapping[str, Any]] = {
    "reading_id": {
        "type": ["string", "null"],
        "description": "Of the latest value; it stays the same while that value stays. A commit may send it.",
    },
    "out_of_range": {"type": "boolean", "description": "Whether the weight or its unit is outside the range."},
    "commit": VERDICT,
}

#: Fields that the answer to a commit and its event have only if there is something to tell.
COMMIT_DETAILS: Final[Mapping[str, Any]] = {
    "ticket": {"type": ["string", "null"], "description": "Of a commit that waited for PostgreSQL, or waits."},
    "override": {"type": "string", "description": "The reason for which guards were passed."},
    "overridden": {**_ERROR_CODES, "description": "The guards that were passed."},
    "warnings": {**_ERROR_CODES, "description": "Such as out_of_control, check_weigh_due, calibration_due."},
    "undo_of": {"type": "integer", "description": "The commit that this one undoes."},
    "reason": {"type": "string", "description": "The reason for undoing it."},
    "checked": {"type": "boolean", "description": "Whether the master data of the cylinder were there in time."},
    "tare_kg": _NUMBER_OR_NULL,
    "net_kg": {**_NUMBER_OR_NULL, "description": "Weight of the gas."},
    "remaining_kg": {**_NUMBER_OR_NULL, "description": "Weight of the gas that came back."},
}

READING_EXAMPLE: Final = {
    "reading_id": "3b657c16-1",
    "out_of_range": False,
    "commit": {"allowed": True, "error": None, "message": ""},
}
