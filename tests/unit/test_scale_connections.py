"""Connections of scales: log lines, limits, refusals, and dialling."""

import itertools
import os
import pty
import termios
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import error as errors
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.ingest.dialer import dialled
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.serial import SerialLine, SerialService, check_parity, open_serial_port
from gateway.ingest.transport import end_reason, failure_reason, host_of
from gateway.model.records import Presence, Reading
from gateway.wire.lines import MAX_LINE
from tests.support.metrics import count_of
from tests.unit.test_ingest import Ingest

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: gateway:4001\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: gateway:4001\r\nContent-Length: 17\r\n\r\n",
    b"POST / HTTP/1.1\nHost: gateway:4001\n\n",
    b"\r\n\r\nPUT /a HTTP/1.0\r\n\r\n",
    b"GET http://gateway:4001/?ST,+000999.00kg HTTP/1.1\r\n\r\n",
    b"CONNECT gateway:4001 HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"M-SEARCH * HTTP/1.1\r\n\r\n",
    b"GET /" + b"a" * 2 * MAX_LINE + b" HTTP/1.1\r\n\r\n",
    b"POST /" + b"a" * (MAX_LINE - 14) + b" HTTP/1.1\r\n\r\n",
    b"POST /?" + b"HTTP/" * 5000 + b" HTTP/1.1\r\n\r\n",
]


class ScaleConnections(Ingest):
    def setUp(self) -> None:
        super().setUp()
        self.factory = ScaleFactory("dock", self.bus, self.clock, self.counters, self.warnings, 3)

    def readings(self) -> list[Reading]:
        return [record for record in self.records if isinstance(record, Reading)]

    def from_peer(self, host: str, port: int) -> tuple[Any, StringTransport]:
        """Return a connection from an address."""
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport = StringTransport(peerAddress=Address(host, port))
        protocol.makeConnection(transport)
        return protocol, transport


@implementer(IAddress)
class Address:
    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port


class PresenceTests(ScaleConnections):
    def test_age_of_the_last_line_counts_from_any_line_of_any_connection(self) -> None:
        self.assertEqual((self.factory.is_connected, self.factory.line_age), (False, None))
        protocol, _ = self.connect(self.factory)
        self.assertEqual((self.factory.is_connected, self.factory.line_age), (True, None))
        protocol.dataReceived(b"ST,+1")
        self.assertIsNone(self.factory.line_age)
        protocol.dataReceived(b" kg\r\n")
        self.reactor.advance(3)
        self.assertEqual(self.factory.line_age, 3)
        other, _ = self.connect(self.factory)
        other.dataReceived(b"not a reading\r\n")
        self.assertEqual(self.factory.line_age, 0)
        self.reactor.advance(2)
        self.lose(protocol)
        self.lose(other)
        self.assertEqual((self.factory.is_connected, self.factory.line_age), (False, 2))


