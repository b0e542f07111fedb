"""Push messages, which a reload turns on and off and gives other credentials."""

import os
from functools import partial

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from gateway.assembly.parts import Runtime
from gateway.config.settings import FcmSettings

log = Logger("gateway.alert.push")


class Alerts(Service):
    """Service that sends push messages while ``fcm.cred_path`` is set.

    :param folder: base of relative paths.
    """

    name = "alerts"

    def __init__(self, runtime: Runtime, settings: FcmSettings, folder: str) -> None:
        self._runtime = runtime
        self._folder = folder
        self._settings = settings
        self._file = self._state_of_file(settings)
        self._push = self._build(settings)

    def _build(self, settings: FcmSettings) -> Service | None:
        if settings.cred_path is None:
            log.warn("push messages are off: fcm.cred_path is not set")
            return None
        from gateway.alert.firebase import connect_firebase
        from gateway.alert.push import PushAlert
        from gateway.alert.sender import PushSender

        runtime = self._runtime
        connect = partial(connect_firebase, os.path.join(self._folder, settings.cred_path))
        sender = PushSender(runtime.reactor, connect)
        return PushAlert(runtime.reactor, runtime.bus, runtime.clock, runtime.counters, settings, sender)

    def _state_of_file(self, settings: FcmSettings) -> tuple[int, int, int] | None:
        """Return values that change when the file of the credentials is replaced; ``None`` without a file."""
        if settings.cred_path is None:
            return None
        try:
            state = os.stat(os.path.join(self._folder, settings.cred_path))
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def startService(self) -> None:
        super().startService()
        if self._push is not None:
            self._push.startService()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        return maybeDeferred(lambda: None if self._push is None else self._push.stopService())

    def update(self, settings: FcmSettings) -> None:
        """Use other settings, or the same file with other credentials. Messages that wait are dropped then."""
        file = self._state_of_file(settings)
        if settings == self._settings and file == self._file:
            return
        if self._push is not None:
            self._push.stopService()
        self._settings, self._file = settings, file
        self._push = self._build(settings)
        if self._push is not None and self.running:
            self._push.startService()
