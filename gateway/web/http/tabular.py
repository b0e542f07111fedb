"""Tables as answers: JSON, or CSV if the client asks for it, sent as fast as the client reads."""

import codecs
import csv
import io
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
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

from gateway.web.http.answers import JSON, Refusal

log = Logger()

_JSON: Final = "application/json"
_JSON_TYPE: Final = JSON.decode()
_CSV: Final = "text/csv"

#: Characters with which a spreadsheet begins a formula, the full-width ones included.
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

#: Maximum pieces of an answer that is sent in one write.
_MAX_JOINED: Final = 4


def wants_csv(request: Request) -> bool:
    """Return whether the client prefers CSV to JSON."""
    return preferred_type(request, _JSON, _CSV) == _CSV


def preferred_type(request: Request, *offered: str) -> str | None:
    """Return the offered content type that the client prefers, the first if it has no preference; ``None`` for none."""
    # Every answer depends on the Origin.
    request.setHeader(b"vary", b"Origin, Accept")
    header = b",".join(request.requestHeaders.getRawHeaders(b"accept", [])).decode("latin-1")
    # Parameters, such as a charset, do not matter.
    accepted = [(kind.partition(";")[0].strip(), quality) for kind, quality in parse_accept_header(header, MIMEAccept)]
    return MIMEAccept(accepted).best_match(offered)


class TableAnswer:
    """Answer whose rows are dicts with the same columns.

    :param name: name of the file, without its extension, as which a browser saves CSV.
    :param columns: names of at least two columns.
    :param head: JSON before and after the list of rows.
    :param csv_form: whether the answer is CSV; ``None`` to let the ``Accept`` header decide.
    :param for_excel: whether CSV has a byte order mark, and no cell that a spreadsheet takes for a formula.
    """

    def __init__(
        self,
        request: Request,
        name: str,
        columns: Sequence[str],
        head: tuple[bytes, bytes] = (b"", b""),
        *,
        csv_form: bool | None = None,
        for_excel: bool = False,
    ) -> None:
        self._request = request
        self._columns = columns
        self._before, self._after = head
        self._csv = wants_csv(request) if csv_form is None else csv_form
        self._for_excel = for_excel
        self._name = name
        self._is_first = True

    def encode(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """Return one or more rows as a piece of the answer. It may be called in any thread."""
        if self._csv:
            cells = map(itemgetter(*self._columns), rows)
            return _csv_text([list(map(_harmless, row)) for row in cells] if self._for_excel else cells)
        return orjson.dumps(rows)[1:-1]

    def whole(self, pieces: Sequence[bytes]) -> bytes:
        """Send the answer with all its rows; return the last part of it.

        A large answer is sent in pieces: a single one would be copied several times.
        """
        pieces = [self._begin(), *self._separated(pieces), self._end()]
        self._request.setHeader(b"content-length", b"%d" % sum(map(len, pieces)))
        if len(pieces) > _MAX_JOINED:
            # The head of the answer is sent together with the first piece.
            for piece in (b"".join(pieces[:_MAX_JOINED]), *pieces[_MAX_JOINED:]):
                self._request.write(piece)
            return b""
        return b"".join(pieces)

    async def send(self, pages: AsyncGenerator[list[bytes], None]) -> bytes:
        """Send the answer page by page; return the last part of it.

        An error after the first page closes the connection: the client has already got the status 200.

        :raises Exception: the error of the first page.
        """
        drain = _Drain()
        try:
            first: list[bytes] = await anext(pages, [])
        except BaseException:
            await pages.aclose()
            raise
        # Registered before the first page, which may already be more than the client reads.
        self._request.registerProducer(drain, True)
        self._request.write(self._begin() + self._joined(first))
        try:
            await drain.wait()
            while (pieces := await anext(pages, None)) is not None:
                self._request.write(self._joined(pieces))
                await drain.wait()
        except CancelledError:
            raise
        except Refusal:  # already logged
            self._request.channel.forceAbortClient()
            return b""
        except Exception:  # after any error, the answer must not look complete
            log.failure("HTTP request {path}: cannot finish the answer; connection closed", path=self._request.path)
            self._request.channel.forceAbortClient()
            return b""
        finally:
            # Without a client, the request has no channel.
            if not getattr(self._request, "is_gone", False):
                self._request.unregisterProducer()
            await pages.aclose()
        return self._end()

    def _begin(self) -> bytes:
        kind = f"{_CSV}; charset=utf-8" if self._csv else _JSON_TYPE
        self._request.setHeader(b"content-type", kind.encode())
        if self._csv:
            self._request.setHeader(b"content-disposition", f'attachment; filename="{self._name}.csv"'.encode())
        mark = codecs.BOM_UTF8 if self._for_excel else b""
        return mark + _csv_text([self._columns]) if self._csv else self._before + b"["

    def _joined(self, pieces: list[bytes]) -> bytes:
        """Return a page in one piece, and release its parts, which would otherwise be held while the client reads."""
        text = b"".join(self._separated(pieces))
        pieces.clear()
        return text

    def _separated(self, pieces: Sequence[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._is_first or self._csv:
                self._is_first = False
                yield piece
            else:
                yield b","
                yield piece

    def _end(self) -> bytes:
        return b"" if self._csv else b"]" + self._after


def _csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as CSV of RFC 4180; ``None`` is an empty field."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _harmless(cell: Any) -> Any:
    """Return a cell of which a spreadsheet makes no formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(_FORMULA) else cell


@implementer(IPushProducer)
class _Drain:
    """Producer that lets the sender wait until the client reads.

    A wait does not end when the client leaves: Klein cancels it then.
    """

    def __init__(self) -> None:
        self._paused: Deferred[None] | None = None

    def wait(self) -> "Deferred[None]":
        """Return a Deferred that fires when the client has read enough."""
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
        self.pauseProducing()
