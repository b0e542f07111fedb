"""Connections that are held unread for some time before they are closed.

DAQ programs in the field reconnect at once, again and again, when their connection is closed. A held connection costs
the gateway nothing, and slows the program down.
"""

import select
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Seconds between checks for held connections that the peer has closed; nothing reads from them.
_CHECK_INTERVAL: Final = 0.1

#: Events that show a closed peer; POLLRDHUP does not exist on every system.
_CLOSED_EVENTS: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class HeldConnections:
    """The held connections, each until its time has passed or its peer has closed it."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._held: dict[Any, IDelayedCall] = {}
        self._next_check: IDelayedCall | None = None

    def hold(self, transport: Any, seconds: float) -> None:
        """Stop reading from a connection, and close it later."""
        transport.pauseProducing()
        self._held[transport] = self._reactor.callLater(seconds, self.close, transport)
        if self._next_check is None:
            self._next_check = self._reactor.callLater(_CHECK_INTERVAL, self._check)

    def close(self, transport: Any) -> None:
        """Close a connection if it is held."""
        if self.forget(transport):
            transport.loseConnection()

    def forget(self, transport: Any) -> bool:
        """Stop holding a connection that is closed or about to be; return whether it was held."""
        call = self._held.pop(transport, None)
        if call is not None and call.active():
            call.cancel()
        if not self._held and self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None
        return call is not None

    def _check(self) -> None:
        """Close the held connections that their peers have closed."""
        self._next_check = self._reactor.callLater(_CHECK_INTERVAL, self._check)
        poll = select.poll()
        transports: dict[int, Any] = {}
        for transport in self._held:
            # Transports in memory have no descriptor; one that is being closed has -1.
            fileno = getattr(transport, "fileno", lambda: -1)()
            if fileno >= 0:
                transports[fileno] = transport
                poll.register(fileno, _CLOSED_EVENTS)
        for fileno, _ in poll.poll(0):
            self.close(transports[fileno])
