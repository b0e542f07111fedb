"""The state of the whole gateway in words, as ``/healthz`` reports it."""

from collections.abc import Callable, Iterable


class Health:
    """Collects the problems of the gateway's parts.

    A problem is one line for an operator: what does not work, and what to do about it where that is known.
    """

    def __init__(self) -> None:
        self._sources: list[Callable[[], Iterable[str]]] = []

    def watch(self, problems: Callable[[], Iterable[str]]) -> None:
        """Ask a part for its problems whenever somebody wants to know; it must be quick and must not block."""
        self._sources.append(problems)

    def problems(self) -> list[str]:
        """Return every problem there is now, in the order in which the parts were added."""
        return [problem for source in self._sources for problem in source()]
