"""Registry of clients with long-lived connections."""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gateway.auth.principal import EVERYBODY, Principal
from gateway.runtime.metrics import Counters
from gateway.web.clients.registry import LiveClients
from tests.support.access import open_clients


class FakeClient:
    """Client that leaves when the gateway stops, or later."""

    def __init__(self, clients: LiveClients, *, leaves: bool = True) -> None:
        self.clients = clients
        self.leaves = leaves
        self.is_closed = False

    @property
    def principals(self) -> tuple[Principal, ...]:
        return (EVERYBODY,)

    def close_unauthorized(self) -> None:
        self.close_for_shutdown()

    def close_for_shutdown(self) -> None:
        self.is_closed = True
        if self.leaves:
            self.clients.remove(self)


class LiveClientsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.counters = Counters()
        self.clients = open_clients(Clock(), self.counters, 2)

    def count(self) -> float | None:
        return self.counters.registry.get_sample_value("cynow_connections", {"kind": "events"})

    def test_clients_are_counted_and_bounded(self) -> None:
        first, second = FakeClient(self.clients), FakeClient(self.clients)
        self.clients.add(first, "events")
        self.assertTrue(self.clients.has_room())
        self.clients.add(second, "events")
        self.assertEqual((self.clients.has_room(), self.count()), (False, 2))
        self.assertTrue(self.clients.remove(first))
        self.assertFalse(self.clients.remove(first))
        self.assertEqual((self.clients.has_room(), self.count()), (True, 1))

    def test_close_waits_for_the_last_client(self) -> None:
        fast, slow = FakeClient(self.clients), FakeClient(self.clients, leaves=False)
        self.clients.add(fast, "events")
        self.clients.add(slow, "events")
        closing = Deferred.fromCoroutine(self.clients.close())
        self.assertTrue(slow.is_closed)
        self.assertNoResult(closing)
        self.clients.remove(slow)
        self.assertIsNone(self.successResultOf(closing))

    def test_close_without_clients_returns_at_once(self) -> None:
        client = FakeClient(self.clients)
        self.successResultOf(Deferred.fromCoroutine(self.clients.close()))
        self.clients.add(client, "events")
        self.successResultOf(Deferred.fromCoroutine(self.clients.close()))
        self.assertEqual(self.count(), 0)
