"""Commands to scales that answer only when asked."""

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from gateway.config.scale_settings import PollSettings


@implementer(IPushProducer)
class _FullBuffer:
    """A producer that notes whether the transport's buffer is full."""

    is_full = False

    def pauseProducing(self) -> None:
        self.is_full = True

    def resumeProducing(self) -> None:
        """Do nothing: the producer is registered for a moment only."""

    def stopProducing(self) -> None:
        """Do nothing: a connection that has ended needs no commands."""


class Poller:
    """The commands of one connection.

    :param addresses: addresses of the scales behind the line, asked in turn; empty for one scale.
    :param stuck: called if the peer has not read the commands for so long that the transport's buffer is full.
    """

    def __init__(
        self,
        transport: Any,
        poll: PollSettings,
        addresses: Iterable[str],
        reactor: IReactorTime,
        stuck: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._poll = poll
        self._stuck = stuck
        addresses = list(addresses)
        self._greeting = poll.greeting(addresses)
        self._commands = cycle(poll.commands(addresses))
        self._reactor = reactor
        self._checking: IDelayedCall | None = None
        self._asking = LoopingCall(self._ask)
        self._asking.clock = reactor

    def start(self, *, is_new: bool) -> None:
        """Start to send commands.

        :param is_new: whether the connection has just been made; ``at_connect`` is sent, and the first command an
            interval later, since a scale needs a moment after it.
        """
        has_greeting = is_new and bool(self._greeting)
        if has_greeting:
            self._write(self._greeting)
        self._asking.start(self._poll.interval_ms / 1000, now=not has_greeting)

    def stop(self) -> None:
        """Send no more commands."""
        if self._asking.running:
            self._asking.stop()
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
            self._transport.unregisterProducer()

    def _ask(self) -> None:
        if not self._transport.disconnecting:
            self._write(next(self._commands))

    def _write(self, data: bytes) -> None:
        if self._checking is not None:
            return
        buffer = _FullBuffer()
        # For a moment only: a registered producer would keep TLS from closing the connection.
        self._transport.registerProducer(buffer, True)
        self._transport.write(data)
        # Not at once: TLS collects small writes until the reactor's next turn.
        self._checking = self._reactor.callLater(0, self._check, buffer)

    def _check(self, buffer: _FullBuffer) -> None:
        self._checking = None
        self._transport.unregisterProducer()
        if buffer.is_full:
            self._stuck()
