"""Engine.IO sessions: one client by long-polling or WebSocket, with its heartbeat and its outbox."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.auth.principal import EVERYBODY, Principal
from gateway.web.clients.outbox import ENTRY, Outbox
from gateway.web.clients.websocket import GOING_AWAY, NORMAL, TOO_SLOW, UNAUTHORIZED
from gateway.web.socketio.packets import EnginePacketType, IgnoredPacket, Outgoing, PacketError, control, payload

log = Logger()

#: Maximum seconds from the probe of a WebSocket to its upgrade, as in Engine.IO's own server.
_UPGRADE: Final = 10.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Times and bounds of the sessions of a server.

    :ivar ping_interval: seconds between pings.
    :ivar ping_timeout: maximum seconds until a client answers a ping.
    :ivar max_payload: maximum bytes of one message or polling request of a client.
    :ivar max_waiting: maximum bytes that wait for a client.
    """

    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000
    max_waiting: int = 1024 * 1024


class Application(Protocol):
    """User of Engine.IO sessions."""

    def on_open(self, session: "EngineSession") -> None:
        """Handle a new session."""

    def on_message(self, session: "EngineSession", data: str | bytes) -> None:
        """Handle a message from the client.

        :raises IgnoredPacket: not a valid message; the session stays open.
        :raises PacketError: not a valid message; the session is closed.
        """

    def on_close(self, session: "EngineSession") -> None:
        """Handle the end of a session."""


class SessionOwner(Protocol):
    """Server of a session."""

    reactor: IReactorTime
    application: Application
    settings: EngineSettings

    def remove(self, session: "EngineSession", code: int) -> None:
        """Remove a session that has ended with this close code."""


class PendingPoll(Protocol):
    """Polling request that waits for its answer."""

    def answer(self, body: bytes) -> None:
        """Answer and end the request."""


class Pipe(Protocol):
    """Open WebSocket of a session."""

    def pace(self, outbox: Outbox[Outgoing]) -> None:
        """Pause and resume an outbox as the client reads."""

    def send_frame(self, frame: bytes) -> None:
        """Send a frame."""

    def hang_up(self, code: int = NORMAL) -> None:
        """Close the WebSocket."""


