"""HTTP connections in memory: deadlines, turns and refusals, with a fake clock."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gateway.config.settings import LimitSettings
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.web.http.channel import Deadlines
from gateway.web.http.client_checks import ClientChecks
from gateway.web.http.gate import Gate
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.site import GatewaySite
from tests.support.access import open_access

PEER = IPv4Address("TCP", "192.0.2.1", 1)


class Answers(Resource):
    """Resource that answers at once, or waits."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.requests: list[Any] = []

    def render(self, request: Any) -> Any:
        self.asked.append(request.uri)
        self.requests.append(request)
        return NOT_DONE_YET if request.uri.startswith(b"/later") else b"answer to " + request.uri


class FakeTransport(StringTransport):
    """Transport whose client reads as much as the test sets."""

    def __init__(self, peer: IPv4Address | IPv6Address) -> None:
        super().__init__(peerAddress=peer)
        self.aborted = False
        self.half_closed = False
        self.reading = True
        #: Attributes of Twisted's TCP transports.
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
        """Pause the producer as Twisted does while bytes are unsent."""
        self._tempDataLen = unsent
        assert self.producer is not None
        self.producer.pauseProducing()

    def read_answers(self) -> None:
        self._tempDataLen = 0
        assert self.producer is not None
        self.producer.resumeProducing()


class Turns(Clock):
    """Clock whose calls without a delay wait for the next turn."""

    def turn(self) -> None:
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Connection:
    """Connection to a site with an answering resource."""

    def __init__(self, most: int = 10, deadlines: Deadlines | None = None) -> None:
        self.clock = Turns()
        self.counters = Counters()
        warnings = LimitedLog(Logger("gateway.web"), WallClock(zone_named("UTC")), self.counters)
        self.resource = Answers()
        self.access = open_access()
        gate = Gate(self.access, self.counters, ["/healthz"], ())
        self.checks = ClientChecks(self.counters, self.clock.seconds)
        traffic = Traffic(self.counters, warnings, HostChecks([]), gate, self.checks, 1000)
        self.site = GatewaySite(self.clock, self.resource, traffic, self.counters, most, deadlines)
        # As a port does; startFactory would also open the log of Twisted's site.
        self.site._checks.start(1.0, now=False)
        self.transport, self.channel = self.connect()

    def connect(self, peer: IPv4Address | IPv6Address = PEER) -> tuple[FakeTransport, Any]:
        transport = FakeTransport(peer)
        channel = self.site.buildProtocol(peer)
        channel.makeConnection(transport)
        # As for Twisted's own TCP transports.
        channel._is_bare = True
        channel._socket = transport
        return transport, channel

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
    assert not connection.transport.value()
    connection.wait(3)
    assert connection.transport.value().startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert connection.transport.half_closed
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
    assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")


def test_empty_line_long_before_a_request_is_ignored() -> None:
    connection = Connection()
    connection.send(b"\r\n")
    connection.wait(20)
    connection.send(ask("/1"))
    assert connection.transport.value().startswith(b"HTTP/1.1 200 OK\r\n")


def test_failed_tick_does_not_stop_the_deadlines_of_other_connections() -> None:
    connection = Connection()
    _, other = connection.connect()
    connection.send(b"GET / HTTP/1.1\r\n")
    other.tick = None
    with capturedLogs() as events:
        connection.wait(13)
    assert connection.transport.value().startswith(b"HTTP/1.1 408 ")
    assert "cannot check the deadlines of an HTTP connection" in str(events)


def test_failed_turn_does_not_stop_the_turns_of_other_connections() -> None:
    connection = Connection()
    transport, other = connection.connect()
    other.answer_next = None
    connection.site.queue_turn(other)
    connection.send(ask("/1") + ask("/2"))
    with capturedLogs() as events:
        connection.clock.turn()
    assert connection.resource.asked == [b"/1", b"/2"]
    assert transport.aborted
    assert "cannot answer a waiting HTTP request" in str(events)


@pytest.mark.parametrize("coding", [b"identity", b"IDENTITY ", b"gzip", b"chunked, identity", b""])
def test_transfer_encoding_other_than_chunked_is_refused(coding: bytes) -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + coding + b"\r\n\r\n" + ask("/2"))
    assert connection.transport.value().startswith(b"HTTP/1.1 400 ")
    assert connection.transport.value().count(b"HTTP/1.1") == 1
    assert not connection.resource.asked


