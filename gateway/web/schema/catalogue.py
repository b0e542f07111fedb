"""Catalogue of the messages of the live interfaces: the source of ``/asyncapi.json``, and of the page on events.

Schemas are JSON Schema, draft 7, as in AsyncAPI. The schema of a message from the gateway lists its exact keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from gateway.web.schema.commit_fields import COMMIT_DETAILS, READING_EXAMPLE, READING_FIELDS, VERDICT

JsonSchema: TypeAlias = Mapping[str, Any]


def _ref(name: str) -> JsonSchema:
    """Return a reference to a schema of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: JsonSchema) -> JsonSchema:
    """Return the schema of an object with all of these keys, and no other."""
    return _object_with({}, properties)


def _object_with(optional: Mapping[str, JsonSchema], required: Mapping[str, JsonSchema]) -> JsonSchema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _each_sensor(schema: JsonSchema) -> JsonSchema:
    """Return the schema of an object whose keys are names of sensors."""
    return {"type": "object", "propertyNames": _ref("Name"), "additionalProperties": schema}


#: Schemas of the parts of messages, by name.
SCHEMAS: Final[Mapping[str, JsonSchema]] = {
    "Name": {
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "pattern": "^[^/]+$",
        "description": "Of a scale, a machine or a sensor: letters and digits of any script, blanks and _ - . :",
    },
    "Seq": {
        "type": "integer",
        "minimum": 0,
        "description": "The number of an event: rises by one an event on the whole gateway, and never goes back.",
    },
    "Time": {
        "type": "string",
        "format": "date-time",
        "description": "RFC 3339, with the offset of the configured time zone.",
    },
    "WallTime": {
        "type": "string",
        "pattern": r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$",
        "description": "The wall clock of the configured time zone.",
    },
    "Kilograms": {"type": "number"},
    "Topics": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "pattern": r"^((scale|machine|\*)/[^/]+|(machine|\*)/[^/]+/(samples|\*))$"},
        "description": "* stands for one whole segment. A client may follow 1,000 topics.",
    },
    "Reading": _object(
        scale_id=_ref("Name"),
        status={"enum": ["ST", "US", "HD", "OL"], "description": "Stable, unstable, hold, overload."},
        weight={"anyOf": [_ref("Kilograms"), {"type": "null"}], "description": "null for an overload."},
        raw={"type": "string", "description": "The line as received, without framing."},
        received_at=_ref("Time"),
        kind={"enum": ["gross", "net", "tare", "hold"]},
        **READING_FIELDS,
    ),
    "Commit": _object_with(
        COMMIT_DETAILS,
        {
            "ok": {"const": True},
            "id": {"type": "integer", "minimum": 1, "description": "Of the row in scale_weight_log."},
            "cylinder_no": {"type": "string", "minLength": 1, "maxLength": 50},
            "event_type": {"enum": ["SHIP", "RETURN"]},
            "gross_kg": _ref("Kilograms"),
            "committed_at": _ref("Time"),
            "scale_id": _ref("Name"),
        },
    ),
    "ScalePresence": _object(scale_id=_ref("Name")),
    "ScaleSilence": _object(scale_id=_ref("Name"), silent={"type": "boolean"}),
    "ScaleSnapshot": _object(
        latest={"anyOf": [_ref("Reading"), {"type": "null"}], "description": "The latest stable gross weight."},
        connected={"type": "boolean"},
        commit=VERDICT,
    ),
    "Update": _object(
        sensor_name=_ref("Name"),
        data={"type": "number", "description": "The mean of the minute."},
        time={"allOf": [_ref("WallTime")], "description": "The end of the minute."},
    ),
    "RecentUpdates": {
        "type": "array",
        "maxItems": 60,
        "items": _ref("Update"),
        "description": "The last updates of one sensor, oldest first.",
    },
    "Score": {"type": "number", "description": "An anomaly is stored where it is above the threshold."},
    "Threshold": {"type": "number"},
    "Fault": _object(name=_ref("Name"), time=_ref("WallTime"), score=_ref("Score"), threshold=_ref("Threshold")),
    "FaultScore": _object(score=_ref("Score"), threshold=_ref("Threshold")),
    "MachinePresence": _object(machine=_ref("Name")),
    "MachineSnapshot": _object(connected={"type": "boolean"}, sensors=_each_sensor(_ref("RecentUpdates"))),
    "Samples": _each_sensor(
        _object(
            type={"type": "string", "maxLength": 64, "description": "The DAQ program's word, such as VIB or TEMP."},
            data={"type": "array", "items": {"type": "number"}, "description": "Oldest first."},
        )
    ),
}


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One message of a channel.

    :ivar key: key that is unique in the channel.
    :ivar name: name of the event, or ``type`` of the message.
    :ivar summary: description in one sentence.
    :ivar schema: schema of the whole message; in Socket.IO, of the event's only argument.
    :ivar by_client: whether a client sends it, not the gateway.
    :ivar answers: keys of the possible answers to it.
    """

    key: str
    name: str
    summary: str
    schema: JsonSchema
    example: Any
    by_client: bool = False
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """The variable part of a channel's address."""

    name: str
    summary: str
    example: str


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """Messages of a connection, a topic or a namespace.

    :ivar address: address with its parameter in braces; ``None`` for the connection itself.
    :ivar servers: keys of the servers that have the channel: ``ws``, ``events``, ``socketio``.
    """

    key: str
    address: str | None
    summary: str
    servers: tuple[str, ...]
    messages: tuple[MessageSpec, ...]
    parameter: ParameterSpec | None = None


