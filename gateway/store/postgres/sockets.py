"""Reactor for the sockets of libpq, which may close or replace them at any time.

If libpq closed a socket that the reactor watches, the next socket of the process could get its descriptor, and the
reactor would not report its events. So the reactor watches a copy of the descriptor, which only this module closes.
"""

import os
from typing import Any, Final

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: Descriptor of a closed socket, as Twisted expects it.
_CLOSED: Final = -1


@implementer(IReadWriteDescriptor)
class _Watcher:
    """Copy of a descriptor; its events go to a selectable."""

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
        """Close the copy."""
        if self._file != _CLOSED:
            os.close(self._file)
            self._file = _CLOSED


class WatchingReactor:
    """Reactor for txpostgres that watches copies of descriptors; everything else is left to the real reactor."""

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
        """Stop watching all sockets: the connection is closed, and so are its cursors."""
        for selectable, watcher in list(self._watchers.items()):
            self._unwatch(selectable, watcher)

    def _watcher(self, selectable: Any) -> _Watcher | None:
        """Return the watcher of the selectable's present socket; ``None`` if it has no socket."""
        watcher = self._watchers.get(selectable)
        file = selectable.fileno()
        if watcher is not None and watcher.identity != _identity(file):
            # libpq has replaced the socket, to try the next address or without TLS.
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
    """Return the identity of a socket, which another socket with its descriptor lacks; ``None`` if it is closed."""
    if file == _CLOSED:
        return None
    try:
        status = os.fstat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino
