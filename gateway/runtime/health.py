"""Problems of the whole gateway, as ``/healthz`` reports them."""

from collections.abc import Callable, Iterable


class Health:
    """Collector of the problems of the gateway's parts.

    A problem is one line for an operator: the part that does not work and, if known, the remedy.
    """

    def __init__(self) -> None:
        self._sources: list[Callable[[], Iterable[str]]] = []

    def watch(self, problems: Callable[[], Iterable[str]]) -> None:
        """Add a source of problems. It is called for each report, so it must be quick and must not block."""
        self._sources.append(problems)

    def watch_one(self, problem: Callable[[], str | None], prefix: str = "") -> None:
        """Add a source of at most one problem.

        :param problem: returns the problem, or ``None``.
        :param prefix: text before the problem.
        """

        def problems() -> Iterable[str]:
            text = problem()
            return [] if text is None else [prefix + text]

        self.watch(problems)

    def problems(self) -> list[str]:
        """Return all current problems, in the order in which their sources were added."""
        return [problem for source in self._sources for problem in source()]
