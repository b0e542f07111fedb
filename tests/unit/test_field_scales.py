"""Scales of the field: a prefix, commands, addresses, stored lines, silence, and a lock of the pattern."""

import time
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from gateway.commands.simulated_scale import AnsweringScale
from gateway.config.scale_settings import PollSettings, ScaleConnection
from gateway.doctor.scales import Asker, Heard, hear
from gateway.ingest.line_options import LineOptions, address_of
from gateway.ingest.line_pattern import LinePattern
from gateway.ingest.readings import ScaleReadings
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.silence import SilenceWatch
from gateway.model.records import Presence, Reading, Silence
from gateway.wire.scale import parse_line, read_lines
from tests.support.metrics import count_of
from tests.unit.test_ingest import Ingest


@pytest.mark.parametrize("unit", ["kg", "g", "t", "lb", "oz"])
def test_parse_line_has_the_unit_in_lower_case(unit: str) -> None:
    assert parse_line(f"ST,+00053.26 {unit.upper()}".encode()).unit == unit
    assert parse_line(b"OL,-99999999PC").unit == "kg"


def test_read_lines_common_form_has_kilograms() -> None:
    assert [line[4] for line in read_lines(b"ST,+1 kg\r\n") if not isinstance(line, bytes)] == ["kg"]


def counted(*lines: bytes) -> list[bool]:
    pattern = LinePattern()
    return [pattern.counts(line.weight, line.raw, line.unit) for line in map(parse_line, lines)]


def test_pattern_first_line_counts_and_another_is_held_until_the_next_agrees() -> None:
    two, three = b"ST,+00153.26 kg", b"ST,+00153.260 kg"
    assert counted(two, two, three, three, three, two) == [True, True, False, True, True, False]


def test_pattern_line_that_lost_a_digit_is_held_once() -> None:
    assert counted(b"ST,+00153.26 kg", b"ST,+0053.26 kg", b"ST,+00153.26 kg") == [True, False, True]


def test_pattern_moved_point_of_the_same_width_is_held() -> None:
    assert counted(b"ST,+00153.26 kg", b"ST,+001532.6 kg") == [True, False]


def test_pattern_held_line_is_forgotten_when_the_pattern_comes_again() -> None:
    good, other = b"ST,+00153.26 kg", b"ST,+0053.26 kg"
    assert counted(good, other, good, other) == [True, False, True, False]


def test_pattern_overload_counts_and_changes_nothing() -> None:
    good, other = b"ST,+00153.26 kg", b"ST,+0053.26 kg"
    assert counted(good, b"OL,+9E+19", other, b"OL,+9E+19", other) == [True, True, False, True, True]


def test_pattern_unit_of_the_same_width_and_decimals_counts() -> None:
    assert counted(b"ST,+00153.26 kg", b"ST,+00153.26 lb", b"ST,+00153.26 oz") == [True, True, True]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"@01ST,+1 kg", "01"),
        (b"\x06@23I", "23"),
        (b"\xff\xfb\x01 @07?", "07"),
        (b"ST,+1 kg", None),
        (b"@1ST,+1 kg", None),
        (b"ST@01,+1 kg", None),
    ],
)
def test_address_of(line: bytes, address: str | None) -> None:
    assert address_of(line) == address


class FieldScales(Ingest):
    def setUp(self) -> None:
        super().setUp()
        self.bus.attach(Silence, "test", self.records.append)
        self.factory = ScaleFactory("line", self.bus, self.clock, self.counters, self.warnings, 3)

    def use(self, **options: Any) -> None:
        self.factory.use(LineOptions(**options), self.reactor)

    def weights(self) -> list[tuple[str, Decimal | None]]:
        return [(each.scale_id, each.weight) for each in self.records if isinstance(each, Reading)]

    def presence(self) -> list[tuple[str, bool]]:
        return [(each.name, each.connected) for each in self.records if isinstance(each, Presence)]

    def rejected(self, scale_id: str = "line") -> float:
        return count_of(self.counters.scale_rejected.labels(scale_id))


