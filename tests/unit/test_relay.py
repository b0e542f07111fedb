"""Gateways that exchange records over a channel that loses, refuses or delays messages on demand."""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from gateway.bus.bus import Bus
from gateway.bus.event import Event
from gateway.bus.topics import parse_topic
from gateway.live.state import LiveState
from gateway.model.records import (
    ALLOWED,
    Batch,
    Commit,
    CommitDetail,
    CommitEntry,
    Fault,
    Presence,
    Reading,
    SensorBatch,
    Silence,
    Update,
    Verdict,
)
from gateway.relay import outbound as relay_outbound
from gateway.relay import protocol
from gateway.relay.guard import MessageGuard
from gateway.relay.service import Relay
from gateway.relay.settings import BEAT, GONE, RelaySettings
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError
from tests.unit.test_bus import SEOUL

START = datetime(2025, 12, 18, 10, 11, 12, 345678, SEOUL)

KEY = bytes(32)


def sealed(text: str, key: bytes = KEY) -> str:
    """Return the payload of a message of a gateway with a key."""
    guard = MessageGuard()
    guard.restart(key, 1)
    return guard.seal(text)


def message(token: str, kind: str, items: Sequence[str] = (), number: int = 1, moment: int = 2**62) -> str:
    return sealed(protocol.encode_message(token, "hall z", number, moment, None, kind, items))


def read(payload: str) -> Any:
    return json.loads(payload[protocol.MAC_LENGTH :])


class Hub:
    """Server that delivers each payload to all listening channels, in one order.

    :ivar loses: returns whether a payload is lost on the way to a channel.
    :ivar moment: number of its last transaction.
    """

    def __init__(self) -> None:
        self.channels: list[FakeChannel] = []
        self.sent: list[str] = []
        self.moment = 1000
        self.loses: Callable[[str, FakeChannel], bool] = lambda payload, channel: False

    def notify(self, payloads: Sequence[str]) -> None:
        for payload in payloads:
            assert len(payload.encode()) < 8000
            self.sent.append(payload)
            for channel in self.channels:
                if channel.is_connected and channel.listens and not self.loses(payload, channel):
                    channel.heard(payload)

    def says(self, *words: str) -> list[Any]:
        """Return the messages of some kinds so far."""
        return [said for said in map(read, self.sent) if said["say"] in words]


class FakeChannel:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.is_connected = False
        self.listens = True
        self.refuses = False
        self.silent: list[Deferred[int]] | None = None
        self.problem: str | None = "it is away"
        self.connected: Callable[[bytes, int], None] = lambda key, moment: None
        self.heard: Callable[[str], None] = lambda payload: None
        hub.channels.append(self)

    def start(self, on_connect: Callable[[bytes, int], None], on_payload: Callable[[str], None]) -> None:
        self.connected, self.heard = on_connect, on_payload

    def come(self) -> None:
        self.is_connected, self.problem = True, None
        self.hub.moment += 1
        self.connected(KEY, self.hub.moment)

    def go(self) -> None:
        self.is_connected, self.problem = False, "it is away"

    def send(self, payloads: Sequence[str]) -> "Deferred[int]":
        self.hub.moment += 1
        if self.silent is not None:
            self.silent.append(Deferred())
            return self.silent[-1]
        if self.refuses or not self.is_connected:
            return fail(RuntimeError("refused"))
        self.hub.notify(payloads)
        return succeed(self.hub.moment)

    async def close(self, patience: float) -> None:
        self.go()


