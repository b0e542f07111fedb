"""Everybody who listens to live events, whatever the transport: how many may, and how they hear of the end."""

from typing import Protocol

from twisted.internet.defer import Deferred

from gateway.runtime.metrics import Counters


class LiveClient(Protocol):
    """One client with an open connection."""

    def dismiss(self) -> None:
        """The gateway is stopping: say so, and close."""


class LiveClients:
    """The clients that are there.

    :param most: ``limits.subscribers``.
    """

    def __init__(self, counters: Counters, most: int) -> None:
        self._counters = counters
        self._most = most
        self._members: dict[LiveClient, str] = {}
        self._emptied: Deferred[None] | None = None

    def has_room(self) -> bool:
        return len(self._members) < self._most

    def join(self, member: LiveClient, kind: str) -> None:
        """Somebody has come.

        :param kind: the label of its connection in ``cynow_connections``.
        """
        self._members[member] = kind
        self._counters.connections.labels(kind).inc()

    def leave(self, member: LiveClient) -> bool:
        """Somebody goes; whether it was there."""
        kind = self._members.pop(member, None)
        if kind is not None:
            self._counters.connections.labels(kind).dec()
        if self._emptied is not None and not self._members:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)
        return kind is not None

    async def close(self) -> None:
        """Tell everybody that the daemon goes; done when all have gone."""
        for member in list(self._members):
            member.dismiss()
        if self._members:
            self._emptied = Deferred()
            await self._emptied
