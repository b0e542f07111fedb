"""Watching the sockets of libpq, which closes and changes them as it likes.

A reactor must not be left with a number of a socket that was closed behind its back: the next connection of somebody
else may get that number, and nobody would hear of it. So what is watched is a copy of the descriptor, which is ours to
close.
"""

import os
from typing import Any, Final

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: What Twisted takes for a descriptor that is closed.
_CLOSED: Final = -1


@implementer(IReadWriteDescriptor)
class _Watcher:
    """A copy of a descriptor, and who is told what happens to it."""

    def __init__(self, selectable: Any, file: int) -> None:
        self._selectable = selectable
        self._file = os.dup(file)
        self.identity = _identity(file)
        self.reads = False
        self.writes = False

    def fileno(self) -> int:
        return self._file

    def logPrefix(self) -> str:
        return str(self._selectable.logPrefix())

    def doRead(self) -> Any:
        return self._selectable.doRead()

    def doWrite(self) -> Any:
        return self._selectable.doWrite()

    def connectionLost(self, reason: Failure) -> None:
        self._selectable.connectionLost(reason)

    def close(self) -> None:
        if self._file != _CLOSED:
            os.close(self._file)
            self._file = _CLOSED


class WatchingReactor:
    """The reactor as txpostgres is given it: everything but watching is the real one's."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._watchers: dict[Any, _Watcher] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def addReader(self, selectable: Any) -> None:
        watcher = self._watcher(selectable)
        if watcher is not None:
            watcher.reads = True
            self._reactor.addReader(watcher)

    def addWriter(self, selectable: Any) -> None:
        watcher = self._watcher(selectable)
        if watcher is not None:
            watcher.writes = True
            self._reactor.addWriter(watcher)

    def removeReader(self, selectable: Any) -> None:
        watcher = self._watchers.get(selectable)
        if watcher is not None:
            watcher.reads = False
            self._reactor.removeReader(watcher)
            self._drop_unused(selectable, watcher)

    def removeWriter(self, selectable: Any) -> None:
        watcher = self._watchers.get(selectable)
        if watcher is not None:
            watcher.writes = False
            self._reactor.removeWriter(watcher)
            self._drop_unused(selectable, watcher)

    def forget(self) -> None:
        """Watch nothing any more: the connection is closed, and with it what its cursors watched."""
        for selectable, watcher in list(self._watchers.items()):
            self._unwatch(selectable, watcher)

    def _watcher(self, selectable: Any) -> _Watcher | None:
        """The watcher of the socket that the selectable has now; ``None`` where it has none any more."""
        watcher = self._watchers.get(selectable)
        file = selectable.fileno()
        if watcher is not None and watcher.identity != _identity(file):
            # Another socket: libpq tries the next address, or without TLS.
            self._unwatch(selectable, watcher)
            watcher = None
        if watcher is None and file != _CLOSED:
            watcher = self._watchers[selectable] = _Watcher(selectable, file)
        return watcher

    def _drop_unused(self, selectable: Any, watcher: _Watcher) -> None:
        if not (watcher.reads or watcher.writes):
            self._unwatch(selectable, watcher)

    def _unwatch(self, selectable: Any, watcher: _Watcher) -> None:
        del self._watchers[selectable]
        self._reactor.removeReader(watcher)
        self._reactor.removeWriter(watcher)
        watcher.close()


def _identity(file: int) -> tuple[int, int] | None:
    """What tells a socket from another that has its number; ``None`` where it is closed."""
    if file == _CLOSED:
        return None
    try:
        found = os.fstat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino
