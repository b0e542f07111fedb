"""Push messages with a fake clock and no thread: limits, retries and outcomes."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase

from gateway.alert.firebase import parse_retry_after
from gateway.alert.push import _BACK_OFF, PushAlert
from gateway.alert.sender import NotSentError, PushMessage, PushSender, Send
from gateway.bus.bus import Bus
from gateway.config.settings import FcmSettings
from gateway.model.records import Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from tests.support.logs import collect_lines

START = datetime(2025, 12, 18, 10, 11, tzinfo=UTC).timestamp()

INTERVAL = 120.0


class ThreadlessReactor(Clock):
    """Clock that runs calls from threads when it is next advanced, as a reactor does in its next turn."""

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.callLater(0, function, *args)


class FakePool(ThreadPool):
    """Pool that calls functions at once, or, while it hangs, when it resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.hung: list[Callable[[], None]] | None = None

    def start(self) -> None:
        pass

    def callInThreadWithCallback(self, onResult: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        def call() -> None:
            try:
                result = func(*args, **kwargs)
            except Exception:
                onResult(False, Failure())
            else:
                onResult(True, result)

        if self.hung is None:
            call()
        else:
            self.hung.append(call)

    def go_on(self) -> None:
        calls, self.hung = self.hung or [], None
        for call in calls:
            call()


class PushTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = ThreadlessReactor()
        self.clock = WallClock(UTC, lambda: START, self.reactor.seconds)
        self.counters = Counters()
        self.bus = Bus(self.clock, self.counters)
        self.pool = FakePool()
        self.tested = 0
        #: Attempts: time, and machine of the message.
        self.tries: list[tuple[float, str]] = []
        #: Errors of the next attempts.
        self.problems: list[Exception] = []
        self.lines = collect_lines(self)

    def send(self, message: PushMessage | None) -> None:
        if message is None:
            self.tested += 1
        else:
            self.tries.append((self.reactor.seconds(), message.title.split()[0]))
        if self.problems:
            raise self.problems.pop(0)

    def alert(self, connect: Callable[[], Send] | None = None, interval: float = INTERVAL) -> PushAlert:
        alert = PushAlert(
            self.reactor,
            self.bus,
            self.clock,
            self.counters,
            FcmSettings(timeout=interval),
            PushSender(self.reactor, connect or (lambda: self.send), self.pool),
            lambda tries: 10.0 * 2**tries,
        )
        alert.startService()
        self.addCleanup(alert.stopService)
        return alert

    def started(self, interval: float = INTERVAL) -> PushAlert:
        alert = self.alert(interval=interval)
        self.turns()
        return alert

    def turns(self) -> None:
        for _ in range(10):
            self.reactor.advance(0)

    def publish(self, *machines: str, score: float = 1.5) -> None:
        for machine in machines:
            self.bus.publish(Fault(machine, score, 1.0, self.clock.now()))
        self.turns()

    def pass_time(self, seconds: float) -> None:
        """Advance the clock in steps, so that each timer fires at its time."""
        for _ in range(round(seconds)):
            self.reactor.advance(1)
            self.turns()

    def counts(self) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for metric in self.counters.push_messages.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.value
        }

    def warnings(self) -> list[str]:
        return [line for line in self.lines if line != "fcm.cred_path: Google accepts the credentials"]

    # -- the interval

    def test_message_of_anomaly_has_the_old_servers_words(self) -> None:
        sent: list[PushMessage] = []
        self.alert(lambda: lambda message: None if message is None else sent.append(message))
        self.turns()
        self.publish("ShotBlast 2")
        self.publish("Pump", score=0.5)
        self.assertEqual(sent, [PushMessage("ShotBlast 2 이상치 감지", "상세 정보 : 1.5/1.0")])

    def test_push_sends_one_message_a_machine_in_an_interval(self) -> None:
        self.started()
        self.publish("A", "A", "B")
        self.reactor.advance(INTERVAL - 0.1)
        self.publish("A")
        self.reactor.advance(0.1)
        self.publish("A")
        self.assertEqual(self.tries, [(0.0, "A"), (0.0, "B"), (INTERVAL, "A")])
        self.assertEqual(self.counts(), {"sent": 3, "held": 2})

    def test_push_long_pause_allows_no_burst(self) -> None:
        self.started()
        self.publish("A")
        self.reactor.advance(100 * INTERVAL)
        self.publish("A", "A", "A")
        self.assertEqual(self.counts(), {"sent": 2, "held": 2})

    def test_push_interval_begins_when_message_was_sent(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 429", retry=True, after=INTERVAL - 1)]
        self.publish("A")
        self.pass_time(INTERVAL - 2)
        # It still waits, so its machine gets no second message.
        self.publish("A")
        self.pass_time(1)
        self.reactor.advance(1)
        self.publish("A")
        self.assertEqual(self.tries, [(0.0, "A"), (INTERVAL - 1, "A")])
        self.reactor.advance(INTERVAL - 1)
        self.publish("A")
        self.assertEqual(self.tries[2:], [(2 * INTERVAL - 1, "A")])
        self.assertEqual(self.counts(), {"retried": 1, "held": 2, "sent": 2})

    def test_push_failed_message_begins_no_interval(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 404")]
        self.publish("A", "A")
        self.assertEqual(self.counts(), {"held": 1, "failed": 1})
        self.publish("A")
        self.assertEqual(self.counts(), {"held": 1, "failed": 1, "sent": 1})
        self.publish("A")
        self.assertEqual(self.counts(), {"held": 2, "failed": 1, "sent": 1})

    def test_push_interval_zero_sends_every_anomaly(self) -> None:
        self.started(interval=0)
        self.publish("A", "A", "A")
        self.assertEqual(self.counts(), {"sent": 3})

    # -- attempts

    def test_push_delays_between_attempts_grow(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 500", retry=True) for _ in range(4)]
        self.publish("A")
        self.pass_time(200)
        self.assertEqual([when for when, _ in self.tries], [0, 10, 30, 70, 150])
        self.assertEqual(self.counts(), {"retried": 4, "sent": 1})

    def test_push_back_off_has_minimum_and_jitter(self) -> None:
        for tries, least in enumerate((10, 20, 40, 60, 60)):
            self.assertTrue(least <= _BACK_OFF(tries) <= least + 1)

    def test_push_message_fails_after_five_attempts(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 503", retry=True) for _ in range(5)]
        self.publish("A", "B")
        self.pass_time(200)
        self.assertEqual([name for _, name in self.tries], ["A"] * 5 + ["B"])
        self.assertEqual(self.counts(), {"retried": 4, "failed": 1, "sent": 1})
        self.assertEqual(self.warnings()[0], "machine A: push message not sent (HTTP 503); retrying in 10 s")
        self.assertEqual(self.warnings()[-1], "machine A: push message not sent (HTTP 503)")

    def test_push_retry_after_is_respected(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 429", retry=True, after=77.0), NotSentError("HTTP 500", retry=True)]
        self.publish("A")
        self.pass_time(200)
        self.assertEqual([when for when, _ in self.tries], [0, 77, 97])

    def test_push_delay_beyond_maximum_age_fails_at_once(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 429", retry=True, after=3600.0)]
        self.publish("A")
        self.assertEqual(self.counts(), {"failed": 1})
        self.publish("B")
        self.assertEqual([name for _, name in self.tries], ["A", "B"])

    def test_push_old_message_expires(self) -> None:
        self.started()
        self.pool.hung = []
        self.publish("A", "B")
        self.pass_time(601)
        self.pool.go_on()
        self.turns()
        self.assertEqual(self.tries, [(601.0, "A")])
        self.assertEqual(self.counts(), {"sent": 1, "expired": 1})
        self.assertEqual(self.warnings(), ["machine B: push message not sent: older than 600 s"])
        self.publish("B")
        self.assertEqual(self.counts(), {"sent": 2, "expired": 1})

    def test_push_unexpected_error_fails_one_message_only(self) -> None:
        self.started()
        self.problems = [RuntimeError("SECRET")]
        self.publish("A", "B")
        self.assertEqual(self.counts(), {"failed": 1, "sent": 1})
        self.assertEqual(self.warnings(), ["machine A: push message not sent (RuntimeError)"])

    def test_push_queue_is_bounded_during_a_retry(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 429", retry=True, after=60.0)]
        self.publish(*(f"M{number}" for number in range(150)))
        self.assertEqual(self.counts(), {"retried": 1, "dropped": 49})
        self.assertEqual(len(self.tries), 1)
        # A machine with a dropped message can get another one.
        self.pass_time(60)
        for _ in range(20):
            self.turns()
        self.publish("M149")
        self.assertEqual(self.counts(), {"retried": 1, "dropped": 49, "sent": 102})

    # -- credentials

    def test_push_start_checks_the_credentials(self) -> None:
        self.started()
        self.assertEqual((self.tested, self.tries), (1, []))
        self.assertEqual(self.lines, ["fcm.cred_path: Google accepts the credentials"])

    def test_push_refused_credentials_are_logged_once(self) -> None:
        self.problems = [NotSentError("HTTP 401", refused=True) for _ in range(4)]
        self.started()
        said = (
            "fcm.cred_path: Google refuses the credentials (HTTP 401); check the service account, or replace the file"
            " and restart"
        )
        self.assertEqual(self.warnings(), [said])
        self.publish("A", "B", "C")
        self.assertEqual(self.warnings(), [said])
        self.assertEqual(self.counts(), {"failed": 3})
        # They work again, and then fail again.
        self.publish("A")
        self.problems = [NotSentError("HTTP 401", refused=True)]
        self.publish("B")
        self.assertEqual(self.warnings(), [said, said])

    def test_push_start_without_network_logs_and_goes_on(self) -> None:
        self.problems = [NotSentError("TransportError", retry=True)]
        self.started()
        self.assertEqual(self.warnings(), ["cannot send push messages now (TransportError); each new one is tried"])
        self.publish("A")
        self.assertEqual(self.counts(), {"sent": 1})

    def test_push_unusable_credentials_turn_it_off(self) -> None:
        def connect() -> Send:
            raise ValueError("SECRET")

        self.pool.hung = []
        self.alert(connect)
        self.publish("A", "B")
        self.assertEqual(self.counts(), {})
        self.pool.go_on()
        self.turns()
        self.publish("A", "C")
        self.assertEqual(self.counts(), {"failed": 4})
        self.assertEqual(
            self.lines,
            ["fcm.cred_path: cannot use the credentials (ValueError); push messages are off until the next start"],
        )

    # -- the log and the end

    def test_push_failure_log_lines_are_limited(self) -> None:
        self.started()
        self.problems = [NotSentError("HTTP 404") for _ in range(50)]
        self.publish(*(f"M{number}" for number in range(50)))
        for _ in range(10):
            self.turns()
        self.assertEqual(self.counts(), {"failed": 50})
        self.assertEqual(len(self.warnings()), 5)

    def test_push_stop_leaves_no_timer(self) -> None:
        alert = self.started()
        self.problems = [NotSentError("HTTP 503", retry=True)]
        self.publish("A", "B")
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        alert.stopService()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(self.tries), 1)

    def test_push_stop_during_an_attempt_ends_all(self) -> None:
        alert = self.started()
        self.pool.hung = []
        self.publish("A", "B")
        alert.stopService()
        self.pool.go_on()
        self.turns()
        self.assertEqual(len(self.tries), 1)
        self.assertEqual(self.counts(), {})


class ImportTests(SynchronousTestCase):
    def test_firebase_module_import_does_not_import_firebase_admin(self) -> None:
        code = "import gateway.alert.firebase, sys; sys.exit(bool({'firebase_admin', 'google.auth'} & {*sys.modules}))"
        self.assertEqual(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)


class RetryAfterTests(SynchronousTestCase):
    def test_parse_retry_after_forms(self) -> None:
        self.assertEqual(
            [parse_retry_after(text) for text in (None, "30", "0", "Thu, 18 Dec 2025 10:11:00 GMT", "soon", "-5")],
            [None, 30.0, 1.0, 1.0, None, None],
        )
