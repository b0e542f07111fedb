"""Connections that read machines' files, and stay open for the next query."""

import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

#: Maximum connections that stay open; SQLite keeps up to 2 MB of pages for each.
_MAX_IDLE: Final = 8

#: Device, inode, change time and size of a file; they differ for another file, or for other content.
Content: TypeAlias = tuple[int, int, int, int]


class Readers:
    """Read-only connections, each for one query at a time in any thread.

    For the files queried last, one connection each stays open: a new connection must read the schema and every page
    again, which takes half as long as the query itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Content and connection by path, the most recently used last.
        self._idle: OrderedDict[str, tuple[Content | None, sqlite3.Connection]] = OrderedDict()
        self._closed = False

    @contextmanager
    def connection(self, path: str, patience: float) -> Iterator[sqlite3.Connection]:
        """Lend a connection to an existing file for the duration of a block.

        :param patience: maximum wait for a lock of another program, in seconds.
        :raises sqlite3.Error: the file cannot be opened.
        """
        content = content_of(path)
        idle_content, connection = self._take(path) or (None, None)
        if connection is not None and idle_content != content:  # another file, or an outdated cache
            connection.close()
            connection = None
        if connection is None:
            uri = Path(path).absolute().as_uri() + "?mode=ro"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")
            yield connection
        except BaseException:
            # Its state is unknown, so it is not used again.
            connection.close()
            raise
        self._keep(path, content, connection)

    def close_idle(self, path: str) -> None:
        """Close the idle connection to a file: only the last one to close checkpoints the log, and readers cannot."""
        found = self._take(path)
        if found is not None:
            found[1].close()

    def close(self) -> None:
        """Close all idle connections now, and those in use once they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, OrderedDict()
        for _, connection in idle.values():
            connection.close()

    def _take(self, path: str) -> tuple[Content | None, sqlite3.Connection] | None:
        with self._lock:
            return self._idle.pop(path, None)

    def _keep(self, path: str, content: Content | None, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed and path not in self._idle:
                self._idle[path] = content, connection
                if len(self._idle) <= _MAX_IDLE:
                    return
                _, (_, connection) = self._idle.popitem(last=False)
        connection.close()


def content_of(path: str) -> Content | None:
    """Return a value that changes with a file's content; ``None`` if the file is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
