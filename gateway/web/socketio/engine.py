"""Engine.IO over HTTP: sessions are opened, polled, and upgraded to WebSockets."""

from functools import partial
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.clients.registry import LiveClients
from gateway.web.clients.websocket import NORMAL, TOO_SLOW, PacedFactory, PacedWebSocket, asks_for_websocket, take_over
from gateway.web.http.answers import Refusal, answer, argument, body, refuse
from gateway.web.http.request import GatewayRequest
from gateway.web.socketio.packets import EnginePacketType, IgnoredPacket, PacketError, packet_of, packets_of
from gateway.web.socketio.session import Application, EngineSession

#: The version of Engine.IO.
_VERSION: Final = "4"

_TEXT: Final = b"text/plain; charset=UTF-8"

#: Errors by their numbers in Engine.IO's own server.
_ERRORS: Final = {
    "transport": (0, "Transport unknown"),
    "session": (1, "Session ID unknown"),
    "method": (2, "Bad handshake method"),
    "request": (3, "Bad request"),
    "version": (5, "Unsupported protocol version"),
}


_FORBIDDEN: Final = {"code": 4, "message": "Forbidden"}


class EngineServer(Resource):
    """The sessions of one application; a resource.

    :param ping_interval: seconds between pings.
    :param ping_timeout: seconds until an answer to one is missed.
    :param max_payload: bytes of what a client sends at a time.
    :param max_waiting: bytes that may wait for a client.
    """

    isLeaf = True

    def __init__(
        self,
        reactor: IReactorTime,
        application: Application,
        audience: LiveClients,
        counters: Counters,
        warnings: LimitedLog,
        *,
        ping_interval: float = 25.0,
        ping_timeout: float = 20.0,
        max_payload: int = 1_000_000,
        max_waiting: int = 1024 * 1024,
    ) -> None:
        super().__init__()
        self.reactor = reactor
        self.application = application
        self.audience = audience
        self.counters = counters
        self.warnings = warnings
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.max_payload = max_payload
        self.max_waiting = max_waiting
        # Pings are Engine.IO's own.
        self._factory = PacedFactory(reactor, counters, warnings, max_payload, 0)
        self._sessions: dict[str, EngineSession] = {}

    # -- sessions

    def open(self, pipe: "EnginePipe | None") -> EngineSession:
        """Make a session."""
        session = EngineSession(self, pipe)
        self._sessions[session.sid] = session
        self.audience.join(session, "socketio")
        return session

    def ended(self, session: EngineSession, code: int) -> None:
        del self._sessions[session.sid]
        self.audience.leave(session)
        if code == TOO_SLOW:
            self.counters.subscribers_slow.inc()

    def refused(self, peer: str | None, error: Exception) -> None:
        """Count and log what is no packet."""
        self.counters.websocket_errors.inc()
        self.warnings.warn(
            f"socket.io {peer}", "Socket.IO packet of {peer} is refused: {error}", peer=peer, error=error
        )

    def ignored(self, peer: str | None, error: IgnoredPacket) -> None:
        """Count and log an ignored packet."""
        self.counters.websocket_errors.inc()
        self.warnings.warn(
            f"socket.io {peer}", "Socket.IO packet of {peer} is ignored: {error}", peer=peer, error=error
        )

    # -- requests

    def render(self, request: Any) -> Any:
        transport = argument(request, "transport")
        if argument(request, "EIO") != _VERSION:
            return _refuse(request, "version")
        if transport not in {"polling", "websocket"}:
            return _refuse(request, "transport")
        if (transport == "websocket") != asks_for_websocket(request):
            return _refuse(request, "request")
        request.refusal = request.page_refusal()
        if request.refusal is not None:
            # Its page could not read the answer, but would hold a place.
            return answer(request, _FORBIDDEN, 403)
        sid = argument(request, "sid")
        session = None if sid is None else self._sessions.get(sid)
        if session is not None and session.has_expired:
            session.close()
            session = None
        if sid is not None and session is None:
            return _refuse(request, "session")
        if session is None and not self.audience.has_room():
            # For the log and Retry-After; the body has Socket.IO's form.
            refuse(request, Refusal(503, "too_many_subscribers"))
            return answer(request, _FORBIDDEN, 503)
        if transport == "websocket":
            return take_over(request, self._factory, EnginePipe(self, session))
        return self._poll(request, session)

    def _poll(self, request: GatewayRequest, session: EngineSession | None) -> Any:
        if session is None:
            if request.method != b"GET":
                return _refuse(request, "method")
            session = self.open(None)
            session.begin()
        if not session.polls:
            return _refuse(request, "request")
        if request.method == b"POST":
            return self._posted(request, session)
        if request.method != b"GET":
            return _refuse(request, "request")
        poll = _Poll(request, session)
        if not session.poll(poll):
            return _refuse(request, "request")
        return NOT_DONE_YET

    def _posted(self, request: GatewayRequest, session: EngineSession) -> bytes:
        peer = request.getClientAddress().host
        content = request.content.read() if request.content is not None else b""
        try:
            for kind, data in packets_of(content, partial(self.ignored, peer)):
                try:
                    session.receive(kind, data)
                except IgnoredPacket as error:
                    self.ignored(peer, error)
        except PacketError as error:
            session.close()
            self.refused(peer, error)
            return _refuse(request, "request")
        return body(request, b"ok", b"text/html")


class _Poll:
    """A polling request."""

    def __init__(self, request: GatewayRequest, session: EngineSession) -> None:
        self._request = request
        request.lasts()
        request.notifyFinish().addErrback(lambda _: session.poll_lost(self))

    def answer(self, content: bytes) -> None:
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.write(body(self._request, content, _TEXT))
        self._request.finish()


class EnginePipe(PacedWebSocket):
    """The WebSocket of a session.

    :param session: that wants to go over to it; ``None`` where it begins one.
    """

    def __init__(self, server: EngineServer, session: EngineSession | None) -> None:
        super().__init__()
        self._server = server
        self._session = session

    def onOpen(self) -> None:
        super().onOpen()
        if self._session is None:
            self._session = self._server.open(self)
            self._session.begin()
        elif not self._session.probe(self):
            self._session = None
            self.hang_up()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.leaving or self._session is None:
            return
        try:
            kind, data = (EnginePacketType.MESSAGE, payload) if isBinary else packet_of(payload)
            if not self._session.receive_probe(self, kind, data):
                self._session.receive(kind, data)
        except IgnoredPacket as error:
            self._server.ignored(self.peer, error)
        except PacketError as error:
            self._server.refused(self.peer, error)
            self._session.pipe_lost(self)
            self.hang_up()

    def onClose(self, *_: Any) -> None:
        if self._session is not None:
            self._session.pipe_lost(self)

    def hang_up(self, code: int = NORMAL) -> None:
        """Close, once."""
        if not self.leaving:
            self.leave(code, "the session is over")


def _refuse(request: GatewayRequest, error: str) -> bytes:
    code, message = _ERRORS[error]
    request.refusal = Refusal(400, "bad_request", detail=f"Socket.IO: {message}")
    return answer(request, {"code": code, "message": message}, 400)
