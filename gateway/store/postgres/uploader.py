"""From the spool to the server: what waits is brought in order, once each, however often either of them goes away."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import psycopg2
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from gateway.model.entries import StoreEntry
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.entries import EntryWriter, InThread, WrittenKeys
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text, is_of_the_row, is_raised
from gateway.store.postgres.session import Session
from gateway.store.spool_interface import EntrySpool

log = Logger()

#: Entries in one transaction.
_BATCH: Final = 1000

#: Seconds until entries that the server did not take are brought again.
_AGAIN: Final = 0.5

#: Number of tries, over five seconds, of an entry that a trigger refuses; the trigger may decide otherwise later.
_TRIES: Final = 10


class SpoolUploader:
    """Brings entries to the server.

    :param gateway: ``gateway.name``: how far its entries are is kept on the server by it and the spool's identity.
    :param in_thread: for what would hold up the reactor.
    :ivar problem: why the server, which is there, does not take them.
    :ivar lost: number of entries that it will never take, and why it refuses the last of them.
    """

    def __init__(
        self,
        reactor: Any,
        counters: Counters,
        warnings: LimitedLog,
        spool: EntrySpool,
        pool: Pool,
        gateway: str,
        in_thread: InThread,
    ) -> None:
        self._reactor = reactor
        self._counters = counters
        self._spool = spool
        self._pool = pool
        self._gateway = gateway
        self._in_thread = in_thread
        self._warnings = warnings
        self._known = WrittenKeys()
        self._closing = False
        self._woken = False
        #: While nothing waits: fires when something may.
        self._resting: Deferred[None] | None = None
        #: While nothing can be brought.
        self._pausing: tuple[IDelayedCall, Deferred[None]] | None = None
        self._drained: list[Deferred[None]] = []
        self.problem: str | None = None
        self.lost: tuple[int, str] = 0, ""
        #: The entry that a trigger refuses, and the number of refusals.
        self._raised: tuple[int, int] = 0, 0

    def start(self) -> None:
        # It may be another database than it was.
        self._pool.on_connect = self._forget
        self._running = Deferred.fromCoroutine(self._run())

    def _forget(self) -> None:
        self._known = WrittenKeys()

    def wake(self) -> None:
        """Something waits, or soon will."""
        self._woken = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def drained(self) -> "Deferred[None]":
        """Fires when nothing waits for the server any more."""
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        self.wake()
        return drained

    def stop(self) -> None:
        """Bring nothing more."""
        self._closing = True
        self.wake()
        if self._pausing is not None:
            call, pausing = self._pausing
            call.cancel()
            self._go_on(pausing)

    async def stopped(self) -> None:
        """Wait for what was begun."""
        await self._running

    async def _run(self) -> None:
        most = _BATCH
        numbered: Sequence[tuple[int, StoreEntry]] = ()
        while not self._closing:
            try:
                self._woken = False
                numbered = await self._spool.first(most)
                if numbered:
                    most = await self._bring(numbered)
                else:
                    await self._rest()
            except StoreUnavailable as error:
                # The server is away, which its pool says, or the spool is, which that does.
                log.debug("entries wait: {error}", error=error)
                await self._pause()
            except psycopg2.Error as error:
                self._refused(error_text(error))
                # There may be too many for a statement's time limit.
                most = max(1, len(numbered) // 2)
                await self._pause()

    async def _rest(self) -> None:
        drained, self._drained = self._drained, []
        for each in drained:
            each.callback(None)
        if not self._woken:
            resting: Deferred[None] = Deferred()
            self._resting = resting
            await resting

    async def _pause(self) -> None:
        if not self._closing:
            pausing: Deferred[None] = Deferred()
            self._pausing = self._reactor.callLater(_AGAIN, self._go_on, pausing), pausing
            await pausing

    def _go_on(self, pausing: "Deferred[None]") -> None:
        self._pausing = None
        pausing.callback(None)

    async def _bring(self, numbered: Sequence[tuple[int, StoreEntry]]) -> int:
        """Bring some entries to the server; how many to bring at the next time.

        :raises StoreUnavailable: not now.
        :raises psycopg2.Error: the server refuses them, now.
        """
        try:
            self._known.add(await self._pool.run(partial(self._apply, numbered), is_repeatable=False))
        except Exception as error:  # whatever is wrong with one entry must not keep the others waiting
            # Errors that do not depend on the entry may pass: a deadlock, a full disk, a dropped table.
            if isinstance(error, StoreUnavailable) or (isinstance(error, psycopg2.Error) and not is_of_the_row(error)):
                raise
            if len(numbered) > 1:
                return len(numbered) // 2
            if isinstance(error, psycopg2.Error) and is_raised(error) and not self._has_tried_enough(numbered[0][0]):
                raise
            self.lost = self.lost[0] + 1, error_text(error)
            self._warnings.warn("lost", "PostgreSQL refuses an entry for good: {error}", error=self.lost[1])
            self._counters.store_lost.inc()
        else:
            self._refused(None)
        await self._spool.done(numbered[-1][0])
        return min(_BATCH, 2 * len(numbered))

    def _has_tried_enough(self, number: int) -> bool:
        before, count = self._raised
        self._raised = number, count + 1 if number == before else 1
        return self._raised[1] >= _TRIES

    def _refused(self, why: str | None) -> None:
        if why is not None:
            self._counters.store_retries.inc()
            if why != self.problem:
                log.warn("PostgreSQL does not take statistics, and they wait: {error}", error=why)
        self.problem = why

    async def _apply(self, numbered: Sequence[tuple[int, StoreEntry]], session: Session) -> WrittenKeys:
        return await session.transaction(partial(self._write, numbered))

    async def _write(self, numbered: Sequence[tuple[int, StoreEntry]], session: Session) -> WrittenKeys:
        """Write those entries that are not written yet, and how far they are."""
        who = [self._gateway, self._spool.identity]
        await session.ask(
            "INSERT INTO cynow_applied (gateway, spool, entry) VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", who
        )
        ((applied,),) = await session.ask(
            "SELECT entry FROM cynow_applied WHERE gateway = %s AND spool = %s FOR UPDATE", who
        )
        new = [(number, entry) for number, entry in numbered if number > applied]
        writer = EntryWriter(session, self._gateway, self._known, self._in_thread)
        if new:
            await writer.write(new)
            await session.ask(
                "UPDATE cynow_applied SET entry = %s WHERE gateway = %s AND spool = %s", [new[-1][0], *who]
            )
        return writer.new
