"""permessage-deflate (RFC 7692) for broadcasts: a message is compressed once, however many clients get it.

So no client's messages may refer to those before them, on neither side: that costs some compression, and saves each
client the 300 KB that zlib takes for a context.
"""

import zlib
from collections.abc import Sequence
from typing import Any, Final

from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from autobahn.websocket.protocol import PreparedMessage

#: The window of clients that leave it to us: what they send is short, and zlib keeps 1 KB for each instead of 32.
_CLIENT_WINDOW: Final = 10

#: Bytes of a message that is worth compressing, and of one for which the reactor has no time: 64 KiB take 1 ms.
_LEAST: Final = 200
_MOST: Final = 64 * 1024

#: RSV1, which says that a message is compressed.
_RSV1: Final = 0x40


class _Accept(PerMessageDeflateOfferAccept):
    """Says that neither side keeps a context. A server may say so unasked (RFC 7692, 7.1.1.1 and 7.1.1.2)."""

    def get_extension_string(self) -> str:
        parameters = [self.EXTENSION_NAME, "server_no_context_takeover", "client_no_context_takeover"]
        if self.offer.request_max_window_bits:
            parameters.append(f"server_max_window_bits={self.offer.request_max_window_bits}")
        if self.request_max_window_bits:
            parameters.append(f"client_max_window_bits={self.request_max_window_bits}")
        return "; ".join(parameters)


def acceptance(most: int, offers: Sequence[Any]) -> _Accept | None:
    """What to answer a client that offers extensions; Autobahn asks.

    :param most: bytes of a client's message, decompressed.
    """
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return _Accept(
                offer,
                request_max_window_bits=_CLIENT_WINDOW if offer.accept_max_window_bits else 0,
                no_context_takeover=True,
                max_message_size=most,
            )
    return None


def sound_offer(offer: Any) -> Any:
    """An offered extension; None where it is a compression that cannot be accepted."""
    name, parameters = offer
    if name != PerMessageDeflate.EXTENSION_NAME:
        return offer
    hint = parameters.get("client_max_window_bits", [True])
    if len(hint) == 1 and hint[0] in {"8", "9"}:
        # Smaller than what we would ask for: no answer leaves the client its own.
        parameters = {key: value for key, value in parameters.items() if key != "client_max_window_bits"}
    try:
        PerMessageDeflateOffer.parse(parameters)
    except Exception:  # Autobahn raises nothing more exact
        return None
    return name, parameters


def window_of(extensions: Sequence[Any]) -> int:
    """The window, in bits, of what a client is sent; 0 where nothing may be compressed.

    :param extensions: that are in use.
    """
    return next((each.server_max_window_bits for each in extensions if isinstance(each, PerMessageDeflate)), 0)


def is_worth_compressing(text: bytes) -> bool:
    """Whether a message of this size is compressed for who wants that."""
    return _LEAST <= len(text) <= _MOST


def framed(text: bytes, window: int = 0, *, binary: bool = False) -> bytes:
    """A message as one frame of a server.

    :param window: of the compression, in bits; 0 is none.
    """
    if window and is_worth_compressing(text):
        compressor = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -window)
        # Without the empty block at the end, which every message would have (RFC 7692, 7.2.1).
        smaller = (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        if len(smaller) < len(text):
            frame = _plain(smaller, binary)
            return bytes([frame[0] | _RSV1]) + frame[1:]
    return _plain(text, binary)


def _plain(text: bytes, binary: bool) -> bytes:
    frame: bytes = PreparedMessage(text, binary, False, True).payloadHybi
    return frame