def test_chunked_body_is_accepted() -> None:
    connection = Connection()
    connection.send(b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nxy\r\n0\r\n\r\n")
    assert connection.resource.asked == [b"/1"]


def test_head_in_time_after_a_long_idle_time_is_answered() -> None:
    connection = Connection()
    connection.wait(60)
    connection.send(b"GET / HTTP/1.1\r\n")
    connection.wait(9)
    connection.send(b"Host: x\r\n\r\n")
    assert b" 200 OK" in connection.transport.value()


def test_connection_without_a_request_is_closed_after_75_seconds() -> None:
    connection = Connection()
    connection.wait(74)
    assert not connection.transport.disconnecting
    connection.wait(3)
    assert connection.transport.disconnecting
    assert not connection.transport.value()
    assert connection.slow("idle") == 1


def test_body_below_the_minimum_rate_is_answered_with_408_after_the_grace() -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(9):
        connection.wait(1)
        connection.send(b"x")
    assert not connection.transport.value()
    connection.wait(4)
    assert connection.transport.value().startswith(b"HTTP/1.1 408 ")
    assert connection.slow("body") == 1


def test_changed_deadlines_apply_to_open_connections() -> None:
    connection = Connection()
    silent, _ = connection.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n")
    limits = {"head_timeout_sec": 1, "idle_timeout_sec": 20, "grace_sec": 2, "min_bytes_per_second": 10}
    connection.site.deadlines = Deadlines.of(LimitSettings.model_validate(limits))
    beginning, channel = connection.connect()
    channel.dataReceived(b"GET /")
    connection.wait(5)
    assert beginning.value().startswith(b"HTTP/1.1 408 ")
    assert connection.transport.value().startswith(b"HTTP/1.1 408 ")
    assert (connection.slow("head"), connection.slow("body"), connection.slow("idle")) == (1, 1, 0)
    connection.wait(18)
    assert silent.disconnecting
    assert connection.slow("idle") == 1


def test_body_at_the_minimum_rate_is_accepted() -> None:
    connection = Connection()
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 102400\r\n\r\n")
    for _ in range(100):
        connection.send(b"x" * 1024)
        connection.wait(1)
    assert connection.transport.value().startswith(b"HTTP/1.1 413 ")
    assert connection.slow("body") == 0


def test_unread_answer_closes_the_connection_after_the_grace() -> None:
    connection = Connection()
    connection.send(ask())
    connection.transport.stop_reading_answers(50_000)
    connection.wait(9)
    assert not connection.transport.aborted
    connection.wait(3)
    assert connection.transport.aborted
    assert connection.slow("reader") == 1


def test_answer_read_at_the_minimum_rate_continues() -> None:
    connection = Connection()
    connection.channel.write(b"x" * 200_000)
    connection.transport.stop_reading_answers(200_000)
    for _ in range(150):
        connection.transport._tempDataLen -= 1100
        connection.wait(1)
    assert not connection.transport.aborted


def test_client_that_stops_reading_is_closed_after_the_grace() -> None:
    connection = Connection()
    for _ in range(30):
        connection.channel.write(b"x" * 1_000_000)
        connection.transport._tempDataLen = 1000
        connection.wait(1)
    assert not connection.transport.aborted
    connection.wait(12)
    assert connection.transport.aborted


def test_slow_answer_of_the_gateway_does_not_close_the_connection() -> None:
    connection = Connection()
    connection.send(ask("/later"))
    connection.wait(600)
    assert not connection.transport.aborted
    assert not connection.transport.disconnecting
    connection.resource.requests[0].write(b"done")
    connection.resource.requests[0].finish()
    assert b"done" in connection.transport.value()


def test_delay_of_the_gateway_does_not_close_connections() -> None:
    connection = Connection()
    connection.send(b"GET / HTTP/1.1\r\n")
    # A turn of one minute, such as on a suspended machine.
    connection.clock.advance(60)
    connection.wait(5)
    assert not connection.transport.value()


# -- turns


def test_pipelined_requests_get_one_answer_in_each_turn() -> None:
    connection = Connection()
    connection.send(b"".join(ask(f"/{number}") for number in range(5)))
    for answered in range(1, 6):
        assert connection.transport.value().count(b"HTTP/1.1 200 OK") == answered
        connection.clock.turn()
    assert connection.resource.asked == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_requests_after_an_unread_answer_wait() -> None:
    connection = Connection()
    connection.send(ask("/later") + ask("/1") + ask("/2"))
    request = connection.resource.requests[0]
    request.write(b"x" * 100_000)
    connection.transport.stop_reading_answers(100_000)
    request.finish()
    connection.wait(5)
    assert connection.resource.asked == [b"/later"]
    assert not connection.transport.reading
    connection.transport.read_answers()
    connection.wait(1)
    assert connection.resource.asked == [b"/later", b"/1", b"/2"]
    assert connection.transport.reading


def test_requests_of_a_client_that_has_left_are_not_answered() -> None:
    connection = Connection()
    connection.send(b"".join(ask(f"/{number}") for number in range(50)))
    connection.lose()
    connection.wait(5)
    assert connection.resource.asked == [b"/0"]


def test_waiting_requests_are_bounded() -> None:
    connection = Connection()
    connection.send(ask() * 1000)
    assert not connection.transport.reading
    for _ in range(1000):
        connection.clock.turn()
    assert len(connection.resource.asked) == 1000
    assert connection.transport.reading


def test_requests_sent_byte_by_byte_are_answered() -> None:
    connection = Connection()
    for byte in ask("/a") + ask("/b") + b"POST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + ask("/d"):
        connection.send(bytes([byte]))
        connection.clock.turn()
    assert connection.resource.asked == [b"/a", b"/b", b"/c", b"/d"]


# -- refusals of incomplete requests


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
def test_invalid_request_is_answered_counted_and_logged(sent: bytes, status: bytes, error: bytes) -> None:
    connection = Connection()
    with capturedLogs() as events:
        connection.send(sent)
    head, _, body = connection.transport.value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b" ")
    assert error in body
    for header in (b"Date: ", b"X-Content-Type-Options: nosniff", b"Content-Type: application/json; charset=utf-8"):
        assert header in head
    labels = {"status": status.decode()}
    assert connection.counters.registry.get_sample_value("cynow_http_requests_total", labels) == 1
    (event,) = [event for event in events if event.get("log_namespace") == "gateway.web"]
    assert event["reason"]
    assert not [event for event in events if event.get("log_failure")]
    # Further input is ignored, and the connection is closed after a time limit.
    connection.send(ask() * 3)
    assert connection.resource.asked == []
    connection.wait(4)
    assert connection.transport.aborted


