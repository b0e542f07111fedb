"""Authentication of the messages between gateways: an HMAC with their common key, and refusal of old messages.

Every login of a database may listen and notify, so a stranger can copy a message and send it again. Therefore a message
carries its number, which rises, and its moment: the number of the latest transaction of the server that its sender knew
of. The server counts these up and never back, unlike a clock. A message whose moment is not older than this gateway's
LISTEN was written while this gateway listened, which has thus heard it, and knows its number if it is sent again.
"""

import hmac
from base64 import urlsafe_b64encode
from collections import OrderedDict
from typing import Final

from gateway.relay.protocol import MAC_LENGTH, RelayMessage
from gateway.wire.errors import WireError

#: Maximum senders whose last numbers are remembered: all that were heard since the LISTEN, restarts included.
MAX_SENDERS: Final = 10_000


class ForeignMessage(WireError):
    """Error for a message that is not of a gateway with the key."""


class OldMessage(WireError):
    """Error for a message that was sent before, or before this gateway listened."""


class MessageGuard:
    """Sealing of the messages of this gateway, and admission of those that arrive.

    :ivar moment: number of the latest transaction of the server that is known.
    """

    def __init__(self, max_senders: int = MAX_SENDERS) -> None:
        self._max_senders = max_senders
        self._key: bytes | None = None
        self.moment = 0
        #: Minimum moment of a message.
        self._floor = 0
        #: Number and moment of the last message by the token of its sender, the most recent sender last.
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def restart(self, key: bytes, moment: int) -> None:
        """Begin anew with a connection that listens.

        :param key: key of the gateways.
        :param moment: number of a transaction that began after the LISTEN.
        """
        self._key = key
        self.moment = self._floor = moment
        # Their messages are too old now.
        self._last.clear()

    def note_moment(self, moment: int) -> None:
        """Note the number of a transaction of the server."""
        self.moment = max(self.moment, moment)

    def seal(self, body: str) -> str:
        """Return the payload of a message."""
        return self._code_of(body.encode("ascii")) + body

    def open(self, payload: str) -> str:
        """Return the message in a payload.

        :raises ForeignMessage: it was not sealed with the key.
        """
        # A stranger's payload may be any text; characters that UTF-8 cannot encode spoil the code.
        code, body = payload[:MAC_LENGTH].encode("utf-8", "replace"), payload[MAC_LENGTH:]
        if not hmac.compare_digest(code, self._code_of(body.encode("utf-8", "replace")).encode("ascii")):
            raise ForeignMessage("its code was not made with the key of the gateways")
        return body

    def admit(self, message: RelayMessage) -> None:
        """Note a message that was opened.

        :raises OldMessage: it was sent before, or may have been sent before this gateway listened.
        """
        number, _ = self._last.get(message.token, (0, 0))
        if message.moment < self._floor:
            raise OldMessage("it may have been sent before this gateway listened")
        if message.number <= number:
            raise OldMessage("it has been sent before")
        self._last[message.token] = message.number, message.moment
        self._last.move_to_end(message.token)
        self.note_moment(message.moment)
        if len(self._last) > self._max_senders:
            # All messages of the forgotten sender are older than this.
            _, (_, moment) = self._last.popitem(last=False)
            self._floor = max(self._floor, moment + 1)

    def _code_of(self, body: bytes) -> str:
        if self._key is None:
            raise ForeignMessage("the key of the gateways is not known yet")
        return urlsafe_b64encode(hmac.digest(self._key, body, "sha256")[:16])[:MAC_LENGTH].decode("ascii")
