"""HTTP connections with deadlines, turns and direct writes to the socket."""

import re
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from gateway.config.settings import LimitSettings
from gateway.runtime.transports import lowest_transport, set_read_size
from gateway.web.http.answers import Refusal
from gateway.web.http.malformed import header_fault, is_unsupported_coding, request_line_fault
from gateway.web.http.twisted_internals import OpenHTTPChannel, has_sent_all, is_tcp, send_at_once, unread_bytes

#: Maximum bytes read from a connection before the others have their turn.
_READ_SIZE: Final = 8 * 1024

#: Maximum bytes of requests that wait behind the one being answered; above it, reading stops.
_MAX_WAITING: Final = 16 * 1024

#: Maximum bytes and seconds of input that is still read after a refusal: a connection that is closed with unread bytes
#: is reset, and the client never sees its answer.
_LINGER_BYTES: Final = 1024 * 1024
_LINGER_SECONDS: Final = 2.0

#: Maximum digits of a Content-Length that is read as a number.
_MAX_LENGTH_DIGITS: Final = 18

_RAW_TEXT: Final = re.compile(rb"[\x80-\xff]")

#: First bytes of a TLS handshake (RFC 8446, 5.1).
_TLS: Final = b"\x16\x03"

# Phases of a connection.
_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_ANSWER: Final = 3
_CLOSING: Final = 4


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of a connection, in seconds.

    :ivar head: maximum time from the first byte of a request's head to its end.
    :ivar idle: maximum time without a request.
    :ivar grace: maximum time by which a body, or the reading of an answer, may fall behind ``rate``.
    :ivar rate: minimum rate, in bytes a second.
    """

    head: float = 10.0
    idle: float = 75.0
    grace: float = 10.0
    rate: float = 1024.0

    @classmethod
    def of(cls, limits: LimitSettings) -> "Deadlines":
        """Return the configured time limits."""
        return cls(limits.head_timeout_sec, limits.idle_timeout_sec, limits.grace_sec, limits.min_bytes_per_second)


class GatewayChannel(OpenHTTPChannel):
    """HTTP connection that its site counts until it is lost or is used for another protocol.

    A client that sends many requests at once gets one answer in each turn of the reactor, and none while it has not
    read the earlier ones. The site calls :meth:`tick` about once a second, which enforces the deadlines: no request
    starts or stops a timer.

    The head of an answer waits for the first part of its body, and both go to the socket at once: waiting until the
    socket can be written costs the reactor three system calls.
    """

    counted = False
    site: Any

    #: Header with a valid token of an earlier request, as the gate remembers it.
    known_header: Any = None

    def connectionMade(self) -> None:
        self.counted = True
        self._head = b""
        self._is_bare = is_tcp(self.transport)
        #: The transport of the socket, also below TLS; ``None`` if its unread bytes cannot be counted.
        self._socket = lowest_transport(self.transport) if is_tcp(lowest_transport(self.transport)) else None
        # Every request asks for them, and they do not change.
        self._peer: IAddress = self.transport.getPeer()
        self._host: IAddress = self.transport.getHost()
        #: Phase of the connection, and its age in seconds, as counted by :meth:`tick`; negative before the first tick.
        self._phase = _IDLE
        self._age = -1.0
        #: Bytes received and bytes written, and at the last tick bytes received and bytes that the client had read.
        self._received = 0
        self._written = 0
        self._received_before = 0
        self._read_before = 0
        #: Seconds by which the body, and the reading of answers, may still fall behind.
        self._body_credit = 0.0
        self._reader_credit = self.site.deadlines.grace
        #: Bytes received after the refusal of a request.
        self._lingered = 0
        self._is_in_request_line = True
        #: The line of a head that is being parsed.
        self._line = b""
        # With small reads, a client that sends many requests at once does not delay the other clients.
        set_read_size(self.transport, _READ_SIZE)
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.leave()
        super().connectionLost(reason)

    def leave(self) -> None:
        """Stop counting as an HTTP connection: it is lost, or is used for another protocol."""
        if self.counted:
            self.counted = False
            self.site.remove(self)

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        return self._host

    # -- input

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._phase == _CLOSING:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self.transport.abortConnection()
            return
        # An empty line before a request is ignored (RFC 9112, 2.2), and some clients send it long before.
        if self._phase == _IDLE and data != b"\r\n":
            self._enter(_HEAD)
            if data.startswith(_TLS):
                self.close_with(
                    Refusal(400, "bad_request", detail="a TLS handshake; use http://, this port has no TLS")
                )
                return
        super().dataReceived(data)
        if self.paused and self.buffered_bytes > _MAX_WAITING and self._phase != _CLOSING:
            self.pause_reading()

    def lineReceived(self, line: bytes) -> None:
        if self._is_in_request_line and line:
            # Some clients send raw UTF-8, though RFC 3986 requires escapes.
            self._line = line = _RAW_TEXT.sub(lambda match: b"%%%02X" % match[0][0], line)
            super().lineReceived(line)
            self._is_in_request_line = False
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        self.close_with(Refusal(431, "head_too_large", detail=f"a line of more than {self.MAX_LENGTH} bytes"))

    def headerReceived(self, line: bytes) -> bool:
        self._line = line
        name, _, value = line.partition(b":")
        # Most names are ruled out by their first letter.
        if name[:1] in b"Tt" and is_unsupported_coding(name, value):
            # Twisted's parser accepts `identity`, which RFC 9112 has abolished, and reads the body as the next request.
            self.refuse_malformed()
            return False
        if len(value) > _MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            digits = value.strip(b" \t").lstrip(b"0")
            if len(digits) > _MAX_LENGTH_DIGITS and digits.isdigit():
                self.close_with(Refusal(413, "body_too_large", detail="Content-Length of more than 18 digits"))
                return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        # This check comes before the client is told to continue.
        max_length: int = self.site.max_refused_body
        if self.length is not None and self.length > max_length:
            self.close_with(Refusal(413, "body_too_large", detail=f"Content-Length {self.length}"))
            return
        super().allHeadersReceived()
        self._body_credit = self.site.deadlines.grace
        self._enter(_BODY)

    def allContentReceived(self) -> None:
        if self._phase != _CLOSING:
            self._enter(_ANSWER)
            super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        # Requests that have already arrived wait for the next turn.
        self.paused = True
        self._is_in_request_line = True
        self._enter(_IDLE)
        super().requestDone(request)
        if not self.counted:
            return
        if self.is_write_paused:
            # Reading goes on in resumeProducing, once the client has read the answer.
            self.pause_reading()
        elif self.buffered_bytes:
            self.site.queue_turn(self)
        else:
            self.paused = False

    def answer_next(self) -> None:
        """Answer the next waiting request."""
        if self.is_write_paused or self._phase == _CLOSING or not self.counted:
            return
        self.paused = False
        if self.buffered_bytes:
            self._enter(_HEAD)
            super().dataReceived(b"")
        if not self.is_answering and self.buffered_bytes <= _MAX_WAITING:
            self.resume_reading()

    def resumeProducing(self) -> None:
        super().resumeProducing()
        if self.paused and not self.is_answering and self.counted:
            self.site.queue_turn(self)

    # -- deadlines

    @property
    def is_idle(self) -> bool:
        """Return whether the connection waits for a request of which no byte has arrived."""
        return self._phase == _IDLE

    def _enter(self, phase: int) -> None:
        self._phase = phase
        self._age = -1.0

    def tick(self, seconds: float) -> None:
        """Close the connection if its client was too slow.

        :param seconds: seconds since the last tick.
        """
        # A phase may have begun just now: its time counts from its first tick on, so that no deadline is early.
        passed = 0.0 if self._age < 0 else seconds
        self._age = max(0.0, self._age) + passed
        if self._phase == _CLOSING:
            if self._age > _LINGER_SECONDS:
                self.transport.abortConnection()
            return
        deadlines = self.site.deadlines
        # No system call if the client had read everything at the last tick and nothing was written since.
        is_read = self._socket is None or self._written == self._read_before
        unread = 0 if is_read else unread_bytes(self._socket)
        read = self._written - unread
        progress, self._read_before = max(0, read - self._read_before), read
        received, self._received_before = self._received - self._received_before, self._received
        if unread:
            credit = self._reader_credit + progress / deadlines.rate
            self._reader_credit = min(deadlines.grace, credit) - seconds
            if self._reader_credit < 0:
                self._abandon("reader", "the client does not read the answer")
                return
        else:
            self._reader_credit = deadlines.grace
        if self.paused or (unread and self._phase == _IDLE):
            # The gateway is still answering, or the client is still reading the last answer.
            self._age = 0.0
        elif self._phase == _HEAD and self._age > deadlines.head:
            self._refuse_slow("head", f"the request head took more than {deadlines.head:g} s")
        elif self._phase == _BODY:
            credit = self._body_credit + received / deadlines.rate
            self._body_credit = min(deadlines.grace, credit) - passed
            if self._body_credit < 0:
                self._refuse_slow("body", f"the request body arrived slower than {deadlines.rate:g} bytes/s")
        elif self._phase == _IDLE and self._age > deadlines.idle:
            self._enter(_CLOSING)
            self.site.count_slow("idle")
            self.loseConnection()

    def close_idle(self) -> None:
        """Close this idle connection in favour of a new one."""
        self._enter(_CLOSING)
        self.site.count_slow("idle")
        self.transport.abortConnection()

    def _refuse_slow(self, phase: str, detail: str) -> None:
        self.site.count_slow(phase)
        self.close_with(Refusal(408, "request_timeout", detail=detail))

    def _abandon(self, phase: str, reason: str) -> None:
        self._enter(_CLOSING)
        self.site.count_slow(phase)
        self.site.traffic.log_closed(self._peer, reason)
        for request in self.requests:
            request.abandoned()
        self.transport.abortConnection()

    def close_with(self, refusal: Refusal) -> None:
        """Refuse an incomplete request, and close the connection once the client has had time to read the answer."""
        if self._phase == _CLOSING:
            return
        self._enter(_CLOSING)
        # Input is no longer processed.
        self.paused = True
        self._head = b""
        self.write(refusal.whole_answer())
        self.site.traffic.report_refused(self._peer, refusal)
        # Further input is read and dropped, whether the client reads its answer or not.
        self.transport.unregisterProducer()
        self.transport.resumeProducing()
        self.transport.loseWriteConnection()

    def refuse_malformed(self) -> None:
        if self.has_large_head:
            detail = f"a head of more than {self.totalHeadersSize} bytes or {self.maxHeaders} lines"
            self.close_with(Refusal(431, "head_too_large", detail=detail))
            return
        if self._phase == _BODY:
            detail = "a body in chunks that cannot be read"
        elif self._is_in_request_line:
            detail = request_line_fault(self._line)
        else:
            detail = header_fault(self._line)
        self.close_with(Refusal(400, "bad_request", detail=detail))

    # -- output

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        lines = [b"%b: %b\r\n" % (name, value) for name, values in headers.getAllRawHeaders() for value in values]
        self._head = b"%b %b %b\r\n%b\r\n" % (version, code, reason, b"".join(lines))

    def write(self, data: bytes) -> None:
        if self._head:
            self.send_head(data)
        else:
            self._written += len(data)
            self.transport.write(data)

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def send_head(self, data: bytes = b"") -> None:
        """Send the head of an answer, unless it was sent already, and the data after it."""
        if not self._head:
            return
        data, self._head = self._head + data, b""
        self._written += len(data)
        if self._is_bare and has_sent_all(self.transport):
            data = send_at_once(self.transport, data)
        if data:
            self.transport.write(data)
