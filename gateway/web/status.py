"""How the daemon is: ``/healthz`` for a supervisor, ``/metrics`` for Prometheus, ``/`` for who looks in."""

from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from klein import Klein
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from gateway import __version__
from gateway.counters import Counters
from gateway.live import Live
from gateway.web.answers import answer, body, handle_errors

#: Making the text of ``/metrics`` takes 10 ms: it is made once a second at most, and so many times in a row for those
#: who seldom ask. One more waits for the next, but a connection that was given the last one gets that again.
_FRESH: Final = 5.0


class StatusApi:
    """``/`` and the single words below it.

    :param problems: says what does not work as it should; one line each.
    """

    app = Klein()
    handle_errors(app)

    def __init__(
        self, reactor: IReactorTime, live: Live, counters: Counters, problems: Callable[[], list[str]]
    ) -> None:
        self._reactor = reactor
        self._live = live
        #: How many times the text of ``/metrics`` may be made at once, and when that was counted.
        self._fresh = _FRESH
        self._counted_at = reactor.seconds()
        #: The last text, the connections that were given it, and who waits for the next.
        self._metrics = b""
        self._given: WeakSet[object] = WeakSet()
        self._waiting: list[Deferred[None]] = []
        self._problems = problems
        self._counters = counters

    @app.route("/", methods=["GET"])
    def index(self, request: Request) -> bytes:
        return answer(
            request,
            {
                "name": "cynow-gateway",
                "version": __version__,
                "paths": [
                    "/api/scale-gateway/latest/",
                    "/api/scale-gateway/commit/",
                    "/sio/machineList",
                    "/stat/machineList",
                    "/stat/hour",
                    "/stat/day",
                    "/stat/month",
                    "/stat/year",
                    "/stat/anomaly",
                    "/stat/anomaly/all",
                    "/api/v1/machines/<name>/samples",
                    "/ws",
                    "/events",
                    "/socket.io/",
                    "/asyncapi.json",
                    "/healthz",
                    "/metrics",
                ],
            },
        )

    @app.route("/healthz", methods=["GET"], strict_slashes=False)
    def health(self, request: Request) -> bytes:
        problems = self._problems()
        return answer(
            request,
            {
                "ok": not problems,
                "problems": problems,
                "version": __version__,
                "scales": {
                    scale_id: self._live.scale_snapshot(scale_id)["connected"] for scale_id in self._live.scale_ids()
                },
                "machines": len(self._live.connected_machines()),
            },
        )

    @app.route("/metrics", methods=["GET"], strict_slashes=False)
    async def metrics(self, request: Request) -> bytes:
        channel = request.channel
        if not self._make_if_due() and channel not in self._given:
            await self._next_metrics()
        self._given.add(channel)
        return body(request, self._metrics, CONTENT_TYPE_LATEST.encode())

    def _make_if_due(self) -> bool:
        """Make the text anew, unless that was done too often; return whether it was made."""
        now = self._reactor.seconds()
        self._fresh = min(_FRESH, self._fresh + now - self._counted_at)
        self._counted_at = now
        if self._fresh < 1:
            return False
        self._fresh -= 1
        self._make_metrics()
        return True

    def _make_metrics(self) -> None:
        self._metrics = generate_latest(self._counters.registry)
        self._given.clear()

    def _next_metrics(self) -> "Deferred[None]":
        """Fires when the text is made again, in less than a second."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._reactor.callLater(1 - self._fresh, self._give_metrics)
        return waiting

    def _give_metrics(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._fresh, self._counted_at = 0.0, self._reactor.seconds()
        self._make_metrics()
        for each in waiting:
            each.callback(None)
