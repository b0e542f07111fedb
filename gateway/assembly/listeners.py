"""Builders of the listeners of HTTP and of DAQ programs."""

from functools import partial

from twisted.internet.endpoints import serverFromString

from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.parts import Runtime, Web
from gateway.config.settings import Settings, tcp_endpoint
from gateway.ingest.daq import DaqFactory
from gateway.runtime.listener import Listener, PortDirectory
from gateway.runtime.open_files import SPARE, SPARE_OF_HTTP
from gateway.runtime.ports import SharedPorts
from gateway.runtime.reactor import IReactor
from gateway.web.http.site import plain_http_answer


def listening_reactor(reactor: IReactor, settings: Settings) -> IReactor | SharedPorts:
    """Return the reactor for listening endpoints, whose ports may be shared with other processes."""
    return SharedPorts(reactor) if settings.server.share_ports else reactor


def build_listeners(
    runtime: Runtime, settings: Settings, access: ListenerAccess, web: Web, daq: DaqFactory, ports: PortDirectory
) -> list[Listener]:
    """Build the listeners of HTTP and of DAQ programs.

    :param access: admission and TLS.
    :param ports: directory that the listener of HTTP is added to.
    """
    reactor, server = runtime.reactor, settings.server
    listening = listening_reactor(reactor, settings)
    endpoint = partial(tcp_endpoint, server.host)
    site = access.admitting("server", web.site, web.site.refuse_connection, plain_http_answer)
    http = Listener("server.port", serverFromString(listening, endpoint(server.port)), site, "server.host")
    http.guard(reactor, runtime.files, SPARE_OF_HTTP)
    ports.http_listener = http
    daq_endpoint = serverFromString(listening, endpoint(server.tcp_port))
    tcp = Listener("server.tcp_port", daq_endpoint, access.admitting("daq", daq), "server.host")
    tcp.guard(reactor, runtime.files, SPARE)
    if server.own_port is None:
        return [http, tcp]
    own_endpoint = serverFromString(reactor, endpoint(server.own_port))
    own = Listener("server.own_port", own_endpoint, site, "server.host")
    own.guard(reactor, runtime.files, SPARE_OF_HTTP)
    return [http, tcp, own]