class LockTests(FieldScales):
    def test_lock_holds_counts_and_logs_each_connection_by_itself(self) -> None:
        self.use(locked=frozenset({"line"}))
        protocol, _ = self.connect(self.factory)
        other, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+00153.26 kg\r\nST,+0053.26 kg\r\nST,+00153.27 kg\r\n")
        other.dataReceived(b"ST,+53.2 kg\r\n")
        assert self.weights() == [("line", Decimal("153.26")), ("line", Decimal("153.27")), ("line", Decimal("53.2"))]
        assert count_of(self.counters.scale_held.labels("line")) == 1
        assert [line for line in self.log.lines if "ST,+0053.26 kg" in line and "held" in line]

    def test_lock_off_counts_everything(self) -> None:
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+00153.26 kg\r\nST,+0053.26 kg\r\n")
        assert len(self.weights()) == 2
        assert protocol.patterns == {}

    def test_lock_can_be_turned_on_for_open_connections(self) -> None:
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+00153.26 kg\r\n")
        self.use(locked=frozenset({"line"}))
        protocol.dataReceived(b"ST,+00153.26 kg\r\nST,+0053.26 kg\r\n")
        assert len(self.weights()) == 2


class PrefixTests(FieldScales):
    def test_prefix_is_framing_and_may_be_missing(self) -> None:
        self.use(prefix=b"0001")
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(
            b"0001ST,+1 kg\r\n\x02 0001 \x02ST,+2 kg\r\nST,+3 kg\r\n0002ST,+4 kg\r\n00010001ST,+5 kg\r\n"
        )
        assert self.weights() == [("line", Decimal(1)), ("line", Decimal(2)), ("line", Decimal(3))]
        assert [each.raw for each in self.records if isinstance(each, Reading)] == ["ST,+1 kg", "ST,+2 kg", "ST,+3 kg"]
        assert self.rejected() == 2


class DiscardTests(FieldScales):
    def test_stored_lines_are_discarded_up_to_the_next_line_end(self) -> None:
        self.use(discard_sec=0.5)
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+1 kg\r\nST,+2 kg\r\nST,+00")
        self.reactor.advance(0.4)
        protocol.dataReceived(b"3 kg\r\nST,+4")
        self.reactor.advance(0.2)
        protocol.dataReceived(b"44 kg\r\nST,+5 kg\r\n")
        assert self.weights() == [("line", Decimal(5))]
        assert count_of(self.counters.scale_discarded.labels("line")) == 4

    def test_line_after_a_whole_stored_one_is_read(self) -> None:
        self.use(discard_sec=0.5)
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"ST,+1 kg\r\n")
        self.reactor.advance(0.6)
        protocol.dataReceived(b"ST,+2 kg\r\n")
        assert self.weights() == [("line", Decimal(2))]

    def test_http_request_and_tls_handshake_are_refused_meanwhile(self) -> None:
        self.use(discard_sec=0.5)
        for data in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\r\n"):
            protocol, transport = self.connect(self.factory)
            protocol.dataReceived(data)
            assert transport.disconnecting
            self.lose(protocol)
        assert not self.reactor.getDelayedCalls()


