"""One HTTP connection in memory: its deadlines and its turns, by a clock of the test."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.http.channel import Deadlines
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.site import GatewaySite


class Answers(Resource):
    """Answers at once, or waits."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.requests: list[Any] = []

    def render(self, request: Any) -> Any:
        self.asked.append(request.uri)
        self.requests.append(request)
        return NOT_DONE_YET if request.uri.startswith(b"/later") else b"answer to " + request.uri


class Wire(StringTransport):
    """A transport whose client reads what the test says."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        self.aborted = False
        self.half_closed = False
        self.reading = True
        #: As Twisted's own transports have them.
        self.dataBuffer = b""
        self.offset = 0
        self.writeSomeData = self.take
        self._tempDataBuffer: list[bytes] = []
        self._tempDataLen = 0

    def take(self, data: bytes) -> int:
        self.write(data)
        return len(data)

    def fileno(self) -> int:
        return -1

    def abortConnection(self) -> None:
        self.aborted = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def stop_reading_answers(self, unsent: int) -> None:
        """Let so many bytes wait: Twisted pauses its producer then."""
        self._tempDataLen = unsent
        self.producer.pauseProducing()

    def read_answers(self) -> None:
        self._tempDataLen = 0
        self.producer.resumeProducing()


class Turns(Clock):
    """A clock whose calls without a delay wait for the reactor's next turn."""

    def turn(self) -> None:
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Connection:
    """A connection to a site with an answering resource."""

    def __init__(self, most: int = 10, deadlines: Deadlines | None = None) -> None:
        self.clock = Turns()
        self.counters = Counters()
        warnings = LimitedLog(Logger("gateway.web"), WallClock(zone_named("UTC")), self.counters)
        self.resource = Answers()
        traffic = Traffic(self.counters, warnings, HostChecks([]), 1000)
        self.site = GatewaySite(self.clock, self.resource, traffic, self.counters, most, deadlines)
        # As a port does it; the log of Twisted's own site is not needed.
        self.site._checks.start(1.0, now=False)
        self.wire, self.channel = self.connect()

    def connect(self) -> tuple[Wire, Any]:
        wire = Wire()
        channel = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        channel.makeConnection(wire)
        # As for Twisted's own TCP transports.
        channel._is_bare = True
        return wire, channel

    def send(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * int(2 * seconds))

    def slow(self, what: str) -> float:
        found = self.counters.registry.get_sample_value("cynow_http_slow_connections_total", {"what": what})
        return found or 0.0

    def lose(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))


def ask(path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 10.0.0.7\r\n{more}\r\n".encode()


# -- deadlines


def test_head_that_does_not_end_is_answered_with_408_at_its_deadline() -> None:
    connection = Connection()
    connection.send(b"GET / HTTP/1.1\r\n")
    for _ in range(9):
        connection.wait(1)
        connection.send(b"X: y\r\n")
    assert not connection.wire.value()
    connection.wait(3)
    assert connection.wire.value().startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert connection.wire.half_closed
    assert connection.slow("head") == 1
    assert not connection.resource.asked


@pytest.mark.parametrize("begins", [0.0, 0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", b"xy"),
    ],
)
def test_request_in_time_is_answered_whenever_it_begins(begins: float, head: bytes, rest: bytes) -> None:
    connection = Connection()
    connection.clock.advance(begins)
    connection.send(head)
    connection.clock.pump([0.1] * 99)
    connection.send(rest)
    assert connection.wire.value().startswith(b"HTTP/1.1 200 OK\r\n")


def test_empty_line_long_before_a_request_is_ignored() -> None:
    connection = Connection()
    connection.send(b"\r\n")
    connection.wait(20)
    connection.send(ask("/1"))
    assert connection.wire.value().startswith(b"HTTP/1.1 200 OK\r\n")


def test_tick_that_fails_leaves_the_others_their_deadlines() -> None:
    connection = Connection()
    _, other = connection.connect()
    connection.send(b"GET / HTTP/1.1\r\n")
    other.tick = None
    with capturedLogs() as events:
        connection.wait(13)
    assert connection.wire.value().startswith(b"HTTP/1.1 408 ")
    assert "cannot check the deadlines of an HTTP connection" in str(events)


def test_turn_that_fails_leaves_the_others_theirs() -> None:
    connection = Connection()
    wire, other = connection.connect()
    other.answer_next = None
    connection.site.queue_turn(other)
    connection.send(ask("/1") + ask("/2"))
    with capturedLogs() as events:
        connection.clock.turn()
    assert connection.resource.asked == [b"/1", b"/2"]
    assert wire.aborted
    assert "cannot answer a waiting HTTP request" in str(events)


@pytest.mark.parametrize("coding", [b"identity", b"IDENTITY ", b"gzip", b"chunked, identity", b""])
def test_transfer_encoding_other_than_chunked_is_refused(coding: bytes) -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + coding + b"\r\n\r\n" + ask("/2"))
    assert connection.wire.value().startswith(b"HTTP/1.1 400 ")
    assert connection.wire.value().count(b"HTTP/1.1") == 1
    assert not connection.resource.asked


