"""Upload of spooled entries to the server: in order and once each, however often the server or the gateway fails."""

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

#: Maximum entries in one transaction.
_MAX_BATCH: Final = 1000

#: Seconds until entries that the server did not accept are uploaded again.
_RETRY: Final = 0.5

#: Maximum attempts, over five seconds, for an entry that a trigger refuses; the trigger may accept it later.
_MAX_ATTEMPTS: Final = 10


class SpoolUploader:
    """Uploader of the entries of a spool.

    :param gateway: ``gateway.name``. The server keeps the number of the last entry by it and the spool's identity.
    :param in_thread: runs long computations.
    :ivar problem: why the server, though connected, does not accept entries; ``None`` if it does.
    :ivar lost: number of entries that were given up, and the reason for the last of them.
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
        self._written_keys = WrittenKeys()
        self._is_closing = False
        self._must_look = False
        #: Fires when entries may wait; ``None`` unless the uploader rests.
        self._resting: Deferred[None] | None = None
        #: Timer of a pause after a failure, and the Deferred that it fires.
        self._pausing: tuple[IDelayedCall, Deferred[None]] | None = None
        self._drained: list[Deferred[None]] = []
        self.problem: str | None = None
        self.lost: tuple[int, str] = 0, ""
        #: Number of the entry that a trigger refuses, and the number of refusals.
        self._attempts: tuple[int, int] = 0, 0

    def start(self) -> None:
        """Start uploading."""
        # Each connection may be to another database.
        self._pool.on_connect = self._forget_keys
        self._running = Deferred.fromCoroutine(self._run())

    def _forget_keys(self) -> None:
        self._written_keys = WrittenKeys()

    def wake(self) -> None:
        """Look for entries in the spool."""
        self._must_look = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def drained(self) -> "Deferred[None]":
        """Return a Deferred that fires when no entry waits for the server."""
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        self.wake()
        return drained

    def stop(self) -> None:
        """Upload no further entries."""
        self._is_closing = True
        self.wake()
        if self._pausing is not None:
            call, pausing = self._pausing
            call.cancel()
            self._resume(pausing)

    async def stopped(self) -> None:
        """Wait for the running upload."""
        await self._running

    async def _run(self) -> None:
        batch_size = _MAX_BATCH
        numbered: Sequence[tuple[int, StoreEntry]] = ()
        while not self._is_closing:
            try:
                self._must_look = False
                numbered = await self._spool.first(batch_size)
                if numbered:
                    batch_size = await self._upload(numbered)
                else:
                    await self._rest()
            except StoreUnavailable as error:
                # The pool reports an unavailable server, and the spool its own failure.
                log.debug("entries wait in the spool: {error}", error=error)
                await self._pause()
            except psycopg2.Error as error:
                self._set_problem(error_text(error))
                # There may be too many entries for a statement's time limit.
                batch_size = max(1, len(numbered) // 2)
                await self._pause()

    async def _rest(self) -> None:
        drained, self._drained = self._drained, []
        for done in drained:
            done.callback(None)
        if not self._must_look:
            resting: Deferred[None] = Deferred()
            self._resting = resting
            await resting

    async def _pause(self) -> None:
        if not self._is_closing:
            pausing: Deferred[None] = Deferred()
            self._pausing = self._reactor.callLater(_RETRY, self._resume, pausing), pausing
            await pausing

    def _resume(self, pausing: "Deferred[None]") -> None:
        self._pausing = None
        pausing.callback(None)

    async def _upload(self, numbered: Sequence[tuple[int, StoreEntry]]) -> int:
        """Upload entries; return the maximum number of entries of the next batch.

        :raises StoreUnavailable: the server is unavailable.
        :raises psycopg2.Error: the server refuses the entries for now.
        """
        try:
            self._written_keys.add(await self._pool.run(partial(self._apply, numbered), is_repeatable=False))
        except Exception as error:  # an error of one entry must not block the others
            # Errors that do not depend on the entry may pass: a deadlock, a full disk, a dropped table.
            if isinstance(error, StoreUnavailable) or (isinstance(error, psycopg2.Error) and not is_of_the_row(error)):
                raise
            if len(numbered) > 1:
                return len(numbered) // 2
            if isinstance(error, psycopg2.Error) and is_raised(error) and not self._count_attempt(numbered[0][0]):
                raise
            self.lost = self.lost[0] + 1, error_text(error)
            self._warnings.warn("lost", "PostgreSQL rejects an entry, which is lost: {error}", error=self.lost[1])
            self._counters.store_lost.inc()
        else:
            self._set_problem(None)
        await self._spool.done(numbered[-1][0])
        return min(_MAX_BATCH, 2 * len(numbered))

    def _count_attempt(self, number: int) -> bool:
        """Count an attempt to write an entry that a trigger refuses; return whether it was the last."""
        before, count = self._attempts
        self._attempts = number, count + 1 if number == before else 1
        return self._attempts[1] >= _MAX_ATTEMPTS

    def _set_problem(self, why: str | None) -> None:
        if why is not None:
            self._counters.store_retries.inc()
            if why != self.problem:
                log.warn("PostgreSQL does not accept statistics; they wait in the spool: {error}", error=why)
        self.problem = why

    async def _apply(self, numbered: Sequence[tuple[int, StoreEntry]], session: Session) -> WrittenKeys:
        return await session.transaction(partial(self._write, numbered))

    async def _write(self, numbered: Sequence[tuple[int, StoreEntry]], session: Session) -> WrittenKeys:
        """Write the entries that are not written yet, and the number of the last."""
        source = [self._gateway, self._spool.identity]
        await session.ask(
            "INSERT INTO cynow_applied (gateway, spool, entry) VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", source
        )
        ((applied,),) = await session.ask(
            "SELECT entry FROM cynow_applied WHERE gateway = %s AND spool = %s FOR UPDATE", source
        )
        new = [(number, entry) for number, entry in numbered if number > applied]
        writer = EntryWriter(session, self._gateway, self._written_keys, self._in_thread)
        if new:
            await writer.write(new)
            await session.ask(
                "UPDATE cynow_applied SET entry = %s WHERE gateway = %s AND spool = %s", [new[-1][0], *source]
            )
        return writer.new
