"""Check of the folders, their disks and the SQLite files in them."""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import PATIENCE, Plant
from gateway.doctor.processes import described, holders_of_lock, user_name
from gateway.doctor.urls import has_server
from gateway.runtime.access import may_access, trial_write_error
from gateway.runtime.directory_lock import OLD_LOCK, DirectoryInUse, OldServerLock
from gateway.runtime.disk_space import FULL_BYTES, LOW_BYTES
from gateway.store.sqlitefile.errors import explained
from gateway.store.sqlitefile.files import GATEWAY_FILE, SPOOL_FILE, STORE_NOTE
from gateway.store.sqlitefile.note import read_note
from gateway.store.sqlitefile.steps import schema_steps

#: File systems on other machines, on which locks of files may not work.
_NETWORK: Final = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "ceph", "glusterfs", "fuse.glusterfs")

#: SQLite's opcodes between two looks at the clock.
_OPCODES: Final = 10_000


def check_folders(plant: Plant) -> Iterator[Finding]:
    """Write a trial file into each folder, and look at its disk and its locks."""
    settings = plant.settings
    if settings.logger.path is not None:
        yield from _check_folder("logger.path", plant.path_of(settings.logger.path))
    for key, given in (("database.path", settings.database.path), ("data.path", settings.data.path)):
        path = plant.path_of(given)
        yield from _check_folder(key, path, settings.data.min_free_mb if key == "data.path" else None)
        yield from _check_file_system(key, path)
        yield from _check_lock(plant, key, path)
    yield from _check_old_server(plant)


def check_files(plant: Plant) -> Iterator[Finding]:
    """Check the SQLite file of commits, or that of the spool."""
    if has_server(plant):
        name, package = SPOOL_FILE, "gateway.store.spool.schema"
    else:
        name, package = GATEWAY_FILE, "gateway.store.sqlite.schema"
    path = os.path.join(plant.path_of(plant.settings.database.path), name)
    if not os.path.lexists(path):
        yield _missing_file(path)
        return
    if os.path.getsize(path) == 0:
        # SQLite would remove the write-ahead log of an empty file, and with it data that could be restored.
        yield error("database.path", f"{path} is empty", "stop the gateway and restore the file from a backup")
        return
    try:
        yield _check_file(plant, path, max(schema_steps(package)))
    except sqlite3.Error as problem:
        yield error("database.path", explained(problem, path), "restore the file from a backup, if it is damaged")


def _missing_file(path: str) -> Finding:
    note = read_note(os.path.dirname(path), STORE_NOTE)
    if os.path.basename(path) == GATEWAY_FILE and (note is not None or os.path.exists(f"{path}-wal")):
        # The gateway would start, and refuse commits.
        seen = f"{path} is missing, although a gateway has written it"
        return error("database.path", seen, "restore the file from a backup before the gateway starts")
    return ok("database.path", f"{path} will be made by the first start")


def _check_file(plant: Plant, path: str, steps: int) -> Finding:
    # Without a write-ahead log nobody uses the file, and reading it must not leave an empty one behind.
    mode = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    uri = f"{Path(path).absolute().as_uri()}?{mode}"
    deadline = time.monotonic() + PATIENCE
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > steps:
            seen = f"{path} has the schema {version}, but this version knows only {steps}"
            return error("database.path", seen, "install the newer version of the gateway")
        if plant.gateway is not None:
            return ok("database.path", f"{path} has the schema {version}; not read, because the gateway is running")
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES)
        try:
            (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() <= deadline:
                raise
            return ok("database.path", f"{path} is large; the first {PATIENCE:g} s of its check found no damage")
    if result != "ok":
        return error("database.path", f"{path} is damaged: {result}", "restore the file from a backup")
    return ok("database.path", f"{path} is intact, schema {version}")


def _check_folder(key: str, path: str, min_free_mb: int | None = None) -> Iterator[Finding]:
    existing = path
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        yield error(key, f"{existing} is not a folder", f"move it away, or correct {key}")
        return
    user = user_name(os.geteuid())
    disk = os.statvfs(existing)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_flag & os.ST_RDONLY:
        yield error(key, f"{existing} is on a file system that is read-only", "mount it for writing")
    elif not may_access(existing, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"chown {user} {path}, or run doctor as its user"
        if existing != path:
            remedy = f"mkdir -p {path}; {remedy}"
        yield error(key, f"{user} may not write to {existing}", remedy)
    elif (problem := trial_write_error(existing)) is not None:
        yield error(
            key, f"cannot write to {existing}: {problem.strerror}, {_size(free)} free", "make room on that disk"
        )
    elif free < FULL_BYTES:
        yield error(key, f"{existing}: only {_size(free)} free", "make room on that disk")
    elif min_free_mb is not None and free < min_free_mb * 2**20:
        seen = f"{existing}: {_size(free)} free, less than data.min_free_mb"
        yield warning(key, seen, "the gateway removes the oldest raw files; make room to keep them")
    elif free < LOW_BYTES:
        yield warning(key, f"{existing}: only {_size(free)} free", "make room on that disk")
    else:
        state = f"{path} is writable" if existing == path else f"{path} will be made"
        yield ok(key, f"{state} by {user}, {_size(free)} free")


def _check_file_system(key: str, path: str) -> Iterator[Finding]:
    kind = _file_system_of(path)
    if kind.startswith(_NETWORK):
        yield warning(key, f"{path} is on a network file system ({kind})", "use a local disk: its locks are reliable")


def _file_system_of(path: str) -> str:
    """Return the type of the file system of a path; empty if it is not known."""
    there = os.path.realpath(path)
    best, found = "", ""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
            before, _, after = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            # A later mount hides an earlier one at the same place.
            if os.path.commonpath([point, there]) == point and len(point) >= len(best):
                best, found = point, after.split()[0]
    return found


def _check_lock(plant: Plant, key: str, path: str) -> Iterator[Finding]:
    if not os.path.isdir(path) or not _is_locked(path):
        return
    pids = holders_of_lock(path)
    if plant.gateway is not None and (pids <= plant.gateway.pids or not plant.gateway.pids):
        yield ok(key, f"{path} is locked by {plant.gateway}")
        return
    by = described(pids) or "another process"
    yield error(key, f"{path} is locked by {by}", f"stop that gateway, or give each its own {key}")


def _is_locked(path: str) -> bool:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, and only for a moment.
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(folder)
    return False


def _check_old_server(plant: Plant) -> Iterator[Finding]:
    path = os.path.join(plant.folder, OLD_LOCK)
    if plant.gateway is not None or not os.path.exists(path):
        # A running gateway holds the lock itself.
        return
    try:
        OldServerLock(plant.folder).release()
    except DirectoryInUse:
        by = described(holders_of_lock(path)) or "a process"
        yield error(OLD_LOCK, f"{path} is locked by {by}: the old monitoring server is running", "stop it")
    else:
        yield ok(OLD_LOCK, f"{path} is left over; the old monitoring server is not running")


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
