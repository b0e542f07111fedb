"""Explanations of SQLite's errors for an operator: the path, the problem and the remedy."""

import errno
import os
import sqlite3
from typing import Final

from gateway.runtime.access import may_access, trial_write_error

#: Primary result codes of errors that may pass: a lock, a full disk, a missing right, a changed schema.
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_ABORT,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_SCHEMA,
    }
)

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

#: Codes that may be caused by a full disk, a read-only file system or a missing right.
_OF_THE_DISK: Final = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)

_DISK_ERRORS: Final = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room or raise it",
    errno.EROFS: "the file system is read-only; mount it for writing",
    errno.EACCES: "no right to write there; give the directory to the user of the gateway",
    errno.EPERM: "no right to write there; give the directory to the user of the gateway",
    errno.ENOENT: "the directory is missing; put it back or create it",
}


def primary(error: BaseException) -> int:
    """Return the primary result code of an error; 0 if SQLite gave none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def may_pass(error: BaseException) -> bool:
    """Return whether the operation may succeed later."""
    return primary(error) in _PASSING


def is_damage(error: BaseException) -> bool:
    """Return whether the file is damaged, or not a database at all."""
    return primary(error) in _DAMAGED


def explained(error: BaseException, path: str) -> str:
    """Return one line that explains an error of the database at ``path``, with the remedy.

    It may write a small file beside the database to find the disk's error, so call it only in a thread or at startup.
    """
    name, directory, code = os.path.basename(path), os.path.dirname(path) or ".", primary(error)
    if code == sqlite3.SQLITE_NOTADB:
        return f"{name}: the file is not a database ({error})"
    if code == sqlite3.SQLITE_CORRUPT:
        return f"{name}: the file is damaged ({error})"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{name}: another program has locked it ({error}); end that program (fuser {path} names it)"
    if code in _OF_THE_DISK:
        reason = _disk_reason(path, directory)
        if reason is not None:
            return reason
        if code == sqlite3.SQLITE_FULL:
            return f"{directory}: {_DISK_ERRORS[errno.ENOSPC]}"
    return f"{name}: {error}"


def _disk_reason(path: str, directory: str) -> str | None:
    """Return why a file cannot be written; ``None`` if it can."""
    if os.path.isdir(path):
        return f"{path}: a directory is in the place of the file; move it away"
    for each in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(each) and not may_access(each, os.R_OK | os.W_OK) and not _is_read_only(directory):
            return f"{each}: no right to read and write it; give the file to the user of the gateway"
    error = trial_write_error(directory)
    return None if error is None else f"{directory}: {_DISK_ERRORS.get(error.errno or 0, error.strerror)}"


def _is_read_only(directory: str) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def may_be_full(path: str) -> bool:
    """Return whether the disk may be full or read-only, so that only a write can show whether writing works."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return bool(found.f_flag & os.ST_RDONLY) or found.f_bavail * found.f_frsize < 1024 * 1024
