"""Several gateway processes that share the ports of one machine, as one configuration file and systemd run them."""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.support.daemon import PATIENCE, TWISTD, Daemon, free_ports, until

#: Runs ``twistd`` at another time of the wall clock.
_AT_TIME: Final = str(Path(__file__).parent / "at_time.py")


class Site:
    """Processes of one file. Each works in a folder of its own, and has a name and an own port from its environment.

    :param settings: of that file, beside the ports and the server.
    """

    def __init__(self, folder: Path, url: str, **settings: Any) -> None:
        self.folder = folder
        self.port, self.daq_port, self.scale_port = free_ports(3)
        tree = {
            "server": {"port": self.port, "tcp_port": self.daq_port, "share_ports": True},
            "scale": {"port": self.scale_port},
            "database": {"url": url},
            "timezone": "Asia/Seoul",
            **settings,
        }
        self.config = folder / "site.yaml"
        # JSON is YAML.
        self.config.write_text(json.dumps(tree), "utf-8")
        self._stack = contextlib.ExitStack()

    def process(self, name: str, wall: datetime | None = None, twistd: list[str] = TWISTD) -> Daemon:
        """One more, not yet started.

        :param wall: what its wall clock shows now, and goes on from; by default the machine's own.
        :param twistd: what runs it, where that is not ``wall``.
        """
        (self.folder / name).mkdir(exist_ok=True)
        if wall is not None:
            twistd = [sys.executable, _AT_TIME, f"{wall.timestamp() - time.time()}", *TWISTD[1:]]
        daemon = Daemon(self.folder / name, twistd=twistd)
        daemon.config = self.config
        # What a test asks a process goes to that one; devices come to any.
        daemon.daq_port, daemon.scale_port = self.daq_port, self.scale_port
        self._stack.callback(daemon.end)
        return daemon

    def start(self, daemon: Daemon) -> None:
        daemon.start(env=environment_of(daemon))

    def started(self, *names: str, wall: datetime | None = None) -> list[Daemon]:
        """Some more, which hear each other and have the server."""
        daemons = [self.process(name, wall) for name in names]
        for daemon in daemons:
            self.start(daemon)
        for daemon in daemons:
            until(lambda daemon=daemon: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is there")
            until(others(daemon, len(daemons) - 1), "they hear each other")
        return daemons

    def connections(self, port: int, count: int) -> list[socket.socket]:
        return [
            self._stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)) for _ in range(count)
        ]

    def end(self) -> None:
        self._stack.close()


def environment_of(daemon: Daemon) -> dict[str, str]:
    return {"CYNOW_GATEWAY_NAME": f"hall-{daemon.folder.name}", "CYNOW_GATEWAY_OWN_PORT": str(daemon.port)}


def others(daemon: Daemon, count: int) -> Callable[[], bool]:
    return lambda: daemon.metric("cynow_relay_gateways") == count
