"""Assembly of the gateway: each part is built here from its settings, and handed to the parts that use it.

The daemon, the tests and the benchmarks use the same builders. A builder gets the results of earlier ones; there is no
registry that a part could look others up in.
"""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from twisted.application.service import IService
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from twisted.web.resource import IResource

from gateway.bus.bus import Bus
from gateway.config.endpoints import display_address
from gateway.config.problems import Problem
from gateway.config.settings import ScaleConnection, Settings, tcp_endpoint
from gateway.ingest.daq import DaqFactory
from gateway.ingest.dialer import dialled
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.serial import SerialLine, SerialService, open_serial_port
from gateway.ingest.transport import served_ports
from gateway.live.state import LiveState
from gateway.model.records import Batch, Presence
from gateway.parts import Ingest, Paths, Pipeline, Runtime, StoreParts, Web
from gateway.raw.damage import DamageLog
from gateway.raw.log import RawLog
from gateway.raw.retention import Retention
from gateway.replay.recovery import Recovery, recover
from gateway.replay.storage import Storage
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.health import Health
from gateway.runtime.lifecycle import Gateway, LogControl, Stages
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import Listener, PortDirectory, StartError
from gateway.runtime.logs import BufferingObserver, LogOutput
from gateway.runtime.metrics import Counters
from gateway.runtime.open_files import SPARE, SPARE_OF_HTTP, OpenFiles
from gateway.runtime.paths import effective_user, explain_unusable
from gateway.runtime.ports import SharedPorts
from gateway.runtime.process import Process, import_late_modules
from gateway.runtime.reactor import IReactor
from gateway.runtime.threads import pool_of
from gateway.stats.rollup import Rollup
from gateway.stats.statistics import Statistics
from gateway.store.interface import Store
from gateway.store.writer import Writer
from gateway.web.clients.registry import LiveClients
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.root import Root
from gateway.web.http.site import GatewaySite
from gateway.web.push.socketio_endpoint import MachineNamespaces
from gateway.web.push.sse_endpoint import SseResource
from gateway.web.push.subscription import SubscriptionContext
from gateway.web.push.ws_endpoint import EventsWebSocketFactory, EventsWebSocketResource
from gateway.web.rest.samples import MachineApi
from gateway.web.rest.scales import ScaleApi
from gateway.web.rest.statistics import SioApi, StatApi
from gateway.web.rest.status import StatusApi
from gateway.web.schema.asyncapi import AsyncApiResource
from gateway.web.socketio.engine import EngineServer
from gateway.web.socketio.server import SocketServer
from gateway.web.socketio.session import EngineSettings


def build_runtime(reactor: IReactor, settings: Settings, clock: WallClock | None = None) -> Runtime:
    """Build what all other parts use.

    :param clock: clock; ``None`` for the system's, in the configured zone.
    """
    clock = clock or WallClock(zone_named(settings.timezone))
    counters = Counters()
    files = OpenFiles(clock, counters, LimitedLog(Logger("gateway.runtime.open_files"), clock, counters))
    bus = Bus(clock, counters, settings.limits.backlog_events, settings.limits.backlog_bytes)
    timeouts = {scale_id: line.idle_timeout_sec or 0.0 for scale_id, line in settings.lines().items()}
    return Runtime(reactor, clock, counters, Health(), files, bus, LiveState(bus, clock, timeouts))


def build_store(runtime: Runtime, settings: Settings, paths: Paths, *, accept_empty: bool = False) -> StoreParts:
    """Build the store and, on PostgreSQL, the relay to other gateways.

    :param accept_empty: whether to start although the file of commits is lost.
    """
    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    if settings.database.url is None:
        from gateway.store.sqlite.store import SqliteStore

        embedded = SqliteStore(reactor, clock, counters, paths.database, accept_empty=accept_empty)
        return StoreParts(embedded, embedded)
    return _build_postgres(runtime, settings, settings.database.url, paths)


def _build_postgres(runtime: Runtime, settings: Settings, url: str, paths: Paths) -> StoreParts:
    # Imported only if PostgreSQL is configured: these modules take 6 MB.
    from gateway.relay.service import Relay
    from gateway.relay.settings import RelaySettings
    from gateway.store.postgres.notify import PostgresChannel
    from gateway.store.postgres.store import PostgresStore
    from gateway.store.spool.spool import Spool

    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    name = settings.gateway.name or platform.node()
    spool = Spool(reactor, clock, counters, paths.database, settings.database.spool_mb * 2**20)
    store = PostgresStore(reactor, clock, counters, spool, url, name)
    channel = PostgresChannel(reactor, url, name)
    identity = RelaySettings(name, settings.scale.idle_timeout_sec)
    relay = Relay(reactor, runtime.bus, runtime.live, clock, counters, channel, identity)
    first = (lambda: _first_number(spool.identity)) if settings.server.share_ports else None
    return StoreParts(store, spool, relay, first)


def _first_number(identity: str) -> int:
    """Return the number at which a process begins to number its events, far from others that share its ports.

    There are 2**32 numbers from each beginning to the next, and all are below 2**52: JavaScript counts to 2**53.

    :param identity: identity of the spool, in hexadecimal digits.
    """
    return (1 + int(identity, 16) % (2**20 - 1)) << 32


def build_pipeline(
    runtime: Runtime, settings: Settings, paths: Paths, store: Store, pause: Callable[[bool], None]
) -> Pipeline:
    """Build the sinks of the bus.

    :param pause: pauses and resumes the connections of DAQ programs: back pressure of the writer.
    """
    reactor, bus, clock, counters = runtime.reactor, runtime.bus, runtime.clock, runtime.counters
    # Sinks get a record in the order in which they were attached: statistics close an hour before the raw log gets the
    # batch that closed it, and read from the raw log how many bytes that hour counts.
    writer = Writer(reactor, bus, counters, store, pause)
    damage = DamageLog(clock, counters)
    raw_log = RawLog(reactor, clock, counters, paths.data, writer.knows, damage)
    new_rollup = partial(Rollup, clock.zone, settings.stat)
    rollup = new_rollup()
    statistics = Statistics(reactor, bus, clock, counters, rollup, raw_log, writer.add)
    bus.attach(Batch, raw_log.name, raw_log.write)
    bus.attach(Presence, "numpy", partial(_import_numpy, reactor))
    return Pipeline(writer, raw_log, damage, rollup, new_rollup, [writer, raw_log, statistics])


def _import_numpy(reactor: IReactor, presence: Presence) -> None:
    """Import numpy in a thread, before the first sensor has many samples: it takes 50 ms."""
    if presence.source == "machine" and "gateway.timeseries.numpy_sums" not in sys.modules:
        reactor.callInThread(import_module, "gateway.timeseries.numpy_sums")


def build_retention(runtime: Runtime, settings: Settings, paths: Paths, writer: Writer, pool: ThreadPool) -> Retention:
    """Build the service that compresses and removes old raw files.

    :param pool: pool of one thread, so that reading raw files does not wait for compression.
    """
    reactor, clock, counters = runtime.reactor, runtime.clock, runtime.counters
    # Samples without a row may be in a raw file only.
    return Retention(reactor, clock, counters, pool, paths.data, settings.data, is_busy=lambda: writer.is_stuck)


def build_alerts(runtime: Runtime, settings: Settings, paths: Paths) -> list[IService]:
    """Build the services that send push messages; none without ``fcm.cred_path``."""
    if settings.fcm.cred_path is None:
        Logger("gateway.alert.push").warn("push messages are off: fcm.cred_path is not set")
        return []
    from gateway.alert.firebase import connect_firebase
    from gateway.alert.push import PushAlert
    from gateway.alert.sender import PushSender

    connect = partial(connect_firebase, os.path.join(paths.folder, settings.fcm.cred_path))
    reactor, sender = runtime.reactor, PushSender(runtime.reactor, connect)
    return [PushAlert(reactor, runtime.bus, runtime.clock, runtime.counters, settings.fcm, sender)]


def build_daq(runtime: Runtime, settings: Settings, ports: PortDirectory) -> DaqFactory:
    """Build the factory of the connections of DAQ programs.

    :param ports: ports of other protocols, for the log line about a client on the wrong port.
    """
    clock, counters = runtime.clock, runtime.counters
    warnings = LimitedLog(Logger("gateway.ingest.daq"), clock, counters)
    limit = settings.limits.connections
    factory = DaqFactory(runtime.reactor, runtime.bus, clock, counters, warnings, settings.daq, limit)
    factory.find_ports = partial(served_ports, ports)
    return factory


