"""One gateway a directory."""

import fcntl
import os


class DirectoryInUse(Exception):
    """Another gateway has it."""


class DirectoryLock:
    """Holds a directory for this process until it ends, however it ends.

    The directory itself is locked (``flock(2)``): a lock file would stand among files that are named by machines.

    :raises DirectoryInUse: another process holds it.
    :raises OSError: the directory cannot be made, or not be written to.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "no right to write there", path)
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise DirectoryInUse(path) from error

    def release(self) -> None:
        os.close(self._file)
