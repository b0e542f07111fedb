"""The bus: records go in, live events come out, numbered.

Sinks are parts of the gateway and get each record of a type; subscribers are clients and get the events of the
topics that they named. Neither can stop the other: what one raises is logged, counted and forgotten.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Protocol, TypeVar

from twisted.logger import Logger

from gateway.bus.backlog import Backlog, batch_size
from gateway.bus.event import Event
from gateway.bus.topics import matching_patterns
from gateway.model.records import Batch, Record
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters

log = Logger()

R = TypeVar("R", bound=Record)


class Subscriber(Protocol):
    """Somebody who follows topics."""

    def deliver(self, event: Event) -> None:
        """Take an event. It must not block and must bound what it keeps."""


class Bus:
    """Numbers records and hands them out.

    :param backlog_events: how many past events are held for those who come back, and as many batches of samples.
    :param backlog_bytes: about how much memory these batches may take; the oldest go first.
    """

    def __init__(
        self,
        clock: WallClock,
        counters: Counters,
        backlog_events: int = 10_000,
        backlog_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._counters = counters
        self._events = counters.events
        self.seq = 0
        self._first_seq = 1
        self._publishing = False
        self._pending: deque[tuple[Record, bool, datetime | None]] = deque()
        self._backlog = Backlog(backlog_events)
        # Batches may be large and many: they must not push readings and commits out.
        self._batches = Backlog(backlog_events, backlog_bytes)
        self._sinks: dict[type[Any], tuple[tuple[str, Callable[[Any], None]], ...]] = {}
        self._subscribers: dict[tuple[str, ...], dict[Subscriber, None]] = {}
        self._patterns: dict[Subscriber, frozenset[tuple[str, ...]]] = {}
        self._watch: Callable[[int], None] = _ignore_number

    # -- parts of the gateway

    def number_from(self, first_seq: int, watch: Callable[[int], None]) -> None:
        """Number events from there on, above any that was ever given out.

        :param watch: is told each number that is given out.
        """
        self._first_seq = first_seq
        self.seq = first_seq - 1
        self._watch = watch

    def attach(self, record_type: type[R], name: str, sink: Callable[[R], None]) -> None:
        """Hand each of this gateway's records of a type to a part of it, in the order of attaching, before any
        subscriber.

        :param name: of the part, for its counter.
        """
        self._sinks[record_type] = (*self._sinks.get(record_type, ()), (name, sink))

    def publish(self, record: Record, *, remote: bool = False, time: datetime | None = None) -> None:
        """Number a record and hand it to its sinks and subscribers.

        What a sink publishes meanwhile comes after, so that everybody sees events in the order of their numbers.

        :param remote: it is another gateway's, which stores it and sends its push messages: no sink gets it.
        :param time: when that one published it; by default now.
        """
        pending = self._pending
        if self._publishing or pending:
            pending.append((record, remote, time))
            if self._publishing:
                return
            record, remote, time = pending.popleft()
        self._publishing = True
        try:
            self._publish(record, remote, time)
            while pending:
                self._publish(*pending.popleft())
        finally:
            self._publishing = False

    def _publish(self, record: Record, remote: bool, time: datetime | None) -> None:
        self.seq = seq = self.seq + 1
        event = Event(seq, record, time or self._clock.now())
        self._watch(seq)
        self._events.inc()
        if not remote:
            for name, sink in self._sinks.get(type(record), ()):
                try:
                    sink(record)
                except Exception:  # whatever a part of the gateway raises, the rest goes on
                    self._counters.sink_failures.labels(name).inc()
                    log.failure("{sink} failed on a record", sink=name)
        if self._subscribers:
            for subscriber in self._subscribers_of(event.topic):
                try:
                    subscriber.deliver(event)
                except Exception:  # the same for a client
                    self._counters.sink_failures.labels("subscriber").inc()
                    log.failure("a subscriber failed on an event")
        if type(record) is Batch:
            self._batches.hold(event, batch_size(record))
        else:
            self._backlog.hold(event)

    def _subscribers_of(self, topic: str) -> Collection[Subscriber]:
        """Who follows a topic now, each once: whatever they do meanwhile, this stays."""
        found = [followers for pattern in matching_patterns(topic) if (followers := self._subscribers.get(pattern))]
        return tuple(found[0]) if len(found) == 1 else dict.fromkeys(itertools.chain.from_iterable(found))

    # -- clients

    def subscribe(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]]) -> None:
        """Let a subscriber follow these topics too."""
        self._follow(subscriber, self._patterns.get(subscriber, frozenset()) | patterns)

    def unsubscribe(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]] | None = None) -> None:
        """Let a subscriber follow these topics no more; by default, none at all."""
        if patterns is None:
            self._follow(subscriber, frozenset())
        else:
            self._follow(subscriber, self._patterns.get(subscriber, frozenset()) - patterns)

    def patterns_of(self, subscriber: Subscriber) -> frozenset[tuple[str, ...]]:
        """What a subscriber follows."""
        return self._patterns.get(subscriber, frozenset())

    def _follow(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]]) -> None:
        before = self._patterns.pop(subscriber, frozenset())
        for pattern in before - patterns:
            followers = self._subscribers[pattern]
            del followers[subscriber]
            if not followers:
                del self._subscribers[pattern]
        for pattern in patterns - before:
            self._subscribers.setdefault(pattern, {})[subscriber] = None
        if patterns:
            self._patterns[subscriber] = patterns
        self._counters.subscribers.set(len(self._patterns))

    def holds(self, since: int, patterns: frozenset[tuple[str, ...]]) -> bool:
        """Whether every event after ``since`` on these topics is still held."""
        if not self._first_seq - 1 <= since <= self.seq:
            return False
        return all(since >= backlog.forgotten for backlog in self._backlogs(patterns))

    def missed(
        self, since: int, patterns: frozenset[tuple[str, ...]], until: int | None = None, most: int | None = None
    ) -> list[Event]:
        """The events after ``since`` on these topics, as far as they are held.

        :param until: the number of the last one to give.
        :param most: so many at most.
        """
        last = self.seq if until is None else until
        found = heapq.merge(
            *(backlog.after(since, last, patterns, most) for backlog in self._backlogs(patterns)),
            key=lambda event: event.seq,
        )
        return list(itertools.islice(found, most))

    def _backlogs(self, patterns: frozenset[tuple[str, ...]]) -> "list[Backlog]":
        """Where the events of some topics are held."""
        return [
            backlog
            for backlog, segments in ((self._backlog, 2), (self._batches, 3))
            if any(len(pattern) == segments for pattern in patterns)
        ]


def _ignore_number(_: int) -> None:
    pass
