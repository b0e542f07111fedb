"""Sending of WebSocket frames in few system calls."""

from typing import Any

from gateway.web.http.twisted_internals import has_sent_all, is_tcp


class ReactorTurns:
    """Numbers of the reactor's turns, counted only while a sender asks for them."""

    def __init__(self, reactor: Any) -> None:
        self.number = 0
        self._reactor = reactor
        self._is_counting = False

    def current(self) -> int:
        """Return the number of this turn; the next turn will have another one."""
        if not self._is_counting:
            self._is_counting = True
            self._reactor.callLater(0, self._next)
        return self.number

    def _next(self) -> None:
        self._is_counting = False
        self.number += 1


class FrameSender:
    """Sender of the frames to one client.

    The first frame of a turn goes to the socket at once: waiting until the socket is writable takes the reactor twice
    as long. Later frames of the same turn are collected, and sent in one piece.

    It is a small object of its own because an event touches it for each of a thousand clients.

    :ivar is_open: whether neither side has begun to close.
    :ivar is_behind: whether the transport may hold unsent bytes.
    """

    __slots__ = ("_sent_in", "_socket", "_transport", "_turns", "is_behind", "is_open")

    def __init__(self, transport: Any, turns: ReactorTurns) -> None:
        self.is_open = True
        self.is_behind = True
        self._transport = transport
        self._turns = turns
        #: Last turn in which a frame was sent at once.
        self._sent_in = -1
        # With TLS, frames must not bypass the transport.
        self._socket = transport.socket if is_tcp(transport) else None

    def send(self, frame: bytes) -> None:
        if not self.is_open:
            return
        turns = self._turns
        if self._socket is not None and self._sent_in != turns.number and not (self.is_behind and self._has_unsent()):
            self._sent_in = turns.current()
            try:
                # Not the transport's writeSomeData, which makes a view and three more calls of it.
                sent = self._socket.send(frame)
            except OSError:
                # The socket is full, or is lost, which the transport will notice.
                sent = 0
            if sent == len(frame):
                return
            frame = frame[sent:]
        self.is_behind = True
        # Not Autobahn's sendData, which spends two thirds of its time on a debug log line.
        self._transport.write(frame)

    def _has_unsent(self) -> bool:
        self.is_behind = not has_sent_all(self._transport)
        return self.is_behind
