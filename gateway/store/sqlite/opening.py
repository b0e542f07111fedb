"""Opening of the file of commits, which distinguishes a first start, an intact file and a lost one.

If a gateway has run before and the file is missing or empty, it is not treated as new: ids of commits would start
again, and an answered key would ship its cylinder a second time. Then nothing is written and nothing is opened: SQLite
removes the write-ahead log of an empty file, and with it data that could be restored.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger

from gateway.runtime.paths import sync_folder
from gateway.store.event_numbers import SEQ_BLOCK
from gateway.store.interface import StoreUnavailable
from gateway.store.sqlitefile.errors import explained, is_damage
from gateway.store.sqlitefile.files import GATEWAY_FILE, SPOOL_FILE, STORE_NOTE
from gateway.store.sqlitefile.note import Note, read_note, write_note
from gateway.store.sqlitefile.steps import apply_steps, newer_version, schema_steps
from gateway.store.sqlitefile.transactions import LOCK_WAIT

log = Logger()

_SCHEMA: Final = "gateway.store.sqlite.schema"

#: The option that lets a start continue without the lost data.
ACCEPT: Final = "--accept-empty-store"

#: Last step of machines' files: their form is that of the old server with further columns, and both leave the number 0.
#: A version that changes the form must raise it.
MACHINE_STEP: Final = 0

#: Event numbers per second since 1970, from which numbering continues if the used numbers are unknown: above the
#: reservations of any gateway, and below 2**53, the limit of JavaScript.
_NUMBERS_PER_SECOND: Final = 10_000

#: Maximum number of machines' databases that are searched for signs of an earlier gateway.
_MAX_SEARCHED: Final = 200


@dataclass(frozen=True, slots=True)
class _Loss:
    """Loss of the file of an earlier gateway.

    :ivar prevents_start: whether the file in its place may belong to another program.
    """

    text: str
    prevents_start: bool = False


@dataclass(slots=True)
class OpenedStore:
    """The file of commits, opened by a start.

    :ivar connection: open connection; ``None`` if commits are refused.
    :ivar reserved: upper bound of the used event numbers.
    :ivar note: note to write outside the file.
    :ivar problem: why commits are refused.
    """

    connection: sqlite3.Connection | None
    reserved: int
    note: Note
    problem: str | None = None


def open_store(directory: str, wall: float, *, accept: bool, gives_numbers: bool) -> OpenedStore:
    """Open ``cynow-gateway.sqlite3``, and create it at the first start. This may block.

    :param wall: seconds since 1970.
    :param accept: whether to go on without the lost data: a file that is empty or not a database is renamed.
    :param gives_numbers: whether event numbers will be given out; a command gives none and does not write a note.
    :raises StoreUnavailable: the gateway cannot start with this file.
    """
    path = os.path.join(directory, GATEWAY_FILE)
    note = read_note(directory, STORE_NOTE)
    accept = accept and gives_numbers
    try:
        loss = _find_loss(path, note)
        if loss is not None and not accept:
            if loss.prevents_start:
                raise StoreUnavailable(f"{loss.text}; {_remedy(directory)}")
            opened = _open_without(directory, loss.text, note, wall)
        else:
            if loss is not None:
                _set_aside(path, loss.text)
            opened = _open(path, note, wall, accept=accept, is_lost=loss is not None)
        reserved = opened.reserved
        opened.note = Note(opened.note.identity, opened.note.commit, reserved + SEQ_BLOCK)
        if gives_numbers:
            if opened.connection is not None:
                opened.connection.execute("UPDATE event_seq SET reserved = ?", (reserved + SEQ_BLOCK,))
            write_note(directory, STORE_NOTE, opened.note)
    except sqlite3.Error as error:
        raise StoreUnavailable(explained(error, path)) from error
    return opened


def connect(path: str, *, synchronous: str, wait: float = LOCK_WAIT) -> sqlite3.Connection:
    """Return a connection with explicit transactions, for use by one thread at a time.

    :param wait: maximum wait for a lock of another program, in seconds.
    """
    connection = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def check_version(path: str) -> None:
    """Check that the file of commits or of a machine was not written by a newer version; do not change the file.

    :raises StoreUnavailable: it was.
    """
    known = max(schema_steps(_SCHEMA)) if os.path.basename(path) == GATEWAY_FILE else MACHINE_STEP
    problem = newer_version(path, known)
    if problem is not None:
        raise StoreUnavailable(problem)


def has_tables(path: str) -> bool:
    """Return whether a database has any table.

    :raises sqlite3.Error: the database cannot be read.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=LOCK_WAIT)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def _find_loss(path: str, note: Note | None) -> _Loss | None:
    """Inspect the file before it is opened; return ``None`` if it is a database, or if there never was one."""
    name = os.path.basename(path)
    with _explaining(path):
        size = os.stat(path).st_size if os.path.lexists(path) else None
    if size is None:
        sign = _sign_of_gateway(path, note)
        return None if sign is None else _Loss(f"{name} is missing, but {sign}")
    if os.path.isdir(path):
        raise StoreUnavailable(f"{path}: a directory is in the place of the file; move it away")
    if size == 0:
        log_bytes = _size_of(f"{path}-wal")
        further = f" (its write-ahead log has {log_bytes} bytes; keep both)" if log_bytes else ""
        return _Loss(f"{name} is empty (0 bytes){further}")
    try:
        return None if has_tables(path) else _Loss(f"{name} holds no tables")
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return _Loss(f"{path} is damaged ({error})", prevents_start=True)
        raise


