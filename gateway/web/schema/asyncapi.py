"""``/asyncapi.json``: the live interfaces for programs, as AsyncAPI 3 describes them.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from twisted.web.resource import Resource

from gateway import __version__
from gateway.web.http.answers import answer, refuse_method
from gateway.web.http.request import GatewayRequest
from gateway.web.schema.catalogue import CHANNELS, SCHEMAS, ChannelSpec, MessageSpec

#: Where the servers are, what they speak, and what they are.
_SERVERS: Final = {
    "ws": ("/ws", "ws", "WebSocket: a client subscribes to topics; every message is a JSON text."),
    "events": (
        "/events",
        "http",
        "Server-sent events: ?topics= names topics, with commas; data is an event's JSON, id its seq.",
    ),
    "socketio": ("/socket.io/", "socket.io", "Engine.IO 4, Socket.IO 5: long-polling and WebSocket."),
}

#: Names, addresses and ports; braces would be variables.
_HOST: Final = re.compile(r"[\w.-]+(?::\d+)?|\[[\da-fA-F:.]+\](?::\d+)?", re.ASCII)


def document(host: str) -> dict[str, Any]:
    """The AsyncAPI document.

    :param host: of the gateway, as its clients know it, with the port where that is needed.
    """
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "CYNOW gateway: live events",
            "version": __version__,
            "description": "Scales and machines of a plant, as things happen. Each topic's events are numbered by one "
            "seq of the whole gateway; who comes back with it gets what it missed.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            key: {"host": host, "pathname": path, "protocol": protocol, "description": line}
            for key, (path, protocol, line) in _SERVERS.items()
        },
        "channels": {channel.key: _channel(channel) for channel in CHANNELS},
        "operations": dict(operation for channel in CHANNELS for operation in _operations(channel)),
        "components": {"schemas": SCHEMAS},
    }


def _channel(channel: ChannelSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "address": channel.address,
        "description": channel.line,
        "servers": [{"$ref": f"#/servers/{server}"} for server in channel.servers],
        "messages": {message.key: _message(message) for message in channel.messages},
    }
    if channel.parameter is not None:
        its = channel.parameter
        found["parameters"] = {its.name: {"description": its.line, "examples": [its.example]}}
    return found


def _message(message: MessageSpec) -> dict[str, Any]:
    return {
        "name": message.name,
        "summary": message.line,
        "payload": message.schema,
        "examples": [{"payload": message.example}],
    }


def _operations(channel: ChannelSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the gateway does on a channel: it receives each request, answers it, and sends the rest."""
    place = {"$ref": f"#/channels/{channel.key}"}
    requests = [message for message in channel.messages if message.by_client]
    for request in requests:
        yield (
            f"{channel.key}-{request.key}",
            {
                "action": "receive",
                "channel": place,
                "summary": request.line,
                "messages": _refs(channel, [request.key]),
                "reply": {"channel": place, "messages": _refs(channel, request.answers)},
            },
        )
    answers = {key for request in requests for key in request.answers}
    rest = [message.key for message in channel.messages if not message.by_client and message.key not in answers]
    if rest:
        yield (
            channel.key,
            {"action": "send", "channel": place, "summary": channel.line, "messages": _refs(channel, rest)},
        )


def _refs(channel: ChannelSpec, keys: Iterable[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{channel.key}/messages/{key}"} for key in keys]


class AsyncApiResource(Resource):
    """``/asyncapi.json``."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        if request.method not in {b"GET", b"HEAD"}:
            return refuse_method(request, "GET, HEAD")
        return answer(request, document(_host(request)))


def _host(request: GatewayRequest) -> str:
    """Return the host that the client named, or else the address that it reached."""
    named = request.named_host
    if named is not None:
        given = f"{named.host}:{named.port}" if named.port else named.host
        if _HOST.fullmatch(given):
            return given
    address = request.getHost()
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
