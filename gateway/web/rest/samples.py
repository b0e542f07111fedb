"""What there is of machines beside the old server's interface: raw samples for plots."""

import re
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import datetime, time, timedelta
from typing import Any, Final, TypeAlias

import orjson
from klein import Klein
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from twisted.web.http import Request

from gateway.model.names import name_of
from gateway.model.timestamps import rfc3339
from gateway.raw.damage import DamageLog
from gateway.raw.files import RawFile, UnreadableFile, raw_files
from gateway.raw.plot import Plot
from gateway.runtime.clock import WallClock
from gateway.web.http.answers import Refusal, argument, handle_errors
from gateway.web.http.tabular import TableAnswer

log = Logger()

#: Points of an answer that does not say how many, and of one that says too many.
_POINTS: Final = 1000
_MOST_POINTS: Final = 100_000

#: Answers that may be under way at a time; each takes 24 bytes a point.
_MOST_ANSWERS: Final = 32

#: What an answer covers at most, and what one covers that says no beginning.
_LONGEST: Final = timedelta(days=31)
_USUAL: Final = timedelta(hours=1)
_SECOND: Final = timedelta(seconds=1)

_SamplePage: TypeAlias = list[dict[str, Any]]

_COLUMNS: Final = ("time", "min", "max", "count")

#: A plus sign that was not escaped in a query is a blank when it comes.
_LOST_PLUS: Final = re.compile(r"(\d\d:\d\d[\d:.]*) (\d\d(:?\d\d)?)")


class _Reader:
    """Makes pages, in any thread, one at a time."""

    def __init__(self, pages: "Generator[_SamplePage, None, None]") -> None:
        self._pages = pages
        self._lock = threading.Lock()

    def next(self) -> _SamplePage | None:
        """The next page; ``None`` where there is none."""
        with self._lock:
            return next(self._pages, None)

    def close(self) -> None:
        """Let go of the file that is being read."""
        with self._lock:
            self._pages.close()


class MachineApi:
    """``/api/v1/machines``.

    :param directory: ``data.path``.
    :param pool: of threads that read files.
    :param flush: hands all raw lines to the operating system.
    :param damage: log for damaged files.
    """

    app = Klein()
    handle_errors(app)

    def __init__(
        self,
        reactor: IReactorFromThreads,
        clock: WallClock,
        directory: str,
        pool: ThreadPool,
        flush: Callable[[], None],
        damage: DamageLog,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._directory = directory
        self._pool = pool
        self._flush = flush
        self._damage = damage
        self._under_way = 0

    @app.route("/<machine>/samples", methods=["GET"], strict_slashes=False)
    async def samples(self, request: Request, machine: str) -> bytes:
        sensor = argument(request, "sensor")
        sensor = (sensor and name_of(sensor)) or sensor
        machine = name_of(machine) or machine
        if not sensor:
            raise Refusal(400, "invalid_request", "sensor가 필요합니다")
        begin, end = self._range(request)
        most = _number(request, "max_points", _POINTS, _MOST_POINTS)
        if self._under_way >= _MOST_ANSWERS:
            raise Refusal(503, "busy")
        self._under_way += 1
        try:
            today = self._clock.now().date()
            plot = Plot(self._clock.zone, begin, end, most, self._damage, today)
            return await self._answer(request, machine, sensor, plot)
        finally:
            self._under_way -= 1

    async def _answer(self, request: Request, machine: str, sensor: str, plot: Plot) -> bytes:
        self._flush()

        def look() -> list[RawFile]:
            return [file for file in raw_files(self._directory, machine) if file.sensor == sensor]

        its = await deferToThreadPool(self._reactor, self._pool, look) if name_of(machine) else []
        if not its:
            raise Refusal(404, "unknown_sensor")
        begin, end = map(rfc3339, (plot.begin, plot.end))
        head = {"machine": machine, "sensor": sensor, "from": begin, "to": end, "points": []}
        before, _, behind = orjson.dumps(head).rpartition(b"[]")
        table = TableAnswer(request, "samples", _COLUMNS, (before, behind))
        return await table.send(self._pages(plot.points(its), table.encode))

    async def _pages(
        self, points: "Generator[_SamplePage, None, None]", encode: Callable[[_SamplePage], bytes]
    ) -> AsyncGenerator[list[bytes], None]:
        reader = _Reader(points)
        try:
            while (page := await deferToThreadPool(self._reactor, self._pool, reader.next)) is not None:
                yield [encode(page)] if page else []
        except UnreadableFile as error:
            log.error("a raw file cannot be read: {error}", error=error)
            raise Refusal(500, "unreadable_file") from error
        finally:
            # The client may have left while a page is being made.
            self._pool.callInThread(reader.close)

    def _range(self, request: Request) -> tuple[datetime, datetime]:
        # Samples of the second that has begun may be in what comes after now.
        end = self._time(request, "to", whole_day=True) or self._clock.now().replace(microsecond=0) + _SECOND
        begin = self._time(request, "from", whole_day=False)
        if begin is None:
            begin = datetime.fromtimestamp(end.timestamp() - _USUAL.total_seconds(), self._clock.zone)
        # By their moments: an hour may come twice.
        length = end.timestamp() - begin.timestamp()
        if length <= 0:
            raise Refusal(400, "invalid_request", "from은 to보다 앞서야 합니다")
        if length > (_LONGEST + timedelta(hours=1)).total_seconds():
            raise Refusal(400, "invalid_request", f"from과 to의 간격은 {_LONGEST.days}일 이하여야 합니다")
        return begin, end

    def _time(self, request: Request, name: str, *, whole_day: bool) -> datetime | None:
        """A time of the query: ISO 8601, the wall clock's where it has no offset.

        :param whole_day: a date alone means its end.
        """
        given = argument(request, name)
        if not given:
            return None
        try:
            found = datetime.fromisoformat(_LOST_PLUS.sub(r"\1+\2", given))
            if found.tzinfo is None:
                found = found.replace(tzinfo=self._clock.zone)
            if whole_day and len(given) <= len("2025-12-18"):
                found = datetime.combine(found.date() + timedelta(days=1), time(), found.tzinfo)
            if not 1970 <= found.year < 9999:
                raise ValueError("a time around which there are no others")
            return found.astimezone(self._clock.zone)
        except (ValueError, OverflowError) as error:
            raise Refusal(400, "invalid_request", f"{name}: ISO 8601 시각이어야 합니다") from error


def _number(request: Request, name: str, default: int, most: int) -> int:
    given = argument(request, name)
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= most):
        raise Refusal(400, "invalid_request", f"{name}: 1에서 {most} 사이의 정수여야 합니다")
    return int(given)
