"""WebSockets whose clients read as fast as they like."""

from collections.abc import Callable
from typing import Any, Final

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection
from zope.interface import implementer

from gateway import __version__
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.clients.deflate import framed, sound_offer, window_of
from gateway.web.clients.outbox import Outbox
from gateway.web.http.answers import Refusal, common_headers, refuse
from gateway.web.http.channel import has_sent_all
from gateway.web.http.request import GatewayRequest

#: Seconds that a client has to answer a close; a slow one has to read up to it first.
_CLOSE: Final = 10

#: Bytes that may wait in the transport itself before it asks for a pause, and that are read of a client before it is
#: another's turn: a small message costs as much as a large one.
_BUFFER: Final = 8 * 1024

#: Close codes: RFC 6455, 7.4.1, and the contract's own.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
TOO_SLOW: Final = 4008


@implementer(IPushProducer)
class PacedWebSocket(WebSocketServerProtocol):
    """A WebSocket that pauses its outbox while the client does not read.

    :ivar window: of the compression that was agreed upon, in bits; 0 is none.
    """

    factory: "PacedFactory"
    transport: Any
    window = 0

    #: Whether it has been closed by this side.
    leaving = False

    #: Sends what was framed for everybody; nothing, once either side has said that it closes.
    send_frame: Callable[[bytes], None]

    _paused = False
    _outbox: Outbox[Any] | None = None
    _frames: "_Frames | None" = None
    _state: int = WebSocketServerProtocol.STATE_CONNECTING

    @property
    def state(self) -> int:
        """Autobahn's; frames end as soon as it is another than open."""
        return self._state

    @state.setter
    def state(self, state: int) -> None:
        self._state = state
        if self._frames is not None:
            self._frames.is_open = state == self.STATE_OPEN

    def _parseExtensionsHeader(self, header: str, removeQuotes: bool = True) -> Any:
        """Leave out offers that cannot be accepted: RFC 7692, 5.1, declines them; Autobahn would refuse the client."""
        return list(filter(None, map(sound_offer, super()._parseExtensionsHeader(header, removeQuotes))))

    def onConnect(self, request: ConnectionRequest) -> tuple[None, dict[str, str]]:
        """Accept without a subprotocol; the answer has the common headers except the server's name."""
        return None, {name.decode(): value.decode() for name, value in common_headers() if name != b"Server"}

    def failHandshake(self, reason: str, *args: Any, **kwargs: Any) -> None:
        self.factory.counters.websocket_errors.inc()
        self.factory.warnings.warn(
            "websocket handshake", "WebSocket handshake of {peer} is refused: {reason}", peer=self.peer, reason=reason
        )
        super().failHandshake(reason, *args, **kwargs)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        # Autobahn's own answer has neither a body nor the common headers.
        refusal = Refusal(code, "invalid_request", reason)
        headers = [(name.encode(), value.encode()) for name, value in responseHeaders or ()]
        self.sendData(refusal.whole_answer(*headers))

    def onOpen(self) -> None:
        self.window = window_of(self.websocket_extensions_in_use)
        # The HTTP channel was the transport's producer.
        self.transport.unregisterProducer()
        self.transport.bufferSize = _BUFFER
        self.transport.registerProducer(self, True)
        self._frames = _Frames(self.transport, self.factory.turns)
        self.send_frame = self._frames.send

    def sendData(self, *args: Any, **kwargs: Any) -> None:
        # Autobahn itself sends pings, pongs and close frames through this method.
        if self._frames is not None:
            self._frames.is_behind = True
        super().sendData(*args, **kwargs)

    def onPing(self, payload: bytes) -> None:
        # A client that does not read gets no pongs: they would pile up in the transport without a bound.
        if not self._paused:
            super().onPing(payload)

    def pace(self, outbox: Outbox[Any]) -> None:
        """Let an outbox wait while the client does not read."""
        self._outbox = outbox
        if self._paused:
            outbox.pause()
        else:
            outbox.resume()

    def send_text(self, text: bytes) -> None:
        """Send one message to this client only."""
        self.send_frame(framed(text, self.window))

    def refused(self, error: Exception) -> None:
        """Count and log a message from the client that is not valid."""
        self.factory.counters.websocket_errors.inc()
        self.factory.warnings.warn(
            f"websocket {self.peer}", "WebSocket message of {peer} is refused: {error}", peer=self.peer, error=error
        )

    def leave(self, code: int, reason: str) -> None:
        """Close."""
        self.leaving = True
        # Not sendClose: it lets a program say 1000 and 3000 to 4999 only.
        self.sendCloseFrame(code, reason.encode())

    def pauseProducing(self) -> None:
        self._paused = True
        if self._outbox is not None:
            self._outbox.pause()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._outbox is not None:
            self._outbox.resume()

    def stopProducing(self) -> None:
        self.pauseProducing()


