"""Receipts of commits as text and as HTML, in Korean and English."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final, Literal

from gateway.model.timestamps import rfc3339
from gateway.store.interface import StoredCommit

Language = Literal["ko", "en"]

_STYLE: Final = (
    "body{font-family:sans-serif;margin:2em auto;max-width:36em;color:#000;background:#fff}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{border-bottom:1px solid #999;padding:.3em .5em;text-align:left;vertical-align:top;overflow-wrap:anywhere}"
    "th{width:12em;font-weight:normal}td{font-weight:bold}h1{font-size:1.4em}footer{margin-top:1.5em;font-size:.9em}"
    "@media print{body{margin:0;max-width:none}tr{break-inside:avoid}}"
)

#: Content of the ``Content-Security-Policy`` header of an HTML receipt: its style and nothing else.
RECEIPT_POLICY: Final = (
    b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-%b'"
    % base64.b64encode(hashlib.sha256(_STYLE.encode()).digest())
)

_TITLE: Final[Mapping[Language, str]] = {"ko": "계량 기록 확인서", "en": "Receipt of a weighing"}

_DISCLAIMER: Final[Mapping[Language, str]] = {
    "ko": "이 문서는 법정계량 증명이 아닙니다. 거래나 증명에 쓰는 계량증명서로 사용할 수 없습니다.",
    "en": "This is not a verified weighing slip (not legal for trade).",
}

_EVENTS: Final[Mapping[Language, Mapping[str, str]]] = {
    "ko": {"SHIP": "출하 (SHIP)", "RETURN": "회수 (RETURN)"},
    "en": {"SHIP": "Shipping (SHIP)", "RETURN": "Return (RETURN)"},
}

#: Labels in Korean and English, by name of the line.
_LABELS: Final[Mapping[str, tuple[str, str]]] = {
    "gateway": ("사업장 / 게이트웨이", "Plant / gateway"),
    "id": ("기록 번호", "Commit number"),
    "ticket": ("임시 번호", "Ticket"),
    "scale": ("저울", "Scale"),
    "cylinder": ("용기 번호", "Cylinder"),
    "event": ("구분", "Event"),
    "gross": ("총중량", "Gross"),
    "tare": ("용기 중량", "Tare"),
    "net": ("정미 중량", "Net"),
    "remaining": ("잔량", "Remaining"),
    "received": ("계량 시각", "Weighed at"),
    "committed": ("기록 시각", "Committed at"),
    "arrival": ("입출하 번호", "Arrival/shipping no."),
    "report": ("이동 보고 번호", "Movement report no."),
    "by": ("기록자", "Committed by"),
    "override": ("예외 승인 사유", "Reason for the override"),
    "warnings": ("경고", "Warnings"),
    "undo_of": ("취소한 기록", "Undoes commit"),
    "undone_by": ("취소됨, 취소 기록", "Undone by commit"),
    "reason": ("취소 사유", "Reason for the undo"),
    "raw": ("저울 원문", "Line of the scale"),
    "record": ("원장 번호", "Record number"),
    "entry_hash": ("원장 항목 해시", "Hash of the record's entry"),
    "head": ("원장 최종 해시", "Head of the record"),
}


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """Place of a commit in the gateway's record.

    :ivar number: number of the entry; ``None`` if it is not known.
    :ivar entry_hash: hash of the entry.
    :ivar head: head of the record now; ``None`` if it is not known.
    """

    number: int | None = None
    entry_hash: str | None = None
    head: str | None = None


def receipt_lines(
    stored: StoredCommit, gateway: str, place: RecordPlace, language: Language
) -> list[tuple[str, str, str]]:
    """Return the label, the label in English and the value of each line that has a value.

    :param gateway: name of the plant or gateway.
    :param language: language of the first label; with ``en`` the second one is empty.
    """
    commit, detail = stored.commit, stored.detail
    entry = commit.entry
    values: dict[str, Any] = {
        "gateway": gateway,
        "id": commit.id,
        "ticket": commit.ticket,
        "scale": entry.scale_id,
        "cylinder": entry.cylinder_no,
        "event": _EVENTS[language].get(entry.event_type, entry.event_type),
        "gross": f"{entry.gross_kg} kg",
        "tare": _kilograms(detail.get("tare_kg")),
        "net": _kilograms(detail.get("net_kg")),
        "remaining": _kilograms(detail.get("remaining_kg")),
        "received": rfc3339(entry.received_at),
        "committed": rfc3339(entry.committed_at),
        "arrival": entry.arrival_shipping_no,
        "report": entry.move_report_no,
        "by": stored.by,
        "override": detail.get("override"),
        "warnings": ", ".join(map(str, detail.get("warnings", ()))) or None,
        "undo_of": stored.undo_of,
        "undone_by": stored.undone_by,
        "reason": detail.get("reason"),
        "raw": entry.raw_line,
        "record": place.number,
        "entry_hash": place.entry_hash,
        "head": place.head,
    }
    lines = []
    for name, value in values.items():
        if value is not None:
            korean, english = _LABELS[name]
            lines.append((english, "", str(value)) if language == "en" else (korean, english, str(value)))
    return lines


def _kilograms(value: Any) -> str | None:
    return None if value is None else f"{value} kg"


def text_receipt(lines: list[tuple[str, str, str]], language: Language) -> str:
    """Return the receipt as plain text, one line for each value."""
    other = [f"({_TITLE['en']})"] if language == "ko" else []
    parts = [_TITLE[language], *other, ""]
    for label, english, value in lines:
        # A line end in a stored text must not look like another line of the receipt.
        parts.append(f"{f'{label} ({english})' if english else label}: {' '.join(value.split())}")
    notes = [_DISCLAIMER[language]] if language == "en" else [_DISCLAIMER["ko"], _DISCLAIMER["en"]]
    return "\n".join([*parts, "", *notes, ""])


def html_receipt(lines: list[tuple[str, str, str]], language: Language) -> str:
    """Return the receipt as a complete page without script."""
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}{f"<br><small>{escape(english)}</small>" if english else ""}</th>'
        f"<td>{escape(value)}</td></tr>\n"
        for label, english, value in lines
    )
    subtitle = f'<p lang="en">{escape(_TITLE["en"])}</p>\n' if language == "ko" else ""
    notes = f"<p>{escape(_DISCLAIMER[language])}</p>"
    if language == "ko":
        notes += f'<p lang="en">{escape(_DISCLAIMER["en"])}</p>'
    title = escape(_TITLE[language])
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{subtitle}"
        f"<table>\n{rows}</table>\n<footer>{notes}</footer>\n</body>\n</html>\n"
    )
