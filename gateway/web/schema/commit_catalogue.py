"""Catalogue of the REST operations of the log of commits and of cylinders."""

from typing import Any, Final

from gateway.web.schema.catalogue import COMMIT_EXAMPLE
from gateway.web.schema.operations import ContentSpec, ErrorCase, OperationSpec, csv_content, json_content, query
from gateway.web.schema.rest_schemas import REASON, ref, text_of

_STORE: Final = ErrorCase(503, "store_unavailable", "the store cannot take or answer the request now")
_UNKNOWN: Final = ErrorCase(404, "unknown_commit", "there is no commit with this id or ticket")
_INVALID: Final = ErrorCase(
    400, "invalid_request", "a parameter is wrong; the message names it", "after: 앞선 응답의 next 값이어야 합니다"
)

IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A text of the client's choice. The same key and fields again get the first answer, and write "
    "nothing; the answer is kept for 48 hours.",
    "schema": {"type": "string", "maxLength": 255, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"},
    "example": "5f0c",
}

#: Times without an offset are those of the gateway's wall clock.
_MOMENT: Final = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}

#: Texts of commits: no control characters.
_TEXT: Final = {"type": "string", "maxLength": 50, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}

_COMMIT: Final = {
    "name": "commit",
    "in": "path",
    "required": True,
    "description": "Id or ticket of the commit.",
    "schema": {"type": "string"},
    "example": "1",
}

_EXAMPLE: Final[dict[str, Any]] = {
    "id": 123,
    "ticket": None,
    "scale_id": "default",
    "cylinder_no": "CY123456789",
    "event_type": "SHIP",
    "gross_kg": 53.26,
    "raw_line": "ST , +000053.26 _kg",
    "received_at": "2025-12-18T10:11:11+09:00",
    "committed_at": "2025-12-18T10:11:12+09:00",
    "arrival_shipping_no": None,
    "move_report_no": None,
    "by": "operator",
    "override": None,
    "warnings": [],
    "undo_of": None,
    "undone_by": None,
    "reason": None,
    "tare_kg": None,
    "net_kg": None,
    "remaining_kg": None,
    "checked": None,
}

#: Commits of the log, and one alone.
COMMIT_LOG: Final = {
    "commits": OperationSpec(
        "scales",
        "The log of commits",
        "Newest first. `next` is the value of `after` for the next page; null after the last one. CSV has all selected "
        "commits, or the newest `limit`.",
        (
            json_content(ref("CommitPage"), page={"ok": True, "commits": [_EXAMPLE], "next": None}),
            csv_content(
                ",".join(_EXAMPLE), ",".join("" if value in (None, []) else str(value) for value in _EXAMPLE.values())
            ),
        ),
        (
            query("cylinder_no", _TEXT, "Only commits of this cylinder.", "CY123456789"),
            query("event_type", {"enum": ["SHIP", "RETURN"]}, "Only shipping or only returns.", "SHIP"),
            query("scale_id", _TEXT, "Only commits of this scale.", "default"),
            query(
                "from", _MOMENT, "Earliest `committed_at`, ISO 8601; the wall clock's without an offset.", "2025-12-18"
            ),
            query("to", _MOMENT, "Time that every `committed_at` is before; a date alone means its end.", "2025-12-18"),
            query("after", {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}, "`next` of the page before.", "124"),
            query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "Maximum number of commits; CSV has all without it.",
                100,
            ),
            query("format", {"enum": ["json", "csv"]}, "Form of the answer; by default that of `Accept`.", "json"),
            query(
                "excel",
                {"enum": ["1", "0", "true", "false"]},
                "Whether CSV begins with a byte order mark, and cells that a spreadsheet takes for formulas begin with "
                "an apostrophe.",
                "1",
            ),
        ),
        errors=(_INVALID, _STORE),
    ),
    "commit": OperationSpec(
        "scales",
        "One commit",
        "By its id, or by the ticket that it was.",
        (json_content(ref("LoggedCommit"), commit={"ok": True, **_EXAMPLE}),),
        (_COMMIT,),
        errors=(_UNKNOWN, _STORE),
    ),
    "receipt": OperationSpec(
        "scales",
        "The receipt of a commit",
        "In Korean with English labels, or in English. It is no verified weighing slip.",
        (
            ContentSpec("text/plain", {"type": "string"}, {"text": "계량 기록 확인서\n"}),
            ContentSpec("text/html", {"type": "string"}, {"page": "<!DOCTYPE html>\n"}),
        ),
        (
            _COMMIT,
            query("format", {"enum": ["text", "html"]}, "Form of the receipt; by default that of `Accept`.", "text"),
            query("lang", {"enum": ["ko", "en"]}, "Language; by default that of `Accept-Language`.", "ko"),
        ),
        errors=(
            ErrorCase(400, "invalid_request", "a parameter is wrong", "format: text, html 중 하나여야 합니다"),
            _UNKNOWN,
            _STORE,
        ),
    ),
    "undo": OperationSpec(
        "scales",
        "Undo a commit",
        "Writes the opposite event with the same weight and numbers, and links both commits.",
        (json_content(ref("Undone"), undone={**COMMIT_EXAMPLE, "id": 124, "event_type": "RETURN", "undo_of": 123}),),
        (_COMMIT, IDEMPOTENCY_KEY),
        json_content(
            REASON,
            reason={"reason": "용기 번호 오입력"},
        ),
        (
            ErrorCase(400, "invalid_json", "the body is not JSON"),
            ErrorCase(400, "invalid_request", "the reason is missing or too long", "reason이 필요합니다"),
            _UNKNOWN,
            ErrorCase(409, "already_undone", "the commit was undone before; the message names the other id"),
            ErrorCase(409, "is_undo", "the commit undoes another one"),
            ErrorCase(409, "not_undoable", "the commit is neither a shipping nor a return"),
            ErrorCase(409, "rejected_by_database", "the database will always refuse this row; nothing was written"),
            ErrorCase(422, "idempotency_conflict", "the key was used for another request"),
            _STORE,
            ErrorCase(504, "outcome_unknown", "the row may have been written: the same request with its key tells"),
        ),
    ),
}

#: Cylinders.
CYLINDERS: Final = {
    "cylinder": OperationSpec(
        "scales",
        "A cylinder",
        "Its master data, its last 20 commits and their balance. Send a slash in its number as `%2F`.",
        (
            json_content(
                ref("Cylinder"),
                cylinder={
                    "ok": True,
                    "cylinder_no": "CY123456789",
                    "master": None,
                    "commits": [_EXAMPLE],
                    "balance": None,
                },
            ),
        ),
        (
            {
                "name": "cylinder",
                "in": "path",
                "required": True,
                "description": "Number of the cylinder.",
                "schema": text_of("Up to 50 characters."),
                "example": "CY123456789",
            },
        ),
        errors=(ErrorCase(404, "unknown_cylinder", "there are neither commits nor master data"), _STORE),
    )
}
