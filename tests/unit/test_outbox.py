"""What waits for a client, with a clock of the tests'."""

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

    def test_what_is_put_is_sent_at_once(self) -> None:
        self.assertTrue(self.outbox.is_clear)
        self.outbox.put(10, "a")
        self.assertEqual((self.sent, self.outbox.held, len(self.outbox)), (["a"], 0, 0))

    def test_it_waits_while_the_client_does_not_read(self) -> None:
        self.outbox.pause()
        self.assertFalse(self.outbox.is_clear)
        self.outbox.put(10, "a")
        self.outbox.put(20, "b")
        self.assertEqual((self.sent, self.outbox.held), ([], 30))
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held, self.outbox.is_clear), (["a", "b"], 0, True))

    def test_a_pause_meanwhile_keeps_the_rest(self) -> None:
        self.outbox.pause()
        for item in "abc":
            self.outbox.put(10, item)

        def send(item: str) -> bool:
            self.outbox.pause()
            return self.send(item)

        self.outbox._send = send
        self.outbox.resume()
        self.assertEqual((self.sent, self.outbox.held), (["a"], 20))

    def test_a_part_that_was_not_sent_stays_first(self) -> None:
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

    def test_more_than_the_bound_is_allowed_for_two_seconds(self) -> None:
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

    def test_the_bound_itself_may_wait_for_ever(self) -> None:
        self.outbox.pause()
        self.outbox.put(BOUND, "a")
        self.clock.advance(1000)
        self.assertEqual(self.slow, 0)

    def test_four_times_as_much_is_allowed_for_no_time(self) -> None:
        self.outbox.pause()
        self.outbox.put(4 * BOUND, "a")
        self.assertEqual(self.slow, 0)
        self.outbox.put(1, "b")
        self.assertEqual(self.slow, 1)
        self.outbox.put(1, "c")
        self.outbox.resume()
        self.assertEqual((self.sent, self.slow), ([], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_rest_lets_others_have_their_turn(self) -> None:
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

    def test_taking(self) -> None:
        self.outbox.pause()
        for item in "abc":
            self.outbox.put(10, item)
        self.assertEqual(self.outbox.take(20), ["a", "b"])
        self.assertEqual(self.outbox.held, 10)
        # One, however large it is.
        self.assertEqual(self.outbox.take(5), ["c"])
        self.assertEqual((self.outbox.take(5), self.outbox.held), ([], 0))

    def test_closing_while_it_sends(self) -> None:
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
