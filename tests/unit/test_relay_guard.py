"""The seal of messages between gateways, and the refusal of forged and repeated ones."""

from collections.abc import Callable

import pytest
from twisted.logger import capturedLogs, formatEvent

from gateway.relay import protocol
from gateway.relay.guard import ForeignMessage, MessageGuard, OldMessage
from gateway.relay.protocol import MAC_LENGTH, RelayMessage
from gateway.relay.settings import BEAT
from tests.unit.test_relay import Gateway, Site, a, b, message, read, sealed, site, weight_at

__all__ = ["a", "b", "site"]


def guard(key: bytes = b"k" * 32, moment: int = 100, max_senders: int = 10) -> MessageGuard:
    made = MessageGuard(max_senders)
    made.restart(key, moment)
    return made


def said(number: int, moment: int, token: str = "t") -> RelayMessage:
    return RelayMessage(token, "n", number, moment, None, "here", [])


def test_sealed_message_is_opened_with_the_same_key() -> None:
    payload = guard().seal('{"a":1}')
    assert len(payload) == MAC_LENGTH + 7
    assert payload.isascii()
    assert guard(moment=5).open(payload) == '{"a":1}'


def test_message_that_was_changed_in_any_character_is_refused() -> None:
    payload = guard().seal('{"a":1}')
    changed = [payload[:at] + chr(ord(payload[at]) ^ 1) + payload[at + 1 :] for at in range(len(payload))]
    cut = [payload[:length] for length in range(len(payload))]
    others = [
        payload + "x",
        payload[1:],
        "",
        "\ud800" * 30,
        "실린더" * 20,
        payload[:21] + "\N{BALLOT BOX}" + payload[22:],
    ]
    for forged in (*changed, *cut, *others):
        with pytest.raises(ForeignMessage):
            guard().open(forged)
    with pytest.raises(ForeignMessage):
        guard(key=b"l" * 32).open(payload)
    with pytest.raises(ForeignMessage):
        MessageGuard().open(payload)


def test_message_counts_once() -> None:
    judge = guard()
    for number in (1, 2, 5):
        judge.admit(said(number, 100))
    for number in (1, 2, 3, 5):
        with pytest.raises(OldMessage):
            judge.admit(said(number, 100))
    judge.admit(said(3, 100, "u"))


def test_message_from_before_the_listen_is_refused() -> None:
    judge = guard(moment=100)
    with pytest.raises(OldMessage):
        judge.admit(said(1, 99))
    judge.admit(said(2, 100))
    # It has connected again: what was sent meanwhile may be known to strangers only.
    judge.restart(b"k" * 32, 200)
    with pytest.raises(OldMessage):
        judge.admit(said(3, 199))
    judge.admit(said(4, 200))


def test_moment_is_the_highest_known() -> None:
    judge = guard(moment=100)
    judge.admit(said(1, 150))
    judge.note_moment(120)
    assert judge.moment == 150
    judge.note_moment(160)
    assert judge.moment == 160
    # Another server counts on its own.
    judge.restart(b"k" * 32, 50)
    assert judge.moment == 50


def test_forgotten_sender_cannot_be_repeated() -> None:
    judge = guard(max_senders=3)
    for number in range(4):
        judge.admit(said(1, 100 + number, f"t{number}"))
    assert len(judge._last) == 3
    with pytest.raises(OldMessage):
        judge.admit(said(1, 100, "t0"))
    judge.admit(said(2, 101, "t1"))


# -- whole relays


def weigh(gateway: Gateway, kilograms: str) -> None:
    gateway.weigh("s", kilograms)
    gateway.site.wait(0.1)


@pytest.fixture
def pair(site: Site) -> tuple[Gateway, Gateway]:
    return site.joined("hall a", "s"), site.joined("hall b", "s")


def test_relay_repeated_messages_change_nothing(pair: tuple[Gateway, Gateway], site: Site) -> None:
    a, b = pair
    a.presence("machine", "M")
    for kilograms in ("1", "2"):
        weigh(a, kilograms)
    a.stop()
    heard = list(site.hub.sent)
    b.heard()
    peers = b.counted("gateways")
    with capturedLogs() as logs:
        site.wait(2 * BEAT)
        sent = len(site.hub.says("state"))
        for payload in heard:
            b.channel.heard(payload)
        site.wait(0.1)
    assert b.counted("rejected_total", reason="old") == len(heard)
    assert (b.heard(), b.counted("gateways"), weight_at(b)) == ([], peers, 2)
    assert len(site.hub.says("state")) == sent
    assert any("old notification" in formatEvent(event) for event in logs)


@pytest.mark.parametrize("again", ["another connection", "another process"])
def test_relay_repeated_messages_change_nothing_after_a_restart(
    pair: tuple[Gateway, Gateway], site: Site, again: str
) -> None:
    a, b = pair
    weigh(a, "1")
    b.channel.go()
    # These are not heard, and known to the stranger only.
    a.presence("machine", "M")
    weigh(a, "2")
    a.presence("machine", "M", connected=False)
    a.stop()
    heard = list(site.hub.sent)
    if again == "another process":
        b.die()
        b = site.gateway("hall b", "s")
    b.heard()
    b.channel.come()
    for payload in heard:
        b.channel.heard(payload)
    site.wait(4 * BEAT)
    assert b.counted("rejected_total", reason="old") == len(heard)
    assert b.heard() == []
    assert b.counted("gateways") == 0
    latest = b.live.latest("s")
    assert (latest and latest.weight) == (None if again == "another process" else 1)


def test_relay_message_that_crosses_the_hello_is_made_up_for(pair: tuple[Gateway, Gateway], site: Site) -> None:
    a, b = pair
    b.die()
    again = site.gateway("hall b", "s")
    a.weigh("s", "3")
    again.channel.come()
    with capturedLogs() as logs:
        site.wait(BEAT)
    assert again.counted("rejected_total", reason="old") == 1
    assert weight_at(again) == 3
    assert not any("notification" in (formatEvent(event) or "") for event in logs)


def test_relay_forged_messages_change_nothing(pair: tuple[Gateway, Gateway], site: Site) -> None:
    a, b = pair
    weigh(a, "1")
    weigh(a, "2")
    genuine = next(payload for payload in site.hub.sent if '"kg":"1"' in payload)
    body = genuine[MAC_LENGTH:].replace('"kg":"1"', '"kg":"9"')
    fresh = message("f", protocol.RECORDS)[MAC_LENGTH:]
    forgeries: list[str] = [
        genuine[:MAC_LENGTH] + body,
        body,
        "A" * MAC_LENGTH + body,
        genuine[:5] + body,
        sealed(fresh, b"l" * 32),
        "cylinder 4711",
    ]
    assert read(genuine)["say"] == "records"
    b.heard()
    with capturedLogs() as logs:
        for payload in forgeries:
            b.channel.heard(payload)
    assert b.counted("rejected_total", reason="foreign") == len(forgeries)
    assert (b.heard(), weight_at(b), b.counted("gateways")) == ([], 2, 1)
    lines = [formatEvent(event) or "" for event in logs]
    assert any("not of a gateway" in line for line in lines)
    # A stranger cannot write into the log.
    assert not any("4711" in line or '"kg"' in line for line in lines)


@pytest.mark.parametrize("spoil", [lambda payload: payload[:-1], lambda payload: payload[1:]])
def test_relay_cut_message_is_foreign(a: Gateway, spoil: Callable[[str], str]) -> None:
    a.channel.heard(spoil(message("f", protocol.HERE)))
    assert a.counted("rejected_total", reason="foreign") == 1
    assert a.counted("gateways") == 0
