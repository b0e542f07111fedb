"""WebSockets that pause while their clients do not read."""

import re
from collections.abc import Callable
from typing import Any, Final

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from gateway.auth.principal import NOBODY, Principal
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.transports import set_read_size
from gateway.web.clients.autobahn_internals import OpenWebSocketProtocol
from gateway.web.clients.deflate import acceptable_offer, frame_message, server_window
from gateway.web.clients.frames import FrameSender, ReactorTurns
from gateway.web.clients.outbox import Outbox
from gateway.web.http.answers import SERVER, Refusal, common_headers, refuse
from gateway.web.http.gate import SUBPROTOCOL
from gateway.web.http.request import GatewayRequest

#: Maximum seconds until a client answers a close frame; it has to read all earlier frames first.
_CLOSE: Final = 10

#: The same for a client whose token is no longer valid: its connection must end within five seconds.
_CLOSE_UNAUTHORIZED: Final = 2

_QUOTED: Final = re.compile('"[^"]*"')

#: Maximum bytes that wait in the transport before it asks for a pause, and that are read from a client before the
#: others have their turn: a small message costs as much as a large one.
_BUFFER: Final = 8 * 1024

#: Close codes of RFC 6455, 7.4.1, and of the gateway's own.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
TOO_SLOW: Final = 4008
UNAUTHORIZED: Final = 4401


@implementer(IPushProducer)
class PacedWebSocket(OpenWebSocketProtocol):
    """WebSocket that pauses its outbox while the client does not read.

    :ivar window: window of the agreed compression, in bits; 0 for no compression.
    :ivar principal: rights of the request that it was.
    :ivar is_closing: whether the gateway has begun to close it.
    :ivar client_address: address of the client, which may be behind a trusted proxy.
    """

    factory: "PacedFactory"
    transport: Any
    window = 0
    is_closing = False
    client_address = ""
    principal: Principal = NOBODY

    #: Function that sends a frame; it drops the frame once either side has begun to close.
    send_frame: Callable[[bytes], None]

    _is_paused = False
    _outbox: Outbox[Any] | None = None
    _frames: FrameSender | None = None

    def state_changed(self, is_open: bool) -> None:
        if self._frames is not None:
            self._frames.is_open = is_open

    def filter_offer(self, offer: tuple[str, Any]) -> tuple[str, Any] | None:
        return acceptable_offer(offer)

    def onConnect(self, request: ConnectionRequest) -> tuple[str | None, dict[str, str]]:
        """Accept with the subprotocol that carries a token, if it is offered: browsers expect one of those they offer.

        The answer has the common headers except the server's name.
        """
        bearer = next((name for name in request.protocols if name.startswith(SUBPROTOCOL.decode())), None)
        return bearer, {name.decode(): value.decode() for name, value in common_headers() if name != b"Server"}

    def failHandshake(self, reason: str, *args: Any, **kwargs: Any) -> None:
        self.factory.counters.websocket_errors.inc()
        self.factory.warnings.warn(
            "websocket handshake",
            "WebSocket handshake of {peer} refused: {reason}",
            peer=self.client_address,
            # What the client sent stands in quotes, and may be its token.
            reason=_QUOTED.sub('"..."', reason),
        )
        super().failHandshake(reason, *args, **kwargs)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        # Autobahn's own answer has neither a body nor the common headers.
        refusal = Refusal(code, "invalid_request", reason)
        headers = [(name.encode(), value.encode()) for name, value in responseHeaders or ()]
        self.sendData(refusal.whole_answer(*headers))

    def onOpen(self) -> None:
        self.window = server_window(self.websocket_extensions_in_use)
        # The HTTP channel was the transport's producer.
        self.transport.unregisterProducer()
        set_read_size(self.transport, _BUFFER)
        self.transport.registerProducer(self, True)
        self._frames = FrameSender(self.transport, self.factory.turns)
        self.send_frame = self._frames.send

    def sendData(self, *args: Any, **kwargs: Any) -> None:
        # Autobahn itself sends pings, pongs and close frames through this method.
        if self._frames is not None:
            self._frames.is_behind = True
        super().sendData(*args, **kwargs)

    def onPing(self, payload: bytes) -> None:
        # A client that does not read gets no pongs: they would pile up in the transport without a bound.
        if not self._is_paused:
            super().onPing(payload)

    def pace(self, outbox: Outbox[Any]) -> None:
        """Pause and resume an outbox as the client reads."""
        self._outbox = outbox
        if self._is_paused:
            outbox.pause()
        else:
            outbox.resume()

    def send_text(self, text: bytes) -> None:
        """Send one message to this client only."""
        self.send_frame(frame_message(text, self.window))

    def report_invalid(self, error: Exception) -> None:
        """Count and log an invalid message from the client."""
        self.factory.counters.websocket_errors.inc()
        self.factory.warnings.warn(
            f"websocket {self.client_address}",
            "WebSocket message from {peer} refused: {error}",
            peer=self.client_address,
            error=error,
        )

    def close_with_code(self, code: int, reason: str) -> None:
        """Close the connection.

        :param reason: text for the client.
        """
        self.is_closing = True
        if code == UNAUTHORIZED:
            self.closeHandshakeTimeout = _CLOSE_UNAUTHORIZED
        # Not sendClose, which accepts only 1000 and 3000 to 4999.
        self.sendCloseFrame(code, reason.encode())

    def pauseProducing(self) -> None:
        self._is_paused = True
        if self._outbox is not None:
            self._outbox.pause()

    def resumeProducing(self) -> None:
        self._is_paused = False
        if self._outbox is not None:
            self._outbox.resume()

    def stopProducing(self) -> None:
        self.pauseProducing()


