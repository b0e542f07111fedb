"""Several gateways on one database: each tells the others what happens to it, and how it stands.

Records of this gateway go to the others as they happen, those of the others to this one's subscribers; nothing that
was heard is told again. Who begins to listen says hello, and its state; the others answer with theirs. Messages bear
numbers: whoever misses one says hello to its sender, and is told its state.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.live.state import LiveState
from gateway.model.records import Commit, Fault, Presence, Reading, Record, Update
from gateway.relay import protocol as wire
from gateway.relay.outbound import OutboundQueue
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog, shown
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError

log = Logger()

R = TypeVar("R", bound=Record)

#: What happens within so many seconds goes out in one statement.
_COLLECT: Final = 0.01

#: A gateway says something at least so often, and is gone when it was not heard for so long, in seconds.
BEAT: Final = 2.0
GONE: Final = 6.0

#: Gateways that are told apart; a site has some.
_MOST_GATEWAYS: Final = 1000

#: What is being sent at the end has so many seconds.
_PATIENCE: Final = 0.5


class RelayChannel(Protocol):
    """Where gateways hear each other: whoever listens hears every payload, its own too, in one order for all."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def problem(self) -> str | None: ...

    def start(self, connected: Callable[[], None], heard: Callable[[str], None]) -> None: ...

    def send(self, payloads: Sequence[str]) -> "Deferred[None]": ...

    async def close(self, patience: float) -> None: ...


@dataclass(slots=True)
class Peer:
    """Another gateway.

    :ivar number: of its last message; ``None`` where some may have passed unheard, and its state is awaited.
    :ivar heard_at: when that came, on the monotonic clock.
    :ivar asked_at: when it was last asked for its state.
    :ivar lacking: whether something of it was missed since.
    """

    name: str
    number: int | None
    heard_at: float
    asked_at: float
    lacking: bool = False


