"""REST interface of raw samples for plots: ``/api/v1/machines``."""

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import orjson
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
from gateway.web.http.scopes import ScopedApp
from gateway.web.http.tabular import TableAnswer
from gateway.web.rest.arguments import number_argument, time_argument

log = Logger()

#: Default and maximum of ``max_points``.
_POINTS: Final = 1000
_MAX_POINTS: Final = 100_000

#: Maximum concurrent answers; each takes 24 bytes for each point.
_MAX_ANSWERS: Final = 32

#: Maximum length of the time range, and its default without ``from``.
_MAX_RANGE: Final = timedelta(days=31)
_DEFAULT_RANGE: Final = timedelta(hours=1)
_SECOND: Final = timedelta(seconds=1)

_SamplePage: TypeAlias = list[dict[str, Any]]

_COLUMNS: Final = ("time", "min", "max", "count")


class _Reader:
    """Reader of pages, one at a time, for use in any thread."""

    def __init__(self, pages: "Generator[_SamplePage, None, None]") -> None:
        self._pages = pages
        self._lock = threading.Lock()

    def next(self) -> _SamplePage | None:
        """Return the next page; ``None`` after the last one."""
        with self._lock:
            return next(self._pages, None)

    def close(self) -> None:
        """Close the file that is being read."""
        with self._lock:
            self._pages.close()


class MachineApi:
    """``/api/v1/machines``.

    :param directory: directory of the raw files, ``data.path``.
    :param pool: threads that read files.
    :param flush: function that writes all buffered raw lines to their files.
    :param damage: log for damaged files.
    """

    app = ScopedApp()
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
        self._answers = 0

    @app.route("/<machine>/samples", methods=["GET"], scope="read", strict_slashes=False)
    async def samples(self, request: Request, machine: str) -> bytes:
        sensor = argument(request, "sensor")
        sensor = (sensor and name_of(sensor)) or sensor
        machine = name_of(machine) or machine
        if not sensor:
            raise Refusal(400, "invalid_request", "sensor가 필요합니다")
        begin, end = self._range(request)
        max_points = number_argument(request, "max_points", _POINTS, _MAX_POINTS)
        if self._answers >= _MAX_ANSWERS:
            raise Refusal(503, "busy")
        self._answers += 1
        try:
            today = self._clock.now().date()
            plot = Plot(self._clock.zone, begin, end, max_points, self._damage, today)
            return await self._answer(request, machine, sensor, plot)
        finally:
            self._answers -= 1

    async def _answer(self, request: Request, machine: str, sensor: str, plot: Plot) -> bytes:
        self._flush()

        def find_files() -> list[RawFile]:
            return [file for file in raw_files(self._directory, machine) if file.sensor == sensor]

        files = await deferToThreadPool(self._reactor, self._pool, find_files) if name_of(machine) else []
        if not files:
            raise Refusal(404, "unknown_sensor")
        begin, end = map(rfc3339, (plot.begin, plot.end))
        head = {"machine": machine, "sensor": sensor, "from": begin, "to": end, "points": []}
        before, _, after = orjson.dumps(head).rpartition(b"[]")
        table = TableAnswer(request, "samples", _COLUMNS, (before, after))
        return await table.send(self._pages(plot.points(files), table.encode))

    async def _pages(
        self, points: "Generator[_SamplePage, None, None]", encode: Callable[[_SamplePage], bytes]
    ) -> AsyncGenerator[list[bytes], None]:
        reader = _Reader(points)
        try:
            while (page := await deferToThreadPool(self._reactor, self._pool, reader.next)) is not None:
                yield [encode(page)] if page else []
        except UnreadableFile as error:
            log.error("cannot read a raw file: {error}", error=error)
            raise Refusal(500, "unreadable_file") from error
        finally:
            # In the pool: a page may still be in progress when the client leaves.
            self._pool.callInThread(reader.close)

    def _range(self, request: Request) -> tuple[datetime, datetime]:
        # The current second is included.
        zone = self._clock.zone
        end = time_argument(request, "to", zone, whole_day=True)
        end = end or self._clock.now().replace(microsecond=0) + _SECOND
        begin = time_argument(request, "from", zone, whole_day=False)
        if begin is None:
            begin = datetime.fromtimestamp(end.timestamp() - _DEFAULT_RANGE.total_seconds(), zone)
        # Compared as timestamps: when clocks go back, an hour repeats.
        length = end.timestamp() - begin.timestamp()
        if length <= 0:
            raise Refusal(400, "invalid_request", "from은 to보다 앞서야 합니다")
        if length > (_MAX_RANGE + timedelta(hours=1)).total_seconds():
            raise Refusal(400, "invalid_request", f"from과 to의 간격은 {_MAX_RANGE.days}일 이하여야 합니다")
        return begin, end
