"""REST interface of the record's heads: ``/api/v1/record``."""

import orjson
from twisted.logger import Logger
from twisted.web.http import Request

from gateway.model.timestamps import rfc3339
from gateway.record.book import RecordBook
from gateway.record.table import HeadConflict, TooManyGateways
from gateway.runtime.clock import WallClock
from gateway.web.http.answers import Refusal, answer, handle_errors
from gateway.web.http.scopes import ScopedApp

log = Logger()

#: Maximum length of a head in characters.
_MAX_HEAD = 400


class RecordApi:
    """``/api/v1/record``."""

    app = ScopedApp()
    handle_errors(app)

    def __init__(self, book: RecordBook, clock: WallClock) -> None:
        self._book = book
        self._clock = clock

    @app.route("/head", methods=["GET"], scope="read", strict_slashes=False)
    async def head(self, request: Request) -> bytes:
        head = await self._book.read_head()
        request.setHeader(b"cache-control", b"no-store")
        return answer(
            request,
            {
                "ok": True,
                "gateway": head.gateway,
                "number": head.number,
                "hash": head.hash.hex(),
                "head": str(head),
                "time": rfc3339(self._clock.now()),
            },
        )

    @app.route("/heads", methods=["POST"], scope="commit", strict_slashes=False)
    async def heads(self, request: Request) -> bytes:
        text = _head_of(b"" if request.content is None else request.content.read())
        try:
            head = await self._book.take_foreign_head(text)
        except ValueError as error:
            raise Refusal(400, "invalid_request", "head: <gateway>:<number>:<hash> 형식이어야 합니다") from error
        except HeadConflict as error:
            log.error("record: {error}: that gateway's record was changed, or restored from a backup", error=error)
            raise Refusal(
                409,
                "head_conflict",
                "이미 받은 기록 헤드와 맞지 않습니다",
                english="The head contradicts one that was received before",
            ) from error
        except TooManyGateways as error:
            log.warn("record: a head is refused: {error}", error=error)
            raise Refusal(409, "too_many_gateways", "더 이상 다른 게이트웨이의 헤드를 저장할 수 없습니다") from error
        log.info("record: received head {head}", head=head)
        return answer(request, {"ok": True, "head": str(head)})


def _head_of(body: bytes) -> str:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "invalid_json") from error
    head = value.get("head") if isinstance(value, dict) else None
    if not isinstance(head, str) or len(head) > _MAX_HEAD:
        raise Refusal(400, "invalid_request", "head가 필요합니다")
    return head
