"""Assembly of the whole gateway: each part is built from its settings, and handed to the parts that use it.

The daemon, the tests and the benchmarks use the same builders. A builder gets the results of earlier ones; there is no
registry that a part could look others up in.
"""

from collections.abc import Sequence
from functools import partial

from twisted.logger import Logger

from gateway.assembly.access import prepare_access
from gateway.assembly.alerts import Alerts
from gateway.assembly.ingest import build_daq, build_scales, prepare_machines
from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.listeners import build_listeners
from gateway.assembly.parts import Paths, Pipeline, Runtime, StoreParts, Web
from gateway.assembly.pipeline import build_pipeline, build_retention
from gateway.assembly.reload import LoadSettings, Reload, ReloadStep
from gateway.assembly.runtime import build_log, build_runtime
from gateway.assembly.scales import Scales
from gateway.assembly.store import build_storage, build_store
from gateway.assembly.web import build_web, update_web
from gateway.config.problems import Problem
from gateway.config.settings import Settings
from gateway.ingest.daq import DaqFactory
from gateway.raw.retention import Retention
from gateway.replay.storage import Storage
from gateway.runtime.lifecycle import Gateway, Stages
from gateway.runtime.listener import PortDirectory
from gateway.runtime.process import Process, import_late_modules
from gateway.runtime.reactor import IReactor


def watch_health(
    runtime: Runtime, pipeline: Pipeline, retention: Retention, storage: Storage, parts: StoreParts, daq: DaqFactory
) -> None:
    """Register the problems of all parts, in the order in which ``/healthz`` shows them."""
    health, store, relay = runtime.health, parts.store, parts.relay
    health.watch_one(lambda: pipeline.raw_log.problem, "raw files cannot be written: ")
    health.watch(lambda: pipeline.damage.problems)
    health.watch_one(lambda: retention.problem)
    health.watch(storage.problems)
    health.watch(lambda: ["statistics cannot be written, and wait"] if pipeline.writer.is_stuck else [])
    health.watch(lambda: store.problems)
    health.watch(daq.problems)
    health.watch_one(lambda: runtime.files.problem)
    if relay is not None:
        # If the database is unavailable, only that is reported.
        health.watch_one(lambda: None if store.problems else relay.problem, "other gateways are not heard: ")


def build_gateway(
    reactor: IReactor,
    settings: Settings,
    process: Process,
    load: LoadSettings,
    warnings: Sequence[Problem] = (),
    accept_empty: bool = False,
) -> Gateway:
    """Build the whole gateway.

    :param process: options of ``twistd``.
    :param load: reads the configuration again, for a reload.
    :param warnings: problems of the configuration, to log.
    :param accept_empty: whether to start although the file of commits is lost.
    """
    if process.changes_identity:
        import_late_modules(["gateway.alert.firebase", "firebase_admin"] if settings.fcm.cred_path else [])
    for problem in warnings:
        Logger("gateway.config").warn("configuration: {problem}", problem=problem)
    paths = Paths.of(settings, process.folder)
    runtime = build_runtime(reactor, settings)
    log_control = build_log(runtime, settings, paths, process)
    parts = build_store(runtime, settings, paths, accept_empty=accept_empty)
    ports = PortDirectory()
    daq = build_daq(runtime, settings, ports)
    prepare_machines(daq, paths.folder, settings)()
    pipeline = build_pipeline(runtime, settings, paths, parts.store, daq.pause)
    storage = build_storage(runtime, settings, paths, parts, pipeline, daq)
    retention = build_retention(runtime, settings, paths, pipeline.writer, storage.compressor)
    alerts = Alerts(runtime, settings.fcm, paths.folder)
    web = build_web(runtime, settings, paths, parts.store, pipeline, storage.readers)
    access = ListenerAccess(runtime, settings, paths)
    listeners = build_listeners(runtime, settings, access, web, daq, ports)
    scales = build_scales(runtime, settings, access, ports)
    watch_health(runtime, pipeline, retention, storage, parts, daq)
    runtime.health.watch(access.certificates.problems)
    steps = _reload_steps(paths, web, daq, scales, retention, alerts)
    steps["listeners"] = access.prepare
    reload = Reload(reactor, load, settings, scales, steps)
    relays = [] if parts.relay is None else [parts.relay]

    def open_files() -> None:
        access.open()
        storage.open()

    stages = Stages(
        listeners=lambda: [*listeners, *scales.listeners],
        open=open_files,
        recover=storage.recover,
        begin=web.clients.start,
        parts=[access.certificates, *pipeline.services, retention, alerts, *relays, scales],
        factories=[scales, daq],
        drained=web.traffic.drained,
        reload=reload.run,
        finish=[
            ("closing live events", web.clients.close, 0.5),
            ("writing what waits", pipeline.writer.drain, 1.0),
            ("closing the store", storage.close, 1.0),
        ],
    )
    return Gateway(reactor, stages, process, log_control)


def _reload_steps(
    paths: Paths, web: Web, daq: DaqFactory, scales: Scales, retention: Retention, alerts: Alerts
) -> dict[str, ReloadStep]:
    """Return the parts that a reload changes, by name."""

    def update_scales(settings: Settings) -> None:
        for factory in scales.factories:
            factory.update(settings.limits.connections)

    return {
        "access control": partial(prepare_access, web.access, web.clients, paths.folder),
        "machines": partial(prepare_machines, daq, paths.folder),
        "HTTP": lambda settings: partial(update_web, web, settings),
        "DAQ programs": lambda settings: partial(daq.update, settings.daq, settings.limits.connections),
        "scales": lambda settings: partial(update_scales, settings),
        "raw files": lambda settings: partial(retention.update, settings.data),
        "push messages": lambda settings: partial(alerts.update, settings.fcm),
    }
