"""Signals of the process, from the moment at which the plugin's options are read to the end."""

import signal
from collections.abc import Callable
from typing import Any, Final

#: They end the gateway, with status 0.
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})

#: They end a process that does not say otherwise, and administrators and tools send them for other purposes.
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

    Until :meth:`take_over`, a signal that ends the gateway raises ``SystemExit(0)`` (:meth:`install`), or is noted for
    later (:meth:`begin_start`).
    """

    def __init__(self) -> None:
        self._ends_at_once = True
        self._on_end: Callable[[], None] | None = None
        self._on_hang_up: Callable[[], None] | None = None
        #: A signal that ends the gateway came before `take_over`.
        self.is_ending = False
        self._hung_up = False

    def install(self) -> None:
        """Handle signals from now on: nothing has been made yet that would have to be put in order."""
        self._set_handlers()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)

    def begin_start(self) -> None:
        """Only note a signal from now on: the end begins when the reactor runs, and puts everything in order.

        :raises SystemExit: one came already, and its exception was lost.
        """
        self._ends_at_once = False
        if self.is_ending:
            raise SystemExit(0)

    def hold(self) -> None:
        """Keep signals that end the gateway waiting until :meth:`take_over`.

        Twisted installs handlers of its own when its reactor starts, and ends the process by the signal they caught.
        Threads that are started meanwhile inherit this, and leave these signals to the main thread.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def take_over(self, end: Callable[[], None], hang_up: Callable[[], None]) -> None:
        """Call these from now on, from the handler itself, for what came before too.

        :param end: for ``SIGTERM`` and ``SIGINT``.
        :param hang_up: for ``SIGHUP``.
        """
        self._on_end, self._on_hang_up = end, hang_up
        # twistd ends itself by the signal that it caught; a daemon that ended well says so by its status.
        self._set_handlers()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if self._hung_up:
            hang_up()
        if self.is_ending:
            end()

    def ignore(self) -> None:
        """Ignore every signal from now on: the end is nearly over, and Python would restore the deadly defaults."""
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
            raise SystemExit(0)

    def _handle_hang_up(self, *_: Any) -> None:
        self._hung_up = True
        if self._on_hang_up is not None:
            self._on_hang_up()
