"""Backlog of recent events, for subscribers that return."""

import bisect
from collections import deque

from gateway.bus.event import Event
from gateway.bus.topics import matching_patterns
from gateway.model.records import Batch


class Backlog:
    """Past events, the latest so many.

    :param most: events.
    :param most_bytes: about so much memory; always the latest event.
    :ivar forgotten: the number of the last event that is not held any more.
    """

    def __init__(self, most: int, most_bytes: int | None = None) -> None:
        self.forgotten = 0
        self._most = most
        self._most_bytes = most_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0

    def hold(self, event: Event, weight: int = 0) -> None:
        """Hold an event, and forget what is too much.

        :param weight: about how many bytes of memory it holds, where these are bounded.
        """
        self._events.append(event)
        if self._most_bytes is None:
            if len(self._events) > self._most:
                self.forgotten = self._events.popleft().seq
            return
        event.weight = weight
        self._bytes += weight
        while len(self._events) > self._most or (self._bytes > self._most_bytes and len(self._events) > 1):
            oldest = self._events.popleft()
            self._bytes -= oldest.weight
            self.forgotten = oldest.seq

    def after(self, since: int, until: int, patterns: frozenset[tuple[str, ...]], most: int | None) -> list[Event]:
        """The events between two numbers, the latter included, on some topics: the first so many, in order."""
        found: list[Event] = []
        for index in range(bisect.bisect_right(self._events, since, key=_seq_of), len(self._events)):
            event = self._events[index]
            if event.seq > until or len(found) == most:
                break
            if not patterns.isdisjoint(matching_patterns(event.topic)):
                found.append(event)
        return found


def batch_size(batch: Batch) -> int:
    """About how many bytes of memory a batch's event holds, its text (20 bytes a sample) and its frames included."""
    sensors = batch.sensors
    samples = 0
    for sensor in sensors.values():
        samples += len(sensor.samples)
    return 600 + 600 * len(sensors) + 58 * samples


def _seq_of(event: Event) -> int:
    return event.seq
