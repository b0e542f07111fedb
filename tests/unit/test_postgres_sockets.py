"""Sockets that another owner closes and replaces, watched by the real reactor."""

import socket

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.trial.unittest import TestCase

from gateway.store.postgres.sockets import WatchingReactor, _Watcher


class Selectable:
    """Selectable like a connection of txpostgres, whose socket belongs to libpq."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.heard: Deferred[bytes] = Deferred()

    def fileno(self) -> int:
        return self.ours.fileno()

    def logPrefix(self) -> str:
        return "test"

    def doRead(self) -> object:
        if self.fileno() == -1:
            return CONNECTION_LOST
        self.heard.callback(self.ours.recv(10))
        return None

    def connectionLost(self, reason: object) -> None:
        """Ignore the end."""

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class WatchTests(TestCase):
    def setUp(self) -> None:
        self.watching = WatchingReactor(reactor)
        self.selectable = Selectable()
        self.addCleanup(self.selectable.close)

    def watched(self) -> int:
        return sum(isinstance(each, _Watcher) for each in reactor.getReaders())

    async def test_watching_reactor_reports_received_bytes(self) -> None:
        self.watching.addReader(self.selectable)
        self.selectable.theirs.send(b"x")
        self.assertEqual(await self.selectable.heard, b"x")
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)

    async def test_watching_reactor_closed_socket_does_not_block_its_descriptor(self) -> None:
        self.watching.addReader(self.selectable)
        self.selectable.close()
        # Most likely it gets the same descriptors.
        other = Selectable()
        self.addCleanup(other.close)
        watching = WatchingReactor(reactor)
        watching.addReader(other)
        other.theirs.send(b"y")
        self.assertEqual(await other.heard, b"y")
        watching.forget()
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)

    async def test_watching_reactor_replaced_socket_is_watched(self) -> None:
        self.watching.addReader(self.selectable)
        before = self.selectable.ours, self.selectable.theirs
        self.selectable.ours, self.selectable.theirs = socket.socketpair()
        for each in before:
            each.close()
        self.watching.addReader(self.selectable)
        self.assertEqual(self.watched(), 1)
        self.selectable.theirs.send(b"z")
        self.assertEqual(await self.selectable.heard, b"z")
        self.watching.forget()
        self.assertEqual(self.watched(), 0)

    def test_watching_reactor_closed_socket_is_not_watched(self) -> None:
        self.selectable.close()
        self.watching.addReader(self.selectable)
        self.watching.addWriter(self.selectable)
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)
