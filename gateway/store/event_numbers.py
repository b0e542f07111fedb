"""Event numbers that never go back, over a restart either."""

from typing import Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.store.interface import SEQ_BLOCK, Store

log = Logger()

#: Events until a reservation that failed is asked for again.
_ASK_AGAIN: Final = 10_000


class EventNumberReserve:
    """Reserves event numbers in the store ahead of their use, so that giving one out costs no write.

    After a restart numbers go on above all that were reserved: some are never used.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reserved = store.reserved
        #: The number at which to ask for more.
        self._ask_at = self._reserved - SEQ_BLOCK // 2
        self._asking = False

    def used(self, seq: int) -> None:
        """Told of each number that is given out."""
        if seq > self._ask_at and not self._asking:
            self._asking = True
            wanted = seq + SEQ_BLOCK
            self._store.reserve(wanted).addCallbacks(
                self._granted, self._failed, callbackArgs=(wanted,), errbackArgs=(seq,)
            )

    def _granted(self, _: None, reserved: int) -> None:
        self._asking = False
        self._reserved = reserved
        self._ask_at = reserved - SEQ_BLOCK // 2

    def _failed(self, failure: Failure, asked_at: int) -> None:
        # Half a block is left for that.
        self._asking = False
        self._ask_at = asked_at + _ASK_AGAIN
        log.warn("event numbers could not be reserved: {error}", error=failure.value)
