"""The ``twistd`` plugin's options and service: the one place where everything is put together.

Modules that import the reactor are imported only in :func:`makeService`: ``twistd`` reads this module before it has
chosen one. So are modules that load slowly, because nothing handles signals until the options are read.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import glob
import os
import platform
import pwd
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.application.service import IService
from twisted.python import usage

from gateway.runtime.signals import Signals

if TYPE_CHECKING:
    from gateway.config.problems import Problem
    from gateway.config.settings import ScaleConnection, Settings


#: Modules that would otherwise be imported late, after ``twistd`` has changed its user or its root directory: the new
#: user may have no right to read them, or may not find them.
_IMPORTED_LATER: Final = (
    "encodings.idna",
    "gateway.store.postgres.schema",
    "gateway.store.spool.schema",
    "gateway.store.sqlite.schema",
    "gateway.timeseries.numpy_sums",
    "idna",
    "importlib.readers",
    "importlib.resources.readers",
)


class Options(usage.Options):
    """Options of ``twistd cynow-gateway``."""

    synopsis = "[options]"
    longdesc = "Replaces the scale gateway and the monitoring server. See docs/configuration.rst."
    optParameters: ClassVar = [["config", "c", None, "The configuration, a YAML file; without it, every default."]]
    optFlags: ClassVar = [
        ["check", None, "Check the configuration, print every problem, and exit."],
        [
            "accept-empty-store",
            None,
            "Go on without the file of commits that was here and is lost; for one start only.",
        ],
    ]

    settings: Settings
    #: Problems that do not keep the gateway from starting.
    warnings: list[Problem]

    def __init__(self) -> None:
        super().__init__()
        self.signals = Signals()

    def postOptions(self) -> None:
        if self.parent is not None and not self["check"]:
            self.signals.install()
        from gateway.config.cross_checks import CrossChecks
        from gateway.config.loader import ConfigError, load

        path = self["config"]
        problems: list[Problem] = []
        broken: frozenset[str] = frozenset()
        settings: Settings | None
        try:
            settings = self.settings = load(None if path is None else Path(path), os.environ, line_problem)
        except ConfigError as error:
            problems, settings, broken = error.problems, error.rest, error.broken
        if settings is not None:
            twistd: Any = self.parent or {}
            folder = _working_directory(None, twistd.get("rundir") or ".")
            problems = [
                *problems,
                *([] if "timezone" in broken else zone_problems(settings)),
                *CrossChecks(settings, os.environ, tcp_address, folder, broken).problems(),
            ]
        if self["check"]:
            for problem in problems:
                sys.stderr.write(f"{problem}\n")
            if not problems:
                sys.stdout.write(f"{path or 'the default configuration'}: no problem\n")
            raise SystemExit(1 if problems else 0)
        fatal = [problem for problem in problems if problem.is_fatal]
        if fatal:
            more = f" (and {len(problems) - 1} more: see --check)" if len(problems) > 1 else ""
            raise SystemExit(f"cynow-gateway: {fatal[0]}{more}")
        self.warnings = problems


def zone_problems(settings: Settings) -> list[Problem]:
    """Whether the machine's own zone, where that is meant, can be told."""
    from gateway.config.problems import Problem
    from gateway.runtime.clock import zone_named

    try:
        zone_named(settings.timezone)
    except (KeyError, ValueError, OSError) as error:
        return [Problem("timezone", f"the machine's own zone cannot be told ({error}): name one")]
    return []


def line_problem(kind: str, text: str) -> str:
    """Return the objection of Twisted, pyserial or libpq to a scale's line or a database's URL, or an empty string."""
    if kind == "url":
        from gateway.store.postgres.address import url_problem

        return url_problem(text)
    if kind == "serial":
        try:
            import serial  # noqa: F401 - whether it is there
        except ImportError:
            return "serial lines need pyserial: pip install 'cynow-gateway[serial]'"
        return ""
    from gateway.config.endpoints import endpoint_problem
    from gateway.config.hosts import host_problem

    problem = endpoint_problem(kind, text)
    address = None if problem else tcp_address(kind, text)
    if address is None:
        return problem
    if kind == "connect" and not address[0]:
        return "not a valid endpoint: it lacks the host; expected tcp:HOST:PORT"
    return host_problem(address[0])


def tcp_address(kind: str, text: str) -> tuple[str, int] | None:
    """Return the interface or host, and the port, of a TCP endpoint; ``None`` for another kind.

    :param kind: ``listen`` or ``connect``.
    """
    from twisted.internet.endpoints import clientFromString, serverFromString
    from twisted.internet.protocol import Factory
    from twisted.internet.testing import MemoryReactorClock

    if text.startswith("systemd:"):
        # Its socket is already open, and listening would take it over.
        return None
    reactor = MemoryReactorClock()
    try:
        # Nothing is opened: this reactor only records the requests.
        if kind == "listen":
            serverFromString(reactor, text).listen(Factory())
            return next(((interface, port) for port, *_, interface in [*reactor.tcpServers, *reactor.sslServers]), None)
        clientFromString(reactor, text).connect(Factory())
    except Exception:  # each kind of endpoint has errors of its own, and `line_problem` reports them
        return None
    return next(((host, port) for host, port, *_ in [*reactor.tcpClients, *reactor.sslClients]), None)


def shown_address(endpoint: str) -> str:
    """Return the address of a client endpoint for log lines: ``10.0.0.7:4002`` for ``tcp:10.0.0.7:4002``."""
    address = tcp_address("connect", endpoint)
    return endpoint if address is None else f"{address[0]}:{address[1]}"


def makeService(options: Options, reactor: Any = None) -> IService:
    """Put the gateway together.

    :param options: read already.
    :param reactor: ``twistd`` hands none in, and means the installed one.
    """
    options.signals.begin_start()
    # What is made now lives as long as the process: looking for garbage in it is a tenth of the start.
    gc.disable()
    try:
        return _gateway(options, reactor)
    finally:
        gc.freeze()
        gc.enable()


