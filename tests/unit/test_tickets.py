"""Tickets in their SQLite file, and their forwarding to a fake and to a real server."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gateway.model.records import Commit, CommitDetail
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.store.interface import IdempotencyConflict, IdempotencyKey, RejectedByDatabase, StoreUnavailable
from gateway.store.postgres.store import PostgresStore
from gateway.store.postgres.ticket_rows import ForwardedTicket
from gateway.store.postgres.tickets import TicketForwarder
from gateway.store.spool.spool import Spool
from gateway.store.ticket_interface import QueuedTicket, TicketEnd
from gateway.store.tickets.codec import decode_entry, encode_entry
from gateway.store.tickets.ticket_file import TicketFile
from tests.support.entries import ENTRY
from tests.support.postgres import ServerCase
from tests.support.trial import new_folder, until

#: The reactor, whose type differs between platforms.
reactor: Any = _reactor

KEY = IdempotencyKey("k", "f")


def numbered(number: int) -> Any:
    """Return an entry with a number."""
    return replace(ENTRY, cylinder_no=f"CY-{number:05}")


class TicketFileTests(TestCase):
    def setUp(self) -> None:
        self.folder = str(new_folder(self, "tickets"))

    def opened(self, max_tickets: int = 100) -> TicketFile:
        tickets = TicketFile(reactor, WallClock(UTC), Counters(), self.folder, "hall-1", max_tickets)
        tickets.open()
        return tickets

    def test_entry_with_all_details_is_decoded_as_it_was(self) -> None:
        detail = CommitDetail("kim", "why", ("unstable",), ("w",), 3, {"tare_kg": 12.5})
        entry = replace(ENTRY, detail=detail)
        self.assertEqual(decode_entry(encode_entry(entry)), entry)

    async def test_numbers_are_not_used_twice_over_a_restart(self) -> None:
        tickets = self.opened()
        made = [await tickets.make(ENTRY, f"r{n}", None) for n in range(3)]
        self.assertEqual([each.ticket for each in made], ["hall-1-1", "hall-1-2", "hall-1-3"])
        self.assertEqual((made[0].answer["id"], made[0].answer["ticket"]), (None, "hall-1-1"))
        await tickets.end([TicketEnd(n, "written", n) for n in (1, 2, 3)])
        await tickets.close()
        tickets = self.opened()
        self.addCleanup(tickets.close)
        self.assertEqual(tickets.waiting, 0)
        self.assertEqual((await tickets.make(ENTRY, "r9", None)).ticket, "hall-1-4")
        state = await tickets.find("hall-1-2")
        assert state is not None
        self.assertEqual((state.commit_id, state.state, state.entry), (2, "written", ENTRY))
        for unknown in ("hall-1-99", "hall-2-1", "hall-1-x", "hall-1-" + "9" * 30, ""):
            self.assertIsNone(await tickets.find(unknown))

    async def test_key_gets_its_first_answer_and_conflicts(self) -> None:
        tickets = self.opened()
        self.addCleanup(tickets.close)
        first, second = await gatherResults(
            [Deferred.fromCoroutine(tickets.make(ENTRY, request, KEY)) for request in ("a", "b")]
        )
        self.assertEqual((first.ticket, second.ticket), ("hall-1-1", None))
        self.assertEqual(first.answer, second.answer)
        self.assertEqual(await tickets.answer_to(KEY), first.answer)
        self.assertEqual(tickets.waiting, 1)
        with self.assertRaises(IdempotencyConflict):
            await tickets.make(ENTRY, "c", IdempotencyKey("k", "other"))
        with self.assertRaises(IdempotencyConflict):
            await tickets.answer_to(IdempotencyKey("k", "other"))

    async def test_full_queue_refuses_until_tickets_are_written(self) -> None:
        tickets = self.opened(max_tickets=2)
        self.addCleanup(tickets.close)
        for request in "ab":
            await tickets.make(ENTRY, request, None)
        with self.assertRaises(StoreUnavailable):
            await tickets.make(ENTRY, "c", None)
        assert tickets.problem is not None
        self.assertIn("database.max_tickets", tickets.problem)
        await tickets.end([TicketEnd(1, "written", 7)])
        await tickets.make(ENTRY, "c", None)
        self.assertEqual([each.n for each in await tickets.first(10)], [2, 3])


class _FakeQueue:
    """Queue of tickets in memory."""

    def __init__(self, count: int) -> None:
        self.tickets = [QueuedTicket(n, f"g-{n}", f"r{n}", None, ENTRY, "{}", 0.0) for n in range(1, count + 1)]
        self.ends: list[TicketEnd] = []

    async def first(self, limit: int) -> list[QueuedTicket]:
        ended = {each.n for each in self.ends}
        return [each for each in self.tickets if each.n not in ended][:limit]

    async def end(self, ends: list[TicketEnd]) -> None:
        self.ends += ends


class _FakePool:
    """Pool that gives each work's tickets to a function."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.on_connect: Callable[[], None] = lambda: None

    def run(self, work: Any, *, is_repeatable: bool = True) -> "Deferred[Any]":
        async def run() -> Any:
            return self.answer(work.keywords["tickets"])

        return Deferred.fromCoroutine(run())