class Gateway:
    """The parts of a gateway that the relay uses."""

    def __init__(self, site: "Site", name: str, *scales: str, most_heard: int = 1000) -> None:
        self.site = site
        self.counters = Counters()
        self.clock = WallClock(SEOUL, site.wall, site.reactor.seconds)
        self.bus = Bus(self.clock, self.counters)
        self.live = LiveState(self.bus, self.clock, dict.fromkeys(scales, 5.0), most_heard)
        self.channel = FakeChannel(site.hub)
        settings = RelaySettings(name, 10.0)
        self.relay = Relay(site.reactor, self.bus, self.live, self.clock, self.counters, self.channel, settings)
        self.events: list[Event] = []
        self.stored: list[Any] = []
        for record_type in (Reading, Commit, Fault, Update, Presence, Batch):
            self.bus.attach(record_type, "store", self.stored.append)
        self.bus.subscribe(self, frozenset(map(parse_topic, ("*/*", "*/*/*"))))

    def deliver(self, event: Event) -> None:
        self.events.append(event)

    def heard(self) -> list[tuple[str, str]]:
        """Return topics and names of the events since the last call."""
        found = [(event.topic, event.record.event) for event in self.events]
        self.events.clear()
        return found

    def counted(self, name: str, **labels: str) -> float:
        return self.counters.registry.get_sample_value(f"cynow_relay_{name}", labels) or 0.0

    def stop(self) -> None:
        done = self.relay.stopService()
        assert done.called

    def die(self) -> None:
        """End without a message, as a killed process does."""
        self.channel.go()
        self.channel.connected = self.channel.heard = lambda *_: None  # type: ignore[assignment]
        self.relay._ticker.stop()

    # -- records of this gateway

    def weigh(self, scale_id: str, kilograms: str = "1.25", **fields: Any) -> Reading:
        reading = Reading(scale_id, "ST", Decimal(kilograms), "gross", f"ST,+{kilograms} kg", self.clock.now())
        reading = reading._replace(**fields)
        self.bus.publish(reading)
        return reading

    def presence(self, source: str, name: str, connected: bool = True) -> None:
        self.bus.publish(Presence(source, name, connected))

    def update(self, machine: str, sensor: str, mean: float, minute: int) -> Update:
        update = Update(machine, sensor, mean, datetime(2025, 12, 18, 9, 0, tzinfo=SEOUL) + timedelta(minutes=minute))
        self.bus.publish(update)
        return update

    def means(self, machine: str, sensor: str) -> list[float]:
        return [update.mean for update in self.live.recent(machine).get(sensor, ())]


