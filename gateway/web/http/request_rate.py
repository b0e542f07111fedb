"""Limit on the requests of each client in a second."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: Maximum clients that are remembered; the one that has sent nothing for the longest time is forgotten.
MAX_CLIENTS: Final = 10_000


class RequestRate:
    """Token bucket for each client: it may send a burst, and then a fixed number of requests a second.

    A bucket is kept as the time at which it will be full again: one number, and no timer.

    :param seconds: monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._interval = 0.0
        self._depth = 0.0
        self._full_at: OrderedDict[str, float] = OrderedDict()

    @property
    def is_on(self) -> bool:
        return self._interval > 0

    def update(self, rate: float | None, burst: int) -> None:
        """Replace the limit; all clients begin anew if it changes.

        :param rate: requests a second; ``None`` for no limit.
        :param burst: requests that a client may send at once.
        """
        interval = 0.0 if rate is None else 1 / rate
        depth = interval * burst
        if (interval, depth) != (self._interval, self._depth):
            self._interval, self._depth = interval, depth
            self._full_at.clear()

    def take(self, client: str) -> float:
        """Count a request; return 0, or the seconds after which the client may try again if it is beyond the limit."""
        now = self._seconds()
        full_at = max(self._full_at.pop(client, now), now) + self._interval
        wait = full_at - now - self._depth
        # Sums of intervals are not exact.
        is_admitted = wait <= self._interval * 1e-6
        self._full_at[client] = full_at if is_admitted else full_at - self._interval
        if len(self._full_at) > MAX_CLIENTS:
            self._full_at.popitem(last=False)
        return 0.0 if is_admitted else wait
