"""Events: numbered records and their JSON."""

from datetime import datetime
from typing import Any

import orjson

from gateway.model.records import Record
from gateway.model.timestamps import rfc3339


class Event:
    """One record with its number.

    :ivar seq: rises by one an event on the whole gateway.
    :ivar time: when it was published.
    """

    __slots__ = ("_frames", "_text", "record", "seq", "time", "weight")

    #: Where its backlog keeps what it is counted as.
    weight: int

    def __init__(self, seq: int, record: Record, time: datetime) -> None:
        self.seq = seq
        self.record = record
        self.time = time
        self._text: bytes | None = None
        self._frames: dict[int, bytes] | None = None

    @property
    def topic(self) -> str:
        return self.record.topic

    @property
    def frames(self) -> dict[int, bytes]:
        """Where the stream keeps the event framed, by the window of its compression."""
        if self._frames is None:
            self._frames = {}
        return self._frames

    def text(self) -> bytes:
        """The event as JSON; encoded once, and only if somebody asks."""
        if self._text is None:
            self._text = event_text(self.seq, self.topic, self.record.event, self.record.payload(), self.time)
        return self._text


def event_text(seq: int, topic: str, event: str, data: Any, time: datetime) -> bytes:
    """The JSON of an event as every transport sends it."""
    text = orjson.dumps(
        {
            "type": "event",
            "seq": seq,
            "topic": topic,
            "event": event,
            "data": data,
            "time": rfc3339(time, "milliseconds"),
        }
    )
    # Copied, since it is held for long: orjson leaves a hole in the memory behind it, five times as large as the text.
    return bytes(memoryview(text))