class Site:
    """Some gateways with one channel and one clock."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.hub = Hub()

    def wall(self) -> float:
        return START.timestamp() + self.reactor.seconds()

    def gateway(self, name: str, *scales: str, **bounds: int) -> Gateway:
        gateway = Gateway(self, name, *scales, **bounds)
        gateway.relay.startService()
        return gateway

    def joined(self, name: str, *scales: str, **bounds: int) -> Gateway:
        """Return a gateway that is connected and knows the state of all others."""
        gateway = self.gateway(name, *scales, **bounds)
        gateway.channel.come()
        self.wait(0.5)
        gateway.heard()
        return gateway

    def wait(self, seconds: float) -> None:
        self.reactor.pump([0.02] * round(seconds / 0.02))


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def a(site: Site) -> Gateway:
    return site.joined("hall a", "a")


@pytest.fixture
def b(a: Gateway, site: Site) -> Gateway:
    return site.joined("hall b", "b")


COMMIT = Commit(
    7,
    CommitEntry("a", "실린더 1", "SHIP", Decimal("53.26"), "ST,+53.26 kg", START, START, "S1", None),
)

DETAILED = Commit(
    8,
    CommitEntry(
        "a",
        "CY1",
        "RETURN",
        Decimal("53.26"),
        "",
        START,
        START,
        detail=CommitDetail(
            "dock", "a reason", ("not_rearmed",), ("out_of_control",), None, {"checked": True, "tare_kg": 53.2}
        ),
    ),
    "hall-1-1",
)


# -- records


def test_relay_record_reaches_subscribers_of_peers_but_no_sink(a: Gateway, b: Gateway) -> None:
    records: list[Any] = [
        Presence("scale", "a", connected=True),
        Reading("a", "US", Decimal("-1.250"), "gross", "US,-1.250 kg", START),
        Reading("a", "OL", None, "gross", "OL", START),
        Reading("a", "ST", Decimal("0.1"), "net", "ST,NT,+0.1 kg", START),
        Reading("a", "HD", Decimal("0.1"), "hold", "HD,GS,+0.1 kg", START),
        Reading("a", "US", Decimal("0.1"), "gross", "US,GS,1\ufffd,000000.1 kg", START),
        Reading("a", "ST", Decimal("53.26"), "gross", "ST,+53.26 kg", START),
        Reading(
            "a",
            "US",
            Decimal("0.453"),
            "net",
            "x",
            START,
            "lb",
            "r1",
            Verdict("unstable", "흔들림", "moves"),
            True,
            True,
        ),
        COMMIT,
        DETAILED,
        Presence("machine", "쇼트", connected=True),
        Fault("쇼트", 0.1, float("inf"), START),
        Silence("a", is_silent=True),
        Update("쇼트", "v 1", 0.1 + 0.2, START.replace(second=0, microsecond=0)),
    ]
    first = a.bus.seq
    for record in records:
        a.bus.publish(record)
        a.bus.publish(Batch("쇼트", {}, START))
    a.site.wait(0.1)
    # No event contains the line of a commit.
    there = [replace(r, entry=replace(r.entry, raw_line="")) if isinstance(r, Commit) else r for r in records]
    assert [event.record for event in b.events] == there
    assert [event.text() for event in b.events] == [
        event.text().replace(b'"seq":%d,' % event.seq, b'"seq":%d,' % (b.events[0].seq + n))
        for n, event in enumerate(event for event in a.events if event.seq > first and event.record.event != "samples")
    ]
    assert [event.seq for event in b.events] == list(range(b.bus.seq - len(records) + 1, b.bus.seq + 1))
    assert b.stored == []
    assert b.live.latest("a") == records[6]
    assert b.live.connected_machines() == ["쇼트"]


def test_relay_received_records_are_not_sent_again(a: Gateway, b: Gateway, site: Site) -> None:
    site.joined("hall c", "c")
    a.weigh("a")
    a.presence("machine", "M")
    site.wait(1.0)
    sent = len(site.hub.says("records", "state"))
    site.wait(20.0)
    assert len(site.hub.says("records", "state")) == sent
    records = [message for message in site.hub.says("records") if message["name"] != "hall a"]
    assert records == []


def test_relay_records_at_once_share_messages(a: Gateway, b: Gateway, site: Site) -> None:
    for number in range(100):
        a.weigh("a", str(number))
    site.wait(0.1)
    assert len(b.events) == 100
    assert len(site.hub.says("records")) < 8


def test_relay_slow_server_keeps_age_of_weight(a: Gateway, b: Gateway, site: Site) -> None:
    a.channel.silent = []
    a.weigh("a")
    site.wait(0.1)
    a.weigh("a", "2")
    # The server is slow.
    site.wait(3.0)
    silent, a.channel.silent = a.channel.silent, None
    silent[0].callback(site.hub.moment)
    site.wait(0.1)
    assert b.live.age("a") == pytest.approx(a.live.age("a"), abs=0.05)
    assert not b.live.is_stale("a")
    site.wait(2.0)
    # Its gateway's idle time-out is five seconds.
    assert a.live.is_stale("a")
    assert b.live.is_stale("a")


# -- start


def test_relay_verdict_of_the_scales_gateway_holds_on_its_peers(a: Gateway, b: Gateway, site: Site) -> None:
    a.weigh("a")
    site.wait(0.1)
    assert b.live.verdict("a") == ALLOWED
    unstable = Verdict("unstable", "흔들림", "moves")
    a.bus.publish(Reading("a", "US", Decimal(1), "gross", "US,+1 kg", START, verdict=unstable))
    site.wait(0.1)
    assert b.live.verdict("a") == unstable
    assert b.live.scale_snapshot("a")["commit"]["error"] == "unstable"


def test_relay_new_gateway_exchanges_states(a: Gateway, site: Site) -> None:
    a.weigh("a")
    a.presence("scale", "a")
    a.presence("machine", "M")
    a.presence("machine", "N")
    a.presence("machine", "N", connected=False)
    for minute in range(70):
        for sensor in range(20):
            a.update("M", f"sensor {sensor}", minute / 7, minute)
    site.wait(2.0)
    b = site.gateway("hall b", "b")
    b.live.restore([Update("P", "v", 1.0, START)])
    b.presence("machine", "P")
    b.channel.come()
    site.wait(1.0)
    assert b.live.scale_snapshot("a") == a.live.scale_snapshot("a")
    assert b.live.age("a") == pytest.approx(a.live.age("a"), abs=0.05)
    assert set(a.live.machines()) == set(b.live.machines()) == {"M", "N", "P"}
    for machine in "MNP":
        assert a.live.machine_snapshot(machine) == b.live.machine_snapshot(machine)
    assert a.live.connected_machines() == b.live.connected_machines() == ["M", "P"]
    # Each sensor was sent once.
    states = [item for message in site.hub.says("state") for item in message["items"] if item["is"] == "sensor"]
    assert len([item for item in states if item["machine"] == "M"]) == 20
    assert ("machine/M", "connected") in b.heard()


def test_relay_three_gateways_have_the_same_state(a: Gateway, b: Gateway, site: Site) -> None:
    a.weigh("a", "1")
    b.weigh("b", "2")
    c = site.joined("hall c", "c")
    c.weigh("c", "3")
    site.wait(0.1)
    for gateway in (a, b, c):
        weights = {name: gateway.live.latest(name) for name in "abc"}
        assert {name: reading and reading.weight for name, reading in weights.items()} == {"a": 1, "b": 2, "c": 3}
        assert gateway.counted("gateways") == 2


def test_relay_restarted_gateway_is_a_new_peer(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    a.weigh("a", "1")
    site.wait(0.1)
    a.die()
    again = site.joined("hall a", "a")
    again.presence("machine", "M")
    site.wait(GONE + 2)
    # It was back before its peers noticed its absence.
    assert ("machine/M", "disconnected") not in b.heard()
    assert b.live.connected_machines() == ["M"]
    assert b.counted("gateways") == 1


def test_relay_gateways_with_one_name_are_two_peers(a: Gateway, site: Site) -> None:
    with capturedLogs() as logs:
        b = site.joined("hall a", "b")
        a.weigh("a")
        b.weigh("b", "2")
        site.wait(0.1)
    assert a.live.latest("b") == b.live.latest("b")
    assert b.live.latest("a") == a.live.latest("a")
    assert len([event for event in logs if "gateway.name" in formatEvent(event)]) == 2


# -- end


def test_relay_stopped_gateway_is_gone_at_once(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("scale", "a")
    a.presence("machine", "M")
    a.weigh("a")
    site.wait(0.1)
    b.heard()
    a.bus.publish(Fault("M", 2.0, 1.0, START))
    a.stop()
    assert b.heard() == [("machine/M", "anomaly"), ("scale/a", "disconnected"), ("machine/M", "disconnected")]
    assert b.counted("gateways") == 0
    assert b.live.latest("a") is not None
    site.wait(6.0)
    assert b.live.is_stale("a")


def test_relay_killed_gateway_is_gone_after_some_seconds(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    site.wait(60.0)
    assert b.live.connected_machines() == ["M"]
    a.die()
    b.heard()
    site.wait(GONE - BEAT - 0.5)
    assert b.live.connected_machines() == ["M"]
    site.wait(BEAT + 1.6)
    assert b.heard() == [("machine/M", "disconnected")]
    assert set(b.live.machines()) == {"M"}


def test_relay_silent_gateway_is_back_with_its_next_message(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    site.wait(0.1)
    site.hub.loses = lambda payload, channel: channel is b.channel
    site.wait(GONE + 2)
    assert b.live.connected_machines() == []
    site.hub.loses = lambda payload, channel: False
    site.wait(BEAT + 0.5)
    assert b.live.connected_machines() == ["M"]


def test_relay_suspended_gateway_keeps_its_peers(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    site.wait(0.1)
    b.heard()
    # As after SIGSTOP: one turn of the reactor, a minute later.
    site.reactor.advance(60.0)
    site.wait(1.0)
    assert ("machine/M", "disconnected") not in b.heard()
    assert b.live.connected_machines() == ["M"]


# -- losses


def test_relay_lost_message_causes_request_for_state(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    a.update("M", "v", 1.0, 1)
    site.wait(0.1)
    b.heard()
    site.hub.loses = lambda payload, channel: '"records"' in payload and channel is b.channel
    a.weigh("a", "2")
    a.update("M", "v", 2.0, 2)
    a.presence("machine", "M", connected=False)
    site.wait(0.1)
    assert b.heard() == []
    site.hub.loses = lambda payload, channel: False
    # Its next message shows that a number is missing.
    site.wait(BEAT + 0.5)
    assert b.counted("gaps_total") == 1
    assert sorted(b.heard()) == [("machine/M", "disconnected"), ("machine/M", "update"), ("scale/a", "reading")]
    assert b.means("M", "v") == [1.0, 2.0]
    assert a.counted("gaps_total") == 0


def test_relay_lost_state_is_requested_again(a: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    lost: list[str] = []

    def loses(payload: str, channel: FakeChannel) -> bool:
        if '"state"' in payload and '"hall a"' in payload and len(lost) < 2:
            lost.append(payload)
            return True
        return False

    site.hub.loses = loses
    b = site.joined("hall b", "b")
    site.wait(3 * BEAT)
    assert lost
    assert b.live.connected_machines() == ["M"]


def test_relay_refused_messages_are_replaced_by_state(a: Gateway, b: Gateway, site: Site) -> None:
    a.channel.refuses = True
    a.weigh("a", "1")
    site.wait(3.0)
    assert b.live.latest("a") is None
    a.channel.refuses = False
    site.wait(BEAT)
    assert b.live.latest("a") == a.live.latest("a")
    # It tries again each second, not at once.
    assert a.counted("dropped_records_total", reason="failed") < 8


def test_relay_outage_keeps_own_state_and_recovers(a: Gateway, b: Gateway, site: Site) -> None:
    a.presence("machine", "M")
    b.presence("machine", "N")
    site.wait(0.1)
    for gateway in (a, b):
        gateway.channel.go()
    a.weigh("a", "2")
    site.wait(GONE + 1.5)
    assert a.live.connected_machines() == ["M"]
    assert b.live.connected_machines() == ["N"]
    assert a.relay.problem == "it is away"
    # Records are dropped, not queued.
    assert a.counted("dropped_records_total", reason="away") >= 1
    a.channel.come()
    site.wait(1.0)
    b.channel.come()
    site.wait(1.0)
    for gateway in (a, b):
        assert gateway.live.connected_machines() == ["M", "N"]
        assert gateway.relay.problem is None
        assert gateway.counted("gaps_total") == 0
    assert b.live.latest("a") == a.live.latest("a")


def test_relay_without_notifications_reports_a_problem(a: Gateway, site: Site) -> None:
    site.wait(60.0)
    assert a.relay.problem is None
    a.channel.listens = False
    site.wait(GONE + 2 * BEAT)
    assert "no notifications" in (a.relay.problem or "")


# -- bounds


def test_relay_full_queue_drops_the_oldest(a: Gateway, b: Gateway, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_outbound, "MAX_WAITING", 10)
    a.channel.silent = []
    a.weigh("a", "0")
    site.wait(0.1)
    for number in range(1, 31):
        a.bus.publish(Fault("M", number, 1.0, START))
    a.weigh("a", "31")
    assert a.counted("dropped_records_total", reason="full") == 21
    silent, a.channel.silent = a.channel.silent, None
    silent[0].callback(site.hub.moment)
    site.wait(0.5)
    scores = [event.record.score for event in b.events if isinstance(event.record, Fault)]
    assert scores == list(range(22, 31))
    # The peer notices the gap and requests the state.
    assert b.counted("gaps_total") >= 1
    assert b.live.latest("a") == a.live.latest("a")


def test_relay_too_long_record_is_left_out_alone(a: Gateway, b: Gateway, site: Site) -> None:
    a.weigh("a", "1", raw="x" * 8000)
    a.weigh("a", "2")
    site.wait(0.1)
    assert a.counted("dropped_records_total", reason="long") == 1
    assert [event.record.weight for event in b.events if isinstance(event.record, Reading)] == [2]


def test_relay_longest_valid_records_fit_a_message(a: Gateway, b: Gateway, site: Site) -> None:
    # Six bytes of JSON for each character, and twelve outside Unicode's first plane.
    a.weigh("a", "1", raw="\N{REPLACEMENT CHARACTER}" * 1024)
    entry = replace(COMMIT.entry, cylinder_no="\U0001f600" * 50, arrival_shipping_no="\U0001f600" * 50)
    a.bus.publish(Commit(2**62, replace(entry, move_report_no="\U0001f600" * 50)))
    name = "\U00020000" * 59
    for minute in range(60):
        a.update(name, name, 1 / 3 * 10**-300, minute)
    site.wait(0.1)
    assert a.counted("dropped_records_total", reason="long") == 0
    assert len(b.events) == 62
    c = site.joined("\U00020000" * 59, "c")
    assert c.means(name, name) == a.means(name, name)
    assert a.counted("dropped_records_total", reason="long") == 0


def test_relay_names_of_peers_are_bounded(a: Gateway, site: Site) -> None:
    b = site.joined("hall b", "b", most_heard=3)
    for number in range(10):
        a.update(f"M{number}", "v", 1.0, 1)
        a.presence("machine", f"M{number}")
    site.wait(0.1)
    # The scale, a machine and its sensor.
    assert list(b.live.machines()) == ["M0"]
    assert b.counted("rejected_total", reason="invalid") == 9


# -- the same name on two gateways


def test_relay_machine_on_two_gateways_is_one(a: Gateway, b: Gateway, site: Site) -> None:
    c = site.joined("hall c", "c")
    a.presence("machine", "M")
    a.update("M", "v", 1.0, 1)
    site.wait(0.1)
    b.presence("machine", "M")
    b.update("M", "v", 2.0, 2)
    site.wait(0.1)
    assert c.heard() == [("machine/M", "connected"), ("machine/M", "update"), ("machine/M", "update")]
    for gateway in (a, b, c):
        assert gateway.means("M", "v") == [1.0, 2.0]
    a.heard()
    a.presence("machine", "M", connected=False)
    site.wait(0.1)
    # It is still connected to the other gateway.
    assert a.heard() == [("machine/M", "disconnected"), ("machine/M", "connected")]
    assert c.heard() == []
    for gateway in (a, b, c):
        assert gateway.live.connected_machines() == ["M"]
    b.presence("machine", "M", connected=False)
    site.wait(0.1)
    assert c.heard() == [("machine/M", "disconnected")]
    d = site.joined("hall d", "d")
    assert d.means("M", "v") == [1.0, 2.0]


def test_relay_scale_on_two_gateways_has_the_last_weight(site: Site) -> None:
    a, b = site.joined("hall a", "s"), site.joined("hall b", "s")
    a.weigh("s", "1")
    site.wait(1.0)
    b.weigh("s", "2")
    site.wait(0.1)
    for gateway in (a, b):
        latest = gateway.live.latest("s")
        assert latest is not None
        assert latest.weight == 2
    c = site.joined("hall c", "c")
    assert c.live.latest("s") == b.live.latest("s")


def weight_at(gateway: Gateway) -> float:
    latest = gateway.live.latest("s")
    assert latest is not None
    assert latest.weight is not None
    return float(latest.weight)


def hold(gateway: Gateway) -> tuple[list[str], Callable[[str], None]]:
    """Keep payloads from a gateway; return the list that they go to, and a function that delivers one."""
    held: list[str] = []
    hear, gateway.channel.heard = gateway.channel.heard, held.append
    return held, hear


def test_relay_delayed_weights_of_one_gateway_leave_the_last(site: Site) -> None:
    """The age of a weight grows on the way: of two that are late, the first seems to be the last."""
    a, b = site.joined("hall a", "s"), site.joined("hall b", "s")
    held, hear = hold(b)
    for kilograms in ("1", "2"):
        a.weigh("s", kilograms)
        site.wait(0.1)
    site.wait(1.0)
    for payload in held:
        hear(payload)
    assert weight_at(b) == 2


def test_relay_late_state_of_a_peer_replaces_no_newer_weight(site: Site) -> None:
    a, b = site.joined("hall a", "s"), site.joined("hall b", "s")
    c = site.joined("hall c", "c")
    held, hear = hold(b)
    for kilograms in ("1", "2"):
        a.weigh("s", kilograms)
        site.wait(0.1)
    site.wait(1.0)
    hear(held[0])
    assert weight_at(b) == 1
    # It sends its state, in which the weight is older than the one that the others have.
    b.channel.come()
    site.wait(0.1)
    items = [item for message in site.hub.says("state") for item in message["items"] if item["is"] == "scale"]
    assert "1" in [item["latest"]["kg"] for item in items if item["latest"]]
    assert weight_at(a) == 2
    assert weight_at(c) == 2


def test_relay_peer_of_an_older_version_tells_weights_by_age(a: Gateway) -> None:
    def state(number: int, kilograms: str, age: float) -> str:
        latest = {name: value for name, value in item(scale="s", kg=kilograms).items() if name != "arrived"}
        fields = {"is": "scale", "scale": "s", "connected": True, "idle": 5, "latest": latest, "age": age}
        return message("old", protocol.STATE, [json.dumps(fields)], number)

    a.site.wait(5.0)
    for number, (kilograms, age, expected) in enumerate((("1", 2.0, 1), ("2", 1.0, 2), ("3", 3.0, 2)), 1):
        a.channel.heard(state(number, kilograms, age))
        assert weight_at(a) == expected


# -- invalid messages


def item(**fields: Any) -> dict[str, Any]:
    reading = Reading("a", "ST", Decimal(1), "gross", "x", START)
    return {**protocol.record_item(protocol.RecordItem(reading, START, 0.0, 10.0, 1.0)), **fields}


ITEMS: list[Any] = [
    None,
    [],
    "reading",
    {},
    item(**{"is": "nothing"}),
    item(**{"is": []}),
    item(scale=""),
    item(scale="../a"),
    item(scale="x" * 51),
    item(status="XX"),
    item(status=[]),
    item(kind=1),
    item(kg=1.5),
    item(kg="NaN"),
    item(kg="1E+999999"),
    item(kg="0E-999999"),
    item(kg="100000000"),
    item(kg=None),
    item(raw="\ud800"),
    item(raw="x" * 1025),
    item(received="now"),
    item(received=1e300),
    item(received=float("nan")),
    item(received=-1),
    item(at=None),
    item(age=-1),
    item(age=float("inf")),
    item(arrived="soon"),
    item(arrived=-1),
    item(idle=True),
    {"is": "presence", "source": "site", "name": "a", "connected": True, "at": 0, "age": 0, "idle": 1},
    {"is": "presence", "source": "machine", "name": "a", "connected": 1, "at": 0, "age": 0, "idle": 1},
    {"is": "fault", "machine": "M", "score": "1", "threshold": 1, "received": 0, "at": 0, "age": 0, "idle": 1},
    {"is": "machine", "machine": "M"},
    {"is": "sensor", "machine": "M", "sensor": "v", "means": []},
    {"is": "sensor", "machine": "M", "sensor": "v", "means": [[1]]},
    {"is": "sensor", "machine": "M", "sensor": "v", "means": [[1, None]]},
    {"is": "sensor", "machine": "M", "sensor": "v", "means": 5},
    {"is": "scale", "scale": "a", "connected": True, "idle": 1, "latest": item(status="US"), "age": 0},
    {"is": "scale", "scale": "b", "connected": True, "idle": 1, "latest": item(), "age": 0},
    {"is": "scale", "scale": "a", "connected": True, "idle": 1, "latest": item(), "age": 0, "arrival": ["t"]},
    {"is": "scale", "scale": "a", "connected": True, "idle": 1, "latest": item(), "age": 0, "arrival": ["t", None]},
    {"is": "scale", "scale": "a", "connected": True, "idle": 1, "latest": item(), "age": 0, "arrival": 1},
]


@pytest.mark.parametrize("bad", ITEMS)
def test_read_item_invalid_raises_wire_error(bad: Any) -> None:
    with pytest.raises(WireError):
        protocol.read_item(bad, UTC)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "x",
        "[]",
        "1",
        "null",
        "{}",
        "[" * 7000,
        '{"a":' * 1500,
        "1" * 7000,
        '{"from":"","name":"n","number":1,"moment":9999,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":true,"moment":9999,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":0,"moment":9999,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1e3,"moment":9999,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1,"moment":"1","to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1,"moment":0,"to":null,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1,"moment":9999,"to":1,"say":"here","items":[]}',
        '{"from":"f","name":"n","number":1,"moment":9999,"to":null,"say":"what","items":[]}',
        '{"from":"f","name":"n","number":1,"moment":9999,"to":null,"say":[],"items":[]}',
        '{"from":"f","name":"n","number":1,"moment":9999,"to":null,"say":"here","items":{}}',
        '{"from":"\\ud800","name":"n","number":1,"moment":9999,"to":null,"say":"here","items":[]}',
    ],
)
def test_relay_invalid_payload_is_counted_and_ignored(payload: str, a: Gateway) -> None:
    a.heard()
    a.channel.heard(sealed(payload))
    assert a.counted("rejected_total", reason="invalid") == 1
    assert a.heard() == []
    assert a.counted("gateways") == 0


def test_relay_valid_items_beside_invalid_are_applied(a: Gateway) -> None:
    texts = [json.dumps(each) for each in (None, item(), {"is": 5})]
    a.channel.heard(message("f", protocol.RECORDS, texts))
    assert a.counted("rejected_total", reason="invalid") == 2
    assert a.heard() == [("scale/a", "reading")]


def test_relay_number_of_peers_is_bounded(a: Gateway) -> None:
    for number in range(1100):
        a.channel.heard(message(f"f{number}", protocol.HERE))
    assert a.counted("gateways") == 1000
    assert a.counted("rejected_total", reason="invalid") == 100


def test_relay_samples_are_not_sent(a: Gateway, b: Gateway, site: Site) -> None:
    a.bus.publish(Batch("M", {"v": SensorBatch("VIB", array("d", [1.0]))}, START))
    site.wait(0.1)
    assert b.events == []
