"""Catalogue of the REST operations on heads of the record."""

from typing import Final

from gateway.web.schema.operations import ErrorCase, OperationSpec, json_content
from gateway.web.schema.rest_schemas import object_of, ref, text_of

_HASH: Final = "8d74beec1be996322ad76813bafb92d40839895d6dd7ee808b17ca201eac98be"
_HEAD: Final = f"dock-1:1234:{_HASH}"

_HEAD_TEXT: Final = text_of("The gateway's name, the number and the hash, with colons between them.")

RECORD_OPERATIONS: Final = {
    "head": OperationSpec(
        "record",
        "The head of the record",
        "The number and the hash of the last entry. Keep it where nobody can change it together with the record: "
        "`cynow-gateway audit --against` verifies the record against it. An empty record has the number 0.",
        (
            json_content(
                object_of(
                    ok={"const": True},
                    gateway=text_of("Name of the gateway in heads."),
                    number={"type": "integer", "minimum": 0},
                    hash={"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    head=_HEAD_TEXT,
                    time=ref("Time"),
                ),
                head={
                    "ok": True,
                    "gateway": "dock-1",
                    "number": 1234,
                    "hash": _HASH,
                    "head": _HEAD,
                    "time": "2025-12-18T10:11:12+09:00",
                },
            ),
        ),
        errors=(ErrorCase(503, "store_unavailable", "the record cannot be read now"),),
    ),
    "heads": OperationSpec(
        "record",
        "Store the head of another gateway",
        "The last head of each gateway is kept, and each received head is logged.",
        (json_content(object_of(ok={"const": True}, head=_HEAD_TEXT), stored={"ok": True, "head": _HEAD}),),
        body=json_content(
            {
                "type": "object",
                "properties": {
                    "head": {
                        "type": "string",
                        "maxLength": 400,
                        "pattern": r"^[^\s\"'<>\\\x00-\x1f\x7f-\x9f]{1,255}:[1-9][0-9]{0,17}:[0-9a-f]{64}$",
                    }
                },
                "required": ["head"],
            },
            head={"head": _HEAD},
        ),
        errors=(
            ErrorCase(400, "invalid_json", "the body is not JSON"),
            ErrorCase(400, "invalid_request", "`head` is missing or not a head", "head가 필요합니다"),
            ErrorCase(
                409,
                "head_conflict",
                "the number is smaller than that of the stored head, or has another hash",
                "이미 받은 기록 헤드와 맞지 않습니다",
            ),
            ErrorCase(
                409,
                "too_many_gateways",
                "heads of 1,000 other gateways are stored",
                "더 이상 다른 게이트웨이의 헤드를 저장할 수 없습니다",
            ),
            ErrorCase(503, "store_unavailable", "the head cannot be stored now"),
        ),
    ),
}
