"""Listeners: whether they accept, and from where they can be reached."""

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from gateway.runtime.listener import Listener
from gateway.runtime.open_access import OpenAccess
from tests.support.logs import collect_lines


class FakePort:
    """Port at an address."""

    def __init__(self, address: IAddress) -> None:
        self._address = address

    def getHost(self) -> IAddress:
        return self._address

    def stopListening(self) -> None:
        pass


class FakeEndpoint:
    """Endpoint at an address."""

    def __init__(self, address: IAddress) -> None:
        self._address = address

    def listen(self, factory: Any) -> "Deferred[Any]":
        return succeed(FakePort(self._address))


def listening(key: str, address: IAddress) -> Listener:
    listener = Listener(key, FakeEndpoint(address), Factory())  # type: ignore[arg-type]  # it listens only
    listener.listen()
    return listener


def test_listener_has_a_problem_unless_it_accepts() -> None:
    listener = listening("server.port", IPv4Address("TCP", "127.0.0.1", 8080))
    assert listener.problem == "server.port: no connections are accepted"
    listener.accept()
    assert listener.problem is None
    listener.stop()
    assert listener.problem == "server.port: no connections are accepted"
    assert listener.open_address is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (IPv4Address("TCP", "0.0.0.0", 8080), "0.0.0.0:8080"),
        (IPv4Address("TCP", "10.0.0.1", 8080), "10.0.0.1:8080"),
        (IPv4Address("TCP", "127.0.0.1", 8080), None),
        (IPv4Address("TCP", "127.1.2.3", 8080), None),
        (IPv6Address("TCP", "::", 8080), "[::]:8080"),
        (IPv6Address("TCP", "fe80::1%eth0", 8080), "[fe80::1%eth0]:8080"),
        (IPv6Address("TCP", "::1", 8080), None),
        (UNIXAddress("/run/gateway"), None),
    ],
)
def test_address_is_open_if_other_machines_reach_it(address: IAddress, shown: str | None) -> None:
    assert listening("server.port", address).open_address == shown


class OpenAccessTests(SynchronousTestCase):
    def test_open_access_is_logged_at_the_start_and_when_access_control_is_switched_off(self) -> None:
        listeners = [
            listening("server.port", IPv4Address("TCP", "0.0.0.0", 8080)),
            listening("scale.port", IPv4Address("TCP", "127.0.0.1", 4001)),
        ]
        lines = collect_lines(self)
        access = OpenAccess(lambda: listeners, is_controlled=False)
        access.startService()
        access.update(is_controlled=False)
        (line,) = lines
        self.assertTrue(
            line.startswith("auth: access control is off, and other machines reach server.port (0.0.0.0:8080): ")
        )
        access.update(is_controlled=True)
        self.assertIsNone(access.warning)
        access.update(is_controlled=False)
        self.assertEqual(lines, [line, line])
