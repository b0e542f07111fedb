"""Interface of a store. Its methods are coroutines that do not block the reactor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, TypeAlias

from gateway.model.entries import StoreEntry
from gateway.model.records import Commit, CommitEntry

#: Encodes some items of a page; called in a thread.
Encode: TypeAlias = Callable[[list[Any]], Any]

#: Maximum commits of a page.
MAX_COMMITS: Final = 1000


class StoreUnavailable(Exception):
    """Error for an operation that cannot be done now; nothing was written."""


class DirectoryUnusable(StoreUnavailable):
    """Error for a file under ``database.path`` that cannot be used, regardless of the server in ``database.url``."""


class MachineDamaged(StoreUnavailable):
    """Error for the stored data of one machine that cannot be read; other machines are not affected."""


class OutcomeUnknown(Exception):
    """Error for a commit that may have been written: the store was told to write it, and has not confirmed in time."""


class RejectedByDatabase(Exception):
    """Error for a row that the database will always reject (a CHECK, a trigger, an encoding); nothing was written.

    The text names the rule that rejected the row, and never shows the row itself.
    """


class IdempotencyConflict(Exception):
    """Error for a key that was used before, for another request."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one commit.

    :ivar key: text that the client sent.
    :ivar fingerprint: digest of the request; equal for equal requests.
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CommitResult:
    """Result of a durable commit.

    :ivar answer: body of the answer; for a repeated request, that of the first answer.
    :ivar commit: commit that was written now; ``None`` for a repeated request.
    """

    answer: dict[str, Any]
    commit: Commit | None


@dataclass(frozen=True, slots=True)
class TicketState:
    """State of a ticket.

    :ivar commit_id: id of the row; ``None`` while the ticket waits, and if it was rejected.
    :ivar state: ``waiting``, ``written`` or ``rejected``.
    """

    ticket: str
    commit_id: int | None
    state: str
    entry: CommitEntry


@dataclass(frozen=True, slots=True)
class MeansQuery:
    """Selection of means of one machine.

    :ivar period: ``hour``, ``day``, ``month`` or ``year``.
    :ivar machine: name of a machine; may be any text.
    :ivar start: first day.
    :ivar end: last day, inclusive.
    :ivar sensor: only sensor to select; ``None`` selects all.
    :ivar detail: whether items have count, extremes, rms, standard deviation and coverage.
    """

    period: str
    machine: str
    start: date
    end: date
    sensor: str | None = None
    detail: bool = False


@dataclass(frozen=True, slots=True)
class CommitQuery:
    """Selection of commits; a field that is ``None`` selects all.

    :ivar start: earliest ``committed_at``.
    :ivar end: time that every ``committed_at`` is before.
    """

    cylinder_no: str | None = None
    event_type: str | None = None
    scale_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit as it was read from the store.

    :ivar by: name of the token that committed, or ``operator``; ``None`` for a row without details, such as Django's.
    :ivar undo_of: id of the commit that this one undoes.
    :ivar undone_by: id of the commit that undoes this one.
    :ivar detail: stored details, see :meth:`gateway.model.records.CommitDetail.record`; empty without details.
    """

    commit: Commit
    by: str | None = None
    undo_of: int | None = None
    undone_by: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Position, size and encoding of a page.

    :ivar after: :attr:`Page.after` of the previous page; ``None`` for the first page.
    :ivar limit: maximum number of items; the store's own maximum by default.
    :ivar encode: encoder of the items; by default a page has dicts.
    """

    after: Any = None
    limit: int | None = None
    encode: Encode | None = None


