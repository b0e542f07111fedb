"""Interface of the queue of tickets: commits that are durable on the gateway's disk, and wait for PostgreSQL."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gateway.model.records import CommitEntry
from gateway.store.interface import IdempotencyKey, TicketState

#: State of a ticket that no longer waits.
EndState: TypeAlias = Literal["written", "rejected"]


@dataclass(frozen=True, slots=True)
class QueuedTicket:
    """A ticket that waits for the server.

    :ivar n: number of the ticket; those of one gateway are forwarded in its order.
    :ivar ticket: name of the ticket, ``<gateway>-<n>``.
    :ivar request: identifier of the request, by which the server knows an earlier attempt.
    :ivar key: key of the client; ``None`` without one.
    :ivar answer: answer that the client got, as JSON text.
    :ivar made_at: time of the request, in seconds since 1970.
    """

    n: int
    ticket: str
    request: str
    key: IdempotencyKey | None
    entry: CommitEntry
    answer: str
    made_at: float


@dataclass(frozen=True, slots=True)
class TicketEnd:
    """End of a ticket.

    :ivar commit_id: id of its row; ``None`` if it was rejected.
    :ivar reason: why the database rejected it; never shows the row.
    """

    n: int
    state: EndState
    commit_id: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class NewTicket:
    """Result of a request for a ticket.

    :ivar ticket: name of the ticket; ``None`` if the key has one already.
    :ivar answer: answer to the client.
    """

    ticket: str | None
    answer: dict[str, Any]


class TicketQueue(ABC):
    """A durable queue of tickets.

    :ivar rejected: number of tickets that the database rejected.
    """

    rejected: int

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Number of tickets that wait, those included that are being written."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Why no ticket can be made now; ``None`` if one can. Reading it does not block."""

    @abstractmethod
    def check_version(self) -> None:
        """Check that no newer version of the gateway wrote the file; do not change it.

        :raises StoreUnavailable: one did.
        """

    @abstractmethod
    def open(self) -> None:
        """Open the queue. This may block: the reactor is not running yet.

        :raises StoreUnavailable: the file cannot be used.
        """

    @abstractmethod
    async def make(self, entry: CommitEntry, request: str, key: IdempotencyKey | None) -> NewTicket:
        """Make a ticket, and return when it is durable; a key that has a ticket gets that one's answer.

        :raises IdempotencyConflict: the key was used for another request.
        :raises StoreUnavailable: there are too many tickets, or the disk refuses; no ticket was made.
        :raises OutcomeUnknown: the disk has not confirmed the ticket in time.
        """

    @abstractmethod
    async def answer_to(self, key: IdempotencyKey) -> dict[str, Any] | None:
        """Return the first answer to a key; ``None`` if it has no ticket.

        :raises IdempotencyConflict: the key was used for another request.
        """

    @abstractmethod
    async def first(self, limit: int) -> Sequence[QueuedTicket]:
        """Return the oldest waiting tickets, in their order."""

    @abstractmethod
    async def end(self, ends: Sequence[TicketEnd]) -> None:
        """Record the ends of tickets, and return when they are durable."""

    @abstractmethod
    async def find(self, ticket: str) -> TicketState | None:
        """Return the state of a ticket of this gateway; ``None`` if it does not have it."""

    @abstractmethod
    async def close(self) -> None:
        """Finish running operations and close the file."""
