"""Reload of the configuration by a running gateway."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gateway.assembly.scales import Scales
from gateway.config.changes import changed_keys, restart_keys, with_values_of
from gateway.config.problems import Problem
from gateway.config.settings import Settings
from gateway.runtime.listener import StartError
from gateway.runtime.reactor import IReactor

log = Logger()

#: Reads and checks the configuration, and returns it with its problems; ``None`` if it cannot be read. It blocks.
LoadSettings: TypeAlias = Callable[[], tuple[Settings | None, Sequence[Problem]]]

#: Prepares a part for other settings in a thread, without changing anything, and returns the function that changes it
#: in the reactor; raises :class:`StartError` if a file cannot be used.
ReloadStep: TypeAlias = Callable[[Settings], Callable[[], None]]

#: Maximum keys that a log line names.
_MAX_KEYS: Final = 50


class Reload:
    """Changes of a running gateway to the configuration file as it is now.

    The file is read and checked as a whole first; with any problem, nothing changes.

    :param running: settings in force.
    :param steps: parts to change, by name.
    """

    def __init__(
        self,
        reactor: IReactor,
        load: LoadSettings,
        running: Settings,
        scales: Scales,
        steps: Mapping[str, ReloadStep],
    ) -> None:
        self._reactor = reactor
        self._load = load
        self._running = running
        self._scales = scales
        self._steps = steps

    async def run(self) -> None:
        """Reload the configuration; problems are logged."""
        try:
            await self._run()
        except StartError as error:
            log.error("SIGHUP: {problem}", problem=error)
            log.error("SIGHUP: the configuration is not reloaded, and nothing has changed")

    async def _run(self) -> None:
        pool = self._reactor.getThreadPool()
        settings, problems = await deferToThreadPool(self._reactor, pool, self._load)
        for problem in problems:
            (log.error if problem.is_fatal else log.warn)("SIGHUP: {problem}", problem=problem)
        if settings is None or any(problem.is_fatal for problem in problems):
            log.error("SIGHUP: the configuration is not reloaded, and nothing has changed")
            return
        held = restart_keys(self._running, settings)
        target = with_values_of(self._running, settings, held)
        changes = await deferToThreadPool(self._reactor, pool, self._prepare, target)
        await self._scales.change(target)
        for name, change in changes.items():
            try:
                change()
            except Exception:  # the other parts must still get their settings
                log.failure("SIGHUP: cannot change {name}", name=name)
        changed = changed_keys(self._running, target)
        self._running = target
        if changed:
            log.info("SIGHUP: the configuration is reloaded; changed: {keys}", keys=_shown(changed))
        else:
            log.info("SIGHUP: the configuration is reloaded; no key has changed, and its files were read again")
        if held:
            log.warn("SIGHUP: restart the gateway to change {keys}", keys=_shown(held))

    def _prepare(self, settings: Settings) -> dict[str, Callable[[], None]]:
        return {name: prepare(settings) for name, prepare in self._steps.items()}


def _shown(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MAX_KEYS} more" if len(keys) > _MAX_KEYS else ""
    return ", ".join(keys[:_MAX_KEYS]) + more
