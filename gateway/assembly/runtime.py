"""Builders of the parts that all others use: clock, counters, health, live state, log."""

from functools import partial

from twisted.logger import Logger

from gateway.assembly.parts import Paths, Runtime
from gateway.assembly.reload import ReloadStep
from gateway.bus.bus import Bus
from gateway.config.settings import Settings
from gateway.live.state import LiveState
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.health import Health
from gateway.runtime.lifecycle import LogControl
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import StartError
from gateway.runtime.logs import BufferingObserver, LogOptions, LogOutput
from gateway.runtime.metrics import Counters
from gateway.runtime.open_files import OpenFiles
from gateway.runtime.paths import effective_user, explain_unusable
from gateway.runtime.process import Process
from gateway.runtime.reactor import IReactor
from gateway.runtime.readiness import Readiness
from gateway.weighing.registry import Guards


def build_runtime(reactor: IReactor, settings: Settings, clock: WallClock | None = None) -> Runtime:
    """Build what all other parts use.

    :param clock: clock; ``None`` for the system's, in the configured zone.
    """
    clock = clock or WallClock(zone_named(settings.timezone))
    counters = Counters()
    files = OpenFiles(clock, counters, LimitedLog(Logger("gateway.runtime.open_files"), clock, counters))
    bus = Bus(clock, counters, settings.limits.backlog_events, settings.limits.backlog_bytes)
    scales = settings.scale_settings()
    guards = Guards(scales)
    timeouts = {scale_id: line.idle_timeout_sec or 0.0 for scale_id, line in scales.items()}
    live = LiveState(bus, clock, timeouts, guards=guards)
    return Runtime(reactor, clock, counters, Health(), Readiness(), files, bus, live, guards)


def log_options(settings: Settings, paths: Paths) -> LogOptions:
    """Return the options of the log, at the start and for :meth:`LogOutput.update`."""
    section = settings.logger
    return LogOptions(paths.log, section.level, section.keep_days, section.format)


def build_log(runtime: Runtime, settings: Settings, paths: Paths, process: Process) -> tuple[LogControl, ReloadStep]:
    """Build the daemon's log, and the step of a reload that changes it."""
    output = LogOutput(runtime.clock, runtime.counters, log_options(settings, paths))

    def open_log() -> None:
        try:
            # Otherwise a daemon that runs as root and cannot start would leave log files that belong to root.
            with effective_user(process.uid, process.gid):
                output.open()
        except OSError as error:
            raise StartError(f"logger.path: {explain_unusable(error, paths.log or '')}") from error

    control = LogControl(BufferingObserver(output), open_log, output.reopen, runtime.counters.report_log)
    return control, lambda settings: partial(output.update, log_options(settings, paths))
