"""Admission of connections by address."""

import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.python.failure import Failure

from gateway.runtime.admission import Admission, AdmissionRules, AdmittingFactory
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.networks import NetworkSet
from tests.support.daemon import PATIENCE
from tests.support.metrics import count_of


class OpenTransport(StringTransport):
    """Transport whose end is noticed as that of a socket."""

    protocol: Any = None

    def connectionLost(self, reason: Failure) -> None:
        self.protocol.connectionLost(reason)

    def abortConnection(self) -> None:
        super().abortConnection()
        self.connectionLost(Failure(ConnectionDone()))


class Told(Protocol):
    """Connection that is told of a limit."""


class Listening:
    """A listener with rules, and its connections."""

    def __init__(self, *, tells: bool = False, **rules: Any) -> None:
        clock = WallClock(zone_named("UTC"), Clock().seconds)
        self.counters = Counters()
        self.limits: list[str] = []
        log = LimitedLog(Logger("gateway.runtime.admission"), clock, self.counters)
        self.admission = Admission("http", "server", self.counters, log, AdmissionRules(**rules))
        self.factory = AdmittingFactory(
            Factory.forProtocol(Protocol), self.admission, refuse=self.refuse if tells else None
        )

    def refuse(self, _: object, limit: str) -> Protocol:
        self.limits.append(limit)
        return Told()

    def connect(self, address: Any) -> OpenTransport | None:
        if isinstance(address, str):
            kind = IPv6Address if ":" in address else IPv4Address
            address = kind("TCP", address, 1)
        protocol = self.factory.buildProtocol(address)
        if protocol is None:
            return None
        transport = OpenTransport(peerAddress=address)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    def refused(self, kind: str) -> float:
        return count_of(self.counters.connections_refused.labels(kind))


def networks(*texts: str) -> NetworkSet:
    return NetworkSet(map(ip_network, texts))


def test_without_rules_every_address_may_connect() -> None:
    listening = Listening()
    for address in ("192.0.2.1", "2001:db8::1", UNIXAddress(b"/socket"), None):
        assert listening.connect(address) is not None
    assert listening.admission.open_count == 4


def test_address_outside_of_allow_is_closed_counted_and_logged_with_its_key() -> None:
    listening = Listening(allow=networks("10.0.0.0/8"))
    with capturedLogs() as events:
        assert listening.connect("192.0.2.1") is None
        assert listening.connect("10.0.0.1") is not None
        assert listening.connect("::ffff:10.0.0.2") is not None
        assert listening.connect(UNIXAddress(b"/socket")) is not None
    assert listening.refused("not_allowed") == 1
    assert [formatEvent(event) for event in events] == [
        "server.allow: connection of 192.0.2.1 refused: its address is not in one of these networks"
    ]


def test_trusted_proxy_is_admitted_although_allow_does_not_list_it() -> None:
    listening = Listening(allow=networks("10.0.0.0/8"), proxies=networks("192.0.2.1/32"), per_address=1)
    assert listening.connect("192.0.2.1") is not None
    assert listening.connect("192.0.2.1") is not None
    assert listening.connect("192.0.2.2") is None


def test_change_of_allow_closes_only_connections_that_are_no_longer_allowed() -> None:
    listening = Listening()
    kept, closed, socket = (listening.connect(at) for at in ("10.0.0.1", "192.0.2.1", UNIXAddress(b"/socket")))
    assert kept is not None
    assert closed is not None
    assert socket is not None
    listening.admission.update(AdmissionRules(networks("10.0.0.0/8")))
    assert closed.disconnected
    assert not kept.disconnected
    assert not socket.disconnected
    assert listening.admission.open_count == 2
    assert listening.refused("not_allowed") == 1


def test_adopted_connections_are_counted_and_judged_by_the_new_rules() -> None:
    before, after = Listening(), Listening(allow=networks("10.0.0.0/8"))
    kept, closed = before.connect("10.0.0.1"), before.connect("192.0.2.1")
    assert kept is not None
    assert closed is not None
    after.admission.adopt(before.admission)
    after.admission.update(AdmissionRules(networks("10.0.0.0/8")))
    assert closed.disconnected
    assert not kept.disconnected
    assert after.connect("10.0.0.1") is not None
    assert after.admission.count_of("10.0.0.1") == 2
    kept.abortConnection()
    assert after.admission.count_of("10.0.0.1") == 1


