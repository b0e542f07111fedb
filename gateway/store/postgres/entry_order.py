"""In which order entries are written, so that many of a kind stand in one statement."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from gateway.model.entries import ClosedHour, ClosedPeriod, Sighting, StoreEntry
from gateway.model.records import Fault

#: A row of ``cynow_mean`` but for its origin: machine, sensor, period, start.
EntryKey: TypeAlias = tuple[str, str, str, int]

#: Rows at a time: longer periods are made of up to 31 others each, and the reactor reads what the server sends.
MOST: Final = {ClosedHour: 500, ClosedPeriod: 200, Fault: 1000, Sighting: 1000}


def hour_key(hour: ClosedHour) -> EntryKey:
    """Of the row of an hour."""
    return hour.machine, hour.sensor, "hour", int(hour.start.timestamp())


def end_key(end: ClosedPeriod) -> EntryKey:
    """Of the row of a longer period."""
    return end.machine, end.sensor, end.period, int(end.start.timestamp())


def phases(numbered: Sequence[tuple[int, StoreEntry]]) -> list[tuple[type[StoreEntry], list[tuple[int, Any]]]]:
    """Entries in an order in which many of a kind stand together, and those of a sensor as they were.

    In a phase no row is written twice, and longer periods are of one length.
    """
    phases: list[tuple[Any, set[Any], list[tuple[int, Any]]]] = []
    #: By sensor: before which phase nothing of it may be put any more.
    earliest: dict[Any, int] = defaultdict(int)
    for number, entry in numbered:
        whose: tuple[str, ...]
        kind: Any
        row: Any
        match entry:
            case Fault():
                whose, kind, row = (entry.machine,), (Fault, ""), number
            case Sighting():
                whose, kind, row = (entry.machine, entry.sensor, ""), (Sighting, ""), (entry.machine, entry.sensor)
            case ClosedHour():
                whose, kind, row = (entry.machine, entry.sensor), (ClosedHour, ""), hour_key(entry)
            case ClosedPeriod():
                whose, kind, row = (entry.machine, entry.sensor), (ClosedPeriod, entry.period), end_key(entry)
        index = earliest[whose]
        while index < len(phases) and (
            phases[index][0] != kind or row in phases[index][1] or len(phases[index][2]) >= MOST[kind[0]]
        ):
            index += 1
        if index == len(phases):
            phases.append((kind, set(), []))
        phases[index][1].add(row)
        phases[index][2].append((number, entry))
        earliest[whose] = index
    return [(kind[0], its) for kind, _, its in phases]
