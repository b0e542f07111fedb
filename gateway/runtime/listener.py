"""Listening ports of the daemon."""

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.runtime.open_files import GuardedFactory, OpenFiles
from gateway.runtime.ports import SharedPort

log = Logger()

#: Seconds for which a port stops accepting after it refused a connection: a refused peer may return at once.
_PAUSE: Final = 1.0


class StartError(Exception):
    """Error that keeps the daemon from starting; the text is one line for the operator."""


class Listener:
    """One endpoint and the factory that listens there.

    :param key: configuration key of the port, for log lines.
    :param host_key: key of the host, if that has a key of its own.
    """

    def __init__(
        self, key: str, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, host_key: str | None = None
    ) -> None:
        self.key = key
        self._host_key = host_key or key
        self._endpoint = endpoint
        self._factory = factory
        self._port: IListeningPort | SharedPort | None = None
        self._resume: Any = None
        self._was_accepting = False

    def guard(self, reactor: Any, files: OpenFiles, spare: int) -> None:
        """Refuse connections that leave fewer than ``spare`` open files free; call this before :meth:`listen`."""

        def refused() -> None:
            files.refuse(self.key)
            if self._resume is None and self._port is not None:
                self._pause()
                self._resume = reactor.callLater(_PAUSE, resume)

        def resume() -> None:
            self._resume = None
            self.accept()

        self._factory = GuardedFactory(self._factory, files, spare, refused)

    def _pause(self) -> None:
        if isinstance(self._port, FileDescriptor):
            self._port.stopReading()
        elif isinstance(self._port, SharedPort):
            self._port.pause()

    def listen(self) -> None:
        """Bind the port. Connections are queued until :meth:`accept`, or go to other processes that share the port.

        :raises StartError: the port cannot be bound.
        """
        failures: list[Failure] = []
        self._endpoint.listen(self._factory).addCallbacks(self._listening, failures.append)
        if failures:
            error = failures[0].value
            cause = error.socketError if isinstance(error, CannotListenError) else None
            # The port is not to blame for a name that does not resolve.
            key = self._host_key if isinstance(cause, socket.gaierror) else self.key
            raise StartError(f"{key}: {_cannot_listen(error)}")

    def _listening(self, port: IListeningPort | SharedPort) -> None:
        self._port = port
        if isinstance(port, FileDescriptor):
            port.stopReading()
        address = port.getHost()
        where = f"{address.host}:{address.port}" if isinstance(address, IPv4Address | IPv6Address) else str(address)
        what = "shares" if isinstance(port, SharedPort) else "listening on"
        log.info("{key}: {what} {where}", key=self.key, what=what, where=where)

    @property
    def problem(self) -> str | None:
        """Reason why no connection is accepted; ``None`` if the port works, or pauses for a moment."""
        port = self._port
        if port is not None and self._was_accepting and (not isinstance(port, FileDescriptor) or port.connected):
            return None
        return f"{self.key}: no connections are accepted"

    @property
    def open_address(self) -> str | None:
        """Address at which other machines reach the port; ``None`` if only this machine does."""
        address = None if self._port is None else self._port.getHost()
        if not isinstance(address, IPv4Address | IPv6Address) or ip_address(address.host.partition("%")[0]).is_loopback:
            return None
        return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"

    @property
    def port_number(self) -> int | None:
        """The TCP port; ``None`` if it is not known yet, or the endpoint is of another kind."""
        address = None if self._port is None else self._port.getHost()
        return address.port if isinstance(address, IPv4Address | IPv6Address) else None

    def accept(self) -> None:
        """Start accepting connections, including those queued since :meth:`listen`."""
        self._was_accepting = True
        if isinstance(self._port, FileDescriptor):
            self._port.startReading()
        elif isinstance(self._port, SharedPort):
            self._port.startListening()

    def stop(self) -> "Deferred[None] | None":
        """Close the port."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        port, self._port = self._port, None
        stopped: Deferred[None] | None = None if port is None else port.stopListening()
        return stopped


class PortDirectory:
    """Ports on which the gateway serves other protocols, for log lines about clients on the wrong port.

    :ivar http_listener: listener of HTTP, once there is one.
    :ivar scale_listeners: listeners of the scales that connect to the gateway.
    """

    def __init__(self) -> None:
        self.http_listener: Listener | None = None
        self.scale_listeners: Sequence[Listener] = ()

    @property
    def http(self) -> int | None:
        """The port of HTTP; ``None`` if it is not known yet."""
        return None if self.http_listener is None else self.http_listener.port_number

    @property
    def scales(self) -> list[int]:
        """The known ports of scales that connect to the gateway."""
        return [port for port in (listener.port_number for listener in self.scale_listeners) if port is not None]


def _cannot_listen(error: BaseException | None) -> str:
    if isinstance(error, CannotListenError):
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        # The port of a socket in the file system is its path.
        where = f"{error.interface or '*'}:{error.port}" if isinstance(error.port, int) else error.port
        return f"cannot listen on {where}: {reason}"
    if isinstance(error, FileNotFoundError):
        # Twisted makes a symbolic link, its lock, beside a socket in the file system.
        folder = os.path.dirname(os.fsdecode(error.filename2 or error.filename or ""))
        return f"cannot listen: the folder {folder} does not exist; create it"
    if isinstance(error, OSError):
        return f"cannot listen on {os.fsdecode(error.filename2 or error.filename or '')}: {error.strerror}"
    return f"cannot listen: {error}"
