"""What a gateway has to tell the others: bounded, in order, in messages that NOTIFY takes."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.live.state import LiveState
from gateway.model.records import Presence, Reading
from gateway.relay import protocol as wire
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters

#: Records that may wait to be sent; then the oldest are left out, and the others are told the state instead.
MOST_WAITING: Final = 10_000

#: Records in one statement, some 100 KB; and messages in it that are none, 160 KB at most: to read them takes a gateway
#: 20 ms.
_RECORDS: Final = 500
_BATCH: Final = 20


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A record that waits to be sent; when it was published."""

    record: wire.SharedRecord
    time: datetime
    at: float


class OutboundQueue:
    """Words, records and states that wait to be sent.

    :param token: tells this start of this gateway from every other.
    :param idle_timeout: for what is about no scale.
    """

    def __init__(
        self,
        live: LiveState,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        token: str,
        gateway: str,
        idle_timeout: float,
    ) -> None:
        self._live = live
        self._clock = clock
        self._counters = counters
        self._warnings = warnings
        self._token = token
        self._gateway = gateway
        self._idle_timeout = idle_timeout
        self._head = len(wire.message(token, gateway, 2**63, "x" * 64, wire.RECORDS))
        self._number = 0
        #: Whether a number was left out since the last message.
        self._number_is_missing = False
        self._waiting: deque[_Waiting] = deque()
        #: Messages without items: what they say, to whom.
        self._words: deque[tuple[str, str | None]] = deque()
        #: Who waits to be told the state; ``None`` are all.
        self._askers: dict[str | None, None] = {}
        #: What of the state is still to be told, in texts of items, and to whom.
        self._state: Iterator[list[str]] = iter(())
        self._state_to: str | None = None
        self._is_telling = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be sent."""
        return not (self._waiting or self._words or self._askers or self._is_telling)

    def begin(self) -> None:
        """Say hello and the state to all, which stand for all that waits."""
        self.drop()
        self._words.clear()
        self._words.append((wire.HELLO, None))
        self._askers = {None: None}
        self._state, self._is_telling = iter(()), False

    def say(self, word: str, to: str | None = None) -> None:
        """Say something to a gateway, or to all, before what waits."""
        self._words.append((word, to))

    def answer(self, to: str) -> None:
        """Tell a gateway the state."""
        self._askers[to] = None

    def add(self, record: wire.SharedRecord) -> None:
        """Tell all what happens. Where too much waits, the oldest is left out and the others can tell."""
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            self._counters.relay_dropped.labels("full").inc()
            if not self._number_is_missing:
                self._number_is_missing = True
                self._number += 1
        self._waiting.append(_Waiting(record, self._clock.now(), self._clock.monotonic()))

    def drop(self) -> None:
        """Leave out what waits: PostgreSQL is away."""
        if self._waiting:
            self._counters.relay_dropped.labels("away").inc(len(self._waiting))
            self._waiting.clear()

    def next(self) -> list[str]:
        """The messages that are sent next: what happens goes before the state, which is as it is afterwards."""
        payloads = [self._message(*self._words.popleft()) for _ in range(min(len(self._words), _BATCH))]
        payloads += self._messages_of_records()
        while len(payloads) < _BATCH and not self._waiting:
            if not self._is_telling:
                if not self._askers:
                    break
                # What several ask for is told to all.
                self._state_to = next(iter(self._askers)) if len(self._askers) == 1 else None
                self._askers.clear()
                self._state = wire.packed(self._items(), self._head, self._too_long)
                self._is_telling = True
            texts = next(self._state, None)
            if texts is None:
                self._is_telling = False
            else:
                payloads.append(self._message(wire.STATE, self._state_to, texts))
        return payloads

    def last(self) -> list[list[str]]:
        """All records that wait, and the last word; each list one statement."""
        found = []
        while self._waiting:
            found.append(self._messages_of_records())
        return [*found, [self._message(wire.BYE, None)]]

    def _messages_of_records(self) -> list[str]:
        """Messages of the records that have waited longest."""
        found: list[str] = []
        items = [self._item(self._waiting.popleft()) for _ in range(min(len(self._waiting), _RECORDS))]
        for texts in wire.packed(items, self._head, self._too_long):
            found.append(self._message(wire.RECORDS, None, texts))
            self._counters.relay_sent.inc(len(texts))
        return found

    def _item(self, waiting: _Waiting) -> wire.RelayItem:
        record = waiting.record
        age = max(0.0, self._clock.monotonic() - waiting.at)
        return wire.happened(record, waiting.time, age, self._timeout_of(record))

    def _timeout_of(self, record: wire.SharedRecord) -> float:
        if isinstance(record, Reading):
            return self._live.idle_timeout(record.scale_id)
        if isinstance(record, Presence) and record.source == "scale":
            return self._live.idle_timeout(record.name)
        return self._idle_timeout

    def _items(self) -> Iterator[wire.RelayItem]:
        """The state of this gateway, part by part, each as it is when it is asked for."""
        for scale_id, state in self._live.own_scales().items():
            age = max(0.0, self._live.age(scale_id))
            is_here = self._live.is_here("scale", scale_id)
            yield wire.scale_is(scale_id, is_here, state.idle_timeout, state.latest, age)
        for machine in self._live.own_machines():
            yield wire.machine_is(machine, self._live.is_here("machine", machine))
            for sensor, updates in list(self._live.recent(machine).items()):
                yield wire.sensor_is(machine, sensor, updates)

    def _message(self, say: str, to: str | None, texts: Sequence[str] = ()) -> str:
        self._number += 1
        self._number_is_missing = False
        return wire.message(self._token, self._gateway, self._number, to, say, texts)

    def _too_long(self, item: wire.RelayItem) -> None:
        self._counters.relay_dropped.labels("long").inc()
        self._warnings.warn(
            "relay", "a {what} is over the limit of NOTIFY: other gateways do not hear of it", what=item["is"]
        )
