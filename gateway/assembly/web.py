"""Builder of the site and its resources."""

import platform
from collections.abc import Mapping
from functools import partial
from typing import Final

from twisted.logger import Logger
from twisted.web.resource import IResource

from gateway.assembly.access import OPEN_TREES, prepare_access
from gateway.assembly.parts import Commits, Paths, Pipeline, Runtime, Web
from gateway.auth.access import AccessControl
from gateway.config.settings import Settings
from gateway.cylinders.balance import balance_of
from gateway.record.book import RecordBook
from gateway.replay.storage import Storage
from gateway.runtime.limited_log import LimitedLog
from gateway.store.interface import Store, StoreUnavailable
from gateway.web.clients.registry import LiveClients
from gateway.web.http.channel import Deadlines
from gateway.web.http.client_checks import ClientChecks
from gateway.web.http.gate import Gate
from gateway.web.http.host_checks import HostChecks
from gateway.web.http.request import Traffic
from gateway.web.http.root import Root, WithSlash
from gateway.web.http.scopes import ScopedApp, open_paths
from gateway.web.http.site import GatewaySite
from gateway.web.push.socketio_endpoint import MachineNamespaces, identify_connect
from gateway.web.push.sse_endpoint import SseResource
from gateway.web.push.subscription import SubscriptionContext
from gateway.web.push.ws_endpoint import EventsWebSocketFactory, EventsWebSocketResource
from gateway.web.rest.commits import CommitApi, CommitHooks
from gateway.web.rest.cylinders import CylinderApi
from gateway.web.rest.record import RecordApi
from gateway.web.rest.samples import MachineApi
from gateway.web.rest.scale_list import ScaleListApi
from gateway.web.rest.scales import ScaleApi
from gateway.web.rest.statistics import SioApi, StatApi
from gateway.web.rest.status import StatusApi
from gateway.web.schema.asyncapi import AsyncApiResource
from gateway.web.schema.docs_page import docs_page
from gateway.web.schema.openapi import OpenApi
from gateway.web.socketio.engine import EngineServer
from gateway.web.socketio.server import SocketServer
from gateway.web.socketio.session import EngineSettings

#: Apps by the prefix of their paths, for the description of the REST interface.
REST_APPS: Final[Mapping[str, ScopedApp]] = {
    "/api": ScaleApi.app,
    "/api/v1/scales": ScaleListApi.app,
    "/stat": StatApi.app,
    "/sio": SioApi.app,
    "/api/v1/machines": MachineApi.app,
    "/api/v1/commits": CommitApi.app,
    "/api/v1/cylinders": CylinderApi.app,
    "/api/v1/record": RecordApi.app,
    "": StatusApi.app,
    "/openapi.json": OpenApi.app,
}


def build_web(
    runtime: Runtime, settings: Settings, paths: Paths, commits: Commits, pipeline: Pipeline, storage: Storage
) -> Web:
    """Build the site and all its resources.

    :param storage: store, and the thread pool that reads raw files.
    """
    store, readers = storage.store, storage.readers
    reactor, bus, live, clock = runtime.reactor, runtime.bus, runtime.live, runtime.clock
    counters, limits = runtime.counters, settings.limits
    log = LimitedLog(Logger("gateway.web.http"), clock, counters)
    access = AccessControl(clock.wall)
    gate = Gate(access, counters, open_paths(StatusApi.app), OPEN_TREES)
    clients = LiveClients(reactor, access, counters, limits.subscribers)
    prepare_access(access, clients, paths.folder, settings)()
    context = SubscriptionContext(reactor, bus, live, clock, counters, limits.subscriber_bytes)
    client_checks = ClientChecks(counters, clock.monotonic)
    client_checks.update(settings.server, limits)
    traffic = Traffic(counters, log, _host_checks(settings), gate, client_checks, limits.body_bytes)
    scale_api = ScaleApi(live, commits.service, counters, settings)
    scales = scale_api.resource()
    scale_list = ScaleListApi(live, runtime.guards, commits.service, clock)
    machines = MachineApi(reactor, clock, paths.data, readers, pipeline.raw_log.flush, pipeline.damage).app.resource()
    identify = partial(identify_connect, access)
    find = MachineNamespaces(bus, live).find
    sockets = SocketServer(reactor, find, identify=identify, max_attached=limits.body_bytes)
    engine = EngineServer(reactor, sockets, clients, counters, log, _engine_settings(settings))
    versioned: dict[str, IResource] = {
        "machines": machines,
        "scales": WithSlash(scale_list.app.resource()),
        **_commit_resources(runtime, settings, commits, store),
    }
    resources: dict[str, IResource] = {
        "api": Root({"v1": Root(versioned, scales)}, scales),
        "stat": StatApi(store).app.resource(),
        "sio": SioApi(live).app.resource(),
        "socket.io": engine,
        "ws": EventsWebSocketResource(EventsWebSocketFactory(context, clients, log)),
        "events": SseResource(context, clients),
        "asyncapi.json": AsyncApiResource(),
        "openapi.json": OpenApi(REST_APPS).resource(),
        "docs": docs_page(reactor, readers),
    }
    status = StatusApi(reactor, live, counters, runtime.health.problems, runtime.readiness).app.resource()
    root = Root(resources, status)
    site = GatewaySite(reactor, root, traffic, counters, limits.connections, Deadlines.of(limits))
    return Web(site, traffic, clients, access, scale_api, scale_list, context, engine, sockets)


def _commit_resources(runtime: Runtime, settings: Settings, commits: Commits, store: Store) -> dict[str, IResource]:
    """Return the resources of written commits, by the segment of their paths."""
    record, cylinders = commits.record, commits.service.checks.cylinders
    hooks = CommitHooks(partial(_head_of, record), partial(_entry_of, record), commits.service.note_undone)
    name = settings.gateway.name or platform.node()
    log = CommitApi(store, runtime.bus, runtime.clock, name, hooks)
    master = None if cylinders is None else cylinders.describe
    return {
        "commits": log.resource(),
        "cylinders": CylinderApi(store, balance_of, master).app.resource(),
        "record": RecordApi(record, runtime.clock).app.resource(),
    }


async def _head_of(record: RecordBook) -> str | None:
    """Return the head of the record; ``None`` if it cannot be read now."""
    try:
        return str(await record.read_head())
    except StoreUnavailable:
        return None


async def _entry_of(record: RecordBook, commit_id: int) -> tuple[int, str] | None:
    """Return the number and the hash of the entry of a commit; ``None`` without one, or if it cannot be read now."""
    try:
        row = await record.find(f"commit:{commit_id}")
    except StoreUnavailable:
        return None
    return None if row is None else (row[0], row[2].hex())


def _host_checks(settings: Settings) -> HostChecks:
    return HostChecks(settings.server.cors_origins, settings.server.names, platform.node())


def _engine_settings(settings: Settings) -> EngineSettings:
    limits = settings.limits
    return EngineSettings(max_payload=limits.body_bytes, max_waiting=limits.subscriber_bytes)


def update_web(web: Web, settings: Settings) -> None:
    """Give the site and its resources other settings, all but access control."""
    limits = settings.limits
    web.traffic.visitors = _host_checks(settings)
    web.traffic.max_body = web.sockets.max_attached = limits.body_bytes
    web.site.update(limits.connections, Deadlines.of(limits))
    web.traffic.clients.update(settings.server, limits)
    web.clients.max_clients = limits.subscribers
    web.context.max_waiting = limits.subscriber_bytes
    web.engine.update(_engine_settings(settings))
    web.scale_api.update(settings)
