"""REST interface of the old monitoring server: machines, means and anomalies."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import date
from functools import partial
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from twisted.web.http import Request

from gateway.live.state import LiveState
from gateway.model.names import name_of
from gateway.store.interface import MeansQuery, Page, PageRequest, Store
from gateway.timeseries.calendar import PERIODS
from gateway.web.http.answers import Refusal, answer, argument, handle_errors
from gateway.web.http.scopes import ScopedApp
from gateway.web.http.tabular import TableAnswer

_DATE: Final = TypeAdapter(date)
_FLAG: Final = TypeAdapter(bool)

#: Items of the first page of an answer, and maximum items of a later one: about 90 bytes each, or 300 with details.
_FIRST_PAGE: Final = 1000
_LARGEST_PAGE: Final = 4000

#: Columns of the answers.
_MEAN: Final = ("name", "time", "data")
_DETAIL: Final = (*_MEAN, "count", "min", "min_time", "max", "max_time", "rms", "std", "coverage", "start")
_ANOMALY: Final = ("name", "time", "score", "threshold")


class _InvalidQuery(Exception):
    """Error for missing or invalid query arguments.

    :ivar detail: list of errors in the old server's form.
    """

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        super().__init__("invalid query")
        self.detail = detail


class _Query:
    """Parser of query arguments that collects every error, like the old server's framework."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._detail: list[dict[str, Any]] = []

    def text(self, name: str) -> str:
        value = argument(self._request, name)
        if value is None:
            self._add_error("missing", name, "Field required", None)
        return value or ""

    def machine(self) -> str:
        """Return the name of a machine in its stored form."""
        text = self.text("machine")
        return name_of(text) or text

    def day(self, name: str) -> date:
        value = argument(self._request, name)
        if value is None:
            self._add_error("missing", name, "Field required", None)
            return date.min
        try:
            return _DATE.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]
            self._add_error(problem["type"], name, problem["msg"], value)
            return date.min

    def flag(self, name: str) -> bool:
        value = argument(self._request, name)
        try:
            return _FLAG.validate_python(value or False)
        except ValidationError as error:
            problem = error.errors()[0]
            self._add_error(problem["type"], name, problem["msg"], value)
            return False

    def check(self) -> None:
        """Raise :class:`_InvalidQuery` if there was an error."""
        if self._detail:
            raise _InvalidQuery(self._detail)

    def _add_error(self, kind: str, name: str, message: str, value: str | None) -> None:
        self._detail.append({"type": kind, "loc": ["query", name], "msg": message, "input": value})


class StatApi:
    """``/stat``."""

    app = ScopedApp()

    @app.handle_errors(_InvalidQuery)
    def _invalid(self, request: Any, failure: Any) -> bytes:
        detail = failure.value.detail
        reason = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in detail)
        request.refusal = Refusal(422, "invalid_request", "", detail=reason)
        return answer(request, {"detail": detail}, 422)

    handle_errors(app)

    def __init__(self, store: Store) -> None:
        self._store = store

    @app.route("/machineList", methods=["GET"], scope="read", strict_slashes=False)
    async def machines(self, request: Request) -> bytes:
        return answer(request, {"machine_list": await self._store.machines()})

    @app.route("/anomaly", methods=["GET"], scope="read", strict_slashes=False)
    async def anomalies(self, request: Request) -> bytes:
        query = _Query(request)
        machine, start, end = query.machine(), query.day("start"), query.day("end")
        query.check()
        return await _paged(request, "anomaly", _ANOMALY, partial(self._store.anomalies, machine, start, end))

    @app.route("/anomaly/all", methods=["GET"], scope="read", strict_slashes=False)
    async def all_anomalies(self, request: Request) -> bytes:
        query = _Query(request)
        start, end = query.day("start"), query.day("end")
        query.check()
        return await _paged(request, "anomaly", _ANOMALY, partial(self._store.anomalies, None, start, end))

    @app.route(f"/<any({','.join(PERIODS)}):period>", methods=["GET"], scope="read", strict_slashes=False)
    async def means(self, request: Request, period: str) -> bytes:
        query = _Query(request)
        machine, start, end = query.machine(), query.day("start"), query.day("end")
        detail = query.flag("detail")
        query.check()
        selection = MeansQuery(period, machine, start, end, detail=detail)
        return await _paged(request, period, _DETAIL if detail else _MEAN, partial(self._store.means, selection))


async def _paged(
    request: Request, name: str, columns: Sequence[str], ask: Callable[[PageRequest], Awaitable[Page]]
) -> bytes:
    """Answer with the pages of a query; an answer of one page has a Content-Length.

    The first page is small. Later ones grow, each fetched after the client has read the previous one: a client that
    reads nothing costs only the first page.

    :param name: name of the table.
    :param ask: function that returns a page.
    """
    table = TableAnswer(request, name, columns)
    first = await ask(PageRequest(None, _FIRST_PAGE, table.encode))
    if first.after is None:
        return table.whole(first.items)

    async def pages() -> AsyncGenerator[list[bytes], None]:
        page, limit = first, _FIRST_PAGE
        yield page.items
        while page.after is not None:
            limit = min(2 * limit, _LARGEST_PAGE)
            page = await ask(PageRequest(page.after, limit, table.encode))
            yield page.items

    return await table.send(pages())


class SioApi:
    """``/sio``: the HTTP part of the old server's Socket.IO interface."""

    app = ScopedApp()
    handle_errors(app)

    def __init__(self, live: LiveState) -> None:
        self._live = live

    @app.route("/machineList", methods=["GET"], scope="read", strict_slashes=False)
    def machines(self, request: Request) -> bytes:
        return answer(request, {"machine_list": [f"/{machine}" for machine in self._live.connected_machines()]})
