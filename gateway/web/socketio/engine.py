"""Engine.IO over HTTP: opening, polling and upgrade of sessions."""

from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gateway.auth.principal import Principal
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.clients.registry import LiveClients
from gateway.web.clients.websocket import (
    NORMAL,
    TOO_SLOW,
    PacedFactory,
    PacedWebSocket,
    is_websocket_request,
    upgrade_to_websocket,
)
from gateway.web.http.answers import Refusal, answer, argument, body, refuse
from gateway.web.http.request import GatewayRequest
from gateway.web.socketio.packets import EnginePacketType, IgnoredPacket, PacketError, parse_packet, parse_packets
from gateway.web.socketio.session import Application, EngineSession, EngineSettings

#: Supported version of the Engine.IO protocol.
_VERSION: Final = "4"

_TEXT: Final = b"text/plain; charset=UTF-8"

#: Errors with the numbers of Engine.IO's own server.
_ERRORS: Final = {
    "transport": (0, "Transport unknown"),
    "session": (1, "Session ID unknown"),
    "method": (2, "Bad handshake method"),
    "request": (3, "Bad request"),
    "version": (5, "Unsupported protocol version"),
}

_FORBIDDEN: Final = {"code": 4, "message": "Forbidden"}


class EngineServer(Resource):
    """Resource with the sessions of one application."""

    isLeaf = True

    def __init__(
        self,
        reactor: IReactorTime,
        application: Application,
        clients: LiveClients,
        counters: Counters,
        warnings: LimitedLog,
        settings: EngineSettings,
    ) -> None:
        super().__init__()
        self.reactor = reactor
        self.application = application
        self.settings = settings
        self._live_clients = clients
        self._counters = counters
        self._warnings = warnings
        # Engine.IO has pings of its own.
        self._factory = PacedFactory(reactor, counters, warnings, settings.max_payload, 0)
        self._sessions: dict[str, EngineSession] = {}

    def update(self, settings: EngineSettings) -> None:
        """Change the bounds, for new sessions."""
        self.settings = settings
        self._factory.setProtocolOptions(
            maxFramePayloadSize=settings.max_payload, maxMessagePayloadSize=settings.max_payload
        )

    # -- sessions

    def open(self, pipe: "EnginePipe | None", principal: Principal) -> EngineSession:
        """Return a new session.

        :param pipe: WebSocket by which the client connected; ``None`` if it polls.
        :param principal: rights of its request.
        """
        session = EngineSession(self, pipe, principal)
        self._sessions[session.sid] = session
        self._live_clients.add(session, "socketio")
        return session

    def remove(self, session: EngineSession, code: int) -> None:
        del self._sessions[session.sid]
        self._live_clients.remove(session)
        if code == TOO_SLOW:
            self._counters.subscribers_slow.inc()

    def report_refused(self, peer: str | None, error: Exception) -> None:
        """Count and log an invalid packet."""
        self._counters.websocket_errors.inc()
        self._warnings.warn(
            f"socket.io {peer}", "Socket.IO packet from {peer} refused: {error}", peer=peer, error=error
        )

    def report_ignored(self, peer: str | None, error: IgnoredPacket) -> None:
        """Count and log an ignored packet."""
        self._counters.websocket_errors.inc()
        self._warnings.warn(
            f"socket.io {peer}", "Socket.IO packet from {peer} ignored: {error}", peer=peer, error=error
        )

    # -- requests

    def render(self, request: Any) -> Any:
        transport = argument(request, "transport")
        if argument(request, "EIO") != _VERSION:
            return _refuse(request, "version")
        if transport not in {"polling", "websocket"}:
            return _refuse(request, "transport")
        if (transport == "websocket") != is_websocket_request(request):
            return _refuse(request, "request")
        request.refusal = request.page_refusal()
        if request.refusal is not None:
            # The page could not read the answer, but would count as a client.
            return answer(request, _FORBIDDEN, 403)
        sid = argument(request, "sid")
        session = None if sid is None else self._sessions.get(sid)
        if session is not None and session.has_expired:
            session.close()
            session = None
        if sid is not None and session is None:
            return _refuse(request, "session")
        if session is None and not self._live_clients.has_room():
            # For the log and Retry-After; the body has Socket.IO's form.
            refuse(request, Refusal(503, "too_many_subscribers"))
            return answer(request, _FORBIDDEN, 503)
        if transport == "websocket":
            return upgrade_to_websocket(request, self._factory, EnginePipe(self, session))
        return self._poll(request, session)

    def _poll(self, request: GatewayRequest, session: EngineSession | None) -> Any:
        if session is None:
            if request.method != b"GET":
                return _refuse(request, "method")
            session = self.open(None, request.principal)
            session.start()
        if not session.can_poll:
            return _refuse(request, "request")
        if request.method == b"POST":
            return self._receive_post(request, session)
        if request.method != b"GET":
            return _refuse(request, "request")
        poll = _Poll(request, session)
        if not session.add_poll(poll):
            return _refuse(request, "request")
        return NOT_DONE_YET

    def _receive_post(self, request: GatewayRequest, session: EngineSession) -> bytes:
        peer = request.client_address
        content = request.content.read() if request.content is not None else b""
        try:
            for kind, data in parse_packets(content, partial(self.report_ignored, peer)):
                try:
                    session.receive(kind, data)
                except IgnoredPacket as error:
                    self.report_ignored(peer, error)
        except PacketError as error:
            session.close()
            self.report_refused(peer, error)
            return _refuse(request, "request")
        return body(request, b"ok", b"text/html")


class _Poll:
    """Polling request that waits for its answer."""

    def __init__(self, request: GatewayRequest, session: EngineSession) -> None:
        self._request = request
        request.exclude_from_shutdown()
        request.notifyFinish().addErrback(lambda _: session.on_poll_lost(self))

    def answer(self, content: bytes) -> None:
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.write(body(self._request, content, _TEXT))
        self._request.finish()


class EnginePipe(PacedWebSocket):
    """WebSocket of a session.

    :param session: session that may be upgraded to it; ``None`` to open a new one.
    """

    def __init__(self, server: EngineServer, session: EngineSession | None) -> None:
        super().__init__()
        self._server = server
        self._session = session

    def onOpen(self) -> None:
        super().onOpen()
        if self._session is None:
            self._session = self._server.open(self, self.principal)
            self._session.start()
        elif not self._session.add_probe(self):
            self._session = None
            self.hang_up()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.is_closing or self._session is None:
            return
        try:
            kind, data = (EnginePacketType.MESSAGE, payload) if isBinary else parse_packet(payload)
            if not self._session.receive_probe(self, kind, data):
                self._session.receive(kind, data)
        except IgnoredPacket as error:
            self._server.report_ignored(self.client_address, error)
        except PacketError as error:
            self._server.report_refused(self.client_address, error)
            self._session.on_pipe_lost(self)
            self.hang_up()

    def onClose(self, *_: Any) -> None:
        if self._session is not None:
            self._session.on_pipe_lost(self)

    def hang_up(self, code: int = NORMAL) -> None:
        """Close the WebSocket, unless it is closing already."""
        if not self.is_closing:
            self.close_with_code(code, "the session is over")


def _refuse(request: GatewayRequest, error: str) -> bytes:
    code, message = _ERRORS[error]
    request.refusal = Refusal(400, "bad_request", detail=f"Socket.IO: {message}")
    return answer(request, {"code": code, "message": message}, 400)