def _sign_of_gateway(path: str, note: Note | None) -> str | None:
    """Return the evidence that a gateway had a file here; ``None`` without evidence, as with the old server's files."""
    directory = os.path.dirname(path)
    if os.path.exists(f"{path}-wal"):
        return f"its write-ahead log {path}-wal exists; keep it"
    if note is not None:
        return f"a gateway has used {directory} and written commits with ids up to {note.commit}"
    if _spool_row(directory, "SELECT 1 FROM sensor UNION ALL SELECT 1 FROM entry LIMIT 1") is not None:
        return f"{SPOOL_FILE} has entries of a gateway"
    with _explaining(directory):
        names = sorted(name for name in os.listdir(directory) if name.endswith(".db"))
    for name in names[:_MAX_SEARCHED]:
        # An unreadable file is not evidence: the old server's files may be damaged too.
        with contextlib.suppress(sqlite3.Error):
            if _is_of_gateway(os.path.join(directory, name)):
                return f"{name} was written by a gateway"
    return None


def _is_of_gateway(path: str) -> bool:
    uri = Path(path).absolute().as_uri() + "?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as connection:
        found = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = 'anomaly_time'"
            " OR type = 'table' AND name LIKE '%\\_avg' ESCAPE '\\' AND sql LIKE '%start INTEGER%'"
        ).fetchone()
    return found is not None


def _open_without(directory: str, loss: str, note: Note | None, wall: float) -> OpenedStore:
    """Return a store without the file, which refuses commits."""
    problem = f"{loss}; {_remedy(directory)}"
    log.error("commits are refused: {problem}", problem=problem)
    if note is None:
        note = Note("", 0, _unused_number(directory, wall))
    return OpenedStore(None, note.reserved, note, problem)


def _remedy(directory: str) -> str:
    """Return the remedy for a lost file."""
    return (
        f"stop the gateway, restore {os.path.join(directory, GATEWAY_FILE)} from a backup and start the gateway again;"
        f" or start it once with {ACCEPT}, which gives up the commits and Idempotency-Keys in the lost file"
    )


def _open(path: str, note: Note | None, wall: float, *, accept: bool, is_lost: bool) -> OpenedStore:
    """Open the file, or create a new one."""
    directory = os.path.dirname(path)
    if not os.path.exists(path):
        _create(path)
    connection = connect(path, synchronous="FULL")
    try:
        apply_schema(connection)
        _restore_event_seq(connection, directory, note, wall)
        (identity,) = connection.execute("SELECT identity FROM store").fetchone()
        problem = None if is_lost or note is None else _difference(connection, note, identity)
        if accept and (is_lost or problem is not None):
            if problem is not None:
                log.warn("{problem}; accepted because of {option}", option=ACCEPT, problem=problem)
                problem = None
            _continue_above(connection, note or Note("", 0, _unused_number(directory, wall)))
        elif accept:
            log.warn("{option}: no file was lost; omit the option at the next start", option=ACCEPT)
        (reserved,) = connection.execute("SELECT reserved FROM event_seq").fetchone()
        if note is not None:
            reserved = max(reserved, note.reserved)
        if note is not None and problem is not None:
            connection.close()
            return _open_without(directory, problem, Note(note.identity, note.commit, reserved), wall)
        commit = max(highest_commit(connection), 0 if note is None else note.commit)
    except BaseException:
        connection.close()
        raise
    return OpenedStore(connection, reserved, Note(identity, commit, reserved))


