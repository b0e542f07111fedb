"""Directories and store of one gateway: locked and opened at the start, recovered, and closed at the end."""

import errno
import glob
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from twisted.python.threadpool import ThreadPool

from gateway.bus.bus import Bus
from gateway.runtime.access import may_access
from gateway.runtime.directory_lock import DirectoryInUse, DirectoryLock, OldServerLock
from gateway.runtime.listener import StartError
from gateway.runtime.paths import explain_unusable
from gateway.store.event_numbers import SEQ_BLOCK, EventNumberReserve, EventNumberStore
from gateway.store.interface import DirectoryUnusable, Store, StoreUnavailable

#: Recovers the state of the parts; the argument returns whether the gateway is still running. Returns the machines
#: whose state could not be recovered.
Recover: TypeAlias = Callable[[Callable[[], bool]], Awaitable[frozenset[str]]]


@dataclass(slots=True)
class Storage:
    """Directories and store of one gateway.

    :ivar folder: working directory, in which the old monitoring server locks a file.
    :ivar data: directory of raw files.
    :ivar database: directory of SQLite files; may be the same.
    :ivar has_url: whether ``database.url`` is set.
    :ivar numbers: store of event numbers, opened and closed with the store.
    :ivar readers: thread pool that reads raw files.
    :ivar compressor: thread pool that compresses raw files, for which readers must not wait.
    :ivar recover_parts: recovers the state of the parts.
    :ivar first_number: returns the lowest number of live events of this process; ``None`` if the store decides.
    :ivar unrecovered: machines whose state could not be recovered, for ``/healthz``.
    """

    folder: str
    data: str
    database: str
    has_url: bool
    store: Store
    numbers: EventNumberStore
    bus: Bus
    readers: ThreadPool
    compressor: ThreadPool
    recover_parts: Recover
    first_number: Callable[[], int] | None = None
    unrecovered: list[str] = field(default_factory=lambda: ["all machines"])
    _locks: list[DirectoryLock | OldServerLock] = field(default_factory=list)

    def open(self) -> None:
        """Lock the directories, open the store and start the threads.

        :raises StartError: a directory or the store cannot be used.
        """
        self._lock_directories()
        try:
            self.store.open()
        except StoreUnavailable as error:
            self._raise_denied(error)
            key = "url" if self.has_url and not isinstance(error, DirectoryUnusable) else "path"
            raise StartError(f"database.{key}: {error}") from error
        self.bus.number_from(self.numbers.first_seq, EventNumberReserve(self.numbers).used)
        for pool in (self.readers, self.compressor):
            pool.start()

    async def recover(self, is_running: Callable[[], bool]) -> None:
        """Recover the state of the parts.

        :param is_running: returns whether the gateway is still running.
        """
        self.unrecovered[:] = sorted(await self.recover_parts(is_running))
        if self.first_number is None:
            return
        first = self.first_number()
        if self.numbers.first_seq < first:
            await self.numbers.reserve(first + SEQ_BLOCK)
            self.bus.number_from(first, EventNumberReserve(self.numbers).used)

    async def close(self) -> None:
        """Close the store and release the directories."""
        # No request waits for these threads any more.
        for pool in (self.readers, self.compressor):
            threading.Thread(target=pool.stop, daemon=True).start()
        await self.store.close()
        for lock in self._locks:
            lock.release()

    def problems(self) -> list[str]:
        """Return the machines without a complete recovery, one line each."""
        return [f"statistics of {machine} lack samples from before the start" for machine in self.unrecovered]

    def _lock_directories(self) -> None:
        try:
            self._locks.append(OldServerLock(self.folder))
        except DirectoryInUse as error:
            raise StartError(f"{error}: the old monitoring server is running here; stop it first") from error
        # One lock if both are one directory.
        directories = {os.path.realpath(self.database): "database.path", os.path.realpath(self.data): "data.path"}
        for path, key in directories.items():
            try:
                self._locks.append(DirectoryLock(path))
            except DirectoryInUse as error:
                raise StartError(f"{key}: another gateway uses {path}") from error
            except OSError as error:
                raise StartError(f"{key}: {explain_unusable(error, path)}") from error

    def _raise_denied(self, error: StoreUnavailable) -> None:
        """Raise the cause of an error, if that is a file without the rights that the store needs."""
        for path in sorted(glob.glob(os.path.join(glob.escape(self.database), "*.sqlite3*"))):
            if not may_access(path, os.R_OK | os.W_OK):
                denied = PermissionError(errno.EACCES, "Permission denied", path)
                raise StartError(f"database.path: {explain_unusable(denied, path)}") from error
