"""Access control of tests: off, unless a test turns it on."""

from twisted.internet.interfaces import IReactorTime

from gateway.auth.access import AccessControl
from gateway.runtime.metrics import Counters
from gateway.web.clients.registry import LiveClients
from gateway.web.http.client_checks import ClientChecks
from gateway.web.http.gate import Gate


def open_access() -> AccessControl:
    return AccessControl(lambda: 0.0)


def open_gate(counters: Counters) -> Gate:
    return Gate(open_access(), counters, (), ())


def no_client_checks(counters: Counters) -> ClientChecks:
    return ClientChecks(counters, lambda: 0.0)


def open_clients(reactor: IReactorTime, counters: Counters, max_clients: int) -> LiveClients:
    return LiveClients(reactor, open_access(), counters, max_clients)
