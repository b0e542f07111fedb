"""Schemas of the REST answers and bodies: JSON Schema 2020-12, as in OpenAPI 3.1."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.web.schema.catalogue import SCHEMAS, JsonSchema
from gateway.web.schema.commit_fields import COMMIT_DETAILS, READING_FIELDS, VERDICT


def ref(name: str) -> JsonSchema:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def array_of(name: str) -> JsonSchema:
    """Return the schema of a list of a named schema."""
    return {"type": "array", "items": ref(name)}


def text_of(description: str) -> JsonSchema:
    """Return the schema of a text with a description."""
    return {"type": "string", "description": description}


def object_of(**properties: JsonSchema) -> JsonSchema:
    """Return the schema of an object with all of these keys, and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


#: Characters that a field may have: no control characters.
_PRINTABLE: Final = r"[^\x00-\x1f\x7f-\x9f]"

_OPTIONAL: Final = {"type": ["string", "null"], "maxLength": 50, "pattern": f"^{_PRINTABLE}*$"}

SCALE_ID: Final = {"type": "string"}

#: Object with the reason for an override, or for undoing a commit.
REASON: Final = {
    "type": "object",
    "properties": {
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 200,
            "pattern": rf"^{_PRINTABLE}*[!-~가-힣]{_PRINTABLE}*$",
        }
    },
    "required": ["reason"],
}

#: Body of a commit.
COMMIT_FIELDS: Final = {
    "type": "object",
    "properties": {
        "cylinder_no": {
            "type": "string",
            "minLength": 1,
            "maxLength": 50,
            "pattern": rf"^{_PRINTABLE}*[!-~가-힣]{_PRINTABLE}*$",
            "description": "Number of the cylinder.",
        },
        "event_type": {
            "type": "string",
            "pattern": "^([Ss][Hh][Ii][Pp]|[Rr][Ee][Tt][Uu][Rr][Nn])$",
            "description": "SHIP (출하) or RETURN (회수), in any case.",
        },
        "arrival_shipping_no": {**_OPTIONAL, "description": "Number of the shipping that the cylinder came with."},
        "move_report_no": {**_OPTIONAL, "description": "Number of the report of the movement."},
        "scale_id": {**_OPTIONAL, "description": "Scale; by default the main one."},
        "reading_id": {**_OPTIONAL, "description": "The reading that the operator saw, from `latest`."},
        "override": {
            "anyOf": [
                {"type": "null"},
                REASON,
            ],
            "description": "Reason for passing guards, where `override: true` is configured for the scale.",
        },
    },
    "required": ["cylinder_no", "event_type"],
}

_WALL_SECOND: Final = {
    "type": "string",
    "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$",
    "description": "Start of the period by the wall clock.",
}

_MEAN: Final[Mapping[str, JsonSchema]] = {
    "name": text_of("Table of the sensor's means, such as shot_blast_vib1_hour_avg."),
    "time": _WALL_SECOND,
    "data": {"type": ["number", "null"], "description": "Mean; null where the sum of the samples exceeds a double."},
}

_FIGURE: Final = {"type": ["number", "null"]}
_SECOND: Final = {"type": ["string", "null"]}

_DETAIL: Final[Mapping[str, JsonSchema]] = {
    "count": {"type": ["integer", "null"], "description": "Number of samples; null in rows of the old server."},
    "min": _FIGURE,
    "min_time": _SECOND,
    "max": _FIGURE,
    "max_time": _SECOND,
    "rms": {**_FIGURE, "description": "Root mean square."},
    "std": {**_FIGURE, "description": "Standard deviation."},
    "coverage": {**_FIGURE, "description": "Share of the minutes with samples, 0 to 1."},
    "start": {**_SECOND, "description": "Start of the period with its offset."},
}

DETAIL_EXAMPLE: Final = {
    "name": "shot_blast_vib1_hour_avg",
    "time": "2025-12-18 10:00:00",
    "data": 0.734,
    "count": 108000,
    "min": -3.91,
    "min_time": "2025-12-18 10:11:53",
    "max": 4.02,
    "max_time": "2025-12-18 10:30:07",
    "rms": 0.91,
    "std": 0.91,
    "coverage": 1.0,
    "start": "2025-12-18T10:00:00+09:00",
}

_COMMITTED_FIELDS: Final = object_of(
    ok={"const": True},
    id={"type": ["integer", "null"], "minimum": 1, "description": "Of the row; null while it waits as a ticket."},
    cylinder_no={"type": "string"},
    event_type={"enum": ["SHIP", "RETURN"]},
    gross_kg=ref("Kilograms"),
    committed_at=ref("Time"),
)
_COMMITTED: Final = {
    **_COMMITTED_FIELDS,
    "properties": {**_COMMITTED_FIELDS["properties"], **COMMIT_DETAILS},
}

#: Schemas of the live events that REST answers have too.
_SHARED: Final = ("Name", "Time", "WallTime", "Kilograms", "Score", "Threshold", "Fault")

_NUMBER: Final = {"type": ["number", "null"]}
_WHOLE: Final = {"type": ["integer", "null"]}
_WORDS: Final = {"type": ["string", "null"]}

