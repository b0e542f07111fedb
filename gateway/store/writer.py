"""What waits for the store: what is over, anomalies, sightings of sensors. Bounded, in order, never lost in between."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.model.entries import Sighting, StoreEntry
from gateway.model.records import Batch, Fault
from gateway.runtime.metrics import Counters
from gateway.store.interface import Store

log = Logger()

#: Entries that may wait before those who bring more are paused, and when they may go on.
HIGH_WATER: Final = 10_000
LOW_WATER: Final = 2_000

#: Entries in one write.
_BATCH: Final = 500

#: Seconds until a write that failed is tried again: doubled each time, up to the second figure.
_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 10.0


class Writer(Service):
    """Brings entries to the store, one write at a time; a sink of the bus for anomalies and new sensors.

    :param pressure: told ``True`` when too much waits and ``False`` when that is over.
    """

    name = "writer"

    def __init__(
        self, reactor: IReactorTime, bus: Bus, counters: Counters, store: Store, pressure: Callable[[bool], None]
    ) -> None:
        self._reactor = reactor
        self._counters = counters
        self._store = store
        self._pressure = pressure
        self._pressed = False
        self._waiting: deque[StoreEntry] = deque()
        #: By machine: what could not be written at the last try, and what came for it since. Others need not wait.
        self._stuck: dict[str, deque[StoreEntry]] = {}
        #: Sightings among what waits. They are no more than daq.max_sensors, and nobody is paused for them.
        self._sightings = 0
        #: Entries that the store is writing.
        self._in_hand = 0
        self._draining = False
        self._drained: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._delay = _FIRST_RETRY
        #: The type of each sensor seen, and which of them wait to be written: each once, with the type it has then.
        self._types: dict[tuple[str, str], str] = {}
        self._sighted: set[tuple[str, str]] = set()
        self._settled: list[Deferred[None]] = []
        bus.attach(Batch, "writer", self._on_batch)
        bus.attach(Fault, "writer", self._on_fault)

    async def drain(self) -> None:
        """Write what waits, each entry once; what the store will not take then is lost with the daemon, and counted."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._draining = True
        self._release()
        self._start()
        try:
            if self._in_hand:
                self._drained = Deferred()
                await self._drained
        finally:
            lost = self._count() + self._in_hand
            if lost:
                self._counters.store_lost.inc(lost)
                log.error("{count} entries could not be written before the end", count=lost)

    def add(self, entries: Iterable[StoreEntry]) -> None:
        """Take entries; those of a machine are written in this order."""
        for entry in entries:
            self._waiting.append(entry)
            self._sightings += isinstance(entry, Sighting)
        self._count()
        self._start()

    @property
    def is_stuck(self) -> bool:
        """Whether the store has not taken something, which waits to be tried again."""
        return bool(self._stuck)

    def knows(self, machine: str, sensor: str) -> bool:
        """Whether the store has the type that a sensor has now."""
        key = machine, sensor
        return key in self._types and key not in self._sighted

    def settled(self) -> "Deferred[None]":
        """Fires when everything that was added has been tried once."""
        settled: Deferred[None] = Deferred()
        if self._in_hand or self._waiting:
            self._settled.append(settled)
        else:
            settled.callback(None)
        return settled

    def _on_batch(self, batch: Batch) -> None:
        for name, sensor in batch.sensors.items():
            if self._types.get((batch.machine, name)) != sensor.type:
                self._types[batch.machine, name] = sensor.type
                self._sight(batch.machine, name)
                self._count()
                self._start()

    def _sight(self, machine: str, sensor: str) -> None:
        """Let a sensor's type be written, once whatever it is by then."""
        if (machine, sensor) not in self._sighted:
            self._sighted.add((machine, sensor))
            self._waiting.append(Sighting(machine, sensor, self._types[machine, sensor]))
            self._sightings += 1

    def _on_fault(self, fault: Fault) -> None:
        if fault.is_anomaly:
            self.add([fault])

    def _start(self) -> None:
        """Write a batch, unless one is being written; what is of a machine that is stuck waits with its own."""
        batch: list[StoreEntry] = []
        while not self._in_hand and self._waiting and len(batch) < _BATCH:
            entry = self._waiting.popleft()
            stuck = self._stuck.get(entry.machine)
            if stuck is None:
                batch.append(entry if not isinstance(entry, Sighting) else self._current(entry))
            else:
                stuck.append(entry)
        if batch:
            self._in_hand = len(batch)
            self._sightings -= sum(isinstance(entry, Sighting) for entry in batch)
            writing = Deferred.fromCoroutine(self._store.write(batch))
            writing.addErrback(self._failed, batch).addCallback(self._wrote, batch)

    def _current(self, sighting: Sighting) -> Sighting:
        """A sighting with the type that its sensor has now."""
        return replace(sighting, type=self._types.get((sighting.machine, sighting.sensor), sighting.type))

    def _failed(self, failure: Failure, batch: list[StoreEntry]) -> list[StoreEntry]:
        log.failure("the store failed on a write", failure)
        return batch

    def _wrote(self, again: list[StoreEntry], batch: list[StoreEntry]) -> None:
        self._in_hand = 0
        for entry in batch:
            if isinstance(entry, Sighting) and entry not in again:
                self._sighted.discard((entry.machine, entry.sensor))
                if self._current(entry) != entry:
                    # It has changed since.
                    self._sight(entry.machine, entry.sensor)
        if again:
            self._counters.store_retries.inc(len(again))
        for entry in again:
            self._stuck.setdefault(entry.machine, deque()).append(entry)
            self._sightings += isinstance(entry, Sighting)
        if not self._stuck:
            self._delay = _FIRST_RETRY
        elif self._retry is None and not self._draining:
            self._retry = self._reactor.callLater(self._delay, self._try_again)
            self._delay = min(2 * self._delay, _LAST_RETRY)
        self._start()
        self._count()
        if not self._in_hand:
            settled, self._settled = self._settled, []
            for each in settled:
                each.callback(None)
        if self._drained is not None and not self._in_hand:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _try_again(self) -> None:
        self._retry = None
        self._release()
        self._start()

    def _release(self) -> None:
        """Let machines that were stuck try again, each before what came for it later."""
        while self._stuck:
            self._waiting.extendleft(reversed(self._stuck.popitem()[1]))

    def _count(self) -> int:
        waiting = len(self._waiting) + sum(map(len, self._stuck.values()))
        self._counters.store_waiting.set(waiting)
        counted = waiting - self._sightings
        if not self._pressed and counted >= HIGH_WATER:
            self._pressed = True
            self._pressure(True)
        elif self._pressed and counted <= LOW_WATER:
            self._pressed = False
            self._pressure(False)
        return waiting
