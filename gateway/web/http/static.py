"""Static files of a page: small, read once, sent as fast as the client reads."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IPullProducer, IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.web.http import CACHED
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.http import parse_accept_header
from zope.interface import implementer

from gateway.web.http.answers import Refusal, answer_failure, refuse, refuse_method

#: Content types by suffix; those of text are compressed.
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}

#: Bytes of a file that are written at a time.
_PIECE: Final = 64 * 1024

#: A page runs the scripts of its own files only, and no other page may show it in a frame.
_PAGE_POLICY: Final = b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """Content of a file.

    :ivar kind: content type.
    :ivar tag: hash of the content.
    :ivar compressed: the content as gzip; empty if it is not text.
    """

    kind: bytes
    tag: bytes
    content: bytes
    compressed: bytes

    @classmethod
    def read(cls, path: Path) -> "StaticFile":
        """Read a file."""
        content = path.read_bytes()
        kind = _TYPES[path.suffix]
        compressed = gzip.compress(content, mtime=0) if "charset" in kind else b""
        return cls(kind.encode(), hashlib.sha256(content).hexdigest()[:20].encode(), content, compressed)


class StaticFiles(Resource):
    """Resource of a page and its files, open to everybody.

    A file is read in a thread for its first request, and kept: a page and its script stay of one version while the
    package is upgraded.

    :ivar paths: paths of the files by name; the empty name is the page itself.
    :param policy: ``Content-Security-Policy``, beside rules that hold for every page.
    """

    isLeaf = True

    def __init__(
        self,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        files: Mapping[str, Path],
        policy: str = "default-src 'self'",
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._pool = pool
        self.paths = files
        self._policy = policy.encode() + b"; " + _PAGE_POLICY
        self._files: dict[str, StaticFile] = {}
        # A second request for a file waits until the first has read it.
        self._reading = DeferredLock()

    def render(self, request: Any) -> Any:
        if request.method not in {b"GET", b"HEAD"}:
            return refuse_method(request, "GET, HEAD")
        name = b"/".join(request.postpath).decode("latin-1")
        if name not in self.paths:
            return refuse(request, Refusal(404, "not_found"))
        Deferred.fromCoroutine(self._send(request, name)).addErrback(_fail, request)
        return NOT_DONE_YET

    async def _send(self, request: Any, name: str) -> None:
        file = self._files.get(name) or await self._read(name)
        if request.is_gone:
            return
        encodings = b",".join(request.requestHeaders.getRawHeaders(b"accept-encoding", [])).decode("latin-1")
        is_compressed = bool(file.compressed) and parse_accept_header(encodings).quality("gzip") > 0
        request.responseHeaders.addRawHeader(b"vary", b"Accept-Encoding")
        request.setHeader(b"content-security-policy", self._policy)
        # The client asks each time, and gets the file only if it has changed.
        request.setHeader(b"cache-control", b"no-cache")
        if request.setETag(b'"%b%b"' % (file.tag, b"-gzip" if is_compressed else b"")) is CACHED:
            request.finish()
            return
        content = file.compressed if is_compressed else file.content
        if is_compressed:
            request.setHeader(b"content-encoding", b"gzip")
        request.setHeader(b"content-type", file.kind)
        request.setHeader(b"content-length", b"%d" % len(content))
        if request.method == b"HEAD":
            request.write(b"")
            request.finish()
        else:
            request.registerProducer(_ContentProducer(request, content), False)

    async def _read(self, name: str) -> StaticFile:
        file = await self._reading.run(self._read_once, name)
        assert isinstance(file, StaticFile)
        return file

    def _read_once(self, name: str) -> "StaticFile | Deferred[StaticFile]":
        if name in self._files:
            return self._files[name]
        reading = deferToThreadPool(self._reactor, self._pool, StaticFile.read, self.paths[name])

        def keep(file: StaticFile) -> StaticFile:
            self._files[name] = file
            return file

        return reading.addCallback(keep)


@implementer(IPullProducer)
class _ContentProducer:
    """Producer that writes a file as fast as the client reads, so that each of many slow clients holds one piece."""

    def __init__(self, request: Any, content: bytes) -> None:
        self._request = request
        self._content = memoryview(content)

    def resumeProducing(self) -> None:
        piece, self._content = self._content[:_PIECE], self._content[_PIECE:]
        self._request.write(bytes(piece))
        if not self._content:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:
        self._content = memoryview(b"")


def _fail(failure: Failure, request: Any) -> None:
    """Answer a request whose file cannot be read."""
    if not request.is_gone:
        request.write(answer_failure(request, failure))
        request.finish()
