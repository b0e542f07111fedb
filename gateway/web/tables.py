"""Answers that are tables: JSON or, where the client asks for it, CSV; sent as fast as the client reads."""

import csv
import io
from collections.abc import AsyncGenerator, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

import orjson
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.http import Request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from zope.interface import implementer

from gateway.web.answers import Refusal

log = Logger()

_JSON: Final = "application/json"
_CSV: Final = "text/csv"


def wants_csv(request: Request) -> bool:
    """Whether the client would rather have CSV than JSON."""
    request.responseHeaders.addRawHeader(b"vary", b"Accept")
    header = b",".join(request.requestHeaders.getRawHeaders(b"accept", [])).decode("latin-1")
    # Parameters, such as a charset, are of no matter.
    accepted = [(kind.partition(";")[0].strip(), quality) for kind, quality in parse_accept_header(header, MIMEAccept)]
    return MIMEAccept(accepted).best_match([_JSON, _CSV]) == _CSV


class Table:
    """One answer; rows are dicts with these columns, of which there are several.

    :param name: of the file that a browser saves CSV as.
    :param head: JSON that stands around the list of rows, before it and behind it.
    """

    def __init__(
        self, request: Request, name: str, columns: Sequence[str], head: tuple[bytes, bytes] = (b"", b"")
    ) -> None:
        self._request = request
        self._columns = columns
        self._before, self._behind = head
        self._csv = wants_csv(request)
        self._name = name
        self._rows = 0

    def whole(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """The answer with all its rows."""
        begin, end = self._begin(), self._end()
        # Half a megabyte is not copied again and again.
        content = orjson.dumps(rows) if (begin, end) == (b"[", b"]") else begin + self._text(rows) + end
        self._request.setHeader(b"content-length", b"%d" % len(content))
        return content

    async def send(self, pages: AsyncGenerator[Sequence[dict[str, Any]], None]) -> bytes:
        """Send the answer, page by page.

        What fails after the first page cuts the connection: by then the client has been told that all is well.

        :raises Exception: what the first page raises.
        """
        drain = _Drain()
        try:
            first = await anext(pages, ())
        except BaseException:
            await pages.aclose()
            raise
        self._request.write(self._begin() + self._text(first))
        self._request.registerProducer(drain, True)
        try:
            while (rows := await anext(pages, None)) is not None:
                self._request.write(self._text(rows))
                await drain.wait()
        except CancelledError:
            raise
        except Refusal:  # whoever refuses has said why
            self._request.channel.forceAbortClient()
            return b""
        except Exception:  # whatever it is, the answer must not look complete
            log.failure("an answer could not be finished: {path}", path=self._request.path)
            self._request.channel.forceAbortClient()
            return b""
        finally:
            if not drain.gone:
                self._request.unregisterProducer()
            await pages.aclose()
        return self._end()

    def _begin(self) -> bytes:
        kind = f"{_CSV}; charset=utf-8" if self._csv else _JSON
        self._request.setHeader(b"content-type", kind.encode())
        if self._csv:
            self._request.setHeader(b"content-disposition", f'attachment; filename="{self._name}.csv"'.encode())
        return _csv_text([self._columns]) if self._csv else self._before + b"["

    def _text(self, rows: Sequence[dict[str, Any]]) -> bytes:
        if not rows:
            return b""
        if self._csv:
            return _csv_text(map(itemgetter(*self._columns), rows))
        text = orjson.dumps(rows)[1:-1]
        text = b"," + text if self._rows else text
        self._rows += len(rows)
        return text

    def _end(self) -> bytes:
        return b"" if self._csv else b"]" + self._behind


def _csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as RFC 4180 has them; what is not known is an empty field."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


@implementer(IPushProducer)
class _Drain:
    """Says when a client can take more."""

    def __init__(self) -> None:
        self.gone = False
        self._paused: Deferred[None] | None = None

    def wait(self) -> "Deferred[None]":
        """Fires when the client has read enough, or has left."""
        waiting: Deferred[None] = Deferred()
        if self._paused is None:
            waiting.callback(None)
        else:
            self._paused.chainDeferred(waiting)
        return waiting

    def pauseProducing(self) -> None:
        if self._paused is None:
            self._paused = Deferred()

    def resumeProducing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def stopProducing(self) -> None:
        self.gone = True
        self.resumeProducing()
