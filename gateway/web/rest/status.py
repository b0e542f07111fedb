"""State of the gateway: ``/healthz`` and ``/readyz`` for supervisors, ``/metrics`` for Prometheus, ``/`` for people."""

from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request

from gateway import __version__
from gateway.live.state import LiveState
from gateway.runtime.metrics import Counters
from gateway.runtime.readiness import Readiness
from gateway.web.http.answers import RETRY_AFTER, answer, body, handle_errors
from gateway.web.http.request import GatewayRequest
from gateway.web.http.scopes import ScopedApp
from gateway.web.http.tabular import preferred_type

#: Bounds for making the text of ``/metrics``, which takes milliseconds: seconds between two texts for one connection,
#: texts per second for all connections, and texts at once. Above them, the previous text is sent again.
_INTERVAL: Final = 1.0
_RATE: Final = 50.0
_BURST: Final = 200.0

_OPENMETRICS: Final = "application/openmetrics-text"


class StatusApi:
    """``/``, ``/healthz``, ``/readyz`` and ``/metrics``.

    :param problems: function that returns the current problems, one line each.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(
        self,
        reactor: IReactorTime,
        live: LiveState,
        counters: Counters,
        problems: Callable[[], list[str]],
        readiness: Readiness,
    ) -> None:
        self._reactor = reactor
        self._live = live
        #: The last texts of ``/metrics``, in OpenMetrics and not; the number of texts allowed at once, and the time of
        #: the last text: for all connections and for each one.
        self._texts: dict[bool, bytes] = {}
        self._allowed = _BURST
        self._made_at = reactor.seconds()
        self._made_for: dict[bool, WeakKeyDictionary[object, float]] = {
            is_open: WeakKeyDictionary() for is_open in (False, True)
        }
        self._problems = problems
        self._readiness = readiness
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
                    "/api/v1/scales",
                    "/api/v1/scales/<scale_id>",
                    "/api/v1/scales/<scale_id>/check-weigh",
                    "/sio/machineList",
                    "/stat/machineList",
                    "/stat/hour",
                    "/stat/day",
                    "/stat/month",
                    "/stat/year",
                    "/stat/anomaly",
                    "/stat/anomaly/all",
                    "/api/v1/machines/<name>/samples",
                    "/api/v1/commits",
                    "/api/v1/commits/<commit>",
                    "/api/v1/commits/<commit>/receipt",
                    "/api/v1/commits/<commit>/undo",
                    "/api/v1/cylinders/<cylinder>",
                    "/api/v1/record/head",
                    "/api/v1/record/heads",
                    "/ws",
                    "/events",
                    "/socket.io/",
                    "/asyncapi.json",
                    "/openapi.json",
                    "/docs",
                    "/healthz",
                    "/readyz",
                    "/metrics",
                ],
            },
        )

    @app.route("/healthz", methods=["GET"], scope=None, strict_slashes=False)
    def health(self, request: Request) -> bytes:
        problems = self._problems()
        request.setHeader(b"cache-control", b"no-store")
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

    @app.route("/readyz", methods=["GET"], scope=None, strict_slashes=False)
    def ready(self, request: GatewayRequest) -> bytes:
        report = self._readiness.report()
        state: dict[str, object] = {"ok": report.is_ready, "state": report.state}
        if "read" in request.principal.scopes:
            # Details name folders and addresses.
            state["parts"] = report.parts
        request.setHeader(b"cache-control", b"no-store")
        if report.is_ready:
            return answer(request, state)
        request.setHeader(b"retry-after", b"%d" % RETRY_AFTER)
        # The parts that are down have been logged.
        request.is_probe = True
        return answer(request, state, 503)

    @app.route("/metrics", methods=["GET"], scope="read", strict_slashes=False)
    def metrics(self, request: Request) -> bytes:
        now = self._reactor.seconds()
        is_open = preferred_type(request, "text/plain", _OPENMETRICS) == _OPENMETRICS
        channel, made_for = request.channel, self._made_for[is_open]
        is_due = now - made_for.get(channel, float("-inf")) >= _INTERVAL
        allowed = min(_BURST, self._allowed + _RATE * (now - self._made_at))
        if (is_due and allowed >= 1) or is_open not in self._texts:
            self._allowed = allowed - 1
            make = openmetrics.generate_latest if is_open else generate_latest
            self._texts[is_open] = make(self._counters.registry)
            self._made_at = made_for[channel] = now
        content_type = openmetrics.CONTENT_TYPE_LATEST if is_open else CONTENT_TYPE_LATEST
        return body(request, self._texts[is_open], content_type.encode())
