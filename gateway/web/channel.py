"""One HTTP connection, and how answers go to its socket."""

from typing import Any, Final

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers

#: What is read of a connection before the others have their turn, in bytes.
_READ_SIZE: Final = 8 * 1024


def has_sent_all(transport: Any) -> bool:
    """Whether nothing waits in a TCP transport, which has no public way to ask."""
    return not (transport.dataBuffer or transport._tempDataBuffer)


class GatewayChannel(HTTPChannel):
    """One HTTP connection, counted by its site until it is lost or has become something else.

    The head of an answer waits for the first of its body, and both go to the socket at once: a reactor that is told to
    wait until it can be written asks the operating system three times for it.
    """

    counted = False
    site: Any
    transport: Any

    def connectionMade(self) -> None:
        self.counted = True
        self._head = b""
        self._is_bare = isinstance(self.transport, Connection)
        # Every request asks for them, and they do not change.
        self._peer: IAddress = self.transport.getPeer()
        self._host: IAddress = self.transport.getHost()
        # Few requests of a client that sends many at once are answered before it is another's turn.
        self.transport.bufferSize = _READ_SIZE
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.leave()
        super().connectionLost(reason)

    def leave(self) -> None:
        """Be an HTTP connection no more."""
        if self.counted:
            self.counted = False
            self.site.left()

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        return self._host

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        lines = [b"%b: %b\r\n" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        self._head = b"%b %b %b\r\n%b\r\n" % (version, code, reason, b"".join(lines))

    def write(self, data: bytes) -> None:
        if self._head:
            self.send_head(data)
        else:
            self.transport.write(data)

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def send_head(self, data: bytes = b"") -> None:
        """Send the head of an answer, where it was not sent yet, and what comes behind it."""
        if not self._head:
            return
        data, self._head = self._head + data, b""
        if self._is_bare and has_sent_all(self.transport):
            sent = self.transport.writeSomeData(data)
            # It is none where the connection is lost, which the reactor will find out.
            if isinstance(sent, int):
                data = data[sent:]
        if data:
            self.transport.write(data)
