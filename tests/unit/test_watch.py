"""Sockets that somebody else closes and changes, watched by the real reactor."""

import socket

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.trial.unittest import TestCase

from gateway.store.postgres.sockets import WatchingReactor, _Watcher


class Selectable:
    """As a connection of txpostgres: its socket is libpq's."""

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
        """Nobody is told."""

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class WatchTests(TestCase):
    def setUp(self) -> None:
        self.watching = WatchingReactor(reactor)
        self.selectable = Selectable()
        self.addCleanup(self.selectable.close)

    def watched(self) -> int:
        return sum(isinstance(each, _Watcher) for each in reactor.getReaders())  # type: ignore[attr-defined]  # its module

    async def test_what_comes_is_told(self) -> None:
        self.watching.addReader(self.selectable)
        self.selectable.theirs.send(b"x")
        self.assertEqual(await self.selectable.heard, b"x")
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)

    async def test_a_socket_that_was_closed_behind_our_back_leaves_its_number_to_others(self) -> None:
        self.watching.addReader(self.selectable)
        self.selectable.close()
        # Most likely it gets the same numbers.
        other = Selectable()
        self.addCleanup(other.close)
        watching = WatchingReactor(reactor)
        watching.addReader(other)
        other.theirs.send(b"y")
        self.assertEqual(await other.heard, b"y")
        watching.forget()
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)

    async def test_a_socket_that_was_changed_is_the_one_that_is_watched(self) -> None:
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

    def test_a_closed_one_is_not_watched(self) -> None:
        self.selectable.close()
        self.watching.addReader(self.selectable)
        self.watching.addWriter(self.selectable)
        self.watching.removeReader(self.selectable)
        self.assertEqual(self.watched(), 0)