def _gateway(options: Options, reactor: Any) -> IService:
    if reactor is None:
        from twisted.internet import reactor

        # Twisted's own clock is the wall clock: when that is set back by an hour, every timer would be an hour late.
        reactor.seconds = time.monotonic  # type: ignore[attr-defined]  # of every reactor of Twisted's
    from twisted.internet.endpoints import clientFromString, serverFromString
    from twisted.internet.threads import deferToThreadPool
    from twisted.logger import Logger
    from twisted.web.resource import IResource

    from gateway.bus.bus import Bus
    from gateway.config.settings import tcp_endpoint
    from gateway.ingest.daq import DaqFactory
    from gateway.ingest.dialer import dialled
    from gateway.ingest.scale import ScaleFactory
    from gateway.ingest.serial import SerialService
    from gateway.live.state import LiveState
    from gateway.model.records import Batch, Presence
    from gateway.raw.damage import DamageLog
    from gateway.raw.log import RawLog
    from gateway.raw.retention import Retention
    from gateway.replay.recovery import Recovery, recover
    from gateway.runtime.access import may_access
    from gateway.runtime.clock import WallClock, zone_named
    from gateway.runtime.directory_lock import DirectoryInUse, DirectoryLock, OldServerLock
    from gateway.runtime.health import Health
    from gateway.runtime.lifecycle import Gateway
    from gateway.runtime.limited_log import LimitedLog
    from gateway.runtime.listener import Listener, StartError
    from gateway.runtime.logs import BufferingObserver, LogOutput
    from gateway.runtime.metrics import Counters
    from gateway.runtime.open_files import SPARE, SPARE_OF_HTTP, OpenFiles
    from gateway.runtime.ports import SharedPorts
    from gateway.runtime.threads import pool_of
    from gateway.stats.rollup import Rollup
    from gateway.stats.statistics import Statistics
    from gateway.store.event_numbers import EventNumberReserve
    from gateway.store.interface import SEQ_BLOCK, DirectoryUnusable, Store, StoreUnavailable
    from gateway.store.sqlite.store import SqliteStore
    from gateway.store.writer import Writer
    from gateway.web.http.host_checks import HostChecks
    from gateway.web.http.request import Traffic
    from gateway.web.http.root import Root
    from gateway.web.http.site import GatewaySite
    from gateway.web.push.clients import LiveClients
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

    settings = options.settings
    foreground = bool(options.parent["nodaemon"]) if options.parent is not None else True
    twistd: Any = options.parent or {}
    below = _working_directory(twistd.get("chroot"), twistd.get("rundir") or ".")
    if any(twistd.get(option) is not None for option in ("uid", "gid", "chroot")):
        for module in [
            *_IMPORTED_LATER,
            *(["gateway.alert.firebase", "firebase_admin"] if settings.fcm.cred_path else []),
        ]:
            import_module(module)
    data_path = os.path.join(below, settings.data.path)
    database_path = os.path.join(below, settings.database.path)

    clock = WallClock(zone_named(settings.timezone))
    counters = Counters()
    log_path = os.path.join(below, settings.logger.path)
    output = LogOutput(clock, counters, log_path, settings.logger.level, settings.logger.keep_days)
    held = BufferingObserver(output)

    def open_log() -> None:
        try:
            # Otherwise a daemon that runs as root and cannot start would leave log files that belong to root.
            with _effective_user(twistd.get("uid"), twistd.get("gid")):
                output.open()
        except OSError as error:
            raise StartError(f"logger.path: {_not_usable(error, log_path)}") from error

    for problem in options.warnings:
        Logger("gateway.config.settings").warn("configuration: {problem}", problem=problem)

    limits = settings.limits
    health = Health()
    warnings = LimitedLog(Logger("gateway.ingest"), clock, counters)
    web_warnings = LimitedLog(Logger("gateway.web"), clock, counters)
    process_warnings = LimitedLog(Logger("gateway.runtime.lifecycle"), clock, counters)
    files = OpenFiles(clock, counters, process_warnings)
    bus = Bus(clock, counters, limits.backlog_events, limits.backlog_bytes)
    lines = settings.lines()
    live = LiveState(bus, clock, {scale_id: _given(line.idle_timeout_sec) for scale_id, line in lines.items()})
    database = settings.database
    store: Store
    relays: list[Any] = []
    spool: Any = None
    if database.url is None:
        accept = bool(options["accept-empty-store"])
        store = SqliteStore(reactor, clock, counters, database_path, accept_empty=accept)
    else:
        store, relay, spool = _on_server(reactor, settings, database.url, database_path, bus, live, clock, counters)
        relays.append(relay)
    # Reading raw files must not wait for their being compressed.
    file_pool, retention_pool = pool_of(2, "files"), pool_of(1, "retention")

    daq = DaqFactory(
        reactor,
        bus,
        clock,
        counters,
        warnings,
        max_frame_bytes=settings.daq.max_frame_bytes,
        most=limits.connections,
        most_machines=settings.daq.max_machines,
        most_sensors=settings.daq.max_sensors,
        most_machine_sensors=settings.daq.max_machine_sensors,
        most_new_sensors=settings.daq.max_new_sensors_per_minute,
        places=lambda: _places(listeners[0], scale_listeners),
    )
    # Sinks get a record in the order of their attaching: statistics end an hour before the raw files have the batch
    # that ended it, and read from them how far they were.
    writer = Writer(reactor, bus, counters, store, daq.pause)
    damage = DamageLog(clock, counters)
    rawlog = RawLog(reactor, clock, counters, data_path, writer.knows, damage)
    new_rollup = partial(Rollup, clock.zone, settings.stat)
    rollup = new_rollup()
    statistics = Statistics(reactor, bus, clock, counters, rollup, rawlog, writer.add)
    bus.attach(Batch, rawlog.name, rawlog.write)

    def warm_up(presence: Presence) -> None:
        # It takes a twentieth of a second: better in a thread, before the first sensor has many samples.
        if presence.source == "machine" and "gateway.timeseries.numpy_sums" not in sys.modules:
            reactor.callInThread(import_module, "gateway.timeseries.numpy_sums")

    bus.attach(Presence, "vectors", warm_up)
    data = settings.data
    retention = Retention(
        reactor,
        clock,
        counters,
        retention_pool,
        data_path,
        # What has no row yet may be in a raw file only.
        busy=lambda: writer.is_stuck,
        keep_days=data.keep_days,
        compress_after_days=data.compress_after_days,
        min_free=None if data.min_free_mb is None else data.min_free_mb * 2**20,
    )
    parts: list[IService] = [writer, rawlog, statistics, retention]
    if settings.fcm.cred_path is None:
        Logger("gateway.alert").warn("push messages are off: fcm.cred_path is not set")
    else:
        from gateway.alert.firebase import connect_firebase
        from gateway.alert.push import PushAlert

        connect = partial(connect_firebase, os.path.join(below, settings.fcm.cred_path))
        parts.append(PushAlert(reactor, bus, clock, counters, settings.fcm.timeout, connect))

    parts += relays

    audience = LiveClients(counters, limits.subscribers)
    feed = SubscriptionContext(reactor, bus, live, clock, counters, limits.subscriber_bytes)
    visitors = HostChecks(settings.server.cors_origins, settings.server.names, platform.node())
    traffic = Traffic(counters, web_warnings, visitors, limits.body_bytes)

    #: Machines with statistics that lack samples from before the start.
    lacking = ["all machines"]

    health.watch(lambda: _one_of("raw files cannot be written: {}", rawlog.problem))
    health.watch(lambda: damage.problems)
    health.watch(lambda: _one_of("{}", retention.problem))
    health.watch(lambda: [f"statistics of {machine} lack what came before the start" for machine in lacking])
    health.watch(lambda: ["statistics cannot be written, and wait"] if writer.is_stuck else [])
    health.watch(lambda: store.problems)
    health.watch(daq.problems)
    health.watch(lambda: _one_of("{}", files.problem))
    for relay in relays:
        # If the database is away, only that is reported.
        health.watch(partial(_unheard, store, relay))

    status = StatusApi(reactor, live, counters, health.problems).app.resource()
    scale_api = ScaleApi(
        live,
        store,
        bus,
        clock,
        counters,
        settings.default_scale(),
        {scale_id: line.commit_max_age_sec for scale_id, line in lines.items()},
        settings.scale.commit_max_age_sec,
    ).resource()
    machine_api = MachineApi(reactor, clock, data_path, file_pool, rawlog.flush, damage).app.resource()
    words: dict[str, IResource] = {
        "api": Root({"v1": Root({"machines": machine_api}, scale_api)}, scale_api),
        "stat": StatApi(store).app.resource(),
        "sio": SioApi(live).app.resource(),
        "socket.io": EngineServer(
            reactor,
            SocketServer(reactor, MachineNamespaces(bus, live).find, max_attached=limits.body_bytes),
            audience,
            counters,
            web_warnings,
            max_payload=limits.body_bytes,
            max_waiting=limits.subscriber_bytes,
        ),
        "ws": EventsWebSocketResource(EventsWebSocketFactory(feed, audience, web_warnings)),
        "events": SseResource(feed, audience),
        "asyncapi.json": AsyncApiResource(),
    }
    site = GatewaySite(reactor, Root(words, status), traffic, counters, limits.connections)

    server = settings.server
    ports: Any = SharedPorts(reactor) if server.share_ports else reactor
    listeners = [
        Listener(key, serverFromString(ports, tcp_endpoint(server.host, port)), factory, "server.host")
        for key, port, factory in (("server.port", server.port, site), ("server.tcp_port", server.tcp_port, daq))
    ]
    if server.own_port is not None:
        own = serverFromString(reactor, tcp_endpoint(server.host, server.own_port))
        listeners.append(Listener("server.own_port", own, site, "server.host"))
    scale_factories = []
    scale_listeners: list[Listener] = []
    for scale_id, line in lines.items():
        factory = ScaleFactory(scale_id, bus, clock, counters, warnings, limits.connections)
        scale_factories.append(factory)
        if line.listen is not None:
            key = f"scales.{scale_id}" if settings.scales else "scale.port"
            host_key = None if settings.scales else "server.host" if settings.scale.host is None else "scale.host"
            scale_listeners.append(Listener(key, serverFromString(ports, line.listen), factory, host_key))
        elif line.connect is not None:
            endpoint = clientFromString(reactor, line.connect)
            parts.append(dialled(endpoint, factory, reactor, shown_address(line.connect)))
        else:
            parts.append(SerialService(_serial(line), factory, reactor, partial(_open_serial, reactor)))

    for listener in [*listeners, *scale_listeners]:
        listener.guard(reactor, files, SPARE_OF_HTTP if listener.key in {"server.port", "server.own_port"} else SPARE)

    locks: list[DirectoryLock | OldServerLock] = []

    def open_store() -> None:
        try:
            locks.append(OldServerLock(below))
        except DirectoryInUse as error:
            raise StartError(f"{error}: the old monitoring server is running here; end it first") from error
        # They may be one directory.
        for path, key in {
            os.path.realpath(database_path): "database.path",
            os.path.realpath(data_path): "data.path",
        }.items():
            try:
                locks.append(DirectoryLock(path))
            except DirectoryInUse as error:
                raise StartError(f"{key}: another gateway uses {path}") from error
            except OSError as error:
                raise StartError(f"{key}: {_not_usable(error, path)}") from error
        try:
            store.open()
        except StoreUnavailable as error:
            for path in sorted(glob.glob(os.path.join(glob.escape(database_path), "*.sqlite3*"))):
                if not may_access(path, os.R_OK | os.W_OK):
                    denied = PermissionError(errno.EACCES, "Permission denied", path)
                    raise StartError(f"database.path: {_not_usable(denied, path)}") from error
            key = "path" if database.url is None or isinstance(error, DirectoryUnusable) else "url"
            raise StartError(f"database.{key}: {error}") from error
        bus.number_from(store.first_seq, EventNumberReserve(store).used)
        file_pool.start()
        retention_pool.start()

    async def recover_all() -> None:
        recovery = Recovery(data_path, clock.zone, rollup, new_rollup, damage, lambda: not gateway.running)
        in_thread = partial(deferToThreadPool, reactor, file_pool)
        lacking[:] = sorted(await recover(recovery, in_thread, store, live, writer, clock, daq.admission.remember))
        if server.share_ports:
            # A client comes back with its last number to any of the processes, and none may take another's for its own.
            first = _first_number(spool.identity)
            if store.first_seq < first:
                await store.reserve(first + SEQ_BLOCK)
                bus.number_from(first, EventNumberReserve(store).used)

    async def close_store() -> None:
        # Nobody waits any more for what is being read.
        for pool in (file_pool, retention_pool):
            threading.Thread(target=pool.stop, daemon=True).start()
        await store.close()
        for lock in locks:
            lock.release()

    gateway = Gateway(
        reactor,
        listeners=[*listeners, *scale_listeners],
        open_store=open_store,
        recover=recover_all,
        parts=parts,
        factories=[*scale_factories, daq],
        drained=traffic.drained,
        finish=[
            ("closing live events", audience.close, 0.5),
            ("writing what waits", writer.drain, 1.0),
            ("closing the store", close_store, 1.0),
        ],
        observer=held,
        in_foreground=foreground,
        signals=options.signals,
        open_log=open_log,
        reopen_log=output.reopen,
        report_log=counters.report_log,
        umask=twistd.get("umask"),
    )
    return gateway