#: Request for the first page, of the store's own maximum size.
FIRST_PAGE: Final = PageRequest()


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the selected items.

    :ivar items: dicts or stored commits, or results of the encoder, each for some items.
    :ivar after: position for the next :class:`PageRequest`; ``None`` for the last page.
    """

    items: list[Any]
    after: Any = None


@dataclass(frozen=True, slots=True)
class DayMark:
    """Part of a sensor's day that is counted in rows of hours.

    :ivar last: start of the last hour that has a row.
    :ivar raw_end: number of counted bytes of the day's raw file; ``None`` if it is not known.
    """

    last: datetime
    raw_end: int | None


@dataclass(frozen=True, slots=True)
class SensorState:
    """Progress of one sensor's statistics.

    :ivar type: last type of the sensor; ``None`` if it is not known.
    :ivar days: marks of those requested days that have rows of hours.
    :ivar open: periods longer than an hour that have rows in them and no row of their own, by period and start; among
        those of the requested days, of the last hour before now and of the last hour at all.
    """

    machine: str
    sensor: str
    type: str | None = None
    days: Mapping[date, DayMark] = field(default_factory=dict)
    open: Sequence[tuple[str, datetime]] = ()


@dataclass(frozen=True, slots=True)
class RollupProgress:
    """Progress of all statistics.

    :ivar unreadable: machines whose progress cannot be read now.
    """

    sensors: list[SensorState]
    unreadable: frozenset[str] = frozenset()


class Store(ABC):
    """A place for commits, means and anomalies.

    The name of a machine in a query may be any text: unknown machines have no data.
    """

    @property
    @abstractmethod
    def outage(self) -> str | None:
        """Reason why commits are refused now; ``None`` if they are taken. Reading it does not block."""

    @property
    @abstractmethod
    def problems(self) -> list[str]:
        """Problems of the store, one line each, for ``/healthz``; reading them does not block."""

    @abstractmethod
    def open(self) -> None:
        """Open the store. This may block: the reactor is not running yet.

        :raises StoreUnavailable: the gateway cannot start with this store.
        """

    @abstractmethod
    async def commit(self, entry: CommitEntry, key: IdempotencyKey | None, *, may_wait: bool = False) -> CommitResult:
        """Write a commit together with its key, and return when both are durable.

        If the key was used for the same request before, return the first answer and write nothing.

        :param may_wait: whether the commit may become a ticket while the server is unavailable.

        :raises IdempotencyConflict: the key was used for another request.
        :raises StoreUnavailable: the commit cannot be written now, and was not.
        :raises OutcomeUnknown: the commit may have been written; the same request with the same key gives the outcome.
        :raises RejectedByDatabase: the commit will never be written as it is.
        """

    @abstractmethod
    async def replay(self, key: IdempotencyKey) -> dict[str, Any] | None:
        """Return the first answer to a key; ``None`` if the key is new.

        :raises IdempotencyConflict: the key was used for another request.
        :raises StoreUnavailable: the key cannot be looked up now.
        """

    async def ticket(self, ticket: str) -> TicketState | None:
        """Return the state of a ticket; ``None`` if it is unknown.

        :raises StoreUnavailable: the ticket cannot be looked up now.
        """
        return None

    @abstractmethod
    async def commits(self, query: CommitQuery, page: PageRequest = FIRST_PAGE) -> Page:
        """Return :class:`StoredCommit` items, newest first: by id, descending.

        A position is the id of the last item; a page has at most :data:`MAX_COMMITS` items.

        :raises StoreUnavailable: commits cannot be read now.
        """

    @abstractmethod
    async def find_commit(self, commit_id: int) -> StoredCommit | None:
        """Return the commit with an id; ``None`` if it does not exist.

        :raises StoreUnavailable: commits cannot be read now.
        """

    @abstractmethod
    async def write(self, entries: Sequence[StoreEntry]) -> list[StoreEntry]:
        """Write closed periods, anomalies and sightings; return those that must be retried later, in their order.

        If an hour has a row already because the clock was set back, its samples are added to that row. A longer period
        is computed from the rows in it each time it is closed; a row of the old server, which has no count, stays.

        Entries that can never be written are logged and counted, and not returned.
        """

    @abstractmethod
    async def machines(self) -> list[str]:
        """Return every machine with stored data, sorted."""

    @abstractmethod
    async def rollup_progress(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> RollupProgress:
        """Return the progress of the statistics of every sensor with stored data.

        :param days: requested days, by machine and sensor.
        :raises StoreUnavailable: the progress of no machine can be read.
        """

    @abstractmethod
    async def means(self, query: MeansQuery, page: PageRequest = FIRST_PAGE) -> Page:
        """Return items of ``/stat/<period>``, by sensor and ascending in time.

        :raises StoreUnavailable: the machine cannot be read now.
        """

    @abstractmethod
    async def anomalies(self, machine: str | None, start: date, end: date, page: PageRequest = FIRST_PAGE) -> Page:
        """Return items of ``/stat/anomaly``: for one machine ascending in time, for all (``None``) newest first.

        Anomalies with the same time are ordered by machine, then by order of writing. For all machines, those that
        cannot be read are left out.

        :param start: first day.
        :param end: last day, inclusive.
        :raises StoreUnavailable: the one machine cannot be read now.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish running operations and close the files; this takes at most a few seconds."""
