"""Publication of the record's head: in the log, in a file, to a webhook and to another gateway."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config.settings import PublishSettings
from gateway.model.timestamps import rfc3339
from gateway.record.book import RecordBook
from gateway.record.chain import Head
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import StoreUnavailable

log = Logger()

#: Seconds between heads in the log.
_LOG_EVERY: Final = 86_400.0

#: Maximum seconds until a head is published.
_TIMEOUT: Final = 30.0

_HEADS_PATH: Final = "/api/v1/record/heads"


class HeadPublisher(Service):
    """Publication of the head, at the start and at an interval; what fails is tried again at the next one.

    :param folder: base of relative paths.
    """

    name = "record"

    def __init__(
        self,
        reactor: Any,
        clock: WallClock,
        counters: Counters,
        book: RecordBook,
        settings: PublishSettings,
        folder: str,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._failures = counters.record_failures
        self._book = book
        self._settings = settings
        self._folder = folder
        self._calls: dict[str, IDelayedCall] = {}
        self._running: Deferred[Any] | None = None
        self._in_file: Head | None = None
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """Return the targets that the last head did not reach, one line each."""
        return [f"record.publish_to.{target}: {problem}" for target, problem in self._problems.items()]

    def startService(self) -> None:
        super().startService()
        self._log_head()
        self._publish()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        for call in self._calls.values():
            if call.active():
                call.cancel()
        if self._running is not None:
            self._running.cancel()
        return succeed(None)

    def update(self, settings: PublishSettings) -> None:
        """Publish to other targets from now on."""
        if settings == self._settings:
            return
        self._settings = settings
        self._problems.clear()
        self._in_file = None
        if self.running:
            self._publish()

    def _repeat(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        call = self._calls.get(name)
        if call is not None and call.active():
            call.cancel()
        self._calls[name] = self._reactor.callLater(seconds, work)

    def _log_head(self) -> None:
        self._repeat("log", _LOG_EVERY, self._log_head)
        ensureDeferred(self._say()).addErrback(lambda failure: log.failure("record: cannot log the head", failure))

    async def _say(self) -> None:
        try:
            head = await self._book.read_head()
        except StoreUnavailable as error:
            log.warn("record: cannot read the head: {error}", error=error)
            return
        if head.number:
            log.info("record: head {head}", head=head)

    def _publish(self) -> None:
        self._repeat("publish", self._settings.every_sec, self._publish)
        if self._running is None and any(self._targets()):
            self._running = ensureDeferred(self._publish_all())
            self._running.addErrback(self._fail_all).addBoth(self._finish)

    def _finish(self, _: object) -> None:
        self._running = None

    def _fail_all(self, failure: Failure) -> None:
        if self.running:
            log.failure("record: cannot publish the head", failure)

    def _targets(self) -> list[str | None]:
        return [self._settings.file, self._settings.webhook, self._settings.gateway]

    async def _publish_all(self) -> None:
        try:
            head = await self._book.read_head()
        except StoreUnavailable:
            return
        if not head.number:
            return
        settings, time = self._settings, rfc3339(self._clock.now())
        work: dict[str, Callable[[], Deferred[None]]] = {}
        if settings.file is not None and head != self._in_file:
            work["file"] = partial(self._write, os.path.join(self._folder, settings.file), head, time)
        if settings.webhook is not None:
            body = {"gateway": head.gateway, "number": head.number, "hash": head.hash.hex(), "head": str(head)}
            work["webhook"] = partial(self._send, settings.webhook, {**body, "time": time})
        if settings.gateway is not None:
            url = settings.gateway.rstrip("/") + _HEADS_PATH
            work["gateway"] = partial(self._send, url, {"head": str(head)}, settings.token_file)
        await gatherResults([ensureDeferred(self._try(target, each)) for target, each in work.items()])

    async def _try(self, target: str, work: "Callable[[], Deferred[None]]") -> None:
        try:
            await work().addTimeout(_TIMEOUT, self._reactor)
        except Exception as error:  # a receiver may fail in any way, and must not stop the others
            if not self.running:
                return
            self._failures.labels(target).inc()
            problem = f"cannot publish the head of the record: {error or type(error).__name__}"
            if self._problems.get(target) != problem:
                log.warn(
                    "record.publish_to.{target}: {problem}; retrying in {seconds:.0f} s",
                    target=target,
                    problem=problem,
                    seconds=self._settings.every_sec,
                )
            self._problems[target] = problem
        else:
            if self._problems.pop(target, None) is not None:
                log.info("record.publish_to.{target}: the head of the record is published again", target=target)

    # -- targets

    def _write(self, path: str, head: Head, time: str) -> "Deferred[None]":
        def append() -> None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{time} {head}\n")
                file.flush()
                os.fsync(file.fileno())

        def note(_: None) -> None:
            self._in_file = head

        return self._in_thread(append).addCallback(note)

    def _send(self, url: str, body: dict[str, Any], token_file: str | None = None) -> "Deferred[None]":
        return Deferred.fromCoroutine(self._post(url, json.dumps(body, ensure_ascii=False).encode(), token_file))

    async def _post(self, url: str, body: bytes, token_file: str | None) -> None:
        # Imported only if there is a receiver: a plant without one starts faster.
        from gateway.record.posting import post_json

        token = None
        if token_file is not None:
            token = await self._in_thread(partial(_read_token, os.path.join(self._folder, token_file)))
        await post_json(self._reactor, url, body, token)

    def _in_thread(self, work: Callable[[], Any]) -> "Deferred[Any]":
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)


def _read_token(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.readline(1024).strip()
