"""Agreement of the code, the catalogue of messages and the documentation of events."""

import ast
import inspect
import json
import re
from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from autobahn.websocket.protocol import WebSocketProtocol
from jsonschema import Draft7Validator, FormatChecker
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

import gateway.bus.bus
import gateway.bus.event
import gateway.bus.topics
import gateway.web.push.socketio_endpoint
import gateway.web.push.ws_endpoint
from gateway.model import records as model
from gateway.model.records import (
    Batch,
    Commit,
    CommitEntry,
    Fault,
    Presence,
    Reading,
    Record,
    SensorBatch,
    Silence,
    Update,
)
from gateway.web.push.socketio_endpoint import MachineNamespaces
from gateway.web.push.subscription import SubscriptionContext
from gateway.web.push.ws_endpoint import EventsWebSocketFactory, EventsWebSocketProtocol
from gateway.web.schema.asyncapi import document
from gateway.web.schema.catalogue import CHANNELS, SCHEMAS, ChannelSpec, MessageSpec
from gateway.web.schema.commit_fields import COMMIT_DETAILS
from gateway.web.socketio.packets import Outgoing
from tests.support.access import open_clients
from tests.support.logs import silent_log
from tests.support.runtime import make_runtime

DOCS = (Path(__file__).parent.parent.parent / "docs" / "reference" / "events.rst").read_text("utf-8")
DOCUMENT = json.loads(orjson.dumps(document("gateway.example:8080")))

BY_KEY = {channel.key: channel for channel in CHANNELS}
TOPICS = [channel for channel in CHANNELS if "ws" in channel.servers and channel.address is not None]
ALL = [(channel, message) for channel in CHANNELS for message in channel.messages]

FORMATS = FormatChecker(formats=())


def is_rfc3339(value: object) -> bool:
    return not isinstance(value, str) or (value[10] == "T" and datetime.fromisoformat(value).tzinfo is not None)


FORMATS.checks("date-time", raises=ValueError)(is_rfc3339)


def check(channel: ChannelSpec, message: MessageSpec, instance: Any) -> None:
    """Validate an instance by the published schema of a message."""
    where = {"$ref": f"#/channels/{channel.key}/messages/{message.key}/payload"}
    Draft7Validator({**DOCUMENT, **where}, format_checker=FORMATS).validate(instance)


def ids(value: Any) -> str:
    return value.key if isinstance(value, ChannelSpec | MessageSpec) else ""


# -- the catalogue and its document


@pytest.mark.parametrize(("channel", "message"), ALL, ids=ids)
def test_example_matches_its_schema(channel: ChannelSpec, message: MessageSpec) -> None:
    check(channel, message, message.example)


def test_schemas_are_valid() -> None:
    for schema in [*SCHEMAS.values(), *(message.schema for _, message in ALL)]:
        Draft7Validator.check_schema(schema)


def inside(node: Any) -> Iterator[Any]:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from inside(child)


def test_schemas_of_messages_from_the_gateway_list_exact_keys() -> None:
    """Otherwise a schema would still match after a change of the code."""
    received = [message.schema for _, message in ALL if not message.by_client]
    objects = [
        node for node in inside([received, dict(SCHEMAS)]) if isinstance(node, dict) and node.get("type") == "object"
    ]
    assert objects
    for schema in objects:
        if "propertyNames" in schema:
            assert isinstance(schema["additionalProperties"], dict)
        else:
            assert schema["additionalProperties"] is False
            # ``recovered`` is present only if the request had ``since``, details of a commit only if there are any.
            optional = {"recovered", *COMMIT_DETAILS}
            assert sorted(schema["required"]) == sorted(schema["properties"].keys() - optional)


def test_keys_are_unique() -> None:
    assert len(BY_KEY) == len(CHANNELS)
    for channel in CHANNELS:
        assert len({message.key for message in channel.messages}) == len(channel.messages), channel.key


def resolved(reference: str) -> Any:
    node: Any = DOCUMENT
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        node = node[step]
    return node


def test_references_resolve_and_schemas_are_used() -> None:
    references = {node["$ref"] for node in inside(DOCUMENT) if isinstance(node, dict) and "$ref" in node}
    for reference in references:
        resolved(reference)
    assert {f"#/components/schemas/{name}" for name in SCHEMAS} <= references


def test_channels_name_their_servers_and_parameters() -> None:
    assert set(DOCUMENT["channels"]) == set(BY_KEY)
    for channel in DOCUMENT["channels"].values():
        assert channel["servers"]
        assert re.findall(r"\{(\w+)\}", channel["address"] or "") == list(channel.get("parameters", {}))
    used = {reference["$ref"] for channel in DOCUMENT["channels"].values() for reference in channel["servers"]}
    assert used == {f"#/servers/{server}" for server in DOCUMENT["servers"]}


def test_operations_cover_the_messages_of_their_channels() -> None:
    done: dict[str, str] = {}
    for operation in DOCUMENT["operations"].values():
        answers = operation.get("reply", {"messages": []})
        assert answers.get("channel", operation["channel"]) == operation["channel"]
        there = [reference["$ref"] for reference in operation["messages"]]
        back = [reference["$ref"] for reference in answers["messages"]]
        for reference in there + back:
            assert reference.startswith(operation["channel"]["$ref"] + "/messages/")
        done.update(dict.fromkeys(there, operation["action"]))
        done.update(dict.fromkeys(back, "send"))
    assert done == {
        f"#/channels/{channel.key}/messages/{message.key}": "receive" if message.by_client else "send"
        for channel, message in ALL
    }


def test_servers_have_the_host() -> None:
    assert {server["host"] for server in DOCUMENT["servers"].values()} == {"gateway.example:8080"}


# -- the code and the catalogue

SEOUL = ZoneInfo("Asia/Seoul")
NOW = datetime(2025, 12, 18, 10, 11, 12, 123456, tzinfo=SEOUL)


def reading(status: str, weight: str | None, kind: str = "gross") -> Reading:
    return Reading("default", status, None if weight is None else Decimal(weight), kind, f"{status},+1 kg", NOW)


#: Records of every kind with every form of payload.
RECORDS: list[Record] = [
    Presence("scale", "default", connected=True),
    reading("US", "1.5"),
    reading("ST", "-53.26"),
    reading("ST", "53.26", "net"),
    reading("ST", "0.00", "tare"),
    reading("OL", None),
    Commit(1, CommitEntry("default", "CY1", "RETURN", Decimal("53.26"), "ST", NOW, NOW, "A1", "M1")),
    Presence("scale", "default", connected=False),
    Silence("default", is_silent=True),
    Silence("default", is_silent=False),
    Presence("machine", "압축기 1", connected=True),
    Batch("압축기 1", {}, NOW),
    Batch(
        "압축기 1", {"v": SensorBatch("VIB", array("d", [0.5, float("nan")])), "t": SensorBatch("", array("d"))}, NOW
    ),
    Update("압축기 1", "v", 0.5, NOW.replace(microsecond=0)),
    Fault("압축기 1", 0.5, 1.0, NOW),
    Fault("압축기 1", 1.5, 1.0, NOW),
    Presence("machine", "압축기 1", connected=False),
]


def test_records_include_every_class_with_events() -> None:
    classes = {
        each
        for _, each in inspect.getmembers(model, inspect.isclass)
        if each is not Record and {"topic", "event", "payload"} <= set(dir(each))
    }
    assert {type(record) for record in RECORDS} == classes


def channel_of(topic: str) -> ChannelSpec:
    (found,) = [
        channel for channel in TOPICS if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", channel.address or ""), topic)
    ]
    return found


def checked(event: Any) -> tuple[str, str]:
    """Validate an event by its schema; return its channel and its name."""
    channel = channel_of(event["topic"])
    messages = {message.name: message for message in channel.messages}
    assert event["event"] in messages, f"{event['event']} of {event['topic']} is not in the catalogue"
    check(channel, messages[event["event"]], event)
    return channel.key, event["event"]


class Gateway:
    """Bus, live state and one open WebSocket, without a reactor."""

    def __init__(self) -> None:
        reactor = Clock()
        reactor.advance(NOW.timestamp())
        scales = {"default": {"listen": "tcp:4001"}, "silent": {"listen": "tcp:4002"}}
        runtime = make_runtime(reactor, zone=SEOUL, scales=scales)
        clock, counters, self.bus, self.live = runtime.clock, runtime.counters, runtime.bus, runtime.live
        feed = SubscriptionContext(reactor, self.bus, self.live, clock, counters, 1_000_000)
        warnings = silent_log(clock, counters)
        self.protocol = EventsWebSocketProtocol()
        self.protocol.factory = EventsWebSocketFactory(feed, open_clients(reactor, counters, 10), warnings)
        self.protocol.transport = StringTransport()
        self.protocol.transport.registerProducer(object(), True)
        self.protocol.peer = "tcp4:127.0.0.1:1"
        self.protocol.state = WebSocketProtocol.STATE_OPEN
        self.protocol.websocket_extensions_in_use = []
        self.received: list[Any] = []
        protocol: Any = self.protocol
        protocol.send_text = lambda text: self.received.append(json.loads(text))
        protocol.send_event = lambda event: self.received.append(json.loads(event.text()))
        self.protocol.onOpen()

    def ask(self, message: Any) -> list[Any]:
        """Send a message; return the answers."""
        self.received.clear()
        self.protocol.onMessage(json.dumps(message).encode(), False)
        return list(self.received)


def test_subscriber_receives_every_event_of_the_catalogue() -> None:
    gateway = Gateway()
    everything = {"type": "subscribe", "topics": ["*/*", "*/*/samples"]}
    events = gateway.ask(everything)[1:]
    for record in RECORDS:
        gateway.bus.publish(record)
    events = [*events, *gateway.received[len(events) + 1 :]]
    # Again with a state for the snapshots, and again with a replay.
    events += gateway.ask(everything)[1:]
    events += gateway.ask({**everything, "since": 0})[1:]
    assert {checked(event) for event in events} == {
        (channel.key, message.name) for channel in TOPICS for message in channel.messages
    }
    snapshots = [event["data"] for event in events if event["event"] == "snapshot"]
    assert any(data.get("latest") for data in snapshots)
    assert any(data.get("latest", "") is None for data in snapshots)
    assert any(data.get("sensors") for data in snapshots)
    assert len([event for event in events if event["event"] != "snapshot"]) == 2 * len(RECORDS)


def test_snapshot_keeps_the_maximum_of_updates() -> None:
    gateway = Gateway()
    gateway.live.restore(Update("M", "v", float(n), NOW + timedelta(minutes=n)) for n in range(100))
    (snapshot,) = gateway.ask({"type": "subscribe", "topics": ["machine/M"]})[1:]
    checked(snapshot)
    assert len(snapshot["data"]["sensors"]["v"]) == SCHEMAS["RecentUpdates"]["maxItems"]


REQUESTS = [
    {"type": "subscribe", "topics": ["scale/default"]},
    {"type": "subscribe", "topics": ["*/*", "machine/*/samples", "*/압축기 1/*"], "since": 0},
    {"type": "subscribe", "topics": ["machine/M"], "since": None, "more": 1},
    {"type": "unsubscribe", "topics": ["scale/default", "scale/default"]},
    {"type": "subscribe"},
    {"type": "unsubscribe"},
    {"type": "shout", "topics": ["scale/default"]},
    {"topics": ["scale/default"]},
    [],
    None,
    {"type": "subscribe", "topics": "scale/default"},
    {"type": "subscribe", "topics": []},
    {"type": "subscribe", "topics": [1]},
    {"type": "subscribe", "topics": ["scale"]},
    {"type": "subscribe", "topics": ["scale/"]},
    {"type": "subscribe", "topics": ["valve/1"]},
    {"type": "subscribe", "topics": ["scale/default/samples"]},
    {"type": "subscribe", "topics": ["machine/M/other"]},
    {"type": "subscribe", "topics": ["machine/M/samples/x"]},
    {"type": "subscribe", "topics": ["scale/default"], "since": "1"},
    {"type": "subscribe", "topics": ["scale/default"], "since": -1},
    {"type": "subscribe", "topics": ["scale/default"], "since": True},
    {"type": "unsubscribe", "topics": ["nonsense"]},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=json.dumps)
def test_request_is_accepted_if_and_only_if_its_schema_allows_it(request_: Any) -> None:
    connection = BY_KEY["connection"]
    messages = {message.key: message for message in connection.messages}
    allowed = [
        message
        for message in connection.messages
        if message.by_client
        and Draft7Validator({**DOCUMENT, **message.schema}, format_checker=FORMATS).is_valid(request_)
    ]
    answer = Gateway().ask(request_)[0]
    check(connection, messages[answer["type"]], answer)
    assert [message.answers[0] for message in allowed] == ([] if answer["type"] == "error" else [answer["type"]])


def syntax(module: Any) -> list[ast.AST]:
    return list(ast.walk(ast.parse(inspect.getsource(module))))


def test_source_has_only_messages_of_the_catalogue() -> None:
    """Compare the types of messages in the source."""
    said: set[Any] = set()
    events: set[Any] = set()
    for node in [
        *syntax(gateway.web.push.ws_endpoint),
        *syntax(gateway.bus.bus),
        *syntax(gateway.bus.event),
        *syntax(gateway.bus.topics),
    ]:
        if isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            said.update(
                value.value
                for key, value in zip(keys, node.values, strict=True)
                if key == "type" and isinstance(value, ast.Constant)
            )
        elif isinstance(node, ast.MatchMapping):
            events.update(
                constant.value
                for key, pattern in zip(node.keys, node.patterns, strict=True)
                if isinstance(key, ast.Constant) and key.value == "type"
                for constant in ast.walk(pattern)
                if isinstance(constant, ast.Constant)
            )
    messages = BY_KEY["connection"].messages
    assert events == {message.name for message in messages if message.by_client}
    assert said == {message.name for message in messages if not message.by_client} | {"event"}