@dataclass(frozen=True, slots=True)
class _Topic:
    """Common parts of the events of a topic."""

    address: str
    parameter: ParameterSpec

    @property
    def pattern(self) -> str:
        before, _, after = self._parts()
        return f"^{before}[^/]+{after}$"

    @property
    def example(self) -> str:
        before, _, after = self._parts()
        return f"{before}{self.parameter.example}{after}"

    def _parts(self) -> tuple[str, str, str]:
        return self.address.partition("{" + self.parameter.name + "}")

    def channel(self, key: str, summary: str, *messages: MessageSpec) -> ChannelSpec:
        return ChannelSpec(key, self.address, summary, ("ws", "events"), messages, self.parameter)

    def event(
        self, name: str, summary: str, data: str, example: Any, seq: int, time: str = "2025-12-18T10:11:12.123+09:00"
    ) -> MessageSpec:
        """Return the specification of an event.

        :param data: name of the schema of its data.
        :param example: example of its data.
        """
        schema = _object(
            type={"const": "event"},
            seq=_ref("Seq"),
            topic={"type": "string", "pattern": self.pattern},
            event={"const": name},
            data=_ref(data),
            time=_ref("Time"),
        )
        whole = {"type": "event", "seq": seq, "topic": self.example, "event": name, "data": example, "time": time}
        return MessageSpec(name, name, summary, schema, whole)


def _request(name: str, summary: str, example: Mapping[str, Any], **optional: JsonSchema) -> MessageSpec:
    """Return the specification of a client's request; further keys of the request are ignored."""
    schema = {
        "type": "object",
        "properties": {"type": {"const": name}, "topics": _ref("Topics"), **optional},
        "required": ["type", "topics"],
    }
    return MessageSpec(
        name, name, summary, schema, {"type": name, **example}, by_client=True, answers=(f"{name}d", "error")
    )


def _answer(
    name: str,
    summary: str,
    example: Mapping[str, Any],
    optional: Mapping[str, JsonSchema] | None = None,
    **rest: JsonSchema,
) -> MessageSpec:
    schema = _object_with(optional or {}, {"type": {"const": name}, **rest})
    return MessageSpec(name, name, summary, schema, {"type": name, **example})


#: Examples that answers of the REST interface have in common with events.
LATEST_EXAMPLE: Final = {
    "scale_id": "default",
    "status": "ST",
    "weight": 53.26,
    "raw": "ST , +000053.26 _kg",
    "received_at": "2025-12-18T10:11:12+09:00",
}
COMMIT_EXAMPLE: Final = {
    "ok": True,
    "id": 123,
    "cylinder_no": "CY123456789",
    "event_type": "SHIP",
    "gross_kg": 53.26,
    "committed_at": "2025-12-18T10:11:12+09:00",
}

_READING: Final = {**LATEST_EXAMPLE, "kind": "gross", **READING_EXAMPLE}
_COMMIT: Final = {**COMMIT_EXAMPLE, "scale_id": "default"}
_BEFORE: Final = {"sensor_name": "vib1", "data": 0.731, "time": "2025-12-18 10:11:00.000000"}
_UPDATE: Final = {"sensor_name": "vib1", "data": 0.734, "time": "2025-12-18 10:12:00.000000"}
_SCORE: Final = {"score": 1.5, "threshold": 1.0}
_FAULT: Final = {"name": "ShotBlast", "time": "2025-12-18 10:11:12.123456", **_SCORE}

_SCALE_NAMED: Final = {"scale_id": "default"}
_MACHINE_NAMED: Final = {"machine": "ShotBlast"}

_MACHINE_NAME: Final = ParameterSpec("name", "The machine's name; it may not have connected yet.", "ShotBlast")

