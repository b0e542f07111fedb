"""A note outside a database file of what that file held: who has lost the file still knows that there was one.

It is an extended attribute of the directory (``user.cynow-gateway.*``), so that no further file stands among those that
are named by machines. Where the file system has none, or a copy of the directory lost them, there is no note.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = "user.cynow-gateway."


@dataclass(frozen=True, slots=True)
class Note:
    """What was known of a database file; every number is a lower bound.

    :ivar identity: of the file.
    :ivar commit: the highest id that a commit was given.
    :ivar reserved: no live event was given a number above this one.
    :ivar waiting: entries that waited in it for another store.
    """

    identity: str
    commit: int = 0
    reserved: int = 0
    waiting: int = 0


def read_note(directory: str, name: str) -> Note | None:
    """Return the note of a name; ``None`` where there is none that can be read."""
    try:
        fields = json.loads(os.getxattr(directory, _PREFIX + name))
        note = Note(str(fields["identity"]), *(int(fields[each]) for each in ("commit", "reserved", "waiting")))
    except (AttributeError, OSError, KeyError, TypeError, ValueError):
        return None
    return note if min(note.commit, note.reserved, note.waiting) >= 0 else None


def write_note(directory: str, name: str, note: Note) -> bool:
    """Write a note, and return whether it could be written.

    A power cut may take the last seconds of it: its numbers are lower bounds.
    """
    try:
        os.setxattr(directory, _PREFIX + name, json.dumps(dataclasses.asdict(note)).encode())
    except (AttributeError, OSError):
        return False
    return True