def test_chunked_body_is_taken() -> None:
    connection = Connection()
    connection.send(b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nxy\r\n0\r\n\r\n")
    assert connection.resource.asked == [b"/1"]


def test_head_in_time_after_a_long_idle_time_is_answered() -> None:
    connection = Connection()
    connection.wait(60)
    connection.send(b"GET / HTTP/1.1\r\n")
    connection.wait(9)
    connection.send(b"Host: x\r\n\r\n")
    assert b" 200 OK" in connection.wire.value()


def test_connection_without_a_request_is_closed_after_75_seconds() -> None:
    connection = Connection()
    connection.wait(74)
    assert not connection.wire.disconnecting
    connection.wait(3)
    assert connection.wire.disconnecting
    assert not connection.wire.value()
    assert connection.slow("idle") == 1


def test_body_slower_than_its_rate_is_answered_with_408_after_its_grace() -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(9):
        connection.wait(1)
        connection.send(b"x")
    assert not connection.wire.value()
    connection.wait(4)
    assert connection.wire.value().startswith(b"HTTP/1.1 408 ")
    assert connection.slow("body") == 1


def test_body_at_its_rate_is_taken_however_long_it_takes() -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 102400\r\n\r\n")
    for _ in range(100):
        connection.send(b"x" * 1024)
        connection.wait(1)
    assert connection.wire.value().startswith(b"HTTP/1.1 413 ")
    assert connection.slow("body") == 0


def test_answer_that_is_not_read_ends_its_connection_after_its_grace() -> None:
    connection = Connection()
    connection.send(ask())
    connection.wire.stop_reading_answers(50_000)
    connection.wait(9)
    assert not connection.wire.aborted
    connection.wait(3)
    assert connection.wire.aborted
    assert connection.slow("reader") == 1


def test_answer_that_is_read_at_the_rate_goes_on() -> None:
    connection = Connection()
    connection.channel.write(b"x" * 200_000)
    connection.wire.stop_reading_answers(200_000)
    for _ in range(150):
        connection.wire._tempDataLen -= 1100
        connection.wait(1)
    assert not connection.wire.aborted


def test_client_that_read_fast_and_stops_is_closed_after_its_grace() -> None:
    connection = Connection()
    for _ in range(30):
        connection.channel.write(b"x" * 1_000_000)
        connection.wire._tempDataLen = 1000
        connection.wait(1)
    assert not connection.wire.aborted
    connection.wait(12)
    assert connection.wire.aborted


def test_answer_that_takes_its_time_is_nobodys_fault() -> None:
    connection = Connection()
    connection.send(ask("/later"))
    connection.wait(600)
    assert not connection.wire.aborted
    assert not connection.wire.disconnecting
    connection.resource.requests[0].write(b"done")
    connection.resource.requests[0].finish()
    assert b"done" in connection.wire.value()


def test_gateway_that_was_late_itself_closes_nobody() -> None:
    connection = Connection()
    connection.send(b"GET / HTTP/1.1\r\n")
    # One turn of a minute: a suspended machine, or a disk that hung.
    connection.clock.advance(60)
    connection.wait(5)
    assert not connection.wire.value()


# -- turns


def test_requests_sent_at_once_get_one_answer_a_turn() -> None:
    connection = Connection()
    connection.send(b"".join(ask(f"/{number}") for number in range(5)))
    for answered in range(1, 6):
        assert connection.wire.value().count(b"HTTP/1.1 200 OK") == answered
        connection.clock.turn()
    assert connection.resource.asked == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_requests_behind_an_answer_that_is_not_read_are_not_looked_at() -> None:
    connection = Connection()
    connection.send(ask("/later") + ask("/1") + ask("/2"))
    request = connection.resource.requests[0]
    request.write(b"x" * 100_000)
    connection.wire.stop_reading_answers(100_000)
    request.finish()
    connection.wait(5)
    assert connection.resource.asked == [b"/later"]
    assert not connection.wire.reading
    connection.wire.read_answers()
    connection.wait(1)
    assert connection.resource.asked == [b"/later", b"/1", b"/2"]
    assert connection.wire.reading


def test_requests_of_a_client_that_has_left_are_not_answered() -> None:
    connection = Connection()
    connection.send(b"".join(ask(f"/{number}") for number in range(50)))
    connection.lose()
    connection.wait(5)
    assert connection.resource.asked == [b"/0"]


def test_bytes_behind_the_present_request_are_bounded() -> None:
    connection = Connection()
    connection.send(ask() * 1000)
    assert not connection.wire.reading
    for _ in range(1000):
        connection.clock.turn()
    assert len(connection.resource.asked) == 1000
    assert connection.wire.reading


def test_pieces_of_requests_are_answered_as_whole_ones() -> None:
    connection = Connection()
    for byte in ask("/a") + ask("/b") + b"POST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + ask("/d"):
        connection.send(bytes([byte]))
        connection.clock.turn()
    assert connection.resource.asked == [b"/a", b"/b", b"/c", b"/d"]


# -- refusals of what is not a whole request


@pytest.mark.parametrize(
    ("sent", "status", "error"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"431", b"head_too_large"),
        (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\n", b"431", b"head_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyy\r\n" * 2000, b"431", b"head_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 600, b"431", b"head_too_large"),
        (b"y" * 20_000, b"431", b"head_too_large"),
        (b"nonsense\r\n", b"400", b"bad_request"),
        (b"GET / HTTP/2.0\r\n", b"400", b"bad_request"),
        (b"GET  / HTTP/1.1\r\n", b"400", b"bad_request"),
        (b"GET / HTTP/1.1\r\nno colon\r\nX: y\r\n", b"400", b"bad_request"),
        (b"GET / HTTP/1.1\r\nX\0: y\r\n\r\n", b"400", b"bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400", b"bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400", b"bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"400", b"bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400", b"bad_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413", b"body_too_large"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"413", b"body_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400", b"bad_request"),
    ],
)
def test_what_is_not_a_request_is_answered_counted_and_logged(sent: bytes, status: bytes, error: bytes) -> None:
    connection = Connection()
    with capturedLogs() as events:
        connection.send(sent)
    head, _, body = connection.wire.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b" ")
    assert error in body
    for header in (b"Date: ", b"X-Content-Type-Options: nosniff", b"Content-Type: application/json; charset=utf-8"):
        assert header in head
    labels = {"status": status.decode()}
    assert connection.counters.registry.get_sample_value("cynow_http_requests_total", labels) == 1
    (event,) = [event for event in events if event.get("log_namespace") == "gateway.web"]
    assert event["reason"]
    assert not [event for event in events if event.get("log_failure")]
    # What still comes is not looked at, and the connection does not wait for its client for ever.
    connection.send(ask() * 3)
    assert connection.resource.asked == []
    connection.wait(4)
    assert connection.wire.aborted


