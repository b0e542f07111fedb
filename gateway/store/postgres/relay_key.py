"""The key that authenticates the messages of the gateways on one database to each other."""

import hmac
import secrets
from typing import Final

import psycopg2
from psycopg2.errors import InsufficientPrivilege

from gateway.store.postgres.migrations import create_relay_key
from gateway.store.postgres.refusals import DatabaseRefuses
from gateway.store.postgres.session import Session

#: The table's owner, and whether that is not a stranger: where PUBLIC may create tables, as in PostgreSQL 14 and older,
#: a stranger could otherwise choose the key before the first gateway does.
_OWNER: Final = """
SELECT role.rolname, role.rolsuper OR role.rolname = current_user OR coalesce(own.relowner = keys.relowner, false)
FROM pg_class AS keys JOIN pg_roles AS role ON role.oid = keys.relowner
LEFT JOIN pg_class AS own ON own.oid = to_regclass('cynow_idempotency')
WHERE keys.oid = to_regclass('cynow_relay_key')
"""

#: The database, its server, and the server's timeline, which changes with each failover and restore: numbers of
#: transactions never go back within one of them.
_PLACE: Final = """
SELECT system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()
"""


async def read_relay_key(session: Session) -> bytes:
    """Return the key for messages in this database, and create it if it is missing.

    Copies of a database have the same stored key, but not the same key for messages.

    :raises DatabaseRefuses: the table is missing and the role cannot create it, or it may be a stranger's.
    :raises psycopg2.Error: the key cannot be read or created.
    """
    owners = await session.ask(_OWNER)
    if not owners:
        try:
            await create_relay_key(session)
        except InsufficientPrivilege:
            ((role, schema),) = await session.ask(
                "SELECT quote_ident(current_user), quote_ident(coalesce(current_schema(), 'public'))"
            )
            raise DatabaseRefuses(
                "the table cynow_relay_key is missing, and the role has no right to create it;"
                f" GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};"
            ) from None
        owners = await session.ask(_OWNER)
    ((owner, is_trusted),) = owners
    if not is_trusted:
        raise DatabaseRefuses(
            f"the table cynow_relay_key belongs to {owner}, unlike the gateway's other tables, so that {owner} may know"
            " the key; let the gateway create another one: DROP TABLE cynow_relay_key;"
        )
    rows = await session.ask("SELECT key FROM cynow_relay_key")
    if not rows:
        new_key = psycopg2.Binary(secrets.token_bytes(32))
        await session.ask("INSERT INTO cynow_relay_key (key) VALUES (%s) ON CONFLICT DO NOTHING", [new_key])
        # Another gateway may have been faster.
        rows = await session.ask("SELECT key FROM cynow_relay_key")
    ((key,),) = rows
    return hmac.digest(bytes(key), await _place_of(session), "sha256")


async def _place_of(session: Session) -> bytes:
    try:
        ((server, timeline, database),) = await session.ask(_PLACE)
    except psycopg2.Error as error:
        if session.is_lost(error):
            raise
        # Some hosted servers do not have these functions.
        return b"cynow relay"
    return f"cynow relay {server} {timeline} {database}".encode()