class Relay(Service):
    """A part of the gateway that stands between its bus and the others'.

    :param gateway: ``gateway.name``. Two of one name are two all the same.
    :param token: tells this start of this gateway from every other.
    :param idle_timeout: of scales of which nothing else is known.
    """

    name = "relay"

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        live: LiveState,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        channel: RelayChannel,
        gateway: str,
        idle_timeout: float,
        token: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._bus = bus
        self._live = live
        self._clock = clock
        self._counters = counters
        self._warnings = warnings
        self._channel = channel
        self._gateway = gateway[:64]
        self._token = token or secrets.token_hex(8)
        self._out = OutboundQueue(live, clock, counters, warnings, self._token, self._gateway, idle_timeout)
        #: Whether something could not be sent, and everything is to be said anew.
        self._has_failed = False
        #: When hello was said to all.
        self._began_at = float("-inf")
        self._said_at = float("-inf")
        #: When something was heard that was said here: whoever is heard by others hears itself.
        self._echoed_at = float("-inf")
        self._ticked_at = 0.0
        self._peers: dict[str, Peer] = {}
        self._is_sending = False
        self._timer: IDelayedCall | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = reactor
        bus.attach(Reading, self.name, self._on_record)
        bus.attach(Commit, self.name, self._on_record)
        bus.attach(Update, self.name, self._on_record)
        bus.attach(Fault, self.name, self._on_record)
        bus.attach(Presence, self.name, self._on_presence)

    # -- the life

    def startService(self) -> None:
        super().startService()
        self._channel.start(self._connected, self._heard)
        self._ticked_at = self._clock.monotonic()
        self._ticking.start(BEAT / 2, now=False)

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        if self._ticking.running:
            self._ticking.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        if self._channel.is_connected:
            # They are sent in this order.
            for payloads in self._out.last():
                self._channel.send(payloads).addErrback(self._unsent)
        await self._channel.close(_PATIENCE)

    @property
    def problem(self) -> str | None:
        """Why other gateways are not heard; ``None`` where they are."""
        if not self._channel.is_connected:
            return self._channel.problem
        if self._clock.monotonic() - max(self._began_at, self._echoed_at) > GONE:
            return "PostgreSQL delivers no notifications; LISTEN needs a session of its own (PgBouncer: session mode)"
        return None

    def _connected(self) -> None:
        self._out.begin()
        self._has_failed = False
        self._began_at = self._clock.monotonic()
        for peer in self._peers.values():
            peer.number, peer.asked_at, peer.lacking = None, self._began_at, False
        self._soon()

    def _tick(self) -> None:
        try:
            now = self._clock.monotonic()
            if now - self._ticked_at > BEAT:
                # This gateway has stood still, and has not yet read what they said meanwhile.
                for peer in self._peers.values():
                    peer.heard_at = now
            self._ticked_at = now
            for token, peer in list(self._peers.items()):
                if now - peer.heard_at >= GONE:
                    log.warn("gateway {name} is not heard any more", name=peer.name)
                    self._gone(token)
                elif peer.lacking:
                    self._ask(token, peer)
            if not self._channel.is_connected or self._is_sending:
                return
            if self._has_failed:
                self._connected()
            elif now - self._said_at > 0.75 * BEAT:
                # At every other tick, where nothing else is said.
                self._out.say(wire.HERE)
                self._soon()
        except Exception:  # the timer lives on
            self._counters.sink_failures.labels(self.name).inc()
            log.failure("the relay failed on a tick")

    # -- what goes out

    def _on_presence(self, presence: Presence) -> None:
        self._on_record(presence)
        if not presence.connected and self._live.is_connected(presence.source, presence.name):
            # It has gone from here, and is connected elsewhere.
            self._bus.publish(Presence(presence.source, presence.name, connected=True), remote=True)

    def _on_record(self, record: wire.SharedRecord) -> None:
        if not (self.running and self._channel.is_connected):
            self._counters.relay_dropped.labels("away").inc()
            return
        self._out.add(record)
        self._soon()

    def _soon(self) -> None:
        if self._timer is None and not self._is_sending and self.running:
            self._timer = self._reactor.callLater(_COLLECT, self._send)

    def _send(self) -> None:
        self._timer = None
        if not self._channel.is_connected:
            # Once it is back there is a hello.
            self._out.drop()
            return
        payloads = self._out.next()
        if payloads:
            self._is_sending = True
            self._said_at = self._clock.monotonic()
            self._channel.send(payloads).addErrback(self._unsent).addCallback(self._sent)

    def _sent(self, _: object) -> None:
        self._is_sending = False
        if not self._out.is_empty:
            self._soon()

    def _unsent(self, failure: Failure) -> None:
        self._has_failed = True
        self._counters.relay_dropped.labels("failed").inc()
        self._warnings.warn("relay", "other gateways were not told: {error}", error=failure.value)

    # -- what comes in

    def _heard(self, payload: str) -> None:
        try:
            self._take(wire.read_message(payload))
        except WireError as error:
            self._reject(error, payload)
        except Exception:  # whatever is wrong here, the connection is not
            self._counters.sink_failures.labels(self.name).inc()
            log.failure("the relay failed on a notification")

    def _reject(self, error: WireError, what: object) -> None:
        self._counters.relay_rejected.inc()
        self._warnings.warn(
            "relay",
            "no gateway sends this notification: {error}: {what}",
            error=error,
            what=shown(str(what).encode("utf-8", "replace")),
        )

    def _take(self, message: wire.RelayMessage) -> None:
        token = message.token
        if not self.running:
            return
        if token == self._token:
            self._echoed_at = self._clock.monotonic()
            return
        # Hello to all begins anew; whoever says it tells its state next.
        begins = message.say == wire.HELLO and message.to is None
        peer = self._peers.get(token)
        if message.say == wire.BYE:
            if peer is not None:
                log.info("gateway {name} has stopped", name=peer.name)
                self._gone(token)
            return
        if peer is None:
            if len(self._peers) >= _MOST_GATEWAYS:
                raise WireError("too many gateways")
            log.info("gateway {name} is heard", name=message.gateway)
            if message.gateway == self._gateway:
                log.warn("that is this one's name too: gateway.name is to tell them apart")
            now = self._clock.monotonic()
            peer = self._peers[token] = Peer(message.gateway, message.number, now, self._began_at)
            self._counters.relay_gateways.set(len(self._peers))
            # It answers a hello to all that is as young.
            if not begins and now - self._began_at >= BEAT:
                self._ask(token, peer)
        elif not begins and peer.number is not None and message.number != peer.number + 1:
            self._counters.relay_gaps.inc()
            self._ask(token, peer)
        peer.number = message.number
        peer.heard_at = self._clock.monotonic()
        if message.say == wire.HELLO and message.to in (None, self._token):
            self._out.answer(token)
            self._soon()
        if message.to in (None, self._token):
            for item in message.items:
                try:
                    self._take_item(token, wire.read_item(item, self._clock.zone))
                except WireError as error:
                    self._reject(error, item)

    def _ask(self, token: str, peer: Peer) -> None:
        """Ask a gateway for its state, now or when it may have answered the last question."""
        now = self._clock.monotonic()
        peer.lacking = now - peer.asked_at < BEAT
        if not peer.lacking:
            peer.asked_at = now
            self._out.say(wire.HELLO, token)
            self._soon()

    def _gone(self, token: str) -> None:
        del self._peers[token]
        self._counters.relay_gateways.set(len(self._peers))
        for presence in self._live.forget(token):
            self._bus.publish(presence, remote=True)

    def _take_item(self, token: str, item: Any) -> None:
        match item:
            case wire.RecordItem():
                self._counters.relay_received.inc()
                if self._is_news(token, item):
                    self._bus.publish(item.record, remote=True, time=item.time)
            case wire.ScaleItem():
                if not self._live.apply_remote_scale(item.presence.name, item.idle_timeout):
                    raise WireError("too many names")
                if item.latest is not None and self._live.apply_remote_reading(item.latest, item.age):
                    self._bus.publish(item.latest, remote=True, time=item.latest.received_at)
                self._present(token, item.presence)
            case wire.MachineItem():
                if not self._live.apply_remote_machine(item.presence.name):
                    raise WireError("too many names")
                self._present(token, item.presence)
            case wire.SensorItem():
                # What is new of a sensor that was known is what was missed.
                for update in self._live.apply_remote_updates(item.updates) or ():
                    self._bus.publish(update, remote=True, time=update.minute_end)

    def _present(self, token: str, presence: Presence) -> None:
        if self._live.apply_remote_presence(token, presence):
            self._bus.publish(presence, remote=True)

    def _is_news(self, token: str, item: wire.RecordItem) -> bool:
        """Let the state be as a record says; whether subscribers do not know it."""
        live, record = self._live, item.record
        match record:
            case Reading():
                if not live.apply_remote_scale(record.scale_id, item.idle_timeout):
                    raise WireError("too many names")
                # A state may have told it already.
                if record.settled:
                    return live.apply_remote_reading(record, item.age) or live.latest(record.scale_id) != record
            case Update():
                if record in live.recent(record.machine).get(record.sensor, ()):
                    return False
                live.apply_remote_updates([record])
            case Presence():
                if record.source == "scale":
                    is_known = live.apply_remote_scale(record.name, item.idle_timeout)
                else:
                    is_known = live.apply_remote_machine(record.name)
                if not is_known:
                    raise WireError("too many names")
                return live.apply_remote_presence(token, record)
        return True
