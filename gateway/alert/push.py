"""Push messages about anomalies: which are sent, when, and how often it is tried.

What sends them blocks, in a thread of its own; the waiting between tries is the reactor's. All messages go the same
way, so while one waits for its next try the others wait behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue, QueueOverflow
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.bus.bus import Bus
from gateway.model.records import Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.threads import pool_of

log = Logger()

T = TypeVar("T")

#: Messages that may wait; one more is dropped and counted.
_MOST: Final = 100

#: Seconds after which nobody wants to hear of an anomaly any more; more than all tries of one message take, so that an
#: hour without a network does not end in a hundred stale messages.
_OLDEST: Final = 600.0

#: Tries of a message: with the waits between them about three minutes.
_TRIES: Final = 5

#: Seconds to wait before the next try where Google does not say: at least 10, growing, with jitter, as
#: https://firebase.google.com/docs/cloud-messaging/scale-fcm asks.
_BACK_OFF: Final = backoffPolicy(initialDelay=10.0, maxDelay=60.0, factor=2.0)


@dataclass(frozen=True, slots=True)
class PushMessage:
    """What a phone shows."""

    title: str
    body: str


class NotSentError(Exception):
    """A message was not taken.

    :ivar what: for the log: a status or the name of an exception, and nothing that came from Google or the credentials.
    :ivar retry: whether it may be taken later.
    :ivar after: the seconds to wait until then, where Google says so.
    :ivar refused: whether it is the credentials that are not accepted.
    """

    def __init__(self, what: str, *, retry: bool = False, after: float | None = None, refused: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.retry = retry
        self.after = after
        self.refused = refused


#: Sends a message or raises, :class:`NotSentError` where it knows why; without a message, it is only asked whether the
#: credentials are good.
Send = Callable[[PushMessage | None], object]


def message_of(fault: Fault) -> PushMessage:
    """The old server's words."""
    return PushMessage(f"{fault.machine} 이상치 감지", f"상세 정보 : {fault.score}/{fault.threshold}")


@dataclass(frozen=True, slots=True)
class _Waiting:
    machine: str
    message: PushMessage
    since: float


class PushAlert(Service):
    """Sends a push message for an anomaly, at most one a machine in an interval; a sink of the bus.

    The interval begins when a message has been sent. While one of a machine waits or is tried again, the machine's
    further anomalies get none; one that is given up begins no interval, so that the next anomaly has its chance. A try
    that timed out may have arrived all the same; its message then comes twice.

    :param interval: ``fcm.timeout``, seconds; 0: every anomaly.
    :param connect: makes the function that sends, or raises; both are called in a thread.
    :param pool: that thread.
    :param back_off: seconds to wait after so many tries, from 0, where Google does not say.
    """

    name = "push"

    def __init__(
        self,
        reactor: Any,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        interval: float,
        connect: Callable[[], Send],
        pool: ThreadPool | None = None,
        back_off: Callable[[int], float] = _BACK_OFF,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._warnings = LimitedLog(log, clock, counters)
        self._interval = interval
        self._connect = connect
        # Nobody waits for it at the end: Google may take its time.
        self._pool = pool or pool_of(1, "push")
        self._back_off = back_off
        self._queue: DeferredQueue[_Waiting] = DeferredQueue(size=_MOST)
        #: Machines with a message that waits or is being sent.
        self._pending: set[str] = set()
        #: When each machine's last message was sent, monotonic; no more machines than ``daq.max_machines``.
        self._last: dict[str, float] = {}
        self._is_off = False
        self._is_refused = False
        self._work: Deferred[None] | None = None
        bus.attach(Fault, "push", self._on_fault)

    def startService(self) -> None:
        super().startService()
        self._pool.start()
        self._work = Deferred.fromCoroutine(self._run()).addErrback(self._ended)

    def stopService(self) -> None:
        super().stopService()
        if self._work is not None:
            self._work.cancel()

    def _ended(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            log.failure("no more push messages are sent", failure)

    # -- what comes

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
                self._queue.put(_Waiting(fault.machine, message_of(fault), self._clock.monotonic()))
            except QueueOverflow:
                self._pending.discard(fault.machine)
                self._count("dropped")

    def _is_held(self, machine: str) -> bool:
        if not self._interval:
            return False
        last = self._last.get(machine)
        return machine in self._pending or (last is not None and self._clock.monotonic() - last < self._interval)

    # -- what goes

    async def _run(self) -> None:
        try:
            send = await self._in_thread(self._connect)
        except CancelledError:
            raise
        except Exception as error:  # each kind of broken file has its own
            self._turn_off(error)
            return
        # Who put the credentials there wants to know now, not at the first anomaly.
        problem = await self._try(send, None)
        if problem is None:
            log.info("Google accepts the FCM credentials")
        else:
            self._say_failed("no push message can be sent at present ({what})", problem)
        while True:
            waiting = await self._queue.get()
            outcome = await self._deliver(send, waiting)
            self._pending.discard(waiting.machine)
            if outcome == "sent":
                self._last[waiting.machine] = self._clock.monotonic()
                self._is_refused = False
            self._count(outcome)

    def _turn_off(self, error: Exception) -> None:
        self._is_off = True
        for _ in self._queue.pending:
            self._count("failed")
        self._queue.pending.clear()
        # The text of the error may quote the credentials.
        log.warn("push messages are off: the FCM credentials cannot be used ({error})", error=type(error).__name__)

    async def _deliver(self, send: Send, waiting: _Waiting) -> str:
        """Try until the message is sent or given up; the outcome, as it is counted."""
        tries = 0
        while True:
            if self._age(waiting) > _OLDEST:
                self._warnings.warn("old", "a push message of {machine} is given up: too old", machine=waiting.machine)
                return "expired"
            problem = await self._try(send, waiting.message)
            if problem is None:
                return "sent"
            delay = self._back_off(tries) if problem.after is None else problem.after
            tries += 1
            if not problem.retry or tries == _TRIES or self._age(waiting) + delay > _OLDEST:
                self._say_failed("a push message of {machine} could not be sent ({what})", problem, waiting.machine)
                return "failed"
            self._count("retried")
            self._warnings.warn(
                "retried",
                "a push message of {machine} was not sent ({what}), the next try is in {delay} seconds",
                machine=waiting.machine,
                what=problem.what,
                delay=round(delay),
            )
            await deferLater(self._reactor, delay)

    async def _try(self, send: Send, message: PushMessage | None) -> NotSentError | None:
        try:
            await self._in_thread(send, message)
        except CancelledError:
            raise
        except NotSentError as error:
            return error
        except Exception as error:  # a message that breaks something must not end all others
            return NotSentError(type(error).__name__)
        return None

    def _say_failed(self, text: str, problem: NotSentError, machine: str = "") -> None:
        if problem.refused:
            # Until somebody changes the credentials each message ends so: once is enough.
            if not self._is_refused:
                log.warn("push messages fail: Google refuses the FCM credentials ({what})", what=problem.what)
            self._is_refused = True
        else:
            self._warnings.warn("failed", text, what=problem.what, machine=machine)

    def _in_thread(self, function: Callable[..., T], *args: object) -> "Deferred[T]":
        return deferToThreadPool(self._reactor, self._pool, function, *args)

    def _age(self, waiting: _Waiting) -> float:
        return self._clock.monotonic() - waiting.since

    def _count(self, outcome: str) -> None:
        self._counters.push_messages.labels(outcome).inc()
