"""Parsing of commit requests: JSON body and Idempotency-Key."""

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson
from twisted.web.http import Request

from gateway.store.interface import IdempotencyKey
from gateway.web.http.answers import Refusal

#: Maximum characters of a field: columns of ``scale_weight_log`` are varchar(50).
_MAX_LENGTH: Final = 50

#: Maximum characters of a reason.
_MAX_REASON: Final = 200

#: Fields that are left out of the fingerprint when they are absent.
_LATER_FIELDS: Final = frozenset({"reading_id", "override"})

_EVENT_TYPES: Final = frozenset({"SHIP", "RETURN"})

#: Control characters: databases cannot store a NUL, and cylinder numbers have no line ends.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """Fields of a valid commit request.

    :ivar reading_id: reading that the operator saw.
    :ivar override: reason for passing guards.
    """

    cylinder_no: str
    event_type: str
    arrival_shipping_no: str | None
    move_report_no: str | None
    scale_id: str | None
    reading_id: str | None = None
    override: str | None = None

    def fingerprint(self) -> str:
        """Return a hash of the fields, which does not depend on the form of the JSON."""
        # A request without the later fields has the hash that it had before there were any.
        fields = {key: value for key, value in asdict(self).items() if value is not None or key not in _LATER_FIELDS}
        return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    :raises Refusal: ``invalid_json`` or ``invalid_request``.
    """
    try:
        value = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_request", "요청 본문은 JSON 객체여야 합니다")
    return value


def parse_commit_request(body: bytes) -> CommitRequest:
    """Parse the body of a commit request.

    :raises Refusal: ``invalid_json`` or ``invalid_request``.
    """
    value = json_object(body)
    cylinder_no = _text(value, "cylinder_no")
    if cylinder_no is None:
        raise Refusal(400, "invalid_request", "cylinder_no가 필요합니다")
    event_type = value.get("event_type")
    event_type = event_type.strip() if isinstance(event_type, str) else ""
    # Other letters, such as the long s, would become ASCII ones in upper case.
    event_type = event_type.upper() if event_type.isascii() else ""
    if event_type not in _EVENT_TYPES:
        raise Refusal(400, "invalid_request", "event_type은 SHIP 또는 RETURN이어야 합니다")
    return CommitRequest(
        cylinder_no,
        event_type,
        _text(value, "arrival_shipping_no"),
        _text(value, "move_report_no"),
        _text(value, "scale_id"),
        _text(value, "reading_id"),
        _override(value.get("override")),
    )


def _override(value: Any) -> str | None:
    """Return the reason of an override; ``None`` without an override."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_request", "override: reason이 있는 객체여야 합니다")
    return reason_of(value, "override.reason")


def reason_of(value: dict[str, Any], name: str) -> str:
    """Return the field ``reason`` of an object, which must not be empty.

    :param name: name of the field for the message.
    :raises Refusal: ``invalid_request``.
    """
    reason = _text(value, "reason", _MAX_REASON, name)
    if reason is None:
        raise Refusal(400, "invalid_request", f"{name}이 필요합니다")
    return reason


def _text(value: dict[str, Any], field: str, max_length: int = _MAX_LENGTH, name: str = "") -> str | None:
    text = value.get(field)
    field = name or field
    if text is None:
        return None
    if not isinstance(text, str):
        raise Refusal(400, "invalid_request", f"{field}: 문자열이어야 합니다")
    text = text.strip()
    if len(text) > max_length:
        raise Refusal(400, "invalid_request", f"{field}: {max_length}자 이하여야 합니다")
    if _CONTROLS.search(text):
        raise Refusal(400, "invalid_request", f"{field}: 제어 문자를 포함할 수 없습니다")
    return text or None


def json_body(request: Request) -> bytes:
    """Return the body of a request; empty without one."""
    body: bytes = b"" if request.content is None else request.content.read()
    return body


def idempotency_key(request: Request, fingerprint: str) -> IdempotencyKey | None:
    """Return the Idempotency-Key of a request; ``None`` without the header.

    :param fingerprint: hash of the content of the request.

    :raises Refusal: ``invalid_request``.
    """
    headers = request.requestHeaders.getRawHeaders(b"idempotency-key", [b""])
    if len(headers) > 1:
        raise Refusal(400, "invalid_request", "Idempotency-Key: 헤더는 하나만 보낼 수 있습니다")
    try:
        key = headers[0].decode().strip()
    except UnicodeDecodeError:
        key = headers[0].decode("latin-1").strip()
    if not key:
        return None
    if len(key) > 255 or _CONTROLS.search(key):
        raise Refusal(400, "invalid_request", "Idempotency-Key: 255자 이하의 문자여야 합니다")
    return IdempotencyKey(key, fingerprint)
