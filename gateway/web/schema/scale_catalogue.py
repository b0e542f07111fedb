"""Catalogue of the REST operations on the state of scales, and the refusals of guards."""

from typing import Any, Final

from gateway.web.schema.commit_fields import READING_EXAMPLE
from gateway.web.schema.operations import ErrorCase, OperationSpec, json_content
from gateway.web.schema.rest_schemas import array_of, object_of, ref
from gateway.weighing.messages import refusal


def _case(name: str, reason: str, **values: Any) -> ErrorCase:
    verdict = refusal(name, **values)
    return ErrorCase(409, verdict.error or "", reason, verdict.message)


#: Refusals of the guards of a commit, in the order in which they are answered.
GUARD_ERRORS: Final = (
    _case("only_net", "the scale sends net weights only, and its `accept` has gross only"),
    _case("stale_weight", "the weight is older than `commit_max_age_sec`"),
    _case("negative_weight", "the weight is below zero", weight="-53.26"),
    _case("reading_changed", "the scale does not show the `reading_id` any more"),
    _case("weight_out_of_range", "the weight or its unit is outside the range", weight="900", range="0.5~150 kg"),
    _case("unstable", "the weight has not been stable for `require_stable_ms`, or the scale is not connected"),
    _case("not_rearmed", "the scale has not been empty since its last commit"),
    _case("out_of_control", "the last check with a reference weight was outside the limits"),
    _case("duplicate", "the same commit was made within `duplicate_window_sec`; the message names its id", id=122),
    ErrorCase(409, "implausible_weight", "the weight is not that of a full cylinder"),
    ErrorCase(409, "cylinder_blocked", "the cylinder is blocked, or its test is overdue"),
    _case("override_not_allowed", "a reason was given, and the scale does not take reasons"),
)

_CHECK: Final[dict[str, Any]] = {
    "at": "2025-12-18T08:00:00+09:00",
    "nominal_kg": 20.0,
    "shown_kg": 20.01,
    "deviation_kg": 0.01,
    "by": "operator",
}

_PASSPORT: Final = {
    "state": "good",
    "last_check": _CHECK,
    "zero_drift_kg": 0.002,
    "zero_noise_kg": 0.004,
    "calibration_due": "2026-06-30",
    "warnings": [],
}

_STATE: Final = {
    "scale_id": "default",
    "connected": True,
    "is_local": True,
    "peer": "192.0.2.17:50312",
    "last_line_age_sec": 0.12,
    "silent": False,
    "latest": None,
    "commit": READING_EXAMPLE["commit"],
    "is_armed": True,
    "passport": _PASSPORT,
}

_SCALES: Final = object_of(ok={"const": True}, scales=array_of("ScaleState"))

_SCALE: Final = {
    "name": "scale_id",
    "in": "path",
    "required": True,
    "description": "Id of the scale.",
    "schema": ref("Name"),
    "example": "default",
}

_UNKNOWN_SCALE: Final = ErrorCase(404, "unknown_scale", "the configuration has no such scale")

#: Operations of ``/api/v1/scales``.
SCALE_LIST: Final = {
    "scales": OperationSpec(
        "scales",
        "The state of all scales",
        "Connection, latest weight, what a commit would be answered now, and the passport of each.",
        (
            json_content(
                object_of(ok={"const": True}, scales=array_of("ScaleState")), one={"ok": True, "scales": [_STATE]}
            ),
        ),
    ),
    "scale": OperationSpec(
        "scales",
        "The state of one scale",
        "",
        (json_content({"type": "object"}, state={"ok": True, **_STATE}),),
        (_SCALE,),
        errors=(_UNKNOWN_SCALE,),
    ),
    "check_weigh": OperationSpec(
        "scales",
        "Check a scale with a reference weight",
        "The weight must stand on the scale, stable. The deviation is compared with the limits of `check_weigh`; the "
        "outcome is in the passport of the scale, and survives a restart.",
        (
            json_content(
                {"type": "object"},
                good={"ok": True, "scale_id": "default", **_CHECK, "state": "good", "warnings": []},
            ),
        ),
        (_SCALE,),
        json_content(
            {
                "type": "object",
                "properties": {
                    "nominal_kg": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "maximum": 100_000,
                        "description": "Mass of the reference weight in kilograms.",
                    }
                },
                "required": ["nominal_kg"],
            },
            weight={"nominal_kg": 20.0},
        ),
        (
            ErrorCase(400, "invalid_json", "the body is not JSON"),
            ErrorCase(400, "invalid_request", "nominal_kg is missing or not valid", "nominal_kg: 숫자여야 합니다"),
            _UNKNOWN_SCALE,
            _case("no_stable_weight", "the scale has no stable weight yet"),
            _case("only_net", "the scale sends net weights only"),
            _case("stale_weight", "the weight is older than `commit_max_age_sec`"),
            _case("negative_weight", "the weight is below zero", weight="-53.26"),
            _case("unstable", "the scale is not stable, or not connected"),
            ErrorCase(409, "other_gateway", "the scale is connected to another gateway; ask that one"),
            ErrorCase(503, "store_unavailable", "the record cannot take the outcome now"),
        ),
    ),
}
