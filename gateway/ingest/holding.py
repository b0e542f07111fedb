"""Connections that are held unread for some time before they are closed.

The field's DAQ programs connect again at once when they are closed, without end. What is held costs nothing, and its
program nothing but time.
"""

import select
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How often it is looked whether a peer has closed its connection meanwhile, in seconds: nobody reads it.
_LOOK: Final = 0.1

#: Not every system tells.
_GONE: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Holding:
    """Connections that are held, each until its time has come or its peer is gone."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._held: dict[Any, IDelayedCall] = {}
        self._looking: IDelayedCall | None = None

    def __contains__(self, transport: object) -> bool:
        return transport in self._held

    def hold(self, transport: Any, seconds: float) -> None:
        """Read nothing more of a connection, and close it later."""
        transport.pauseProducing()
        self._held[transport] = self._reactor.callLater(seconds, self.close, transport)
        if self._looking is None:
            self._looking = self._reactor.callLater(_LOOK, self._look)

    def close(self, transport: Any) -> None:
        """Close a connection that is held; of another, do nothing."""
        if self.forget(transport):
            transport.loseConnection()

    def forget(self, transport: Any) -> bool:
        """Hold a connection no more, which is closed or will be; returns whether it was held."""
        call = self._held.pop(transport, None)
        if call is not None and call.active():
            call.cancel()
        if not self._held and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        return call is not None

    def _look(self) -> None:
        """Close those whose peer has closed its end."""
        self._looking = self._reactor.callLater(_LOOK, self._look)
        poll = select.poll()
        transports: dict[int, Any] = {}
        for transport in self._held:
            # Transports in memory have none; one that is being closed has -1.
            fileno = getattr(transport, "fileno", lambda: -1)()
            if fileno >= 0:
                transports[fileno] = transport
                poll.register(fileno, _GONE)
        for fileno, _ in poll.poll(0):
            self.close(transports[fileno])
