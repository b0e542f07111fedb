"""Fence around Autobahn's private names: they exist, and only one module uses them."""

from pathlib import Path
from typing import Any

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import PreparedMessage

from gateway.web.clients.autobahn_internals import OpenWebSocketProtocol, frame_payload

ROOT = Path(__file__).parent.parent.parent
FENCE = ROOT / "gateway" / "web" / "clients" / "autobahn_internals.py"

NAMES = {"_parseExtensionsHeader", "payloadHybi"}


def test_protocol_has_the_private_parser_of_extensions() -> None:
    assert callable(WebSocketServerProtocol._parseExtensionsHeader)


def test_filter_offer_sees_each_offered_extension_and_can_decline_it() -> None:
    class Protocol(OpenWebSocketProtocol):
        def filter_offer(self, offer: tuple[str, Any]) -> tuple[str, Any] | None:
            return None if offer[0] == "a" else (offer[0], {**offer[1], "changed": [True]})

    assert Protocol()._parseExtensionsHeader("a; x=1, b; y=2") == [("b", {"y": ["2"], "changed": [True]})]
    unchanged = [("a", {"x": ["1"]}), ("b", {})]
    assert OpenWebSocketProtocol()._parseExtensionsHeader("a; x=1, b") == unchanged


def test_state_changed_is_called_for_each_state_that_autobahn_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[bool] = []
    protocol = OpenWebSocketProtocol()
    monkeypatch.setattr(protocol, "state_changed", changes.append)
    protocol.state = protocol.STATE_OPEN
    protocol.state = protocol.STATE_CLOSING
    assert (changes, protocol.state) == ([True, False], protocol.STATE_CLOSING)


def test_frame_payload_is_a_whole_frame_of_a_server() -> None:
    assert frame_payload(b"text", False) == b"\x81\x04text"
    assert frame_payload(b"x" * 200, True) == b"\x82\x7e\x00\xc8" + b"x" * 200
    assert hasattr(PreparedMessage(b"", True, False, True), "payloadHybi")


def test_factory_accepts_the_options_that_the_gateway_sets() -> None:
    factory = WebSocketServerFactory()
    assert {"perMessageCompressionAccept", "autoPingRestartOnAnyTraffic", "closeHandshakeTimeout"} <= set(vars(factory))


def test_no_other_module_uses_the_private_names() -> None:
    used = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "gateway").rglob("*.py")
        if path != FENCE
        for name in NAMES
        if name in path.read_text("utf-8")
    }
    assert used == set()