def build_ingest(runtime: Runtime, settings: Settings, ports: PortDirectory) -> Ingest:
    """Build the connections of all scales.

    :param ports: directory that the listeners are added to.
    """
    clock, counters, reactor = runtime.clock, runtime.counters, runtime.reactor
    listening = _listening_reactor(reactor, settings)
    log = LimitedLog(Logger("gateway.ingest.scale"), clock, counters)
    factories: list[ScaleFactory] = []
    listeners: list[Listener] = []
    services: list[IService] = []
    for scale_id, line in settings.lines().items():
        factory = ScaleFactory(scale_id, runtime.bus, clock, counters, log, settings.limits.connections)
        factories.append(factory)
        if line.listen is not None:
            key = f"scales.{scale_id}" if settings.scales else "scale.port"
            host_key = None if settings.scales else "server.host" if settings.scale.host is None else "scale.host"
            listener = Listener(key, serverFromString(listening, line.listen), factory, host_key)
            listener.guard(reactor, runtime.files, SPARE)
            ports.add_scale(listener)
            listeners.append(listener)
        elif line.connect is not None:
            endpoint = clientFromString(reactor, line.connect)
            services.append(dialled(endpoint, factory, reactor, display_address(line.connect)))
        else:
            services.append(SerialService(_serial_line(line), factory, reactor, partial(open_serial_port, reactor)))
    return Ingest(factories, listeners, services)


def _listening_reactor(reactor: IReactor, settings: Settings) -> IReactor | SharedPorts:
    return SharedPorts(reactor) if settings.server.share_ports else reactor


def _serial_line(line: ScaleConnection) -> SerialLine:
    return SerialLine(line.serial or "", line.baudrate, line.bytesize, line.parity, line.stopbits)


def build_web(
    runtime: Runtime, settings: Settings, paths: Paths, store: Store, pipeline: Pipeline, readers: ThreadPool
) -> Web:
    """Build the site and all its resources.

    :param readers: thread pool that reads raw files.
    """
    reactor, bus, live, clock = runtime.reactor, runtime.bus, runtime.live, runtime.clock
    counters, limits = runtime.counters, settings.limits
    log = LimitedLog(Logger("gateway.web.http"), clock, counters)
    clients = LiveClients(counters, limits.subscribers)
    context = SubscriptionContext(reactor, bus, live, clock, counters, limits.subscriber_bytes)
    checks = HostChecks(settings.server.cors_origins, settings.server.names, platform.node())
    traffic = Traffic(counters, log, checks, limits.body_bytes)
    scales = ScaleApi(live, store, bus, clock, counters, settings).resource()
    machines = MachineApi(reactor, clock, paths.data, readers, pipeline.raw_log.flush, pipeline.damage).app.resource()
    engine = EngineServer(
        reactor,
        SocketServer(reactor, MachineNamespaces(bus, live).find, max_attached=limits.body_bytes),
        clients,
        counters,
        log,
        EngineSettings(max_payload=limits.body_bytes, max_waiting=limits.subscriber_bytes),
    )
    resources: dict[str, IResource] = {
        "api": Root({"v1": Root({"machines": machines}, scales)}, scales),
        "stat": StatApi(store).app.resource(),
        "sio": SioApi(live).app.resource(),
        "socket.io": engine,
        "ws": EventsWebSocketResource(EventsWebSocketFactory(context, clients, log)),
        "events": SseResource(context, clients),
        "asyncapi.json": AsyncApiResource(),
    }
    status = StatusApi(reactor, live, counters, runtime.health.problems).app.resource()
    site = GatewaySite(reactor, Root(resources, status), traffic, counters, limits.connections)
    return Web(site, traffic, clients)


