"""Look-up of cylinders: caching, sharing and time limits by a test's clock, and a real table of a plant."""

from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from gateway.config.settings import CylinderSettings
from gateway.cylinders import lookup
from gateway.cylinders.lookup import CylinderMaster, CylinderQueryError, CylinderRow
from gateway.cylinders.master import CylinderRecord
from gateway.cylinders.plant_table import PlantTable
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from tests.support.postgres import ServerCase
from tests.support.reactor import reactor
from tests.support.trial import until

ROW = {"tare_kg": "53.20   ", "net_kg": 20}
RECORD = CylinderRecord(Decimal("53.20"), Decimal(20))


class HeldTable:
    """Table whose queries a test answers."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.asked: list[tuple[str, Deferred[CylinderRow | None]]] = []
        self.connected: Callable[[], None] = lambda: None

    def start(self, on_connect: Callable[[], None]) -> None:
        self.connected = on_connect

    async def close(self) -> None:
        pass

    async def fetch(self, cylinder_no: str) -> CylinderRow | None:
        done: Deferred[CylinderRow | None] = Deferred()
        self.asked.append((cylinder_no, done))
        return await done


def outcomes(counters: Counters) -> dict[str, float]:
    names = ("hit", "found", "absent", "slow", "failed", "busy")
    values = {
        name: counters.registry.get_sample_value("cynow_cylinder_lookups_total", {"outcome": name}) for name in names
    }
    return {name: value for name, value in values.items() if value}


class LookupCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.table = HeldTable()
        self.master = self.built(cache_size=2)

    def tearDown(self) -> None:
        for _, done in self.table.asked:
            if not done.called:
                done.callback(None)

    def built(self, **keys: Any) -> CylinderMaster:
        wall = WallClock(UTC, self.clock.seconds, self.clock.seconds)
        settings = CylinderSettings(query="SELECT", **keys)
        master = CylinderMaster(self.clock, wall, self.counters, settings, self.table)
        master.start()
        return master

    def find(self, number: str) -> "Deferred[CylinderRecord | None]":
        return Deferred.fromCoroutine(self.master.find(number))

    def answer(self, row: CylinderRow | None, place: int = -1) -> None:
        self.table.asked[place][1].callback(row)

    def found(self, number: str, row: CylinderRow | None = ROW) -> None:
        done = self.find(number)
        self.answer(row)
        self.successResultOf(done)

    def test_row_is_found_then_cached_until_its_time_ends(self) -> None:
        done = self.find("C1")
        self.answer(ROW)
        assert self.successResultOf(done) == RECORD
        self.clock.advance(299)
        assert self.successResultOf(self.find("C1")) == RECORD
        self.clock.advance(1)
        self.assertNoResult(self.find("C1"))
        assert len(self.table.asked) == 2
        assert outcomes(self.counters) == {"found": 1, "hit": 1}

    def test_absence_of_a_row_is_cached_for_a_shorter_time(self) -> None:
        self.found("C1", None)
        self.clock.advance(lookup.ABSENT_SEC - 1)
        assert self.successResultOf(self.find("C1")) is None
        self.clock.advance(1)
        self.assertNoResult(self.find("C1"))
        assert outcomes(self.counters) == {"absent": 1, "hit": 1}

    def test_cache_drops_the_least_recently_used_beyond_its_size(self) -> None:
        self.found("C1")
        self.found("C2")
        self.successResultOf(self.find("C1"))
        self.found("C3")
        assert self.master.cached == 2
        self.successResultOf(self.find("C1"))
        self.assertNoResult(self.find("C2"))

    def test_requests_for_one_number_share_a_query(self) -> None:
        both = [self.find("C1"), self.find("C1")]
        assert len(self.table.asked) == 1
        self.answer(ROW)
        assert [self.successResultOf(done) for done in both] == [RECORD, RECORD]

    def test_late_answer_is_not_waited_for_but_cached(self) -> None:
        done = self.find("C1")
        self.clock.advance(0.199)
        self.assertNoResult(done)
        self.clock.advance(0.001)
        assert self.successResultOf(done) is None
        self.answer(ROW)
        assert self.successResultOf(self.find("C1")) == RECORD
        assert outcomes(self.counters) == {"slow": 1, "hit": 1}
        assert self.clock.getDelayedCalls() == []

    def test_queries_beyond_the_bound_are_not_started(self) -> None:
        for number in range(lookup.MAX_QUERIES):
            self.find(f"C{number}")
        assert self.successResultOf(self.find("more")) is None
        assert len(self.table.asked) == lookup.MAX_QUERIES
        assert outcomes(self.counters) == {"busy": 1}

    def test_wrong_query_is_a_problem_until_the_recheck_succeeds(self) -> None:
        with capturedLogs() as events:
            done = self.find("C1")
            self.table.asked[-1][1].errback(CylinderQueryError('near "C1"', "query"))
            assert self.successResultOf(done) is None
        assert self.master.problem == 'cylinders.query failed: near "..."; correct it, or what it reads'
        assert not [event for event in events if "C1" in formatEvent(event)]
        self.clock.advance(lookup.RECHECK_SEC)
        assert self.table.asked[-1][0] == ""
        self.answer(None)
        assert self.master.problem is None
        assert self.clock.getDelayedCalls() == []
        assert outcomes(self.counters) == {"failed": 1}

    def test_error_about_one_row_is_no_problem(self) -> None:
        done = self.find("C1")
        self.table.asked[-1][1].errback(CylinderQueryError("DataError", "row"))
        assert self.successResultOf(done) is None
        assert self.master.problem is None

    def test_many_slow_answers_are_a_problem_until_one_is_in_time(self) -> None:
        for number in range(lookup.MANY_SLOW):
            assert self.master.problem is None
            self.find(f"C{number}")
            self.clock.advance(0.5)
            self.answer(ROW)
        assert self.master.problem is not None
        assert "200 ms" in self.master.problem
        self.clock.advance(lookup.RECHECK_SEC)
        self.answer(None)
        assert self.master.problem is None

    def test_check_never_raises_and_says_that_nothing_was_checked(self) -> None:
        done = Deferred.fromCoroutine(self.master.check("C1", "SHIP", Decimal("73.2")))
        self.table.asked[-1][1].errback(RuntimeError("C1"))
        assert self.successResultOf(done).fields == {"checked": False}
        self.found("C1", ROW)
        done = Deferred.fromCoroutine(self.master.check("C1", "SHIP", Decimal("Infinity")))
        assert self.successResultOf(done).fields == {"checked": False}

    def test_update_changes_tolerance_and_forgets_entries_with_another_time(self) -> None:
        self.found("C1")
        self.master.update(CylinderSettings(query="SELECT", tolerance_kg=Decimal(50)))
        done = Deferred.fromCoroutine(self.master.check("C1", "SHIP", Decimal(30)))
        assert self.successResultOf(done).error is None
        self.master.update(CylinderSettings(query="SELECT", cache_sec=1))
        assert self.master.cached == 0

    def test_unreadable_value_is_counted(self) -> None:
        self.found("C1", {"tare_kg": "heavy", "net_kg": 20})
        value = self.counters.registry.get_sample_value("cynow_cylinder_unreadable_values_total", {"column": "tare_kg"})
        assert value == 1

    def test_nothing_is_left_after_close(self) -> None:
        self.find("C1")
        self.table.asked[-1][1].errback(CylinderQueryError("gone", "query"))
        self.successResultOf(Deferred.fromCoroutine(self.master.close()))
        assert self.successResultOf(self.find("C1")) is None
        assert self.clock.getDelayedCalls() == []


#: A table with the columns of a plant, all of them of a fixed width.
TABLE = """
CREATE SCHEMA IF NOT EXISTS fcms_cdc;
CREATE TABLE fcms_cdc.ma_cylinders ("CYLINDER_NO" char(20) PRIMARY KEY, "WEIGHT" char(10), "GAS_WEIGHT" numeric(8, 2),
    "TEST_DATE" char(8), "STOP_YN" char(3));
