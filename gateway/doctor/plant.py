"""The configuration under examination, and the surroundings that checks share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.config.endpoints import tcp_address
from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings

#: Maximum seconds for an answer of another program.
PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Gateway that listens on the HTTP port of the configuration.

    :ivar pids: its processes; empty if this user may not see them.
    :ivar health: its answer to ``/healthz``; ``None`` if it gave none.
    """

    pids: frozenset[int]
    health: Mapping[str, Any] | None

    def __str__(self) -> str:
        version = "" if self.health is None else f" {self.health.get('version')}"
        process = f" (process {', '.join(map(str, sorted(self.pids)))})" if self.pids else ""
        return f"the running gateway{version}{process}"


@dataclass(frozen=True, slots=True)
class ListeningPort:
    """TCP port that the gateway listens on.

    :ivar host_key: key of its address.
    """

    key: str
    host: str
    number: int
    host_key: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host or "0.0.0.0"  # noqa: S104 - a text
        return f"{host}:{self.number}"


@dataclass(frozen=True, slots=True)
class Plant:
    """Everything that the checks need.

    :ivar folder: base of relative paths.
    :ivar listen_seconds: duration of listening for scales that dial the gateway.
    """

    settings: Settings
    folder: str
    environment: Mapping[str, str]
    gateway: RunningGateway | None
    listen_seconds: float

    def path_of(self, path: str) -> str:
        """Return a path of the configuration as an absolute path."""
        return os.path.join(self.folder, path)

    def scale_key(self, scale_id: str) -> str:
        """Return the key of the line of a scale."""
        line = self.settings.scales.get(scale_id)
        if line is None:
            return "scale.port"
        return f"scales.{scale_id}.{kind_of(line)}"


def kind_of(line: ScaleConnection) -> str:
    """Return the key of a scale that says how it is connected."""
    return "listen" if line.listen is not None else "connect" if line.connect is not None else "serial"


def listening_ports(settings: Settings) -> list[ListeningPort]:
    """Return every TCP port that the gateway listens on."""
    server = settings.server
    ports = [
        ListeningPort(f"server.{key}", server.host, number, "server.host")
        for key, number in (("port", server.port), ("tcp_port", server.tcp_port), ("own_port", server.own_port))
        if number is not None
    ]
    for scale_id, line in settings.lines().items():
        address = None if line.listen is None else tcp_address("listen", line.listen)
        if address is None:
            continue
        if scale_id in settings.scales:
            key = f"scales.{scale_id}.listen"
            ports.append(ListeningPort(key, *address, key))
        else:
            host_key = "server.host" if settings.scale.host is None else "scale.host"
            ports.append(ListeningPort("scale.port", *address, host_key))
    return ports
