"""One Engine.IO session: a client by long-polling or WebSocket, its heartbeat, and what waits for it."""

import secrets
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.web.clients.outbox import ENTRY, Outbox
from gateway.web.clients.websocket import GOING_AWAY, NORMAL, TOO_SLOW
from gateway.web.socketio.packets import EnginePacketType, IgnoredPacket, Outgoing, PacketError, control, payload

log = Logger()

#: Seconds from a probe until its upgrade; Engine.IO's own server gives as many.
_UPGRADE: Final = 10.0


class Application(Protocol):
    """What sits on Engine.IO."""

    def opened(self, session: "EngineSession") -> None:
        """A client has come."""

    def received(self, session: "EngineSession", data: str | bytes) -> None:
        """Handle a message from the client.

        :raises IgnoredPacket: it is not a valid message; the session stays open.
        :raises PacketError: it is not a valid message; the session is closed.
        """

    def closed(self, session: "EngineSession") -> None:
        """It has gone."""


class Owner(Protocol):
    """The server of a session."""

    reactor: IReactorTime
    application: Application
    #: Seconds between pings, and until an answer is missed.
    ping_interval: float
    ping_timeout: float
    #: Bytes that may wait for a client, and bytes of what it sends.
    max_waiting: int
    max_payload: int

    def ended(self, session: "EngineSession", code: int) -> None:
        """A session is over, with this close code."""


class Poll(Protocol):
    """A polling request that waits for its answer."""

    def answer(self, body: bytes) -> None:
        """Answer it; it is over then."""


class Pipe(Protocol):
    """An open WebSocket."""

    def pace(self, outbox: Outbox[Outgoing]) -> None:
        """Pause and resume this outbox as the client reads."""

    def send_frame(self, frame: bytes) -> None:
        """Send a frame."""

    def hang_up(self, code: int = NORMAL) -> None:
        """Close it."""