def test_connections_of_an_address_are_counted_until_they_end() -> None:
    listening = Listening(per_address=2)
    first = listening.connect("192.0.2.1")
    assert first is not None
    assert listening.connect("::ffff:192.0.2.1") is not None
    assert listening.connect("192.0.2.1") is None
    assert listening.connect("192.0.2.2") is not None
    assert listening.refused("http") == 1
    first.abortConnection()
    assert listening.admission.count_of("192.0.2.1") == 1
    assert listening.connect("192.0.2.1") is not None
    assert listening.connect("192.0.2.1") is None


def test_count_holds_through_a_change_of_the_protocol() -> None:
    """A WebSocket takes the transport of an HTTP connection, which never learns that it was lost."""
    listening = Listening(per_address=1)
    transport = listening.connect("192.0.2.1")
    assert transport is not None
    transport.protocol = Protocol()
    assert listening.connect("192.0.2.1") is None
    transport.connectionLost(Failure(ConnectionDone()))
    assert listening.admission.open_count == 0
    assert listening.admission._counts == {}
    # A second report of the loss is not counted.
    transport.connectionLost(Failure(ConnectionDone()))
    assert listening.connect("192.0.2.1") is not None


def test_lower_limit_keeps_open_connections() -> None:
    listening = Listening(per_address=3)
    transports = [listening.connect("192.0.2.1") for _ in range(3)]
    listening.admission.update(AdmissionRules(per_address=2))
    assert not any(transport is None or transport.disconnected for transport in transports)
    assert listening.connect("192.0.2.1") is None


def test_clients_above_the_limit_are_told_but_not_without_end() -> None:
    listening = Listening(tells=True, per_address=1)
    assert listening.connect("192.0.2.1") is not None
    told = [listening.connect("192.0.2.1") for _ in range(100)]
    assert all(transport is not None and isinstance(transport.protocol, Told) for transport in told)
    assert listening.limits == ["limits.connections_per_address (1) is reached"] * 100
    # These refusals are counted by the function that tells the client.
    assert listening.refused("http") == 0
    assert listening.connect("192.0.2.1") is None
    assert listening.refused("http") == 1
    assert told[0] is not None
    told[0].abortConnection()
    assert listening.connect("192.0.2.1") is not None


def test_factory_that_refuses_a_connection_is_not_counted() -> None:
    listening = Listening()
    listening.factory.factory.buildProtocol = lambda _: None
    assert listening.connect("192.0.2.1") is None
    assert listening.admission.open_count == 0


def test_port_names_the_factory_within() -> None:
    assert Listening().factory.logPrefix() == "Factory"


@pytest.mark.parametrize("name", ["connectionLost", "abortConnection"])
def test_transports_of_twisted_have_the_methods_that_admission_uses(name: str) -> None:
    assert callable(getattr(Server, name))


@pytest.mark.parametrize("end", ["peer closes", "peer resets", "gateway closes", "gateway aborts"])
def test_count_ends_with_the_connection_of_a_real_socket(end: str) -> None:
    listening = Listening()
    reactor = SelectReactor()
    made: list[Any] = []

    class Noting(Protocol):
        def connectionMade(self) -> None:
            made.append(self.transport)

    listening.factory.factory = Factory.forProtocol(Noting)
    port = reactor.listenTCP(0, listening.factory, interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        _iterate(reactor, lambda: listening.admission.open_count == 1)
        assert listening.admission.count_of("127.0.0.1") == 1
        match end:
            case "peer closes":
                client.close()
            case "peer resets":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            case "gateway closes":
                made[0].loseConnection()
            case _:
                made[0].abortConnection()
        _iterate(reactor, lambda: listening.admission.open_count == 0)
    assert listening.admission.count_of("127.0.0.1") == 0
    port.stopListening()
    _iterate(reactor, lambda: not port.connected)


def _iterate(reactor: SelectReactor, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        reactor.iterate(0.01)