def build_listeners(
    runtime: Runtime, settings: Settings, web: Web, daq: DaqFactory, ports: PortDirectory
) -> list[Listener]:
    """Build the listeners of HTTP and of DAQ programs.

    :param ports: directory that the listener of HTTP is added to.
    """
    reactor, server = runtime.reactor, settings.server
    listening = _listening_reactor(reactor, settings)
    endpoint = partial(tcp_endpoint, server.host)
    http = Listener("server.port", serverFromString(listening, endpoint(server.port)), web.site, "server.host")
    http.guard(reactor, runtime.files, SPARE_OF_HTTP)
    ports.http_listener = http
    tcp = Listener("server.tcp_port", serverFromString(listening, endpoint(server.tcp_port)), daq, "server.host")
    tcp.guard(reactor, runtime.files, SPARE)
    if server.own_port is None:
        return [http, tcp]
    own_endpoint = serverFromString(reactor, endpoint(server.own_port))
    own = Listener("server.own_port", own_endpoint, web.site, "server.host")
    own.guard(reactor, runtime.files, SPARE_OF_HTTP)
    return [http, tcp, own]


def build_storage(
    runtime: Runtime, settings: Settings, paths: Paths, parts: StoreParts, pipeline: Pipeline, daq: DaqFactory
) -> Storage:
    """Build what opens, recovers and closes the store."""
    readers, compressor = pool_of(2, "files"), pool_of(1, "retention")
    in_thread = partial(deferToThreadPool, runtime.reactor, readers)
    remember = daq.machines.remember

    async def recover_parts(is_running: Callable[[], bool]) -> frozenset[str]:
        rollup, new_rollup, damage = pipeline.rollup, pipeline.new_rollup, pipeline.damage
        recovery = Recovery(paths.data, runtime.clock.zone, rollup, new_rollup, damage, lambda: not is_running())
        return await recover(recovery, in_thread, parts.store, runtime.live, pipeline.writer, runtime.clock, remember)

    return Storage(
        folder=paths.folder,
        data=paths.data,
        database=paths.database,
        has_url=settings.database.url is not None,
        store=parts.store,
        numbers=parts.numbers,
        bus=runtime.bus,
        readers=readers,
        compressor=compressor,
        recover_parts=recover_parts,
        first_number=parts.first_number,
    )


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


def build_log(runtime: Runtime, settings: Settings, paths: Paths, process: Process) -> LogControl:
    """Build the daemon's log."""
    section = settings.logger
    output = LogOutput(runtime.clock, runtime.counters, paths.log, section.level, section.keep_days)

    def open_log() -> None:
        try:
            # Otherwise a daemon that runs as root and cannot start would leave log files that belong to root.
            with effective_user(process.uid, process.gid):
                output.open()
        except OSError as error:
            raise StartError(f"logger.path: {explain_unusable(error, paths.log)}") from error

    return LogControl(BufferingObserver(output), open_log, output.reopen, runtime.counters.report_log)


def build_gateway(
    reactor: IReactor,
    settings: Settings,
    process: Process,
    warnings: Sequence[Problem] = (),
    accept_empty: bool = False,
) -> Gateway:
    """Build the whole gateway.

    :param process: options of ``twistd``.
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
    pipeline = build_pipeline(runtime, settings, paths, parts.store, daq.pause)
    storage = build_storage(runtime, settings, paths, parts, pipeline, daq)
    retention = build_retention(runtime, settings, paths, pipeline.writer, storage.compressor)
    alerts = build_alerts(runtime, settings, paths)
    web = build_web(runtime, settings, paths, parts.store, pipeline, storage.readers)
    listeners = build_listeners(runtime, settings, web, daq, ports)
    ingest = build_ingest(runtime, settings, ports)
    watch_health(runtime, pipeline, retention, storage, parts, daq)
    relays = [] if parts.relay is None else [parts.relay]
    stages = Stages(
        listeners=[*listeners, *ingest.listeners],
        open=storage.open,
        recover=storage.recover,
        parts=[*pipeline.services, retention, *alerts, *relays, *ingest.services],
        factories=[*ingest.factories, daq],
        drained=web.traffic.drained,
        finish=[
            ("closing live events", web.clients.close, 0.5),
            ("writing what waits", pipeline.writer.drain, 1.0),
            ("closing the store", storage.close, 1.0),
        ],
    )
    return Gateway(reactor, stages, process, log_control)
