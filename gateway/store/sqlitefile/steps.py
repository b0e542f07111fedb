"""Numbered steps of the schema of a SQLite file, and the step of a file, read without opening it for writing.

``user_version`` is the last step that was applied. A file of a later step was written by a newer version of the
gateway; this one must not write to it, because it does not know the meaning of the rows.
"""

import contextlib
import importlib.resources
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_MAGIC: Final = b"SQLite format 3\0"

#: Position of ``user_version`` in the file's header: https://www.sqlite.org/fileformat2.html#user_version_number
_STEP: Final = slice(60, 64)


def schema_steps(package: str) -> dict[int, str]:
    """Return the statements of each step, by its number.

    :param package: package of the files, such as ``gateway.store.sqlite.schema``.
    """
    folder = importlib.resources.files(package)
    return {int(step.name[:2]): step.read_text("utf-8") for step in folder.iterdir() if step.name.endswith(".sql")}


def apply_steps(connection: sqlite3.Connection, steps: Mapping[int, str], done: int) -> None:
    """Apply the steps that a database lacks, each in a transaction of its own.

    :param done: last step that was applied.
    """
    for number, text in sorted(steps.items()):
        if number > done:
            connection.executescript(f"BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")


def prepare_checked(connection: sqlite3.Connection, steps: Mapping[int, str], max_log_bytes: int) -> str | None:
    """Check a file as a whole, and apply the steps that it lacks; return the damage, for which nothing was applied.

    :param max_log_bytes: size to which its log is cut.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {max_log_bytes}")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        return f"the file is damaged ({found.splitlines()[-1]})"
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    apply_steps(connection, steps, done)
    return None


def newer_version(path: str, known: int) -> str | None:
    """Return why a file that a newer version of the gateway wrote cannot be used; ``None`` if it can, or is missing.

    :param known: last step that this version knows.
    """
    step = _step_of(path)
    if step <= known:
        return None
    return (
        f"{path}: a newer version of the gateway wrote this file: its schema is at step {step}, and this version knows"
        f" steps up to {known}; install the newer version"
    )


def _step_of(path: str) -> int:
    """Return the step of a file; 0 if it is not a database that can be read, which its opening explains."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
        has_log = os.path.exists(f"{path}-wal") and os.path.getsize(f"{path}-wal") > 0
    except OSError:
        return 0
    step = int.from_bytes(header[_STEP], "big", signed=True)
    if not header.startswith(_MAGIC) or (step == 0 and not has_log):
        return 0
    # With a log, whose writer was killed, the step may be there only. Without one, nothing is locked or created.
    uri = Path(path).absolute().as_uri() + ("?mode=ro" if has_log else "?mode=ro&immutable=1")
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return 0
