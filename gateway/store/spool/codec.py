"""Entries as rows of the spool."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, tzinfo
from typing import Any, Final, TypeAlias

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault
from gateway.timeseries.bucket import Bucket

#: Cost of an entry beside its texts, in bytes: the head of its row, its kind and its numbers.
ENTRY_BYTES: Final = 32

#: Version of the form of bodies: shortest digits that restore a float, an infinity as a word, any integer.
_FORM: Final = 1

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

_KINDS: Final[dict[str, type[StoreEntry]]] = {
    "hour": ClosedHour,
    "period": ClosedPeriod,
    "anomaly": Fault,
    "sensor": Sighting,
}

_KIND_OF: Final = {entry_type: kind for kind, entry_type in _KINDS.items()}

#: Waiting entry: number, form, kind, machine, sensor, cost and body.
SpoolRow: TypeAlias = tuple[int, int, str, str, str | None, int, str]

#: Selects all waiting entries as :data:`SpoolRow`.
ROWS: Final = "SELECT number, form, kind, machine, sensor, cost, body FROM entry ORDER BY number"


def row_of(entry: StoreEntry) -> tuple[Any, ...]:
    """Return the form, kind, machine, sensor, cost and body of an entry.

    :raises ValueError: a text is not valid Unicode.
    """
    fields = {name: _plain(getattr(entry, name)) for name in type(entry).__slots__}
    machine, sensor = fields.pop("machine"), fields.pop("sensor", None)
    body = _ENCODER.encode(fields)
    cost = ENTRY_BYTES + len(f"{machine}{sensor or ''}{body}".encode())
    return _FORM, _KIND_OF[type(entry)], machine, sensor, cost, body


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        # The wall time as it is, for it may not exist: a day begins at midnight although clocks may skip that.
        return [value.isoformat(), value.fold]
    return {name: getattr(value, name) for name in Bucket.__slots__} if isinstance(value, Bucket) else value


def read_entries(rows: Iterable[SpoolRow], zone: tzinfo) -> Iterator[tuple[SpoolRow, StoreEntry | None]]:
    """Yield rows with their entries; ``None`` for a row that cannot be read."""
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
        written = datetime.fromisoformat(text).replace(fold=fold)
        local = written.replace(tzinfo=zone)
        # If the zone of the configuration has changed since, the moment stays.
        fields[name] = local if local.utcoffset() == written.utcoffset() else written
    if "bucket" in fields:
        fields["bucket"] = Bucket(**fields["bucket"])
    return _KINDS[kind](**fields)
