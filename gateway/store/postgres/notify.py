"""LISTEN and NOTIFY: a connection on which gateways that share a database tell each other what happens."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2
from twisted.internet.defer import Deferred

from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text
from gateway.store.postgres.session import Session

#: The form of what is said belongs to the name: gateways of another form would listen to another one.
CHANNEL: Final = "cynow_events"


class PostgresChannel:
    """A connection that listens, and heals as every other one does.

    :param url: ``database.url``.
    :param gateway: ``gateway.name``.
    """

    def __init__(self, reactor: Any, url: str, gateway: str) -> None:
        self._reactor = reactor
        self._url = url
        self._gateway = gateway
        self._pool: Pool | None = None

    @property
    def is_there(self) -> bool:
        """Whether something can be sent, and is heard."""
        return self._pool is not None and self._pool.is_there

    @property
    def problem(self) -> str | None:
        """Why it is not."""
        return None if self._pool is None else self._pool.problem

    def start(self, connected: Callable[[], None], heard: Callable[[str], None]) -> None:
        """Begin to listen.

        :param connected: is called whenever a connection listens; what was said before has passed unheard.
        :param heard: is given each payload, one's own too, in the order of their sending. It must not raise.
        """
        self._pool = Pool(self._reactor, self._url, f"{self._gateway} events", size=1, prepare=_listen, heard=heard)
        self._pool.on_connect = connected
        self._pool.start()

    def send(self, payloads: Sequence[str]) -> "Deferred[None]":
        """Send payloads, all or none.

        :raises Exception: it is not known whether they were sent.
        """
        if self._pool is None:
            raise RuntimeError("the channel was not started")

        async def notify(session: Session) -> None:
            try:
                await session.ask("SELECT pg_notify(%s, x) FROM unnest(%s::text[]) x", [CHANNEL, list(payloads)])
            except psycopg2.Error as error:
                if session.is_lost(error):
                    raise
                # The driver's text may quote the statement, and with it the data of a commit.
                raise StoreUnavailable(error_text(error)) from None

        return self._pool.run(notify, again=False)

    async def close(self, patience: float) -> None:
        """Listen no more; what is being sent has so many seconds."""
        if self._pool is not None:
            await self._pool.close(patience)


async def _listen(session: Session) -> None:
    await session.ask(f"LISTEN {CHANNEL}")