#: Fields of a commit in the log; null where they are not known.
_LOGGED: Final[Mapping[str, JsonSchema]] = {
    "id": {**_WHOLE, "description": "Of the row in scale_weight_log; null while the commit waits as a ticket."},
    "ticket": {**_WORDS, "description": "Ticket that the commit waits or waited as."},
    "scale_id": {"type": "string"},
    "cylinder_no": {"type": "string"},
    "event_type": text_of("SHIP (출하) or RETURN (회수)."),
    "gross_kg": ref("Kilograms"),
    "raw_line": text_of("The line of the scale."),
    "received_at": ref("Time"),
    "committed_at": ref("Time"),
    "arrival_shipping_no": _WORDS,
    "move_report_no": _WORDS,
    "by": {**_WORDS, "description": "Name of the token that committed, or operator."},
    "override": {**_WORDS, "description": "Reason that was given for passing guards."},
    "warnings": {"type": ["array", "null"], "items": {"type": "string"}},
    "undo_of": {**_WHOLE, "description": "Id of the commit that this one undoes."},
    "undone_by": {**_WHOLE, "description": "Id of the commit that undoes this one."},
    "reason": {**_WORDS, "description": "Reason of an undo."},
    "tare_kg": _NUMBER,
    "net_kg": _NUMBER,
    "remaining_kg": _NUMBER,
    "checked": {"type": ["boolean", "null"], "description": "Whether the master data were asked."},
}

#: Named schemas of the document.
REST_SCHEMAS: Final[Mapping[str, Any]] = {
    **{name: SCHEMAS[name] for name in _SHARED},
    "Error": object_of(
        ok={"const": False},
        error=text_of("For programs."),
        message=text_of("For people, mostly in Korean."),
    ),
    "InvalidQuery": object_of(
        detail={
            "type": "array",
            "minItems": 1,
            "items": object_of(
                type=text_of("Kind of the error, such as missing."),
                loc={"type": "array", "items": {"type": "string"}},
                msg={"type": "string"},
                input={"type": ["string", "null"]},
            ),
        }
    ),
    "Latest": object_of(
        ok={"const": True},
        scale_id=ref("Name"),
        status={"const": "ST"},
        weight=ref("Kilograms"),
        raw=text_of("The line as received, without framing."),
        received_at=ref("Time"),
        stale={"type": "boolean"},
        age_ms={"type": "integer", "minimum": 0, "description": "Age of the weight in milliseconds."},
        kind={"enum": ["gross", "net"]},
        **READING_FIELDS,
    ),
    "Committed": _COMMITTED,
    "ScaleState": object_of(
        scale_id=ref("Name"),
        connected={"type": "boolean"},
        is_local={"type": "boolean", "description": "Whether it is a scale of this gateway, not of another one."},
        peer={"type": ["string", "null"], "description": "Address or device of its connection."},
        last_line_age_sec={"type": ["number", "null"], "minimum": 0},
        silent={"type": "boolean", "description": "Whether it is connected and has sent no line for too long."},
        latest={"type": ["object", "null"], "description": "The latest weight, as in the reading event."},
        commit=VERDICT,
        is_armed={"type": ["boolean", "null"], "description": "Whether it was empty since its last commit."},
        passport={"type": ["object", "null"], "description": "Last check, zero drift and noise, due dates."},
    ),
    "CommitFields": object_of(**_LOGGED),
    "LoggedCommit": object_of(ok={"const": True}, **_LOGGED),
    "CommitPage": object_of(ok={"const": True}, commits=array_of("CommitFields"), next=_WORDS),
    "Undone": object_of(
        ok={"const": True},
        id={"type": "integer", "minimum": 1},
        cylinder_no={"type": "string"},
        event_type={"enum": ["SHIP", "RETURN"]},
        gross_kg=ref("Kilograms"),
        committed_at=ref("Time"),
        undo_of={"type": "integer", "minimum": 1},
    ),
    "Cylinder": object_of(
        ok={"const": True},
        cylinder_no={"type": "string"},
        master={"type": ["object", "null"]},
        commits=array_of("CommitFields"),
        balance={"type": ["object", "null"]},
    ),
    "Mean": object_of(**_MEAN),
    "DetailedMean": object_of(**_MEAN, **_DETAIL),
    "Samples": object_of(
        **{
            "machine": {"type": "string"},
            "sensor": {"type": "string"},
            "from": ref("Time"),
            "to": ref("Time"),
            "points": {
                "type": "array",
                "items": object_of(
                    time=ref("Time"),
                    min={"type": ["number", "null"]},
                    max={"type": ["number", "null"]},
                    count={"type": "integer", "minimum": 1},
                ),
            },
        }
    ),
    "Readiness": {
        "type": "object",
        "required": ["ok", "state"],
        "properties": {
            "ok": {"type": "boolean"},
            "state": ref("ReadyState"),
            "parts": {
                "type": "object",
                "additionalProperties": object_of(
                    state=ref("ReadyState"), details={"type": "array", "items": {"type": "string"}}
                ),
            },
        },
    },
    "ReadyState": {"enum": ["ready", "degraded", "down"]},
    "Health": object_of(
        ok={"type": "boolean"},
        problems={"type": "array", "items": {"type": "string"}},
        version={"type": "string"},
        scales={"type": "object", "additionalProperties": {"type": "boolean"}},
        machines={"type": "integer", "minimum": 0},
    ),
}
