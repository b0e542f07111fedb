"""The scale gateway's REST interface: the latest weight, and commits of shipped and returned cylinders."""

import hashlib
import re
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

import orjson
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import IResource

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.live import Live
from gateway.model import CommitEntry, Reading
from gateway.store.interface import (
    IdempotencyConflict,
    IdempotencyKey,
    OutcomeUnknown,
    RejectedByDatabase,
    Store,
    StoreUnavailable,
)
from gateway.web.answers import Refusal, answer, argument, encoded_answer, handle_errors, shielded
from gateway.web.direct import DirectFirst

log = Logger()

#: Columns of ``scale_weight_log`` are varchar(50).
_MOST: Final = 50

_EVENT_TYPES: Final = frozenset({"SHIP", "RETURN"})

#: No database keeps a NUL in a text, and no number of a cylinder has a line end.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_CENT: Final = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Order:
    """What a commit request asks for."""

    cylinder_no: str
    event_type: str
    arrival_shipping_no: str | None
    move_report_no: str | None
    scale_id: str | None

    def fingerprint(self) -> str:
        """The same for the same request, however its JSON is written."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()


def parse_order(body: bytes) -> Order:
    """Read the body of a commit request.

    :raises Refusal: ``invalid_json`` or ``invalid_request``.
    """
    try:
        value = orjson.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_request", "요청 본문은 JSON 객체여야 합니다")
    cylinder_no = _text(value, "cylinder_no")
    if cylinder_no is None:
        raise Refusal(400, "invalid_request", "cylinder_no가 필요합니다")
    event_type = value.get("event_type")
    event_type = event_type.strip() if isinstance(event_type, str) else ""
    # Some other letters become these in upper case, such as the long s.
    event_type = event_type.upper() if event_type.isascii() else ""
    if event_type not in _EVENT_TYPES:
        raise Refusal(400, "invalid_request", "event_type은 SHIP 또는 RETURN이어야 합니다")
    return Order(
        cylinder_no,
        event_type,
        _text(value, "arrival_shipping_no"),
        _text(value, "move_report_no"),
        _text(value, "scale_id"),
    )


def _text(value: dict[str, Any], field: str) -> str | None:
    text = value.get(field)
    if text is None:
        return None
    if not isinstance(text, str):
        raise Refusal(400, "invalid_request", f"{field}: 문자열이어야 합니다")
    text = text.strip()
    if len(text) > _MOST:
        raise Refusal(400, "invalid_request", f"{field}: {_MOST}자 이하여야 합니다")
    if _CONTROLS.search(text):
        raise Refusal(400, "invalid_request", f"{field}: 제어 문자를 포함할 수 없습니다")
    return text or None


class ScaleApi:
    """``/api``.

    :param default_scale: the scale that a request without ``scale_id`` means.
    :param commit_max_age: for each scale, seconds after which a weight is too old to be committed; ``None``: never.
    :param others_max_age: the same for the scales of other gateways.
    """

    app = Klein()
    handle_errors(app)

    def __init__(
        self,
        live: Live,
        store: Store,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        default_scale: str,
        commit_max_age: dict[str, float | None],
        others_max_age: float | None = None,
    ) -> None:
        self._live = live
        self._store = store
        self._bus = bus
        self._clock = clock
        self._commits = counters.commits
        self._default_scale = default_scale
        self._commit_max_age = commit_max_age
        self._others_max_age = others_max_age
        #: By scale: the last reading that was asked for and the answer's text, fresh and stale.
        self._texts: dict[str, tuple[Reading, tuple[bytes, bytes]]] = {}

    def resource(self) -> IResource:
        """What answers."""
        routes = {(b"GET", b"scale-gateway/latest"): self.latest, (b"POST", b"scale-gateway/commit"): self.begin_commit}
        return DirectFirst(routes, self.app.resource())

    @app.route("/scale-gateway/latest", methods=["GET"])
    @app.route("/scale-gateway/latest/", methods=["GET"])
    def latest(self, request: Request) -> bytes:
        scale_id = self._scale(argument(request, "scale_id"))
        reading = self._live.latest(scale_id)
        if reading is None:
            raise Refusal(404, "no_data")
        known = self._texts.get(scale_id)
        if known is None or known[0] is not reading:
            self._texts[scale_id] = known = reading, _latest_texts(reading)
        return encoded_answer(request, known[1][self._live.is_stale(scale_id)])

    @app.route("/scale-gateway/commit", methods=["POST"])
    @app.route("/scale-gateway/commit/", methods=["POST"])
    def commit(self, request: Request) -> "Deferred[bytes]":
        return shielded(self.begin_commit(request))

    def begin_commit(self, request: Request) -> "Deferred[bytes]":
        """A commit that goes on whether its client waits or not."""
        return Deferred.fromCoroutine(self._commit(request))

    async def _commit(self, request: Request) -> bytes:
        try:
            body, outcome = await self._committed(request)
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

    async def _committed(self, request: Request) -> tuple[dict[str, Any], str]:
        order = parse_order(_body(request))
        key = _idempotency_key(request, order)
        scale_id = self._scale(order.scale_id)
        try:
            entry = self._entry(order, scale_id)
        except Refusal:
            # A repeated request gets its first answer whatever the scale shows now.
            first = None if key is None else await self._store.replay(key)
            if first is None:
                raise
            return first, "replayed"
        result = await self._store.commit(entry, key)
        if result.commit is None:
            return result.answer, "replayed"
        log.info("scale {scale_id}: commit {id} is written", scale_id=scale_id, id=result.commit.id)
        self._bus.publish(result.commit)
        return result.answer, "ok"

    def _entry(self, order: Order, scale_id: str) -> CommitEntry:
        reading = self._live.latest(scale_id)
        if reading is None or reading.weight is None:
            raise Refusal(400, "no_stable_weight")
        most = self._commit_max_age.get(scale_id, self._others_max_age)
        if most is not None and self._live.age(scale_id) > most:
            raise Refusal(409, "stale_weight")
        return CommitEntry(
            scale_id=scale_id,
            cylinder_no=order.cylinder_no,
            event_type=order.event_type,
            # Adding 0 makes a -0.00, of a weight such as -0.004 kg, 0.00.
            gross_kg=reading.weight.quantize(_CENT, ROUND_HALF_UP) + 0,
            raw_line=reading.raw,
            received_at=reading.received_at,
            committed_at=self._clock.now(),
            arrival_shipping_no=order.arrival_shipping_no,
            move_report_no=order.move_report_no,
        )

    def _scale(self, asked: str | None) -> str:
        scale_id = asked or self._default_scale
        if not self._live.has_scale(scale_id):
            raise Refusal(404, "unknown_scale")
        return scale_id


def _latest_texts(reading: Reading) -> tuple[bytes, bytes]:
    """The answer's JSON while the reading is fresh, and once it is stale."""
    fields = {"ok": True, **reading.payload()}
    del fields["kind"]
    return orjson.dumps({**fields, "stale": False}), orjson.dumps({**fields, "stale": True})


def _body(request: Request) -> bytes:
    body: bytes = b"" if request.content is None else request.content.read()
    return body


def _idempotency_key(request: Request, order: Order) -> IdempotencyKey | None:
    headers = request.requestHeaders.getRawHeaders(b"idempotency-key", [b""])
    if len(headers) > 1:
        raise Refusal(400, "invalid_request", "Idempotency-Key: 헤더는 하나만 보낼 수 있습니다")
    try:
        key = headers[0].decode().strip()
    except UnicodeDecodeError:
        key = headers[0].decode("latin-1").strip()
    if not key:
        return None
    if len(key) > 255 or _CONTROLS.search(key):
        raise Refusal(400, "invalid_request", "Idempotency-Key: 255자 이하의 문자여야 합니다")
    return IdempotencyKey(key, order.fingerprint())