def _on_server(
    reactor: Any, settings: Settings, url: str, database_path: str, bus: Any, live: Any, clock: Any, counters: Any
) -> tuple[Any, Any, Any]:
    """Return the store on PostgreSQL, the relay between gateways there, and the spool.

    Its modules are imported only if it is configured: they take 6 MB.
    """
    from twisted.logger import Logger

    from gateway.relay.service import Relay
    from gateway.runtime.limited_log import LimitedLog
    from gateway.store.postgres.notify import PostgresChannel
    from gateway.store.postgres.store import PostgresStore
    from gateway.store.spool.spool import Spool

    name = settings.gateway.name or platform.node()
    spool = Spool(reactor, clock, counters, database_path, settings.database.spool_mb * 2**20)
    store = PostgresStore(reactor, clock, counters, spool, url, name)
    warnings = LimitedLog(Logger("gateway.relay.service"), clock, counters)
    channel = PostgresChannel(reactor, url, name)
    relay = Relay(reactor, bus, live, clock, counters, warnings, channel, name, settings.scale.idle_timeout_sec)
    return store, relay, spool


def _first_number(identity: str) -> int:
    """Where a process begins to number its events, far from the others that share its ports.

    There are 2**32 numbers from each beginning to the next, and all are below 2**52: JavaScript counts to 2**53.

    :param identity: of the spool, in hexadecimal digits.
    """
    return (1 + int(identity, 16) % (2**20 - 1)) << 32


