"""Notes on the content of a database file, kept outside it, so that the loss of the file is noticed.

A note is an extended attribute of the directory (``user.cynow-gateway.*``), so that no additional file lies among those
named after machines. A note is absent if the file system does not support attributes, or a copy of the directory lost
them.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = "user.cynow-gateway."


@dataclass(frozen=True, slots=True)
class Note:
    """Last known content of a database file; every number is a lower bound.

    :ivar identity: identity of the file.
    :ivar commit: highest id given to a commit.
    :ivar reserved: upper bound of the numbers given to live events.
    :ivar waiting: number of entries that waited in the file for another store.
    """

    identity: str
    commit: int = 0
    reserved: int = 0
    waiting: int = 0


def read_note(directory: str, name: str) -> Note | None:
    """Return the note with a name; ``None`` if it does not exist or cannot be read."""
    try:
        fields = json.loads(os.getxattr(directory, _PREFIX + name))
        note = Note(str(fields["identity"]), *(int(fields[each]) for each in ("commit", "reserved", "waiting")))
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        return None
    return note if min(note.commit, note.reserved, note.waiting) >= 0 else None


def write_note(directory: str, name: str, note: Note) -> bool:
    """Write a note, and return whether it could be written.

    A power cut may lose the changes of the last seconds; therefore the numbers are lower bounds.
    """
    try:
        os.setxattr(directory, _PREFIX + name, json.dumps(dataclasses.asdict(note)).encode())
    except (AttributeError, OSError):
        return False
    return True
