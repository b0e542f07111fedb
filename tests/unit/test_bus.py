"""The bus: numbers, delivery, failures and missed events."""

import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.bus.bus import Bus
from gateway.bus.event import Event
from gateway.bus.topics import parse_topic
from gateway.model.records import Batch, Presence, SensorBatch, Update
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters

SEOUL = ZoneInfo("Asia/Seoul")
NOW = datetime(2025, 12, 18, 10, 11, 12, 345000, SEOUL)


class Plant:
    """A bus and its counters."""

    def __init__(self, **bounds: int) -> None:
        self.counters = Counters()
        self.bus = Bus(WallClock(SEOUL, NOW.timestamp, lambda: 0.0), self.counters, **bounds)

    def counted(self, name: str, **labels: str) -> float:
        return self.counters.registry.get_sample_value(name, labels) or 0.0

    def subscriber(self, *topics: str, on_event: Callable[[Event], object] | None = None) -> "RecordingSubscriber":
        follower = RecordingSubscriber(on_event)
        self.bus.subscribe(follower, patterns(*topics))
        return follower


class RecordingSubscriber:
    """A subscriber that keeps its events."""

    def __init__(self, on_event: Callable[[Event], object] | None = None) -> None:
        self.events: list[Event] = []
        self._on_event = on_event

    def deliver(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]


@dataclass
class CountingRecord:
    """A record that counts the calls of its payload."""

    topic: str = "machine/A"
    event: str = "update"
    times: list[int] = field(default_factory=list)

    def payload(self) -> Mapping[str, Any]:
        self.times.append(1)
        return {"쇼트": 1.5}


def patterns(*topics: str) -> frozenset[tuple[str, ...]]:
    return frozenset(map(parse_topic, topics))


def machine(name: str) -> Presence:
    return Presence("machine", name, connected=True)


def scale(name: str) -> Presence:
    return Presence("scale", name, connected=True)


def samples(count: int) -> Batch:
    return Batch("A", {"s": SensorBatch("VIB", array("d", bytes(8 * count)))}, NOW)


def seqs(events: list[Event] | None) -> list[int] | None:
    return None if events is None else [event.seq for event in events]


# -- topics


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("scale/default", ("scale", "default")),
        ("scale/*", ("scale", "*")),
        ("machine/쇼트 블라스트", ("machine", "쇼트 블라스트")),
        ("machine/*", ("machine", "*")),
        ("machine/A/samples", ("machine", "A", "samples")),
        ("machine/*/samples", ("machine", "*", "samples")),
        ("machine/A/*", ("machine", "A", "*")),
        ("machine/samples", ("machine", "samples")),
        ("*/*", ("*", "*")),
        ("*/A", ("*", "A")),
        ("*/*/*", ("*", "*", "*")),
        ("*/A/samples", ("*", "A", "samples")),
    ],
)
def test_parse_topic_returns_its_segments(text: str, segments: tuple[str, ...]) -> None:
    assert parse_topic(text) == segments


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "scale",
        "scale/",
        "/default",
        "/scale/default",
        "scale/default/",
        "scale//default",
        "scale/a/samples",
        "scale/*/*",
        "machine/A/update",
        "machine/A/samples/x",
        "machine/A/",
        "machine/..",
        "machine/.",
        "machine/A*",
        "machine/**",
        "machines/A",
        "SCALE/default",
        "scal*/default",
        "machine/a\0",
        "machine/" + "a" * 65,
        "*/*/*/*",
        "machine\\A",
    ],
)
def test_parse_topic_of_an_invalid_text_raises(text: str) -> None:
    with pytest.raises(ValueError, match="a topic is"):
        parse_topic(text)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("machine/A", {"machine/A"}),
        ("machine/*", {"machine/A", "machine/B"}),
        ("*/A", {"machine/A", "scale/A"}),
        ("*/*", {"machine/A", "machine/B", "scale/A"}),
        ("scale/*", {"scale/A"}),
        # A star stands for one segment: samples need their name, or a star of their own.
        ("machine/A/samples", {"machine/A/samples"}),
        ("machine/*/samples", {"machine/A/samples"}),
        ("machine/A/*", {"machine/A/samples"}),
        ("*/*/*", {"machine/A/samples"}),
        ("machine/a", set()),
    ],
)
def test_pattern_gets_the_events_of_matching_topics(pattern: str, matches: set[str]) -> None:
    plant = Plant()
    follower = plant.subscriber(pattern)
    for record in (machine("A"), machine("B"), scale("A"), samples(1)):
        plant.bus.publish(record)
    assert {event.topic for event in follower.events} == matches
    # Missed events are selected by the same rule.
    missed = plant.bus.missed(0, patterns(pattern))
    assert missed == follower.events


