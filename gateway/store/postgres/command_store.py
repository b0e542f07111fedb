"""PostgreSQL for a command, beside a gateway or without one: what is written is on the server when a write is done."""

import contextlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong

from gateway.model.entries import StoreEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import RollupProgress, StoreUnavailable
from gateway.store.postgres.store import PostgresStore
from gateway.store.spool.spool import Spool

#: Seconds that one write may take, and bytes of it.
_PATIENCE: Final = 60.0
_MOST: Final = 1024 * 1024 * 1024


class CommandPostgresStore(PostgresStore):
    """The store of a command.

    :param command: its name; with the gateway's, it tells whose entries they are.
    """

    def __init__(
        self, reactor: Any, clock: WallClock, counters: Counters, url: str, gateway: str, command: str
    ) -> None:
        self._folder = contextlib.ExitStack()
        folder = self._folder.enter_context(tempfile.TemporaryDirectory(prefix=f"cynow-gateway-{command}-"))
        spool = Spool(reactor, clock, counters, folder, _MOST)
        super().__init__(reactor, clock, counters, spool, url, f"{gateway} {command}")

    def standing(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> "Deferred[RollupProgress]":
        return Deferred.fromCoroutine(self._standing_of_server(days, now))

    async def _standing_of_server(
        self, days: Mapping[tuple[str, str], Collection[date]], now: datetime
    ) -> RollupProgress:
        # It raises where the server is away; a gateway would go on without.
        await self.machines()
        return await super().standing(days, now)

    def write(self, entries: Sequence[StoreEntry]) -> "Deferred[list[StoreEntry]]":
        """Write entries; fires when the server has them.

        :raises StoreUnavailable: it does not take them.
        """
        return Deferred.fromCoroutine(self._write_through(entries))

    async def _write_through(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        await super().write(entries)
        try:
            await self.drained().addTimeout(_PATIENCE, self._reactor)
        except TookTooLong as error:
            raise StoreUnavailable("; ".join(self.problems) or "PostgreSQL takes too long") from error
        return []

    def close(self) -> "Deferred[None]":
        return super().close().addBoth(self._remove)

    def _remove(self, result: Any) -> Any:
        self._folder.close()
        return result
