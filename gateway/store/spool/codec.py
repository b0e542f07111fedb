"""Entries as rows of the spool."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo
from typing import Any, Final, TypeAlias

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.timeseries.bucket import Bucket

#: What an entry takes beside its texts, in bytes: the head of its row, its kind and its numbers.
ENTRY_BYTES: Final = 32


#: How bodies are written: a float in the fewest digits that give the same again, an infinity as a word, any integer.
_FORM: Final = 1


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


_KINDS: Final[dict[str, type[StoreEntry]]] = {
    "hour": ClosedHour,
    "period": ClosedPeriod,
    "anomaly": Fault,
    "sensor": Sighting,
}


_KIND_OF: Final = {its: kind for kind, its in _KINDS.items()}


#: Entries that wait: the number, form, kind, machine, sensor, cost and body of each.
SpoolRow: TypeAlias = tuple[int, int, str, str, str | None, int, str]


ROWS: Final = "SELECT number, form, kind, machine, sensor, cost, body FROM entry ORDER BY number"


def row_of(entry: StoreEntry) -> tuple[Any, ...]:
    """Form, kind, machine, sensor, cost and body.

    :raises ValueError: a text in it is none.
    """
    fields = {name: _plain(getattr(entry, name)) for name in type(entry).__slots__}
    machine, sensor = fields.pop("machine"), fields.pop("sensor", None)
    body = _ENCODER.encode(fields)
    cost = ENTRY_BYTES + len(f"{machine}{sensor or ''}{body}".encode())
    return _FORM, _KIND_OF[type(entry)], machine, sensor, cost, body


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        # What the wall clock showed, for it may never have shown that: a day begins at midnight where that is skipped.
        return [value.isoformat(), value.fold]
    return {name: getattr(value, name) for name in Bucket.__slots__} if isinstance(value, Bucket) else value


def read_entry(rows: Iterable[SpoolRow], zone: tzinfo) -> Iterator[tuple[SpoolRow, StoreEntry | None]]:
    """The entries of rows; ``None`` for a row that is none."""
    for row in rows:
        try:
            entry = _entry_of(row, zone)
        except (AttributeError, KeyError, TypeError, ValueError):
            entry = None
        yield row, entry


def _entry_of(row: SpoolRow, zone: tzinfo) -> StoreEntry:
    _, form, kind, machine, sensor, _, body = row
    if form != _FORM:
        raise ValueError(f"form {form}")
    fields = json.loads(body) | {"machine": machine} | ({} if sensor is None else {"sensor": sensor})
    for name in {"start", "received_at"} & fields.keys():
        text, fold = fields[name]
        told = datetime.fromisoformat(text).replace(fold=fold)
        time = told.replace(tzinfo=zone)
        # Where the zone of the configuration was another one then, the moment stays.
        fields[name] = time if time.utcoffset() == told.utcoffset() else told
    if "bucket" in fields:
        fields["bucket"] = Bucket(**fields["bucket"])
    return _KINDS[kind](**fields)