class PollTests(FieldScales):
    def test_commands_are_sent_after_at_connect_until_the_connection_ends(self) -> None:
        self.use(poll=PollSettings(command="Q\r\n", interval_ms=1000, at_connect="SIR\r\n"))
        protocol, transport = self.connect(self.factory)
        assert transport.value() == b"SIR\r\n"
        self.reactor.advance(1)
        self.reactor.advance(1)
        assert transport.value() == b"SIR\r\nQ\r\nQ\r\n"
        self.lose(protocol)
        assert not self.reactor.getDelayedCalls()

    def test_first_command_is_sent_at_once_without_at_connect(self) -> None:
        self.use(poll=PollSettings(command="W\xe4"))
        _, transport = self.connect(self.factory)
        assert transport.value() == b"W\xe4"

    def test_addresses_are_asked_in_turn(self) -> None:
        self.use(poll=PollSettings(command="@{address}Q\r\n"), addresses={"01": "dock-1", "02": "dock-2"})
        _, transport = self.connect(self.factory)
        for _ in range(2):
            self.reactor.advance(0.5)
        assert transport.value() == b"@01Q\r\n@02Q\r\n@01Q\r\n"

    def test_other_answers_are_not_rejects(self) -> None:
        self.use(poll=PollSettings())
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"?\r\nI\r\nEC,E02\r\n\x06\r\n\x06ST,+1 kg\r\n@01?\r\n")
        assert self.weights() == [("line", Decimal(1))]
        assert self.rejected() == 0
        protocol.dataReceived(b"I am\r\n?1\r\n\x00\r\n")
        assert self.rejected() == 3

    def test_other_answers_are_rejects_of_a_scale_that_is_not_asked(self) -> None:
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"?\r\nI\r\nEC,E02\r\n\x06\r\n")
        assert self.rejected() == 4

    def test_other_command_holds_for_open_connections(self) -> None:
        self.use(poll=PollSettings(at_connect="SIR"))
        protocol, transport = self.connect(self.factory)
        transport.clear()
        self.use(poll=PollSettings(command="W", interval_ms=2000))
        assert transport.value() == b"W"
        self.reactor.advance(1)
        assert transport.value() == b"W"
        self.use()
        assert not self.reactor.getDelayedCalls()
        self.lose(protocol)

    def test_peer_that_reads_no_commands_is_closed(self) -> None:
        class FullTransport(StringTransport):
            def write(self, data: bytes) -> None:
                super().write(data)
                assert self.producer is not None
                self.producer.pauseProducing()

        self.use(poll=PollSettings(at_connect="SIR"))
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport = FullTransport()
        protocol.makeConnection(transport)
        self.reactor.advance(0)
        assert transport.disconnecting
        assert transport.producer is None
        assert count_of(self.counters.scale_polls_stuck.labels("line")) == 1
        transport.clear()
        self.reactor.advance(1)
        assert transport.value() == b""


class AddressTests(FieldScales):
    def setUp(self) -> None:
        super().setUp()
        self.use(addresses={"01": "dock-1", "02": "dock-2"})

    def test_each_address_is_a_scale_of_its_own(self) -> None:
        protocol, _ = self.connect(self.factory)
        assert self.presence() == [("dock-1", True), ("dock-2", True)]
        protocol.dataReceived(b"@01ST,+1 kg\r\n@02ST,+2 kg\r\n")
        self.reactor.advance(2)
        protocol.dataReceived(b"@02bad\r\n")
        assert self.weights() == [("dock-1", Decimal(1)), ("dock-2", Decimal(2))]
        assert [scale.line_age for scale in self.factory.scales] == [2, 0]
        assert (self.rejected("dock-2"), self.rejected("line")) == (1, 0)
        self.lose(protocol)
        assert self.presence()[2:] == [("dock-1", False), ("dock-2", False)]

    def test_other_address_and_missing_one_are_rejected_and_logged(self) -> None:
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"@07ST,+1 kg\r\nST,+2 kg\r\nOL,+9 kg\r\n")
        assert self.weights() == []
        assert self.rejected() == 3
        assert [line for line in self.log.lines if "address 07 is not listed" in line]
        assert [line for line in self.log.lines if "a line without an address" in line]

    def test_line_itself_has_no_readings(self) -> None:
        self.connect(self.factory)
        names = {
            sample.labels.get("scale_id")
            for metric in self.counters.registry.collect()
            for sample in metric.samples
            if metric.name == "cynow_scale_readings"
        }
        assert names == {"dock-1", "dock-2"}

    def test_lock_and_prefix_hold_for_each_address(self) -> None:
        self.use(prefix=b"P", addresses={"01": "dock-1", "02": "dock-2"}, locked=frozenset({"dock-1"}))
        protocol, _ = self.connect(self.factory)
        protocol.dataReceived(b"P@01ST,+1 kg\r\n@02ST,+22 kg\r\nP@01ST,+11 kg\r\nP@02ST,+2 kg\r\nP@01ST,+1 kg\r\n")
        assert self.weights() == [
            ("dock-1", Decimal(1)),
            ("dock-2", Decimal(22)),
            ("dock-2", Decimal(2)),
            ("dock-1", Decimal(1)),
        ]

    def test_address_comes_and_goes_while_the_line_is_connected(self) -> None:
        protocol, transport = self.connect(self.factory)
        self.records.clear()
        self.use(addresses={"02": "dock-2", "03": "dock-3"})
        assert self.presence() == [("dock-1", False), ("dock-3", True)]
        assert not transport.disconnecting
        protocol.dataReceived(b"@03ST,+3 kg\r\n")
        assert self.weights() == [("dock-3", Decimal(3))]


