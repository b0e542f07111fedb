"""Registry of the clients with long-lived connections, whatever their transport."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.auth.access import AccessControl
from gateway.auth.principal import Principal
from gateway.runtime.metrics import Counters

log = Logger()

#: Seconds between checks of the rights of all clients.
_CHECK_INTERVAL: Final = 1.0


class LiveClient(Protocol):
    """Client with an open connection."""

    @property
    def principals(self) -> Iterable[Principal]:
        """Rights that it was admitted with; each must still be valid."""

    def close_unauthorized(self) -> None:
        """Close the connection because its rights have ended."""

    def close_for_shutdown(self) -> None:
        """Close the connection because the gateway is stopping."""


class LiveClients:
    """Clients that are connected now.

    :param max_clients: maximum clients at a time, ``limits.subscribers``.
    """

    def __init__(self, reactor: IReactorTime, access: AccessControl, counters: Counters, max_clients: int) -> None:
        self._access = access
        self._counters = counters
        self.max_clients = max_clients
        self._kinds: dict[LiveClient, str] = {}
        #: Clients that had no rights when they connected, the oldest first; they may have got some.
        self._without_rights: dict[LiveClient, None] = {}
        self._emptied: Deferred[None] | None = None
        self._checked_at = access.wall()
        self._checks = LoopingCall(self._check_expiry)
        self._checks.clock = reactor

    def start(self) -> None:
        """Begin to end the connections of expired tokens."""
        self._checks.start(_CHECK_INTERVAL, now=False)

    def _check_expiry(self) -> None:
        before, self._checked_at = self._checked_at, self._access.wall()
        if self._access.has_expired_between(before, self._checked_at):
            self.check_access()

    def check_access(self) -> None:
        """Close the connections whose rights have ended: a token expired, was revoked or lost its scope."""
        # Many clients have the same rights.
        may_read = lru_cache(None)(self._may_read)
        for client in [client for client in self._kinds if not all(map(may_read, client.principals))]:
            self._counters.auth_refused.labels("ended").inc()
            try:
                client.close_unauthorized()
            except Exception:  # the others must be closed too
                log.failure("cannot close a connection whose token is no longer valid")

    def _may_read(self, principal: Principal) -> bool:
        return "read" in self._access.current(principal).scopes

    def has_room(self) -> bool:
        """Return whether another client may connect.

        If all places are taken, clients without rights make room, the oldest first: Socket.IO sessions that have joined
        nothing yet, which anybody may open.
        """
        while len(self._kinds) >= self.max_clients and self._without_rights:
            client = next(iter(self._without_rights))
            del self._without_rights[client]
            if not any(client.principals):
                client.close_unauthorized()
        return len(self._kinds) < self.max_clients

    def add(self, client: LiveClient, kind: str) -> None:
        """Count a client.

        :param kind: label of its connection in ``cynow_connections``.
        """
        self._kinds[client] = kind
        if not any(client.principals):
            self._without_rights[client] = None
        self._counters.connections.labels(kind).inc()

    def remove(self, client: LiveClient) -> bool:
        """Stop counting a client; return whether it was counted."""
        kind = self._kinds.pop(client, None)
        self._without_rights.pop(client, None)
        if kind is not None:
            self._counters.connections.labels(kind).dec()
        if self._emptied is not None and not self._kinds:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
        return kind is not None

    async def close(self) -> None:
        """Close every connection because the gateway is stopping; return once all are closed."""
        if self._checks.running:
            self._checks.stop()
        for client in list(self._kinds):
            client.close_for_shutdown()
        if self._kinds:
            self._emptied = Deferred()
            await self._emptied
