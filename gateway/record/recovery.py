"""Recovery of commits that another store has, and that the record lacks after a kill or a full disk."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from twisted.application.internet import TimerService
from twisted.logger import Logger

from gateway.record.book import RecordBook
from gateway.record.commit_fields import column_text
from gateway.runtime.reactor import IReactor
from gateway.store.interface import StoreUnavailable

log = Logger()

#: Returns the commits of this gateway above a number, each with its number; the second argument is their maximum.
FetchCommits: TypeAlias = Callable[[int, int], Awaitable[Sequence[tuple[int, Mapping[str, Any]]]]]

#: Name of the mark up to which the other store was compared.
MARK: Final = "recovered"

#: Commits that are compared again each time: a transaction with a lower number may be committed later.
OVERLAP: Final = 1000

_PAGE: Final = 1000

#: Seconds between attempts while the record may lack commits, and between comparisons without such a sign.
_RETRY: Final = 5.0
_REGULAR: Final = 600.0


class RecordRecovery:
    """Regular comparison of the record with the other store.

    :param fetch: returns commits of the other store.
    """

    def __init__(self, reactor: IReactor, book: RecordBook, fetch: FetchCommits) -> None:
        self._reactor = reactor
        self._book = book
        self._fetch = fetch
        self._compared_at = float("-inf")
        self.service = TimerService(_RETRY, self._look)
        self.service.clock = reactor

    async def _look(self) -> None:
        now = self._reactor.seconds()
        if not self._book.has_gaps and now - self._compared_at < _REGULAR:
            return
        # A commit that fails to be recorded meanwhile sets it again.
        self._book.has_gaps = False
        try:
            count = await self._recover()
        except StoreUnavailable:
            # The store and the record report this themselves.
            self._book.has_gaps = True
            return
        self._compared_at = now
        if count:
            log.warn("record: added {count} commits that it lacked after a kill or a failed write", count=count)

    async def _recover(self) -> int:
        after = max(0, await self._book.mark(MARK) - OVERLAP)
        count = 0
        while True:
            page = await self._fetch(after, _PAGE)
            fields = [_fields_of(commit) for _, commit in page]
            if page:
                after = page[-1][0]
                count += await self._book.append_all_missing(fields, MARK, after)
            if len(page) < _PAGE:
                return count


def _fields_of(commit: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("commit_id", "detail")
    return {name: value if name in kept else column_text(value) for name, value in commit.items()} | {"recovered": True}
