"""Requests to the running gateway."""

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any

from gateway.config.settings import Settings
from gateway.doctor.plant import PATIENCE, RunningGateway
from gateway.doctor.processes import holders_of_port, is_gateway

#: Addresses at which a gateway that listens on every address can be reached.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound


def find_gateway(settings: Settings) -> RunningGateway | None:
    """Return the gateway that listens on the HTTP port of a configuration; ``None`` if no gateway does."""
    if settings.server.port == 0:
        return None
    pids = frozenset(filter(is_gateway, holders_of_port(settings.server.port)))
    health = None
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        _, health = ask(settings, "/healthz")
    if not isinstance(health, dict) or not {"version", "scales", "machines"} <= set(health):
        health = None
    return RunningGateway(pids, health) if pids or health is not None else None


def ask(settings: Settings, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Return the status and the JSON of an answer of the running gateway.

    :raises OSError, http.client.HTTPException, ValueError: no answer, or not one in JSON.
    """
    server = settings.server
    host = _LOOPBACK.get(server.host, server.host)
    port = server.own_port or server.port
    connection: http.client.HTTPConnection
    if server.tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    else:
        # The certificate has the name that clients use, not this address.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(1024 * 1024))