class ForwarderTests(SynchronousTestCase):
    def forwarder(self, count: int, answer: Callable[[Any], Any]) -> TicketForwarder:
        self.clock, self.queue, self.pool = Clock(), _FakeQueue(count), _FakePool(answer)
        queue: Any = self.queue
        pool: Any = self.pool
        forwarder = TicketForwarder(self.clock, WallClock(UTC), Counters(), queue, pool, "g")
        forwarder.start()
        self.addCleanup(forwarder.stop)
        return forwarder

    def test_waits_grow_while_the_server_is_away_and_end_with_a_connection(self) -> None:
        attempts: list[float] = []

        def away(tickets: Any) -> Any:
            attempts.append(self.clock.seconds())
            raise StoreUnavailable("away")

        self.forwarder(1, away)
        self.clock.pump([0.05] * 1200)
        self.assertLess(len(attempts), 30)
        self.assertLessEqual(attempts[1] - attempts[0], 2.0)
        count = len(attempts)
        self.pool.on_connect()
        self.assertEqual(len(attempts), count + 1)

    def test_rejected_ticket_does_not_hold_up_the_others(self) -> None:
        def answer(tickets: Any) -> Any:
            if any(each.n == 3 for each in tickets):
                raise RejectedByDatabase("no")
            return [ForwardedTicket(each, each.n, "written") for each in tickets]

        self.forwarder(7, answer)
        self.assertEqual([(each.n, each.state) for each in self.queue.ends][2], (3, "rejected"))
        self.assertEqual([each.n for each in self.queue.ends], [1, 2, 3, 4, 5, 6, 7])
        self.flushLoggedErrors()