class EngineSession:
    """One client.

    :param pipe: the WebSocket that it came by; ``None`` where it polls.
    """

    __slots__ = (
        "_expires",
        "_heartbeat",
        "_outbox",
        "_owner",
        "_pipe",
        "_poll",
        "_probe",
        "_probe_ends",
        "_probed",
        "_reactor",
        "_send_frame",
        "is_open",
        "sid",
    )

    def __init__(self, owner: Owner, pipe: Pipe | None) -> None:
        self.sid = secrets.token_urlsafe(15)
        self.is_open = True
        self._owner = owner
        self._reactor = owner.reactor
        self._pipe = pipe
        self._send_frame = None if pipe is None else pipe.send_frame
        self._poll: Poll | None = None
        #: A WebSocket that may take the place of polling.
        self._probe: Pipe | None = None
        self._probed = False
        self._probe_ends: IDelayedCall | None = None
        self._outbox: Outbox[Outgoing] = Outbox(owner.reactor, owner.max_waiting, self._send, self._too_slow)
        self._heartbeat: IDelayedCall | None = None
        #: When the session is over, unless the client answers a ping.
        self._expires = 0.0
        if pipe is None:
            self._outbox.pause()
        else:
            pipe.pace(self._outbox)

    def begin(self) -> None:
        """Say hello."""
        self._beat()
        upgrades = b'["websocket"]' if self._pipe is None else b"[]"
        self.send(
            control(
                EnginePacketType.OPEN,
                b'{"sid":"%b","upgrades":%b,"pingInterval":%d,"pingTimeout":%d,"maxPayload":%d}'
                % (
                    self.sid.encode(),
                    upgrades,
                    round(1000 * self._owner.ping_interval),
                    round(1000 * self._owner.ping_timeout),
                    self._owner.max_payload,
                ),
            )
        )
        self._owner.application.opened(self)

    # -- to the client

    def send(self, packet: Outgoing) -> None:
        """Send a packet when it is its turn."""
        if self._outbox.is_clear and self._send_frame is not None:
            self._send_frame(packet.frame)
        else:
            self._outbox.put(ENTRY + packet.cost, packet)
            self._answer_poll()

    def _send(self, packet: Outgoing) -> bool:
        if self._send_frame is not None:
            self._send_frame(packet.frame)
        return True

    def _answer_poll(self) -> None:
        """Give a poll that waits what there is for it."""
        if self._poll is not None and len(self._outbox):
            self._end_poll(payload(self._outbox.take(self._owner.max_payload)))

    def _end_poll(self, body: bytes) -> None:
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.answer(body)

    # -- from the client

    @property
    def has_expired(self) -> bool:
        """Whether it is over, though no timer has said so yet."""
        return self._reactor.seconds() >= self._expires

    @property
    def polls(self) -> bool:
        """Whether the client may poll: not once it has a WebSocket."""
        return self.is_open and self._pipe is None

    def poll(self, poll: Poll) -> bool:
        """A polling request asks for packets; whether it will be answered.

        A second one beside it ends the session.
        """
        if self._poll is not None:
            self.close()
            return False
        self._poll = poll
        self._answer_poll()
        if self._probed:
            # The client waits for the end of its poll, to go over to its WebSocket.
            self._end_poll(control(EnginePacketType.NOOP).content)
        return True

    def poll_lost(self, poll: Poll) -> None:
        """The client has left during a poll: what it would have got next may be lost, and so is the session."""
        if self._poll is poll:
            self._poll = None
            self.close()

    def receive(self, kind: EnginePacketType, data: str | bytes) -> None:
        """Handle a packet; pings are ignored, since only the server may send them.

        :raises IgnoredPacket: a client may not send it; the session stays open.
        :raises PacketError: a client may not send it; the session is closed.
        """
        if not self.is_open:
            return
        try:
            if kind is EnginePacketType.MESSAGE:
                self._owner.application.received(self, data)
            elif kind is EnginePacketType.PONG:
                self._beat()
            elif kind is EnginePacketType.CLOSE:
                self._end_poll(control(EnginePacketType.NOOP).content)
                self.close()
        except IgnoredPacket:
            raise
        except PacketError:
            self.close()
            raise

    # -- from polling to WebSocket

    def probe(self, pipe: Pipe) -> bool:
        """A WebSocket wants to take the place of polling; whether it may try."""
        if not self.polls or self._probe is not None:
            return False
        self._probe = pipe
        self._probe_ends = self._reactor.callLater(_UPGRADE, self._probe_late)
        return True

    def receive_probe(self, pipe: Pipe, kind: EnginePacketType, data: str | bytes) -> bool:
        """Take a packet that came by the WebSocket; whether it was a step of its upgrade.

        :raises PacketError: it has no business there yet.
        """
        if pipe is not self._probe:
            return False
        if kind is EnginePacketType.PING and data == "probe":
            self._probed = True
            pipe.send_frame(control(EnginePacketType.PONG, b"probe").frame)
            self._end_poll(control(EnginePacketType.NOOP).content)
        elif kind is EnginePacketType.UPGRADE and self._probed:
            self._stop_probe()
            self._pipe = pipe
            self._send_frame = pipe.send_frame
            self._end_poll(control(EnginePacketType.NOOP).content)
            pipe.pace(self._outbox)
        else:
            self.pipe_lost(pipe)
            raise PacketError("neither a probe nor an upgrade")
        return True

    def pipe_lost(self, pipe: Pipe) -> None:
        """A WebSocket has gone: with it the session, unless that only wanted to go over to it."""
        if pipe is self._probe:
            self._stop_probe()
        elif pipe is self._pipe:
            self.close()

    def _probe_late(self) -> None:
        probe, self._probe_ends = self._probe, None
        self._stop_probe()
        if probe is not None:
            probe.hang_up()

    def _stop_probe(self) -> None:
        self._probe = None
        self._probed = False
        if self._probe_ends is not None:
            self._probe_ends.cancel()
            self._probe_ends = None

    # -- heartbeat and end

    def _beat(self) -> None:
        """The client is there: the next ping is an interval away."""
        owner = self._owner
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._expires = self._reactor.seconds() + owner.ping_interval + owner.ping_timeout
        self._heartbeat = self._reactor.callLater(owner.ping_interval, self._ping)

    def _ping(self) -> None:
        self._heartbeat = self._reactor.callLater(self._owner.ping_timeout, self._expired)
        self.send(control(EnginePacketType.PING))

    def _expired(self) -> None:
        self._heartbeat = None
        self.close()

    def _too_slow(self) -> None:
        self.close(TOO_SLOW)

    def dismiss(self) -> None:
        """The gateway is stopping."""
        self.close(GOING_AWAY)

    def close(self, code: int = NORMAL) -> None:
        """Be over.

        :param code: of the close frame, where there is a WebSocket.
        """
        if not self.is_open:
            return
        self.is_open = False
        self._outbox.close()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        self._end_poll(control(EnginePacketType.CLOSE).content)
        for pipe in (self._probe, self._pipe):
            if pipe is not None:
                pipe.hang_up(code)
        self._stop_probe()
        self._owner.ended(self, code)
        try:
            self._owner.application.closed(self)
        except Exception:  # whatever an application raises, the session is over
            log.failure("an application failed on the end of a session", Failure())
