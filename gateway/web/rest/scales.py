"""REST interface of scales: latest weight, and commits of shipped and returned cylinders."""

from typing import Any, Final

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import IResource

from gateway.auth.principal import Scope
from gateway.commits.order import CommitOrder, CommitRefused
from gateway.commits.service import CommitService
from gateway.config.settings import Settings
from gateway.live.state import LiveState
from gateway.model.records import Reading, Verdict
from gateway.runtime.metrics import Counters
from gateway.store.interface import (
    IdempotencyConflict,
    OutcomeUnknown,
    RejectedByDatabase,
    StoreUnavailable,
)
from gateway.web.http.answers import (
    Refusal,
    answer,
    argument,
    encoded_answer,
    handle_errors,
    refusal_of,
    shield,
)
from gateway.web.http.fast_routes import FastRoutes, Route
from gateway.web.http.scopes import ScopedApp
from gateway.web.rest.commit_request import idempotency_key, json_body, parse_commit_request

log = Logger()

#: Maximum texts of verdicts that are kept.
_MAX_VERDICT_TEXTS: Final = 1000


class ScaleApi:
    """``/api``."""

    app = ScopedApp()
    handle_errors(app)

    def __init__(self, live: LiveState, commits: CommitService, counters: Counters, settings: Settings) -> None:
        self._live = live
        self._service = commits
        self._commits = counters.commits
        self.update(settings)
        #: By scale: the last reading that was requested, and the beginning of its answer.
        self._texts: dict[str, tuple[Reading, bytes]] = {}
        #: Texts of the verdicts in answers; there are few.
        self._verdict_texts: dict[Verdict, bytes] = {}

    def update(self, settings: Settings) -> None:
        """Use other scales."""
        self._default_scale = settings.default_scale()

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
        verdict = self._live.verdict(scale_id)
        if reading is None:
            # A scale that sends net weights only would otherwise look dead.
            message = verdict.message if verdict.error == "only_net" else None
            english = verdict.english if verdict.error == "only_net" else None
            raise Refusal(404, "no_data", message, english=english)
        cached = self._texts.get(scale_id)
        if cached is None or cached[0] is not reading:
            fields = {"ok": True, **reading.payload()}
            del fields["commit"]
            self._texts[scale_id] = cached = reading, orjson.dumps(fields)[:-1]
        age = self._live.age(scale_id)
        stale = b"true" if self._live.is_stale(scale_id) else b"false"
        text = b'%b,"stale":%b,"age_ms":%d,"commit":%b}'
        return encoded_answer(request, text % (cached[1], stale, max(0.0, age) * 1000, self._text_of(verdict)))

    def _text_of(self, verdict: Verdict) -> bytes:
        text = self._verdict_texts.get(verdict)
        if text is None:
            # Some show a weight.
            if len(self._verdict_texts) >= _MAX_VERDICT_TEXTS:
                self._verdict_texts.clear()
            text = self._verdict_texts[verdict] = orjson.dumps(verdict.payload())
        return text

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
        except StoreUnavailable:
            self._commits.labels("store_unavailable").inc()
            raise
        except (IdempotencyConflict, OutcomeUnknown, RejectedByDatabase) as error:
            answered = refusal_of(error)
            self._commits.labels(answered.error).inc()
            raise answered from error
        self._commits.labels(outcome).inc()
        return answer(request, body)

    async def _write_commit(self, request: Any) -> tuple[dict[str, Any], str]:
        commit_request = parse_commit_request(json_body(request))
        order = CommitOrder(
            scale_id=self._scale(commit_request.scale_id),
            cylinder_no=commit_request.cylinder_no,
            event_type=commit_request.event_type,
            arrival_shipping_no=commit_request.arrival_shipping_no,
            move_report_no=commit_request.move_report_no,
            reading_id=commit_request.reading_id,
            override=commit_request.override,
            key=idempotency_key(request, commit_request.fingerprint()),
            by=request.principal.name or "operator",
        )
        try:
            result = await self._service.commit(order)
        except CommitRefused as refused:
            verdict = refused.verdict
            status = 400 if verdict.error == "no_stable_weight" else 409
            raise Refusal(status, verdict.error or "", verdict.message, english=verdict.english) from refused
        if result.commit is None:
            return result.answer, "replayed"
        return result.answer, "ok" if result.commit.ticket is None else "ticket"

    def _scale(self, requested: str | None) -> str:
        scale_id = requested or self._default_scale
        if not self._live.has_scale(scale_id):
            raise Refusal(404, "unknown_scale")
        return scale_id