def test_refused_client_that_keeps_sending_is_disconnected() -> None:
    connection = Connection()
    connection.send(b"nonsense\r\n")
    for _ in range(100):
        connection.send(b"x" * 65536)
    assert connection.transport.aborted


def test_answer_before_a_refusal_is_sent_before_it() -> None:
    connection = Connection()
    connection.send(ask("/a") + b"nonsense\r\n\r\n")
    connection.clock.advance(0)
    first, second = connection.transport.value().split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"200", b"400")


# -- bound of connections


def test_connection_above_the_bound_closes_an_idle_one() -> None:
    connection = Connection(most=3)
    connection.send(ask("/later"))
    idle, _ = connection.connect()
    connection.connect()[1].dataReceived(b"GET ")
    transport, channel = connection.connect()
    assert idle.aborted
    assert not connection.transport.aborted
    channel.dataReceived(ask("/new"))
    assert b" 200 OK" in transport.value()


def test_connection_above_the_bound_without_an_idle_one_is_refused() -> None:
    connection = Connection(most=1)
    connection.send(ask("/later"))
    with capturedLogs() as events:
        transport, _ = connection.connect()
    assert transport.value().startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in transport.value()
    assert b"too_many_connections" in transport.value()
    assert transport.disconnecting
    assert events
    assert connection.counters.registry.get_sample_value("cynow_connections_refused_total", {"kind": "http"}) == 1
    connection.lose()
    assert b" 200 " in answered(connection)


def answered(connection: Connection) -> bytes:
    transport, channel = connection.connect()
    channel.dataReceived(ask())
    answer: bytes = transport.value()
    return answer
