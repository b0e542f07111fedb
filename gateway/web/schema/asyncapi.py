"""AsyncAPI 3 document of the live interfaces, at ``/asyncapi.json``.

The specification: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from twisted.web.resource import Resource

from gateway import __version__
from gateway.web.http.answers import answer, refuse_method
from gateway.web.http.request import GatewayRequest
from gateway.web.schema.catalogue import CHANNELS, SCHEMAS, ChannelSpec, MessageSpec

#: By key: path, protocol and description of each server.
_SERVERS: Final = {
    "ws": ("/ws", "ws", "WebSocket: a client subscribes to topics; every message is a JSON text."),
    "events": (
        "/events",
        "http",
        "Server-sent events: ?topics= names topics, with commas; data is an event's JSON, id its seq.",
    ),
    "socketio": ("/socket.io/", "socket.io", "Engine.IO 4, Socket.IO 5: long-polling and WebSocket."),
}

#: Names, addresses and ports; braces would mark a variable.
_HOST: Final = re.compile(r"[\w.-]+(?::\d+)?|\[[\da-fA-F:.]+\](?::\d+)?", re.ASCII)


def document(host: str) -> dict[str, Any]:
    """Return the AsyncAPI document.

    :param host: host of the gateway for its clients, with the port unless it is the default one.
    """
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "CYNOW gateway: live events",
            "version": __version__,
            "description": "Scales and machines of a plant, as things happen. Each topic's events are numbered by one "
            "seq of the whole gateway; a client that resumes from it gets the events that it missed. /openapi.json "
            "describes the REST interface.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            key: {"host": host, "pathname": path, "protocol": protocol, "description": description}
            for key, (path, protocol, description) in _SERVERS.items()
        },
        "channels": {channel.key: _describe_channel(channel) for channel in CHANNELS},
        "operations": dict(operation for channel in CHANNELS for operation in _operations(channel)),
        "components": {"schemas": SCHEMAS},
    }


def _describe_channel(channel: ChannelSpec) -> dict[str, Any]:
    description: dict[str, Any] = {
        "address": channel.address,
        "description": channel.summary,
        "servers": [{"$ref": f"#/servers/{server}"} for server in channel.servers],
        "messages": {message.key: _describe_message(message) for message in channel.messages},
    }
    parameter = channel.parameter
    if parameter is not None:
        description["parameters"] = {
            parameter.name: {"description": parameter.summary, "examples": [parameter.example]}
        }
    return description


def _describe_message(message: MessageSpec) -> dict[str, Any]:
    return {
        "name": message.name,
        "summary": message.summary,
        "payload": message.schema,
        "examples": [{"payload": message.example}],
    }


def _operations(channel: ChannelSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the gateway's operations on a channel: to receive and answer each request, and to send the rest."""
    address = {"$ref": f"#/channels/{channel.key}"}
    requests = [message for message in channel.messages if message.by_client]
    for request in requests:
        yield (
            f"{channel.key}-{request.key}",
            {
                "action": "receive",
                "channel": address,
                "summary": request.summary,
                "messages": _refs(channel, [request.key]),
                "reply": {"channel": address, "messages": _refs(channel, request.answers)},
            },
        )
    answers = {key for request in requests for key in request.answers}
    rest = [message.key for message in channel.messages if not message.by_client and message.key not in answers]
    if rest:
        yield (
            channel.key,
            {"action": "send", "channel": address, "summary": channel.summary, "messages": _refs(channel, rest)},
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
    """Return the host in the request, or the address that it reached if that host is not valid."""
    named = request.named_host
    if named is not None:
        host = f"{named.host}:{named.port}" if named.port else named.host
        if _HOST.fullmatch(host):
            return host
    address = request.getHost()
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
