"""Rights of the process on files."""

import os
from typing import Final

#: Whether the system can be asked about the user that the process acts as. By default it answers for the real user, who
#: may be root while ``twistd --euid``, or the opening of the log, acts as another.
_EFFECTIVE: Final = os.access in os.supports_effective_ids


def may_access(path: str, mode: int) -> bool:
    """Return whether the process may use a path in a mode of :func:`os.access`."""
    return os.access(path, mode, effective_ids=_EFFECTIVE)
