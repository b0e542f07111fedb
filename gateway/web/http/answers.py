"""Format of answers: JSON, and one form for all errors."""

import time
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, TypeVar

import orjson
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString
from werkzeug.datastructures import LanguageAccept
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.http import parse_accept_header
from werkzeug.routing import RequestRedirect

from gateway import __version__
from gateway.store.interface import IdempotencyConflict, OutcomeUnknown, RejectedByDatabase, StoreUnavailable

log = Logger()

T = TypeVar("T")

#: Seconds after which a client may repeat a request that was refused with 503.
RETRY_AFTER = 2

#: Content type with a charset, because older clients read JSON without one as Latin-1.
JSON: Final = b"application/json; charset=utf-8"

#: Content of the ``Server`` header.
SERVER: Final = f"cynow-gateway/{__version__}".encode()

_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}

_MESSAGES = {
    "invalid_json": "JSON 파싱 실패",
    "no_data": "저울 데이터가 없습니다",
    "no_stable_weight": "안정된 저울 데이터(ST)가 없습니다",
    "stale_weight": "저울 데이터가 오래되었습니다",
    "unknown_scale": "등록되지 않은 저울입니다",
    "other_gateway": "다른 게이트웨이에 연결된 저울입니다. 그 게이트웨이에서 점검하세요",
    "implausible_weight": "충전된 용기의 중량이 아닙니다. 용기 번호와 올려놓은 용기를 확인하세요",
    "cylinder_blocked": "사용이 금지되었거나 검사 기한이 지난 용기입니다",
    "unknown_commit": "해당 기록이 없습니다",
    "already_undone": "이미 취소된 기록입니다",
    "is_undo": "취소 기록은 다시 취소할 수 없습니다",
    "not_undoable": "출하(SHIP)나 회수(RETURN)가 아닌 기록은 취소할 수 없습니다",
    "unknown_cylinder": "이 용기의 기록이 없습니다",
    "unknown_sensor": "해당 센서의 원시 데이터가 없습니다",
    "unreadable_file": "원시 데이터 파일을 읽을 수 없습니다",
    "idempotency_conflict": "같은 Idempotency-Key가 다른 요청에 사용되었습니다",
    "store_unavailable": "저장소를 지금 사용할 수 없습니다. 잠시 후 다시 시도하세요",
    "outcome_unknown": "저장 여부를 확인하지 못했습니다. 같은 Idempotency-Key로 다시 요청하면 알 수 있습니다",
    "rejected_by_database": "데이터베이스가 이 내용을 거부했습니다. 기록되지 않았습니다",
    "bad_request": "잘못된 HTTP 요청입니다",
    "request_timeout": "요청이 너무 느립니다",
    "head_too_large": "요청 헤더가 너무 큽니다",
    "misdirected_request": "이 게이트웨이의 이름이 아닙니다",
    "unsupported_encoding": "압축된 요청 본문은 지원하지 않습니다",
    "too_many_connections": "연결이 너무 많습니다. 잠시 후 다시 시도하세요",
    "method_not_allowed": "허용되지 않는 메서드입니다",
    "not_found": "요청한 경로가 없습니다",
    "invalid_url": "URL이 UTF-8이 아닙니다",
    "body_too_large": "요청 본문이 너무 큽니다",
    "unauthorized": "인증이 필요합니다",
    "forbidden": "권한이 없습니다",
    "origin_not_allowed": "허용되지 않는 출처입니다",
    "too_many_subscribers": "구독자가 너무 많습니다",
    "upgrade_required": "WebSocket 연결이 필요합니다",
    "too_many_requests": "요청이 너무 잦습니다. 잠시 후 다시 시도하세요",
    "busy": "지금은 요청이 너무 많습니다. 잠시 후 다시 시도하세요",
    "internal_error": "서버 내부 오류",
}


