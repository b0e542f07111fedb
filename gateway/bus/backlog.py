"""Backlog of recent events, for subscribers that reconnect."""

import bisect
from collections import deque

from gateway.bus.event import Event
from gateway.bus.topics import matching_patterns
from gateway.model.records import Batch


class Backlog:
    """The latest events.

    :param max_events: maximum number of events.
    :param max_bytes: approximate maximum memory in bytes, which only the latest event may exceed; ``None``: unbounded.
    :ivar forgotten: number of the last event that was dropped.
    """

    def __init__(self, max_events: int, max_bytes: int | None = None) -> None:
        self.forgotten = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0

    def hold(self, event: Event, weight: int = 0) -> None:
        """Add an event, and drop the oldest ones above the maximum.

        :param weight: approximate memory of the event in bytes, if that is bounded.
        """
        self._events.append(event)
        if self._max_bytes is None:
            if len(self._events) > self._max_events:
                self.forgotten = self._events.popleft().seq
            return
        event.weight = weight
        self._bytes += weight
        while len(self._events) > self._max_events or (self._bytes > self._max_bytes and len(self._events) > 1):
            oldest = self._events.popleft()
            self._bytes -= oldest.weight
            self.forgotten = oldest.seq

    def after(self, since: int, until: int, patterns: frozenset[tuple[str, ...]], count: int | None) -> list[Event]:
        """Return the first events on some topics, in order.

        :param since: number of the event before the first one.
        :param until: number of the last event.
        :param count: maximum number of events.
        """
        found: list[Event] = []
        for index in range(bisect.bisect_right(self._events, since, key=_seq_of), len(self._events)):
            event = self._events[index]
            if event.seq > until or len(found) == count:
                break
            if not patterns.isdisjoint(matching_patterns(event.topic)):
                found.append(event)
        return found


def batch_size(batch: Batch) -> int:
    """Return the approximate memory of the event of a batch in bytes, including its JSON text and its frames."""
    sensors = batch.sensors
    samples = 0
    for sensor in sensors.values():
        samples += len(sensor.samples)
    return 600 + 600 * len(sensors) + 58 * samples


def _seq_of(event: Event) -> int:
    return event.seq
