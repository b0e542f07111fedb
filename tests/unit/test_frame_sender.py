"""Frame senders on a fake socket."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection

from gateway.web.clients.frames import FrameSender, ReactorTurns


class FakeSocket:
    """Socket that takes a limited number of bytes at a time.

    :ivar capacity: maximum bytes of one call; ``None`` raises an error, as a full socket does.
    """

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.capacity: int | None = 1000

    def send(self, data: bytes) -> int:
        if self.capacity is None:
            raise BlockingIOError
        self.sent.append(data[: self.capacity])
        return len(self.sent[-1])


class FakeConnection(Connection):
    """TCP transport without a reactor."""

    def __init__(self) -> None:
        self.socket: Any = FakeSocket()
        self.written: list[bytes] = []
        self.dataBuffer = b""
        self._tempDataBuffer: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._tempDataBuffer.append(data)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def transport() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def sender(clock: Clock, transport: FakeConnection) -> FrameSender:
    return FrameSender(transport, ReactorTurns(clock))


def test_first_frame_of_a_turn_is_sent_at_once_and_later_ones_are_collected(
    clock: Clock, transport: FakeConnection, sender: FrameSender
) -> None:
    for frame in (b"1", b"2", b"3"):
        sender.send(frame)
    assert (transport.socket.sent, transport.written) == ([b"1"], [b"2", b"3"])
    transport._tempDataBuffer.clear()
    clock.advance(0)
    sender.send(b"4")
    assert transport.socket.sent == [b"1", b"4"]


@pytest.mark.parametrize(("capacity", "remainder"), [(2, b"cd"), (0, b"abcd"), (None, b"abcd")])
def test_bytes_that_the_socket_did_not_take_go_to_the_transport(
    transport: FakeConnection, sender: FrameSender, capacity: int | None, remainder: bytes
) -> None:
    transport.socket.capacity = capacity
    sender.send(b"abcd")
    assert transport.written == [remainder]


def test_frame_does_not_overtake_unsent_bytes(clock: Clock, transport: FakeConnection, sender: FrameSender) -> None:
    transport._tempDataBuffer.append(b"unsent")
    sender.send(b"1")
    clock.advance(0)
    sender.send(b"2")
    assert (transport.socket.sent, transport.written) == ([], [b"1", b"2"])


def test_frame_after_the_begin_of_a_close_is_dropped(transport: FakeConnection, sender: FrameSender) -> None:
    sender.is_open = False
    sender.send(b"1")
    assert (transport.socket.sent, transport.written) == ([], [])


def test_transport_other_than_tcp_gets_every_frame(clock: Clock) -> None:
    class Transport:
        def __init__(self) -> None:
            self.written: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.written.append(data)

    transport = Transport()
    sender = FrameSender(transport, ReactorTurns(clock))
    sender.send(b"1")
    assert transport.written == [b"1"]


def test_turns_are_counted_only_after_a_question(clock: Clock) -> None:
    turns = ReactorTurns(clock)
    clock.advance(0)
    assert turns.number == 0
    assert (turns.current(), turns.current()) == (0, 0)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert turns.number == 1
