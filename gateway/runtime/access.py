"""Rights of the process on files, and a trial write where they do not tell enough."""

import os
import tempfile
from typing import Final

#: Whether the system can be asked about the user that the process acts as. By default it answers for the real user, who
#: may be root while ``twistd --euid``, or the opening of the log, acts as another.
_EFFECTIVE: Final = os.access in os.supports_effective_ids

#: Bytes of a trial write: more than fit into the last page of another file, and than SQLite's 32 KiB index of a
#: write-ahead log.
_TRIAL_BYTES: Final = 64 * 1024


def may_access(path: str, mode: int) -> bool:
    """Return whether the process may use a path in a mode of :func:`os.access`."""
    return os.access(path, mode, effective_ids=_EFFECTIVE)


def trial_write_error(directory: str) -> OSError | None:
    """Return the error of writing a temporary file in a directory; ``None`` if it works. It blocks."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            left = _TRIAL_BYTES
            while left > 0:
                left -= file.write(bytes(left))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
