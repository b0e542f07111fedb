"""Gateways on one real server authenticate to each other: what a stranger with a login sends changes nothing."""

import contextlib
import json
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from gateway.relay.protocol import MAC_LENGTH
from gateway.store.postgres.notify import CHANNEL
from tests.conftest import ROOT
from tests.support.daemon import PATIENCE, Daemon, until
from tests.support.postgres import Server
from tests.system.test_gateways import others, weight
from tests.system.test_howto import blocks

ROLES = ("stranger", "hall", "granted")


@pytest.fixture
def site(server: Server) -> Iterator[Server]:
    """A server with a stranger, who may log in, and with the roles of gateways."""

    def forget() -> None:
        for role in ROLES:
            server.sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")

    for role in ROLES:
        server.sql(f"CREATE ROLE {role} LOGIN")
    server.sql("GRANT USAGE, CREATE ON SCHEMA public TO hall; GRANT USAGE ON SCHEMA public TO granted, stranger")
    yield server
    server.sql("DROP DATABASE IF EXISTS copy")
    forget()


@pytest.fixture
def gateway(site: Server, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a gateway with the scale ``s``."""
    with contextlib.ExitStack() as stack:

        def start(name: str, role: str = "hall", database: str = "postgres", problems: int = 0) -> Daemon:
            (tmp_path / name).mkdir()
            daemon = Daemon(
                tmp_path / name,
                database={"url": site.url_of(database, role)},
                gateway={"name": name},
                scale={"id": "s"},
                timezone="Asia/Seoul",
            )
            stack.callback(daemon.end)
            daemon.start()
            until(
                lambda: len(problems_of(daemon)) == problems and "not connected" not in str(problems_of(daemon)), name
            )
            return daemon

        yield start


def problems_of(daemon: Daemon) -> Any:
    return daemon.get("/healthz")[1]["problems"]


class Stranger:
    """A session of a role that may log in and nothing else."""

    def __init__(self, server: Server, database: str = "postgres") -> None:
        self._connection: Connection = psycopg2.connect(server.url_of(database, "stranger"))
        self._connection.autocommit = True
        self.heard: list[str] = []
        self.ask(f"LISTEN {CHANNEL}")

    def ask(self, statement: str, *values: Any) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)

    def listen(self, wanted: Callable[[str], bool]) -> str:
        """Return the next message of a kind that a gateway sends."""
        while True:
            assert select.select([self._connection], [], [], PATIENCE)[0]
            self._connection.poll()
            new: list[str] = [notify.payload for notify in self._connection.notifies]
            self._connection.notifies.clear()
            self.heard += new
            for payload in new:
                if wanted(payload):
                    return payload

    def send(self, *payloads: str) -> None:
        for payload in payloads:
            self.ask("SELECT pg_notify(%s, %s)", CHANNEL, payload)

    def close(self) -> None:
        self._connection.close()


def rejected(daemon: Daemon, reason: str) -> float:
    return daemon.metric("cynow_relay_rejected_total", reason=reason)


def settle(daemon: Daemon, sender: Stranger) -> None:
    """Wait until a gateway has read all that a stranger sent."""
    before = rejected(daemon, "foreign")
    sender.send("the end")
    until(lambda: rejected(daemon, "foreign") > before, "it has read everything")


def test_stranger_cannot_read_the_key(site: Server, gateway: Callable[..., Daemon]) -> None:
    # As where the plant's reports may read each new table.
    site.sql("ALTER DEFAULT PRIVILEGES FOR ROLE hall GRANT SELECT ON TABLES TO stranger, PUBLIC")
    gateway("a")
    stranger = Stranger(site)
    stranger.ask("SELECT * FROM cynow_mean")
    for statement in (
        "SELECT key FROM cynow_relay_key",
        "UPDATE cynow_relay_key SET key = key",
        "DELETE FROM cynow_relay_key",
        "INSERT INTO cynow_relay_key (key) VALUES ('')",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            stranger.ask(statement)
    stranger.close()
    ((length,),) = site.sql("SELECT length(key) FROM cynow_relay_key")
    assert length == 32


def test_forged_and_repeated_messages_change_nothing(site: Server, gateway: Callable[..., Daemon]) -> None:
    a = gateway("a")
    b = gateway("b")
    until(others(b, 1), "they hear each other")
    stranger = Stranger(site)
    line = a.scale()
    for kilograms in (1, 2):
        line.sendall(b"ST,+%05d.00 kg\r\n" % kilograms)
        stranger.listen(lambda payload, kg=kilograms: f'"kg":"{kg}.00"' in payload)  # type: ignore[misc]
    until(lambda: weight(b, "s") == 2, "the weight")
    first = next(payload for payload in stranger.heard if '"kg":"1.00"' in payload)
    code, body = first[:MAC_LENGTH], first[MAC_LENGTH:]
    flipped = [code[:at] + chr(ord(code[at]) ^ 1) + code[at + 1 :] + body for at in range(MAC_LENGTH)]
    later = json.dumps({**json.loads(body), "number": 10**9, "from": "f"}, separators=(",", ":"))
    forged = [*flipped, code[:-1] + body, code + body.replace("1.00", "9.00"), code + later, body, first[:100]]
    stranger.send(*forged)
    until(lambda: rejected(b, "foreign") == len(forged), "all are counted")
    assert (weight(a, "s"), weight(b, "s")) == (2, 2)
    # Everything that was ever said, again.
    old = rejected(b, "old")
    repeated = list(stranger.heard)
    stranger.send(*repeated)
    until(lambda: rejected(b, "old") >= old + len(repeated), "all are counted")
    assert (weight(a, "s"), weight(b, "s")) == (2, 2)
    assert b.metric("cynow_relay_gateways") == 1
    line.sendall(b"ST,+00003.00 kg\r\n")
    until(lambda: weight(b, "s") == 3, "the gateways go on")
    stranger.close()


def test_repeated_messages_change_nothing_after_the_ends_of_gateways(
    site: Server, gateway: Callable[..., Daemon]
) -> None:
    a, b = gateway("a"), gateway("b")
    stranger = Stranger(site)
    until(others(b, 1), "they hear each other")
    client = b.subscribe("scale/s", "machine/M")
    line = a.scale()
    line.sendall(b"ST,+00001.00 kg\r\n")
    a.daq(b'["name", "M"]\0')
    until(lambda: weight(b, "s") == 1, "the weight")
    client.events(2, "connected")
    # One ends in peace, the other is killed.
    assert a.terminate() == 0
    stranger.listen(lambda payload: '"say":"bye"' in payload)
    b.kill()
    b.start()
    until(lambda: problems_of(b) == [], "it listens")
    repeated = list(stranger.heard)
    old = rejected(b, "old")
    stranger.send(*repeated)
    until(lambda: rejected(b, "old") >= old + len(repeated), "all are counted")
    assert weight(b, "s") is None
    assert b.get("/sio/machineList")[1] == {"machine_list": []}
    assert b.metric("cynow_relay_gateways") == 0
    a.start()
    a.scale().sendall(b"ST,+00002.00 kg\r\n")
    until(lambda: weight(b, "s") == 2, "the weight of the new process")
    stranger.send(*repeated)
    settle(b, stranger)
    assert weight(b, "s") == 2
    stranger.close()


def test_message_of_a_copy_of_the_database_is_foreign(site: Server, gateway: Callable[..., Daemon]) -> None:
    a = gateway("a")
    # CREATE DATABASE needs the original without sessions.
    assert a.terminate() == 0
    until(
        lambda: site.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cynow%%'", [0]) == [(0,)],
        "no session",
    )
    a_key = site.sql("SELECT key FROM cynow_relay_key")
    with contextlib.closing(psycopg2.connect(site.url_of("template1"))) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE copy TEMPLATE postgres")
    assert [bytes(key) for ((key),) in site.sql("SELECT key FROM cynow_relay_key", database="copy")] == [
        bytes(key) for ((key),) in a_key
    ]
    a.start()
    test = gateway("test", database="copy")
    overheard = Stranger(site, "copy")
    test.scale().sendall(b"ST,+00009.00 kg\r\n")
    overheard.listen(lambda payload: '"kg":"9.00"' in payload)
    stranger = Stranger(site)
    stranger.send(*overheard.heard)
    until(lambda: rejected(a, "foreign") == len(overheard.heard), "all are counted")
    assert weight(a, "s") is None
    assert a.metric("cynow_relay_gateways") == 0
    overheard.close()
    stranger.close()
    assert test.terminate() == 0


def test_key_is_replaced_as_the_page_says(site: Server, gateway: Callable[..., Daemon]) -> None:
    a, b = gateway("a"), gateway("b")
    until(others(b, 1), "they hear each other")
    before = site.sql("SELECT encode(key, 'hex') FROM cynow_relay_key")
    (statements,) = blocks(ROOT / "docs" / "reference" / "postgresql.rst", "sql")
    for statement in statements.split(";\n"):
        if statement.strip():
            site.sql(statement)
    until(lambda: site.sql("SELECT encode(key, 'hex') FROM cynow_relay_key") not in ([], before), "another key")
    a.scale().sendall(b"ST,+00001.00 kg\r\n")
    until(lambda: weight(b, "s") == 1, "the weight")
    assert [problems_of(daemon) for daemon in (a, b)] == [[], []]


# -- rights


GRANTED = """
GRANT SELECT, INSERT, UPDATE, DELETE ON cynow_idempotency, cynow_commit, cynow_machine, cynow_sensor, cynow_mean,
    cynow_anomaly, cynow_applied, cynow_schema, scale_weight_log TO granted
"""


def test_role_that_may_not_read_the_key_is_told_so(site: Server, gateway: Callable[..., Daemon]) -> None:
    a = gateway("a")
    site.sql(GRANTED)
    b = gateway("b", "granted", problems=1)
    (problem,) = problems_of(b)
    assert problem.startswith("other gateways are not heard: permission denied for table cynow_relay_key (42501)")
    statement = problem.partition("; ")[2]
    assert statement == 'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE cynow_relay_key TO "granted";'
    # Everything else works.
    b.scale().sendall(b"ST,+00001.00 kg\r\n")
    until(lambda: weight(b, "s") == 1, "the weight")
    assert b.commit("CY1", scale_id="s")[0] == 200
    site.sql(statement)
    until(lambda: problems_of(b) == [], "it hears the others")
    until(lambda: weight(a, "s") == 1, "the weight")


def test_role_that_may_not_create_the_table_is_told_so(site: Server, gateway: Callable[..., Daemon]) -> None:
    a = gateway("a")
    assert a.terminate() == 0
    # As after an older version, with the rights taken away as the documentation proposes.
    site.sql("DROP TABLE cynow_relay_key; REVOKE CREATE ON SCHEMA public FROM hall")
    a.start()
    until(lambda: "cynow_relay_key is missing" in str(problems_of(a)), "the problem")
    (problem,) = problems_of(a)
    assert a.commit("CY1")[1]["error"] == "no_stable_weight"
    a.scale().sendall(b"ST,+00001.00 kg\r\n")
    until(lambda: weight(a, "s") == 1, "the weight")
    assert a.commit("CY1")[0] == 200
    assert problem.startswith("other gateways are not heard: ")
    statement = problem.partition("; ")[2]
    assert statement == "GRANT USAGE, CREATE ON SCHEMA public TO hall;"
    site.sql(statement)
    until(lambda: problems_of(a) == [], "it has created the table")
    assert site.sql("SELECT count(*) FROM cynow_relay_key") == [(1,)]


def test_table_that_a_stranger_made_is_not_trusted(site: Server, gateway: Callable[..., Daemon]) -> None:
    # PUBLIC could create tables by default until PostgreSQL 14.
    site.sql("GRANT CREATE ON SCHEMA public TO stranger")
    stranger = Stranger(site)
    stranger.ask("CREATE TABLE cynow_relay_key (id int PRIMARY KEY, key bytea, created_at timestamptz)")
    stranger.ask("INSERT INTO cynow_relay_key VALUES (1, decode(repeat('00', 32), 'hex'))")
    stranger.ask("GRANT ALL ON cynow_relay_key TO PUBLIC")
    a = gateway("a", problems=1)
    (problem,) = problems_of(a)
    assert "belongs to stranger" in problem
    site.sql(problem.partition("another one: ")[2])
    until(lambda: problems_of(a) == [], "it has made its own")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        stranger.ask("SELECT key FROM cynow_relay_key")
    stranger.close()
