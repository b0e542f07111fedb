"""Names of the gateway's own SQLite files and notes, and the event numbers in the file of commits."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

#: File of commits and of the gateway's own data.
GATEWAY_FILE: Final = "cynow-gateway.sqlite3"

#: File of the spool.
SPOOL_FILE: Final = "cynow-gateway-spool.sqlite3"

#: File of the record, if commits are on PostgreSQL; else the record is in the file of commits.
RECORD_FILE: Final = "cynow-gateway-record.sqlite3"

#: File of tickets.
TICKET_FILE: Final = "cynow-gateway-tickets.sqlite3"

#: Name of the note on the file of commits.
STORE_NOTE: Final = "store"


def reserved_in(path: str) -> int:
    """Return the last event number that an embedded store has reserved; 0 if the store does not exist.

    :raises sqlite3.Error: the store cannot be read.
    """
    if not os.path.exists(path):
        return 0
    with contextlib.closing(sqlite3.connect(Path(path).absolute().as_uri() + "?mode=ro", uri=True)) as connection:
        (reserved,) = connection.execute("SELECT reserved FROM event_seq").fetchone()
    return int(reserved)