def _difference(connection: sqlite3.Connection, note: Note, identity: str) -> str | None:
    """Return the difference from the previous file; ``None`` if it is that file, or that had no commits."""
    if not _has_table(connection, "scale_weight_log"):
        # The table may have been renamed; that can be repaired while the gateway runs.
        return None
    highest = highest_commit(connection)
    if highest >= note.commit and (identity == note.identity or not note.identity or not note.commit):
        return None
    if highest < note.commit:
        return f"{GATEWAY_FILE} is an old copy: it has commits up to id {highest}, but the last id was {note.commit}"
    return f"{GATEWAY_FILE} was replaced by another file"


def highest_commit(connection: sqlite3.Connection) -> int:
    """Return the highest id of a commit, removed rows included."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'scale_weight_log'").fetchone()
    return 0 if row is None else int(row[0])


def _continue_above(connection: sqlite3.Connection, note: Note) -> None:
    """Continue ids of commits and event numbers above those in the note, so that none is used twice."""
    if highest_commit(connection) < note.commit:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'scale_weight_log'")
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('scale_weight_log', ?)", (note.commit,))
    connection.execute("UPDATE event_seq SET reserved = max(reserved, ?)", (note.reserved,))


def _restore_event_seq(connection: sqlite3.Connection, directory: str, note: Note | None, wall: float) -> None:
    """Restore the table of event numbers if it is missing; commits need not be refused for that."""
    if _has_table(connection, "event_seq") and connection.execute("SELECT 1 FROM event_seq").fetchone():
        return
    reserved = _unused_number(directory, wall) if note is None else note.reserved
    log.error("{file}: the table event_seq was missing; creating it again", file=GATEWAY_FILE)
    connection.execute("CREATE TABLE IF NOT EXISTS event_seq (reserved integer NOT NULL)")
    connection.execute("INSERT INTO event_seq (reserved) VALUES (?)", (reserved,))


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    row = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()
    return row is not None


def _unused_number(directory: str, wall: float) -> int:
    """Return an event number above all that may have been used, if these are unknown."""
    spooled = _spool_row(directory, "SELECT reserved FROM state")
    return max(int(wall * _NUMBERS_PER_SECOND), 0 if spooled is None else int(spooled[0]))


def _spool_row(directory: str, statement: str) -> Any:
    """Query the spool for one row; return ``None`` if it or the spool does not exist."""
    path = os.path.join(directory, SPOOL_FILE)
    if os.path.exists(path):
        uri = Path(path).absolute().as_uri() + "?mode=ro"
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as connection,
        ):
            return connection.execute(statement).fetchone()
    return None


def _create(path: str) -> None:
    """Create a file that is complete before it gets its name: an empty file would be a sign of damage."""
    temporary = f"{path}.new"
    try:
        for leftover in (temporary, f"{temporary}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(leftover)
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            apply_schema(connection)
        os.rename(temporary, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    except sqlite3.Error as error:
        # Diagnose before the file is removed: its content may be what fills the disk.
        reason = explained(error, temporary)
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise StoreUnavailable(reason.replace(f"{GATEWAY_FILE}.new", GATEWAY_FILE)) from error


def _set_aside(path: str, loss: str) -> None:
    """Rename the file and its log: nothing is ever removed."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    log.warn("{loss}; accepted because of {option}: creating a new file", option=ACCEPT, loss=loss)
    for suffix in ("", "-wal", "-shm"):
        if os.path.lexists(path + suffix):
            aside = f"{path}.set-aside-{stamp}{suffix}"
            with _explaining(path + suffix):
                os.rename(path + suffix, aside)
            log.warn("renamed {path} to {aside}", path=path + suffix, aside=aside)


def apply_schema(connection: sqlite3.Connection) -> None:
    """Apply the numbered steps that a database lacks; ``user_version`` is its last step."""
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if not done:
        done = _version_of(connection)
    apply_steps(connection, schema_steps(_SCHEMA), done)


def _version_of(connection: sqlite3.Connection) -> int:
    """Return the last step of a database without a version: ``.dump`` and ``.recover`` leave the version out."""
    if not all(_has_table(connection, name) for name in ("scale_weight_log", "idempotency", "event_seq")):
        return 0
    tables = {5: "commit_detail", 4: "record", 3: "store", 2: "sensor"}
    version = next((step for step, name in tables.items() if _has_table(connection, name)), 1)
    connection.execute(f"PRAGMA user_version = {version}")
    return version


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _explaining(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
