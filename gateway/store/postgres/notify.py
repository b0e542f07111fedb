"""LISTEN and NOTIFY: the channel on which gateways that share a database exchange messages."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2
from twisted.internet.defer import Deferred

from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text
from gateway.store.postgres.session import Session

#: Name of the channel. It stands for the form of the messages: another form must use another name.
CHANNEL: Final = "cynow_events"


class PostgresChannel:
    """A connection that listens, and reconnects like those of every pool.

    :param url: ``database.url``.
    :param gateway: ``gateway.name``.
    """

    def __init__(self, reactor: Any, url: str, gateway: str) -> None:
        self._reactor = reactor
        self._url = url
        self._gateway = gateway
        self._pool: Pool | None = None

    @property
    def is_connected(self) -> bool:
        """Return whether payloads can be sent and are received."""
        return self._pool is not None and self._pool.is_connected

    @property
    def problem(self) -> str | None:
        """Return why the channel is not connected; ``None`` if it is, or was not started."""
        return None if self._pool is None else self._pool.problem

    def start(self, on_connect: Callable[[], None], on_payload: Callable[[str], None]) -> None:
        """Start listening.

        :param on_connect: called whenever a connection listens; earlier payloads were missed.
        :param on_payload: called with each payload, including this gateway's own, in the order in which they were sent;
            must not raise.
        """
        self._pool = Pool(
            self._reactor, self._url, f"{self._gateway} events", size=1, prepare=_listen, on_notify=on_payload
        )
        self._pool.on_connect = on_connect
        self._pool.start()

    def send(self, payloads: Sequence[str]) -> "Deferred[None]":
        """Send payloads, all or none.

        :raises Exception: the payloads may not have been sent.
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

        return self._pool.run(notify, is_repeatable=False)

    async def close(self, patience: float) -> None:
        """Stop listening.

        :param patience: maximum seconds for payloads that are being sent.
        """
        if self._pool is not None:
            await self._pool.close(patience)


async def _listen(session: Session) -> None:
    await session.ask(f"LISTEN {CHANNEL}")
