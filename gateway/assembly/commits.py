"""Builder of the commits of scales, and their connection to ``/healthz``."""

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.application.internet import TimerService

from gateway.assembly.parts import Commits, Paths, Runtime, StoreParts
from gateway.commits.armed_states import ArmedStates
from gateway.commits.service import CommitService
from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings
from gateway.runtime.threads import pool_of

#: Seconds between looks for scales that were emptied.
_SAVE_EVERY: Final = 1.0

#: Lines of ``/readyz`` for warnings of a passport.
_PASSPORT_LINES: Final = {
    "out_of_control": "the last check was outside check_weigh.control_kg; adjust the scale and check it again",
    "check_weigh_due": "the check with a reference weight is overdue (check_weigh.every_days)",
    "calibration_due": "the calibration is overdue (check_weigh.calibration_due)",
}


def build_commits(runtime: Runtime, settings: Settings, paths: Paths, parts: StoreParts) -> Commits:
    """Build the commits of all scales."""
    clock, guards = runtime.clock, runtime.guards
    service = CommitService(runtime.live, guards, parts.store, runtime.bus, clock, runtime.counters)
    pool = pool_of(1, "scales")
    states = ArmedStates(runtime.reactor, clock, paths.database, guards.own, pool)
    service.checks.states = states
    service.checks.record = parts.record
    saving = TimerService(_SAVE_EVERY, states.save_if_changed)
    saving.clock = runtime.reactor
    update_commits(runtime, service, settings)
    return Commits(service, parts.record, states, saving, pool)


def update_commits(runtime: Runtime, service: CommitService, settings: Settings) -> None:
    """Give the guards of all scales other settings."""
    runtime.guards.update(settings.scale_settings())
    service.defaults = ScaleConnection(via="default").with_defaults(settings.scale)


def prepare_commits(runtime: Runtime, service: CommitService, settings: Settings) -> Callable[[], None]:
    """Return the function that gives the guards of all scales other settings, for a reload."""
    return partial(update_commits, runtime, service, settings)


def guard_problems(runtime: Runtime, states: ArmedStates) -> list[str]:
    """Return the problems of guards, one line each."""
    now = runtime.clock.monotonic()
    lines = [
        f"scale {scale_id} sends net weights only, and scales.{scale_id}.accept has gross only: clear its tare"
        for scale_id, guard in runtime.guards.own().items()
        if guard.is_only_net(now)
    ]
    return lines if states.problem is None else [*lines, states.problem]


def passport_problems(runtime: Runtime) -> list[str]:
    """Return a line for each scale that is out of control, or whose check or calibration is overdue."""
    today = runtime.clock.now().date()
    return [
        f"scale {scale_id}: {_PASSPORT_LINES[warning]}"
        for scale_id, guard in runtime.guards.own().items()
        for warning in guard.passport.warnings(guard.settings.check_weigh, today)
        if warning in _PASSPORT_LINES
    ]