# -- Socket.IO


class FakeMember:
    """Member of a namespace that records its events."""

    def __init__(self) -> None:
        self.events: list[list[Any]] = []

    def send(self, packets: list[Outgoing]) -> None:
        for packet in packets:
            text = packet.content.decode()
            kind, comma, rest = text.partition(",")
            assert (kind, comma) == ("42/sio/압축기 1", ",")
            self.events.append(json.loads(rest))


def test_namespace_receives_every_event_of_the_catalogue() -> None:
    channel = BY_KEY["socketio"]
    gateway = Gateway()
    namespace = MachineNamespaces(gateway.bus, gateway.live).find("/sio/압축기 1")
    assert namespace is not None
    member: Any = FakeMember()
    namespace.on_join(member, {})
    for record in RECORDS:
        gateway.bus.publish(record)
    for message in channel.messages:
        if message.by_client:
            before = len(member.events)
            assert namespace.on_event(member, message.name, []) == ()
            assert {event for event, _ in member.events[before:]} == {
                answer.name for answer in channel.messages if answer.key in message.answers
            }
    received = {message.name: message for message in channel.messages if not message.by_client}
    for event, argument in member.events:
        check(channel, received[event], argument)
    assert {event for event, _ in member.events} == set(received)


def test_source_has_only_socketio_events_of_the_catalogue() -> None:
    events: set[Any] = set()
    for node in syntax(gateway.web.push.socketio_endpoint):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "event":
            events.update(
                constant.value
                for right in node.comparators
                for constant in ast.walk(right)
                if isinstance(constant, ast.Constant)
            )
    assert events == {message.name for message in BY_KEY["socketio"].messages if message.by_client}


# -- the catalogue and the documentation


def sections(text: str, underline: str) -> Iterator[tuple[str, str]]:
    """Yield the titles with one kind of underline, and the texts below them."""
    parts = re.split(rf"^(\S.*)\n({re.escape(underline)}{{3,}})\n", text, flags=re.MULTILINE)
    for title, line, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        assert len(line) == len(title), title
        yield title, body


def literals(text: str) -> list[str]:
    return re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", text)


def documented() -> list[tuple[str, str, bool, str, Any]]:
    """Return the channel, name, direction, summary and example of each documented message."""
    found = []
    for title, body in sections(DOCS, "-"):
        for subtitle, text in sections(body, "~"):
            match = re.fullmatch(r"``(\w+)``( \(client\))?", subtitle)
            if match is not None:
                (literal,) = literals(text)
                line = " ".join(text.partition("::\n")[0].split())
                where = re.sub(r"<(\w+)>", r"{\1}", title.replace("`", ""))
                found.append((where, match[1], match[2] is not None, line, json.loads(literal)))
    return found


def test_documentation_matches_the_catalogue() -> None:
    expected = []
    for channel, message in ALL:
        example = message.example
        where = channel.address or "WebSocket"
        if channel.key == "socketio":
            where = f"Socket.IO: {where}"
            example = [message.name] if message.by_client else [message.name, message.example]
        expected.append((where, message.name, message.by_client, message.summary, example))
    # As JSON, where true differs from 1.
    assert [json.dumps(each, sort_keys=True) for each in documented()] == [
        json.dumps(each, sort_keys=True) for each in expected
    ]


def test_documentation_names_the_codes_and_bounds_of_the_code() -> None:
    from gateway.web.clients import deflate, websocket
    from gateway.web.push import sse_endpoint as events
    from gateway.web.push import subscription as following
    from gateway.web.push import ws_endpoint as stream
    from gateway.web.socketio import server

    words = " ".join(DOCS.split())
    for word in (
        f"{websocket.GOING_AWAY}  ",
        f"{websocket.TOO_SLOW}  ",
        f"retry: {events._RETRY}",
        f"every {events._COMMENT:g} seconds",
        f"pings every {stream._PING} seconds",
        f"at most {stream._MAX_MESSAGE // 1024} KiB",
        f"follow {following._MAX_TOPICS:,} topics",
        f"join {server._MAX_NAMESPACES:,} namespaces",
        f"within {server._CONNECT:g} seconds",
        f"under {deflate._MIN_COMPRESSED} bytes and over {deflate._MAX_COMPRESSED // 1024} KiB",
    ):
        assert word in DOCS or word in words, word
