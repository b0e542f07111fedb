"""LISTEN and NOTIFY: the channel on which gateways that share a database exchange messages."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2
from twisted.internet.defer import Deferred

from gateway.store.interface import StoreUnavailable
from gateway.store.postgres.migrations import SchemaMigration
from gateway.store.postgres.pool import Pool
from gateway.store.postgres.refusals import error_text
from gateway.store.postgres.relay_key import read_relay_key
from gateway.store.postgres.session import Session

#: Name of the channel. It stands for the form of the messages: another form must use another name.
CHANNEL: Final = "cynow_events_2"

#: NOTIFY and its answer: the number of the server's transaction.
_NOTIFY: Final = (
    "WITH sent AS MATERIALIZED (SELECT pg_notify(%s, x) FROM unnest(%s::text[]) AS x)"
    " SELECT txid_current(), count(*) FROM sent"
)


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
        self._schema = SchemaMigration()
        #: Key of the gateways, and number of the server's transaction, of the present or the last connection.
        self._key = b""
        self._moment = 0

    @property
    def is_connected(self) -> bool:
        """Return whether payloads can be sent and are received."""
        return self._pool is not None and self._pool.is_connected

    @property
    def problem(self) -> str | None:
        """Return why the channel is not connected; ``None`` if it is, or was not started."""
        return None if self._pool is None else self._pool.problem

    def start(self, on_connect: Callable[[bytes, int], None], on_payload: Callable[[str], None]) -> None:
        """Start listening.

        :param on_connect: called whenever a connection listens, with the key that the gateways of this database share
            and the number of a transaction of the server that began after that; earlier payloads were missed.
        :param on_payload: called with each payload, including this gateway's own, in the order in which they were sent;
            must not raise.
        """

        def hear(payload: str) -> None:
            # Until then, the key may be that of another server.
            if self.is_connected:
                on_payload(payload)

        self._pool = Pool(
            self._reactor, self._url, f"{self._gateway} events", size=1, prepare=self._listen, on_notify=hear
        )
        self._pool.on_connect = lambda: on_connect(self._key, self._moment)
        self._pool.start()

    async def _listen(self, session: Session) -> None:
        # The store's connections may not have created the tables yet.
        await self._schema.ensure(session)
        self._key = await read_relay_key(session)
        await session.ask(f"LISTEN {CHANNEL}")
        ((self._moment,),) = await session.ask("SELECT txid_current()")

    def send(self, payloads: Sequence[str]) -> "Deferred[int]":
        """Send payloads, all or none; fires with the number of the server's transaction.

        :raises Exception: the payloads may not have been sent.
        """
        if self._pool is None:
            raise RuntimeError("the channel was not started")
        moment = self._moment

        async def notify(session: Session) -> int:
            if moment != self._moment:
                raise StoreUnavailable("the connection to PostgreSQL was lost")
            try:
                ((sent_at, _),) = await session.ask(_NOTIFY, [CHANNEL, list(payloads)])
            except psycopg2.Error as error:
                if session.is_lost(error):
                    raise
                # The driver's text may quote the statement, and with it the data of a commit.
                raise StoreUnavailable(error_text(error)) from None
            return int(sent_at)

        return self._pool.run(notify, is_repeatable=False)

    async def close(self, patience: float) -> None:
        """Stop listening.

        :param patience: maximum seconds for payloads that are being sent.
        """
        if self._pool is not None:
            await self._pool.close(patience)