class HttpTests(ScaleConnections):
    BODY = b"ST,+000999.00kg\r\nST,+000999.00kg\r\n"

    def count(self) -> float:
        return count_of(self.counters.scale_http_requests.labels("dock"))

    def send(self, pieces: list[bytes]) -> StringTransport:
        protocol, transport = self.connect(self.factory)
        for piece in pieces:
            protocol.dataReceived(piece)
        protocol.dataReceived(b"ST,+000999.00kg\r\n")
        self.lose(protocol)
        return transport

    def test_http_request_at_any_cut_gives_no_reading(self) -> None:
        sent = 0
        for request in REQUESTS:
            stream = request + self.BODY
            # At each position of short requests; of long ones, near their beginning and end.
            places = {at for at in range(len(stream)) if at < 40 or at > len(request) - 40 or len(stream) < 200}
            for cut in sorted(places | {MAX_LINE - 1, MAX_LINE, MAX_LINE + 1}):
                transport = self.send([stream[:cut], stream[cut:]])
                sent += 1
                self.assertTrue(transport.disconnecting, (request[:40], cut))
        self.assertEqual(self.readings(), [])
        self.assertEqual(self.count(), sent)

    def test_http_request_in_small_pieces_gives_no_reading(self) -> None:
        for request in REQUESTS:
            stream = request + self.BODY
            for size in (1, 2, 3, 7, 100, 1000, 1460, 16384):
                transport = self.send([stream[at : at + size] for at in range(0, len(stream), size)])
                self.assertTrue(transport.disconnecting, (request[:40], size))
        self.assertEqual(self.readings(), [])

    def test_http_request_among_lines_of_one_read_takes_none_of_them(self) -> None:
        for request in REQUESTS:
            self.send([b"ST,+1 kg\r\n" + request + self.BODY])
            self.send([self.BODY + request])
        self.assertEqual(self.readings(), [])
        self.assertEqual(self.counters.scale_rejected.labels("dock")._value.get(), 0)

    def test_http_request_without_its_end_gives_no_reading(self) -> None:
        protocol, transport = self.connect(self.factory)
        protocol.dataReceived(b"POST / HT")
        self.assertFalse(transport.disconnecting)
        protocol.dataReceived(b"TP/1")
        self.assertTrue(transport.disconnecting)
        protocol.dataReceived(b".1\r\n\r\n" + self.BODY)
        protocol.dataReceived(REQUESTS[0])
        self.assertEqual(self.readings(), [])
        self.assertEqual(self.count(), 1)

    def test_tls_handshake_at_any_cut_gives_no_reading(self) -> None:
        # A browser repeats the session ticket that another server gave it, whatever is in it.
        for padding in (0, 100, 2 * MAX_LINE):
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x8a" * padding
            stream = hello + b"\r\n" + self.BODY
            for cut in (1, 2, 3, 5, 11, len(hello), len(hello) + 2, len(stream)):
                transport = self.send([stream[:cut], stream[cut:]])
                self.assertTrue(transport.disconnecting, (padding, cut))
        self.assertEqual(self.readings(), [])
        self.assertTrue(any("this is a TLS handshake, not a scale" in line for line in self.log.lines))

    def test_tls_handshake_without_a_line_end_is_closed_at_once(self) -> None:
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        for number, pieces in enumerate(([hello], [hello[:1], hello[1:]], [hello[:2], hello[2:3]]), 1):
            self.assertTrue(self.send(pieces).disconnecting, pieces)
            self.assertEqual(self.count(), number)
        # This is too short to be identified.
        self.assertFalse(self.send([hello[:2]]).disconnecting)

    def test_http_request_is_logged_with_scale_and_peer_and_limited(self) -> None:
        for _ in range(20):
            self.send([REQUESTS[0]])
        lines = [line for line in self.log.lines if "HTTP" in line]
        self.assertEqual(len(lines), 5)
        self.assertEqual(
            lines[0],
            "scale dock, 192.168.1.1:54321: connection closed and its data discarded: this is an HTTP request, not a "
            "scale",
        )
        self.assertEqual(self.count(), 20)

    def test_lines_with_slashes_do_not_close_the_connection(self) -> None:
        protocol, transport = self.connect(self.factory)
        protocol.dataReceived(b"HTTP/1.1 200 OK\r\nGET /\r\n/\r\nHTTP/1\r\n" + b"x" * 2000 + b"/\r\nST,+1 kg\r\n")
        self.assertFalse(transport.disconnecting)
        self.assertEqual([reading.weight for reading in self.readings()], [1])
        self.assertEqual(self.counters.scale_rejected.labels("dock")._value.get(), 4)


class LogTests(ScaleConnections):
    def test_connection_and_end_are_logged_once_each(self) -> None:
        protocol, _ = self.from_peer("10.0.0.7", 5555)
        protocol.dataReceived(b"ST,+1 kg\r\n")
        self.lose(protocol)
        self.assertEqual(
            self.log.lines,
            ["scale dock: 10.0.0.7:5555 connected", "scale dock: 10.0.0.7:5555 disconnected (closed by the peer)"],
        )

    def test_end_of_connection_is_logged_with_its_reason(self) -> None:
        protocol, transport = self.from_peer("10.0.0.7", 5555)
        transport.loseConnection()
        self.lose(protocol)
        protocol, _ = self.from_peer("fe80::7", 5556)
        protocol.connectionLost(Failure(ConnectionLost("Connection timed out")))
        self.assertEqual(
            self.log.lines[1::2],
            [
                "scale dock: 10.0.0.7:5555 disconnected (closed by the gateway)",
                "scale dock: fe80::7:5556 disconnected (connection timed out)",
            ],
        )

    def test_second_connection_is_logged(self) -> None:
        self.from_peer("10.0.0.7", 5555)
        second, _ = self.from_peer("10.0.0.8", 6666)
        self.from_peer("10.0.0.9", 7777)
        many = "connected too: the newest reading of all wins"
        self.assertEqual(
            self.log.lines[1:],
            [
                f"scale dock: 10.0.0.8:6666 connected while 10.0.0.7:5555 is {many}",
                f"scale dock: 10.0.0.9:7777 connected while 10.0.0.8:6666 and 1 more are {many}",
            ],
        )
        self.assertEqual([record.connected for record in self.records if isinstance(record, Presence)], [True])
        self.lose(second)
        self.assertEqual(self.log.lines[3], "scale dock: 10.0.0.8:6666 disconnected (closed by the peer)")

    def test_reconnecting_peer_is_limited_alone(self) -> None:
        for port in range(100):
            protocol, _ = self.from_peer("10.0.0.7", port)
            self.lose(protocol)
        self.assertEqual(len(self.log.lines), 30)
        protocol, _ = self.from_peer("10.0.0.8", 1)
        self.assertEqual(len(self.log.lines), 31)
        self.lose(protocol)
        self.reactor.advance(60)
        self.from_peer("10.0.0.7", 101)
        self.assertIn("170 similar lines within 60 s were not logged, such as:", self.log.lines[-2])
        self.assertEqual(self.log.lines[-1], "scale dock: 10.0.0.7:101 connected")


