"""Look-up of cylinders for commits: cached, shared, and bounded in time."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.config.settings import CylinderSettings
from gateway.cylinders.master import UNCHECKED, CylinderJudgement, CylinderRecord, judge, read_record
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Maximum queries that run or wait for a connection; beyond, a cylinder is not checked.
MAX_QUERIES: Final = 50

#: Maximum seconds for which the absence of a row is kept: a new cylinder is entered shortly before it is weighed.
ABSENT_SEC: Final = 30.0

#: Seconds until the query is tried again while there is a problem with it.
RECHECK_SEC: Final = 30.0

#: Answers in a row that came too late, from which on this is a problem.
MANY_SLOW: Final = 5

#: Number of no cylinder, for a query that only tries whether it works.
_PROBE: Final = ""

#: A row of the plant's table: values by column.
CylinderRow: TypeAlias = Mapping[str, Any]

LookupOutcome: TypeAlias = Literal["hit", "found", "absent", "slow", "failed", "busy"]


class CylinderQueryError(Exception):
    """Error for a query without an answer; the text gives the reason.

    :ivar kind: ``query`` if every number would get the same error, ``row`` if it is about this one, ``unavailable`` if
        the database gives no answer.
    """

    def __init__(self, text: str, kind: Literal["query", "row", "unavailable"]) -> None:
        super().__init__(text)
        self.kind = kind


class CylinderSource(Protocol):
    """Table of cylinders."""

    @property
    def problem(self) -> str | None: ...

    def start(self, on_connect: Callable[[], None]) -> None: ...

    async def close(self) -> None: ...

    async def fetch(self, cylinder_no: str) -> CylinderRow | None: ...


@dataclass(slots=True, eq=False)
class _RunningQuery:
    """A query that runs, and the requests that wait for it.

    :ivar began: time of its start, by the reactor's clock.
    """

    began: float
    waiting: list["Deferred[_Answer]"] = field(default_factory=list)


_Answer: TypeAlias = tuple[LookupOutcome, CylinderRecord | None]


class CylinderMaster:
    """Master data of cylinders, from the plant's table.

    :param source: the table.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        clock: WallClock,
        counters: Counters,
        settings: CylinderSettings,
        source: CylinderSource,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._lookups = counters.cylinder_lookups
        self._unreadable = counters.cylinder_unreadable
        self._log = LimitedLog(Logger("gateway.cylinders"), clock, counters, burst=1)
        self._source = source
        self._settings = settings
        #: By number, the least recently used first: the record, and the time until which it is valid.
        self._cache: OrderedDict[str, tuple[CylinderRecord | None, float]] = OrderedDict()
        self._queries: dict[str, _RunningQuery] = {}
        self._failure: str | None = None
        self._slow_in_a_row = 0
        self._recheck: IDelayedCall | None = None
        self._is_open = False

    def start(self) -> None:
        """Connect, and try the query as soon as that is possible."""
        self._is_open = True
        self._source.start(self._try_query)

    async def close(self) -> None:
        """Close the connections; look-ups from now on find nothing."""
        self._is_open = False
        if self._recheck is not None and self._recheck.active():
            self._recheck.cancel()
        await self._source.close()

    def update(self, settings: CylinderSettings) -> None:
        """Use another tolerance, time limit and time of caching."""
        if settings.cache_sec != self._settings.cache_sec:
            # Entries have the old time.
            self._cache.clear()
        self._settings = settings

    @property
    def cached(self) -> int:
        """Return the number of cached cylinders."""
        return len(self._cache)

    @property
    def problem(self) -> str | None:
        """Return why cylinders are not checked; ``None`` if they are."""
        if (problem := self._source.problem) is not None:
            return problem
        if self._failure is not None:
            return self._failure
        if self._slow_in_a_row >= MANY_SLOW:
            return f"cylinders.query takes more than {self._settings.timeout_ms} ms; add an index for it"
        return None

    async def check(self, cylinder_no: str, event_type: str, gross_kg: Decimal) -> CylinderJudgement:
        """Return the decision about a commit; it does not raise, and takes at most ``timeout_ms``."""
        try:
            record = await self.find(cylinder_no)
            if record is None:
                return UNCHECKED
            today = self._clock.now().date()
            return judge(record, event_type, gross_kg, self._settings.tolerance_kg, today)
        except Exception as error:
            # A defect here must not keep a plant from shipping. The error's text may hold the number.
            self._log.warn("defect", "cannot check a cylinder: {error}", error=type(error).__name__)
            return UNCHECKED

    async def describe(self, cylinder_no: str) -> dict[str, Any] | None:
        """Return the JSON form of the record of a cylinder; ``None`` if it has no row, or no answer comes in time."""
        try:
            record = await self.find(cylinder_no)
        except Exception as error:
            # The error's text may hold the number.
            self._log.warn("defect", "cannot look up a cylinder: {error}", error=type(error).__name__)
            return None
        if record is None:
            return None
        return {
            "tare_kg": None if record.tare_kg is None else float(record.tare_kg),
            "net_kg": None if record.net_kg is None else float(record.net_kg),
            "test_due": None if record.test_due is None else record.test_due.isoformat(),
            "blocked": record.is_blocked,
        }

    async def find(self, cylinder_no: str) -> CylinderRecord | None:
        """Return the record of a cylinder; ``None`` if it has no row, or no answer comes in time."""
        outcome, record = await self._find(cylinder_no)
        self._lookups.labels(outcome).inc()
        return record

    async def _find(self, cylinder_no: str) -> _Answer:
        cached = self._cache.get(cylinder_no)
        if cached is not None and self._reactor.seconds() < cached[1]:
            self._cache.move_to_end(cylinder_no)
            return "hit", cached[0]
        if not self._is_open:
            return "failed", None
        query, is_new = self._queries.get(cylinder_no), False
        if query is None:
            if len(self._queries) >= MAX_QUERIES:
                return "busy", None
            query, is_new = self._add_query(cylinder_no), True
        done: Deferred[_Answer] = Deferred()
        query.waiting.append(done)
        if is_new:
            Deferred.fromCoroutine(self._run_query(cylinder_no, query))
        return await done.addTimeout(self._settings.timeout_ms / 1000, self._reactor, _slow)

    def _add_query(self, cylinder_no: str) -> _RunningQuery:
        query = self._queries[cylinder_no] = _RunningQuery(self._reactor.seconds())
        return query

    async def _run_query(self, cylinder_no: str, query: _RunningQuery) -> None:
        """Run a query, cache its answer, and hand it to those that still wait."""
        answer: _Answer = "failed", None
        try:
            row = await self._source.fetch(cylinder_no)
            record = None if row is None else self._read(row)
            answer = "absent" if record is None else "found", record
            self._failure = None
            self._note_time(query.began)
            if cylinder_no != _PROBE:
                self._keep(cylinder_no, record)
        except CylinderQueryError as error:
            self._note_error(cylinder_no, error, query.began)
        except Exception as error:
            self._log.warn("defect", "cannot look up a cylinder: {error}", error=type(error).__name__)
        finally:
            del self._queries[cylinder_no]
            for done in query.waiting:
                done.callback(answer)

    def _read(self, row: CylinderRow) -> CylinderRecord:
        record, unreadable = read_record(row)
        for column in unreadable:
            self._unreadable.labels(column).inc()
            self._log.warn(
                f"unreadable {column}",
                "cylinders.query: a value of column {column} cannot be read, and counts as unknown",
                column=column,
            )
        return record

    def _keep(self, cylinder_no: str, record: CylinderRecord | None) -> None:
        seconds = self._settings.cache_sec if record is not None else min(ABSENT_SEC, self._settings.cache_sec)
        self._cache[cylinder_no] = record, self._reactor.seconds() + seconds
        self._cache.move_to_end(cylinder_no)
        while len(self._cache) > self._settings.cache_size:
            self._cache.popitem(last=False)

    def _note_time(self, began: float) -> None:
        if self._reactor.seconds() - began <= self._settings.timeout_ms / 1000:
            self._slow_in_a_row = 0
            return
        self._slow_in_a_row += 1
        if self._slow_in_a_row >= MANY_SLOW:
            self._log.warn("slow", "{problem}; cylinders are not checked", problem=self.problem)
            self._recheck_later()

    def _note_error(self, cylinder_no: str, error: CylinderQueryError, began: float) -> None:
        if self._source.problem is not None:
            # The connections log that themselves, and the query is tried again once there is one.
            return
        # A server's message may quote the statement.
        text = str(error).replace(cylinder_no, "...") if cylinder_no else str(error)
        if error.kind == "query":
            self._failure = f"cylinders.query failed: {text}; correct it, or what it reads"
            self._recheck_later()
        elif error.kind == "row":
            self._failure = None
        else:
            self._note_time(began)
        # A query may be unable to compare the number of no cylinder.
        if cylinder_no or error.kind == "query":
            self._log.warn("failed", "cylinders.query failed: {text}; cylinders are not checked", text=text)

    def _recheck_later(self) -> None:
        if self._is_open and (self._recheck is None or not self._recheck.active()):
            self._recheck = self._reactor.callLater(RECHECK_SEC, self._try_query)

    def _try_query(self) -> None:
        """Run the query for no cylinder, so that a problem shows, and ends, without a commit."""
        if not self._is_open or _PROBE in self._queries:
            return
        if len(self._queries) >= MAX_QUERIES:
            self._recheck_later()
        else:
            Deferred.fromCoroutine(self._run_query(_PROBE, self._add_query(_PROBE)))


def _slow(_: object, __: float) -> _Answer:
    return "slow", None
