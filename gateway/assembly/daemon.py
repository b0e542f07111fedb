"""Assembly of the whole gateway: each part is built from its settings, and handed to the parts that use it.

The daemon, the tests and the benchmarks use the same builders. A builder gets the results of earlier ones; there is no
registry that a part could look others up in.
"""

from collections.abc import Sequence
from functools import partial

from twisted.logger import Logger

from gateway.assembly.access import prepare_access
from gateway.assembly.alerts import Alerts
from gateway.assembly.assembled import Assembly
from gateway.assembly.commits import build_commits, prepare_commits
from gateway.assembly.cylinders import CylinderService, build_cylinders
from gateway.assembly.ingest import build_daq, build_scales, build_silence, prepare_machines
from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.listeners import build_listeners
from gateway.assembly.parts import Paths, Runtime
from gateway.assembly.pipeline import build_pipeline, build_retention
from gateway.assembly.record import build_publisher, check_record, close_record, open_record
from gateway.assembly.reload import LoadSettings, Reload, ReloadStep
from gateway.assembly.runtime import build_log, build_runtime
from gateway.assembly.status import build_disk_space, watch_all
from gateway.assembly.store import build_storage, build_store
from gateway.assembly.web import build_web, update_web
from gateway.config.problems import Problem
from gateway.config.settings import Settings
from gateway.runtime.lifecycle import Gateway, Stages
from gateway.runtime.listener import PortDirectory
from gateway.runtime.open_access import OpenAccess
from gateway.runtime.process import Process, import_late_modules
from gateway.runtime.reactor import IReactor


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
        push = ["gateway.alert.firebase", "firebase_admin"] if settings.fcm.cred_path else []
        publish_to = settings.record.publish_to
        import_late_modules([*push, "gateway.record.posting"] if publish_to.webhook or publish_to.gateway else push)
    for problem in warnings:
        Logger("gateway.config").warn("configuration: {problem}", problem=problem)
    paths = Paths.of(settings, process.folder)
    runtime = build_runtime(reactor, settings)
    log_control, log_step = build_log(runtime, settings, paths, process)
    parts = _assemble(runtime, settings, paths, accept_empty=accept_empty)
    watch_all(parts)
    steps = _reload_steps(parts)
    reload = Reload(reactor, load, settings, parts.scales, {"log": log_step, **steps})
    return Gateway(reactor, _stages(parts, reload), process, log_control)


def _assemble(runtime: Runtime, settings: Settings, paths: Paths, *, accept_empty: bool) -> Assembly:
    store = build_store(runtime, settings, paths, accept_empty=accept_empty)
    ports = PortDirectory()
    daq = build_daq(runtime, settings, ports)
    prepare_machines(daq, paths.folder, settings)()
    pipeline = build_pipeline(runtime, settings, paths, store.store, daq.pause)
    storage = build_storage(runtime, settings, paths, store, pipeline, daq)
    commits = build_commits(runtime, settings, paths, store)
    cylinders = commits.service.checks.cylinders = build_cylinders(runtime, settings)
    web = build_web(runtime, settings, paths, commits, pipeline, storage)
    access = ListenerAccess(runtime, settings, paths)
    listeners = build_listeners(runtime, settings, access, web, daq, ports)
    scales = build_scales(runtime, settings, access, ports)
    web.scale_list.connections = scales.connections
    return Assembly(
        paths=paths,
        runtime=runtime,
        store=store,
        commits=commits,
        publisher=build_publisher(runtime, settings, paths, store),
        pipeline=pipeline,
        storage=storage,
        retention=build_retention(runtime, settings, paths, pipeline.writer, storage.compressor),
        alerts=Alerts(runtime, settings.fcm, paths.folder),
        web=web,
        cylinders=cylinders,
        daq=daq,
        access=access,
        scales=scales,
        listeners=lambda: [*listeners, *scales.listeners],
        space=build_disk_space(runtime.reactor, paths),
        open_access=OpenAccess(lambda: [*listeners, *scales.listeners], is_controlled=settings.auth is not None),
    )


def _stages(parts: Assembly, reload: Reload) -> Stages:
    relays = [each for each in (parts.store.relay, parts.store.recovery) if each is not None]
    web, pipeline, scales, cylinders = parts.web, parts.pipeline, parts.scales, parts.cylinders

    def open_files() -> None:
        parts.access.open()
        check_record(parts.store)
        parts.storage.open()
        open_record(parts.store)
        parts.commits.pool.start()
        parts.commits.states.load()

    return Stages(
        listeners=parts.listeners,
        open=open_files,
        recover=parts.storage.recover,
        begin=web.clients.start,
        parts=[
            parts.access.certificates,
            parts.space,
            *pipeline.services,
            parts.retention,
            parts.alerts,
            parts.commits.saving,
            parts.publisher,
            *relays,
            *([] if cylinders is None else [CylinderService(cylinders)]),
            scales,
            build_silence(parts.runtime, scales),
            parts.open_access,
        ],
        factories=[scales, parts.daq],
        drained=web.traffic.drained,
        reload=reload.run,
        finish=[
            ("closing live events", web.clients.close, 0.5),
            ("saving the states of scales", parts.commits.close, 0.5),
            ("writing what waits", pipeline.writer.drain, 1.0),
            ("closing the store", parts.storage.close, 1.0),
            ("closing the record", partial(close_record, parts.store), 0.5),
        ],
    )


def _reload_steps(parts: Assembly) -> dict[str, ReloadStep]:
    """Return the parts that a reload changes, by name."""
    web, daq, folder = parts.web, parts.daq, parts.paths.folder

    def update_scales(settings: Settings) -> None:
        for factory in parts.scales.factories:
            factory.update(settings.limits.connections)

    return {
        "access control": partial(prepare_access, web.access, web.clients, folder),
        "listeners": parts.access.prepare,
        "machines": partial(prepare_machines, daq, folder),
        "commits": partial(prepare_commits, parts.runtime, parts.commits.service),
        "HTTP": lambda settings: partial(update_web, web, settings),
        "DAQ programs": lambda settings: partial(daq.update, settings.daq, settings.limits.connections),
        "scales": lambda settings: partial(update_scales, settings),
        "raw files": lambda settings: partial(parts.retention.update, settings.data),
        "open access": lambda settings: partial(parts.open_access.update, is_controlled=settings.auth is not None),
        "cylinders": lambda settings: partial(_update_cylinders, parts, settings),
        "record": lambda settings: partial(parts.publisher.update, settings.record.publish_to),
        "push messages": lambda settings: partial(parts.alerts.update, settings.fcm),
    }


def _update_cylinders(parts: Assembly, settings: Settings) -> None:
    if parts.cylinders is not None:
        parts.cylinders.update(settings.cylinders)