class LimitTests(ScaleConnections):
    """The factory takes three connections at a time."""

    def refused(self) -> float:
        return count_of(self.counters.connections_refused.labels("scale"))

    def closed(self) -> float:
        return count_of(self.counters.scale_silent_closed.labels("dock"))

    def test_connection_limit_closes_the_longest_silent_connection(self) -> None:
        peers = [self.from_peer("10.0.0.7", port) for port in range(3)]
        # Any bytes count as activity, also without a line end.
        peers[0][0].dataReceived(b"x")
        peers[1][0].dataReceived(b"no reading\r\n")
        for port in range(3, 6):
            self.from_peer("10.0.0.8", port)
        self.assertEqual([transport.disconnecting for _, transport in peers], [True] * 3)
        closed = [line for line in self.log.lines if "is closed for" in line]
        self.assertEqual([line.split()[2] for line in closed], [f"10.0.0.7:{port}" for port in (2, 0, 1)])
        self.assertIn("limits.connections (3)", closed[0])
        self.assertEqual((self.closed(), self.refused()), (3, 0))

    def test_connection_limit_does_not_count_evicted_connections(self) -> None:
        silent, transport = self.from_peer("10.0.0.7", 1)
        self.from_peer("10.0.0.7", 2)
        self.from_peer("10.0.0.7", 3)
        self.from_peer("10.0.0.7", 4)
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.closed(), 1)
        self.lose(silent)
        self.from_peer("10.0.0.7", 5)
        self.assertEqual(self.closed(), 2)
        # Bytes that it still sends are ignored.
        silent.dataReceived(b"ST,+1 kg\r\n")
        self.assertEqual(self.readings(), [])

    def test_connection_limit_closes_none_before_it_is_reached(self) -> None:
        self.from_peer("10.0.0.7", 1)
        other, _ = self.from_peer("10.0.0.7", 2)
        self.from_peer("10.0.0.7", 3)
        self.from_peer("10.0.0.7", 4)
        # One is being closed, and another has ended: two count.
        self.lose(other)
        self.from_peer("10.0.0.7", 5)
        self.assertEqual(self.closed(), 1)

    def test_connection_limit_keeps_connections_with_readings(self) -> None:
        for port, line in enumerate((b"ST,+1 kg\r\n", b"OL,\r\n", b"noise\r\nUS,+1 kg\r\n")):
            protocol, _ = self.from_peer("10.0.0.7", port)
            protocol.dataReceived(line)
        self.reactor.advance(3600)
        self.assertIsNone(self.factory.buildProtocol(None))
        self.assertEqual((self.closed(), self.refused()), (0, 1))
        self.assertIn("connection refused: limits.connections (3) is reached", self.log.lines[-1])

    def test_silent_connection_below_the_limit_stays_open(self) -> None:
        _, transport = self.from_peer("10.0.0.7", 1)
        self.reactor.advance(7 * 86400)
        self.from_peer("10.0.0.8", 2)
        self.assertFalse(transport.disconnecting)


