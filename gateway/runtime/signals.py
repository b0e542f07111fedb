"""Signal handling of the process, from reading the plugin's options to the end."""

import os
import signal
from collections.abc import Callable
from typing import Any, Final

#: Signals that end the gateway, with status 0.
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})

#: Signals that by default end a process, though administrators and tools send them for other purposes.
_IGNORED: Final = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPIPE,
)


class Signals:
    """Signal handling of one process.

    Until :meth:`take_over`, a signal that ends the gateway ends the process (:meth:`install`), or is recorded for
    later (:meth:`begin_start`).
    """

    def __init__(self) -> None:
        self._ends_at_once = True
        self._on_end: Callable[[], None] | None = None
        self._on_hang_up: Callable[[], None] | None = None
        #: Whether a signal that ends the gateway has come.
        self.is_ending = False
        self._hung_up = False

    def install(self) -> None:
        """Install the handlers. A signal exits at once, because nothing needs cleaning up yet."""
        self._set_handlers()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)

    def begin_start(self) -> None:
        """Only record a signal from now on: the orderly shutdown begins once the reactor runs."""
        self._ends_at_once = False

    def hold(self) -> None:
        """Block signals that end the gateway until :meth:`take_over`.

        Twisted installs handlers of its own when its reactor starts, and ends the process by the signal they caught.
        Threads that are started meanwhile inherit the mask, and leave these signals to the main thread.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def take_over(self, end: Callable[[], None], hang_up: Callable[[], None]) -> None:
        """Call these functions from the signal handler from now on, and for signals that came before.

        :param end: called for ``SIGTERM`` and ``SIGINT``.
        :param hang_up: called for ``SIGHUP``.
        """
        self._on_end, self._on_hang_up = end, hang_up
        # twistd ends itself by the signal that it caught; an orderly end must have status 0.
        self._set_handlers()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if self._hung_up:
            hang_up()
        if self.is_ending:
            end()

    def ignore(self) -> None:
        """Ignore every signal from now on: Python would otherwise restore its defaults during the shutdown."""
        for number in (*_ENDING, signal.SIGHUP, *_IGNORED):
            signal.signal(number, signal.SIG_IGN)

    def _set_handlers(self) -> None:
        for number in _ENDING:
            signal.signal(number, self._handle_end)
        signal.signal(signal.SIGHUP, self._handle_hang_up)

    def _handle_end(self, *_: Any) -> None:
        self.is_ending = True
        if self._on_end is not None:
            self._on_end()
        elif self._ends_at_once:
            # Not an exception: it would be lost, with a traceback in the log, in a callback of a weak reference.
            os._exit(0)

    def _handle_hang_up(self, *_: Any) -> None:
        self._hung_up = True
        if self._on_hang_up is not None:
            self._on_hang_up()
