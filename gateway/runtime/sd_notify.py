"""Notifications to systemd (``sd_notify(3)``)."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class SystemdNotifier:
    """Sender of notifications to the service manager; without one, it sends nothing.

    :param environment: environment of the process, in which systemd sets ``NOTIFY_SOCKET``.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of an abstract address.
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def reloading(self) -> None:
        """Tell that a reload begins; it ends with ``READY=1``."""
        self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def notify(self, state: str) -> None:
        """Send a state such as ``READY=1``. A manager that does not listen is ignored."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto(state.encode(), self._address)
