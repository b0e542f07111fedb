"""Fields of stored commits in answers."""

from collections.abc import Sequence
from typing import Any, Final

from gateway.model.timestamps import rfc3339
from gateway.store.interface import StoredCommit

#: Fields of a commit in answers, and columns of CSV, in their order.
COMMIT_FIELDS: Final = (
    "id",
    "ticket",
    "scale_id",
    "cylinder_no",
    "event_type",
    "gross_kg",
    "raw_line",
    "received_at",
    "committed_at",
    "arrival_shipping_no",
    "move_report_no",
    "by",
    "override",
    "warnings",
    "undo_of",
    "undone_by",
    "reason",
    "tare_kg",
    "net_kg",
    "remaining_kg",
    "checked",
)


def commit_fields(stored: StoredCommit) -> dict[str, Any]:
    """Return the fields of a commit in answers; those that are not known are ``None``."""
    commit, detail = stored.commit, stored.detail
    entry = commit.entry
    return {
        "id": commit.id,
        "ticket": commit.ticket,
        "scale_id": entry.scale_id,
        "cylinder_no": entry.cylinder_no,
        "event_type": entry.event_type,
        "gross_kg": float(entry.gross_kg),
        "raw_line": entry.raw_line,
        "received_at": rfc3339(entry.received_at),
        "committed_at": rfc3339(entry.committed_at),
        "arrival_shipping_no": entry.arrival_shipping_no,
        "move_report_no": entry.move_report_no,
        "by": stored.by,
        "override": detail.get("override"),
        # Without details, nobody knows whether there were warnings.
        "warnings": detail.get("warnings", []) if detail else None,
        "undo_of": stored.undo_of,
        "undone_by": stored.undone_by,
        "reason": detail.get("reason"),
        **{name: detail.get(name) for name in ("tare_kg", "net_kg", "remaining_kg", "checked")},
    }


def csv_rows(commits: Sequence[StoredCommit]) -> list[dict[str, Any]]:
    """Return the rows of commits in CSV: weights with all their digits, and lists as words."""
    return [
        commit_fields(stored)
        | {
            "gross_kg": stored.commit.entry.gross_kg,
            "warnings": " ".join(map(str, stored.detail.get("warnings", ()))),
            "checked": {True: "true", False: "false"}.get(stored.detail.get("checked", None)),
        }
        for stored in commits
    ]
