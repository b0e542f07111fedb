"""The only module that relies on internals of txpostgres and of libpq's sockets.

txpostgres gets no further releases, so its behaviour is changed by overriding methods that its documentation does not
describe. ``tests/unit/test_fence_txpostgres.py`` fails if the installed version lacks one of them.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from psycopg2.errors import QueryCanceled
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_UNKNOWN
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from txpostgres import txpostgres
from txpostgres.reconnection import DeadConnectionDetector

from gateway.store.postgres.sockets import WatchingReactor


class LossDetector(DeadConnectionDetector):  # type: ignore[misc]  # the base class has no annotations
    """Detector of lost connections that leaves it to its owner to connect again.

    :param is_loss: returns whether a failure ends the connection.
    :param on_loss: called once with the error of each lost connection.
    """

    def __init__(
        self, reactor: Any, is_loss: Callable[[Failure], bool], on_loss: Callable[[BaseException | None], None]
    ) -> None:
        super().__init__(is_loss, reactor=reactor)
        self._on_loss = on_loss
        # Not connected yet: an error of the first attempt to connect is not a loss.
        self.connectionIsDead = True

    def startReconnecting(self, failure: Failure) -> None:
        self._on_loss(failure.value)

    def check(self, failure: Failure) -> None:
        """Report a loss if a failure of the connection is one."""
        self.checkForDeadConnection(failure)

    def mark_connected(self) -> None:
        """Report losses from now on."""
        self.connectionRecovered()


class Connection(txpostgres.Connection):  # type: ignore[misc]  # the base class has no annotations
    """Connection that reports its end to its detector only.

    - txpostgres logs a traceback if an idle connection ends; this class closes the connection instead.
    - The reactor watches copies of the sockets: see :mod:`gateway.store.postgres.sockets`.
    - Notifications are delivered at once. txpostgres uses cooperative tasks, which mix those of two reads.
    """

    def __init__(self, reactor: Any, detector: LossDetector | None = None) -> None:
        super().__init__(WatchingReactor(reactor), detector=detector)

    async def execute(self, statement: str, values: Any) -> Any:
        """Run a statement; return its cursor.

        :raises psycopg2.Error: the server has refused the statement.
        :raises ConnectionDone: the connection was closed meanwhile.
        """
        cursor = self.cursor()
        try:
            await cursor.execute(statement, values)
        except CancelledError as error:
            # txpostgres replaces QueryCanceled by this error, without the server's message.
            raise QueryCanceled(
                "the server cancelled the statement: it exceeded statement_timeout, or another session cancelled it"
            ) from error
        return cursor

    def close(self) -> None:
        """Close the connection if it was opened; waiting statements fail."""
        if self.pollable() is not None:
            super().close()
            self.reactor.forget()

    @property
    def is_broken(self) -> bool:
        """Return whether the connection is unusable."""
        raw = self.pollable()
        return raw is None or bool(raw.closed) or raw.info.transaction_status == TRANSACTION_STATUS_UNKNOWN

    @property
    def is_idle(self) -> bool:
        """Return whether no transaction is open."""
        return bool(self.pollable().info.transaction_status == TRANSACTION_STATUS_IDLE)

    def doRead(self) -> None:
        try:
            super().doRead()
        except Exception:  # psycopg2's errors, and the reactor's if libpq has closed the socket
            self.close()

    def cursorFinished(self, cursor: Any) -> None:
        # The caller must get the outcome of the statement even if its socket is gone.
        with contextlib.suppress(ValueError, OSError):
            super().cursorFinished(cursor)

    def checkForNotifies(self) -> None:
        raw = self.pollable()
        notifies = raw.notifies[:]
        del raw.notifies[:]
        for notify in notifies:
            for observer in self.getNotifyObservers():
                observer(notify)