class TicketStoreTests(ServerCase):
    def opened(self, gateway: str = "hall-1", folder: Path | None = None) -> PostgresStore:
        folder = folder or new_folder(self, "store")
        clock, counters = WallClock(UTC), Counters()
        spool = Spool(reactor, clock, counters, str(folder), 2**20)
        self.tickets = TicketFile(reactor, clock, counters, str(folder), gateway, 1000)
        store = PostgresStore(reactor, clock, counters, spool, self.server.url, gateway, self.tickets)
        self.forwarded: list[Commit] = []
        store.on_forwarded = lambda commit, request: self.forwarded.append(commit)
        store.open()
        self.addCleanup(store.close)
        return store

    async def ready(self) -> PostgresStore:
        store = self.opened()
        await until(lambda: not store.problems, "PostgreSQL is connected")
        self.tickets_of_store = self.tickets
        return store

    def rows(self) -> list[str]:
        return [name for (name,) in self.server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id")]

    async def forwarded_all(self) -> None:
        tickets = self.tickets_of_store
        await until(lambda: tickets.waiting == 0, "no ticket waits")

    async def _weigh(self, store: PostgresStore, numbers: range) -> list[Any]:
        return [(await store.commit(numbered(number), None, may_wait=True)).answer for number in numbers]

    async def test_commits_of_a_stopped_server_arrive_in_order_and_once(self) -> None:
        store = await self.ready()
        self.assertIsNone((await self._weigh(store, range(10)))[0].get("ticket"))
        self.server.stop()
        with_key = await store.commit(numbered(10), KEY, may_wait=True)
        answers = await self._weigh(store, range(11, 300))
        self.assertEqual({answer["id"] for answer in answers}, {None})
        self.assertEqual((await store.commit(numbered(10), KEY, may_wait=True)).answer, with_key.answer)
        with self.assertRaises(IdempotencyConflict):
            await store.commit(numbered(10), IdempotencyKey("k", "other"), may_wait=True)
        self.server.start()
        await self.forwarded_all()
        self.assertEqual(self.rows(), [numbered(number).cylinder_no for number in range(300)])
        self.assertEqual([each.entry.cylinder_no for each in self.forwarded], self.rows()[10:])
        other = self.opened("hall-2")
        await until(lambda: not other.problems, "PostgreSQL is connected")
        again = await other.commit(numbered(10), KEY, may_wait=True)
        self.assertEqual((again.answer, again.commit), (with_key.answer, None))
        for each in (store, other):
            state = await each.ticket(answers[0]["ticket"])
            assert state is not None
            self.assertEqual((state.state, state.entry.cylinder_no), ("written", "CY-00011"))
        self.assertIsNone(await other.ticket("hall-9-1"))

    async def test_commit_of_a_silent_server_is_written_once(self) -> None:
        store = await self.ready()
        await self._weigh(store, range(1))
        self.server.pause()
        try:
            answers = await self._weigh(store, range(1, 50))
        finally:
            self.server.resume()
        self.assertIsNone(answers[0]["id"])
        await self.forwarded_all()
        self.assertEqual(self.rows(), [numbered(number).cylinder_no for number in range(50)])

    async def test_commit_of_a_read_only_server_waits(self) -> None:
        store = await self.ready()
        self.server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        self.server.sql("SELECT pg_reload_conf()")
        self.addCleanup(self._writable)
        await until(lambda: store.outage is not None, "the server is read-only")
        answers = await self._weigh(store, range(20))
        self.assertIsNone(answers[0]["id"])
        self.assertTrue(any("20 commits wait" in problem for problem in store.problems))
        self._writable()
        await self.forwarded_all()
        self.assertEqual(self.rows(), [numbered(number).cylinder_no for number in range(20)])

    def _writable(self) -> None:
        with contextlib.suppress(Exception):
            self.server.sql("ALTER SYSTEM RESET default_transaction_read_only")
            self.server.sql("SELECT pg_reload_conf()")

    async def test_commit_of_a_full_server_waits(self) -> None:
        store = await self.ready()
        self.server.sql(
            "CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$;"
            " CREATE TRIGGER plant BEFORE INSERT ON scale_weight_log FOR EACH ROW EXECUTE FUNCTION plant()"
        )
        answers = await self._weigh(store, range(20))
        self.assertEqual({answer["id"] for answer in answers}, {None})
        self.server.sql("DROP TRIGGER plant ON scale_weight_log")
        await self.forwarded_all()
        self.assertEqual(self.rows(), [numbered(number).cylinder_no for number in range(20)])

    async def test_rejected_ticket_and_keys_of_other_gateways(self) -> None:
        store = await self.ready()
        other = self.opened("hall-2")
        await until(lambda: not other.problems, "PostgreSQL is connected")
        self.server.sql("ALTER TABLE scale_weight_log ADD CONSTRAINT plant CHECK (cylinder_no <> 'CY-00002')")
        first = await other.commit(numbered(0), KEY)
        await other.commit(numbered(5), IdempotencyKey("taken", "theirs"))
        queue = self.tickets_of_store
        for number, key in ((0, KEY), (1, None), (2, None), (3, IdempotencyKey("taken", "ours"))):
            await queue.make(numbered(number), f"request {number}", key)
        await self._weigh(store, range(4, 5))
        await self.forwarded_all()
        self.assertEqual(self.rows(), [f"CY-0000{number}" for number in (0, 5, 1, 3, 4)])
        states = [await store.ticket(f"hall-1-{n}") for n in range(1, 6)]
        self.assertEqual([each and each.state for each in states], ["written"] * 2 + ["rejected"] + ["written"] * 2)
        self.assertEqual(states[0] and states[0].commit_id, first.answer["id"])
        self.assertTrue(any("rejected 1 tickets" in problem for problem in store.problems))
