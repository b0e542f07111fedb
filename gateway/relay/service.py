"""Exchange of records and state between the gateways on one database.

Each gateway sends its own records as they happen, and publishes those of its peers to its subscribers. On connect it
says hello and sends its state; its peers answer with theirs. Only messages with the code of the gateways' common key
count, each of them once.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.live.state import LiveState
from gateway.model.records import Commit, Fault, Presence, Reading, Silence, Update
from gateway.relay.guard import ForeignMessage, MessageGuard, OldMessage
from gateway.relay.inbound import InboundItems
from gateway.relay.outbound import OutboundQueue
from gateway.relay.peers import PeerDirectory
from gateway.relay.protocol import BYE, HELLO, HERE, MAC_LENGTH, RelayMessage, SharedRecord, read_message
from gateway.relay.settings import BEAT, GONE, RelaySettings
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog, shown
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError

log = Logger()

#: Seconds during which records are collected for one statement.
_COLLECT: Final = 0.01

#: Maximum seconds at the end for messages that are being sent.
_PATIENCE: Final = 0.5


class RelayChannel(Protocol):
    """Channel on which every listener receives every payload, including its own, in one order for all.

    ``on_connect`` gets the key that all gateways on the channel share, and a number that the channel counts up. So does
    each send: its number is above those that were known before.
    """

    @property
    def is_connected(self) -> bool: ...

    @property
    def problem(self) -> str | None: ...

    def start(self, on_connect: Callable[[bytes, int], None], on_payload: Callable[[str], None]) -> None: ...

    def send(self, payloads: Sequence[str]) -> "Deferred[int]": ...

    async def close(self, patience: float) -> None: ...


class Relay(Service):
    """Link between the bus of this gateway and those of its peers."""

    name = "relay"

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        live: LiveState,
        clock: WallClock,
        counters: Counters,
        channel: RelayChannel,
        settings: RelaySettings,
    ) -> None:
        self._reactor = reactor
        self._bus = bus
        self._live = live
        self._clock = clock
        self._counters = counters
        self._warnings = LimitedLog(log, clock, counters)
        self._channel = channel
        self._token = settings.token
        self._guard = MessageGuard()
        self._outbound = OutboundQueue(live, clock, counters, self._warnings, settings, self._guard)
        self._inbound = InboundItems(bus, live, counters, clock.zone, settings.token)
        self._peers = PeerDirectory(clock, counters, settings.sent_name, self._request_state)
        #: Whether messages could not be sent, so that hello and the state must be sent again.
        self._has_failed = False
        #: Times on the monotonic clock: of the last hello to all, of the last message sent, and of the last message of
        #: this gateway that the channel delivered, which shows that peers receive it too.
        self._hello_at = self._sent_at = self._echoed_at = float("-inf")
        self._is_sending = False
        self._timer: IDelayedCall | None = None
        self._ticker = LoopingCall(self._tick)
        self._ticker.clock = reactor
        bus.attach(Reading, self.name, self._on_record)
        bus.attach(Commit, self.name, self._on_record)
        bus.attach(Update, self.name, self._on_record)
        bus.attach(Fault, self.name, self._on_record)
        bus.attach(Presence, self.name, self._on_presence)
        bus.attach(Silence, self.name, self._on_record)

    def startService(self) -> None:
        super().startService()
        self._channel.start(self._on_connect, self._on_payload)
        self._ticker.start(BEAT / 2, now=False)

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        if self._ticker.running:
            self._ticker.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        if self._channel.is_connected:
            # The channel sends these in order.
            for payloads in self._outbound.final_batches():
                self._channel.send(payloads).addErrback(self._on_send_failed)
        await self._channel.close(_PATIENCE)

    @property
    def problem(self) -> str | None:
        """Return why messages of peers do not arrive; ``None`` if they do."""
        if not self._channel.is_connected:
            return self._channel.problem
        if self._clock.monotonic() - max(self._hello_at, self._echoed_at) > GONE:
            return (
                "PostgreSQL delivers no notifications: LISTEN needs a session of its own; set pool_mode = session in"
                " PgBouncer, or connect database.url to the server itself"
            )
        return None

    def _on_connect(self, key: bytes, moment: int) -> None:
        self._guard.restart(key, moment)
        self._say_hello()

    def _say_hello(self) -> None:
        self._outbound.restart()
        self._has_failed = False
        self._hello_at = self._clock.monotonic()
        self._peers.expect_states()
        self._send_soon()

    def _tick(self) -> None:
        try:
            for token in self._peers.check():
                self._forget_peer(token)
            if not self._channel.is_connected or self._is_sending:
                return
            if self._has_failed:
                self._say_hello()
            elif self._clock.monotonic() - self._sent_at > 0.75 * BEAT:
                # Every second tick, if nothing else was sent.
                self._outbound.add_signal(HERE)
                self._send_soon()
        except Exception:  # the timer must go on
            self._counters.sink_failures.labels(self.name).inc()
            log.failure("the relay's timer failed; it goes on")

    # -- outbound

    def _on_presence(self, presence: Presence) -> None:
        self._on_record(presence)
        if not presence.connected and self._live.is_connected(presence.source, presence.name):
            # It has disconnected from this gateway, but is connected to a peer.
            self._bus.publish(Presence(presence.source, presence.name, connected=True), remote=True)

    def _on_record(self, record: SharedRecord) -> None:
        if not (self.running and self._channel.is_connected):
            self._counters.relay_dropped.labels("away").inc()
            return
        self._outbound.add(record)
        self._send_soon()

    def _request_state(self, token: str) -> None:
        self._outbound.add_signal(HELLO, token)
        self._send_soon()

    def _send_soon(self) -> None:
        if self._timer is None and not self._is_sending and self.running:
            self._timer = self._reactor.callLater(_COLLECT, self._send)

    def _send(self) -> None:
        self._timer = None
        if not self._channel.is_connected:
            # On the next connect, hello and the state are sent instead.
            self._outbound.drop()
            return
        payloads = self._outbound.next_batch()
        if payloads:
            self._is_sending = True
            self._sent_at = self._clock.monotonic()
            self._channel.send(payloads).addErrback(self._on_send_failed).addCallback(self._on_sent)

    def _on_sent(self, moment: int | None) -> None:
        self._is_sending = False
        if moment is not None:
            self._guard.note_moment(moment)
        if not self._outbound.is_empty:
            self._send_soon()

    def _on_send_failed(self, failure: Failure) -> None:
        self._has_failed = True
        self._counters.relay_dropped.labels("failed").inc()
        self._warnings.warn("relay", "cannot send events to other gateways: {error}", error=failure.value)

    # -- inbound

    def _on_payload(self, payload: str) -> None:
        try:
            message = read_message(self._guard.open(payload))
            if self.running:
                self._guard.admit(message)
                self._receive(message)
        except ForeignMessage as error:
            # Nothing of it is logged: anybody may have written it.
            self._counters.relay_rejected.labels("foreign").inc()
            text = "ignored a notification of {length} characters that is not of a gateway: {error}"
            self._warnings.warn("relay foreign", text, length=len(payload), error=error)
        except OldMessage as error:
            self._counters.relay_rejected.labels("old").inc()
            if self._clock.monotonic() - self._hello_at >= BEAT:
                # Before that, peers may not have heard of this gateway.
                self._warnings.warn("relay old", "ignored an old notification of a gateway: {error}", error=error)
        except WireError as error:
            self._reject(error, payload[MAC_LENGTH:])
        except Exception:  # an error here must not close the connection
            self._counters.sink_failures.labels(self.name).inc()
            log.failure("the relay failed on a notification; the notification is ignored")

    def _reject(self, error: WireError, rejected: object) -> None:
        self._counters.relay_rejected.labels("invalid").inc()
        self._warnings.warn(
            "relay",
            "ignored an invalid notification of a gateway, or a part of it: {error}: {data}",
            error=error,
            data=shown(str(rejected).encode("utf-8", "replace")),
        )

    def _receive(self, message: RelayMessage) -> None:
        token = message.token
        if token == self._token:
            self._echoed_at = self._clock.monotonic()
            return
        if message.kind == BYE:
            if token in self._peers:
                log.info("gateway {name} has stopped", name=message.gateway)
                self._forget_peer(token)
            return
        self._peers.receive(message)
        if message.to not in (None, self._token):
            return
        if message.kind == HELLO:
            self._outbound.add_state(token)
            self._send_soon()
        for item in message.items:
            try:
                self._inbound.apply(token, item)
            except WireError as error:
                self._reject(error, item)

    def _forget_peer(self, token: str) -> None:
        self._peers.remove(token)
        self._inbound.forget(token)
