"""Push messages to phones by Firebase Cloud Messaging.

``firebase-admin`` is imported, in a thread of its own, only where credentials are configured: it takes 0.4 s and
33 MB.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.model import Fault
from gateway.threads import pool_of

log = Logger()

TOPIC: Final = "anomaly"

#: Messages that may wait; one more is dropped and counted.
_MOST: Final = 100

#: Seconds that Google may take to answer.
_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class PushMessage:
    """What a phone shows."""

    title: str
    body: str


Send = Callable[[PushMessage], object]


def message_of(fault: Fault) -> PushMessage:
    """The old server's words."""
    return PushMessage(f"{fault.machine} 이상치 감지", f"상세 정보 : {fault.score}/{fault.threshold}")


class PushAlert(Service):
    """Sends a push message for an anomaly, at most one a machine in an interval; a sink of the bus.

    :param interval: ``fcm.timeout``, seconds.
    :param connect: makes the function that sends, or raises; both are called in a thread.
    """

    name = "push"

    def __init__(
        self,
        reactor: IReactorFromThreads,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        interval: float,
        connect: Callable[[], Send],
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._counters = counters
        self._interval = interval
        self._connect = connect
        # Nobody waits for it at the end: Google may take its time.
        self._pool = pool_of(1, "push")
        self._send: Send | None = None
        self._waiting: deque[PushMessage] = deque()
        self._sending: Deferred[Any] | None = None
        #: When each machine's last message was accepted, monotonic; no more machines than ``daq.max_machines``.
        self._last: dict[str, float] = {}
        bus.attach(Fault, "push", self._on_fault)

    def startService(self) -> None:
        super().startService()
        self._pool.start()
        self._sending = deferToThreadPool(self._reactor, self._pool, self._connect).addCallbacks(
            self._connected, self._not_connected
        )

    def stopService(self) -> None:
        super().stopService()
        self._waiting.clear()

    def _connected(self, send: Send) -> None:
        self._send = send
        self._sending = None
        self._next()

    def _not_connected(self, failure: Failure) -> None:
        self._sending = None
        self._waiting.clear()
        # The text of the error may quote the credentials.
        log.warn(
            "push messages are off: the FCM credentials cannot be used ({error})", error=type(failure.value).__name__
        )

    def _on_fault(self, fault: Fault) -> None:
        if not fault.is_anomaly or (self._send is None and self._sending is None):
            return
        now = self._clock.monotonic()
        last = self._last.get(fault.machine)
        if last is not None and now - last < self._interval:
            self._counters.push_messages.labels("held").inc()
            return
        if len(self._waiting) >= _MOST:
            self._counters.push_messages.labels("dropped").inc()
            return
        self._last[fault.machine] = now
        self._waiting.append(message_of(fault))
        self._next()

    def _next(self) -> None:
        if self._send is not None and self._sending is None and self._waiting:
            self._sending = deferToThreadPool(
                self._reactor, self._pool, self._send, self._waiting.popleft()
            ).addCallbacks(self._sent, self._failed)

    def _sent(self, _: object) -> None:
        self._counters.push_messages.labels("sent").inc()
        self._sending = None
        self._next()

    def _failed(self, failure: Failure) -> None:
        self._counters.push_messages.labels("failed").inc()
        log.warn("a push message could not be sent ({error})", error=type(failure.value).__name__)
        self._sending = None
        self._next()


def connect_firebase(cred_path: str) -> Send:
    """The function that sends by Firebase with a service account's credentials. It blocks.

    :raises Exception: whatever firebase-admin has against the file.
    """
    import firebase_admin
    from firebase_admin import credentials, messaging

    app = firebase_admin.initialize_app(
        credentials.Certificate(cred_path), {"httpTimeout": _TIMEOUT}, name="cynow-gateway"
    )

    def send(message: PushMessage) -> object:
        return messaging.send(
            messaging.Message(topic=TOPIC, notification=messaging.Notification(title=message.title, body=message.body)),
            app=app,
        )

    return send
