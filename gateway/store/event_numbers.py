"""Event numbers that never go back, not even after a restart."""

from abc import ABC, abstractmethod
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

#: Event numbers in one reservation; at 5,000 events a second they last over three minutes.
SEQ_BLOCK: Final = 1_000_000

#: Number of events until a failed reservation is tried again.
_RETRY_EVENTS: Final = 10_000


class EventNumberStore(ABC):
    """A durable upper bound of event numbers.

    :ivar first_seq: first event number of this process, above all earlier ones.
    :ivar reserved: last event number that may be used before :meth:`reserve` has reserved more.
    """

    first_seq: int
    reserved: int

    @abstractmethod
    async def reserve(self, up_to: int) -> None:
        """Reserve the event numbers up to ``up_to``: later processes begin above it.

        :raises StoreUnavailable: the bound cannot be written now.
        """


class EventNumberReserve:
    """Reserves event numbers ahead of their use, so that using one costs no write.

    A restart continues above all reserved numbers; some are never used.
    """

    def __init__(self, store: EventNumberStore) -> None:
        self._store = store
        self._reserved = store.reserved
        #: Number whose use triggers the next reservation.
        self._trigger = self._reserved - SEQ_BLOCK // 2
        self._is_reserving = False

    def used(self, seq: int) -> None:
        """Note that a number is used; called for every event."""
        if seq > self._trigger and not self._is_reserving:
            self._is_reserving = True
            wanted = seq + SEQ_BLOCK
            Deferred.fromCoroutine(self._store.reserve(wanted)).addCallbacks(
                self._granted, self._failed, callbackArgs=(wanted,), errbackArgs=(seq,)
            )

    def _granted(self, _: None, reserved: int) -> None:
        self._is_reserving = False
        self._reserved = reserved
        self._trigger = reserved - SEQ_BLOCK // 2

    def _failed(self, failure: Failure, seq: int) -> None:
        # Half a block is left for retries.
        self._is_reserving = False
        self._trigger = seq + _RETRY_EVENTS
        log.warn(
            "cannot reserve event numbers: {error}; retrying in {count} events",
            error=failure.value,
            count=_RETRY_EVENTS,
        )
