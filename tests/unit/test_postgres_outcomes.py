"""Outcomes of commits that PostgreSQL rejects, or does not confirm in time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from gateway.store.interface import IdempotencyKey, OutcomeUnknown, RejectedByDatabase, StoreUnavailable
from gateway.store.postgres.commit_batches import MAX_ANSWER_TIME, CommitQueue
from gateway.store.postgres.commits import PendingCommit
from gateway.store.postgres.notify import PostgresChannel
from gateway.store.postgres.refusals import explain
from gateway.store.postgres.session import Session, Work
from gateway.store.postgres.store import PostgresStore
from tests.support.daemon import PATIENCE
from tests.support.entries import DAY, ENTRY, fault
from tests.support.trial import until
from tests.unit.test_postgres_refusals import SECRET, RefusalCase

#: Key of a request that is repeated.
KEY = IdempotencyKey("k", "f")
NEW = replace(ENTRY, cylinder_no=SECRET)


async def _elsewhere(session: Session) -> None:
    await session.ask("SET search_path = pg_catalog")


class LateTests(SynchronousTestCase):
    """Maximum time until a commit is answered, whatever the server does."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work: list[tuple[Work[None], Deferred[None]]] = []
        self.queue = CommitQueue(self.clock, self.run_work, size=1)

    def run_work(self, work: Work[None]) -> "Deferred[None]":
        done: Deferred[None] = Deferred()
        self.work.append((work, done))
        return done

    def pump(self, seconds: float) -> None:
        self.clock.pump([0.25] * round(seconds / 0.25))

    def order(self) -> PendingCommit:
        return PendingCommit.of(ENTRY, None, 0.0)

    def test_commit_that_was_sent_and_has_no_answer_is_unknown(self) -> None:
        order = self.order()
        done = self.queue.write(order)
        self.pump(1)
        order.is_sent = True
        self.pump(MAX_ANSWER_TIME - 2)
        self.assertNoResult(done)
        self.pump(2)
        self.failureResultOf(done, OutcomeUnknown)
        # A later answer of the server is ignored.
        self.work[0][1].callback(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_commit_that_waits_for_another_is_withdrawn(self) -> None:
        first = self.order()
        answers = [self.queue.write(first)]
        self.pump(0.25)
        first.is_sent = True
        second = self.order()
        answers.append(self.queue.write(second))
        self.pump(MAX_ANSWER_TIME + 1)
        self.failureResultOf(answers[0], OutcomeUnknown)
        self.failureResultOf(answers[1], StoreUnavailable)
        self.work[0][1].callback(None)
        self.pump(1)
        self.assertEqual(len(self.work), 1)

    def test_commit_that_was_withdrawn_before_it_was_sent_is_not_sent(self) -> None:
        done = self.queue.write(self.order())
        self.pump(MAX_ANSWER_TIME + 1)
        self.failureResultOf(done, StoreUnavailable)

        class Silent:
            async def ask(self, *_: Any) -> Any:
                raise AssertionError("it is sent")

        work, ended = self.work[0]
        self.successResultOf(Deferred.fromCoroutine(work(Silent())))  # type: ignore[arg-type]  # asks nothing
        ended.callback(None)

    def test_commits_that_are_answered_leave_no_timer(self) -> None:
        answers = [self.queue.write(self.order()) for _ in range(3)]
        self.pump(0.25)
        self.work[0][1].errback(StoreUnavailable("away"))
        for done in answers:
            self.failureResultOf(done, StoreUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class CommitCase(RefusalCase):
    async def ready(self) -> PostgresStore:
        store = self.opened()
        await store.commit(replace(ENTRY, cylinder_no="FIRST"), None)
        return store

    def trigger(self, what: str, kind: str = "BEFORE INSERT", table: str = "scale_weight_log") -> None:
        """Run a statement in a trigger for each row of a table."""
        self.server.sql(
            f"CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NEW; END $$"
        )
        constraint = "CONSTRAINT" if "DEFERRED" in kind else ""
        self.server.sql(
            f"CREATE {constraint} TRIGGER plant {kind.replace('INSERT', f'INSERT ON {table}')}"
            " FOR EACH ROW EXECUTE FUNCTION plant()"
        )

    async def outcome(self, store: PostgresStore, key: IdempotencyKey | None = None) -> Any:
        """Return the outcome of a commit: its result or its error."""
        ((_, result),) = await DeferredList([ensureDeferred(store.commit(NEW, key))], consumeErrors=True)
        return getattr(result, "value", result)


class DoubtTests(CommitCase):
    """Commits that may have been written."""

    async def test_same_key_is_unknown_until_the_server_has_decided(self) -> None:
        store = await self.ready()
        # At COMMIT, which has no time limit on the server.
        self.trigger(
            f"IF NEW.cylinder_no = '{SECRET}' THEN PERFORM pg_sleep(12); END IF",
            "AFTER INSERT DEFERRABLE INITIALLY DEFERRED",
        )
        self.assertIsInstance(await self.outcome(store, KEY), OutcomeUnknown)
        # The row is still being written, and this request cannot get the lock of its key.
        self.assertIsInstance(await self.outcome(store, KEY), OutcomeUnknown)
        await until(lambda: SECRET in self.cylinders(), "the server writes it")
        result = await store.commit(NEW, KEY)
        self.assertEqual((result.answer["cylinder_no"], result.commit), (SECRET, None))
        self.assertEqual(self.cylinders(), ["FIRST", SECRET])

    async def test_key_of_an_unknown_commit_is_unknown_while_the_server_is_away(self) -> None:
        store = await self.ready()
        store._commit_writer._doubtful[KEY.key] = None
        self.server.stop()
        try:
            for waiting in (ensureDeferred(store.commit(NEW, KEY)), ensureDeferred(store.replay(KEY))):
                with self.assertRaises(OutcomeUnknown):
                    await waiting
            for other in (
                ensureDeferred(store.commit(NEW, IdempotencyKey("other", "f"))),
                ensureDeferred(store.replay(IdempotencyKey("other", "f"))),
            ):
                with self.assertRaises(StoreUnavailable):
                    await other
        finally:
            self.server.start()
        await until(lambda: not store.problems, "PostgreSQL is back")
        await store.commit(NEW, KEY)
        # The outcome is known now.
        self.assertEqual(list(store._commit_writer._doubtful), [])

    async def test_no_more_keys_are_remembered_than_a_bound(self) -> None:
        store = await self.ready()
        for number in range(1010):
            order = PendingCommit.of(ENTRY, IdempotencyKey(f"k{number}", "f"), 0.0)
            order.is_in_doubt = True
            store._commit_writer._unwritten(order, "no answer")
        self.assertEqual(len(store._commit_writer._doubtful), 1000)
        self.assertNotIn("k0", store._commit_writer._doubtful)
        self.assertIn("k1009", store._commit_writer._doubtful)


class RejectionTests(CommitCase):
    """Rows that the database always rejects, and errors of other causes."""

    async def test_trigger_that_leaves_a_row_out_rejects_it(self) -> None:
        store = await self.ready()
        self.trigger(f"IF NEW.cylinder_no = '{SECRET}' THEN RETURN NULL; END IF")
        self.assertIsInstance(await self.outcome(store), RejectedByDatabase)
        outcomes: list[tuple[bool, Any]] = await DeferredList(
            [
                ensureDeferred(store.commit(NEW, None)),
                ensureDeferred(store.commit(replace(ENTRY, cylinder_no="BESIDE"), None)),
            ],
            consumeErrors=True,
        )
        outcomes[0][1].trap(RejectedByDatabase)
        self.assertTrue(outcomes[1][0])
        self.assertEqual(self.cylinders(), ["FIRST", "BESIDE"])

    async def test_trigger_that_writes_a_row_elsewhere_writes_nothing(self) -> None:
        store = await self.ready()
        self.server.sql("CREATE TABLE part (LIKE scale_weight_log INCLUDING ALL) INHERITS (scale_weight_log)")
        self.trigger("INSERT INTO part SELECT NEW.*; RETURN NULL")
        for orders in (1, 3):
            outcomes: list[tuple[bool, Any]] = await DeferredList(
                [ensureDeferred(store.commit(NEW, None)) for _ in range(orders)], consumeErrors=True
            )
            for _, failure in outcomes:
                failure.trap(RejectedByDatabase)
        self.assertEqual(self.cylinders(), ["FIRST"])

    async def test_words_of_a_function_are_nowhere_whatever_its_error_is(self) -> None:
        store = await self.ready()
        quoting = "EXECUTE 'SELECT ' || quote_ident(NEW.cylinder_no)"
        raising = "RAISE EXCEPTION 'not %', NEW.cylinder_no USING ERRCODE = '{}'"
        for what in (quoting, *map(raising.format, ("53100", "42P01", "57014", "XX000", "P0001", "23514", "40001"))):
            self.trigger(what)
            with capturedLogs() as events:
                error = await self.outcome(store)
            text = "\n".join(f"{formatEvent(event)} {event.get('log_failure')} {event}" for event in events)
            self.assertIsInstance(error, StoreUnavailable | RejectedByDatabase, what)
            self.assertNotIn(SECRET, f"{error} {error.__cause__} {text} {store.problems}", what)
            self.server.sql("DROP TRIGGER plant ON scale_weight_log; DROP FUNCTION plant()")

    async def test_policy_that_refuses_a_row_is_not_a_missing_right(self) -> None:
        await self.ready()
        self.server.sql(
            "CREATE ROLE weigher LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO weigher;"
            " ALTER TABLE scale_weight_log ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY reading ON scale_weight_log FOR SELECT USING (true);"
            f" CREATE POLICY weighing ON scale_weight_log FOR INSERT WITH CHECK (cylinder_no <> '{SECRET}')"
        )
        self.drop("DROP OWNED BY weigher; DROP ROLE weigher")
        store = self.opened(self.server.url_of("postgres", "weigher"), "hall-2")
        await store.commit(replace(ENTRY, cylinder_no="SECOND"), None)
        error = await self.outcome(store)
        self.assertIsInstance(error, RejectedByDatabase)
        self.assertIn("row-level security", str(error))

    async def test_text_that_has_no_form_in_utf_8_is_rejected(self) -> None:
        store = await self.ready()
        for wrong in ("\ud800", "A\0"):
            outcomes: list[tuple[bool, Any]] = await DeferredList(
                [
                    ensureDeferred(store.commit(replace(ENTRY, cylinder_no=number), None))
                    for number in (wrong, "BESIDE")
                ],
                consumeErrors=True,
            )
            outcomes[0][1].trap(RejectedByDatabase)
            self.assertTrue(outcomes[1][0])

    async def test_sequence_that_is_behind_is_not_the_rows_fault(self) -> None:
        store = await self.ready()
        columns = "scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at, committed_at"
        self.server.sql(
            f"INSERT INTO scale_weight_log (id, {columns}) SELECT n, {columns}"
            " FROM scale_weight_log, generate_series(2, 50) AS n"
        )
        self.assertIsInstance(await self.outcome(store), StoreUnavailable)
        text = await self.wait_problem(store, "commits are refused", "sequence of scale_weight_log")
        self.server.sql(text.partition("set it: ")[2])
        self.assertEqual((await store.commit(NEW, None)).answer["id"], 51)
        self.assertEqual(store.problems, [])

    async def test_missing_table_of_keys_is_reported_without_commits(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER TABLE cynow_idempotency RENAME TO gone")
        await self.wait_problem(store, "commits are refused", "cynow_idempotency")
        self.server.sql("ALTER TABLE gone RENAME TO cynow_idempotency")
        await self.wait_recovered(store)


class SchemaTests(RefusalCase):
    async def test_database_that_was_dropped_and_made_again_gets_its_tables(self) -> None:
        self.server.sql("CREATE DATABASE again")
        self.drop("DROP DATABASE again WITH (FORCE)")
        store = self.opened(self.server.url_of("again"))
        await store.commit(ENTRY, None)
        self.server.sql("DROP DATABASE again WITH (FORCE)")
        await self.wait_problem(store, "PostgreSQL refuses", "again")
        self.server.sql("CREATE DATABASE again")
        await self.wait_recovered(store)
        self.assertEqual(self.server.sql("SELECT id FROM scale_weight_log", database="again"), [(1,)])

    async def test_open_connections_that_create_the_tables_at_once(self) -> None:
        with capturedLogs() as events:
            stores = [self.opened(gateway=f"hall-{number}") for number in range(3)]
            await gatherResults([ensureDeferred(store.commit(ENTRY, None)) for store in stores])
            for store in stores:
                await until(lambda store=store: not store.problems, "PostgreSQL is connected")
        lines = [formatEvent(event) or "" for event in events]
        self.assertEqual([line for line in lines if "away:" in line or "refuses:" in line], [])


class ReadOnlyTests(CommitCase):
    def switch(self, to: str) -> None:
        """Make the whole server read-only or writable, existing sessions included."""
        self.server.sql(f"ALTER SYSTEM {to}")
        self.server.sql("SELECT pg_reload_conf()")

    async def test_server_that_becomes_read_only_is_reported_without_commits(self) -> None:
        store = await self.ready()
        links = [link for pool in store._pools for link in pool._links]
        await until(lambda: all(link.is_ready for link in links), "all are connected")
        self.addCleanup(self.switch, "RESET default_transaction_read_only")
        self.switch("SET default_transaction_read_only = on")
        await self.wait_problem(store, "read-only", "default_transaction_read_only = off")
        self.assertIsInstance(await self.outcome(store), StoreUnavailable)
        await self.wait_problem(store, "PostgreSQL refuses", "read-only")
        self.switch("RESET default_transaction_read_only")
        await self.wait_recovered(store)
        self.assertEqual(self.cylinders(), ["FIRST", "CY1"])

    async def test_health_check_uses_the_pool_of_commits(self) -> None:
        store = await self.ready()
        await until(lambda: all(link.is_ready for link in store._query_pool._links), "queries are possible")
        # Queries may use another server.
        await gatherResults([store._query_pool.run(_elsewhere) for _ in store._query_pool._links])
        await store._health._check()
        self.assertIsNone(store._health.problem)
        await store.commit(NEW, None)


class EntryTests(CommitCase):
    """Statistics and anomalies that the database refuses."""

    def machines(self) -> list[str]:
        return [name for (name,) in self.server.sql("SELECT machine FROM cynow_anomaly ORDER BY time, entry")]

    async def test_check_that_refuses_one_costs_no_other(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER TABLE cynow_anomaly ADD CHECK (machine <> 'BAD')")
        await store.write([fault("GOOD", 1), fault("BAD", 2), fault("GOOD", 3)])
        await store.drained().addTimeout(PATIENCE, reactor)
        self.assertEqual(self.machines(), ["GOOD", "GOOD"])
        await self.wait_problem(store, "1 statistics and anomalies are lost", "23514")

    async def test_trigger_that_refuses_one_costs_no_other(self) -> None:
        store = await self.ready()
        self.trigger("IF NEW.machine = 'BAD' THEN RAISE EXCEPTION 'no'; END IF", table="cynow_anomaly")
        await store.write([fault("BAD", 1), fault("GOOD", 2)])
        await store.drained().addTimeout(PATIENCE, reactor)
        self.assertEqual(self.machines(), ["GOOD"])
        await self.wait_problem(store, "1 statistics and anomalies are lost", "P0001")

    async def test_upload_refused_by_a_trigger_is_retried(self) -> None:
        store = await self.ready()
        self.trigger("RAISE EXCEPTION 'not now'", table="cynow_anomaly")
        await store.write([fault("GOOD", 1)])
        await self.wait_problem(store, "does not accept statistics", "P0001")
        self.server.sql("DROP TRIGGER plant ON cynow_anomaly")
        await store.drained().addTimeout(PATIENCE, reactor)
        self.assertEqual(self.machines(), ["GOOD"])
        self.assertEqual(store.problems, [])
        self.assertEqual(len((await store.anomalies("GOOD", DAY, DAY)).items), 1)


class NotificationTests(CommitCase):
    async def test_statement_is_not_in_what_a_refused_notification_says(self) -> None:
        store = await self.ready()
        ask = Session.ask

        async def refused(session: Session, statement: str, *rest: Any, **more: Any) -> Any:
            return await ask(session, statement.replace("pg_notify(", "pg_notifi("), *rest, **more)

        channel = PostgresChannel(reactor, self.server.url, "hall-1")
        self.addCleanup(lambda: Deferred.fromCoroutine(channel.close(0.0)))
        channel.start(lambda key, moment: None, lambda _: None)
        await until(lambda: channel.is_connected, "it listens")
        self.patch(Session, "ask", refused)
        with self.assertRaises(StoreUnavailable) as caught:
            await channel.send([SECRET])
        self.assertNotIn(SECRET, str(caught.exception))
        self.assertIsNone(caught.exception.__cause__)
        await deferLater(reactor, 0)
        self.assertTrue(channel.is_connected)
        self.assertEqual(store.problems, [])


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ('"plant" 데이터베이스 없음', 'CREATE DATABASE "plant"'),
        ('"cynow" 롤(role) 없음', 'CREATE ROLE "cynow"'),
        ('사용자 "cynow"의 password 인증을 실패했습니다', 'ALTER ROLE "cynow" PASSWORD'),
        ('"cynow" 롤은 접속을 허용하지 않음', 'ALTER ROLE "cynow" LOGIN'),
        (
            '호스트 "::1", 사용자 "cynow", 데이터베이스 "plant", 연결에 대한 설정이 pg_hba.conf 파일에 없습니다.',
            "add a line",
        ),
        ("최대 동시 접속자 수를 초과했습니다.", "max_connections"),
        ('"cynow" 롤의 최대 동시 접속수를 초과했습니다', 'ALTER ROLE "cynow" CONNECTION LIMIT'),
        ('"plant" 데이터베이스 최대 접속수를 초과했습니다', 'ALTER DATABASE "plant" CONNECTION LIMIT'),
        ('"plant" 데이터베이스는 현재 접속을 허용하지 않습니다', 'ALTER DATABASE "plant" ALLOW_CONNECTIONS'),
        ('"plant" 데이터베이스 액세스 권한 없음', 'ON DATABASE "plant"'),
    ],
)
def test_server_that_speaks_korean_is_understood(said: str, advice: str) -> None:
    error = psycopg2.OperationalError(f'connection to server at "h", port 1 failed: 치명적오류:  {said}')
    refuses, text = explain(error, {"dbname": "plant", "user": "cynow"})
    assert refuses
    assert text.startswith(said)
    assert advice in text


@pytest.mark.parametrize("said", ["데이터베이스 시스템이 새로 가동 중입니다.", "데이터베이스 시스템이 중지 중입니다"])
def test_server_that_starts_or_stops_is_away_in_korean_too(said: str) -> None:
    assert not explain(psycopg2.OperationalError(f"failed: 치명적오류:  {said}"), {}).refuses


def test_statement_names_the_role_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "weigher")
    monkeypatch.setenv("PGDATABASE", "plant")
    failed: Callable[[str], Any] = psycopg2.OperationalError
    assert 'CREATE ROLE "weigher"' in explain(failed('failed: FATAL:  role "weigher" does not exist'), {}).text
    assert 'CREATE DATABASE "plant"' in explain(failed('failed: FATAL:  database "plant" does not exist'), {}).text
