"""Queue of the records and states that this gateway sends: bounded, in order, in messages that fit NOTIFY."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.live.state import LOCAL, LiveState
from gateway.model.records import Arrival, Presence, Reading, Silence
from gateway.relay import protocol
from gateway.relay.guard import MessageGuard
from gateway.relay.settings import RelaySettings
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Maximum waiting records. Beyond it the oldest are left out; the missing number makes peers request the state.
MAX_WAITING: Final = 10_000

#: Maximum records in one statement, some 100 KB; and maximum other messages in it, 160 KB, which a peer reads in 20 ms.
_MAX_RECORDS: Final = 500
_MAX_MESSAGES: Final = 20


@dataclass(frozen=True, slots=True)
class _WaitingRecord:
    """Record that waits to be sent.

    :ivar time: time at which it was published.
    :ivar published_at: the same on the monotonic clock, in seconds.
    """

    record: protocol.SharedRecord
    time: datetime
    published_at: float


class OutboundQueue:
    """Signals, records and states that wait to be sent.

    A signal is a message without items. Records are sent before states, which are read only when they are sent.

    :param settings: settings of this gateway.
    :param guard: seals the messages.
    """

    def __init__(
        self,
        live: LiveState,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        settings: RelaySettings,
        guard: MessageGuard,
    ) -> None:
        self._live = live
        self._clock = clock
        self._counters = counters
        self._warnings = warnings
        self._token = settings.token
        self._gateway = settings.sent_name
        self._idle_timeout = settings.idle_timeout
        self._guard = guard
        #: Maximum bytes of a message without its items.
        self._max_head = len(
            protocol.encode_message(self._token, self._gateway, 2**63, 2**63, "x" * 64, protocol.RECORDS)
        )
        self._number = 0
        #: Whether a number was left out since the last message, to show peers that a record is missing.
        self._has_skipped_number = False
        self._waiting: deque[_WaitingRecord] = deque()
        #: Signals: their kind, and the token of their receiver; ``None`` for all peers.
        self._signals: deque[tuple[str, str | None]] = deque()
        #: Tokens of the peers that wait for the state; ``None`` for all peers.
        self._requests: dict[str | None, None] = {}
        #: Rest of the state that is being sent, as texts of items, and its receiver.
        self._state: Iterator[list[str]] = iter(())
        self._state_to: str | None = None
        self._is_sending_state = False

    @property
    def is_empty(self) -> bool:
        """Return whether nothing waits to be sent."""
        return not (self._waiting or self._signals or self._requests or self._is_sending_state)

    def restart(self) -> None:
        """Replace everything that waits by hello and the state, to all peers."""
        self.drop()
        self._signals.clear()
        self._signals.append((protocol.HELLO, None))
        self._requests = {None: None}
        self._state, self._is_sending_state = iter(()), False

    def add_signal(self, kind: str, to: str | None = None) -> None:
        """Queue a signal, ahead of all records and states.

        :param kind: kind of the message.
        :param to: token of its receiver; ``None`` for all peers.
        """
        self._signals.append((kind, to))

    def add_state(self, to: str) -> None:
        """Queue the state for a peer.

        :param to: token of the peer.
        """
        self._requests[to] = None

    def add(self, record: protocol.SharedRecord) -> None:
        """Queue a record for all peers. If too many wait, the oldest is left out, and peers notice by the numbers."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._counters.relay_dropped.labels("full").inc()
            if not self._has_skipped_number:
                self._has_skipped_number = True
                self._number += 1
        self._waiting.append(_WaitingRecord(record, self._clock.now(), self._clock.monotonic()))

    def drop(self) -> None:
        """Leave out all waiting records: PostgreSQL is unavailable."""
        if self._waiting:
            self._counters.relay_dropped.labels("away").inc(len(self._waiting))
            self._waiting.clear()

    def next_batch(self) -> list[str]:
        """Return the messages of the next statement, and remove them from the queue."""
        payloads = [self._encode(*self._signals.popleft()) for _ in range(min(len(self._signals), _MAX_MESSAGES))]
        payloads += self._encode_records()
        while len(payloads) < _MAX_MESSAGES and not self._waiting:
            if not self._is_sending_state:
                if not self._requests:
                    break
                # If several peers wait for the state, it is sent to all.
                self._state_to = next(iter(self._requests)) if len(self._requests) == 1 else None
                self._requests.clear()
                self._state = protocol.pack_items(self._state_items(), self._max_head, self._count_too_long)
                self._is_sending_state = True
            texts = next(self._state, None)
            if texts is None:
                self._is_sending_state = False
            else:
                payloads.append(self._encode(protocol.STATE, self._state_to, texts))
        return payloads

    def final_batches(self) -> list[list[str]]:
        """Return the messages of all waiting records, and that of the end, by statement."""
        batches = []
        while self._waiting:
            batches.append(self._encode_records())
        return [*batches, [self._encode(protocol.BYE, None)]]

    def _encode_records(self) -> list[str]:
        """Return messages with the records that have waited longest, and remove these from the queue."""
        messages: list[str] = []
        items = [self._record_item(self._waiting.popleft()) for _ in range(min(len(self._waiting), _MAX_RECORDS))]
        for texts in protocol.pack_items(items, self._max_head, self._count_too_long):
            messages.append(self._encode(protocol.RECORDS, None, texts))
            self._counters.relay_sent.inc(len(texts))
        return messages

    def _record_item(self, waiting: _WaitingRecord) -> protocol.RelayItem:
        record = waiting.record
        age = max(0.0, self._clock.monotonic() - waiting.published_at)
        arrived = waiting.published_at if isinstance(record, Reading) else None
        item = protocol.RecordItem(record, waiting.time, age, self._idle_timeout_of(record), arrived)
        return protocol.record_item(item)

    def _idle_timeout_of(self, record: protocol.SharedRecord) -> float:
        if isinstance(record, Reading | Silence):
            return self._live.idle_timeout(record.scale_id)
        if isinstance(record, Presence) and record.source == "scale":
            return self._live.idle_timeout(record.name)
        return self._idle_timeout

    def _state_items(self) -> Iterator[protocol.RelayItem]:
        """Yield the items of this gateway's state, each as it is at that moment."""
        for scale_id, state in self._live.own_scales().items():
            age = max(0.0, self._live.age(scale_id))
            presence = Presence("scale", scale_id, self._live.is_here("scale", scale_id))
            origin = self._token if state.origin == LOCAL else state.origin
            arrival = None if origin is None else Arrival(origin, state.arrived)
            item = protocol.ScaleItem(presence, state.idle_timeout, state.latest, age, arrival)
            yield protocol.scale_item(item)
        for machine in self._live.own_machines():
            yield protocol.machine_item(machine, self._live.is_here("machine", machine))
            for sensor, updates in list(self._live.recent(machine).items()):
                yield protocol.sensor_item(machine, sensor, updates)

    def _encode(self, kind: str, to: str | None, texts: Sequence[str] = ()) -> str:
        self._number += 1
        self._has_skipped_number = False
        moment = self._guard.moment
        message = protocol.encode_message(self._token, self._gateway, self._number, moment, to, kind, texts)
        return self._guard.seal(message)

    def _count_too_long(self, item: protocol.RelayItem) -> None:
        self._counters.relay_dropped.labels("long").inc()
        self._warnings.warn(
            "relay", "cannot send a {item} to other gateways: it exceeds NOTIFY's limit of 8000 bytes", item=item["is"]
        )
