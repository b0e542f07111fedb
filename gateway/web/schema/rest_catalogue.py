"""Catalogue of the REST operations: the description of each route, by the prefix and the endpoint of its app."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.web.schema.catalogue import COMMIT_EXAMPLE, LATEST_EXAMPLE, JsonSchema
from gateway.web.schema.commit_catalogue import COMMIT_LOG, CYLINDERS, IDEMPOTENCY_KEY
from gateway.web.schema.commit_fields import READING_EXAMPLE
from gateway.web.schema.operations import ContentSpec, ErrorCase, OperationSpec, csv_content, json_content, query
from gateway.web.schema.record_catalogue import RECORD_OPERATIONS
from gateway.web.schema.rest_schemas import (
    COMMIT_FIELDS,
    DETAIL_EXAMPLE,
    SCALE_ID,
    array_of,
    object_of,
    ref,
    text_of,
)
from gateway.web.schema.scale_catalogue import GUARD_ERRORS, SCALE_LIST

_UNKNOWN_SCALE: Final = ErrorCase(404, "unknown_scale", "the configuration has no such scale")
_STORE: Final = ErrorCase(503, "store_unavailable", "the store cannot take or answer the request now")

_LATEST: Final = {
    "ok": True,
    **LATEST_EXAMPLE,
    "kind": "gross",
    **READING_EXAMPLE,
    "stale": False,
    "age_ms": 120,
}

_SCALES: Final = {
    "latest": OperationSpec(
        "scales",
        "The latest stable gross weight of a scale",
        "`stale` is true once `idle_timeout_sec` has passed since `received_at`. Tare and held weights are live events "
        "only, and net ones unless the scale's `accept` has them.",
        (json_content(ref("Latest"), stable=_LATEST),),
        (query("scale_id", SCALE_ID, "The scale's id in the configuration; by default the main scale.", "default"),),
        errors=(ErrorCase(404, "no_data", "the scale has had no stable weight since the start"), _UNKNOWN_SCALE),
    ),
    "commit": OperationSpec(
        "scales",
        "Store the shipping or return of a cylinder",
        "Writes the latest weight of the scale, rounded half up to 10 g, with the fields of the body. The answer is "
        "sent after the row is on the disk. Other fields of the body are ignored.",
        (json_content(ref("Committed"), shipped=COMMIT_EXAMPLE),),
        (IDEMPOTENCY_KEY,),
        json_content(
            COMMIT_FIELDS,
            ship={"cylinder_no": "CY123456789", "event_type": "SHIP"},
            return_={
                "cylinder_no": "CY123456789",
                "event_type": "RETURN",
                "move_report_no": "MR-20251218-7",
                "scale_id": "default",
            },
        ),
        (
            ErrorCase(400, "invalid_json", "the body is not JSON"),
            ErrorCase(
                400, "invalid_request", "a field is missing, of the wrong type or too long", "cylinder_no가 필요합니다"
            ),
            ErrorCase(400, "no_stable_weight", "the scale has no stable weight yet"),
            _UNKNOWN_SCALE,
            *GUARD_ERRORS,
            ErrorCase(409, "rejected_by_database", "the database will always refuse this row; nothing was written"),
            ErrorCase(422, "idempotency_conflict", "the key was used for another request"),
            _STORE,
            ErrorCase(504, "outcome_unknown", "the row may have been written: the same request with its key tells"),
        ),
    ),
}

_DAY: Final = {"type": "string", "format": "date"}
_START: Final = query("start", _DAY, "First day.", "2025-12-18", required=True)
_END: Final = query("end", _DAY, "Last day, included.", "2025-12-18", required=True)
_MACHINE: Final = query(
    "machine", {"type": "string"}, "Name of the machine; one without data gives `[]`.", "ShotBlast", required=True
)
_DETAIL: Final = query("detail", {"type": "boolean"}, "Whether each mean has further figures; also `1` and `0`.", True)

_MEAN: Final = {"name": "shot_blast_vib1_hour_avg", "time": "2025-12-18 10:00:00", "data": 0.734}
_ANOMALY: Final = {"name": "ShotBlast", "time": "2025-12-18 10:11:12.123456", "score": 1.5, "threshold": 1.0}

_INVALID_QUERY: Final[Mapping[int, Mapping[str, Any]]] = {
    422: {
        "description": "A parameter is missing or not valid; the list of errors is the old server's.",
        "content": {
            "application/json": {
                "schema": ref("InvalidQuery"),
                "example": {
                    "detail": [{"type": "missing", "loc": ["query", "start"], "msg": "Field required", "input": None}]
                },
            }
        },
    }
}

_ANOMALIES: Final = (
    json_content(array_of("Fault"), anomalies=[_ANOMALY]),
    csv_content("name,time,score,threshold", "ShotBlast,2025-12-18 10:11:12.123456,1.5,1.0"),
)


def _machine_list(name: str) -> ContentSpec:
    return json_content(
        object_of(machine_list={"type": "array", "items": {"type": "string"}}), machines={"machine_list": [name]}
    )


_STATISTICS: Final = {
    "machines": OperationSpec(
        "machines", "Every machine with stored data", "", (_machine_list("ShotBlast"),), errors=(_STORE,)
    ),
    "means": OperationSpec(
        "machines",
        "Means of a machine's sensors",
        "By sensor, and in ascending order of time. The current period is not included. Large answers are sent page by "
        "page, as fast as the client reads.",
        (
            json_content(
                {"anyOf": [array_of("Mean"), array_of("DetailedMean")]}, means=[_MEAN], detail=[DETAIL_EXAMPLE]
            ),
            csv_content("name,time,data", "shot_blast_vib1_hour_avg,2025-12-18 10:00:00,0.734"),
        ),
        (_MACHINE, _START, _END, _DETAIL),
        errors=(_STORE,),
        others=_INVALID_QUERY,
    ),
    "anomalies": OperationSpec(
        "machines",
        "Anomalies of one machine",
        "In ascending order of time.",
        _ANOMALIES,
        (_MACHINE, _START, _END),
        errors=(_STORE,),
        others=_INVALID_QUERY,
    ),
    "all_anomalies": OperationSpec(
        "machines",
        "Anomalies of all machines",
        "Newest first.",
        _ANOMALIES,
        (_START, _END),
        errors=(_STORE,),
        others=_INVALID_QUERY,
    ),
}

_CONNECTED: Final = {
    "machines": OperationSpec(
        "machines", "The connected machines", "Each with a slash before its name.", (_machine_list("/ShotBlast"),)
    )
}

_POINT: Final = {"time": "2025-12-18T10:00:00.000+09:00", "min": -2.5, "max": 3.25, "count": 108}

#: Times without an offset are those of the gateway's wall clock.
_MOMENT: Final = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}

_SAMPLES: Final = {
    "samples": OperationSpec(
        "machines",
        "Raw samples of a sensor for a plot",
        "The range is divided into `max_points` intervals; each interval with samples gives a point with its extremes. "
        "An error after the first points closes the connection.",
        (
            json_content(
                ref("Samples"),
                points={
                    "machine": "ShotBlast",
                    "sensor": "vib1",
                    "from": "2025-12-18T10:00:00+09:00",
                    "to": "2025-12-18T11:00:00+09:00",
                    "points": [_POINT],
                },
            ),
            csv_content("time,min,max,count", "2025-12-18T10:00:00.000+09:00,-2.5,3.25,108"),
        ),
        (
            {
                "name": "machine",
                "in": "path",
                "required": True,
                "description": "Name of the machine.",
                "schema": ref("Name"),
                "example": "ShotBlast",
            },
            query("sensor", ref("Name"), "Name of the sensor.", "vib1", required=True),
            query(
                "from",
                _MOMENT,
                "Start, ISO 8601; the wall clock's without an offset. By default one hour before `to`.",
                "2025-12-18T10:00:00+09:00",
            ),
            query(
                "to",
                _MOMENT,
                "End, at most 31 days after `from`; a date alone means its end. By default the end of this second.",
                "2025-12-18T11:00:00+09:00",
            ),
            query(
                "max_points",
                {"type": "integer", "minimum": 1, "maximum": 100_000, "default": 1000},
                "Maximum number of points.",
                1000,
            ),
        ),
        errors=(
            ErrorCase(400, "invalid_request", "a parameter is wrong; the message names it", "sensor가 필요합니다"),
            ErrorCase(404, "unknown_sensor", "there are no raw files of this sensor"),
            ErrorCase(500, "unreadable_file", "a raw file cannot be read; the log names it"),
            ErrorCase(503, "busy", "32 such answers are already being sent"),
        ),
    )
}

_STATUS: Final = {
    "index": OperationSpec(
        "gateway",
        "The paths of the gateway",
        "",
        (
            json_content(
                object_of(
                    name={"const": "cynow-gateway"},
                    version=text_of("Of the gateway."),
                    paths={"type": "array", "items": {"type": "string"}},
                ),
                paths={"name": "cynow-gateway", "version": "0.1.0", "paths": ["/api/scale-gateway/latest/"]},
            ),
        ),
    ),
    "health": OperationSpec(
        "gateway",
        "The state of the daemon",
        "The status is 200 while the daemon works; `ok` is false if a part of it does not work as it should. During a "
        "start the answer waits until the recovery is done.",
        (
            json_content(
                ref("Health"),
                well={"ok": True, "problems": [], "version": "0.1.0", "scales": {"default": True}, "machines": 1},
            ),
        ),
    ),
    "ready": OperationSpec(
        "gateway",
        "The readiness of each part",
        "The status is 503 if a part is down that the plant cannot do without. Without the scope `read` the answer has "
        "`ok` and `state` only.",
        (
            json_content(
                ref("Readiness"),
                open={"ok": True, "state": "ready"},
                degraded={
                    "ok": True,
                    "state": "degraded",
                    "parts": {"scales": {"state": "degraded", "details": ["scale dock-1 is not connected"]}},
                },
            ),
        ),
        others={
            503: {
                "description": "A part is down that the plant cannot do without.",
                "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
                "content": {
                    "application/json": {"schema": ref("Readiness"), "example": {"ok": False, "state": "down"}}
                },
            }
        },
    ),
    "metrics": OperationSpec(
        "gateway",
        "Metrics for Prometheus",
        "",
        (
            ContentSpec(
                "text/plain",
                {"type": "string"},
                {"metrics": "# TYPE cynow_scale_readings_total counter\n"},
            ),
        ),
    ),
}

_ANY_OBJECT: Final[JsonSchema] = {"type": "object"}

_DESCRIPTION: Final = {
    "openapi": OperationSpec(
        "gateway",
        "This document",
        "OpenAPI 3.1. `/docs` shows it, and sends requests.",
        (json_content(_ANY_OBJECT, document={"openapi": "3.1.0"}),),
    )
}

#: By prefix and endpoint of an app: the description of its operation.
OPERATIONS: Final[Mapping[str, Mapping[str, OperationSpec]]] = {
    "/api": _SCALES,
    "/api/v1/scales": SCALE_LIST,
    "/stat": _STATISTICS,
    "/sio": _CONNECTED,
    "/api/v1/machines": _SAMPLES,
    "/api/v1/commits": COMMIT_LOG,
    "/api/v1/cylinders": CYLINDERS,
    "/api/v1/record": RECORD_OPERATIONS,
    "/openapi.json": _DESCRIPTION,
    "": _STATUS,
}
