"""Order of entries in which many of one kind are written in one statement."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault

#: Key of a row of ``cynow_mean`` without its origin: machine, sensor, period, start.
EntryKey: TypeAlias = tuple[str, str, str, int]

#: Maximum rows of a statement: a longer period is computed from up to 31 rows, which the reactor must read.
MAX_ROWS: Final = {ClosedHour: 500, ClosedPeriod: 200, Fault: 1000, Sighting: 1000}


def hour_key(hour: ClosedHour) -> EntryKey:
    """Return the key of the row of an hour."""
    return hour.machine, hour.sensor, "hour", int(hour.start.timestamp())


def end_key(end: ClosedPeriod) -> EntryKey:
    """Return the key of the row of a longer period."""
    return end.machine, end.sensor, end.period, int(end.start.timestamp())


def phases(numbered: Sequence[tuple[int, StoreEntry]]) -> list[tuple[type[StoreEntry], list[tuple[int, Any]]]]:
    """Return entries grouped by kind, with those of each sensor in their original order.

    A phase writes no row twice, and its longer periods have one length.

    :param numbered: entries and their numbers, in the original order.
    """
    phases: list[tuple[Any, set[Any], list[tuple[int, Any]]]] = []
    #: First phase that may take another entry, by sensor.
    earliest: dict[Any, int] = defaultdict(int)
    for number, entry in numbered:
        owner: tuple[str, ...]
        kind: Any
        row: Any
        match entry:
            case Fault():
                owner, kind, row = (entry.machine,), (Fault, ""), number
            case Sighting():
                owner, kind, row = (entry.machine, entry.sensor, ""), (Sighting, ""), (entry.machine, entry.sensor)
            case ClosedHour():
                owner, kind, row = (entry.machine, entry.sensor), (ClosedHour, ""), hour_key(entry)
            case ClosedPeriod():
                owner, kind, row = (entry.machine, entry.sensor), (ClosedPeriod, entry.period), end_key(entry)
        index = earliest[owner]
        while index < len(phases) and (
            phases[index][0] != kind or row in phases[index][1] or len(phases[index][2]) >= MAX_ROWS[kind[0]]
        ):
            index += 1
        if index == len(phases):
            phases.append((kind, set(), []))
        phases[index][1].add(row)
        phases[index][2].append((number, entry))
        earliest[owner] = index
    return [(kind[0], members) for kind, _, members in phases]
