"""Settings of the transports of scales and DAQ programs, and descriptions of their errors."""

import os
import socket
from typing import Any, Final

from twisted.internet import error as errors
from twisted.internet.interfaces import ITCPTransport

from gateway.runtime.listener import PortDirectory
from gateway.runtime.transports import lowest_transport, set_read_size
from gateway.wire.other_protocols import ServedPorts

#: TCP keep-alive: a peer that vanishes (a cable, a power cut) is noticed after 15 + 3 x 5 seconds of silence.
KEEP_ALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

#: Maximum bytes of one read: 800 lines of a scale, a quarter of Twisted's default. A peer that sends lines without
#: pause then occupies the reactor for at most a tenth of a second at a time.
READ_SIZE: Final = 16 * 1024


def prepare(transport: Any, read_size: int = READ_SIZE) -> None:
    """Set keep-alive and the size of reads of a TCP transport, also below TLS; other transports are left as they are.

    :param read_size: maximum bytes of one read.
    """
    below = lowest_transport(transport)
    if not ITCPTransport.providedBy(below):
        return
    below.setTcpKeepAlive(True)
    set_read_size(below, read_size)
    # Twisted's TCP transports have it, but their interface does not.
    handle: socket.socket = below.getHandle()  # type: ignore[attr-defined]  # see above
    for option, seconds in KEEP_ALIVE:
        # Not every system has all three.
        if hasattr(socket, option):
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)


def peer_of(transport: Any) -> str:
    """Return the address of the peer of a transport, for a log line."""
    peer: Any = transport.getPeer()
    return f"{peer.host}:{peer.port}" if hasattr(peer, "port") else str(peer)


def host_of(peer: str) -> str:
    """Return the host of a peer from :func:`peer_of`: log lines are limited for each host."""
    return peer.rpartition(":")[0] or peer


_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (errors.ConnectionRefusedError, "connection refused"),
    (errors.TCPTimedOutError, "timed out"),
    (errors.TimeoutError, "timed out"),
    (errors.NoRouteError, "no route to the host"),
    (errors.DNSLookupError, "host name not found"),
    (errors.UnknownHostError, "host name not found"),
)


def failure_reason(error: BaseException | None) -> str:
    """Return the reason in plain English why a connection could not be made, or a device could not be opened."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    # Twisted's connection errors keep the operating system's error, or only its number.
    number = getattr(error, "osError", None)
    number = getattr(number, "errno", number) or getattr(error, "errno", None)
    if number is None and error is not None and error.args and isinstance(error.args[0], int):
        number = error.args[0]
    text = os.strerror(number) if isinstance(number, int) else str(error).partition("\n")[0]
    return text[:1].lower() + text[1:] if text else type(error).__name__


def end_reason(error: BaseException | None) -> str:
    """Return the reason in plain English why a connection ended that the gateway did not close itself."""
    if isinstance(error, errors.ConnectionDone):
        return "closed by the peer"
    if isinstance(error, errors.ConnectionAborted):
        return "closed by the gateway"
    # "Connection to the other side was lost in a non-clean fashion: Connection reset by peer."
    text = str(error).rpartition(": ")[2].rstrip(".")
    return text[:1].lower() + text[1:] if text else type(error).__name__


def served_ports(ports: PortDirectory) -> ServedPorts:
    """Return where other protocols are served, as the ends of log lines about clients on the wrong port."""
    scales = [str(port) for port in ports.scales]
    if len(scales) == 1:
        scale = f": its port is {scales[0]}"
    else:
        scale = f": ports of scales are {', '.join(scales)}" if scales else ""
    return ServedPorts("" if ports.http is None else f"; HTTP is served on port {ports.http}", scale)