def _places(http: Any, scales: Sequence[Any]) -> Any:
    """Return where input of other protocols on the DAQ port should be sent instead.

    :param http: listener of HTTP.
    :param scales: listeners of the scales that dial in.
    """
    from gateway.wire.other_protocols import ServedPorts

    ports = [str(port) for port in (scale.port_number for scale in scales) if port is not None]
    return ServedPorts(
        "" if http.port_number is None else f"; HTTP is served on port {http.port_number}",
        ""
        if not ports
        else f": its port is {ports[0]}"
        if len(ports) == 1
        else f": ports of scales are {', '.join(ports)}",
    )


def _unheard(store: Any, relay: Any) -> list[str]:
    return [] if store.problems else _one_of("other gateways are not heard: {}", relay.problem)


def _working_directory(chroot: str | None, rundir: str) -> str:
    """Return the base of relative paths after ``twistd`` has entered its ``--chroot`` and its ``--rundir``."""
    if chroot is not None and (rundir == "." or os.path.isabs(rundir)):
        return "/" if rundir == "." else rundir
    return os.path.realpath(rundir)


@contextlib.contextmanager
def _effective_user(uid: int | None, gid: int | None) -> Iterator[None]:
    """Act, within a block, as the user that ``twistd`` will become, unless it already has."""
    if uid is None or os.geteuid() != 0:
        yield
        return
    group = os.getegid()
    os.setegid(pwd.getpwuid(uid).pw_gid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def _not_usable(error: OSError, path: str) -> str:
    """Return why a directory cannot be used, and the remedy."""
    where = error.filename or path
    if error.errno not in {errno.EACCES, errno.EPERM}:
        return f"{where}: {error.strerror}"
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return f"{where}: the user {user} has no right to write there ({error.strerror}); give it to {user} (chown)"


def _one_of(text: str, problem: str | None) -> list[str]:
    return [] if problem is None else [text.format(problem)]


def _given(value: float | None) -> float:
    if value is None:
        raise ValueError("Settings.lines() sets it")
    return value


def _serial(line: ScaleConnection) -> Any:
    from gateway.ingest.serial import SerialLine

    return SerialLine(line.serial or "", line.baudrate, line.bytesize, line.parity, line.stopbits)


def _open_serial(reactor: Any, protocol: Any, line: Any) -> Any:
    import serial
    from twisted.internet.serialport import SerialPort

    from gateway.ingest.serial import check_parity

    class CheckedSerial(serial.Serial):
        def open(self) -> None:
            super().open()
            try:
                check_parity(self.fileno(), line.parity)
            except BaseException:
                self.close()
                raise

    class CheckedPort(SerialPort):
        # SerialPort drops bytes that came before the port was set up, so that no byte goes unchecked.
        _serialFactory = CheckedSerial

    return CheckedPort(
        protocol,
        line.device,
        reactor,
        baudrate=line.baudrate,
        bytesize=line.bytesize,
        parity=line.parity,
        stopbits=line.stopbits,
    )
