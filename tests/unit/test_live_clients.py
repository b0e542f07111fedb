"""Registry of clients with long-lived connections."""

from datetime import UTC, datetime

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gateway.auth.access import AccessControl
from gateway.auth.principal import EVERYBODY, Principal
from gateway.auth.tokens import Token, hash_of
from gateway.runtime.metrics import Counters
from gateway.web.clients.registry import LiveClients
from tests.support.access import open_clients

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClient:
    """Client that leaves when the gateway stops, or later."""

    def __init__(self, clients: LiveClients, *, leaves: bool = True, principal: Principal = EVERYBODY) -> None:
        self.clients = clients
        self.principal = principal
        self.leaves = leaves
        self.is_closed = False

    @property
    def principals(self) -> tuple[Principal, ...]:
        return (self.principal,)

    def close_unauthorized(self) -> None:
        self.close_for_shutdown()

    def close_for_shutdown(self) -> None:
        self.is_closed = True
        if self.leaves:
            self.clients.remove(self)


class UnjoinedClient(FakeClient):
    """Socket.IO session, which has no rights until it joins a namespace."""

    has_joined = False

    @property
    def principals(self) -> tuple[Principal, ...]:
        return (self.principal,) if self.has_joined else ()


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

    def test_clients_without_rights_make_room_the_oldest_first(self) -> None:
        self.clients.max_clients = 4
        joined, oldest, newest = (UnjoinedClient(self.clients) for _ in range(3))
        for client in (joined, oldest, newest, FakeClient(self.clients)):
            self.clients.add(client, "events")
        joined.has_joined = True
        self.assertTrue(self.clients.has_room())
        self.assertEqual([client.is_closed for client in (joined, oldest, newest)], [False, True, False])
        self.clients.add(FakeClient(self.clients), "events")
        self.assertTrue(self.clients.has_room())
        self.assertTrue(newest.is_closed)
        self.clients.add(FakeClient(self.clients), "events")
        self.assertFalse(self.clients.has_room())
        self.assertFalse(joined.is_closed)

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


class AccessTests(SynchronousTestCase):
    """Clients whose tokens expire or are revoked."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.access = AccessControl(self.clock.seconds)
        self.counters = Counters()
        self.clients = LiveClients(self.clock, self.access, self.counters, 10)
        self.clients.start()

    def add(self, name: str, expires: float | None = None) -> FakeClient:
        moment = None if expires is None else datetime.fromtimestamp(expires, UTC)
        token = Token(name=name, scopes=("read",), sha256=hash_of(name), created=moment or NOW, expires=moment)
        self.access.update([token], ())
        principal = self.access.identify(name.encode())
        assert isinstance(principal, Principal)
        client = FakeClient(self.clients, principal=principal)
        self.clients.add(client, "events")
        return client

    def ended(self) -> float | None:
        return self.counters.registry.get_sample_value("cynow_auth_refused_total", {"reason": "ended"})

    def test_client_of_a_token_that_expires_is_closed_without_a_reload(self) -> None:
        client = self.add("hall", 100.0)
        self.clock.pump([1.0] * 99)
        self.assertFalse(client.is_closed)
        self.clock.pump([1.0] * 2)
        self.assertTrue(client.is_closed)
        self.assertEqual(self.ended(), 1)

    def test_client_of_a_revoked_token_is_closed_and_others_stay(self) -> None:
        client = self.add("hall")
        other = FakeClient(self.clients)
        self.clients.add(other, "events")
        # Its own rights are those without a token.
        self.access.update([], ("read",))
        self.clients.check_access()
        self.assertEqual((client.is_closed, other.is_closed), (True, False))

    def test_client_without_a_token_is_closed_when_access_control_is_turned_on(self) -> None:
        client = FakeClient(self.clients)
        self.clients.add(client, "events")
        self.clients.check_access()
        self.assertFalse(client.is_closed)
        self.access.update([], ())
        self.clients.check_access()
        self.assertTrue(client.is_closed)
