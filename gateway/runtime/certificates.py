"""The certificates of all listeners: read at the start, watched for their end, and read again on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import StartError
from gateway.runtime.tls import TlsContext, TlsReports, load_files
from gateway.runtime.tls_files import TlsError, TlsFiles

if TYPE_CHECKING:
    from gateway.runtime.clock import WallClock
    from gateway.runtime.metrics import Counters
    from gateway.runtime.tls_layer import Credentials

#: Seconds between two warnings about a certificate.
_WARNING_INTERVAL: Final = 86_400.0


class Certificates(Service):
    """The TLS of all listeners, by configuration key, such as ``server``; also of those that have none at present."""

    name = "certificates"

    def __init__(self, reactor: Any, clock: WallClock, counters: Counters) -> None:
        self._reactor = reactor
        self._reports = TlsReports(clock, counters, LimitedLog(Logger("gateway.runtime.tls"), clock, counters))
        self._contexts: dict[str, TlsContext] = {}
        self._warnings = LoopingCall(self._warn)
        self._warnings.clock = reactor

    def add(self, listener: str, protocols: tuple[bytes, ...], room: Callable[[], int]) -> TlsContext:
        """Return the TLS of a new listener; see :class:`TlsContext`."""
        context = TlsContext(self._reactor, listener, f"{listener}.tls", self._reports, protocols, room)
        self._contexts[listener] = context
        return context

    def remove(self, listener: str) -> None:
        """Forget a listener that does not exist any more."""
        self._contexts.pop(listener).use(None)

    def open(self, files: Mapping[str, TlsFiles | None]) -> None:
        """Read all files at the start of the daemon.

        :raises StartError: a file cannot be used.
        """
        try:
            self.use(self.load(files))
        except TlsError as error:
            raise StartError(str(error)) from error

    def load(self, files: Mapping[str, TlsFiles | None]) -> dict[str, Credentials | None]:
        """Read and check the files of listeners; this may be called in any thread, and changes nothing.

        :raises TlsError: a file cannot be used.
        """
        return {
            listener: load_files(f"{listener}.tls", found, self._protocols(listener))
            for listener, found in files.items()
        }

    def _protocols(self, listener: str) -> tuple[bytes, ...]:
        # A listener that a reload adds is one of a scale, whose protocol has no name.
        return self._contexts[listener].protocols if listener in self._contexts else ()

    def use(self, credentials: Mapping[str, Credentials | None]) -> None:
        """Use what :meth:`load` returned for new connections."""
        for listener, found in credentials.items():
            if listener in self._contexts:
                self._contexts[listener].use(found)

    def problems(self) -> list[str]:
        """Return the problems of certificates that have expired, or will do so soon."""
        found = (context.problem for context in self._contexts.values())
        return [problem for problem in found if problem is not None]

    def startService(self) -> None:
        super().startService()
        # The first warning was logged when the files were read.
        self._warnings.start(_WARNING_INTERVAL, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._warnings.running:
            self._warnings.stop()

    def _warn(self) -> None:
        for context in self._contexts.values():
            context.warn_of_expiry()
