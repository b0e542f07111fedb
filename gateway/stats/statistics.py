"""Statistics as a part of the gateway: batches in, updates and what is over out, on time."""

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

#: How often the wall clock is looked at, in seconds. A timer up to the next boundary would be wrong as soon as the
#: clock steps; an update is due within a second.
TICK: Final = 0.25

#: A step of the wall clock by more seconds is worth a line in the log; less is its being steered.
_STEP: Final = 0.5


class Journal(Protocol):
    """The raw files, from which statistics can be made again."""

    def flush(self) -> None:
        """Hand all lines to the operating system."""

    def end(self, machine: str, sensor: str, day: datetime) -> int | None:
        """How many bytes of a day's file hold all that came until now."""


class Statistics(Service):
    """Publishes the mean of every minute and stores those of every longer period.

    Made before the journal is a sink: when a batch ends an hour, the journal must not have it yet.

    :param store: takes what is over.
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
        self._left_out = 0
        self._warnings = LimitedLog(log, clock, counters)
        #: When the last batch came: all those of one read have one time.
        self._arrival: datetime | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor
        bus.attach(Batch, "statistics", self._on_batch)

    def startService(self) -> None:
        super().startService()
        self._clock.step()
        self._ticking.start(TICK)

    def stopService(self) -> None:
        super().stopService()
        if self._ticking.running:
            self._ticking.stop()

    def _tick(self) -> None:
        try:
            step = self._clock.step()
            if abs(step) > _STEP:
                log.warn("the wall clock jumped by {step} seconds", step=f"{step:+.1f}")
            self._advance(self._clock.now())
        except Exception:  # the timer lives on
            self._counters.sink_failures.labels("statistics").inc()
            log.failure("statistics failed on a tick")

    def _advance(self, now: datetime) -> None:
        ended = self._rollup.advance(now)
        if self._rollup.left_out != self._left_out:
            self._say_left_out()
        if not (ended.updates or ended.entries):
            return
        # Whoever hears of a mean, or reads it, must be able to rely on it after a kill.
        self._journal.flush()
        for update in ended.updates:
            self._bus.publish(update)
        self._store(self._with_end(entry) if isinstance(entry, ClosedHour) else entry for entry in ended.entries)

    def _with_end(self, hour: ClosedHour) -> ClosedHour:
        return replace(hour, raw_end=self._journal.end(hour.machine, hour.sensor, hour.start))

    def _on_batch(self, batch: Batch) -> None:
        # By its own time, which is its lines' too: a minute that ended since the last tick must not take it.
        if batch.received_at is not self._arrival:
            self._arrival = batch.received_at
            self._advance(batch.received_at)
        self._rollup.add(batch)
        if self._rollup.left_out != self._left_out:
            self._say_left_out()

    def _say_left_out(self) -> None:
        self._counters.daq_nonfinite.inc(self._rollup.left_out - self._left_out)
        self._left_out = self._rollup.left_out
        for (machine, sensor), count in self._rollup.overflows.items():
            self._warnings.warn(
                f"overflow {machine} {sensor}",
                "machine {machine}: {count} samples of sensor {sensor} are left out of its means: their sum exceeds a"
                " double (1.8e308); the raw file has them",
                machine=machine,
                sensor=sensor,
                count=count,
            )
        self._rollup.overflows.clear()