# -- numbers


def test_seq_rises_by_one_with_each_event() -> None:
    plant = Plant()
    follower = plant.subscriber("machine/A")
    for name in ("A", "B", "A", "B", "A"):
        plant.bus.publish(machine(name))
    assert follower.seqs() == [1, 3, 5]
    assert plant.bus.seq == 5
    assert plant.counted("cynow_events_total") == 5


def test_number_from_sets_the_next_number() -> None:
    plant = Plant()
    given: list[int] = []
    plant.bus.number_from(5001, given.append)
    follower = plant.subscriber("*/*")
    plant.bus.publish(machine("A"))
    plant.bus.publish(scale("A"))
    assert follower.seqs() == given == [5001, 5002]


def test_watch_gets_a_number_before_any_subscriber() -> None:
    plant = Plant()
    order: list[str] = []
    plant.bus.number_from(1, lambda seq: order.append(f"watched {seq}"))
    plant.bus.attach(Presence, "test", lambda record: order.append("sink"))
    plant.subscriber("*/*", on_event=lambda event: order.append("subscriber"))
    plant.bus.publish(machine("A"))
    assert order == ["watched 1", "sink", "subscriber"]


def test_event_has_its_json_form() -> None:
    plant = Plant()
    follower = plant.subscriber("*/*")
    minute_end = datetime(2025, 12, 18, 10, 12, tzinfo=SEOUL)
    plant.bus.publish(Update("ShotBlast", "진동1", 0.5, minute_end))
    assert json.loads(follower.events[0].text()) == {
        "type": "event",
        "seq": 1,
        "topic": "machine/ShotBlast",
        "event": "update",
        "data": {"sensor_name": "진동1", "data": 0.5, "time": "2025-12-18 10:12:00.000000"},
        "time": "2025-12-18T10:11:12.345+09:00",
    }


def test_event_is_encoded_once_for_all_subscribers() -> None:
    plant = Plant()
    texts: list[bytes] = []
    for _ in range(3):
        plant.subscriber("machine/A", on_event=lambda event: texts.append(event.text()))
    record = CountingRecord()
    plant.bus.publish(record)
    missed = plant.bus.missed(0, patterns("machine/*"))
    assert missed is not None
    texts += [event.text() for event in missed]
    assert len(texts) == 4
    assert len(set(map(id, texts))) == 1
    assert len(record.times) == 1
    assert json.loads(texts[0])["data"] == {"쇼트": 1.5}


def test_event_without_subscribers_is_not_encoded() -> None:
    plant = Plant()
    plant.subscriber("machine/A")
    plant.subscriber("machine/B", on_event=lambda event: event.text() and None)
    record = CountingRecord()
    plant.bus.publish(record)
    assert record.times == []


# -- delivery


def test_overlapping_patterns_deliver_an_event_once() -> None:
    plant = Plant()
    follower = plant.subscriber("machine/A", "machine/*", "*/A", "*/*")
    plant.bus.subscribe(follower, patterns("machine/A", "scale/A"))
    plant.bus.publish(machine("A"))
    plant.bus.publish(scale("A"))
    assert follower.seqs() == [1, 2]
    plant.bus.unsubscribe(follower, patterns("machine/A", "*/*", "*/A"))
    plant.bus.publish(machine("A"))
    assert follower.seqs() == [1, 2, 3], "machine/* is left"


