"""Statistics as a part of the gateway: batches in, updates and hour means out, on time."""

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.model import Batch, PeriodMean
from gateway.stats.rollup import Rollup

log = Logger()

#: How often the wall clock is looked at, in seconds. A timer up to the next boundary would be wrong as soon as the
#: clock steps; an update is due within a second.
TICK: Final = 0.25


class Statistics(Service):
    """Publishes the mean of every minute and stores the mean of every hour.

    :param store_means: takes the hour means that are due.
    """

    name = "statistics"

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        rollup: Rollup,
        store_means: Callable[[list[PeriodMean]], None],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._rollup = rollup
        self._store_means = store_means
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor
        bus.attach(Batch, "statistics", self._on_batch)

    def startService(self) -> None:
        super().startService()
        self._ticking.start(TICK)

    def stopService(self) -> None:
        super().stopService()
        if self._ticking.running:
            self._ticking.stop()

    def _tick(self) -> None:
        try:
            self._advance()
        except Exception:  # the timer lives on
            self._counters.sink_failures.labels("statistics").inc()
            log.failure("statistics failed on a tick")

    def _advance(self) -> None:
        updates, means = self._rollup.advance(self._clock.now())
        for update in updates:
            self._bus.publish(update)
        if means:
            self._store_means(means)

    def _on_batch(self, batch: Batch) -> None:
        # A minute that ended since the last tick must not take these samples.
        self._advance()
        left_out = self._rollup.add(batch)
        if left_out:
            self._counters.daq_nonfinite.inc(left_out)
