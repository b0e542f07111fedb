"""Readiness of the gateway, as ``/readyz`` reports it: the state of each part that a plant needs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

#: State of a part, or of the whole gateway.
State: TypeAlias = Literal["ready", "degraded", "down"]

#: All parts, in the order of the report.
PARTS: Final = ("store", "spool", "disk", "listeners", "scales", "raw", "cylinders", "auth")

#: States from best to worst.
_STATES: Final[tuple[State, ...]] = ("ready", "degraded", "down")


@dataclass(frozen=True, slots=True)
class PartReport:
    """State of one part, and lines for an operator that say why it is not ready."""

    state: State
    details: list[str]


@dataclass(frozen=True, slots=True)
class Report:
    """State of the whole gateway, the worst of its parts, and the state of each part."""

    state: State
    parts: dict[str, PartReport]

    @property
    def is_ready(self) -> bool:
        """True unless a part is down."""
        return self.state != "down"


class Readiness:
    """Collector of the states of all parts.

    A part is ready as long as none of its sources has anything to report.
    """

    def __init__(self) -> None:
        self._sources: dict[str, list[tuple[State, Callable[[], Iterable[str]]]]] = {part: [] for part in PARTS}

    def watch(self, part: str, state: State, details: Callable[[], Iterable[str]]) -> None:
        """Add a source of a part's state.

        :param part: one of :data:`PARTS`.
        :param state: ``down`` if the plant cannot go on without it, ``degraded`` otherwise.
        :param details: function that returns lines for an operator; none if there is nothing to report. It is called
            for each report, so it must be quick and must not block.
        """
        self._sources[part].append((state, details))

    def watch_one(self, part: str, state: State, detail: Callable[[], str | None], prefix: str = "") -> None:
        """Add a source of at most one line.

        :param detail: returns the line, or ``None``.
        :param prefix: text before the line.
        """

        def details() -> Iterable[str]:
            text = detail()
            return [] if text is None else [prefix + text]

        self.watch(part, state, details)

    def report(self) -> Report:
        """Return the current state of all parts."""
        parts = {part: self._report_part(part) for part in PARTS}
        return Report(_worst(part.state for part in parts.values()), parts)

    def _report_part(self, part: str) -> PartReport:
        found = [(state, list(details())) for state, details in self._sources[part]]
        # Sources may share a line: an outage of the store is also one of its problems.
        lines = dict.fromkeys(line for _, details in found for line in details)
        return PartReport(_worst(state for state, details in found if details), list(lines))


def _worst(states: Iterable[State]) -> State:
    return max(states, key=_STATES.index, default="ready")
