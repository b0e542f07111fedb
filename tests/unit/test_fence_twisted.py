"""Fence around Twisted's private names: they exist, and only one module uses them."""

import re
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from gateway.web.http.twisted_internals import has_sent_all, send_at_once, unread_bytes

ROOT = Path(__file__).parent.parent.parent
FENCE = ROOT / "gateway" / "web" / "http" / "twisted_internals.py"

#: Private and undocumented names of Twisted that the gateway may use in the fenced module.
TRANSPORT_NAMES = {"dataBuffer", "offset", "_tempDataBuffer", "_tempDataLen"}
CHANNEL_NAMES = {
    "_buffer",
    "_handlingRequest",
    "_networkProducer",
    "_receivedHeaderCount",
    "_receivedHeaderSize",
    "_waitingForTransport",
}
METHODS = [
    (HTTPChannel, "_respondToBadRequestAndDisconnect"),
    (Request, "_handleStar"),
    (Connection, "writeSomeData"),
]
#: Names that are too common to be searched for in other modules.
COMMON = {"_buffer", "offset"}


class PlainSite(Site):
    protocol: Any = HTTPChannel


def channel() -> Any:
    channel = PlainSite(Resource(), reactor=Clock()).buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
    channel.makeConnection(StringTransport())
    return channel


@pytest.mark.parametrize("name", sorted(CHANNEL_NAMES))
def test_channel_has_private_name(name: str) -> None:
    assert hasattr(channel(), name)


@pytest.mark.parametrize("name", sorted(TRANSPORT_NAMES))
def test_tcp_transport_has_private_name(name: str) -> None:
    assert hasattr(FileDescriptor(), name)


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_class_has_private_method(owner: type, name: str) -> None:
    assert callable(getattr(owner, name))


class MalformedError(Exception):
    pass


def test_channel_calls_the_private_method_for_a_malformed_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: HTTPChannel) -> None:
        raise MalformedError

    monkeypatch.setattr(HTTPChannel, "_respondToBadRequestAndDisconnect", refuse)
    with pytest.raises(MalformedError):
        channel().dataReceived(b"nonsense\r\n\r\n")


def test_transport_functions_read_the_buffers_of_a_file_descriptor() -> None:
    transport = FileDescriptor()
    transport.connected = True
    transport.fileno = lambda: -1  # type: ignore[method-assign]  # no socket
    transport.startWriting = lambda: None  # type: ignore[method-assign]  # no reactor
    assert has_sent_all(transport)
    transport.write(b"12345")
    assert not has_sent_all(transport)
    assert unread_bytes(transport) == 5


def test_send_at_once_returns_the_bytes_that_the_socket_did_not_take() -> None:
    class Transport:
        def __init__(self, result: object) -> None:
            self.result = result

        def writeSomeData(self, data: bytes) -> object:
            return self.result

    assert send_at_once(Transport(2), b"abc") == b"c"
    assert send_at_once(Transport(ConnectionError()), b"abc") == b"abc"


def test_no_other_module_uses_the_private_names() -> None:
    names = (TRANSPORT_NAMES | CHANNEL_NAMES | {name for _, name in METHODS}) - COMMON
    used = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "gateway").rglob("*.py")
        if path != FENCE
        # A comment may name them.
        for name in re.findall(r"\.(\w+)", re.sub(r"#.*", "", path.read_text("utf-8")))
        if name in names
    }
    assert used == set()