INSERT INTO fcms_cdc.ma_cylinders VALUES ('CY-1', '53.20', 20, '20991231', 'N'), ('CY-2', 'heavy', NULL, '', 'Y');
"""

QUERY = """
SELECT "WEIGHT" AS tare_kg, "GAS_WEIGHT" AS net_kg, "TEST_DATE" AS test_due, "STOP_YN" AS blocked
FROM fcms_cdc.ma_cylinders WHERE rtrim("CYLINDER_NO") = %(cylinder_no)s;
"""


class PlantTableCase(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.server.sql("DROP SCHEMA IF EXISTS fcms_cdc CASCADE;" + TABLE)
        self.counters = Counters()
        self.master: CylinderMaster | None = None

    async def tearDown(self) -> None:  # type: ignore[override]  # Trial awaits it
        self.server.resume()
        if self.master is not None:
            await self.master.close()

    async def started(self, query: str = QUERY, *, until_ready: bool = True, **keys: Any) -> CylinderMaster:
        settings = CylinderSettings(query=query, **keys)
        table = PlantTable(reactor, self.server.url, "g cylinders", query)
        self.master = CylinderMaster(reactor, WallClock(UTC), self.counters, settings, table)
        self.master.start()
        if until_ready:
            await until(lambda: table.problem is None, "the table can be asked")
        return self.master

    async def test_padded_columns_are_read_and_judged(self) -> None:
        master = await self.started()
        judgement = await master.check("CY-1", "SHIP", Decimal("73.20"))
        assert (judgement.error, judgement.fields["net_kg"]) == (None, 20.0)
        assert (await master.check("CY-1", "SHIP", Decimal("60.00"))).error == "implausible_weight"
        assert (await master.check("CY-1", "RETURN", Decimal("54.00"))).fields["remaining_kg"] == 0.8
        assert (await master.check("CY-2", "RETURN", Decimal("54.00"))).error == "cylinder_blocked"
        assert (await master.check("no'; DROP", "SHIP", Decimal(1))).fields == {"checked": False}
        assert (await master.check("a\0b", "SHIP", Decimal(1))).fields == {"checked": False}
        assert master.problem is None
        assert outcomes(self.counters) == {"found": 2, "hit": 2, "absent": 1, "failed": 1}

    async def test_absent_server_is_a_problem_and_refuses_nothing(self) -> None:
        self.server.stop()
        try:
            master = await self.started(until_ready=False)
            began = reactor.seconds()
            assert (await master.check("CY-1", "SHIP", Decimal(1))).fields == {"checked": False}
            assert reactor.seconds() - began < 1.5
            await until(lambda: "PostgreSQL is unavailable" in (master.problem or ""), "the problem shows")
            await until(lambda: "refused" in (master.problem or ""), "its reason shows")
        finally:
            self.server.start()
        await until(lambda: master.problem is None, "the problem ends")
        assert (await master.check("CY-1", "SHIP", Decimal("73.2"))).fields["checked"] is True

    async def test_slow_query_is_not_waited_for_but_cached(self) -> None:
        master = await self.started(QUERY.replace("WHERE", "CROSS JOIN (SELECT pg_sleep(1.5)) AS s WHERE"))
        began = reactor.seconds()
        assert await master.find("CY-1") is None
        assert 0.15 < reactor.seconds() - began < 1.4
        await until(lambda: master.cached == 1, "the answer is cached")
        assert await master.find("CY-1") is not None
        assert outcomes(self.counters) == {"slow": 1, "hit": 1}

    async def test_server_ends_a_query_that_never_ends(self) -> None:
        master = await self.started(QUERY.replace("WHERE", "CROSS JOIN (SELECT pg_sleep(60)) AS s WHERE"))
        assert await master.find("CY-1") is None
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)%CY-1%'"
        sleeping += " AND pid <> pg_backend_pid()"
        await until(lambda: not self.server.sql(sleeping), "the query ends")

    async def test_wrong_column_shows_at_the_start_and_ends_when_it_is_there(self) -> None:
        self.patch(lookup, "RECHECK_SEC", 0.1)
        with capturedLogs() as events:
            master = await self.started(QUERY.replace('"GAS_WEIGHT"', '"NET"'))
            await until(lambda: "NET" in (master.problem or ""), "the problem shows")
            assert (await master.check("CY-1", "SHIP", Decimal(1))).fields == {"checked": False}
        lines = [formatEvent(event) or "" for event in events]
        assert len([line for line in lines if "cylinders.query failed" in line]) == 1
        assert not [line for line in lines if "CY-1" in line or self.server.password in line]
        self.server.sql('ALTER TABLE fcms_cdc.ma_cylinders ADD COLUMN "NET" numeric')
        await until(lambda: master.problem is None, "the problem ends")

    async def test_query_without_a_known_column_or_with_many_rows_is_a_problem(self) -> None:
        master = await self.started("SELECT \"WEIGHT\" FROM fcms_cdc.ma_cylinders WHERE %(cylinder_no)s <> ''")
        await until(lambda: "none of the columns" in (master.problem or ""), "the problem shows")
        await master.close()
        many = "SELECT \"WEIGHT\" AS tare_kg FROM fcms_cdc.ma_cylinders WHERE %(cylinder_no)s <> ''"
        master = await self.started(many)
        assert await master.find("CY-1") is None
        assert "several rows" in (master.problem or "")

    async def test_query_cannot_write(self) -> None:
        self.server.sql(
            "CREATE FUNCTION empty() RETURNS numeric LANGUAGE sql AS 'DELETE FROM fcms_cdc.ma_cylinders; SELECT 1.0'"
        )
        master = await self.started("SELECT empty() AS tare_kg WHERE %(cylinder_no)s <> ''")
        assert await master.find("CY-1") is None
        assert self.server.sql("SELECT count(*) FROM fcms_cdc.ma_cylinders") == [(2,)]

    async def test_silent_and_killed_server_hold_nothing_up(self) -> None:
        master = await self.started()
        self.server.pause()
        began = reactor.seconds()
        found = await gatherResults([Deferred.fromCoroutine(master.find(f"CY-{number}")) for number in range(80)])
        assert not any(found)
        assert reactor.seconds() - began < 2
        self.server.resume()
        self.server.stop()
        self.server.start()
        await until(lambda: master.problem is None, "it is connected again")
        counts = outcomes(self.counters)
        # The regular trial of the query may have the place of one.
        assert counts["busy"] >= 80 - lookup.MAX_QUERIES
        assert counts["busy"] + counts["slow"] == 80
        while await master.find("CY-1") is None:
            await deferLater(reactor, 0.05)
