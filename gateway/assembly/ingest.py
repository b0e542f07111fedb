"""Builders of the connections of scales and DAQ programs."""

from functools import partial

from twisted.application.service import IService
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.logger import Logger

from gateway.assembly.listeners import listening_reactor
from gateway.assembly.parts import Ingest, Runtime
from gateway.config.endpoints import display_address
from gateway.config.settings import ScaleConnection, Settings
from gateway.ingest.daq import DaqFactory
from gateway.ingest.dialer import dialled
from gateway.ingest.scale import ScaleFactory
from gateway.ingest.serial import SerialLine, SerialService, open_serial_port
from gateway.ingest.transport import served_ports
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import Listener, PortDirectory
from gateway.runtime.open_files import SPARE


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
    listening = listening_reactor(reactor, settings)
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


def _serial_line(line: ScaleConnection) -> SerialLine:
    return SerialLine(line.serial or "", line.baudrate, line.bytesize, line.parity, line.stopbits)
