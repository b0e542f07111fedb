"""Bounded queue of the items that wait for one client to read."""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")

#: Bytes that an entry counts for in addition to its text: a tuple and its slot in the queue.
ENTRY: Final = 100

#: Seconds for which the queue of a client may exceed its bound, since a short burst is not the client's fault.
_GRACE: Final = 2.0

#: Factor of the bound that the queue may never exceed.
_HARD_LIMIT: Final = 4


class Outbox(Generic[T]):
    """A queue that sends its items as fast as its client reads.

    :param max_waiting: maximum queued bytes. The queue may exceed it for two seconds, but never by a factor of four.
    :param send: function that sends an item; returns whether the item was sent completely. Otherwise it is called with
        the same item again, and sends the remainder.
    :param too_slow: called once the bound is exceeded; the outbox is closed by then.
    :ivar held: queued bytes, as counted by the senders.
    """

    __slots__ = (
        "_deadline",
        "_is_closed",
        "_is_paused",
        "_max_waiting",
        "_reactor",
        "_send",
        "_too_slow",
        "_turn",
        "_waiting",
        "held",
    )

    def __init__(
        self, reactor: IReactorTime, max_waiting: int, send: Callable[[T], bool], too_slow: Callable[[], None]
    ) -> None:
        self.held = 0
        self._reactor = reactor
        self._max_waiting = max_waiting
        self._send = send
        self._too_slow = too_slow
        self._waiting: deque[tuple[int, T]] = deque()
        self._deadline: IDelayedCall | None = None
        self._turn: IDelayedCall | None = None
        self._is_paused = False
        self._is_closed = False

    @property
    def is_clear(self) -> bool:
        """Return whether an item can be sent directly, since it would overtake no other item."""
        return not (self._is_paused or self._waiting or self._is_closed or self._turn)

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, cost: int, item: T) -> None:
        """Queue an item, and send it as soon as the client has read the earlier ones.

        :param cost: bytes that the item holds while it waits.
        """
        if self._is_closed:
            return
        self._waiting.append((cost, item))
        self.held += cost
        self._drain()
        if self.held > _HARD_LIMIT * self._max_waiting:
            self._give_up()
        elif self.held > self._max_waiting and self._deadline is None:
            self._deadline = self._reactor.callLater(_GRACE, self._check_bound)

    def pause(self) -> None:
        """Stop sending: the client does not read."""
        self._is_paused = True

    def yield_turn(self) -> None:
        """Send nothing more in this turn of the reactor: the last item took long."""
        if self._turn is None and not self._is_closed:
            self._turn = self._reactor.callLater(0, self._continue)

    def _continue(self) -> None:
        self._turn = None
        self._drain()

    def resume(self) -> None:
        """Send again: the client reads."""
        self._is_paused = False
        self._drain()

    def take(self, max_bytes: int) -> list[T]:
        """Remove and return the first items: as many as ``max_bytes`` allow, but at least one."""
        items: list[T] = []
        size = 0
        while self._waiting and (not items or size + self._waiting[0][0] <= max_bytes):
            cost, item = self._waiting.popleft()
            self.held -= cost
            size += cost
            items.append(item)
        return items

    def close(self) -> None:
        """Drop all queued items, and accept no more."""
        self._is_closed = True
        self._waiting.clear()
        self.held = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _drain(self) -> None:
        while self._waiting and not self._is_paused and self._turn is None:
            cost, item = self._waiting[0]
            is_sent = self._send(item)
            # Sending may have closed the outbox.
            if is_sent and not self._is_closed:
                self._waiting.popleft()
                self.held -= cost

    def _check_bound(self) -> None:
        self._deadline = None
        if self.held > self._max_waiting:
            self._give_up()

    def _give_up(self) -> None:
        self.close()
        self._too_slow()
