"""Events: numbered records and their JSON."""

from datetime import datetime
from typing import Any

import orjson

from gateway.model.records import Record
from gateway.model.timestamps import rfc3339


class Event:
    """An event: a record with a number.

    :ivar seq: number, which rises by one with each event of the gateway.
    :ivar time: time of publication.
    :ivar weight: approximate memory in bytes, set by a backlog that bounds it.
    """

    __slots__ = ("_frames", "_text", "record", "seq", "time", "weight")

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
        """Return the cache of WebSocket frames of the event, by the window size of their compression."""
        if self._frames is None:
            self._frames = {}
        return self._frames

    def text(self) -> bytes:
        """Return the event as JSON, which is encoded once, on first use."""
        if self._text is None:
            self._text = event_text(self.seq, self.topic, self.record.event, self.record.payload(), self.time)
        return self._text


def event_text(seq: int, topic: str, event: str, data: Any, time: datetime) -> bytes:
    """Return the JSON of an event, which is the same for every transport."""
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
    # Copied, since the text lives long: orjson leaves unused memory of five times its size behind it.
    return bytes(memoryview(text))
