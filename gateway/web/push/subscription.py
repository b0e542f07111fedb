"""Subscriptions to topics over any transport: the current state or missed events first, then live events."""

from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from twisted.internet.interfaces import IReactorTime

from gateway.bus.bus import Bus
from gateway.bus.event import Event, event_text
from gateway.bus.topics import parse_topic
from gateway.live.state import LiveState
from gateway.model.records import Presence, Reading, Record, Update
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.web.clients.outbox import ENTRY, Outbox

#: Maximum topics of one client.
_MAX_TOPICS: Final = 1000

#: Past events that are fetched from the backlog at a time.
_FETCH: Final = 100

#: Bytes that the answer to a client's request counts for in addition to its text.
REQUEST: Final = 1000

#: Bytes that a topic of a waiting replay counts for: a tuple, its slot in a set, a text.
_PATTERN: Final = 200

Patterns: TypeAlias = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Current state of a source, made once the client has read the messages before it.

    :ivar seq: number of the last event before the subscription. Later events that the snapshot already includes are not
        sent, but a client that resumes from this number misses nothing.
    """

    source: str
    name: str
    seq: int


@dataclass(slots=True)
class Replay:
    """Range of past events, fetched from the backlog as the client reads.

    :ivar since: number of the last event that was sent or passed over.
    :ivar until: number of the last event of the range.
    """

    since: int
    until: int
    patterns: Patterns


class EventSink(Protocol):
    """Connection to one client."""

    def send_event(self, event: Event) -> None:
        """Send an event."""

    def send_snapshot(self, seq: int, text: bytes) -> None:
        """Send the JSON of a snapshot."""

    def send_answer(self, text: bytes) -> None:
        """Send the answer to a request of the client."""

    def close_slow(self) -> None:
        """Close the connection because the client reads too slowly."""


_Item: TypeAlias = bytes | Event | Snapshot | Replay


class SubscriptionContext:
    """Sources of events and state that all subscriptions share.

    :param max_waiting: maximum bytes of events that wait for one client.
    """

    def __init__(
        self, reactor: IReactorTime, bus: Bus, live: LiveState, clock: WallClock, counters: Counters, max_waiting: int
    ) -> None:
        self.reactor = reactor
        self.bus = bus
        self.counters = counters
        self.max_waiting = max_waiting
        self._live = live
        self._clock = clock

    def sources(self, patterns: Patterns) -> list[tuple[str, str]]:
        """Return the scales and machines with a state that these topics include."""
        sources: dict[tuple[str, str], None] = {}
        for pattern in patterns:
            if len(pattern) != 2:
                continue
            source, name = pattern
            if source != "machine":
                sources.update(
                    {("scale", scale_id): None for scale_id in self._live.scale_ids() if name in {scale_id, "*"}}
                )
            if source != "scale" and name == "*":
                sources.update({("machine", machine): None for machine in self._live.machines()})
            elif source == "machine" or name in self._live.machines():
                # A client may name a machine that has never connected.
                sources["machine", name] = None
        return list(sources)

    def snapshot_text(self, snapshot: Snapshot) -> bytes:
        """Return the JSON of a snapshot with the state of this moment."""
        source, name = snapshot.source, snapshot.name
        data = self._live.scale_snapshot(name) if source == "scale" else self._live.machine_snapshot(name)
        return event_text(snapshot.seq, f"{source}/{name}", "snapshot", data, self._clock.now())


class Subscription:
    """Topics of one client and the messages that wait for it; a subscriber of the bus.

    :ivar outbox: queue that the client's transport pauses and resumes. A waiting snapshot is not made yet, and a
        waiting replay not fetched yet: both count for the size of an entry only.
    """

    def __init__(self, context: SubscriptionContext, sink: EventSink) -> None:
        self._context = context
        self._bus = context.bus
        self._sink = sink
        self.outbox: Outbox[_Item] = Outbox(context.reactor, context.max_waiting, self._send, self._drop_slow)
        #: By topic of a source whose snapshot was sent late: number of the last event that it included.
        self._covered: dict[str, int] = {}

    # -- requests of the client

    def check_topics(self, patterns: Patterns) -> None:
        """Check that these topics can be added.

        :raises ValueError: too many topics.
        """
        if len(self._bus.patterns_of(self) | patterns) > _MAX_TOPICS:
            raise ValueError(f"more than {_MAX_TOPICS} topics")

    def can_resume(self, patterns: Patterns, since: int) -> bool:
        """Return whether the backlog still has every event on these topics after ``since``."""
        return self._bus.holds(since, patterns)

    def follow(self, patterns: Patterns) -> None:
        """Add topics; the current state of their sources comes first."""
        self._bus.subscribe(self, patterns)
        for source, name in self._context.sources(patterns):
            self.outbox.put(ENTRY, Snapshot(source, name, self._bus.seq))

    def resume(self, patterns: Patterns, since: int) -> None:
        """Add topics; the events after ``since`` come first. Only valid if :meth:`can_resume` returned true."""
        self._bus.subscribe(self, patterns)
        self.outbox.put(REQUEST + _PATTERN * len(patterns), Replay(since, self._bus.seq, patterns))

    def unfollow(self, patterns: Patterns) -> None:
        """Remove topics."""
        self._bus.unsubscribe(self, patterns)

    def answer(self, text: bytes) -> None:
        """Answer a request of the client, after the messages that already wait."""
        self.outbox.put(REQUEST + len(text), text)

    def close(self) -> None:
        """Remove all topics, and drop the messages that wait."""
        self._bus.unsubscribe(self)
        self.outbox.close()

    # -- events of the bus

    def deliver(self, event: Event) -> None:
        if self.outbox.is_clear:
            self._covered.clear()
            self._sink.send_event(event)
        else:
            self.outbox.put(ENTRY + len(event.text()), event)

    def _send(self, item: _Item) -> bool:
        if isinstance(item, Event):
            if item.seq > self._covered.get(item.topic, 0) or not _is_in_snapshot(item.record):
                self._sink.send_event(item)
        elif isinstance(item, Snapshot):
            text = self._context.snapshot_text(item)
            self._covered[f"{item.source}/{item.name}"] = self._bus.seq
            self._sink.send_snapshot(item.seq, text)
        elif isinstance(item, Replay):
            return self._send_replay(item)
        else:
            self._sink.send_answer(item)
        return True

    def _send_replay(self, replay: Replay) -> bool:
        """Send missed events as far as the client reads; return whether all are sent."""
        bus = self._bus
        if not bus.holds(replay.since, replay.patterns):
            self.outbox.close()
            self._drop_slow()
            return False
        # The search may have passed through the whole backlog.
        self.outbox.yield_turn()
        events = bus.missed(replay.since, replay.patterns, replay.until, _FETCH)
        for event in events:
            self._sink.send_event(event)
            replay.since = event.seq
            if self.outbox.is_paused:
                return False
        return len(events) < _FETCH

    def _drop_slow(self) -> None:
        self._context.counters.subscribers_slow.inc()
        self._bus.unsubscribe(self)
        self._sink.close_slow()


def parse_topics(topics: Any) -> Patterns:
    """Return the patterns of the topics in a request.

    :raises ValueError: not a list of topics, or an empty one.
    """
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
        raise ValueError("topics is a list of texts, at least one")
    return frozenset(parse_topic(topic) for topic in topics)


def _is_in_snapshot(record: Record) -> bool:
    """Return whether a later snapshot of the source includes the content of a record."""
    return isinstance(record, Update | Presence) or (isinstance(record, Reading) and record.settled)
