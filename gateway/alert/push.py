"""Push messages about anomalies: limits for each machine, retries and outcomes.

All messages use one connection in order, so while one waits for its next attempt the others wait too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue, QueueOverflow
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.alert.sender import NotSentError, PushMessage, PushSender
from gateway.bus.bus import Bus
from gateway.config.settings import FcmSettings
from gateway.model.records import Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

log = Logger()

#: Maximum waiting messages; one more is dropped and counted.
_MAX_WAITING: Final = 100

#: Maximum age of a message in seconds, longer than all its attempts take: after an hour without a network, a hundred
#: old messages would help nobody.
_MAX_AGE: Final = 600.0

#: Maximum attempts to send a message; with the delays between them, about three minutes.
_MAX_ATTEMPTS: Final = 5

#: Seconds until the next attempt, unless Google gives a number: at least 10, growing, with jitter, as
#: https://firebase.google.com/docs/cloud-messaging/scale-fcm asks.
_BACK_OFF: Final = backoffPolicy(initialDelay=10.0, maxDelay=60.0, factor=2.0)


def message_of(fault: Fault) -> PushMessage:
    """Return the message about an anomaly, in the words of the old server."""
    return PushMessage(f"{fault.machine} 이상치 감지", f"상세 정보 : {fault.score}/{fault.threshold}")


@dataclass(frozen=True, slots=True)
class _WaitingMessage:
    """Message that waits to be sent.

    :ivar since: time of its anomaly on the monotonic clock, in seconds.
    """

    machine: str
    message: PushMessage
    since: float


class PushAlert(Service):
    """Sink of the bus that sends a push message for an anomaly, at most one a machine in ``fcm.timeout`` seconds.

    The interval begins when a message was sent. While a machine's message waits, its further anomalies cause none. A
    failed message begins no interval, so the next anomaly causes one. A message is sent twice if it arrived although
    its attempt timed out.

    :param settings: section ``fcm``; a ``timeout`` of 0 sends a message for every anomaly.
    :param sender: sender, not started yet.
    :param back_off: returns the seconds to wait after a number of earlier attempts, unless Google gives a number.
    """

    name = "push"

    def __init__(
        self,
        reactor: Any,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        settings: FcmSettings,
        sender: PushSender,
        back_off: Callable[[int], float] = _BACK_OFF,
    ) -> None:
        self._reactor = reactor
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._warnings = LimitedLog(log, clock, counters)
        self._interval = settings.timeout
        self._sender = sender
        self._back_off = back_off
        self._queue: DeferredQueue[_WaitingMessage] = DeferredQueue(size=_MAX_WAITING)
        #: Machines with a message that waits or is being sent.
        self._pending: set[str] = set()
        #: Time of each machine's last sent message, on the monotonic clock; at most ``daq.max_machines``.
        self._sent_at: dict[str, float] = {}
        self._is_off = False
        #: Whether the last failure was a refusal of the credentials, which is logged once.
        self._is_refused = False
        self._task: Deferred[None] | None = None
        bus.attach(Fault, self.name, self._on_fault)

    def startService(self) -> None:
        super().startService()
        self._sender.start()
        self._task = Deferred.fromCoroutine(self._run()).addErrback(self._log_end)

    def stopService(self) -> None:
        super().stopService()
        self._bus.detach(Fault, self.name)
        if self._task is not None:
            self._task.cancel()

    def _log_end(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            log.failure("push messages have stopped after an error; restart the gateway", failure)

    def _on_fault(self, fault: Fault) -> None:
        if not fault.is_anomaly:
            return
        if self._is_off:
            self._count("failed")
        elif self._is_held(fault.machine):
            self._count("held")
        else:
            self._pending.add(fault.machine)
            try:
                self._queue.put(_WaitingMessage(fault.machine, message_of(fault), self._clock.monotonic()))
            except QueueOverflow:
                self._pending.discard(fault.machine)
                self._count("dropped")

    def _is_held(self, machine: str) -> bool:
        """Return whether an anomaly causes no message, because of an earlier one of its machine."""
        if not self._interval:
            return False
        sent_at = self._sent_at.get(machine)
        return machine in self._pending or (sent_at is not None and self._clock.monotonic() - sent_at < self._interval)

    async def _run(self) -> None:
        try:
            await self._sender.connect()
        except CancelledError:
            raise
        except Exception as error:  # firebase-admin raises a different error for each kind of broken file
            self._turn_off(error)
            return
        # An operator wants to know about wrong credentials at the start, not at the first anomaly.
        problem = await self._sender.send(None)
        if problem is None:
            log.info("fcm.cred_path: Google accepts the credentials")
        else:
            self._log_problem("cannot send push messages now ({reason}); each new one is tried", problem)
        while True:
            waiting = await self._queue.get()
            outcome = await self._deliver(waiting)
            self._pending.discard(waiting.machine)
            if outcome == "sent":
                self._sent_at[waiting.machine] = self._clock.monotonic()
                self._is_refused = False
            self._count(outcome)

    def _turn_off(self, error: Exception) -> None:
        self._is_off = True
        for _ in self._queue.pending:
            self._count("failed")
        self._queue.pending.clear()
        # The text of the error may quote the credentials.
        log.warn(
            "fcm.cred_path: cannot use the credentials ({error}); push messages are off until the next start",
            error=type(error).__name__,
        )

    async def _deliver(self, waiting: _WaitingMessage) -> str:
        """Try until a message is sent or given up; return the outcome for the counter."""
        attempts = 0
        while True:
            if self._age(waiting) > _MAX_AGE:
                self._warnings.warn(
                    "old",
                    "machine {machine}: push message not sent: older than {limit:g} s",
                    machine=waiting.machine,
                    limit=_MAX_AGE,
                )
                return "expired"
            problem = await self._sender.send(waiting.message)
            if problem is None:
                return "sent"
            delay = self._back_off(attempts) if problem.after is None else problem.after
            attempts += 1
            if not problem.retry or attempts == _MAX_ATTEMPTS or self._age(waiting) + delay > _MAX_AGE:
                self._log_problem("machine {machine}: push message not sent ({reason})", problem, waiting.machine)
                return "failed"
            self._count("retried")
            self._warnings.warn(
                "retried",
                "machine {machine}: push message not sent ({reason}); retrying in {delay} s",
                machine=waiting.machine,
                reason=problem.reason,
                delay=round(delay),
            )
            await deferLater(self._reactor, delay)

    def _log_problem(self, text: str, problem: NotSentError, machine: str = "") -> None:
        if problem.refused:
            # Every message fails in this way until an operator changes the credentials.
            if not self._is_refused:
                log.warn(
                    "fcm.cred_path: Google refuses the credentials ({reason}); check the service account, or replace"
                    " the file and restart",
                    reason=problem.reason,
                )
            self._is_refused = True
        else:
            self._warnings.warn("failed", text, reason=problem.reason, machine=machine)

    def _age(self, waiting: _WaitingMessage) -> float:
        return self._clock.monotonic() - waiting.since

    def _count(self, outcome: str) -> None:
        self._counters.push_messages.labels(outcome).inc()