_SCALE: Final = _Topic("scale/{id}", ParameterSpec("id", "The scale's id in the configuration.", "default"))
_MACHINE: Final = _Topic("machine/{name}", _MACHINE_NAME)
_SAMPLES: Final = _Topic("machine/{name}/samples", _MACHINE_NAME)

#: All channels, in the order of the documentation.
CHANNELS: Final = (
    ChannelSpec(
        "connection",
        None,
        "What a client and the gateway say to each other on a WebSocket beside events.",
        ("ws",),
        (
            _request(
                "subscribe",
                "Follow topics, beside those that are followed already.",
                {"topics": ["scale/default", "machine/*"], "since": 1234},
                since={
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "description": "The seq of the last event that the client has.",
                },
            ),
            _request("unsubscribe", "Follow topics no more, named as they were.", {"topics": ["machine/*"]}),
            _answer(
                "subscribed",
                "The topics are followed.",
                {"topics": ["scale/default", "machine/*"], "seq": 1300, "recovered": True},
                optional={
                    "recovered": {
                        "type": "boolean",
                        "description": "With since: whether the missed events follow, or the present state.",
                    }
                },
                topics=_ref("Topics"),
                seq=_ref("Seq"),
            ),
            _answer(
                "unsubscribed",
                "The topics are followed no more.",
                {"topics": ["machine/*"]},
                topics=_ref("Topics"),
            ),
            _answer(
                "error",
                "A message was refused, and nothing of it was done; the connection lives on.",
                {"error": "invalid_request", "message": "topics are missing"},
                error={"const": "invalid_request"},
                message={"type": "string"},
            ),
        ),
    ),
    _SCALE.channel(
        "scale",
        "One scale.",
        _SCALE.event(
            "snapshot",
            "The present state, on subscribing.",
            "ScaleSnapshot",
            {"latest": _READING, "connected": True, "commit": READING_EXAMPLE["commit"]},
            1300,
        ),
        _SCALE.event("reading", "A line of the scale.", "Reading", _READING, 1301),
        _SCALE.event("commit", "A weight was written to the database.", "Commit", _COMMIT, 1302),
        _SCALE.event("connected", "The scale's first connection was made.", "ScalePresence", _SCALE_NAMED, 1303),
        _SCALE.event("disconnected", "The scale's last connection ended.", "ScalePresence", _SCALE_NAMED, 1304),
        _SCALE.event(
            "silent",
            "The connected scale has sent no line for its idle time-out, or has sent one again.",
            "ScaleSilence",
            {**_SCALE_NAMED, "silent": True},
            1310,
        ),
    ),
    _MACHINE.channel(
        "machine",
        "One machine.",
        _MACHINE.event(
            "snapshot",
            "The present state, on subscribing.",
            "MachineSnapshot",
            {"connected": True, "sensors": {"vib1": [_BEFORE, _UPDATE]}},
            1300,
        ),
        _MACHINE.event(
            "update", "The mean of a sensor over a minute.", "Update", _UPDATE, 1305, "2025-12-18T10:12:00.204+09:00"
        ),
        _MACHINE.event("anomaly", "A fault detection, above its threshold or not.", "Fault", _FAULT, 1306),
        _MACHINE.event("connected", "The machine has connected.", "MachinePresence", _MACHINE_NAMED, 1307),
        _MACHINE.event("disconnected", "The machine's connection ended.", "MachinePresence", _MACHINE_NAMED, 1308),
    ),
    _SAMPLES.channel(
        "samples",
        "The samples of one machine.",
        _SAMPLES.event(
            "samples",
            "A batch of samples, as it came.",
            "Samples",
            {"vib1": {"type": "VIB", "data": [0.5, -0.25]}, "temp1": {"type": "TEMP", "data": [21.5]}},
            1309,
        ),
    ),
    ChannelSpec(
        "socketio",
        "/sio/{name}",
        "One machine's namespace; a payload is the one argument of a Socket.IO event.",
        ("socketio",),
        (
            MessageSpec(
                "initialize",
                "initialize",
                "Asks for the last updates; with any argument, or none.",
                {"description": "Anything."},
                None,
                by_client=True,
                answers=("recent",),
            ),
            MessageSpec(
                "recent",
                "initialize",
                "The last updates of one sensor: one event for each sensor.",
                _ref("RecentUpdates"),
                [_BEFORE, _UPDATE],
            ),
            MessageSpec("update", "update", "The mean of a sensor over a minute.", _ref("Update"), _UPDATE),
            MessageSpec(
                "anomaly", "anomaly", "A fault detection, above its threshold or not.", _ref("FaultScore"), _SCORE
            ),
        ),
        _MACHINE_NAME,
    ),
)