def test_patterns_of_a_subscriber_follow_its_subscriptions() -> None:
    plant = Plant()
    follower = plant.subscriber("machine/A")
    plant.bus.subscribe(follower, patterns("machine/B", "machine/A"))
    assert plant.bus.patterns_of(follower) == patterns("machine/A", "machine/B")
    # Topics without a subscription are not an error.
    plant.bus.unsubscribe(follower, patterns("machine/A", "scale/*"))
    assert plant.bus.patterns_of(follower) == patterns("machine/B")
    plant.bus.unsubscribe(follower)
    assert plant.bus.patterns_of(follower) == frozenset()
    plant.bus.unsubscribe(follower)
    plant.bus.publish(machine("B"))
    assert follower.events == []


def test_subscribers_are_counted() -> None:
    plant = Plant()
    one, two = plant.subscriber("machine/A"), plant.subscriber("machine/A", "*/*")
    assert plant.counted("cynow_subscribers") == 2
    plant.bus.unsubscribe(one, patterns("machine/A"))
    assert plant.counted("cynow_subscribers") == 1
    plant.bus.unsubscribe(two)
    assert plant.counted("cynow_subscribers") == 0


def test_sink_gets_its_type_only_and_before_subscribers() -> None:
    plant = Plant()
    order: list[str] = []
    plant.subscriber("*/*", on_event=lambda event: order.append("subscriber"))
    plant.bus.attach(Presence, "first", lambda record: order.append("first"))
    plant.bus.attach(Update, "other", lambda record: order.append("other"))
    plant.bus.attach(Presence, "second", lambda record: order.append("second"))
    plant.bus.publish(machine("A"))
    assert order == ["first", "second", "subscriber"]


def test_failing_sink_is_counted_and_does_not_stop_the_others() -> None:
    plant = Plant()
    seen: list[Presence] = []

    def fail(record: Presence) -> None:
        raise RuntimeError("on purpose")

    plant.bus.attach(Presence, "before", seen.append)
    plant.bus.attach(Presence, "broken", fail)
    plant.bus.attach(Presence, "after", seen.append)
    follower = plant.subscriber("*/*")
    for _ in range(3):
        plant.bus.publish(machine("A"))
    assert len(seen) == 6
    assert follower.seqs() == [1, 2, 3]
    assert plant.counted("cynow_sink_failures_total", sink="broken") == 3
    assert plant.counted("cynow_sink_failures_total", sink="after") == 0
    assert seqs(plant.bus.missed(0, patterns("*/*"))) == [1, 2, 3]


def test_failing_subscriber_is_counted_and_does_not_stop_the_others() -> None:
    plant = Plant()

    def fail(event: Event) -> None:
        raise RuntimeError("on purpose")

    before = plant.subscriber("machine/A")
    broken = plant.subscriber("machine/A", on_event=fail)
    after = plant.subscriber("machine/A")
    on_a_star = plant.subscriber("machine/*")
    plant.bus.publish(machine("A"))
    plant.bus.publish(machine("A"))
    for follower in (before, broken, after, on_a_star):
        assert follower.seqs() == [1, 2]
    assert plant.counted("cynow_sink_failures_total", sink="subscriber") == 2
    assert seqs(plant.bus.missed(0, patterns("*/*"))) == [1, 2]


def test_record_without_a_json_form_does_not_stop_the_others() -> None:
    plant = Plant()

    class Broken(CountingRecord):
        def payload(self) -> Mapping[str, Any]:
            return {"data": object()}

    texts: list[bytes] = []
    plant.subscriber("machine/A", on_event=lambda event: texts.append(event.text()))
    plant.bus.publish(Broken())
    plant.bus.publish(CountingRecord())
    assert [json.loads(text)["seq"] for text in texts] == [2]
    assert plant.counted("cynow_sink_failures_total", sink="subscriber") == 1


