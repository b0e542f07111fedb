"""Names of Autobahn that have no documented replacement.

Only this module uses them. A test fails when one of them is missing in the installed Autobahn.
"""

from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import PreparedMessage


def frame_payload(payload: bytes, binary: bool) -> bytes:
    """Return one server frame with a payload, which may already be compressed."""
    frame: bytes = PreparedMessage(payload, binary, False, True).payloadHybi
    return frame


class OpenWebSocketProtocol(WebSocketServerProtocol):
    """Server side of a WebSocket, with hooks for offered extensions and for the state of the connection."""

    _state: int = WebSocketServerProtocol.STATE_CONNECTING

    @property
    def state(self) -> int:
        """State of the connection, as Autobahn numbers it."""
        return self._state

    @state.setter
    def state(self, state: int) -> None:
        self._state = state
        self.state_changed(state == self.STATE_OPEN)

    def state_changed(self, is_open: bool) -> None:
        """Handle a change of state; the connection is open until either side begins to close it."""

    def filter_offer(self, offer: tuple[str, Any]) -> tuple[str, Any] | None:
        """Return an offered extension, possibly changed; ``None`` to decline it."""
        return offer

    def _parseExtensionsHeader(self, header: str, removeQuotes: bool = True) -> Any:
        # RFC 7692, 5.1, declines an offer that is not acceptable; Autobahn would refuse the client.
        offers = super()._parseExtensionsHeader(header, removeQuotes)
        return list(filter(None, map(self.filter_offer, offers)))
