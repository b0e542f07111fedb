"""Warning about a gateway that other machines reach although access control is off."""

from collections.abc import Callable, Iterable

from twisted.application.service import Service
from twisted.logger import Logger

from gateway.runtime.listener import Listener

log = Logger()


class OpenAccess(Service):
    """Warning at every start, and in ``/readyz``, while everybody on the network may read and commit.

    :param listeners: returns the current listeners.
    :param is_controlled: whether access control is on.
    """

    name = "open access"

    def __init__(self, listeners: Callable[[], Iterable[Listener]], *, is_controlled: bool) -> None:
        self._listeners = listeners
        self._is_controlled = is_controlled

    def startService(self) -> None:
        super().startService()
        self._log()

    def update(self, *, is_controlled: bool) -> None:
        """Apply a changed configuration; log the warning if access control was switched off."""
        was_controlled, self._is_controlled = self._is_controlled, is_controlled
        if was_controlled:
            self._log()

    def _log(self) -> None:
        if self.warning is not None:
            log.warn("{warning}", warning=self.warning)

    @property
    def warning(self) -> str | None:
        """The warning in one line; ``None`` if there is nothing to warn about."""
        if self._is_controlled:
            return None
        addresses = [(listener.key, listener.open_address) for listener in self._listeners()]
        ports = ", ".join(f"{key} ({address})" for key, address in addresses if address is not None)
        if not ports:
            return None
        return (
            f"auth: access control is off, and other machines reach {ports}: everybody there may use the gateway; set"
            " auth, or listen on 127.0.0.1"
        )