def test_record_published_by_a_sink_follows_the_current_one() -> None:
    plant = Plant()
    first: list[str] = []
    second: list[str] = []

    def answer(record: Presence) -> None:
        first.append(record.topic)
        if record.source == "scale":
            plant.bus.publish(machine("A"))
            plant.bus.publish(machine("B"))

    plant.bus.attach(Presence, "first", answer)
    plant.bus.attach(Presence, "second", lambda record: second.append(record.topic))
    follower = plant.subscriber("*/*")
    plant.bus.publish(scale("x"))
    plant.bus.publish(scale("y"))
    order = ["scale/x", "machine/A", "machine/B", "scale/y", "machine/A", "machine/B"]
    assert first == second == [event.topic for event in follower.events] == order
    assert follower.seqs() == [1, 2, 3, 4, 5, 6]


def test_record_published_by_a_subscriber_follows_the_current_one() -> None:
    plant = Plant()

    def answer(event: Event) -> None:
        if event.topic == "scale/x":
            plant.bus.publish(machine("A"))

    answering = plant.subscriber("*/*", on_event=answer)
    other = plant.subscriber("*/*")
    plant.bus.publish(scale("x"))
    assert answering.seqs() == other.seqs() == [1, 2]
    assert [event.topic for event in other.events] == ["scale/x", "machine/A"]


def test_sink_that_publishes_and_fails_does_not_block_the_bus() -> None:
    plant = Plant()

    def fail(record: Presence) -> None:
        if record.source == "scale":
            plant.bus.publish(machine("A"))
            raise RuntimeError("on purpose")

    plant.bus.attach(Presence, "broken", fail)
    follower = plant.subscriber("*/*")
    plant.bus.publish(scale("x"))
    plant.bus.publish(scale("y"))
    assert [event.topic for event in follower.events] == ["scale/x", "machine/A", "scale/y", "machine/A"]


def test_subscriber_can_unsubscribe_itself_during_delivery() -> None:
    plant = Plant()
    before = plant.subscriber("machine/A")
    leaving = plant.subscriber("machine/A", "*/*", on_event=lambda event: plant.bus.unsubscribe(leaving))
    after = plant.subscriber("machine/A")
    plant.bus.publish(machine("A"))
    plant.bus.publish(machine("A"))
    assert leaving.seqs() == [1], "not a second time through its other pattern"
    assert before.seqs() == after.seqs() == [1, 2]


def test_subscriber_can_unsubscribe_all_during_delivery() -> None:
    plant = Plant()
    followers: list[RecordingSubscriber] = []

    def clear(event: Event) -> None:
        for follower in followers:
            plant.bus.unsubscribe(follower)

    followers += [plant.subscriber("machine/A", "*/*", on_event=clear) for _ in range(3)]
    plant.bus.publish(machine("A"))
    plant.bus.publish(machine("A"))
    # The later subscribers may still get the current event; but delivery ends.
    assert followers[0].seqs() == [1]
    assert all(set(follower.seqs()) <= {1} and len(follower.events) <= 1 for follower in followers)
    assert plant.counted("cynow_sink_failures_total", sink="subscriber") == 0


def test_subscriber_can_subscribe_during_delivery() -> None:
    plant = Plant()
    newcomer = RecordingSubscriber()

    def invite(event: Event) -> None:
        plant.bus.subscribe(newcomer, patterns("machine/A", "machine/*", "*/*"))

    inviting = plant.subscriber("machine/A", on_event=invite)
    after = plant.subscriber("machine/A")
    plant.bus.publish(machine("A"))
    plant.bus.publish(machine("A"))
    assert inviting.seqs() == after.seqs() == [1, 2]
    assert newcomer.seqs() in ([2], [1, 2]), "the next event at the latest, and none twice"
    assert plant.counted("cynow_sink_failures_total", sink="subscriber") == 0


# -- missed events


def test_missed_events_are_returned_in_order() -> None:
    plant = Plant()
    for name in ("A", "B", "A", "C", "A"):
        plant.bus.publish(machine(name))
        plant.bus.publish(samples(1))
    missed = plant.bus.missed(1, patterns("machine/A", "machine/B", "machine/*/samples"))
    assert missed is not None
    assert [(event.seq, event.topic) for event in missed] == [
        (2, "machine/A/samples"),
        (3, "machine/B"),
        (4, "machine/A/samples"),
        (5, "machine/A"),
        (6, "machine/A/samples"),
        (8, "machine/A/samples"),
        (9, "machine/A"),
        (10, "machine/A/samples"),
    ]
    assert seqs(plant.bus.missed(9, patterns("machine/A"))) == []
    assert seqs(plant.bus.missed(10, patterns("*/*"))) == []
    assert seqs(plant.bus.missed(0, patterns("scale/*"))) == []


@pytest.mark.parametrize("since", [-1, 4, 1_000_000])
def test_backlog_does_not_hold_unused_numbers(since: int) -> None:
    plant = Plant()
    for _ in range(3):
        plant.bus.publish(machine("A"))
    assert not plant.bus.holds(since, patterns("*/*"))


def test_backlog_without_events_returns_none() -> None:
    plant = Plant()
    assert plant.bus.missed(0, patterns("*/*")) == []
    assert not plant.bus.holds(1, patterns("*/*"))


def test_backlog_does_not_hold_events_of_an_earlier_start() -> None:
    plant = Plant()
    plant.bus.number_from(5001, lambda seq: None)
    assert not plant.bus.holds(4000, patterns("*/*"))
    plant.bus.publish(machine("A"))
    assert not plant.bus.holds(4000, patterns("*/*"))
    assert not plant.bus.holds(4999, patterns("*/*"))
    assert seqs(plant.bus.missed(5000, patterns("*/*"))) == [5001]


def test_backlog_is_bounded_by_count() -> None:
    plant = Plant(backlog_events=1000)
    for _ in range(1500):
        plant.bus.publish(machine("A"))
    assert not plant.bus.holds(499, patterns("*/*"))
    assert seqs(plant.bus.missed(500, patterns("*/*"))) == list(range(501, 1501))


@pytest.mark.parametrize("encoded", [False, True])
def test_backlog_holds_the_last_thousand_events_by_default(encoded: bool) -> None:
    plant = Plant()
    if encoded:
        plant.subscriber("*/*", on_event=lambda event: event.text() and None)
    for number in range(3000):
        plant.bus.publish(Update(f"machine {number}", "sensor", 0.5, NOW))
    assert seqs(plant.bus.missed(2000, patterns("*/*"))) == list(range(2001, 3001))


def test_backlog_of_batches_is_bounded_by_bytes() -> None:
    plant = Plant(backlog_bytes=2_500_000)
    for _ in range(100):
        plant.bus.publish(samples(5000))  # 48 bytes for each sample with its text and its frame
    held = [since for since in range(101) if plant.bus.holds(since, patterns("*/*/*"))]
    assert held == list(range(held[0], 101)), "the oldest go first"
    assert 8 <= 100 - held[0] <= 12


def test_large_batches_do_not_displace_other_events() -> None:
    plant = Plant(backlog_bytes=1_000_000)
    for _ in range(10):
        plant.bus.publish(machine("A"))
        plant.bus.publish(samples(50_000))
    assert seqs(plant.bus.missed(0, patterns("machine/A"))) == list(range(1, 20, 2))
    assert not plant.bus.holds(0, patterns("machine/A", "*/*/samples"))
    assert seqs(plant.bus.missed(18, patterns("machine/A", "*/*/samples"))) == [19, 20]


def test_backlog_holds_a_batch_larger_than_its_bound_alone() -> None:
    plant = Plant(backlog_bytes=1000)
    plant.bus.publish(samples(5000))
    plant.bus.publish(samples(5000))
    assert not plant.bus.holds(0, patterns("*/*/*"))
    assert seqs(plant.bus.missed(1, patterns("*/*/*"))) == [2]
