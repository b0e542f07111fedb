"""Builders of the connections of scales and DAQ programs."""

from collections.abc import Callable
from functools import partial

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.logger import Logger

from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.listeners import listening_reactor
from gateway.assembly.parts import Runtime
from gateway.assembly.scales import ScaleParts, Scales
from gateway.config.endpoints import display_address
from gateway.config.listeners import scale_key
from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings
from gateway.ingest.daq import DaqFactory
from gateway.ingest.dialer import dialled
from gateway.ingest.machine_rules import MachineRuleError, MachineRules
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.serial import SerialLine, SerialService, open_serial_port
from gateway.ingest.silence import SilenceWatch
from gateway.ingest.transport import served_ports
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import Listener, PortDirectory, StartError
from gateway.runtime.open_files import SPARE
from gateway.runtime.tls import client_names


def build_daq(runtime: Runtime, settings: Settings, ports: PortDirectory) -> DaqFactory:
    """Build the factory of the connections of DAQ programs.

    :param ports: ports of other protocols, for the log line about a client on the wrong port.
    """
    clock, counters = runtime.clock, runtime.counters
    warnings = LimitedLog(Logger("gateway.ingest.daq"), clock, counters)
    limit = settings.limits.connections
    factory = DaqFactory(runtime.reactor, runtime.bus, clock, counters, warnings, settings.daq, limit)
    factory.find_ports = partial(served_ports, ports)
    factory.client_names = client_names
    return factory


def prepare_machines(daq: DaqFactory, folder: str, settings: Settings) -> Callable[[], None]:
    """Read the rules of machines, and return the function that puts them into force. It blocks.

    :param folder: base of relative paths.
    :raises StartError: the file of a secret cannot be used.
    """
    try:
        rules = MachineRules.read(settings.machines, settings.daq.listed_only, folder)
    except MachineRuleError as error:
        raise StartError(str(error)) from error
    return partial(daq.use_rules, rules)


def build_scales(runtime: Runtime, settings: Settings, access: ListenerAccess, ports: PortDirectory) -> Scales:
    """Build the connections of all scales.

    :param access: admission and TLS of listeners.
    :param ports: directory of the listeners.
    """
    log = LimitedLog(Logger("gateway.ingest.scale"), runtime.clock, runtime.counters)
    return Scales(partial(_build_scale, runtime, access, log), settings, runtime.live, ports, runtime.reactor)


def build_silence(runtime: Runtime, scales: Scales) -> SilenceWatch:
    """Build the watch for silent scales."""
    live = runtime.live

    def idle_timeout(scale_id: str) -> float:
        return live.idle_timeout(scale_id) if live.has_scale(scale_id) else float("inf")

    return SilenceWatch(runtime.reactor, runtime.bus, runtime.clock, scales.readings, idle_timeout)


def _build_scale(
    runtime: Runtime,
    access: ListenerAccess,
    log: LimitedLog,
    settings: Settings,
    scale_id: str,
    line: ScaleConnection,
    factory: ScaleFactory | None,
) -> ScaleParts:
    """Build the parts of one line.

    :param scale_id: name of the line, which is the id of its scale unless it has addresses.
    :param factory: factory of its open connections, if these stay.
    """
    reactor, counters, clock = runtime.reactor, runtime.counters, runtime.clock
    if factory is None:
        factory = ScaleFactory(scale_id, runtime.bus, clock, counters, log, settings.limits.connections)
        factory.lines.guards = runtime.guards
    if line.listen is not None:
        key = f"scales.{scale_id}" if settings.scales else "scale.port"
        host_key = None if settings.scales else "server.host" if settings.scale.host is None else "scale.host"
        endpoint = serverFromString(listening_reactor(reactor, settings), line.listen)
        listener = Listener(key, endpoint, access.admitting(scale_key(settings, scale_id), factory), host_key)
        listener.guard(reactor, runtime.files, SPARE)
        return ScaleParts(line, factory, listener, None)
    if line.connect is not None:
        service = dialled(clientFromString(reactor, line.connect), factory, reactor, display_address(line.connect))
        return ScaleParts(line, factory, None, service)
    serial_line = SerialService(_serial_line(line), factory, reactor, partial(open_serial_port, reactor))
    return ScaleParts(line, factory, None, serial_line)


def _serial_line(line: ScaleConnection) -> SerialLine:
    return SerialLine(line.serial or "", line.baudrate, line.bytesize, line.parity, line.stopbits)