class EngineSession:
    """Session of one client.

    :param pipe: WebSocket by which the client connected; ``None`` if it polls.
    :param principal: rights of the request that opened it.
    :ivar joined_as: rights with which its client has joined namespaces.
    """

    __slots__ = (
        "_expires",
        "_heartbeat",
        "_outbox",
        "_owner",
        "_pipe",
        "_poll",
        "_probe",
        "_probe_answered",
        "_probe_deadline",
        "_reactor",
        "_send_frame",
        "is_open",
        "joined_as",
        "principal",
        "sid",
    )

    def __init__(self, owner: SessionOwner, pipe: Pipe | None, principal: Principal = EVERYBODY) -> None:
        self.principal = principal
        self.joined_as: set[Principal] = set()
        self.sid = secrets.token_urlsafe(15)
        self.is_open = True
        self._owner = owner
        self._reactor = owner.reactor
        self._pipe = pipe
        self._send_frame = None if pipe is None else pipe.send_frame
        self._poll: PendingPoll | None = None
        #: WebSocket that may replace polling.
        self._probe: Pipe | None = None
        self._probe_answered = False
        self._probe_deadline: IDelayedCall | None = None
        self._outbox: Outbox[Outgoing] = Outbox(owner.reactor, owner.settings.max_waiting, self._send, self._close_slow)
        self._heartbeat: IDelayedCall | None = None
        #: Time of the reactor at which the session ends unless the client answers a ping.
        self._expires = 0.0
        if pipe is None:
            self._outbox.pause()
        else:
            pipe.pace(self._outbox)

    def start(self) -> None:
        """Send the OPEN packet, and hand the session to the application."""
        settings = self._owner.settings
        self._restart_heartbeat()
        upgrades = b'["websocket"]' if self._pipe is None else b"[]"
        self.send(
            control(
                EnginePacketType.OPEN,
                b'{"sid":"%b","upgrades":%b,"pingInterval":%d,"pingTimeout":%d,"maxPayload":%d}'
                % (
                    self.sid.encode(),
                    upgrades,
                    round(1000 * settings.ping_interval),
                    round(1000 * settings.ping_timeout),
                    settings.max_payload,
                ),
            )
        )
        self._owner.application.on_open(self)

    # -- to the client

    def send(self, packet: Outgoing) -> None:
        """Send a packet, after those that already wait."""
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
        """Answer a waiting poll with the packets that wait."""
        if self._poll is not None and len(self._outbox):
            self._end_poll(payload(self._outbox.take(self._owner.settings.max_payload)))

    def _end_poll(self, body: bytes) -> None:
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.answer(body)

    # -- from the client

    @property
    def has_expired(self) -> bool:
        """Return whether a ping was not answered in time, even if the timer has not fired yet."""
        return self._reactor.seconds() >= self._expires

    @property
    def can_poll(self) -> bool:
        """Return whether the client may poll, having no WebSocket."""
        return self.is_open and self._pipe is None

    def add_poll(self, poll: PendingPoll) -> bool:
        """Accept a polling request, to be answered with the next packets; return whether it is accepted.

        A second one at the same time closes the session.
        """
        if self._poll is not None:
            self.close()
            return False
        self._poll = poll
        self._answer_poll()
        if self._probe_answered:
            # The client waits for the end of its poll before it uses its WebSocket.
            self._end_poll(control(EnginePacketType.NOOP).content)
        return True

    def on_poll_lost(self, poll: PendingPoll) -> None:
        """Close the session if its client left during a poll, since the next packets may be lost."""
        if self._poll is poll:
            self._poll = None
            self.close()

    def receive(self, kind: EnginePacketType, data: str | bytes) -> None:
        """Handle a packet; pings are ignored, since only the server may send them.

        :raises IgnoredPacket: a client may not send this packet; the session stays open.
        :raises PacketError: a client may not send this packet; the session is closed.
        """
        if not self.is_open:
            return
        try:
            if kind is EnginePacketType.MESSAGE:
                self._owner.application.on_message(self, data)
            elif kind is EnginePacketType.PONG:
                self._restart_heartbeat()
            elif kind is EnginePacketType.CLOSE:
                self._end_poll(control(EnginePacketType.NOOP).content)
                self.close()
        except IgnoredPacket:
            raise
        except PacketError:
            self.close()
            raise

    # -- upgrade from polling to WebSocket

    def add_probe(self, pipe: Pipe) -> bool:
        """Accept a WebSocket that may replace polling; return whether it is accepted."""
        if not self.can_poll or self._probe is not None:
            return False
        self._probe = pipe
        self._probe_deadline = self._reactor.callLater(_UPGRADE, self._drop_probe)
        return True

    def receive_probe(self, pipe: Pipe, kind: EnginePacketType, data: str | bytes) -> bool:
        """Handle a packet from a WebSocket if it belongs to the upgrade; return whether it does.

        :raises PacketError: not valid before the upgrade.
        """
        if pipe is not self._probe:
            return False
        if kind is EnginePacketType.PING and data == "probe":
            self._probe_answered = True
            pipe.send_frame(control(EnginePacketType.PONG, b"probe").frame)
            self._end_poll(control(EnginePacketType.NOOP).content)
        elif kind is EnginePacketType.UPGRADE and self._probe_answered:
            self._stop_probe()
            self._pipe = pipe
            self._send_frame = pipe.send_frame
            self._end_poll(control(EnginePacketType.NOOP).content)
            pipe.pace(self._outbox)
        else:
            self.on_pipe_lost(pipe)
            raise PacketError("neither a probe nor an upgrade")
        return True

    def on_pipe_lost(self, pipe: Pipe) -> None:
        """Close the session if it used this WebSocket; otherwise only end the upgrade."""
        if pipe is self._probe:
            self._stop_probe()
        elif pipe is self._pipe:
            self.close()

    def _drop_probe(self) -> None:
        probe, self._probe_deadline = self._probe, None
        self._stop_probe()
        if probe is not None:
            probe.hang_up()

    def _stop_probe(self) -> None:
        self._probe = None
        self._probe_answered = False
        if self._probe_deadline is not None:
            self._probe_deadline.cancel()
            self._probe_deadline = None

    # -- heartbeat and end

    def _restart_heartbeat(self) -> None:
        """Schedule the next ping: the client has just been active."""
        settings = self._owner.settings
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._expires = self._reactor.seconds() + settings.ping_interval + settings.ping_timeout
        self._heartbeat = self._reactor.callLater(settings.ping_interval, self._ping)

    def _ping(self) -> None:
        self._heartbeat = self._reactor.callLater(self._owner.settings.ping_timeout, self._expire)
        self.send(control(EnginePacketType.PING))

    def _expire(self) -> None:
        self._heartbeat = None
        self.close()

    def _close_slow(self) -> None:
        self.close(TOO_SLOW)

    @property
    def principals(self) -> Iterable[Principal]:
        return self.joined_as

    def close_unauthorized(self) -> None:
        self.close(UNAUTHORIZED)

    def close_for_shutdown(self) -> None:
        self.close(GOING_AWAY)

    def close(self, code: int = NORMAL) -> None:
        """Close the session.

        :param code: code of the close frame, if the client has a WebSocket.
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
        self._owner.remove(self, code)
        try:
            self._owner.application.on_close(self)
        except Exception:  # the session has ended whatever the application raises
            log.failure("Socket.IO session {sid}: cannot handle its end", Failure(), sid=self.sid)
