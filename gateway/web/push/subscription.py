"""Following topics, whatever the transport: the present state or what was missed, then events as they happen."""

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

#: The topics that one client may follow.
_MOST_TOPICS: Final = 1000

#: Past events that are fetched at a time.
_FETCH: Final = 100

#: What a client's own request makes wait: its answer, its topics.
REQUEST: Final = 1000

#: What a topic of a replay that waits is counted as: a tuple, its place in a set, a text.
_PATTERN: Final = 200

Patterns: TypeAlias = frozenset[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The present state of a source, made when the client has read what comes before it.

    :ivar seq: the last event before the subscription. What comes after and is in the snapshot already is left out, but
        a client that comes back with this number misses nothing.
    """

    source: str
    name: str
    seq: int


@dataclass(slots=True)
class Replay:
    """Past events up to one, fetched from the backlog as the client reads.

    :ivar since: the last of them that was sent, or passed over.
    """

    since: int
    until: int
    patterns: Patterns


class EventSink(Protocol):
    """How one client is told."""

    def tell_event(self, event: Event) -> None:
        """Send an event."""

    def tell_snapshot(self, seq: int, text: bytes) -> None:
        """Send the JSON of a snapshot."""

    def tell(self, text: bytes) -> None:
        """Send an answer to the client's own words."""

    def give_up(self) -> None:
        """The client reads too slowly: close."""


_Item: TypeAlias = bytes | Event | Snapshot | Replay


class SubscriptionContext:
    """What all followers draw from.

    :param max_waiting: bytes of events that may wait for one client to read.
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
        """The scales and machines whose state these topics are about."""
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
                # A machine may be named before it has ever connected.
                sources["machine", name] = None
        return list(sources)

    def snapshot(self, asked: Snapshot) -> bytes:
        """The JSON of a snapshot, as things stand now."""
        is_scale = asked.source == "scale"
        data = self._live.scale_snapshot(asked.name) if is_scale else self._live.machine_snapshot(asked.name)
        return event_text(asked.seq, f"{asked.source}/{asked.name}", "snapshot", data, self._clock.now())


class Subscription:
    """One client's topics, and what waits for it; a subscriber of the bus.

    :ivar outbox: is paused and resumed by the client's transport. A snapshot is not made yet, and what was missed is
        not fetched yet while they wait: they count as entries only.
    """

    def __init__(self, feed: SubscriptionContext, outlet: EventSink) -> None:
        self._feed = feed
        self._bus = feed.bus
        self._outlet = outlet
        self.outbox: Outbox[_Item] = Outbox(feed.reactor, feed.max_waiting, self._send, self._too_slow)
        #: Sources whose snapshot was sent late, and the event that it included last.
        self._covered: dict[str, int] = {}

    # -- what the client says

    def check(self, patterns: Patterns) -> None:
        """Whether these topics may be followed too.

        :raises ValueError: they would be too many.
        """
        if len(self._bus.patterns_of(self) | patterns) > _MOST_TOPICS:
            raise ValueError(f"more than {_MOST_TOPICS} topics")

    def follow(self, patterns: Patterns, since: int | None) -> None:
        """Follow topics too: what was missed since some event comes first, else the present state."""
        bus = self._bus
        bus.subscribe(self, patterns)
        if since is not None and bus.holds(since, patterns):
            self.outbox.put(REQUEST + _PATTERN * len(patterns), Replay(since, bus.seq, patterns))
        else:
            for source, name in self._feed.sources(patterns):
                self.outbox.put(ENTRY, Snapshot(source, name, bus.seq))

    def unfollow(self, patterns: Patterns) -> None:
        """Follow these topics no more."""
        self._bus.unsubscribe(self, patterns)

    def say(self, text: bytes) -> None:
        """Answer the client, when it is the answer's turn."""
        self.outbox.put(REQUEST + len(text), text)

    def close(self) -> None:
        """Follow nothing, and forget what waits."""
        self._bus.unsubscribe(self)
        self.outbox.close()

    # -- what it is told

    def deliver(self, event: Event) -> None:
        if self.outbox.is_clear:
            self._covered.clear()
            self._outlet.tell_event(event)
        else:
            self.outbox.put(ENTRY + len(event.text()), event)

    def _send(self, item: _Item) -> bool:
        if isinstance(item, Event):
            if item.seq > self._covered.get(item.topic, 0) or not _is_in_snapshot(item.record):
                self._outlet.tell_event(item)
        elif isinstance(item, Snapshot):
            text = self._feed.snapshot(item)
            self._covered[f"{item.source}/{item.name}"] = self._bus.seq
            self._outlet.tell_snapshot(item.seq, text)
        elif isinstance(item, Replay):
            return self._replay(item)
        else:
            self._outlet.tell(item)
        return True

    def _replay(self, replay: Replay) -> bool:
        """Send what the client reads of what it missed; whether that was all."""
        bus = self._bus
        if not bus.holds(replay.since, replay.patterns):
            self.outbox.close()
            self._too_slow()
            return False
        # It may have gone through the whole backlog to find nothing.
        self.outbox.rest()
        found = bus.missed(replay.since, replay.patterns, replay.until, _FETCH)
        for event in found:
            self._outlet.tell_event(event)
            replay.since = event.seq
            if self.outbox.is_paused:
                return False
        return len(found) < _FETCH

    def _too_slow(self) -> None:
        self._feed.counters.subscribers_slow.inc()
        self._bus.unsubscribe(self)
        self._outlet.give_up()


def patterns_of(topics: Any) -> Patterns:
    """The topics of a request.

    :raises ValueError: they are no list of topics, or there is none.
    """
    if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
        raise ValueError("topics is a list of texts, at least one")
    return frozenset(parse_topic(topic) for topic in topics)


def _is_in_snapshot(record: Record) -> bool:
    """Whether what a record says can be seen in a later snapshot of its source."""
    return isinstance(record, Update | Presence) or (isinstance(record, Reading) and record.settled)
