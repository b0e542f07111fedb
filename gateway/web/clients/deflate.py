"""permessage-deflate (RFC 7692) for broadcasts: a message is compressed once for all clients.

Therefore neither side may keep a compression context between messages. That compresses slightly less, but saves the
300 KB that zlib needs for the context of each client.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Final

from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from gateway.web.clients.autobahn_internals import frame_payload

#: Window, in bits, of clients that accept a smaller one: their messages are short, and zlib keeps 1 KB instead of 32.
_CLIENT_WINDOW: Final = 10

#: Minimum and maximum bytes of a message that is compressed: a larger one would take the reactor more than 1 ms.
_MIN_COMPRESSED: Final = 200
_MAX_COMPRESSED: Final = 64 * 1024

#: RSV1, the bit that marks a compressed message.
_RSV1: Final = 0x40


class _AcceptWithoutContext(PerMessageDeflateOfferAccept):
    """Acceptance without contexts, which a server may add unasked (RFC 7692, 7.1.1.1 and 7.1.1.2)."""

    def get_extension_string(self) -> str:
        parameters = [self.EXTENSION_NAME, "server_no_context_takeover", "client_no_context_takeover"]
        if self.offer.request_max_window_bits:
            parameters.append(f"server_max_window_bits={self.offer.request_max_window_bits}")
        if self.request_max_window_bits:
            parameters.append(f"client_max_window_bits={self.request_max_window_bits}")
        return "; ".join(parameters)


def accept_offer(max_message: int, offers: Sequence[Any]) -> _AcceptWithoutContext | None:
    """Return the answer to a client that offers extensions; Autobahn calls this.

    :param max_message: maximum bytes of a client's message, decompressed.
    """
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return _AcceptWithoutContext(
                offer,
                request_max_window_bits=_CLIENT_WINDOW if offer.accept_max_window_bits else 0,
                no_context_takeover=True,
                max_message_size=max_message,
            )
    return None


def acceptable_offer(offer: tuple[str, Any]) -> tuple[str, Any] | None:
    """Return an offered extension, possibly changed; ``None`` for a compression that cannot be accepted."""
    name, parameters = offer
    if name != PerMessageDeflate.EXTENSION_NAME:
        return offer
    hint = parameters.get("client_max_window_bits", [True])
    if len(hint) == 1 and hint[0] in {"8", "9"}:
        # The client's window is smaller than ours: without an answer it keeps its own.
        parameters = {key: value for key, value in parameters.items() if key != "client_max_window_bits"}
    try:
        PerMessageDeflateOffer.parse(parameters)
    except Exception:  # Autobahn raises nothing more exact
        return None
    return name, parameters


def server_window(extensions: Sequence[Any]) -> int:
    """Return the window for messages to a client, in bits; 0 if they must not be compressed.

    :param extensions: extensions in use.
    """
    return next((found.server_max_window_bits for found in extensions if isinstance(found, PerMessageDeflate)), 0)


def is_worth_compressing(text: bytes) -> bool:
    """Return whether a message of this size is compressed for clients that support it."""
    return _MIN_COMPRESSED <= len(text) <= _MAX_COMPRESSED


def frame_message(text: bytes, window: int = 0, *, binary: bool = False) -> bytes:
    """Return a message as one frame of a server.

    :param window: window of the compression, in bits; 0 for no compression.
    """
    if window and is_worth_compressing(text):
        compressor = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -window)
        # Without the empty block at the end, which every message would have (RFC 7692, 7.2.1).
        compressed = (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        if len(compressed) < len(text):
            frame = frame_payload(compressed, binary)
            return bytes([frame[0] | _RSV1]) + frame[1:]
    return frame_payload(text, binary)
