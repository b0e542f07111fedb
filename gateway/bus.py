"""The bus: records go in, live events come out, numbered.

Sinks are parts of the gateway and get each record of a type; subscribers are clients and get the events of the
topics that they named. Neither can stop the other: what one raises is logged, counted and forgotten.
"""

import bisect
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Collection
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

import orjson
from twisted.logger import Logger

from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.model import Batch, Record, is_name, name_of, rfc3339

log = Logger()

R = TypeVar("R", bound=Record)

_SOURCES: Final = frozenset({"scale", "machine", "*"})


class Event:
    """One record with its number.

    :ivar seq: rises by one an event on the whole gateway.
    :ivar time: when it was published.
    """

    __slots__ = ("_frames", "_text", "record", "seq", "time", "weight")

    #: Where its backlog keeps what it is counted as.
    weight: int

    def __init__(self, seq: int, record: Record, time: datetime) -> None:
        self.seq = seq
        self.record = record
        self.time = time
        self._text: bytes | None = None
        self._frames: dict[int, bytes] | None = None

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def frames(self) -> dict[int, bytes]:
        """Where the stream keeps the event framed, by the window of its compression."""
        if self._frames is None:
            self._frames = {}
        return self._frames

    def text(self) -> bytes:
        """The event as JSON; encoded once, and only if somebody asks."""
        if self._text is None:
            self._text = event_text(self.seq, self.topic, self.record.event, self.record.payload(), self.time)
        return self._text


def event_text(seq: int, topic: str, event: str, data: Any, time: datetime) -> bytes:
    """The JSON of an event as every transport sends it."""
    text = orjson.dumps(
        {
            "type": "event",
            "seq": seq,
            "topic": topic,
            "event": event,
            "data": data,
            "time": rfc3339(time, "milliseconds"),
        }
    )
    # Copied, since it is held for long: orjson leaves a hole in the memory behind it, five times as large as the text.
    return bytes(memoryview(text))


class Subscriber(Protocol):
    """Somebody who follows topics."""

    def deliver(self, event: Event) -> None:
        """Take an event. It must not block and must bound what it keeps."""


def parse_topic(pattern: str) -> tuple[str, ...]:
    """The segments of a topic, each a word or ``*``.

    :raises ValueError: it is no topic.
    """
    match tuple(pattern.split("/")):
        case (source, name) if source in _SOURCES and (name == "*" or is_name(name)):
            return source, _kept(source, name)
        case (source, name, "samples" | "*" as what) if source in {"machine", "*"} and (name == "*" or is_name(name)):
            return source, _kept(source, name), what
    raise ValueError("a topic is scale/<id>, machine/<name> or machine/<name>/samples, with * for a whole segment")


def _kept(source: str, name: str) -> str:
    """Return the stored form of a name: a machine's in NFC, a scale's as configured."""
    return name if source == "scale" else name_of(name) or name


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
        self._watch: Callable[[int], None] = _nobody

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
            self._batches.hold(event, _size_of(record))
        else:
            self._backlog.hold(event)

    def _subscribers_of(self, topic: str) -> Collection[Subscriber]:
        """Who follows a topic now, each once: whatever they do meanwhile, this stays."""
        found = [followers for pattern in _patterns_of(topic) if (followers := self._subscribers.get(pattern))]
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
            if not patterns.isdisjoint(_patterns_of(event.topic)):
                found.append(event)
        return found


def _size_of(batch: Batch) -> int:
    """About how many bytes of memory a batch's event holds, its text (20 bytes a sample) and its frames included."""
    sensors = batch.sensors
    samples = 0
    for sensor in sensors.values():
        samples += len(sensor.samples)
    return 600 + 600 * len(sensors) + 58 * samples


def _seq_of(event: Event) -> int:
    return event.seq


def _nobody(_: int) -> None:
    pass


@lru_cache(maxsize=4096)
def _patterns_of(topic: str) -> tuple[tuple[str, ...], ...]:
    """Every pattern that a topic matches."""
    return tuple(itertools.product(*((segment, "*") for segment in topic.split("/"))))
