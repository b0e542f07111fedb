"""permessage-deflate (RFC 7692): negotiation and frames."""

import random
import zlib
from typing import Any

import pytest
from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer

from gateway.web.clients.deflate import accept_offer, acceptable_offer, frame_message, server_window

CHANCE = random.Random(1)


def payload_of(frame: bytes) -> tuple[int, bytes]:
    """Return the first byte of a frame, and its payload."""
    extended = {126: 2, 127: 8}.get(frame[1], 0)
    size = int.from_bytes(frame[2 : 2 + extended]) if extended else frame[1]
    payload = frame[2 + extended :]
    assert len(payload) == size
    return frame[0], payload


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ({}, ""),
        ({"client_max_window_bits": [True]}, "; client_max_window_bits=10"),
        ({"server_max_window_bits": ["9"]}, "; server_max_window_bits=9"),
        ({"server_no_context_takeover": [True], "client_no_context_takeover": [True]}, ""),
    ],
)
def test_accept_offer_answers_without_context_takeover(offer: dict[str, Any], answer: str) -> None:
    found = accept_offer(1000, [object(), PerMessageDeflateOffer.parse(offer)])
    assert found is not None
    begin = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    assert found.get_extension_string() == begin + answer


@pytest.mark.parametrize(
    ("offered", "sound"),
    [
        ({}, {}),
        ({"client_max_window_bits": [True]}, {"client_max_window_bits": [True]}),
        ({"client_max_window_bits": ["10"]}, {"client_max_window_bits": ["10"]}),
        # Smaller than the window that the gateway requests.
        ({"client_max_window_bits": ["9"]}, {}),
        ({"client_max_window_bits": ["8"]}, {}),
        ({"server_max_window_bits": ["9"]}, {"server_max_window_bits": ["9"]}),
        # zlib has no such window.
        ({"server_max_window_bits": ["8"]}, None),
        ({"server_max_window_bits": ["16"]}, None),
        ({"server_max_window_bits": ["9", "10"]}, None),
        ({"something": [True]}, None),
    ],
)
def test_acceptable_offer_declines_invalid_parameters(offered: dict[str, Any], sound: dict[str, Any] | None) -> None:
    expected = None if sound is None else ("permessage-deflate", sound)
    assert acceptable_offer(("permessage-deflate", offered)) == expected


def test_acceptable_offer_returns_other_extensions_unchanged() -> None:
    assert acceptable_offer(("something", {"else": [True]})) == ("something", {"else": [True]})


def test_accept_offer_without_offers_is_none() -> None:
    assert accept_offer(1000, []) is None


@pytest.mark.parametrize("window", range(9, 16))
@pytest.mark.parametrize("size", [200, 300, 5000, 64 * 1024])
def test_compressed_message_is_readable_without_context(window: int, size: int) -> None:
    text = b"".join(b'{"data":%d},' % CHANCE.randrange(1000) for _ in range(size))[:size]
    first, payload = payload_of(frame_message(text, window))
    assert first == 0x80 | 0x40 | 1
    assert len(payload) < size
    # A decompressor with the agreed window, and without a context.
    assert zlib.decompressobj(-window).decompress(payload + b"\0\0\xff\xff") == text


@pytest.mark.parametrize("text", [b"", b"short", b"x" * 199, b"x" * (64 * 1024 + 1), CHANCE.randbytes(1000)])
def test_short_long_or_random_message_is_not_compressed(text: bytes) -> None:
    assert payload_of(frame_message(text, 15)) == (0x81, text)


def test_message_without_a_window_is_not_compressed() -> None:
    assert payload_of(frame_message(b"x" * 1000)) == (0x81, b"x" * 1000)
    assert payload_of(frame_message(b"x" * 1000, binary=True)) == (0x82, b"x" * 1000)
    assert server_window([]) == 0


def test_server_window_is_the_agreed_one() -> None:
    for offer, window in (({}, 15), ({"server_max_window_bits": ["11"]}, 11)):
        accept = accept_offer(1000, [PerMessageDeflateOffer.parse(offer)])
        assert server_window([PerMessageDeflate.create_from_offer_accept(True, accept)]) == window