@implementer(IStreamClientEndpoint)
class Converter:
    """An endpoint that answers each attempt by the next of its answers; the last one repeats."""

    def __init__(self, *answers: BaseException | list[bytes]) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.now: Callable[[], float] = lambda: 0.0
        self.lasts = False
        self.protocol: Any = None

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        self.times.append(self.now())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            return fail(answer)
        self.protocol = protocol = protocolFactory.buildProtocol(None)
        protocol.makeConnection(StringTransport(peerAddress=Address("10.0.0.7", 4002)))
        connected = succeed(protocol)
        for data in answer:
            protocol.dataReceived(data)
        if not self.lasts:
            # The peer closes a moment later, as on a network.
            self.later(lambda: protocol.connectionLost(Failure(ConnectionDone())))
        return connected

    later: Callable[[Callable[[], None]], object] = staticmethod(lambda call: call())


class DialTests(ScaleConnections):
    def dial(self, converter: Converter) -> Any:
        converter.now = self.reactor.seconds
        converter.later = lambda call: self.reactor.callLater(0.01, call)
        service = dialled(converter, self.factory, self.reactor, "10.0.0.7:4002")
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def waits(self, converter: Converter, seconds: int) -> list[float]:
        """Return the times between attempts of so many seconds."""
        self.reactor.pump([0.05] * (seconds * 20))
        return [later - earlier for earlier, later in itertools.pairwise(converter.times)]

    def test_failed_attempt_logs_scale_address_reason_and_delay(self) -> None:
        self.dial(Converter(errors.ConnectionRefusedError()))
        (line,) = self.log.lines
        self.assertRegex(
            line, r"^scale dock: cannot connect to 10\.0\.0\.7:4002: connection refused; retrying in [23] s$"
        )
        self.assertEqual(self.counters.scale_failed_attempts.labels("dock")._value.get(), 1)

    def test_failed_attempts_repeated_are_limited_and_delayed(self) -> None:
        converter = Converter(errors.ConnectionRefusedError())
        self.dial(converter)
        waits = self.waits(converter, 590)
        self.assertEqual(len(self.log.lines), 5)
        self.assertTrue(30 <= waits[-1] <= 31.1, waits)
        self.assertTrue(all(wait < 31.1 for wait in waits), waits)
        self.assertEqual(self.counters.scale_failed_attempts.labels("dock")._value.get(), len(converter.times))
        self.waits(converter, 60)
        self.assertRegex(self.log.lines[5], r"^\d\d similar lines within 600 s were not logged, such as: ")
        self.assertRegex(self.log.lines[6], "retrying in 3[01] s$")

    def test_failed_attempt_with_another_reason_is_logged_at_once(self) -> None:
        converter = Converter(*[errors.ConnectionRefusedError()] * 12, errors.TCPTimedOutError())
        self.dial(converter)
        self.waits(converter, 300)
        self.assertEqual(sum("connection refused" in line for line in self.log.lines), 5)
        self.assertIn("scale dock: cannot connect to 10.0.0.7:4002: timed out; retrying in 3", self.log.lines[5])

    def test_peer_that_closes_at_once_is_dialled_with_growing_delays(self) -> None:
        # Some errors have a reason, others have not.
        for answer in ([], [b"Port already in use\r\n"], [b"\xff\xfb\x01\xff\xfb\x03"]):
            converter = Converter(answer)
            self.log.lines.clear()
            self.dial(converter)
            waits = self.waits(converter, 200)
            self.assertTrue(waits[0] < 3 < 10 < waits[5] < waits[8] < 31.2, waits)
            said = [line for line in self.log.lines if "retrying" in line and "similar lines" not in line]
            self.assertTrue(
                said[0].startswith(
                    "scale dock: the connection to 10.0.0.7:4002 ended at once, without a reading; retrying in "
                )
            )
            self.assertEqual(len(said), 5)
            self.reactor.advance(700)

    def test_connection_with_a_reading_is_dialled_again_soon(self) -> None:
        converter = Converter(*[errors.ConnectionRefusedError()] * 8, [b"ST,+1 kg\r\n"])
        self.dial(converter)
        waits = self.waits(converter, 200)
        self.assertTrue(waits[7] > 20, waits)
        self.assertTrue(all(wait < 3 for wait in waits[8:]), waits)
        self.assertFalse(any("ended at once" in line for line in self.log.lines))

    def test_silent_connection_that_lasted_is_dialled_again_soon(self) -> None:
        converter = Converter(*[errors.ConnectionRefusedError()] * 8, [])
        converter.lasts = True
        self.dial(converter)
        self.waits(converter, 200)
        attempts = len(converter.times)
        self.lose(converter.protocol)
        lost = self.reactor.seconds()
        self.waits(converter, 5)
        self.assertEqual(len(converter.times), attempts + 1)
        self.assertTrue(converter.times[-1] - lost < 3)

    def test_stopped_service_dials_no_more(self) -> None:
        converter = Converter(errors.ConnectionRefusedError())
        service = self.dial(converter)
        self.successResultOf(service.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_failed_attempt_of_a_tcp_endpoint_is_logged(self) -> None:
        reactor = MemoryReactorClock()
        service = dialled(TCP4ClientEndpoint(reactor, "10.0.0.7", 4002), self.factory, reactor, "10.0.0.7:4002")
        service.startService()
        (client,) = reactor.connectors
        client._connectedDeferred = None
        host, port, factory, *_ = reactor.tcpClients[0]
        self.assertEqual((host, port), ("10.0.0.7", 4002))
        factory.clientConnectionFailed(client, Failure(errors.NoRouteError()))
        self.assertIn("cannot connect to 10.0.0.7:4002: no route to the host", self.log.lines[0])
        self.successResultOf(service.stopService())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.ConnectionRefusedError(), "connection refused"),
        (errors.TimeoutError(), "timed out"),
        (errors.TCPTimedOutError(), "timed out"),
        (errors.NoRouteError(), "no route to the host"),
        (errors.DNSLookupError("no results for hostname lookup: scale"), "host name not found"),
        (errors.UnknownHostError(), "host name not found"),
        (errors.ConnectError(101, "x"), "network is unreachable"),
        (errors.ConnectError(OSError(13, "x"), "x"), "permission denied"),
        (FileNotFoundError(2, "No such file or directory", "/dev/ttyUSB0"), "no such file or directory"),
        (
            OSError(16, "could not open port /dev/ttyUSB0: [Errno 16] Device or resource busy"),
            "device or resource busy",
        ),
        (termios.error(22, "Invalid argument"), "invalid argument"),
        (ValueError("Not a valid baudrate: 7\nmore"), "not a valid baudrate: 7"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_failure_reason_is_in_plain_words(error: BaseException, words: str) -> None:
    assert failure_reason(error) == words


def test_end_reason_is_in_plain_words() -> None:
    assert end_reason(ConnectionDone()) == "closed by the peer"
    assert end_reason(errors.ConnectionAborted()) == "closed by the gateway"
    assert end_reason(ConnectionLost("Connection reset by peer")) == "connection reset by peer"
    assert end_reason(ConnectionLost()) == "connection to the other side was lost in a non-clean fashion"


def test_host_of_peer_is_without_its_port() -> None:
    assert [host_of(peer) for peer in ("10.0.0.7:5", "fe80::1:5", "/dev/ttyUSB0")] == [
        "10.0.0.7",
        "fe80::1",
        "/dev/ttyUSB0",
    ]


class SerialLogTests(ScaleConnections):
    def test_serial_line_failed_open_logs_scale_device_reason_and_delay(self) -> None:
        def open_port(protocol: Any, line: SerialLine) -> None:
            raise FileNotFoundError(2, "could not open port /dev/ttyUSB0")

        service = SerialService(SerialLine("/dev/ttyUSB0", 2400, 7, "E", 1), self.factory, self.reactor, open_port)
        service.startService()
        self.assertRegex(
            self.log.lines[0],
            r"^scale dock: /dev/ttyUSB0 cannot be opened: no such file or directory; retrying in [23] s$",
        )
        self.reactor.pump([1.0] * 300)
        self.assertEqual(len(self.log.lines), 5)
        self.assertGreater(self.counters.scale_failed_attempts.labels("dock")._value.get(), 10)
        service.stopService()

    def test_serial_line_lost_at_once_is_opened_with_growing_delays(self) -> None:
        times: list[float] = []

        def open_port(protocol: Any, line: SerialLine) -> None:
            times.append(self.reactor.seconds())
            protocol.makeConnection(StringTransport())
            self.reactor.callLater(0.01, protocol.connectionLost, Failure(ConnectionDone()))

        service = SerialService(SerialLine("/dev/ttyUSB0", 2400, 7, "E", 1), self.factory, self.reactor, open_port)
        service.startService()
        self.reactor.pump([0.05] * 4000)
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        self.assertTrue(waits[0] < 3 < 10 < waits[5] < 31.2, waits)
        self.assertEqual(self.log.lines[0], "scale dock: /dev/ttyUSB0 connected")
        self.assertEqual(self.log.lines[1], "scale dock: /dev/ttyUSB0 disconnected (closed by the peer)")
        self.assertRegex(
            self.log.lines[2],
            "^scale dock: the connection to /dev/ttyUSB0 ended at once, without a reading; retrying in [23] s$",
        )
        service.stopService()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Return both ends of a pseudo-terminal."""
    host, device = pty.openpty()
    yield host, device
    os.close(host)
    os.close(device)


_PARITY_FLAGS = termios.INPCK | termios.PARMRK | termios.IGNPAR


@pytest.mark.parametrize("parity", ["E", "O", "M", "S", "N"])
def test_check_parity_lets_the_system_check_where_there_is_one(terminal: tuple[int, int], parity: str) -> None:
    _, device = terminal
    settings = termios.tcgetattr(device)
    settings[0] |= termios.PARMRK | termios.IGNPAR | (termios.INPCK if parity == "N" else 0)
    termios.tcsetattr(device, termios.TCSANOW, settings)
    check_parity(device, parity)
    assert termios.tcgetattr(device)[0] & _PARITY_FLAGS == (0 if parity == "N" else termios.INPCK)


@pytest.mark.parametrize("parity", ["E", "N"])
def test_check_parity_lets_a_break_arrive_as_a_byte(terminal: tuple[int, int], parity: str) -> None:
    _, device = terminal
    settings = termios.tcgetattr(device)
    settings[0] |= termios.BRKINT | termios.IGNBRK | termios.ICRNL
    termios.tcsetattr(device, termios.TCSANOW, settings)
    check_parity(device, parity)
    others = termios.tcgetattr(device)[0] & (termios.BRKINT | termios.IGNBRK | termios.ICRNL)
    assert others == termios.ICRNL


@pytest.mark.parametrize("parity", ["E", "N"])
def test_open_serial_port_sets_flags_before_connection_made(terminal: tuple[int, int], parity: str) -> None:
    pytest.importorskip("serial")
    host, device = terminal
    # Bytes that arrived before the flags were set were not checked, and are dropped.
    os.write(host, b"ST,+000053.26 kg\r\n")
    flags: list[int] = []
    received: list[bytes] = []

    class Receiver(Protocol):
        transport: Any

        def connectionMade(self) -> None:
            flags.append(termios.tcgetattr(self.transport.fileno())[0] & _PARITY_FLAGS)

        def dataReceived(self, data: bytes) -> None:
            received.append(data)

    reactor = MemoryReactorClock()
    line = SerialLine(os.ttyname(device), 2400, 8, parity, 1)
    port = open_serial_port(reactor, Receiver(), line)
    assert flags == [0 if parity == "N" else termios.INPCK]
    os.write(host, b"ST,+000053.27 kg\r\n")
    while b"\n" not in b"".join(received):
        port.doRead()
    assert b"".join(received) == b"ST,+000053.27 kg\r\n"
    port.connectionLost(Failure(ConnectionDone()))


def test_open_serial_port_whose_flags_cannot_be_set_is_closed(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("serial")
    _, device = terminal
    opened: list[int] = []

    def fail_to_set(descriptor: int, parity: str) -> None:
        opened.append(descriptor)
        raise termios.error(22, "Invalid argument")

    monkeypatch.setattr("gateway.ingest.serial.check_parity", fail_to_set)
    protocol = Protocol()
    # A reference to the error keeps the port open, unless it was closed.
    with pytest.raises(termios.error) as caught:
        open_serial_port(MemoryReactorClock(), protocol, SerialLine(os.ttyname(device), 2400, 8, "E", 1))
    assert protocol.transport is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    assert caught.value.args[0] == 22


class ParityTests(ScaleConnections):
    def test_serial_byte_of_wrong_parity_rejects_its_line_only(self) -> None:
        # The system delivers such a byte as NUL.
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+000053.26 kg\r\nST,+000\x0053.26 kg\r\nST,+000053.27\x00kg\r\nUS,+000053.28 kg\r\n")
        self.assertEqual([str(reading.weight) for reading in self.readings()], ["53.26", "53.28"])
        self.assertEqual(self.counters.scale_rejected.labels("dock")._value.get(), 2)
