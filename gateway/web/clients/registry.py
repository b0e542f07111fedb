"""Registry of the clients with long-lived connections, whatever their transport."""

from typing import Protocol

from twisted.internet.defer import Deferred

from gateway.runtime.metrics import Counters


class LiveClient(Protocol):
    """Client with an open connection."""

    def close_for_shutdown(self) -> None:
        """Close the connection because the gateway is stopping."""


class LiveClients:
    """Clients that are connected now.

    :param max_clients: maximum clients at a time, ``limits.subscribers``.
    """

    def __init__(self, counters: Counters, max_clients: int) -> None:
        self._counters = counters
        self._max_clients = max_clients
        self._kinds: dict[LiveClient, str] = {}
        self._emptied: Deferred[None] | None = None

    def has_room(self) -> bool:
        return len(self._kinds) < self._max_clients

    def add(self, client: LiveClient, kind: str) -> None:
        """Count a client.

        :param kind: label of its connection in ``cynow_connections``.
        """
        self._kinds[client] = kind
        self._counters.connections.labels(kind).inc()

    def remove(self, client: LiveClient) -> bool:
        """Stop counting a client; return whether it was counted."""
        kind = self._kinds.pop(client, None)
        if kind is not None:
            self._counters.connections.labels(kind).dec()
        if self._emptied is not None and not self._kinds:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
        return kind is not None

    async def close(self) -> None:
        """Close every connection because the gateway is stopping; return once all are closed."""
        for client in list(self._kinds):
            client.close_for_shutdown()
        if self._kinds:
            self._emptied = Deferred()
            await self._emptied
