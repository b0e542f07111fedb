"""REST interface of scales: latest weight, and commits of shipped and returned cylinders."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import IResource

from gateway.auth.principal import Scope
from gateway.bus.bus import Bus
from gateway.config.settings import Settings
from gateway.live.state import LiveState
from gateway.model.records import CommitEntry, Reading
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import (
    IdempotencyConflict,
    OutcomeUnknown,
    RejectedByDatabase,
    Store,
    StoreUnavailable,
)
from gateway.web.http.answers import Refusal, answer, argument, encoded_answer, handle_errors, shield
from gateway.web.http.fast_routes import FastRoutes, Route
from gateway.web.http.scopes import ScopedApp
from gateway.web.rest.commit_request import CommitRequest, idempotency_key, json_body, parse_commit_request

log = Logger()

_CENT: Final = Decimal("0.01")


class ScaleApi:
    """``/api``."""

    app = ScopedApp()
    handle_errors(app)

    def __init__(
        self,
        live: LiveState,
        store: Store,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        settings: Settings,
    ) -> None:
        self._live = live
        self._store = store
        self._bus = bus
        self._clock = clock
        self._commits = counters.commits
        self._commit_seconds = counters.commit_seconds
        self.update(settings)
        #: By scale: the last reading that was requested, and the texts of its answer while it is fresh and stale.
        self._texts: dict[str, tuple[Reading, tuple[bytes, bytes]]] = {}

    def update(self, settings: Settings) -> None:
        """Use other scales and guards."""
        self._default_scale = settings.default_scale()
        #: By scale: maximum age, in seconds, of a weight that is committed; without it, any age.
        self._commit_max_age = {
            scale_id: line.commit_max_age_sec for scale_id, line in settings.scale_settings().items()
        }
        #: The same for the scales of other gateways.
        self._remote_max_age = settings.scale.commit_max_age_sec

    def resource(self) -> IResource:
        """Return the resource of all routes."""
        routes: dict[tuple[bytes, bytes], tuple[Scope, Route]] = {
            (b"GET", b"scale-gateway/latest"): ("read", self.latest),
            (b"POST", b"scale-gateway/commit"): ("commit", self.begin_commit),
        }
        return FastRoutes(routes, self.app.resource())

    @app.route("/scale-gateway/latest", methods=["GET"], scope="read")
    @app.route("/scale-gateway/latest/", methods=["GET"], scope="read")
    def latest(self, request: Request) -> bytes:
        scale_id = self._scale(argument(request, "scale_id"))
        reading = self._live.latest(scale_id)
        if reading is None:
            raise Refusal(404, "no_data")
        cached = self._texts.get(scale_id)
        if cached is None or cached[0] is not reading:
            self._texts[scale_id] = cached = reading, _latest_texts(reading)
        return encoded_answer(request, cached[1][self._live.is_stale(scale_id)])

    @app.route("/scale-gateway/commit", methods=["POST"], scope="commit")
    @app.route("/scale-gateway/commit/", methods=["POST"], scope="commit")
    def commit(self, request: Request) -> "Deferred[bytes]":
        return shield(self.begin_commit(request))

    def begin_commit(self, request: Request) -> "Deferred[bytes]":
        """Start a commit, which continues even if the client leaves."""
        return Deferred.fromCoroutine(self._commit(request))

    async def _commit(self, request: Request) -> bytes:
        try:
            body, outcome = await self._write_commit(request)
        except Refusal as refusal:
            self._commits.labels(refusal.error).inc()
            raise
        except IdempotencyConflict as error:
            self._commits.labels("idempotency_conflict").inc()
            detail = "the Idempotency-Key was used for another request"
            raise Refusal(422, "idempotency_conflict", detail=detail) from error
        except StoreUnavailable:
            self._commits.labels("store_unavailable").inc()
            raise
        except OutcomeUnknown as error:
            self._commits.labels("outcome_unknown").inc()
            raise Refusal(504, "outcome_unknown") from error
        except RejectedByDatabase as error:
            self._commits.labels("rejected_by_database").inc()
            raise Refusal(409, "rejected_by_database") from error
        self._commits.labels(outcome).inc()
        return answer(request, body)

    async def _write_commit(self, request: Request) -> tuple[dict[str, Any], str]:
        commit_request = parse_commit_request(json_body(request))
        key = idempotency_key(request, commit_request)
        scale_id = self._scale(commit_request.scale_id)
        try:
            entry = self._entry(commit_request, scale_id)
        except Refusal:
            # A repeated request gets its first answer, whatever the scale shows now.
            stored = None if key is None else await self._store.replay(key)
            if stored is None:
                raise
            return stored, "replayed"
        began = self._clock.monotonic()
        try:
            result = await self._store.commit(entry, key)
        finally:
            self._commit_seconds.observe(self._clock.monotonic() - began)
        if result.commit is None:
            return result.answer, "replayed"
        log.info("scale {scale_id}: commit {id} written", scale_id=scale_id, id=result.commit.id)
        self._bus.publish(result.commit)
        return result.answer, "ok"

    def _entry(self, request: CommitRequest, scale_id: str) -> CommitEntry:
        reading = self._live.latest(scale_id)
        if reading is None or reading.weight is None:
            raise Refusal(400, "no_stable_weight")
        max_age = self._commit_max_age.get(scale_id, self._remote_max_age)
        if max_age is not None and self._live.age(scale_id) > max_age:
            raise Refusal(409, "stale_weight")
        return CommitEntry(
            scale_id=scale_id,
            cylinder_no=request.cylinder_no,
            event_type=request.event_type,
            # Adding 0 turns -0.00, rounded from a weight such as -0.004 kg, into 0.00.
            gross_kg=reading.weight.quantize(_CENT, ROUND_HALF_UP) + 0,
            raw_line=reading.raw,
            received_at=reading.received_at,
            committed_at=self._clock.now(),
            arrival_shipping_no=request.arrival_shipping_no,
            move_report_no=request.move_report_no,
        )

    def _scale(self, requested: str | None) -> str:
        scale_id = requested or self._default_scale
        if not self._live.has_scale(scale_id):
            raise Refusal(404, "unknown_scale")
        return scale_id


def _latest_texts(reading: Reading) -> tuple[bytes, bytes]:
    """Return the JSON of the answer while the reading is fresh, and once it is stale."""
    fields = {"ok": True, **reading.payload()}
    del fields["kind"]
    return orjson.dumps({**fields, "stale": False}), orjson.dumps({**fields, "stale": True})
