"""Transports below other transports."""

from typing import Any

from twisted.protocols.policies import ProtocolWrapper


def lowest_transport(transport: Any) -> Any:
    """Return the transport of the socket: the one below TLS, or the given one."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def set_read_size(transport: Any, size: int) -> None:
    """Set the maximum bytes of one read, which also bounds the unsent bytes above which a producer is paused."""
    # Every transport that is a file descriptor has this attribute.
    lowest_transport(transport).bufferSize = size
