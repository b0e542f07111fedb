"""Refusals of a reachable server: the report, the statement that fixes it, and the recovery."""

import contextlib
from dataclasses import replace
from datetime import UTC
from typing import Any

import psycopg2
import psycopg2.errors
from twisted.internet.defer import DeferredList, ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import IdempotencyKey, MeansQuery, OutcomeUnknown, RejectedByDatabase, StoreUnavailable
from gateway.store.postgres.refusals import explain
from gateway.store.postgres.session import Session
from gateway.store.postgres.store import PostgresStore
from gateway.store.spool.spool import Spool
from tests.support.entries import DAY, ENTRY, fault
from tests.support.postgres import Server, ServerCase
from tests.support.reactor import reactor
from tests.support.trial import new_folder, until

SECRET = "CY-SECRET-77"


async def _read_only(session: Session) -> None:
    await session.ask("SET default_transaction_read_only = on")


class RefusalCase(ServerCase):
    def opened(self, url: str | None = None, gateway: str = "hall-1") -> PostgresStore:
        folder = str(new_folder(self, "refusals"))
        clock, counters = WallClock(UTC), Counters()
        spool = Spool(reactor, clock, counters, folder, 2**20)
        store = PostgresStore(reactor, clock, counters, spool, url or self.server.url, gateway)
        store.open()
        self.addCleanup(store.close)
        return store

    async def wait_problem(self, store: PostgresStore, *words: str) -> str:
        """Wait for a problem with all these words, and return it."""

        def found() -> list[str]:
            return [problem for problem in store.problems if all(word in problem for word in words)]

        try:
            await until(found, f"{words}")
        except AssertionError as error:
            raise AssertionError(f"{words} are not in {store.problems}") from error
        return found()[0]

    async def wait_recovered(self, store: PostgresStore) -> None:
        await until(lambda: not store.problems, "the store recovers")
        await store.commit(ENTRY, None)

    def cylinders(self) -> list[str]:
        return [name for (name,) in self.server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id")]

    def drop(self, *statements: str) -> None:
        """Run statements after the test, to restore the shared server."""
        for statement in statements:
            self.addCleanup(self.server.sql, statement)


class ConnectionTests(RefusalCase):
    """The server refuses the connection, or the database."""

    async def test_database_that_does_not_exist(self) -> None:
        store = self.opened(self.server.url_of("nowhere"))
        text = await self.wait_problem(store, "PostgreSQL refuses", "nowhere")
        self.assertNotIn("unavailable", text)
        statement = text.partition("create it: ")[2]
        self.assertEqual(statement, "CREATE DATABASE \"nowhere\" ENCODING 'UTF8' TEMPLATE template0;")
        with self.assertRaisesRegex(StoreUnavailable, "refuses"):
            await store.commit(ENTRY, None)
        self.drop('DROP DATABASE "nowhere" WITH (FORCE)')
        self.server.sql(statement)
        await self.wait_recovered(store)

    async def test_role_that_does_not_exist(self) -> None:
        store = self.opened(self.server.url_of("postgres", "nobody-1"))
        text = await self.wait_problem(store, "PostgreSQL refuses", 'CREATE ROLE "nobody-1" LOGIN')
        self.assertNotIn("geheim", text)

    async def test_role_that_must_not_log_in(self) -> None:
        self.server.sql("CREATE ROLE locked")
        self.drop("DROP ROLE locked")
        store = self.opened(self.server.url_of("postgres", "locked"))
        await self.wait_problem(store, "PostgreSQL refuses", 'ALTER ROLE "locked" LOGIN;')

    async def test_role_without_rights_on_the_schema(self) -> None:
        self.server.sql("CREATE ROLE newcomer LOGIN")
        self.drop("DROP OWNED BY newcomer; DROP ROLE newcomer")
        store = self.opened(self.server.url_of("postgres", "newcomer"))
        text = await self.wait_problem(store, "PostgreSQL refuses", "permission denied for schema public")
        self.assertTrue(text.endswith('GRANT USAGE, CREATE ON SCHEMA public TO "newcomer";'), text)
        self.server.sql(text.rpartition("; ")[2])
        await self.wait_recovered(store)

    async def test_role_without_rights_on_a_table(self) -> None:
        first = self.opened()
        await first.commit(ENTRY, None)
        self.server.sql("CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        self.drop("DROP OWNED BY reader; DROP ROLE reader")
        store = self.opened(self.server.url_of("postgres", "reader"), "hall-2")
        text = await self.wait_problem(store, "commits are refused", "scale_weight_log")
        self.assertTrue(text.endswith('ON TABLE scale_weight_log TO "reader";'), text)
        self.server.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO reader")
        await self.wait_recovered(store)

    async def test_too_many_connections(self) -> None:
        self.server.sql("CREATE ROLE few LOGIN CONNECTION LIMIT 0; GRANT ALL ON SCHEMA public TO few")
        self.drop("DROP OWNED BY few; DROP ROLE few")
        store = self.opened(self.server.url_of("postgres", "few"))
        await self.wait_problem(store, "PostgreSQL refuses", "too many connections")
        self.server.sql("ALTER ROLE few CONNECTION LIMIT 20")
        await self.wait_recovered(store)

    async def test_role_with_too_few_connections(self) -> None:
        self.server.sql("CREATE ROLE few LOGIN CONNECTION LIMIT 1; GRANT ALL ON SCHEMA public TO few")
        self.drop("DROP OWNED BY few; DROP ROLE few")
        text = await self.wait_problem(
            self.opened(self.server.url_of("postgres", "few")), "PostgreSQL refuses", "connections"
        )
        self.assertTrue(text.endswith('raise its limit: ALTER ROLE "few" CONNECTION LIMIT -1;'), text)

    async def test_database_with_too_few_connections(self) -> None:
        self.server.sql("CREATE ROLE guest LOGIN")
        self.drop("DROP ROLE guest")
        self.server.sql("CREATE DATABASE small OWNER guest CONNECTION LIMIT 0")
        self.drop("DROP DATABASE small WITH (FORCE)")
        store = self.opened(self.server.url_of("small", "guest"))
        text = await self.wait_problem(store, "PostgreSQL refuses", "too many connections")
        statement = text.rpartition("raise its limit: ")[2]
        self.assertEqual(statement, 'ALTER DATABASE "small" CONNECTION LIMIT -1;')
        self.server.sql(statement)
        await self.wait_recovered(store)

    async def test_database_that_accepts_no_connections(self) -> None:
        self.server.sql("CREATE DATABASE shut ALLOW_CONNECTIONS false")
        self.drop("DROP DATABASE shut WITH (FORCE)")
        store = self.opened(self.server.url_of("shut"))
        text = await self.wait_problem(store, "PostgreSQL refuses", "not currently accepting connections")
        statement = text.rpartition("; open it: ")[2]
        self.assertEqual(statement, 'ALTER DATABASE "shut" ALLOW_CONNECTIONS true;')
        self.server.sql(statement)
        await self.wait_recovered(store)

    async def test_schema_that_the_role_may_not_use(self) -> None:
        self.server.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE ROLE newcomer LOGIN")
        self.drop("DROP OWNED BY newcomer; DROP ROLE newcomer")
        store = self.opened(self.server.url_of("postgres", "newcomer"))
        text = await self.wait_problem(store, "PostgreSQL refuses", "no schema has been selected", "(3F000)")
        statement = text.split("; ")[1]
        self.assertEqual(statement, 'GRANT USAGE, CREATE ON SCHEMA public TO "newcomer"')
        self.server.sql(statement)
        await self.wait_recovered(store)

    async def test_search_path_without_a_schema(self) -> None:
        self.drop("ALTER DATABASE postgres RESET search_path", "ALTER ROLE cynow IN DATABASE postgres RESET ALL")
        self.server.sql("ALTER DATABASE postgres SET search_path = nope")
        store = self.opened()
        text = await self.wait_problem(store, "PostgreSQL refuses", "no schema has been selected", "(3F000)")
        statement = text.rpartition("that exists: ")[2]
        self.assertEqual(statement, 'ALTER ROLE "cynow" IN DATABASE "postgres" SET search_path = public;')
        self.server.sql(statement)
        await self.wait_recovered(store)

    async def test_event_trigger_that_forbids_tables(self) -> None:
        self.drop("DROP EVENT TRIGGER IF EXISTS plant")
        for code in ("P0001", "42501"):
            self.server.empty()
            self.server.sql(
                "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"RAISE EXCEPTION '{SECRET}' USING ERRCODE = '{code}'; END $$"
            )
            self.server.sql("CREATE EVENT TRIGGER plant ON ddl_command_start EXECUTE FUNCTION no_ddl()")
            store = self.opened()
            text = await self.wait_problem(
                store, "PostgreSQL refuses", f"({code}); find it: SELECT evtname FROM pg_event_trig"
            )
            self.assertNotIn(SECRET, text)
            self.assertNotIn("GRANT", text)
            self.server.sql("DROP EVENT TRIGGER plant")
            await self.wait_recovered(store)

    async def test_view_in_the_place_of_a_table(self) -> None:
        self.server.sql("CREATE VIEW cynow_mean AS SELECT 1 AS id")
        store = self.opened()
        await self.wait_problem(store, "PostgreSQL refuses", "cynow_mean", "(42809)", "rename or drop it")
        self.server.sql("ALTER VIEW cynow_mean RENAME TO plant_mean")
        await self.wait_recovered(store)

    async def test_database_in_another_encoding(self) -> None:
        self.server.sql("CREATE DATABASE korean ENCODING 'EUC_KR' LOCALE 'C' TEMPLATE template0")
        self.drop("DROP DATABASE korean WITH (FORCE)")
        store = self.opened(self.server.url_of("korean"))
        await self.wait_problem(store, "PostgreSQL refuses", "korean has the encoding EUC_KR", "ENCODING 'UTF8'")
        with self.assertRaises(StoreUnavailable):
            await store.commit(replace(ENTRY, cylinder_no="뷁1"), None)
        # No waiting entry is lost.
        self.assertEqual(await store.write([fault("뷁", 1)]), [])
        self.assertEqual(store._spool.waiting, 1)

    async def test_schema_of_a_later_version(self) -> None:
        await self.opened().commit(ENTRY, None)
        self.server.sql("INSERT INTO cynow_schema (step) VALUES (99)")
        store = self.opened(gateway="hall-2")
        await self.wait_problem(store, "PostgreSQL refuses", "is at step 99", "newer version")
        self.server.sql("DELETE FROM cynow_schema WHERE step = 99")
        await self.wait_recovered(store)

    async def test_read_only_sessions_are_replaced(self) -> None:
        store = self.opened()
        await store.commit(ENTRY, None)
        self.drop("ALTER DATABASE postgres RESET default_transaction_read_only")
        self.server.sql("ALTER DATABASE postgres SET default_transaction_read_only = on")
        self.server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cynow-gateway%'"
        )
        await self.wait_problem(store, "PostgreSQL refuses", "read-only", "default_transaction_read_only = off")
        # Queries still work.
        self.assertEqual((await store.means(MeansQuery("hour", "M", DAY, DAY))).items, [])
        self.server.sql("SET transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only")
        await self.wait_recovered(store)
        self.assertEqual(len(self.cylinders()), 2)

    async def test_session_that_became_read_only_is_replaced(self) -> None:
        store = self.opened()
        await store.commit(ENTRY, None)
        await until(lambda: all(link.is_ready for link in store._commit_pool._links), "both are connected")
        # At once, so that each connection gets one.
        await gatherResults([store._commit_pool.run(_read_only) for _ in store._commit_pool._links])
        await store.commit(ENTRY, None)
        self.assertEqual(len(self.cylinders()), 2)

    async def test_stopped_server_is_unavailable(self) -> None:
        store = self.opened()
        await store.commit(ENTRY, None)
        self.server.stop()
        try:
            text = await self.wait_problem(store, "PostgreSQL is unavailable")
            self.assertNotIn("refuses", text)
        finally:
            self.server.start()
        await self.wait_recovered(store)

    async def test_problem_is_logged_once(self) -> None:
        with capturedLogs() as events:
            store = self.opened(self.server.url_of("nowhere"))
            await self.wait_problem(store, "nowhere")
            await deferLater(reactor, 2.0)
        lines = [formatEvent(event) for event in events if "nowhere" in (formatEvent(event) or "")]
        # One line for each pool, regardless of the number of attempts.
        self.assertEqual(len(lines), 3)


class TwoServersTests(RefusalCase):
    """Several hosts in one URL."""

    async def test_host_that_can_be_written_is_found(self) -> None:
        other = Server()
        other.start()
        try:
            other.sql("ALTER SYSTEM SET default_transaction_read_only = on")
            other.sql("SELECT pg_reload_conf()")
            hosts = f"127.0.0.1:{other.port},localhost:{self.server.port}"
            url = f"postgresql://cynow:{Server.password}@{hosts}/postgres?target_session_attrs=read-write"
            store = self.opened(url)
            await store.commit(ENTRY, None)
            self.assertEqual(len(self.cylinders()), 1)
        finally:
            other.remove()

    async def test_host_that_does_not_listen_or_has_no_name_is_skipped(self) -> None:
        hosts = f"no-such-host.invalid:1,127.0.0.1:1,127.0.0.1:{self.server.port}"
        store = self.opened(f"postgresql://cynow:{Server.password}@{hosts}/postgres")
        await store.commit(ENTRY, None)

    async def test_host_that_is_silent_is_skipped(self) -> None:
        other = Server()
        other.start()
        other.pause()
        try:
            hosts = f"127.0.0.1:{other.port},127.0.0.1:{self.server.port}"
            store = self.opened(f"postgresql://cynow:{Server.password}@{hosts}/postgres")
            await until(lambda: not store.problems, "the second host is connected")
            await store.commit(ENTRY, None)
        finally:
            other.remove()

    async def test_socket_directory(self) -> None:
        folder = str(self.server.folder).replace("/", "%2F")
        store = self.opened(f"postgresql://cynow@{folder}:{self.server.port}/postgres")
        await store.commit(ENTRY, None)


class CommitTests(RefusalCase):
    """The server refuses a commit, or does not answer."""

    async def ready(self) -> PostgresStore:
        store = self.opened()
        await store.commit(replace(ENTRY, cylinder_no="FIRST"), None)
        return store

    def trigger(self, what: str) -> None:
        self.server.sql(
            "CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF NEW.cylinder_no = '{SECRET}' THEN {what}; END IF; RETURN NEW; END $$"
        )
        self.server.sql("CREATE TRIGGER plant BEFORE INSERT ON scale_weight_log FOR EACH ROW EXECUTE FUNCTION plant()")

    async def rejected(self, store: PostgresStore, entry: Any = None) -> list[str]:
        """Return the log of a rejected commit, with a valid commit beside it."""
        with capturedLogs() as events:
            outcomes: list[tuple[bool, Any]] = await DeferredList(
                [
                    ensureDeferred(store.commit(entry or replace(ENTRY, cylinder_no=SECRET), None)),
                    ensureDeferred(store.commit(replace(ENTRY, cylinder_no="BESIDE"), None)),
                ],
                consumeErrors=True,
            )
        (refused, failure), (taken, _) = outcomes
        self.assertEqual((refused, taken), (False, True))
        failure.trap(RejectedByDatabase)
        self.assertNotIn(SECRET, str(failure.value))
        self.assertEqual(self.cylinders()[-1], "BESIDE")
        self.assertFalse([problem for problem in store.problems if "refused" in problem])
        text = "\n".join(f"{formatEvent(event)} {event.get('log_failure')} {event}" for event in events)
        self.assertNotIn(SECRET, text)
        return [formatEvent(event) or "" for event in events]

    async def test_check_that_refuses_a_row(self) -> None:
        store = await self.ready()
        self.server.sql(f"ALTER TABLE scale_weight_log ADD CONSTRAINT no_secret CHECK (cylinder_no <> '{SECRET}')")
        lines = await self.rejected(store)
        self.assertTrue([line for line in lines if "refused by no_secret of scale_weight_log (23514)" in line], lines)

    async def test_trigger_that_refuses_a_row(self) -> None:
        store = await self.ready()
        self.trigger("RAISE EXCEPTION 'not %', NEW.cylinder_no USING DETAIL = NEW.raw_line")
        lines = await self.rejected(store)
        self.assertTrue([line for line in lines if "a trigger or a function" in line], lines)

    async def test_trigger_that_refuses_a_row_with_a_code_of_its_own(self) -> None:
        store = await self.ready()
        self.trigger("RAISE EXCEPTION 'not %', NEW.cylinder_no USING ERRCODE = 'ZZ001'")
        await self.rejected(store)

    async def test_column_that_is_too_short(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER TABLE scale_weight_log ALTER COLUMN cylinder_no TYPE varchar(8)")
        await self.rejected(store)

    async def test_value_that_is_missing(self) -> None:
        store = await self.ready()
        self.server.sql("UPDATE scale_weight_log SET move_report_no = 'M'")
        self.server.sql("ALTER TABLE scale_weight_log ALTER COLUMN move_report_no SET NOT NULL")
        outcomes: list[tuple[bool, Any]] = await DeferredList(
            [ensureDeferred(store.commit(replace(ENTRY, move_report_no=number), None)) for number in (None, "M1")],
            consumeErrors=True,
        )
        outcomes[0][1].trap(RejectedByDatabase)
        self.assertTrue(outcomes[1][0])

    async def test_table_that_was_renamed(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER TABLE scale_weight_log RENAME TO gone")
        # No commit is sent.
        await self.wait_problem(store, "commits are refused", "scale_weight_log", "restore it")
        with self.assertRaises(StoreUnavailable):
            await store.commit(ENTRY, None)
        self.server.sql("ALTER TABLE gone RENAME TO scale_weight_log")
        await self.wait_recovered(store)

    async def test_table_that_is_locked(self) -> None:
        store = await self.ready()
        with contextlib.closing(psycopg2.connect(self.server.url)) as other:
            with other.cursor() as cursor:
                cursor.execute("LOCK TABLE scale_weight_log")
            await self.wait_problem(store, "commits are refused", "another session has locked the table")
            with self.assertRaises(StoreUnavailable):
                await store.commit(ENTRY, None)
        await self.wait_recovered(store)
        self.assertEqual(len(self.cylinders()), 2)

    async def test_slow_trigger_is_waited_for(self) -> None:
        store = await self.ready()
        self.trigger("PERFORM pg_sleep(3)")
        result = await store.commit(replace(ENTRY, cylinder_no=SECRET), None)
        self.assertEqual(result.answer["id"], 2)

    async def test_trigger_that_takes_too_long_leaves_nothing_written(self) -> None:
        store = await self.ready()
        self.trigger("PERFORM pg_sleep(60)")
        with self.assertRaises(StoreUnavailable):
            await store.commit(replace(ENTRY, cylinder_no=SECRET), None)
        await self.wait_problem(store, "commits are refused", "statement_timeout")
        await deferLater(reactor, 1.0)
        self.assertEqual(self.cylinders(), ["FIRST"])
        self.server.sql("DROP TRIGGER plant ON scale_weight_log")
        await until(lambda: not store.problems, "the store recovers without a commit")

    async def test_outcome_is_unknown_if_the_server_is_silent_at_commit(self) -> None:
        store = await self.ready()
        key = IdempotencyKey("k", "f")
        ask, writing, paused = store._commit_pool._links[0].session.__class__.ask, set[Any](), list[str]()

        async def pausing(session: Any, statement: str, *rest: Any, **more: Any) -> Any:
            if SECRET in str(rest):
                writing.add(session)
            # Not the COMMIT of another connection, which may still be creating tables.
            if statement == "COMMIT" and session in writing and not paused:
                paused.append(statement)
                self.server.pause()
            return await ask(session, statement, *rest, **more)

        self.patch(store._commit_pool._links[0].session.__class__, "ask", pausing)
        try:
            with capturedLogs() as events, self.assertRaises(OutcomeUnknown):
                await store.commit(replace(ENTRY, cylinder_no=SECRET), key)
        finally:
            self.server.resume()
        text = "\n".join(f"{formatEvent(event)}" for event in events)
        self.assertIn("the outcome of a commit is unknown", text)
        self.assertNotIn(SECRET, text)
        await until(lambda: not store.problems, "PostgreSQL is back")
        # The same request with the same key returns the outcome, and there is one row in any case.
        result = await store.commit(replace(ENTRY, cylinder_no=SECRET), key)
        self.assertEqual(self.cylinders(), ["FIRST", SECRET])
        self.assertEqual(result.answer["cylinder_no"], SECRET)

    async def test_statistics_that_are_refused_for_good_are_reported(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER TABLE cynow_anomaly ALTER COLUMN gateway TYPE varchar(3)")
        await store.write([fault("M", 1)])
        await self.wait_problem(store, "1 statistics and anomalies are lost")


def test_explain_shows_names_only() -> None:
    error = psycopg2.OperationalError('connection to server at "h", port 1 failed: FATAL:  database "d" does not exist')
    text = explain(error, {"dbname": "d", "user": "u", "password": "s3cret"}).text
    assert "s3cret" not in text
    korean = psycopg2.OperationalError('connection to server at "h", port 1 failed: 치명적오류:  "d" 데이터베이스 없음')
    refuses, text = explain(korean, {})
    assert refuses
    assert "데이터베이스 없음" in text
    refuses, _ = explain(psycopg2.OperationalError("connection refused"), {})
    assert not refuses
    starting = psycopg2.OperationalError("failed: FATAL:  the database system is starting up")
    assert not explain(starting, {}).refuses


def test_explain_temporary_error_is_unavailable() -> None:
    for code in ("57P01", "57P03", "08006", "40P01"):
        assert not explain(_error(code), {}).refuses, code
    for code in ("42883", "58030", "53100", "53300", "XX000"):
        assert explain(_error(code), {}).refuses, code


def _error(code: str) -> psycopg2.Error:
    error = psycopg2.errors.lookup(code)("said by the server")
    # The driver sets the code of a server's error in this way.
    error.__setstate__({"pgcode": code})
    return error
