"""Locks that allow one gateway for each directory, and none beside a running old monitoring server."""

import contextlib
import fcntl
import os
import stat

from gateway.runtime.access import may_access

#: The file that the old monitoring server locks in its working directory while it runs.
OLD_LOCK = "monitoring.lock"


class DirectoryInUse(Exception):
    """Error for a directory that another process has locked."""


class DirectoryLock:
    """Lock on a directory, held until this process ends, however it ends.

    The directory itself is locked (``flock(2)``): a lock file would stand among files that are named by machines.

    :raises DirectoryInUse: another process holds it.
    :raises OSError: the directory cannot be created or written to.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        if not may_access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "no right to write there", path)
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise DirectoryInUse(path) from error

    def release(self) -> None:
        """Allow another gateway to use the directory."""
        os.close(self._file)


class OldServerLock:
    """Lock on the old monitoring server's lock file, if it exists, held until this process ends.

    The file alone does not mean that the server runs; a lock on it does. The kind of lock depends on the old server's
    version, so both are tried: ``flock(2)``, and the record lock of ``fcntl(2)``.

    :param folder: working directory of both programs.
    :raises DirectoryInUse: another process holds the lock.
    """

    def __init__(self, folder: str) -> None:
        self._file: int | None = None
        path = os.path.join(folder, OLD_LOCK)
        for access in (os.O_RDWR, os.O_RDONLY):
            # Without the right to open it, the check is skipped: the ports would conflict as well.
            with contextlib.suppress(OSError):
                self._file = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)
                break
        if self._file is None:
            return
        try:
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                self._lock(self._file, is_writable=access == os.O_RDWR)
        except BlockingIOError as error:
            self.release()
            raise DirectoryInUse(path) from error

    @staticmethod
    def _lock(file: int, *, is_writable: bool) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_writable:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except PermissionError as error:
            # POSIX allows this error instead, and some systems use it.
            raise BlockingIOError(error.errno, error.strerror) from error
        except OSError:
            # The file system does not support locks.
            return

    def release(self) -> None:
        """Allow the old server to start."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