class PacedFactory(WebSocketServerFactory):
    """State that the WebSockets of one kind share.

    :param max_message: maximum bytes of a client's message.
    :param ping: seconds between pings, and maximum seconds until an answer; 0 for no pings.
    :param accept: function that chooses among offered compressions; by default none is accepted.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        counters: Counters,
        warnings: LimitedLog,
        max_message: int,
        ping: float,
        accept: Any = None,
    ) -> None:
        super().__init__(reactor=reactor, server=SERVER.decode())
        self.setProtocolOptions(
            webStatus=False,
            failByDrop=False,
            maxFramePayloadSize=max_message,
            maxMessagePayloadSize=max_message,
            autoPingInterval=ping,
            autoPingTimeout=ping,
            # A client that sends but does not read must answer pings too.
            autoPingRestartOnAnyTraffic=False,
            closeHandshakeTimeout=_CLOSE,
            # Origins were checked earlier: see GatewayRequest.page_refusal.
            allowedOrigins=["*"],
            **({} if accept is None else {"perMessageCompressionAccept": accept}),
        )
        self.counters = counters
        self.warnings = warnings
        self.turns = ReactorTurns(reactor)


class _SingleProtocolFactory:
    """Factory that returns one existing protocol."""

    def __init__(self, protocol: PacedWebSocket) -> None:
        self._protocol = protocol

    def buildProtocol(self, _: object) -> PacedWebSocket:
        return self._protocol


def is_websocket_request(request: GatewayRequest) -> bool:
    """Return whether a request can become a WebSocket."""
    upgrade = b",".join(request.requestHeaders.getRawHeaders(b"upgrade", []))
    return b"websocket" in upgrade.lower() and request.method == b"GET" and request.channel.transport is not None


def upgrade_to_websocket(request: GatewayRequest, factory: PacedFactory, protocol: PacedWebSocket) -> Any:
    """Turn a request's connection into a WebSocket; return the answer, a refusal if its page is not allowed."""
    refusal = request.page_refusal()
    if refusal is not None:
        return refuse(request, refusal)
    # Its origin was checked above; Autobahn would refuse some origins that server.cors_origins may list.
    request.requestHeaders.removeHeader(b"origin")
    protocol.factory = factory
    protocol.client_address = request.client_address
    protocol.principal = request.principal
    request.leave_http()
    return WebSocketResource(_SingleProtocolFactory(protocol)).render(request)
