"""The gateway's tables in PostgreSQL, created if they are missing."""

import importlib.resources
import re
from typing import Final

from psycopg2.errors import InsufficientPrivilege
from twisted.logger import Logger

from gateway.store.postgres.refusals import DatabaseRefuses
from gateway.store.postgres.session import Session

log = Logger()

#: Lock that is held while steps are applied, so that two gateways can start at once; an arbitrary number.
_LOCK: Final = 0x63796E6F77_01

#: Tables that a step creates.
_CREATED: Final = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)")


class SchemaMigration:
    """Numbered steps, applied once in each database; ``cynow_schema`` contains those that were applied."""

    def __init__(self) -> None:
        folder = importlib.resources.files("gateway.store.postgres.schema")
        self._steps = {
            int(step.name[:2]): step.read_text("utf-8")
            for step in folder.iterdir()
            if step.name.endswith(".sql") and step.name[:2].isdigit()
        }

    @property
    def last_step(self) -> int:
        """Return the last step that this version knows."""
        return max(self._steps)

    @property
    def tables(self) -> list[str]:
        """Return the tables that the steps create, without ``cynow_schema``."""
        return sorted({table for text in self._steps.values() for table in _CREATED.findall(text)})

    async def ensure(self, session: Session) -> None:
        """Apply the steps that the database of a session lacks; it may be another database than before.

        :raises psycopg2.Error: tables are missing and cannot be created now.
        :raises DatabaseRefuses: this database cannot be used: another encoding, or the schema of a later version.
        """
        await self._check(session)
        try:
            if not await self._missing_steps(session):
                return
            await session.transaction(self._apply)
        except InsufficientPrivilege:
            # Another session may have created the tables meanwhile.
            if await self._missing_tables(session):
                raise

    async def _check(self, session: Session) -> None:
        """Check that this database can store every name.

        :raises DatabaseRefuses: its encoding is not UTF8.
        """
        ((database, encoding),) = await session.ask("SELECT current_database(), current_setting('server_encoding')")
        if encoding != "UTF8":
            raise DatabaseRefuses(
                f"database {database} has the encoding {encoding}, but the gateway needs UTF8: create another database,"
                " move the data there, and name it in database.url: CREATE DATABASE cynow_utf8 ENCODING 'UTF8'"
                " LOCALE 'C' TEMPLATE template0;"
            )

    async def _apply(self, session: Session) -> None:
        await session.ask("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        steps = await self._missing_steps(session)
        if not steps:
            return
        await session.ask("CREATE TABLE IF NOT EXISTS cynow_schema (step integer NOT NULL PRIMARY KEY)")
        for number in steps:
            await session.ask(self._steps[number])
            await session.ask("INSERT INTO cynow_schema (step) VALUES (%s)", [number])
            log.info("applied step {number} of the database schema", number=number)

    async def _missing_steps(self, session: Session) -> list[int]:
        """Return the steps that this database lacks.

        :raises DatabaseRefuses: it has steps of a later version.
        """
        done: set[int] = set()
        if not await _find_missing(session, ["cynow_schema"]):
            done = {step for (step,) in await session.ask("SELECT step FROM cynow_schema")}
        if max(done, default=0) > self.last_step:
            raise DatabaseRefuses(
                f"the database schema is at step {max(done)}, but this version knows only {self.last_step} steps:"
                " install the newer version of the gateway"
            )
        return sorted(set(self._steps) - done)

    async def _missing_tables(self, session: Session) -> list[str]:
        return await _find_missing(session, self.tables)


async def create_relay_key(session: Session) -> None:
    """Create the table of the gateways' key if it is missing, readable by its owner only.

    :raises psycopg2.Error: it cannot be created.
    """
    statement = importlib.resources.files("gateway.store.postgres.schema").joinpath("relay_key.sql").read_text("utf-8")

    async def create(session: Session) -> None:
        await session.ask("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        await session.ask(statement)

    await session.transaction(create)


async def _find_missing(session: Session, tables: list[str]) -> list[str]:
    # Locking a table makes the server see the changes of other sessions: here, the lock of pg_class.
    rows = await session.ask(
        "SELECT t FROM unnest(%s) AS t WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = to_regclass(t))",
        [tables],
    )
    return [table for (table,) in rows]