class SilenceTests(FieldScales):
    def setUp(self) -> None:
        super().setUp()
        self.scales: list[ScaleReadings] = self.factory.scales
        self.watch = SilenceWatch(self.reactor, self.bus, self.clock, lambda: self.scales, lambda _: 3.0)
        self.watch.startService()
        self.addCleanup(self.watch.stopService)

    def events(self) -> list[bool]:
        return [each.is_silent for each in self.records if isinstance(each, Silence)]

    def pass_seconds(self, seconds: int) -> None:
        self.reactor.pump([1.0] * seconds)

    def test_silence_is_published_once_and_ends_with_the_next_line(self) -> None:
        protocol, _ = self.connect(self.factory)
        self.pass_seconds(2)
        assert self.events() == []
        self.pass_seconds(10)
        assert self.events() == [True]
        protocol.dataReceived(b"bad\r\n")
        self.pass_seconds(1)
        assert self.events() == [True, False]
        self.pass_seconds(3)
        assert self.events() == [True, False, True]

    def test_scale_that_is_not_connected_is_not_silent(self) -> None:
        self.pass_seconds(10)
        protocol, _ = self.connect(self.factory)
        self.lose(protocol)
        self.pass_seconds(10)
        assert self.events() == []

    def test_silence_outlives_the_connection_until_a_line_comes(self) -> None:
        protocol, _ = self.connect(self.factory)
        self.pass_seconds(4)
        self.lose(protocol)
        protocol, _ = self.connect(self.factory)
        self.pass_seconds(10)
        assert self.events() == [True]
        protocol.dataReceived(b"ST,+1 kg\r\n")
        self.pass_seconds(1)
        assert self.events() == [True, False]

    def test_scale_that_is_gone_is_forgotten(self) -> None:
        self.connect(self.factory)
        self.pass_seconds(4)
        self.scales = []
        self.pass_seconds(4)
        assert self.events() == [True]


def test_simulated_scale_answers_its_own_address_only() -> None:
    lines = {b"01": iter([("ST", b"one")]), b"02": iter([("ST", b"two")])}
    counts: Counter[str] = Counter()
    protocol, transport = AnsweringScale(b"Q\r\n", lines, counts), StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(b"@01")
    protocol.dataReceived(b"Q\r\n@03Q\r\nQ\r\n@02W\r@02X\n")
    assert transport.value() == b"onetwo?\r\n"
    assert counts == {"ST": 2}


def test_doctor_asks_a_polled_scale_and_leaves_the_prefix_out() -> None:
    line = ScaleConnection.model_validate(
        {
            "connect": "tcp:h:1",
            "prefix": "0001",
            "poll": {"command": "@{address}Q\r\n", "at_connect": "SIR\r\n"},
            "addresses": {"01": "a", "02": "b"},
        }
    )
    sent: list[bytes] = []
    asker, heard = Asker(line, sent.append), Heard(prefix=line.prefix, is_polled=True)

    def receive() -> bytes:
        if len(sent) < 3:
            time.sleep(0.01)
            raise TimeoutError
        return b"0001@01ST,+1 kg\r\n" * 3

    hear(receive, heard, time.monotonic() + 30, asker.ask)
    assert sent == [b"SIR\r\n", b"@01Q\r\n", b"@02Q\r\n"]
    assert (heard.count, heard.readings) == (3, 3)


def test_doctor_says_that_a_polled_scale_does_not_answer() -> None:
    assert "poll.command" in Heard(is_polled=True).finding("scales.a.connect", "h:1", 3.0).remedy
    assert "stream mode" in Heard().finding("scales.a.connect", "h:1", 3.0).remedy
