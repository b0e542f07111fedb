"""Listening ports that several processes of one machine share: the kernel spreads connections over them.

A process has its share from the moment at which it listens, whether it accepts or not. So a port is bound at once, and
listens only when its process is ready: one that is still starting gets no connection that another could serve.
"""

import socket
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory

#: As long as Twisted's own ports have it.
_BACKLOG: Final = 50


class SharedPort:
    """A TCP port that is bound, and listens once it is told to; as :class:`IListeningPort` has it.

    Processes share it that set ``SO_REUSEPORT``, all of them, and are one user's (``socket(7)``).

    :raises CannotListenError: somebody else has it.
    """

    def __init__(self, reactor: Any, port: int, factory: IProtocolFactory, backlog: int, interface: str) -> None:
        self._reactor = reactor
        self._factory = factory
        self._backlog = backlog
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        self._bound: socket.socket | None = None
        self._listening: IListeningPort | None = None
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            # For what is left of connections of before, and of gateways that did not share.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            (*_, address), *_ = socket.getaddrinfo(
                interface or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            bound.bind(address)
            # Else any program that sets it too could take the port before this one listens.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            bound.close()
            raise CannotListenError(interface, port, error) from error
        self._bound = bound

    def getHost(self) -> IAddress:
        if self._listening is not None:
            return self._listening.getHost()
        if self._bound is None:
            raise ValueError("the port is closed")
        kind = IPv6Address if self._bound.family == socket.AF_INET6 else IPv4Address
        return kind("TCP", *self._bound.getsockname()[:2])

    def startListening(self) -> None:
        """Start accepting connections, or resume after :meth:`pause`."""
        bound, self._bound = self._bound, None
        if bound is None:
            listening: Any = self._listening
            if listening is not None:
                listening.startReading()
            return
        with bound:
            bound.listen(self._backlog)
            # Its connections have it too, and keep no gateway from the port that shares it with nobody.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setblocking(False)
            self._listening = self._reactor.adoptStreamPort(bound.fileno(), bound.family, self._factory)

    def pause(self) -> None:
        """Stop accepting connections until :meth:`startListening` is called again; the kernel queues them."""
        listening: Any = self._listening
        if listening is not None:
            listening.stopReading()

    def stopListening(self) -> "Deferred[None] | None":
        """Close the port; the kernel resets connections that are queued for this process."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        listening, self._listening = self._listening, None
        return None if listening is None else listening.stopListening()


class SharedPorts:
    """What endpoints take for the reactor: its TCP ports are shared, and everything else is the reactor's own."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = _BACKLOG, interface: str = ""
    ) -> SharedPort:
        return SharedPort(self._reactor, port, factory, backlog, interface)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
