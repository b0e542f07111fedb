"""Guard against the limit of open files: connections are refused early, so that files can still be opened."""

import os
import resource
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocolFactory
from zope.interface import implementer

from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Open files that device connections must leave free for raw files, databases and the log.
SPARE: Final = 32

#: The same for HTTP connections; fewer than for devices, so that an operator can still query the gateway.
SPARE_OF_HTTP: Final = 16

#: Seconds for which `/healthz` shows a refusal.
_SAID: Final = 60.0


class OpenFiles:
    """Open files of the process, and the connections refused because of them."""

    def __init__(self, clock: WallClock, counters: Counters, warnings: LimitedLog) -> None:
        self._clock = clock
        self._refused = counters.connections_refused.labels("open_files")
        self._warnings = warnings
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._last_refusal: float | None = None

    @property
    def problem(self) -> str | None:
        """The problem for an operator, if connections were refused in the last minute; otherwise ``None``."""
        if self._last_refusal is None or self._clock.monotonic() - self._last_refusal >= _SAID:
            return None
        return (
            f"new connections cannot be accepted: nearly all of the {_limit()} files that the process may have open are"
            " in use; raise LimitNOFILE= of the service (ulimit -n), or lower limits.connections"
        )

    def has_room(self, spare: int) -> bool:
        """Return whether another connection leaves enough open files free.

        :param spare: files to leave free; with a low limit, a share of the limit if that is less.
        """
        limit = _limit()
        try:
            # This is the lowest free number: all numbers below it are in use.
            number = os.dup(self._null)
        except OSError:
            return False
        os.close(number)
        return number < limit - min(spare, limit * spare // (SPARE * 8))

    def refuse(self, key: str) -> None:
        """Count and log a connection that is closed at once.

        :param key: configuration key of the port.
        """
        self._last_refusal = self._clock.monotonic()
        self._refused.inc()
        self._warnings.warn(
            f"open_files {key}",
            "{key}: a connection was closed at once: nearly all of the {limit} files that the process may have open are"
            " in use; raise LimitNOFILE= of the service (ulimit -n), or lower limits.connections",
            key=key,
            limit=_limit(),
        )


@implementer(IProtocolFactory, ILoggingContext)
class GuardedFactory:
    """A factory that refuses connections while too many files are open.

    :param refused: called for each connection that is refused.
    """

    noisy = False

    def __init__(self, factory: Any, files: OpenFiles, spare: int, refused: Callable[[], None]) -> None:
        self._factory = factory
        self._files = files
        self._spare = spare
        self._refused = refused

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def logPrefix(self) -> str:
        return str(self._factory.logPrefix())

    def buildProtocol(self, addr: IAddress) -> Any:
        if self._files.has_room(self._spare):
            return self._factory.buildProtocol(addr)
        self._refused()
        return None


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft
