"""Check of the PostgreSQL server: login, encoding, schema, rights, notifications, sessions and clock."""

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg2
from psycopg2.extensions import parse_dsn

from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import PATIENCE, Plant
from gateway.doctor.urls import database_url, has_server
from gateway.store.postgres.address import url_problem
from gateway.store.postgres.migrations import SchemaMigration
from gateway.store.postgres.refusals import explain

_OLDEST: Final = 12

#: Rights on tables; each table has at least the first two.
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OF_COMMITS: Final = _RIGHTS[:2]

#: Maximum seconds between the server's clock and this one.
_MAX_CLOCK_DIFFERENCE: Final = 2.0

_NEW_DATABASE: Final = (
    "create another database, move the data there, and name it in database.url: CREATE DATABASE cynow_utf8 ENCODING"
    " 'UTF8' LOCALE 'C' TEMPLATE template0;"
)

#: Sessions of one gateway.
_SESSIONS: Final = 6


def check_database(plant: Plant) -> Iterator[Finding]:
    """Log in as the gateway does, and check everything that it needs there."""
    if not has_server(plant):
        yield ok("database", "embedded; no PostgreSQL server is configured")
        return
    key = "database.url" if plant.settings.database.url is not None else "database.url_file"
    try:
        url = database_url(plant)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        path = plant.settings.database.url_file
        yield error(key, f"{path} cannot be read: {reason}", f"correct {key}, or the file's rights")
        return
    if wrong := url_problem(url):
        yield error(key, wrong, f"correct {key}")
        return
    yield from _Server(key, url).check()


class _Server:
    """The server that a URL names.

    :param key: configuration key of the URL.
    """

    def __init__(self, key: str, url: str) -> None:
        self._key = key
        self._given: dict[str, str] = parse_dsn(url)
        self._parameters = {
            "application_name": "cynow-gateway doctor",
            "gssencmode": "disable",
            **self._given,
            "client_encoding": "UTF8",
            "connect_timeout": f"{PATIENCE:g}",
        }
        #: Whether the database has all tables of this version.
        self._is_complete = False

    def check(self) -> Iterator[Finding]:
        try:
            connection = self._connect()
        except psycopg2.Error as problem:
            yield self._refusal(self._key, problem)
            return
        with contextlib.closing(connection), connection.cursor() as cursor:
            yield self._login(connection)
            checks: tuple[tuple[str, Callable[[Any], Finding]], ...] = (
                ("encoding", self._encoding),
                ("schema", self._schema),
                ("rights", self._rights),
                ("sessions", self._sessions),
                ("clock", self._clock),
                ("notify", self._notify),
            )
            for name, check in checks:
                try:
                    yield check(cursor)
                except psycopg2.Error as problem:
                    yield self._refusal(f"database {name}", problem)

    def _connect(self) -> Any:
        connection = psycopg2.connect(**self._parameters)
        # Nothing is set on the session: behind a pool of transactions it would stay for others.
        connection.autocommit = True
        return connection

    def _refusal(self, subject: str, problem: psycopg2.Error) -> Finding:
        """Return the finding for an error, with the statement that fixes it."""
        explanation = explain(problem, self._given)
        if not explanation.refuses:
            remedy = f"start the server, open its firewall, or correct {self._key}"
            return error(subject, f"no connection: {explanation.text}", remedy)
        seen, _, remedy = explanation.text.partition("; ")
        return error(subject, seen, remedy or f"correct the database, or {self._key}")

    def _login(self, connection: Any) -> Finding:
        info = connection.info
        # Since version 10, 150004 is 15.4.
        major, minor = divmod(connection.server_version, 10_000)
        seen = f"{info.user} is logged in to {info.dbname} on {info.host}:{info.port}, PostgreSQL {major}.{minor}"
        if major < _OLDEST:
            return error(self._key, seen, f"use PostgreSQL {_OLDEST} or newer")
        return ok(self._key, seen)

    def _encoding(self, cursor: Any) -> Finding:
        cursor.execute("SELECT current_database(), current_setting('server_encoding')")
        database, encoding = cursor.fetchone()
        if encoding != "UTF8":
            seen = f"database {database} has the encoding {encoding}, but the gateway needs UTF8"
            return error("database encoding", seen, _NEW_DATABASE)
        return ok("database encoding", encoding)

    def _schema(self, cursor: Any) -> Finding:
        known = SchemaMigration()
        cursor.execute("SELECT to_regclass('cynow_schema') IS NOT NULL")
        done = 0
        if cursor.fetchone()[0]:
            cursor.execute("SELECT coalesce(max(step), 0) FROM cynow_schema")
            (done,) = cursor.fetchone()
        if done > known.last_step:
            seen = f"the schema is at step {done}, but this version knows only {known.last_step}"
            return error("database schema", seen, "install the newer version of the gateway")
        if done == known.last_step:
            return self._tables(cursor, known)
        cursor.execute("SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')")
        schema, may_create = cursor.fetchone()
        if schema is None or not may_create:
            seen = f"the schema is at step {done} of {known.last_step}, and this role may not create tables"
            return error("database schema", seen, self._grant("USAGE, CREATE ON SCHEMA", schema or "public"))
        return ok(
            "database schema", f"at step {done} of {known.last_step}; the gateway makes the rest in schema {schema}"
        )

    def _tables(self, cursor: Any, known: SchemaMigration) -> Finding:
        cursor.execute("SELECT t FROM unnest(%s) AS t WHERE to_regclass(t) IS NULL", [known.tables])
        missing = [table for (table,) in cursor.fetchall()]
        if missing:
            seen = f"at step {known.last_step}, but without {', '.join(missing)}"
            return error("database schema", seen, "restore the tables, or put their schema into the role's search_path")
        self._is_complete = True
        return ok("database schema", f"at step {known.last_step}, as this version needs it")

    def _rights(self, cursor: Any) -> Finding:
        cursor.execute("SHOW transaction_read_only")
        if cursor.fetchone()[0] == "on":
            remedy = "connect to a server that can be written: target_session_attrs=read-write"
            return error("database rights", "the session is read-only", remedy)
        if not self._is_complete:
            return ok("database rights", "of tables: not checked before the first start")
        for table in SchemaMigration().tables:
            rights = _OF_COMMITS if table == "scale_weight_log" else _RIGHTS
            cursor.execute(
                "SELECT r FROM unnest(%s) AS r WHERE NOT has_table_privilege(%s::regclass, r)", [list(rights), table]
            )
            missing = ", ".join(right for (right,) in cursor.fetchall())
            if missing:
                seen = f"this role lacks {missing} on {table}"
                return error("database rights", seen, self._grant(f"{missing} ON TABLE", table))
        # A table that an older Django made has a sequence; an identity column needs no right on it.
        cursor.execute(
            "SELECT s FROM pg_get_serial_sequence('scale_weight_log', 'id') AS s WHERE NOT has_sequence_privilege(s,"
            " 'USAGE') AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'scale_weight_log'::regclass AND attname ="
            " 'id' AND attidentity = '')"
        )
        for (sequence,) in cursor.fetchall():
            seen = f"this role lacks USAGE on {sequence}"
            return error("database rights", seen, self._grant("USAGE, SELECT ON SEQUENCE", sequence))
        return ok("database rights", "all tables can be read and written")

    def _grant(self, rights: str, name: str) -> str:
        role = self._given.get("user") or os.environ.get("PGUSER") or "..."
        quoted = role.replace('"', '""')
        return f'GRANT {rights} {name} TO "{quoted}";'

    def _sessions(self, cursor: Any) -> Finding:
        cursor.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
        )
        allowed, used = cursor.fetchone()
        seen = f"{used} of {allowed} sessions are in use"
        if allowed - used < _SESSIONS:
            remedy = f"raise max_connections: a gateway needs {_SESSIONS} sessions"
            return warning("database sessions", seen, remedy)
        return ok("database sessions", seen)

    def _clock(self, cursor: Any) -> Finding:
        before = time.time()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        (server,) = cursor.fetchone()
        difference = server - (before + time.time()) / 2
        seen = f"the server's clock differs by {abs(difference):.1f} s"
        if abs(difference) > _MAX_CLOCK_DIFFERENCE:
            return warning("database clock", seen, "synchronise both machines by NTP")
        return ok("database clock", seen)

    def _notify(self, cursor: Any) -> Finding:
        """Send a notification from another connection: a pool of transactions would lose it."""
        connection, channel = cursor.connection, f"cynow_doctor_{os.getpid()}"
        cursor.execute(f"LISTEN {channel}")
        with contextlib.closing(self._connect()) as other, other.cursor() as sender:
            sender.execute(f"NOTIFY {channel}")
        deadline = time.monotonic() + PATIENCE
        while not connection.notifies:
            left = deadline - time.monotonic()
            if left <= 0:
                remedy = "connect to PostgreSQL itself, or set pool_mode = session in PgBouncer"
                return error("database notify", "a notification did not arrive", remedy)
            select.select([connection], [], [], left)
            connection.poll()
        return ok("database notify", "notifications arrive")
