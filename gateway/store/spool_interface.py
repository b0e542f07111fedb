"""Interface of a spool, a local queue of entries for a server that may be away."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from gateway.model.entries import StoreEntry
from gateway.store.interface import RollupProgress


class EntrySpool(ABC):
    """A durable queue of numbered entries, and the progress of statistics that includes them.

    Every method but :meth:`append` raises :class:`~gateway.store.interface.StoreUnavailable` if the file fails.

    :ivar identity: identity of the file, which distinguishes its numbers from those of an earlier file.
    :ivar waiting: number of waiting entries.
    """

    identity: str
    waiting: int

    @property
    @abstractmethod
    def used_bytes(self) -> int:
        """Used space of ``database.spool_mb``, in bytes."""

    @property
    @abstractmethod
    def outage(self) -> str | None:
        """Reason why entries are not accepted now; ``None`` if they are."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Current problem, for ``/healthz``; ``None`` if the spool works."""

    @abstractmethod
    def open(self) -> None:
        """Open the spool, and create it if it is missing. This may block: the reactor is not running yet.

        :raises StoreUnavailable: the gateway cannot start with this spool.
        """

    @abstractmethod
    async def append(self, entries: Sequence[StoreEntry]) -> None:
        """Append entries in this order; return when they are durable, or given up."""

    @abstractmethod
    async def first(self, limit: int) -> Sequence[tuple[int, StoreEntry]]:
        """Return the oldest entries, at most ``limit``, with their numbers, which ascend and are never reused."""

    @abstractmethod
    async def done(self, number: int) -> None:
        """Remove the waiting entries up to this number."""

    @abstractmethod
    async def rollup_progress(self) -> RollupProgress | None:
        """Return the progress of all statistics, waiting entries included; ``None`` before :meth:`adopt`.

        The marked days do not depend on a request. All open periods are in it, also those of days without marks: a
        store, which searches only around the last hours, finds these or fewer. Closing one too many changes nothing,
        for a period is computed from the rows in it.
        """

    @abstractmethod
    async def adopt(self, progress: RollupProgress) -> None:
        """Replace the progress by that of the server, and add the waiting entries, which the server may lack.

        :raises ValueError: some machines are unreadable, and their samples would be counted again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish running operations and close the file."""
