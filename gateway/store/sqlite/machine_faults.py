"""Faults of machines' databases that cannot be written or read, for ``/healthz``, until they are fixed."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from gateway.store.sqlite.readers import Content, content_of
from gateway.store.sqlitefile.errors import primary

#: Maximum machines that are named; the others are counted.
_MAX_NAMED: Final = 20

#: Content of a database's files; it changes when the database is repaired, replaced or written.
_State: TypeAlias = tuple[Content | None, Content | None]


@dataclass(slots=True)
class _Fault:
    """The fault of one machine's database.

    :ivar verb: ``written`` or ``read``.
    :ivar lost: number of entries that were given up.
    :ivar is_damage: whether only a repair ends the fault.
    :ivar checked: state of the files at the last check.
    """

    verb: str
    text: str
    lost: int = 0
    is_damage: bool = False
    checked: _State | None = None


class MachineFaults:
    """Current faults of machines' databases. Every method may be called in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, _Fault] = {}

    @property
    def problems(self) -> list[str]:
        """Return one line for each faulty machine, and a count of those beyond the maximum."""
        with self._lock:
            lines = [_line(machine, fault) for machine, fault in sorted(self._faults.items())]
        if len(lines) > _MAX_NAMED:
            lines[_MAX_NAMED:] = [f"statistics of {len(lines) - _MAX_NAMED} more machines cannot be read or written"]
        return lines

    def note_wait(self, machine: str, text: str) -> None:
        """Note that entries of a machine cannot be written now, and are retried."""
        with self._lock:
            fault = self._faults.setdefault(machine, _Fault("written", text))
            if not fault.is_damage:
                fault.verb, fault.text = "written", text

    def note_damage(self, machine: str, text: str, verb: str, lost: int = 0) -> None:
        """Note that a machine's database is damaged; some of its entries may be lost."""
        with self._lock:
            fault = self._faults.setdefault(machine, _Fault(verb, text))
            if verb == "written" or not fault.is_damage:
                fault.verb, fault.text = verb, text
            fault.lost += lost
            fault.is_damage = True

    def note_written(self, machine: str) -> None:
        """Note that entries of a machine were written, which ends a passing fault."""
        # Usually there is no fault, and a dict can be read without the lock.
        if machine in self._faults:
            with self._lock:
                # A check in another thread may have removed it meanwhile.
                fault = self._faults.get(machine)
                if fault is not None and not fault.is_damage:
                    del self._faults[machine]

    @property
    def has_damage(self) -> bool:
        """Return whether any database is damaged, and must be checked again."""
        with self._lock:
            return any(fault.is_damage for fault in self._faults.values())

    def check(self, path_of: Callable[[str], str]) -> list[tuple[str, int]]:
        """Check whether damaged databases were repaired, replaced or removed; this may block.

        :returns: the machines of such databases, and the number of lost entries of each.
        """
        with self._lock:
            suspects = [(machine, fault) for machine, fault in self._faults.items() if fault.is_damage]
        repaired = []
        for machine, fault in suspects:
            path = path_of(machine)
            state = content_of(path), content_of(f"{path}-wal")
            if state == fault.checked:
                continue
            try:
                is_sound = _is_sound(path)
            except sqlite3.Error:
                # The lock may end without a change of the file, so the next check must look again.
                continue
            fault.checked = state
            if is_sound:
                with self._lock:
                    self._faults.pop(machine, None)
                repaired.append((machine, fault.lost))
        return repaired


def _line(machine: str, fault: _Fault) -> str:
    line = f"statistics of {machine} cannot be {fault.verb}: {fault.text}"
    if not fault.is_damage:
        return f"{line}; retrying"
    lost = f"; {fault.lost} entries lost" if fault.lost else ""
    return (
        f"{line}{lost}; restore {machine}.db from a backup, or move it away; then python -m gateway.recompute restores"
        " statistics from raw files (but no anomalies)"
    )


def _is_sound(path: str) -> bool:
    """Return whether a database is whole or missing; a missing one is created again.

    :raises sqlite3.Error: another program has locked it.
    """
    if not os.path.exists(path):
        return os.path.isdir(os.path.dirname(path))
    try:
        uri = Path(path).absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=0.5)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
    except sqlite3.Error as error:
        if primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
