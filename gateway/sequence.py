"""Event numbers that never go back, over a restart either."""

from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.store.interface import SEQ_BLOCK, Store

log = Logger()


class SequenceReserve:
    """Reserves event numbers in the store ahead of their use, so that giving one out costs no write.

    After a restart numbers go on above all that were reserved: some are never used.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reserved = store.reserved
        self._asking = False

    def used(self, seq: int) -> None:
        """Told of each number that is given out."""
        if seq + SEQ_BLOCK // 2 > self._reserved and not self._asking:
            self._asking = True
            self._store.reserve(seq + SEQ_BLOCK).addCallbacks(
                self._granted, self._failed, callbackArgs=(seq + SEQ_BLOCK,)
            )

    def _granted(self, _: None, reserved: int) -> None:
        self._asking = False
        self._reserved = reserved

    def _failed(self, failure: Failure) -> None:
        # It is asked again at the next event; half a block is left for that.
        self._asking = False
        log.warn("event numbers could not be reserved: {error}", error=failure.value)
