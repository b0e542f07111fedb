"""The bus, which numbers records and publishes them as events.

Sinks are parts of the gateway and get every record of a type. Subscribers are clients and get the events of their
topics. An exception of one is logged and counted, and does not stop the others.
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
    """A client that is subscribed to topics."""

    def deliver(self, event: Event) -> None:
        """Take an event, without blocking and within bounded memory."""


class Bus:
    """Publisher of records to sinks and subscribers.

    :param backlog_events: maximum events of the backlog; a second backlog of batches has the same maximum.
    :param backlog_bytes: approximate maximum memory of the backlog of batches, in bytes.
    :ivar seq: number of the last event.
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
        # Batches have a backlog of their own, so that they do not displace readings and commits.
        self._batches = Backlog(backlog_events, backlog_bytes)
        self._sinks: dict[type[Any], tuple[tuple[str, Callable[[Any], None]], ...]] = {}
        self._subscribers: dict[tuple[str, ...], dict[Subscriber, None]] = {}
        self._patterns: dict[Subscriber, frozenset[tuple[str, ...]]] = {}
        self._watch: Callable[[int], None] = _ignore_number

    # -- parts of the gateway

    def number_from(self, first_seq: int, watch: Callable[[int], None]) -> None:
        """Set the number of the next event, which must exceed every number used before.

        :param watch: called with each number that is used.
        """
        self._first_seq = first_seq
        self.seq = first_seq - 1
        self._watch = watch

    def attach(self, record_type: type[R], name: str, sink: Callable[[R], None]) -> None:
        """Attach a sink, which gets this gateway's records of a type before any subscriber.

        Sinks get a record in the order of their attaching.

        :param name: name of the sink, for its counter.
        """
        self._sinks[record_type] = (*self._sinks.get(record_type, ()), (name, sink))

    def detach(self, record_type: type[Record], name: str) -> None:
        """Detach a sink from the records of a type."""
        sinks = self._sinks.get(record_type, ())
        self._sinks[record_type] = tuple(sink for sink in sinks if sink[0] != name)

    def publish(self, record: Record, *, remote: bool = False, time: datetime | None = None) -> None:
        """Publish a record to its sinks and subscribers, with the next number.

        A record that a sink publishes meanwhile follows later, so that all get events in the order of their numbers.

        :param remote: whether another gateway has the record, stores it and sends its push messages; no sink gets it.
        :param time: time at which the other gateway published it; by default now.
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
                except Exception:  # one failing sink must not stop the others
                    self._counters.sink_failures.labels(name).inc()
                    log.failure(
                        "sink {sink}: an exception while it processed a record of {topic}", sink=name, topic=event.topic
                    )
        if self._subscribers:
            for subscriber in self._subscribers_of(event.topic):
                try:
                    subscriber.deliver(event)
                except Exception:  # one failing subscriber must not stop the others
                    self._counters.sink_failures.labels("subscriber").inc()
                    log.failure("a subscriber: an exception while it took an event of {topic}", topic=event.topic)
        if type(record) is Batch:
            self._batches.hold(event, batch_size(record))
        else:
            self._backlog.hold(event)

    def _subscribers_of(self, topic: str) -> Collection[Subscriber]:
        """Return a copy of the subscribers of a topic, each once; they may unsubscribe while it is used."""
        groups = [group for pattern in matching_patterns(topic) if (group := self._subscribers.get(pattern))]
        return tuple(groups[0]) if len(groups) == 1 else dict.fromkeys(itertools.chain.from_iterable(groups))

    # -- clients

    def subscribe(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]]) -> None:
        """Add topics to those of a subscriber."""
        self._set_patterns(subscriber, self._patterns.get(subscriber, frozenset()) | patterns)

    def unsubscribe(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]] | None = None) -> None:
        """Remove topics from those of a subscriber; by default, all of them."""
        if patterns is None:
            self._set_patterns(subscriber, frozenset())
        else:
            self._set_patterns(subscriber, self._patterns.get(subscriber, frozenset()) - patterns)

    def patterns_of(self, subscriber: Subscriber) -> frozenset[tuple[str, ...]]:
        """Return the topics of a subscriber."""
        return self._patterns.get(subscriber, frozenset())

    def _set_patterns(self, subscriber: Subscriber, patterns: frozenset[tuple[str, ...]]) -> None:
        before = self._patterns.pop(subscriber, frozenset())
        for pattern in before - patterns:
            group = self._subscribers[pattern]
            del group[subscriber]
            if not group:
                del self._subscribers[pattern]
        for pattern in patterns - before:
            self._subscribers.setdefault(pattern, {})[subscriber] = None
        if patterns:
            self._patterns[subscriber] = patterns
        self._counters.subscribers.set(len(self._patterns))

    def holds(self, since: int, patterns: frozenset[tuple[str, ...]]) -> bool:
        """Return whether the backlog still has every event after ``since`` on these topics."""
        if not self._first_seq - 1 <= since <= self.seq:
            return False
        return all(since >= backlog.forgotten for backlog in self._backlogs(patterns))

    def missed(
        self, since: int, patterns: frozenset[tuple[str, ...]], until: int | None = None, max_count: int | None = None
    ) -> list[Event]:
        """Return the events after ``since`` on these topics that the backlog still has.

        :param until: number of the last event to return.
        :param max_count: maximum number of events.
        """
        last = self.seq if until is None else until
        events = heapq.merge(
            *(backlog.after(since, last, patterns, max_count) for backlog in self._backlogs(patterns)),
            key=lambda event: event.seq,
        )
        return list(itertools.islice(events, max_count))

    def _backlogs(self, patterns: frozenset[tuple[str, ...]]) -> "list[Backlog]":
        """Return the backlogs of some topics."""
        return [
            backlog
            for backlog, segments in ((self._backlog, 2), (self._batches, 3))
            if any(len(pattern) == segments for pattern in patterns)
        ]


def _ignore_number(_: int) -> None:
    pass