def test_refused_client_that_goes_on_sending_is_cut_off() -> None:
    connection = Connection()
    connection.send(b"nonsense\r\n")
    for _ in range(100):
        connection.send(b"x" * 65536)
    assert connection.wire.aborted


def test_answer_before_a_refusal_is_sent_before_it() -> None:
    connection = Connection()
    connection.send(ask("/a") + b"nonsense\r\n\r\n")
    connection.clock.advance(0)
    first, second = connection.wire.value().split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"200", b"400")


# -- places


def test_new_connection_takes_the_place_of_one_that_waits_for_nothing() -> None:
    connection = Connection(most=3)
    connection.send(ask("/later"))
    idle, _ = connection.connect()
    connection.connect()[1].dataReceived(b"GET ")
    wire, channel = connection.connect()
    assert idle.aborted
    assert not connection.wire.aborted
    channel.dataReceived(ask("/new"))
    assert b" 200 OK" in wire.value()


def test_new_connection_is_told_so_where_every_place_is_in_use() -> None:
    connection = Connection(most=1)
    connection.send(ask("/later"))
    with capturedLogs() as events:
        wire, _ = connection.connect()
    assert wire.value().startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in wire.value()
    assert b"too_many_connections" in wire.value()
    assert wire.disconnecting
    assert events
    assert connection.counters.registry.get_sample_value("cynow_connections_refused_total", {"kind": "http"}) == 1
    connection.lose()
    assert b" 200 " in answered(connection)


def answered(connection: Connection) -> bytes:
    wire, channel = connection.connect()
    channel.dataReceived(ask())
    return wire.value()
