"""PostgreSQL store for a command, which runs beside a gateway or without one; a write ends when the server has it."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

from twisted.internet.defer import TimeoutError as DrainTimeout

from gateway.model.entries import StoreEntry
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import RollupProgress, StoreUnavailable
from gateway.store.postgres.store import PostgresStore
from gateway.store.spool_interface import EntrySpool

#: Maximum duration of one write, in seconds.
_PATIENCE: Final = 60.0


class CommandPostgresStore(PostgresStore):
    """Store of a command.

    :param make_spool: function that returns a spool in a directory; the directory is temporary.
    :param writer: name of the gateway and the command, which distinguishes the entries from those of others.
    """

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        make_spool: Callable[[str], EntrySpool],
        url: str,
        writer: str,
    ) -> None:
        self._directory = contextlib.ExitStack()
        directory = self._directory.enter_context(tempfile.TemporaryDirectory(prefix="cynow-gateway-"))
        super().__init__(reactor, clock, counters, make_spool(directory), url, writer)

    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        # This raises if the server is unavailable; a gateway would go on without it.
        await self.machines()
        return await super().rollup_progress(days, now)

    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        """Write entries, and return when the server has them.

        :raises StoreUnavailable: the server does not accept them.
        """
        await super().write(entries)
        try:
            await self.drained().addTimeout(_PATIENCE, self._reactor)
        except DrainTimeout as error:
            raise StoreUnavailable(
                "; ".join(self.problems) or f"PostgreSQL has not accepted the entries within {_PATIENCE:g} s"
            ) from error
        return []

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._directory.close()