class Turns:
    """Numbers the reactor's turns, as far as somebody asks."""

    def __init__(self, reactor: Any) -> None:
        self.number = 0
        self._reactor = reactor
        self._is_counting = False

    def now(self) -> int:
        """The number of this turn; the next one has another."""
        if not self._is_counting:
            self._is_counting = True
            self._reactor.callLater(0, self._next)
        return self.number

    def _next(self) -> None:
        self._is_counting = False
        self.number += 1


class _Frames:
    """The frames to one client, and no more than that: of a thousand clients, each object that an event touches is one
    that the processor has to fetch.

    The first frame of a turn goes to the socket at once: a reactor that is told to wait until it can be written takes
    twice as long for it. What comes in the same turn is collected behind it, and goes in one piece.

    :ivar is_open: neither side has said that it closes.
    :ivar is_behind: something was handed to the transport that may wait there.
    """

    __slots__ = ("_sent_in", "_socket", "_transport", "_turns", "is_behind", "is_open")

    def __init__(self, transport: Any, turns: Turns) -> None:
        self.is_open = True
        self.is_behind = True
        self._transport = transport
        self._turns = turns
        #: The last turn in which a frame went at once.
        self._sent_in = -1
        # Not where there is TLS in between.
        self._socket = transport.socket if isinstance(transport, Connection) else None

    def send(self, frame: bytes) -> None:
        if not self.is_open:
            return
        turns = self._turns
        if self._socket is not None and self._sent_in != turns.number and not (self.is_behind and self._waits()):
            self._sent_in = turns.now()
            try:
                # Not the transport's writeSomeData, which makes a view and three more calls of it.
                sent = self._socket.send(frame)
            except OSError:
                # It takes nothing now, or is lost, which the transport finds out itself.
                sent = 0
            if sent == len(frame):
                return
            frame = frame[sent:]
        self.is_behind = True
        # Not sendData: two thirds of its time go into a line of the log that nobody reads.
        self._transport.write(frame)

    def _waits(self) -> bool:
        """Whether something waits in the transport."""
        self.is_behind = not has_sent_all(self._transport)
        return self.is_behind


class PacedFactory(WebSocketServerFactory):
    """What such WebSockets share.

    :param max_message: bytes of a client's message.
    :param ping: seconds between pings, and until an answer is missed; 0 is none.
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
        super().__init__(reactor=reactor, server=f"cynow-gateway/{__version__}")
        self.setProtocolOptions(
            webStatus=False,
            failByDrop=False,
            maxFramePayloadSize=max_message,
            maxMessagePayloadSize=max_message,
            autoPingInterval=ping,
            autoPingTimeout=ping,
            # Who talks but does not read has to answer too.
            autoPingRestartOnAnyTraffic=False,
            closeHandshakeTimeout=_CLOSE,
            # Origins were checked earlier: see GatewayRequest.page_refusal.
            allowedOrigins=["*"],
            **({} if accept is None else {"perMessageCompressionAccept": accept}),
        )
        self.counters = counters
        self.warnings = warnings
        self.turns = Turns(reactor)


class _One:
    """A factory of one protocol that has been made."""

    def __init__(self, protocol: PacedWebSocket) -> None:
        self._protocol = protocol

    def buildProtocol(self, _: object) -> PacedWebSocket:
        return self._protocol


def asks_for_websocket(request: GatewayRequest) -> bool:
    """Whether a request can become a WebSocket."""
    upgrade = b",".join(request.requestHeaders.getRawHeaders(b"upgrade", []))
    return b"websocket" in upgrade.lower() and request.method == b"GET" and request.channel.transport is not None


def take_over(request: GatewayRequest, factory: PacedFactory, protocol: PacedWebSocket) -> Any:
    """Turn a request's connection into a WebSocket; return the answer, a refusal if its page is not allowed."""
    refusal = request.page_refusal()
    if refusal is not None:
        return refuse(request, refusal)
    # Its origin was checked above; Autobahn would refuse some origins that server.cors_origins may list.
    request.requestHeaders.removeHeader(b"origin")
    protocol.factory = factory
    request.taken_over()
    return WebSocketResource(_One(protocol)).render(request)
