"""Service of the statistics: it adds batches to the rollup, and publishes and stores the periods that end."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.bus.bus import Bus
from gateway.model.entries import ClosedHour, StoreEntry
from gateway.model.records import Batch
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.stats.rollup import Rollup

log = Logger()

#: Seconds between two looks at the wall clock; an update is due within one second. A timer until the next boundary
#: would be wrong as soon as the clock is set.
TICK_SECONDS: Final = 0.25

#: Maximum step of the wall clock in seconds that is not logged: NTP adjusts the clock by small steps.
_MAX_SILENT_STEP: Final = 0.5


class Journal(Protocol):
    """Raw files, from which statistics can be recovered."""

    def flush(self) -> None:
        """Write all lines to the operating system."""

    def end(self, machine: str, sensor: str, day: datetime) -> int | None:
        """Return the size of a day's file with all samples until now, in bytes; ``None`` if some are not written."""


class Statistics(Service):
    """Statistics, which publish the mean of every minute and store those of every longer period.

    They must be attached to the bus before the journal: it must not have a batch yet when the batch ends an hour.

    :param store: takes the entries of ended periods.
    """

    name = "statistics"

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        rollup: Rollup,
        journal: Journal,
        store: Callable[[Iterable[StoreEntry]], None],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._rollup = rollup
        self._journal = journal
        self._store = store
        #: Number of left-out samples that have been reported.
        self._left_out = 0
        self._warnings = LimitedLog(log, clock, counters)
        #: Time of arrival of the last batch, which all batches of one read share.
        self._arrival: datetime | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor
        bus.attach(Batch, "statistics", self._on_batch)

    def startService(self) -> None:
        super().startService()
        self._clock.step()
        self._ticking.start(TICK_SECONDS)

    def stopService(self) -> None:
        super().stopService()
        if self._ticking.running:
            self._ticking.stop()

    def _tick(self) -> None:
        try:
            step = self._clock.step()
            if abs(step) > _MAX_SILENT_STEP:
                log.warn("the wall clock jumped by {step} s", step=f"{step:+.1f}")
            self._advance(self._clock.now())
        except Exception:  # the timer must survive
            self._counters.sink_failures.labels("statistics").inc()
            log.failure(
                "statistics: an exception while periods were closed; trying again in {seconds} s", seconds=TICK_SECONDS
            )

    def _advance(self, now: datetime) -> None:
        closed = self._rollup.advance(now)
        if self._rollup.left_out != self._left_out:
            self._report_left_out()
        if not (closed.updates or closed.entries):
            return
        # A published or stored mean must be the same after a kill.
        self._journal.flush()
        for update in closed.updates:
            self._bus.publish(update)
        self._store(self._with_raw_end(entry) if isinstance(entry, ClosedHour) else entry for entry in closed.entries)

    def _with_raw_end(self, hour: ClosedHour) -> ClosedHour:
        return replace(hour, raw_end=self._journal.end(hour.machine, hour.sensor, hour.start))

    def _on_batch(self, batch: Batch) -> None:
        # A minute that ended since the last tick must be closed before the batch is added to the next one.
        if batch.received_at is not self._arrival:
            self._arrival = batch.received_at
            self._advance(batch.received_at)
        self._rollup.add(batch)
        if self._rollup.left_out != self._left_out:
            self._report_left_out()

    def _report_left_out(self) -> None:
        self._counters.daq_nonfinite.inc(self._rollup.left_out - self._left_out)
        self._left_out = self._rollup.left_out
        for (machine, sensor), count in self._rollup.overflows.items():
            self._warnings.warn(
                f"overflow {machine} {sensor}",
                "machine {machine}: {count} samples of sensor {sensor} are left out of its means, because their sum"
                " exceeds a double (1.8e308); the raw file has them",
                machine=machine,
                sensor=sensor,
                count=count,
            )
        self._rollup.overflows.clear()
