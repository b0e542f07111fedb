"""State of the gateway: ``/healthz`` for a supervisor, ``/metrics`` for Prometheus, ``/`` for people."""

from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from gateway import __version__
from gateway.live.state import LiveState
from gateway.runtime.metrics import Counters
from gateway.web.http.answers import answer, body, handle_errors
from gateway.web.http.scopes import ScopedApp

#: Bounds for making the text of ``/metrics``, which takes milliseconds: seconds between two texts for one connection,
#: texts per second for all connections, and texts at once. Above them, the previous text is sent again.
_INTERVAL: Final = 1.0
_RATE: Final = 50.0
_BURST: Final = 200.0


class StatusApi:
    """``/``, ``/healthz`` and ``/metrics``.

    :param problems: function that returns the current problems, one line each.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(
        self, reactor: IReactorTime, live: LiveState, counters: Counters, problems: Callable[[], list[str]]
    ) -> None:
        self._reactor = reactor
        self._live = live
        #: The last text of ``/metrics``, the number of texts allowed at once, and the time of the last text: for all
        #: connections and for each one.
        self._metrics = b""
        self._allowed = _BURST
        self._made_at = reactor.seconds()
        self._made_for: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._problems = problems
        self._counters = counters

    @app.route("/", methods=["GET"], scope="read")
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

    @app.route("/healthz", methods=["GET"], scope=None, strict_slashes=False)
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

    @app.route("/metrics", methods=["GET"], scope="read", strict_slashes=False)
    def metrics(self, request: Request) -> bytes:
        now = self._reactor.seconds()
        channel = request.channel
        is_due = now - self._made_for.get(channel, float("-inf")) >= _INTERVAL
        allowed = min(_BURST, self._allowed + _RATE * (now - self._made_at))
        if is_due and allowed >= 1:
            self._allowed = allowed - 1
            self._metrics = generate_latest(self._counters.registry)
            self._made_at = self._made_for[channel] = now
        return body(request, self._metrics, CONTENT_TYPE_LATEST.encode())
