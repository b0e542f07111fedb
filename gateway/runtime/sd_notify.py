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

    def ready(self) -> None:
        """Report that the start, or a reload, has ended."""
        self.notify("READY=1")

    def reloading(self) -> None:
        """Report that a reload begins; :meth:`ready` has to follow, also if nothing was changed.

        With ``Type=notify-reload``, the time tells systemd that its signal came before, and this is the answer to it.
        """
        self.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def notify(self, state: str) -> None:
        """Send a state such as ``READY=1``. A manager that does not listen is ignored."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto(state.encode(), self._address)
