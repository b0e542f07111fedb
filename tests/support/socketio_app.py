"""A small application of the gateway's Socket.IO layer, for the public test suites of the two protocols.

``python -m tests.support.socketio_app --port 3000`` serves what they expect: ``/engine.io/`` sends back every message;
``/socket.io/`` has the namespaces ``/`` and ``/custom``, which say ``auth`` to who joins, and answer ``message`` by
``message-back`` and ``message-with-ack`` by an acknowledgement.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

from twisted.logger import Logger
from twisted.python.log import startLogging

from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.http.answers import answer
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.root import Root
from gateway.web.http.site import GatewaySite
from gateway.web.socketio.engine import EngineServer
from gateway.web.socketio.packets import EnginePacketType, Outgoing
from gateway.web.socketio.server import NamespaceClient, SocketServer
from gateway.web.socketio.session import EngineSession, EngineSettings
from tests.support.access import no_client_checks, open_clients, open_gate


class EngineEcho:
    """Sends back what comes."""

    def on_open(self, session: EngineSession) -> None:
        """Nothing is said to that."""

    def on_message(self, session: EngineSession, data: str | bytes) -> None:
        if isinstance(data, bytes):
            session.send(Outgoing(data, binary=True))
        else:
            session.send(Outgoing(b"%d%b" % (EnginePacketType.MESSAGE, data.encode())))

    def on_close(self, session: EngineSession) -> None:
        """Nobody is told."""


#: Seconds until somebody who has joined is told ``auth``. The suite awaits one message after the other, and would miss
#: one that is read together with that before it.
_LATER = 0.02


class Echo:
    """A namespace."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def on_join(self, member: NamespaceClient, auth: dict[str, Any]) -> None:
        self._reactor.callLater(_LATER, member.emit, "auth", auth)

    def on_event(self, member: NamespaceClient, event: str, arguments: list[Any]) -> Sequence[Any]:
        if event == "message":
            member.emit("message-back", *arguments)
        return arguments

    def on_leave(self, member: NamespaceClient) -> None:
        """Nobody is told."""


def site(reactor: Any, ping_interval: float, ping_timeout: float, connect_timeout: float) -> GatewaySite:
    """What listens."""
    counters = Counters()
    clock = WallClock(ZoneInfo("UTC"))
    warnings = LimitedLog(Logger(), clock, counters)
    clients = open_clients(reactor, counters, 1000)
    settings = EngineSettings(ping_interval=ping_interval, ping_timeout=ping_timeout)

    def server(application: Any) -> EngineServer:
        return EngineServer(reactor, application, clients, counters, warnings, settings)

    echo = Echo(reactor)
    sockets = SocketServer(reactor, {"/": echo, "/custom": echo}.get, connect_timeout=connect_timeout)
    root = Root({"engine.io": server(EngineEcho()), "socket.io": server(sockets)}, _Nothing())
    traffic = Traffic(counters, warnings, HostChecks([]), open_gate(counters), no_client_checks(counters), 1_000_000)
    return GatewaySite(reactor, root, traffic, counters, 1000)


class _Nothing(Root):
    def __init__(self) -> None:
        super().__init__({}, self)

    def render(self, request: Any) -> bytes:
        return answer(request, {"error": "not_found"}, 404)


def main() -> None:
    """The command."""
    from twisted.internet import reactor

    parser = argparse.ArgumentParser(prog="python -m tests.support.socketio_app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--ping-interval", type=float, default=0.3, help="seconds (default %(default)s)")
    parser.add_argument("--ping-timeout", type=float, default=0.2, help="seconds (default %(default)s)")
    parser.add_argument("--connect-timeout", type=float, default=1.0, help="seconds (default %(default)s)")
    options = parser.parse_args()
    startLogging(sys.stderr, setStdout=False)
    its: Any = site(reactor, options.ping_interval, options.ping_timeout, options.connect_timeout)
    reactor.listenTCP(options.port, its, interface=options.host)
    reactor.run()


if __name__ == "__main__":
    main()
