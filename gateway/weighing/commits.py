"""Commits as the guards of a scale see them: attempts, and those of the last moments."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

#: Maximum commits of one scale that are remembered; nobody weighs more cylinders in a reasonable window.
_MAX_RECENT: Final = 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request for a commit.

    :ivar reading_id: reading that the operator saw; ``None`` if the request does not tell.
    :ivar key: Idempotency-Key; ``None`` without one.
    """

    cylinder_no: str
    event_type: str
    reading_id: str | None = None
    key: str | None = None

    def is_repeated_by(self, attempt: "Attempt") -> bool:
        """Return whether an attempt is the same request again."""
        return self.key is not None and self.key == attempt.key


@dataclass(slots=True)
class RecentCommit:
    """A commit of the last moments.

    :ivar name: id or ticket; ``None`` while the commit is in progress.
    :ivar at: time of the request on the monotonic clock, in seconds.
    :ivar wall: the same in seconds since 1970, once it was saved.
    """

    cylinder_no: str
    event_type: str
    name: str | None
    at: float
    wall: int | None = None


class RecentCommits:
    """The last commits of one scale, oldest first; beyond a bound the oldest are forgotten.

    :ivar changes: number of changes so far.
    """

    def __init__(self) -> None:
        self._commits: deque[RecentCommit] = deque(maxlen=_MAX_RECENT)
        self.changes = 0

    def __iter__(self) -> Iterator[RecentCommit]:
        return iter(self._commits)

    def add(self, commit: RecentCommit) -> None:
        """Remember a commit."""
        self.changes += 1
        self._commits.append(commit)

    def since(self, since: float) -> list[RecentCommit]:
        """Return the commits after a time, oldest first."""
        found = list(takewhile(lambda commit: commit.at >= since, reversed(self._commits)))
        return found[::-1]

    def find(self, attempt: Attempt, since: float) -> RecentCommit | None:
        """Return the last commit of the same cylinder and event after a time; ``None`` without one."""
        for commit in reversed(self._commits):
            if commit.at < since:
                return None
            if (commit.cylinder_no, commit.event_type) == (attempt.cylinder_no, attempt.event_type):
                return commit
        return None

    def name(self, attempt: Attempt, name: str) -> None:
        """Give a commit in progress its id or ticket."""
        commit = self._in_progress(attempt)
        if commit is not None:
            commit.name = name
            self.changes += 1

    def drop(self, attempt: Attempt) -> None:
        """Forget a commit in progress that was not written."""
        commit = self._in_progress(attempt)
        if commit is not None:
            self._commits.remove(commit)
            self.changes += 1

    def remove(self, cylinder_no: str, event_type: str) -> None:
        """Forget the commits of a cylinder and an event, because one was undone."""
        kept = [each for each in self._commits if (each.cylinder_no, each.event_type) != (cylinder_no, event_type)]
        self._commits = deque(kept, maxlen=_MAX_RECENT)
        self.changes += 1

    def _in_progress(self, attempt: Attempt) -> RecentCommit | None:
        for commit in reversed(self._commits):
            if commit.name is None and (commit.cylinder_no, commit.event_type) == (
                attempt.cylinder_no,
                attempt.event_type,
            ):
                return commit
        return None
