"""REST interface of the state of scales: ``/api/v1/scales``."""

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.web.http import Request

from gateway.commits.order import CommitRefused
from gateway.commits.service import CommitService
from gateway.live.state import LiveState
from gateway.runtime.clock import WallClock
from gateway.web.http.answers import Refusal, answer, handle_errors, shield
from gateway.web.http.scopes import ScopedApp
from gateway.web.rest.commit_request import json_body, json_object
from gateway.weighing.registry import Guards

#: Largest mass of a reference weight, in kilograms.
_MAX_NOMINAL: Final = Decimal(100_000)


class ScaleConnections(Protocol):
    """Connections of one scale to this gateway."""

    @property
    def line_age(self) -> float | None:
        """Return the seconds since the last line; ``None`` before the first line."""

    @property
    def peers(self) -> list[str]:
        """Return the addresses or devices of the open connections."""


class ScaleListApi:
    """``/api/v1/scales``.

    :ivar connections: returns the connections of the scales of this gateway, by scale; they are built later.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(
        self,
        live: LiveState,
        guards: Guards,
        commits: CommitService,
        clock: WallClock,
    ) -> None:
        self._live = live
        self._guards = guards
        self._commits = commits
        self._clock = clock
        self.connections: Callable[[], Mapping[str, ScaleConnections]] = dict

    @app.route("/", methods=["GET"], scope="read")
    def scales(self, request: Request) -> bytes:
        connections = self.connections()
        scales = [self._state(scale_id, connections.get(scale_id)) for scale_id in self._live.scale_ids()]
        return answer(request, {"ok": True, "scales": scales})

    @app.route("/<scale_id>", methods=["GET"], scope="read", strict_slashes=False)
    def scale(self, request: Request, scale_id: str) -> bytes:
        self._require(scale_id)
        return answer(request, {"ok": True, **self._state(scale_id, self.connections().get(scale_id))})

    @app.route("/<scale_id>/check-weigh", methods=["POST"], scope="commit", strict_slashes=False)
    def check_weigh(self, request: Any, scale_id: str) -> "Deferred[bytes]":
        return shield(Deferred.fromCoroutine(self._check_weigh(request, scale_id)))

    async def _check_weigh(self, request: Any, scale_id: str) -> bytes:
        self._require(scale_id)
        guard = self._guards.own().get(scale_id)
        if guard is None:
            raise Refusal(409, "other_gateway")
        nominal = _nominal(json_body(request))
        try:
            check = await self._commits.check_weigh(scale_id, nominal, request.principal.name or "operator")
        except CommitRefused as refused:
            verdict = refused.verdict
            raise Refusal(409, verdict.error or "", verdict.message, english=verdict.english) from refused
        settings, today = guard.settings.check_weigh, self._clock.now().date()
        fields = {
            "scale_id": scale_id,
            **check.payload(),
            "state": guard.passport.state(settings),
            "warnings": guard.passport.warnings(settings, today),
        }
        return answer(request, {"ok": True, **fields})

    def _require(self, scale_id: str) -> None:
        if not self._live.has_scale(scale_id):
            raise Refusal(404, "unknown_scale")

    def _state(self, scale_id: str, connections: ScaleConnections | None) -> dict[str, Any]:
        snapshot = self._live.scale_snapshot(scale_id)
        age = None if connections is None else connections.line_age
        guard = self._guards.own().get(scale_id)
        idle = self._live.idle_timeout(scale_id)
        latest = snapshot["latest"]
        if latest is not None:
            age_ms = int(max(0.0, self._live.age(scale_id)) * 1000)
            latest = {**latest, "age_ms": age_ms, "stale": self._live.is_stale(scale_id)}
        return {
            "scale_id": scale_id,
            "connected": snapshot["connected"],
            "is_local": guard is not None,
            "peer": None if connections is None or not connections.peers else connections.peers[-1],
            "last_line_age_sec": None if age is None else round(age, 3),
            "silent": bool(snapshot["connected"] and connections is not None and (age is None or age >= idle)),
            "latest": latest,
            "commit": snapshot["commit"],
            "is_armed": None if guard is None or guard.settings.zero_band_kg is None else guard.is_armed,
            "passport": None
            if guard is None
            else guard.passport.payload(guard.settings.check_weigh, self._clock.now().date()),
        }


def _nominal(body: bytes) -> Decimal:
    """Return the mass of the reference weight in a request, in kilograms.

    :raises Refusal: ``invalid_json`` or ``invalid_request``.
    """
    given = json_object(body).get("nominal_kg")
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Refusal(400, "invalid_request", "nominal_kg: 기준 분동의 질량(kg)이 필요합니다")
    try:
        nominal = Decimal(str(given))
    except InvalidOperation as error:
        raise Refusal(400, "invalid_request", "nominal_kg: 숫자여야 합니다") from error
    if not 0 < nominal <= _MAX_NOMINAL:
        raise Refusal(400, "invalid_request", f"nominal_kg: 0보다 크고 {_MAX_NOMINAL} 이하여야 합니다")
    return nominal
