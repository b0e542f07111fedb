"""What waits for one client to read: in order, and bounded."""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")

#: What an entry is counted as, beside its text: a tuple and its place.
ENTRY: Final = 100

#: Seconds that more than its bound may wait for a client: a burst of one moment is none of its fault.
_GRACE: Final = 2.0

#: So many times its bound may wait for a client within that.
_HARD_LIMIT: Final = 4


class Outbox(Generic[T]):
    """A queue that is emptied as fast as its client reads.

    :param most: bytes that may wait. More of them are allowed for two seconds, and four times as many for no time.
    :param send: sends an item; whether that was all of it. The rest is its business when it is called again.
    :param too_slow: is called once more waits than may; the outbox is closed by then.
    :ivar held: bytes that wait, as their senders count them.
    """

    __slots__ = (
        "_closed",
        "_judgement",
        "_most",
        "_paused",
        "_reactor",
        "_send",
        "_too_slow",
        "_turn",
        "_waiting",
        "held",
    )

    def __init__(
        self, reactor: IReactorTime, most: int, send: Callable[[T], bool], too_slow: Callable[[], None]
    ) -> None:
        self.held = 0
        self._reactor = reactor
        self._most = most
        self._send = send
        self._too_slow = too_slow
        self._waiting: deque[tuple[int, T]] = deque()
        self._judgement: IDelayedCall | None = None
        self._turn: IDelayedCall | None = None
        self._paused = False
        self._closed = False

    @property
    def is_clear(self) -> bool:
        """Whether what is sent now would be sent at once, and overtake nothing."""
        return not (self._paused or self._waiting or self._closed or self._turn)

    @property
    def is_paused(self) -> bool:
        return self._paused

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, cost: int, item: T) -> None:
        """Send an item when it is its turn.

        :param cost: bytes that it holds while it waits.
        """
        if self._closed:
            return
        self._waiting.append((cost, item))
        self.held += cost
        self._drain()
        if self.held > _HARD_LIMIT * self._most:
            self._give_up()
        elif self.held > self._most and self._judgement is None:
            self._judgement = self._reactor.callLater(_GRACE, self._judge)

    def pause(self) -> None:
        """The client reads no more for now."""
        self._paused = True

    def rest(self) -> None:
        """What was sent took long: go on in the reactor's next turn."""
        if self._turn is None and not self._closed:
            self._turn = self._reactor.callLater(0, self._wake)

    def _wake(self) -> None:
        self._turn = None
        self._drain()

    def resume(self) -> None:
        """The client reads again."""
        self._paused = False
        self._drain()

    def take(self, most: int) -> list[T]:
        """Take items out, so many bytes of them or one."""
        taken: list[T] = []
        size = 0
        while self._waiting and (not taken or size + self._waiting[0][0] <= most):
            cost, item = self._waiting.popleft()
            self.held -= cost
            size += cost
            taken.append(item)
        return taken

    def close(self) -> None:
        """Forget what waits, and take nothing more."""
        self._closed = True
        self._waiting.clear()
        self.held = 0
        if self._judgement is not None:
            self._judgement.cancel()
            self._judgement = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _drain(self) -> None:
        while self._waiting and not self._paused and self._turn is None:
            cost, item = self._waiting[0]
            whole = self._send(item)
            # Sending may have closed it.
            if whole and not self._closed:
                self._waiting.popleft()
                self.held -= cost

    def _judge(self) -> None:
        self._judgement = None
        if self.held > self._most:
            self._give_up()

    def _give_up(self) -> None:
        self.close()
        self._too_slow()
