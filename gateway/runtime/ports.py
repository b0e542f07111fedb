"""Listening ports that several processes of one machine share: the kernel spreads connections over them.

The kernel gives a process its share as soon as it listens, whether it accepts or not. So a port is bound at once, but
listens only when its process is ready: a starting process gets no connection that another one could serve.
"""

import socket
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory

#: Maximum queued connections; the default of Twisted's ports.
_BACKLOG: Final = 50


class SharedPort:
    """TCP port that is bound at once and listens on request; it has the methods of :class:`IListeningPort`.

    All processes that share it must set ``SO_REUSEPORT`` and belong to the same user (``socket(7)``).

    :raises CannotListenError: another program uses the port.
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
            # Old connections, and those of gateways that did not share, must not block the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            (*_, address), *_ = socket.getaddrinfo(
                interface or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            bound.bind(address)
            # Otherwise any program that sets it too could take the port before this one listens.
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
            # Connections inherit it, and then do not block a later gateway that does not share the port.
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
    """Reactor for endpoints whose TCP ports are shared; everything else is passed to the real reactor."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = _BACKLOG, interface: str = ""
    ) -> SharedPort:
        return SharedPort(self._reactor, port, factory, backlog, interface)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
