"""Queue of entries for the store: closed periods, anomalies, sightings. It is bounded, ordered and retried."""

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

#: Numbers of waiting entries at which DAQ programs are paused, and resumed.
HIGH_WATER: Final = 10_000
LOW_WATER: Final = 2_000

#: Maximum number of entries in one write.
_MAX_BATCH: Final = 500

#: Delay until a failed write is retried, in seconds: doubled each time, up to the maximum.
_MIN_DELAY: Final = 0.5
_MAX_DELAY: Final = 10.0


class Writer(Service):
    """Writes entries to the store, one write at a time; a sink of the bus for anomalies and new sensors.

    :param pressure: called with ``True`` when too many entries wait, and with ``False`` when few enough do.
    """

    name = "writer"

    def __init__(
        self, reactor: IReactorTime, bus: Bus, counters: Counters, store: Store, pressure: Callable[[bool], None]
    ) -> None:
        self._reactor = reactor
        self._counters = counters
        self._store = store
        self._pressure = pressure
        self._is_pressed = False
        self._waiting: deque[StoreEntry] = deque()
        #: By machine: entries that the store did not write, and later ones. Other machines need not wait.
        self._stuck: dict[str, deque[StoreEntry]] = {}
        #: Number of waiting sightings. They are bounded by daq.max_sensors, and cause no pause.
        self._sightings = 0
        #: Number of entries that the store is writing.
        self._writing = 0
        self._is_draining = False
        self._drained: Deferred[None] | None = None
        self._retry: IDelayedCall | None = None
        self._delay = _MIN_DELAY
        #: Last type of each sensor.
        self._types: dict[tuple[str, str], str] = {}
        #: Sensors with a waiting sighting, which is written with the type that the sensor has then.
        self._sighted: set[tuple[str, str]] = set()
        self._settled: list[Deferred[None]] = []
        bus.attach(Batch, "writer", self._on_batch)
        bus.attach(Fault, "writer", self._on_fault)

    async def drain(self) -> None:
        """Try once more to write each waiting entry; those that fail are lost with the process, and counted."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._is_draining = True
        self._release()
        self._start()
        try:
            if self._writing:
                self._drained = Deferred()
                await self._drained
        finally:
            lost = self._count() + self._writing
            if lost:
                self._counters.store_lost.inc(lost)
                log.error("{count} entries were not written before the gateway stopped, and are lost", count=lost)

    def add(self, entries: Iterable[StoreEntry]) -> None:
        """Add entries; those of one machine are written in this order."""
        for entry in entries:
            self._waiting.append(entry)
            self._sightings += isinstance(entry, Sighting)
        self._count()
        self._start()

    @property
    def is_stuck(self) -> bool:
        """Return whether a write failed and waits for its retry."""
        return bool(self._stuck)

    def knows(self, machine: str, sensor: str) -> bool:
        """Return whether the store has the current type of a sensor."""
        key = machine, sensor
        return key in self._types and key not in self._sighted

    def settled(self) -> "Deferred[None]":
        """Return a Deferred that fires when the store has tried every entry once."""
        settled: Deferred[None] = Deferred()
        if self._writing or self._waiting:
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
        """Queue one sighting of a sensor, which is written with the type that the sensor has then."""
        if (machine, sensor) not in self._sighted:
            self._sighted.add((machine, sensor))
            self._waiting.append(Sighting(machine, sensor, self._types[machine, sensor]))
            self._sightings += 1

    def _on_fault(self, fault: Fault) -> None:
        if fault.is_anomaly:
            self.add([fault])

    def _start(self) -> None:
        """Write some entries, unless a write is running; those of a machine with failed writes wait behind these."""
        batch: list[StoreEntry] = []
        while not self._writing and self._waiting and len(batch) < _MAX_BATCH:
            entry = self._waiting.popleft()
            stuck = self._stuck.get(entry.machine)
            if stuck is None:
                batch.append(entry if not isinstance(entry, Sighting) else self._current(entry))
            else:
                stuck.append(entry)
        if batch:
            self._writing = len(batch)
            self._sightings -= sum(isinstance(entry, Sighting) for entry in batch)
            writing = Deferred.fromCoroutine(self._store.write(batch))
            writing.addErrback(self._failed, batch).addCallback(self._wrote, batch)

    def _current(self, sighting: Sighting) -> Sighting:
        """Return a sighting with the current type of its sensor."""
        return replace(sighting, type=self._types.get((sighting.machine, sighting.sensor), sighting.type))

    def _failed(self, failure: Failure, batch: list[StoreEntry]) -> list[StoreEntry]:
        log.failure("the store failed to write entries; retrying", failure)
        return batch

    def _wrote(self, again: list[StoreEntry], batch: list[StoreEntry]) -> None:
        self._writing = 0
        for entry in batch:
            if isinstance(entry, Sighting) and entry not in again:
                self._sighted.discard((entry.machine, entry.sensor))
                if self._current(entry) != entry:
                    # The type has changed during the write.
                    self._sight(entry.machine, entry.sensor)
        if again:
            self._counters.store_retries.inc(len(again))
        for entry in again:
            self._stuck.setdefault(entry.machine, deque()).append(entry)
            self._sightings += isinstance(entry, Sighting)
        if not self._stuck:
            self._delay = _MIN_DELAY
        elif self._retry is None and not self._is_draining:
            self._retry = self._reactor.callLater(self._delay, self._retry_now)
            self._delay = min(2 * self._delay, _MAX_DELAY)
        self._start()
        self._count()
        if not self._writing:
            settled, self._settled = self._settled, []
            for each in settled:
                each.callback(None)
        if self._drained is not None and not self._writing:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def _retry_now(self) -> None:
        self._retry = None
        self._release()
        self._start()

    def _release(self) -> None:
        """Queue the entries of failed writes again, before later ones of the same machine."""
        while self._stuck:
            self._waiting.extendleft(reversed(self._stuck.popitem()[1]))

    def _count(self) -> int:
        """Update the metric and the pressure; return the number of waiting entries."""
        waiting = len(self._waiting) + sum(map(len, self._stuck.values()))
        self._counters.store_waiting.set(waiting)
        counted = waiting - self._sightings
        if not self._is_pressed and counted >= HIGH_WATER:
            self._is_pressed = True
            self._pressure(True)
        elif self._is_pressed and counted <= LOW_WATER:
            self._is_pressed = False
            self._pressure(False)
        return waiting
