"""Connection of all parts to ``/healthz``, ``/readyz`` and ``/metrics``."""

from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Final

from gateway.assembly.assembled import Assembly
from gateway.assembly.commits import guard_problems, passport_problems
from gateway.assembly.parts import Paths, Runtime
from gateway.assembly.scales import Scales
from gateway.live.state import LiveState
from gateway.runtime.disk_space import DiskSpace
from gateway.runtime.metric_types import Series
from gateway.runtime.reactor import IReactor
from gateway.store.writer import Writer
from gateway.weighing.guard import ScaleGuard

#: Maximum machines with a metric of their own: DAQ programs choose the names.
MAX_MACHINES: Final = 1000

_NOT_CHECKED: Final = "cylinders are not checked: "


def build_disk_space(reactor: IReactor, paths: Paths) -> DiskSpace:
    """Build the measurement of the free space of all folders."""
    folders = {"database": paths.database, "data": paths.data}
    return DiskSpace(reactor, folders if paths.log is None else {**folders, "log": paths.log})


def watch_all(parts: Assembly) -> None:
    """Connect all parts to ``/healthz``, ``/readyz`` and ``/metrics``."""
    watch_health(parts)
    watch_readiness(parts)
    connect_metrics(parts)


def watch_health(parts: Assembly) -> None:
    """Register the problems of all parts, in the order in which ``/healthz`` shows them."""
    runtime, pipeline = parts.runtime, parts.pipeline
    health, store, relay = runtime.health, parts.store.store, parts.store.relay
    health.watch_one(lambda: pipeline.raw_log.problem, "raw files cannot be written: ")
    health.watch(lambda: pipeline.damage.problems)
    health.watch_one(lambda: parts.retention.problem)
    health.watch(parts.storage.problems)
    health.watch_one(lambda: _waiting_statistics(pipeline.writer))
    health.watch(lambda: store.problems)
    health.watch(parts.daq.problems)
    health.watch(lambda: guard_problems(runtime, parts.commits.states))
    health.watch_one(lambda: runtime.files.problem)
    if relay is not None:
        # If the database is unavailable, only that is reported.
        health.watch_one(lambda: None if store.problems else relay.problem, "other gateways are not heard: ")
    health.watch_one(lambda: parts.store.record.problem)
    health.watch_one(lambda: None if parts.store.record_file is None else parts.store.record_file.loss)
    health.watch(lambda: parts.publisher.problems)
    health.watch(parts.access.certificates.problems)
    if parts.cylinders is not None:
        cylinders = parts.cylinders
        health.watch_one(lambda: cylinders.problem, _NOT_CHECKED)


def watch_readiness(parts: Assembly) -> None:
    """Register the sources of the state of each part in ``/readyz``."""
    runtime, pipeline, space = parts.runtime, parts.pipeline, parts.space
    readiness, store, spool = runtime.readiness, parts.store.store, parts.store.spool

    def problems_of_the_store() -> Iterable[str]:
        about_spool = None if spool is None else spool.problem
        return [problem for problem in store.problems if problem != about_spool]

    # The plant can do without a server while every commit may wait as a ticket.
    readiness.watch_one("store", "down", lambda: None if _takes_tickets(parts) else store.outage)
    readiness.watch("store", "degraded", problems_of_the_store)
    readiness.watch("store", "degraded", parts.storage.problems)
    readiness.watch_one("store", "degraded", lambda: _waiting_statistics(pipeline.writer))
    if spool is not None:
        readiness.watch_one("spool", "down", lambda: spool.outage)
        readiness.watch_one("spool", "degraded", lambda: spool.problem)
    readiness.watch("disk", "down", lambda: space.full)
    readiness.watch("disk", "degraded", lambda: space.warnings)
    readiness.watch("listeners", "down", lambda: filter(None, [listener.problem for listener in parts.listeners()]))
    readiness.watch_one("listeners", "degraded", lambda: runtime.files.problem)
    readiness.watch("scales", "degraded", lambda: _silent_scales(runtime.live, parts.scales))
    readiness.watch("scales", "degraded", lambda: guard_problems(runtime, parts.commits.states))
    readiness.watch("scales", "degraded", lambda: passport_problems(runtime))
    readiness.watch_one("raw", "down", lambda: pipeline.raw_log.problem, "raw files cannot be written: ")
    readiness.watch("raw", "degraded", lambda: pipeline.damage.problems)
    readiness.watch_one("raw", "degraded", lambda: parts.retention.problem)
    if parts.cylinders is not None:
        cylinders = parts.cylinders
        readiness.watch_one("cylinders", "degraded", lambda: cylinders.problem, _NOT_CHECKED)
    readiness.watch_one("auth", "degraded", lambda: parts.open_access.warning)


