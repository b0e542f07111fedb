"""Packets of Engine.IO and Socket.IO."""

import contextlib
import math
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.web.socketio.packets import (
    EnginePacketType,
    IgnoredPacket,
    Outgoing,
    PacketError,
    SocketMessage,
    SocketPacketType,
    encode,
    parse_message,
    parse_packet,
    parse_packets,
    payload,
)

COMPLETE = {
    "0": SocketMessage(SocketPacketType.CONNECT),
    '0{"token":"x"}': SocketMessage(SocketPacketType.CONNECT, data={"token": "x"}),
    "0/custom": SocketMessage(SocketPacketType.CONNECT, "/custom"),
    "0/custom,": SocketMessage(SocketPacketType.CONNECT, "/custom"),
    "0/a b/한글,": SocketMessage(SocketPacketType.CONNECT, "/a b/한글"),
    '0/custom?token=x,{"a":1}': SocketMessage(SocketPacketType.CONNECT, "/custom", {"a": 1}),
    "0[]": SocketMessage(SocketPacketType.CONNECT),
    '0/custom,"x"': SocketMessage(SocketPacketType.CONNECT, "/custom"),
    "0/custom?token=a,b": SocketMessage(SocketPacketType.CONNECT, "/custom"),
    "0/custom?token=a,b,": SocketMessage(SocketPacketType.CONNECT, "/custom"),
    "0/custom?a=/b?c,5": SocketMessage(SocketPacketType.CONNECT, "/custom"),
    '0/custom?token=a,b,{"a":",{"}': SocketMessage(SocketPacketType.CONNECT, "/custom", {"a": ",{"}),
    '2/custom?token=a,b,12["a,[b"]': SocketMessage(SocketPacketType.EVENT, "/custom", ["a,[b"], 12),
    "1": SocketMessage(SocketPacketType.DISCONNECT),
    "1[]": SocketMessage(SocketPacketType.DISCONNECT),
    "1/custom,": SocketMessage(SocketPacketType.DISCONNECT, "/custom"),
    '2["event"]': SocketMessage(SocketPacketType.EVENT, data=["event"]),
    '2["event",1,"2",{"3":[true]}]': SocketMessage(SocketPacketType.EVENT, data=["event", 1, "2", {"3": [True]}]),
    '212["event"]': SocketMessage(SocketPacketType.EVENT, data=["event"], ack=12),
    '2/custom,12["a,b",null]': SocketMessage(SocketPacketType.EVENT, "/custom", ["a,b", None], 12),
    "3/custom,7[]": SocketMessage(SocketPacketType.ACK, "/custom", [], 7),
    '50-["event"]': SocketMessage(SocketPacketType.EVENT, data=["event"]),
    # JSON that JavaScript and the old server accept, but orjson does not.
    '2["event","\\ud83d",1e999]': SocketMessage(SocketPacketType.EVENT, data=["event", "\ud83d", math.inf]),
    '2["event",Infinity,NaN]': SocketMessage(SocketPacketType.EVENT, data=["event", math.inf, ANY]),
    '0/custom,{"token":"\\ud83d"}': SocketMessage(SocketPacketType.CONNECT, "/custom", {"token": "\ud83d"}),
    '2/custom,1234567890123456["event"]': SocketMessage(SocketPacketType.EVENT, "/custom", ["event"], 1234567890123456),
}


@pytest.mark.parametrize("text", COMPLETE)
def test_parse_message_of_a_complete_packet(text: str) -> None:
    assert parse_message(text) == COMPLETE[text]


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "-1", "abc", "²", "2", "2{}", "2[]", "2[1]", "2null", '2"event"', '2["event"', "2[NaN]"),
        *("0null,", "0/a,null1", "3", "3{}", '4{"message":"x"}', "5", '5["event"]', '2-["event"]'),
        *('51["event"]', '511-["event"]', '5-["event"]', '50-["event",{"_placeholder":true,"num":0}]'),
        *('2["disconnect"]', '2["connect_error",1]', '2abc["event"]', "2" + "9" * 101 + '["event"]'),
        "2" + "[" * 100_000,
    ],
)
def test_parse_message_of_invalid_text_raises_packet_error(text: str) -> None:
    with pytest.raises(PacketError):
        parse_message(text)


@pytest.mark.parametrize("text", ["abc", "", "2", "2{}", '2["event"', "²", "-1"])
def test_packet_that_closes_the_session_is_not_ignored(text: str) -> None:
    """Socket.IO's own server closes the session for these."""
    with pytest.raises(PacketError) as raised:
        parse_message(text)
    assert isinstance(raised.value, IgnoredPacket) == (text == "")


def test_event_nested_too_deep_is_ignored() -> None:
    with pytest.raises(IgnoredPacket):
        parse_message('2["event",' + "[" * 100_000 + "]" * 100_001)


@pytest.mark.parametrize(
    "text", ["7", "9[]", '4{"message":"x"}', "0x", "3{}", "3x", "2[]", "2[1]", '5["event"]', '511-["a"]']
)
def test_packet_that_the_old_server_ignored_is_ignored(text: str) -> None:
    with pytest.raises(IgnoredPacket):
        parse_message(text)