def common_headers() -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of every answer, as names and values."""
    # The date changes once a second.
    return _common_headers(int(time.time()))


@lru_cache(maxsize=1)
def _common_headers(second: int) -> tuple[tuple[bytes, bytes], ...]:
    return (b"Server", SERVER), (b"Date", datetimeToString(second)), (b"X-Content-Type-Options", b"nosniff")


class Refusal(Exception):
    """An error answer to a request.

    :param error: error code, for programs.
    :param message: text for people; by default that of the error code.
    :param english: the same in English, for clients that prefer it; by default there is the one text only.
    :param detail: reason for the log, which the client does not get; by default the error code.
    :param challenge: content of the ``WWW-Authenticate`` header; empty for no header.
    :param retry_after: seconds after which the client may repeat the request; ``None`` for no such header, except that
        503 always has one.
    """

    def __init__(
        self,
        status: int,
        error: str,
        message: str | None = None,
        *,
        english: str | None = None,
        detail: str = "",
        challenge: bytes = b"",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(error)
        self.retry_after = RETRY_AFTER if retry_after is None and status == 503 else retry_after
        self.challenge = challenge
        self.status = status
        self.error = error
        self.message = _MESSAGES[error] if message is None else message
        self.english = english
        self.detail = detail or (error if message is None else f"{error}: {message}")

    @property
    def status_line(self) -> bytes:
        """The status code and phrase for the first line of an answer."""
        return b"%d %b" % (self.status, _PHRASES[self.status])

    def text(self, *, in_english: bool = False) -> bytes:
        """Return the body of the answer.

        :param in_english: whether the client prefers English.
        """
        message = self.english if in_english and self.english else self.message
        return orjson.dumps({"ok": False, "error": self.error, "message": message})

    def whole_answer(self, *headers: tuple[bytes, bytes]) -> bytes:
        """Return head and body of an answer to an incomplete request; the answer closes the connection."""
        text = self.text()
        lines = [
            b"%b: %b" % header
            for header in (
                *common_headers(),
                *headers,
                *([] if self.retry_after is None else [(b"Retry-After", b"%d" % self.retry_after)]),
                (b"Content-Type", JSON),
                (b"Content-Length", b"%d" % len(text)),
                (b"Connection", b"close"),
            )
        ]
        return b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (self.status_line, b"\r\n".join(lines), text)


def answer(request: Request, value: Any, status: int = 200) -> bytes:
    """Prepare a JSON answer; return its body."""
    return encoded_answer(request, orjson.dumps(value), status)


def encoded_answer(request: Request, text: bytes, status: int = 200) -> bytes:
    """Prepare an answer of encoded JSON; return its body."""
    # Twisted has no phrases for the newer status codes.
    request.setResponseCode(status, _PHRASES[status])
    return body(request, text, JSON)


def body(request: Request, content: bytes, content_type: bytes) -> bytes:
    """Prepare an answer with a known length; return its body."""
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"content-length", b"%d" % len(content))
    # For HEAD, Twisted would drop the body and log a line each time.
    return content if request.method != b"HEAD" else b""


def refuse(request: Request, refusal: Refusal) -> bytes:
    """Prepare the answer to a refused request; return its body."""
    if refusal.retry_after is not None:
        request.setHeader(b"retry-after", b"%d" % refusal.retry_after)
    if refusal.challenge:
        request.setHeader(b"www-authenticate", refusal.challenge)
    request.refusal = refusal  # type: ignore[attr-defined]  # every request is a GatewayRequest, which logs it
    return encoded_answer(request, refusal.text(in_english=prefers_english(request)), refusal.status)


def prefers_english(request: Request) -> bool:
    """Return whether a client prefers English to Korean."""
    header = b",".join(request.requestHeaders.getRawHeaders(b"accept-language", ())).decode("latin-1")
    if not header:
        return False
    return parse_accept_header(header, LanguageAccept).best_match(["ko", "en"]) == "en"


def refuse_method(request: Request, allowed: str) -> bytes:
    """Prepare the answer to a request with a method that its path does not allow; return its body.

    :param allowed: allowed methods, such as ``GET, HEAD``.
    """
    request.setHeader(b"allow", allowed.encode())
    return refuse(request, Refusal(405, "method_not_allowed", detail=f"allowed here: {allowed}"))


def refusal_of(error: IdempotencyConflict | OutcomeUnknown | RejectedByDatabase) -> Refusal:
    """Return the answer to a commit that the store did not write, or may not have written."""
    if isinstance(error, IdempotencyConflict):
        return Refusal(422, "idempotency_conflict", detail="the Idempotency-Key was used for another request")
    if isinstance(error, OutcomeUnknown):
        return Refusal(504, "outcome_unknown")
    return Refusal(409, "rejected_by_database")


def answer_failure(request: Request, failure: Failure) -> bytes:
    """Prepare the answer to a request that failed; return its body."""
    error = failure.value
    if isinstance(error, Refusal):
        return refuse(request, error)
    if isinstance(error, StoreUnavailable):
        return refuse(request, Refusal(503, "store_unavailable", detail=f"the store is unavailable: {error}"))
    log.failure("HTTP request failed: {method} {path}", failure, method=request.method, path=request.path)
    return refuse(request, Refusal(500, "internal_error"))


def handle_errors(app: Klein) -> None:
    """Answer all errors of a Klein app in the same form."""

    # Any: Klein passes only failures of the named exceptions, and GatewayRequests, which its types do not express.
    @app.handle_errors(MethodNotAllowed)
    def _method(self: Any, request: Any, failure: Any) -> bytes:
        return refuse_method(request, ", ".join(sorted(set(failure.value.valid_methods or ()))))

    # RequestRedirect: a path with too many slashes.
    @app.handle_errors(NotFound, RequestRedirect)
    def _missing(self: Any, request: Any, failure: Any) -> bytes:
        return refuse(request, Refusal(404, "not_found"))

    @app.handle_errors(Exception)
    def _failed(self: Any, request: Any, failure: Any) -> bytes:
        return answer_failure(request, failure)


def shield(work: "Deferred[T]") -> "Deferred[T]":
    """Return a Deferred whose cancellation does not cancel the work: Klein cancels a route when its client leaves."""
    waiting: Deferred[T] = Deferred()

    def forward(result: Any) -> None:
        if not waiting.called:
            waiting.callback(result)
        elif isinstance(result, Failure) and not result.check(Refusal):
            log.failure("HTTP request failed after its client had left", result)

    work.addBoth(forward)
    return waiting


def argument(request: Request, name: str) -> str | None:
    """Return a query argument, the last one if it is repeated; ``None`` if it is absent."""
    values = request.args.get(name.encode())
    return values[-1].decode("utf-8", "replace") if values else None