def connect_metrics(parts: Assembly) -> None:
    """Set the sources of the gauges that are asked when ``/metrics`` is read."""
    runtime, scales, space = parts.runtime, parts.scales, parts.space
    counters, live, store, spool = runtime.counters, runtime.live, parts.store.store, parts.store.spool
    counters.ready.ask_one(lambda: runtime.readiness.report().is_ready)
    counters.problems.ask_one(lambda: len(runtime.health.problems()))
    counters.time.ask_one(runtime.clock.wall)
    counters.store_up.ask_one(lambda: store.outage is None)
    cylinders = parts.cylinders
    if cylinders is not None:
        counters.cylinders_cached.ask_one(lambda: cylinders.cached)
    if spool is not None:
        counters.spool_bytes.ask_one(lambda: spool.used_bytes)
    counters.disk_free.ask(lambda: [((name,), found.free) for name, found in space.spaces.items()])
    counters.disk_size.ask(lambda: [((name,), found.size) for name, found in space.spaces.items()])
    counters.scale_connected.ask(lambda: [((scale.scale_id,), scale.is_connected) for scale in scales.readings()])
    counters.scale_line_age.ask(
        lambda: [((scale.scale_id,), scale.line_age) for scale in scales.readings() if scale.line_age is not None]
    )
    connect_passports(runtime)
    counters.machines_connected.ask_one(lambda: sum(1 for _ in _connected_machines(live)))
    counters.machine_connected.ask(lambda: _machine_series(live))


def connect_passports(runtime: Runtime) -> None:
    """Set the sources of the gauges of the passports of scales."""
    counters, guards = runtime.counters, runtime.guards

    def series(value: Callable[[ScaleGuard], float | None]) -> Series:
        found = [(scale_id, value(guard)) for scale_id, guard in guards.own().items()]
        return [((scale_id,), number) for scale_id, number in found if number is not None]

    def deviation(guard: ScaleGuard) -> float | None:
        check = guard.passport.check
        return None if check is None else float(check.deviation_kg)

    def due_days(guard: ScaleGuard) -> float | None:
        check = guard.settings.check_weigh
        due = None if check is None else check.calibration_due
        return None if due is None else (due - runtime.clock.now().date()).days

    counters.scale_check_deviation.ask(lambda: series(deviation))
    counters.scale_zero_drift.ask(lambda: series(lambda guard: guard.passport.zero_drift_kg))
    counters.scale_zero_noise.ask(lambda: series(lambda guard: guard.passport.zero_noise_kg))
    counters.scale_calibration_due.ask(lambda: series(due_days))


def _takes_tickets(parts: Assembly) -> bool:
    """Return whether the commits of all scales may wait for PostgreSQL."""
    if parts.store.spool is None:
        return False
    guards = parts.runtime.guards.own().values()
    return all(guard.settings.commit_when_away == "ticket" for guard in guards)


def _waiting_statistics(writer: Writer) -> str | None:
    return "statistics cannot be written, and wait" if writer.is_stuck else None


def _silent_scales(live: LiveState, scales: Scales) -> list[str]:
    """Return a line for each scale of this gateway that is not connected, or has not sent a line for too long."""
    lines = []
    for scale in scales.readings():
        age, scale_id = scale.line_age, scale.scale_id
        if not scale.is_connected:
            lines.append(f"scale {scale_id} is not connected")
        elif age is None:
            lines.append(f"scale {scale_id} has not sent a line yet")
        elif live.has_scale(scale_id) and age >= live.idle_timeout(scale_id):
            lines.append(f"scale {scale_id} has not sent a line for {age:.0f} s")
    return lines


def _connected_machines(live: LiveState) -> Iterable[str]:
    return (machine for machine in live.own_machines() if live.is_here("machine", machine))


def _machine_series(live: LiveState) -> Series:
    """Return the presence of the machines of this gateway, the connected ones first."""
    gone = (machine for machine in live.own_machines() if not live.is_here("machine", machine))
    series = chain((((machine,), 1.0) for machine in _connected_machines(live)), (((name,), 0.0) for name in gone))
    return islice(series, MAX_MACHINES)
