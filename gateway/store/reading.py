"""Connections that read machines' files, and stay open for the next question."""

import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

#: Connections that stay open; SQLite keeps up to 2 MB of pages for each.
_IDLE: Final = 8


#: Device, inode, change time and size of a file; they differ for another file, or for other content.
Content: TypeAlias = tuple[int, int, int, int]


class Readers:
    """Connections that cannot write, each for one question at a time, of any thread.

    One of each file stays open, of those that were asked last: a new one has to read the schema and every page anew,
    which takes half as long as the question itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Content and connection by path, the most recently used last.
        self._idle: OrderedDict[str, tuple[Content | None, sqlite3.Connection]] = OrderedDict()
        self._closed = False

    @contextmanager
    def connection(self, path: str, patience: float) -> Iterator[sqlite3.Connection]:
        """A connection to a file that is there.

        :param patience: how long to wait for a lock that somebody else holds, in seconds.
        :raises sqlite3.Error: it cannot be opened.
        """
        content = content_of(path)
        its, connection = self._take(path) or (None, None)
        if connection is not None and its != content:  # it is another file, or the connection's cache is outdated
            connection.close()
            connection = None
        if connection is None:
            uri = Path(path).absolute().as_uri() + "?mode=ro"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")
            yield connection
        except BaseException:
            # Whatever state it is in.
            connection.close()
            raise
        self._keep(path, content, connection)

    def leave(self, path: str) -> None:
        """Close that of a file which waits for a question: who closes it last brings its log into it, and none can."""
        found = self._take(path)
        if found is not None:
            found[1].close()

    def close(self) -> None:
        """Close those that wait for a question, and the others when theirs is answered."""
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
                if len(self._idle) <= _IDLE:
                    return
                _, (_, connection) = self._idle.popitem(last=False)
        connection.close()


def content_of(path: str) -> Content | None:
    """Return a value that changes with a file's content; ``None`` if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
