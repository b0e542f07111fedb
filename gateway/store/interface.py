"""What the gateway asks of a store. Everything answers by a Deferred; nothing blocks the reactor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred

from gateway.model.entries import StoreEntry
from gateway.model.records import Commit, CommitEntry

#: Event numbers in one reservation; at 5,000 events a second they last over three minutes.
SEQ_BLOCK: Final = 1_000_000


#: What is made of some items of a page.
Encode: TypeAlias = Callable[[list[dict[str, Any]]], Any]


class StoreUnavailable(Exception):
    """The store cannot take it now, and nothing was written."""


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
    """The key was used before, for another request."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one commit.

    :ivar key: as the client sent it.
    :ivar fingerprint: of the request; the same for the same request.
    """

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CommitResult:
    """A commit that is durable.

    :ivar answer: the body of the answer; of the first answer, where it was ``replayed``.
    :ivar commit: what was written now; ``None`` where nothing was.
    """

    answer: dict[str, Any]
    commit: Commit | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the items that were asked for.

    :ivar items: dicts; or what was made of them, some at a time.
    :ivar after: what to ask for the next page with; ``None`` where there is none.
    """

    items: list[Any]
    after: Any = None


@dataclass(frozen=True, slots=True)
class DayMark:
    """How much of a sensor's day is in rows of hours.

    :ivar last: the start of the last hour that has a row.
    :ivar raw_end: how many bytes of the day's raw file are counted; ``None`` where that is not known.
    """

    last: datetime
    raw_end: int | None


@dataclass(frozen=True, slots=True)
class SensorState:
    """Where the statistics of a sensor stand.

    :ivar type: the last it had; ``None`` where that is not known.
    :ivar days: of the days that were asked for, those that have rows of hours.
    :ivar open: days, months and years that have rows in them and none of their own, by their starts, in that order;
        looked for where the last hours are, before now and at all, and on the days that were asked for.
    """

    machine: str
    sensor: str
    type: str | None = None
    days: Mapping[date, DayMark] = field(default_factory=dict)
    open: Sequence[tuple[str, datetime]] = ()


@dataclass(frozen=True, slots=True)
class RollupProgress:
    """Where all statistics stand.

    :ivar unreadable: machines of which that cannot be told now.
    """

    sensors: list[SensorState]
    unreadable: frozenset[str] = frozenset()


class Store(ABC):
    """A place for commits, means and anomalies.

    The name of a machine in a question may be any text: the store knows what it has.

    :ivar first_seq: the first event number to give out; above any that was.
    :ivar reserved: the last event number that may be given out before :meth:`reserve` has granted more.
    """

    first_seq: int
    reserved: int

    @property
    @abstractmethod
    def problems(self) -> list[str]:
        """Problems of the store, one line each, for ``/healthz``; reading it does not block."""

    @abstractmethod
    def open(self) -> None:
        """Open it. This may block: the reactor is not running yet.

        :raises StoreUnavailable: there is no starting with it.
        """

    @abstractmethod
    def commit(self, entry: CommitEntry, key: IdempotencyKey | None) -> "Deferred[CommitResult]":
        """Write a commit, and its key with it; fires when both are durable.

        A key that was used for the same request gives the first answer, and nothing is written.

        :raises IdempotencyConflict: the key was used for another request.
        :raises StoreUnavailable: it cannot be written now, and was not.
        :raises OutcomeUnknown: it may have been written; the same request with the same key gives the outcome.
        :raises RejectedByDatabase: it will never be written as it is.
        """

    @abstractmethod
    def replay(self, key: IdempotencyKey) -> "Deferred[dict[str, Any] | None]":
        """The first answer to a key; ``None`` where it is new.

        :raises IdempotencyConflict: the key was used for another request.
        :raises StoreUnavailable: it cannot be looked up now.
        """

    @abstractmethod
    def write(self, entries: Sequence[StoreEntry]) -> "Deferred[list[StoreEntry]]":
        """Write what is over, anomalies and sightings; fires with those that must be tried again later, in their order.

        An hour that has a row already, for the clock was set back, has its samples added to that. A longer period is
        made of the rows in it, as often as it is said to be over; a row of the old server, which has no count, stays.

        What can never be written is logged, counted and not among them.
        """

    @abstractmethod
    def machines(self) -> "Deferred[list[str]]":
        """Every machine with stored data, sorted."""

    @abstractmethod
    def standing(self, days: Mapping[tuple[str, str], Collection[date]], now: datetime) -> "Deferred[RollupProgress]":
        """Every sensor with stored data, and where its statistics stand.

        :param days: that are asked for, by machine and sensor.
        :raises StoreUnavailable: it cannot be told of any.
        """

    @abstractmethod
    def means(
        self,
        period: str,
        machine: str,
        start: date,
        end: date,
        *,
        sensor: str | None = None,
        detail: bool = False,
        after: Any = None,
        limit: int | None = None,
        encode: Encode | None = None,
    ) -> "Deferred[Page]":
        """Items of ``/stat/<period>``: from one day to another, both inclusive, by sensor and ascending in time.

        :param sensor: of this one only.
        :param detail: with count, extremes, rms, standard deviation and coverage.
        :param after: from the page before this one.
        :param limit: maximum number of items in the page; the store's own maximum by default.
        :param encode: called in a thread.
        """

    @abstractmethod
    def anomalies(
        self,
        machine: str | None,
        start: date,
        end: date,
        after: Any = None,
        limit: int | None = None,
        encode: Encode | None = None,
    ) -> "Deferred[Page]":
        """Items of ``/stat/anomaly``: of one machine, ascending in time; of all (``None``), newest first.

        Anomalies with the same time are ordered by machine, then by order of writing. For all machines, those that
        cannot be read are left out.

        :param after: from the page before this one.
        :param limit: maximum number of items in the page; the store's own maximum by default.
        :param encode: called in a thread.
        :raises StoreUnavailable: the one machine cannot be read now.
        """

    @abstractmethod
    def reserve(self, up_to: int) -> "Deferred[None]":
        """Never again begin with an event number of ``up_to`` or less."""

    @abstractmethod
    def close(self) -> "Deferred[None]":
        """Finish what was begun and let go of files; at most a few seconds."""
