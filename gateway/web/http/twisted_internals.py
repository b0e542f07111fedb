"""Names of Twisted's HTTP server and TCP transport that have no documented replacement.

Only this module uses them. A test fails when one of them is missing in the installed Twisted.
"""

import fcntl
import sys
import termios
from typing import Any

from twisted.internet.tcp import Connection
from twisted.web.http import HTTPChannel
from twisted.web.server import Request


def is_tcp(transport: Any) -> bool:
    """Return whether a transport is Twisted's own for TCP, without TLS, so that the functions below apply."""
    return isinstance(transport, Connection)


def unread_bytes(transport: Any) -> int:
    """Return the number of sent bytes that a client has not read yet.

    They are in the TCP transport and in the operating system (``SIOCOUTQ``, ``tcp(7)``), which buffers a megabyte for
    a client that reads nothing.
    """
    waiting = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    if transport.fileno() >= 0:
        waiting += int.from_bytes(fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    return int(waiting)


def has_sent_all(transport: Any) -> bool:
    """Return whether a TCP transport has no more bytes to send."""
    return not (transport.dataBuffer or transport._tempDataBuffer)


def send_at_once(transport: Any, data: bytes) -> bytes:
    """Write to the socket of a TCP transport that has sent everything; return the bytes that it did not take."""
    sent = transport.writeSomeData(data)
    # If the connection is lost, this is an exception; the reactor will notice the loss.
    return data[sent:] if isinstance(sent, int) else data


class OpenHTTPChannel(HTTPChannel):
    """HTTP channel whose parser and flow control can be observed and changed."""

    transport: Any

    @property
    def buffered_bytes(self) -> int:
        """Bytes of requests that have arrived and are not parsed yet."""
        return len(self._buffer)

    @property
    def is_answering(self) -> bool:
        return bool(self._handlingRequest)

    @property
    def is_write_paused(self) -> bool:
        """Return whether the transport has asked for a pause, because the client does not read."""
        return bool(self._waitingForTransport)

    @property
    def has_large_head(self) -> bool:
        """Return whether the head being parsed exceeds ``totalHeadersSize`` or ``maxHeaders``."""
        return bool(self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders)

    def pause_reading(self) -> None:
        self._networkProducer.pauseProducing()

    def resume_reading(self) -> None:
        self._networkProducer.resumeProducing()

    def refuse_malformed(self) -> None:
        """Answer a request that the parser refuses, and close the connection."""
        raise NotImplementedError

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's method writes a bare status line, and does not log anything.
        self.refuse_malformed()


class OpenRequest(Request):
    """Request that can answer ``OPTIONS *`` as Twisted does."""

    def answer_star(self) -> None:
        self._handleStar()
