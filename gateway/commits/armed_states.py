"""States of scales that survive a restart: whether each was emptied since its last commit, and its last check."""

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.runtime.clock import WallClock
from gateway.runtime.paths import sync_folder
from gateway.weighing.commits import RecentCommit
from gateway.weighing.guard import ScaleGuard
from gateway.weighing.passport import CheckWeigh

log = Logger()

#: Bytes from which on the file is replaced instead of continued.
_MAX_BYTES: Final = 1 << 20

#: Maximum commits of a scale in the file: more than anybody makes within a reasonable ``duplicate_window_sec``.
_MAX_SAVED: Final = 20

#: Name of the file under ``database.path``.
STATES_FILE: Final = "cynow-gateway-scales.json"


class ArmedStates:
    """The file of these states, written by one thread; saves that wait share a write.

    Each line is a JSON object of states by scale; a later line wins. A save appends the scales that have changed, since
    that waits for the disk once, and a new file three times.

    :param guards: returns the guards of all scales.
    :param pool: pool of one thread.
    :ivar problem: why the file cannot be written; ``None`` if it can.
    """

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        directory: str,
        guards: Callable[[], Mapping[str, ScaleGuard]],
        pool: ThreadPool,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._path = os.path.join(directory, STATES_FILE)
        self._guards = guards
        self._pool = pool
        #: By scale: the state in the file, as a member of a JSON object.
        self._saved: dict[str, str] = {}
        self._size = 0
        self._must_replace = True
        #: By scale: what its state depends on, and the state as a member of a JSON object.
        self._states: dict[str, tuple[tuple[Any, ...], str]] = {}
        self._waiting: list[Deferred[None]] = []
        self._is_writing = False
        self.problem: str | None = None

    def load(self) -> None:
        """Read the file into the guards. This blocks: the reactor is not running yet."""
        try:
            with open(self._path, "rb") as file:
                states = _read(file.read())
            for scale_id, guard in self._guards().items():
                if scale_id in states:
                    self._restore(guard, states[scale_id])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidOperation) as error:
            log.error("{path}: cannot be read, so every scale counts as emptied: {error}", path=self._path, error=error)

    def _restore(self, guard: ScaleGuard, state: Mapping[str, Any]) -> None:
        if guard.settings.zero_band_kg is not None:
            guard.is_armed = bool(state["armed"])
        guard.last_commit = state["last"]
        check = state.get("check")
        if check is not None:
            at = datetime.fromtimestamp(float(check[0]), self._clock.zone)
            guard.passport.check = CheckWeigh(at, Decimal(check[1]), Decimal(check[2]), str(check[3]))
        now, wall = self._clock.monotonic(), self._clock.wall()
        for cylinder_no, event_type, name, at in state["recent"]:
            guard.recent.add(RecentCommit(str(cylinder_no), str(event_type), name, now - max(0.0, wall - float(at))))

    def save(self) -> "Deferred[None]":
        """Write the states as they are now; the Deferred fires when they are on the disk, or cannot be written."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if not self._is_writing:
            self._write()
        return done

    def save_if_changed(self) -> None:
        """Write the states if they differ from those of the file."""
        if not self._is_writing and self._current() != self._saved:
            self.save()

    def close(self) -> "Deferred[None]":
        """Write one line with all states; the Deferred fires as that of :meth:`save`."""
        self._must_replace = self._must_replace or bool(self._saved)
        return self.save()

    def _write(self) -> None:
        current = self._current()
        waiting, self._waiting = self._waiting, []
        # A scale that is not configured any more leaves the file.
        is_whole = self._must_replace or self._size > _MAX_BYTES or not self._saved.keys() <= current.keys()
        parts = [part for scale_id, part in current.items() if is_whole or self._saved.get(scale_id) != part]
        if not parts and not self._saved.keys() - current.keys():
            for done in waiting:
                done.callback(None)
            return
        self._is_writing, self._must_replace = True, False
        content = f"{{{', '.join(parts)}}}\n".encode()
        self._size = len(content) + (0 if is_whole else self._size)
        write = _replace if is_whole else _append
        writing = deferToThreadPool(self._reactor, self._pool, write, self._path, content)
        writing.addBoth(self._finish, current, waiting)

    def _finish(self, result: "Failure | None", current: dict[str, str], waiting: "list[Deferred[None]]") -> None:
        self._is_writing = False
        problem = None
        if isinstance(result, Failure):
            problem = f"{self._path} cannot be written: {result.getErrorMessage()}"
            self._saved, self._must_replace = {}, True
        else:
            self._saved = current
        if problem is not None and self.problem is None:
            log.error("{problem}; after a restart, scales would count as emptied", problem=problem)
        self.problem = problem
        for done in waiting:
            done.callback(None)
        if self._waiting and not self._is_writing:
            self._write()

    def _current(self) -> dict[str, str]:
        """Return the state of each scale that has one, as a member of a JSON object."""
        found = {}
        for scale_id, guard in self._guards().items():
            has_window = guard.settings.duplicate_window_sec is not None
            if not has_window and guard.settings.zero_band_kg is None and guard.passport.check is None:
                continue
            key = (guard, guard.settings, guard.is_armed, guard.last_commit, guard.recent.changes, guard.passport.check)
            state = self._states.get(scale_id)
            if state is None or state[0] != key:
                # Old commits in an unchanged state do no harm, so only the scale of a commit is encoded again.
                state = self._states[scale_id] = key, self._state(scale_id, guard)
            found[scale_id] = state[1]
        return found

    def _state(self, scale_id: str, guard: ScaleGuard) -> str:
        """Return the state of a scale as a member of a JSON object."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        window, check = guard.settings.duplicate_window_sec, guard.passport.check
        recent = []
        for commit in () if window is None else list(guard.recent.since(now - window))[-_MAX_SAVED:]:
            # Computed once, so that the content does not change with the clocks.
            commit.wall = round(wall - (now - commit.at)) if commit.wall is None else commit.wall
            recent.append((commit.cylinder_no, commit.event_type, commit.name, commit.wall))
        state = {
            "armed": guard.is_armed,
            "last": guard.last_commit,
            "recent": recent,
            "check": None
            if check is None
            else (check.at.timestamp(), str(check.nominal_kg), str(check.shown_kg), check.by),
        }
        return f"{json.dumps(scale_id, ensure_ascii=False)}: {json.dumps(state, ensure_ascii=False)}"


def _read(content: bytes) -> dict[str, Any]:
    """Return the states of a file by scale.

    :raises ValueError: the file is damaged; a last line without an end, whose commit was not answered, does not count.
    """
    states: dict[str, Any] = {}
    first, *others = content.split(b"\n")
    states.update(json.loads(first))
    for line in others[:-1]:
        states.update(json.loads(line))
    return states


def _append(path: str, content: bytes) -> None:
    """Append a line to a file that exists."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(file, content) != len(content):
            raise OSError("the disk is full")
        os.fdatasync(file)
    finally:
        os.close(file)


def _replace(path: str, content: bytes) -> None:
    """Replace a file so that it is complete at any time."""
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))
