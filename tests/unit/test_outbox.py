"""Outboxes with a fake clock."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gateway.web.clients.outbox import Outbox

BOUND = 1000


class OutboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[str] = []
        self.slow = 0
        self.outbox: Outbox[str] = Outbox(self.clock, BOUND, self.send, self.too_slow)

    def send(self, item: str) -> bool:
        self.sent.append(item)
        return True

    def too_slow(self) -> None:
        self.slow += 1

    def test_put_with_an_empty_queue_sends_at_once(self) -> None:
        self.assertTrue(self.outbox.is_clear)
        self.outbox.put(10, "a")
        self.assertEqual((self.sent, self.outbox.held, len(self.outbox)), (["a"], 0, 0))

    def test_put_while_paused_waits_until_resume(self) -> None:
        self.outbox.pause()
        self.assertFalse(self.outbox.is_clear)
        self.outbox.put(10, "a")
        self.outbox.put(20, "b")
        self.assertEqual((self.sent, self.outbox.held), ([], 30))
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held, self.outbox.is_clear), (["a", "b"], 0, True))

    def test_pause_during_a_drain_keeps_the_remaining_items(self) -> None:
        self.outbox.pause()
        for item in "abc":
            self.outbox.put(10, item)

        def send(item: str) -> bool:
            self.outbox.pause()
            return self.send(item)

        self.outbox._send = send
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held), (["a"], 20))

    def test_item_sent_in_part_stays_first(self) -> None:
        parts = iter([False, False, True, True])

        def send(item: str) -> bool:
            self.sent.append(item)
            return next(parts)

        self.outbox._send = send
        self.outbox.pause()
        self.outbox.put(10, "a")
        self.outbox.put(10, "b")
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held), (["a", "a", "a", "b"], 0))

    def test_queue_above_the_bound_is_closed_after_two_seconds(self) -> None:
        self.outbox.pause()
        self.outbox.put(BOUND + 1, "a")
        self.clock.advance(1.9)
        self.outbox.resume()
        self.clock.advance(1)
        self.assertEqual((self.slow, self.sent), (0, ["a"]))
        self.outbox.pause()
        self.outbox.put(BOUND + 1, "b")
        self.clock.advance(2)
        self.assertEqual((self.slow, self.sent, self.outbox.held), (1, ["a"], 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_queue_at_the_bound_stays_open(self) -> None:
        self.outbox.pause()
        self.outbox.put(BOUND, "a")
        self.clock.advance(1000)
        self.assertEqual(self.slow, 0)

    def test_queue_above_four_times_the_bound_is_closed_at_once(self) -> None:
        self.outbox.pause()
        self.outbox.put(4 * BOUND, "a")
        self.assertEqual(self.slow, 0)
        self.outbox.put(1, "b")
        self.assertEqual(self.slow, 1)
        self.outbox.put(1, "c")
        self.outbox.resume()
        self.assertEqual((self.sent, self.slow), ([], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_yield_turn_continues_in_the_next_turn(self) -> None:
        def send(item: str) -> bool:
            self.outbox.yield_turn()
            return self.send(item)

        self.outbox._send = send
        self.outbox.put(10, "a")
        self.outbox.put(10, "b")
        self.assertEqual((self.sent, self.outbox.is_clear), (["a"], False))
        self.outbox.resume()
        self.assertEqual(self.sent, ["a"])
        self.clock.advance(0)
        self.assertEqual((self.sent, self.outbox.is_clear), (["a", "b"], True))
        self.outbox.put(10, "c")
        self.outbox.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_take_returns_items_up_to_the_size_and_at_least_one(self) -> None:
        self.outbox.pause()
        for item in "abc":
            self.outbox.put(10, item)
        self.assertEqual(self.outbox.take(20), ["a", "b"])
        self.assertEqual(self.outbox.held, 10)
        # At least one, even if it is larger.
        self.assertEqual(self.outbox.take(5), ["c"])
        self.assertEqual((self.outbox.take(5), self.outbox.held), ([], 0))

    def test_close_during_a_send_drops_the_remaining_items(self) -> None:
        def send(item: str) -> bool:
            self.outbox.close()
            return self.send(item)

        self.outbox._send = send
        self.outbox.pause()
        self.outbox.put(BOUND + 1, "a")
        self.outbox.put(10, "b")
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held), (["a"], 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])