@pytest.mark.parametrize("rest", ["", ",", ",x", "," * 50_000, "?" * 50_000, ",5" * 50_000, ",1" + "2" * 50_000])
def test_long_query_is_parsed_in_linear_time(rest: str) -> None:
    """A pattern that backtracks at each comma would take hours."""
    assert parse_message(f"0/custom?token=a{rest}") == SocketMessage(SocketPacketType.CONNECT, "/custom")


def test_attachments_replace_their_placeholders() -> None:
    message = parse_message('52-/custom,3["event",{"_placeholder":true,"num":1},[{"a":{"_placeholder":true,"num":0}}]]')
    assert message.missing == 2
    message.attach(b"zero")
    assert message.missing == 1
    message.attach(b"one")
    assert message == SocketMessage(
        SocketPacketType.EVENT, "/custom", ["event", b"one", [{"a": b"zero"}]], 3, attachments=[b"zero", b"one"]
    )


@pytest.mark.parametrize("number", ["1", "-1", "true", '"0"', "0.0", "null"])
def test_placeholder_without_an_attachment_is_refused(number: str) -> None:
    message = parse_message(f'51-["event",{{"_placeholder":true,"num":{number}}}]')
    with pytest.raises(PacketError):
        message.attach(b"zero")


def test_placeholder_nested_too_deep_is_refused() -> None:
    message = parse_message('51-["event",' + "[" * 900 + '{"_placeholder":true,"num":0}' + "]" * 900 + "]")
    with pytest.raises(PacketError):
        message.attach(b"zero")


def contents(*arguments: Any, **options: Any) -> list[bytes]:
    return [packet.content for packet in encode(*arguments, **options)]


def test_encode_writes_text_and_attachments() -> None:
    assert contents(SocketPacketType.CONNECT, "/", {"sid": "x"}) == [b'40{"sid":"x"}']
    assert contents(SocketPacketType.DISCONNECT, "/custom") == [b"41/custom,"]
    assert contents(SocketPacketType.EVENT, "/한글", ["event", "값"]) == ['42/한글,["event","값"]'.encode()]
    assert contents(SocketPacketType.ACK, "/custom", [], 7) == [b"43/custom,7[]"]
    assert contents(SocketPacketType.EVENT, "/", ["event", b"zero", {"a": [bytearray(b"one")]}]) == [
        b'452-["event",{"_placeholder":true,"num":0},{"a":[{"_placeholder":true,"num":1}]}]',
        b"zero",
        b"one",
    ]
    assert contents(SocketPacketType.ACK, "/", [b"zero"], 7)[0] == b'461-7[{"_placeholder":true,"num":0}]'
    with pytest.raises(TypeError):
        encode(SocketPacketType.EVENT, "/", ["event", object()])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(JSON, max_size=3),
    st.sampled_from(["/", "/custom", "/sio/한글 기계"]),
    st.none() | st.integers(0, 10**15 - 1),
)
def test_encoded_packet_is_parsed_back(arguments: list[Any], namespace: str, ack: int | None) -> None:
    first, *attachments = encode(SocketPacketType.EVENT, namespace, ["event", *arguments], ack)
    if len(attachments) > 10:
        return
    kind, text = parse_packet(first.content)
    assert kind is EnginePacketType.MESSAGE
    message = parse_message(text)
    for attachment in attachments:
        assert message.missing
        assert attachment.binary
        message.attach(attachment.content)
    assert (message.missing, message.namespace, message.ack) == (0, namespace, ack)
    assert message.data == ["event", *arguments]


@given(st.text(alphabet='0123456789-/,[]{}"aeb\\\x1e\n²', max_size=40) | st.text())
def test_any_text_is_a_packet_or_an_error(text: str) -> None:
    with contextlib.suppress(PacketError):
        parse_message(text)


@given(st.binary(max_size=60))
def test_any_body_is_packets_or_an_error(body: bytes) -> None:
    with contextlib.suppress(PacketError):
        list(parse_packets(body))


def test_parse_packets_splits_a_body() -> None:
    assert list(parse_packets(b"4hello\x1ebAQIDBA==\x1e3")) == [
        (EnginePacketType.MESSAGE, "hello"),
        (EnginePacketType.MESSAGE, b"\1\2\3\4"),
        (EnginePacketType.PONG, ""),
    ]
    assert payload([Outgoing(b"4hello"), Outgoing(b"\1\2\3\4", binary=True)]) == b"4hello\x1ebAQIDBA=="
    assert list(parse_packets(b"")) == []
    for body in (b"abc", b"4a\x1e", b"b!", b"bA", b"4\xff"):
        with pytest.raises(PacketError):
            list(parse_packets(body))


def test_parse_packets_skips_only_ignored_packets() -> None:
    ignored: list[IgnoredPacket] = []
    body = b"4a\x1eb!\x1e7\x1e4\xff\x1ebA\x1e4b"
    assert list(parse_packets(body, ignored.append)) == [
        (EnginePacketType.MESSAGE, "a"),
        (EnginePacketType.MESSAGE, "b"),
    ]
    assert len(ignored) == 4


def test_outgoing_packet_is_made_when_it_is_sent() -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"4late"

    packet = Outgoing(make, cost=50)
    assert (packet.cost, made) == (50, [])
    assert (packet.frame, packet.polled, packet.content) == (b"\x81\x054late", b"4late", b"4late")
    assert made == [1]
