"""Parts of an assembled gateway, as the builders return them."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from twisted.application.service import IService
from twisted.python.threadpool import ThreadPool

from gateway.auth.access import AccessControl
from gateway.bus.bus import Bus
from gateway.commits.armed_states import ArmedStates
from gateway.commits.service import CommitService
from gateway.config.settings import Settings
from gateway.live.state import LiveState
from gateway.raw.damage import DamageLog
from gateway.raw.log import RawLog
from gateway.record.book import RecordBook
from gateway.runtime.clock import WallClock
from gateway.runtime.health import Health
from gateway.runtime.metrics import Counters
from gateway.runtime.open_files import OpenFiles
from gateway.runtime.reactor import IReactor
from gateway.runtime.readiness import Readiness
from gateway.stats.rollup import Rollup
from gateway.store.event_numbers import EventNumberStore
from gateway.store.interface import Store
from gateway.store.spool_interface import EntrySpool
from gateway.store.writer import Writer
from gateway.web.clients.registry import LiveClients
from gateway.web.http.request import Traffic
from gateway.web.http.site import GatewaySite
from gateway.web.push.subscription import SubscriptionContext
from gateway.web.rest.scale_list import ScaleListApi
from gateway.web.rest.scales import ScaleApi
from gateway.web.socketio.engine import EngineServer
from gateway.web.socketio.server import SocketServer
from gateway.weighing.registry import Guards

if TYPE_CHECKING:
    from gateway.record.file import RecordFile
    from gateway.relay.service import Relay


@dataclass(frozen=True, slots=True)
class Paths:
    """Directories of one gateway.

    :ivar folder: base of relative paths.
    :ivar log: directory of the log files; ``None`` for no files.
    """

    folder: str
    database: str
    data: str
    log: str | None

    @classmethod
    def of(cls, settings: Settings, folder: str) -> "Paths":
        """Return the paths of a configuration below a base folder."""
        join = partial(os.path.join, folder)
        log = None if settings.logger.path is None else join(settings.logger.path)
        return cls(folder, join(settings.database.path), join(settings.data.path), log)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Parts that all others use."""

    reactor: IReactor
    clock: WallClock
    counters: Counters
    health: Health
    readiness: Readiness
    files: OpenFiles
    bus: Bus
    live: LiveState
    guards: Guards


@dataclass(frozen=True, slots=True)
class StoreParts:
    """The store.

    :ivar numbers: store of event numbers, opened and closed with the store.
    :ivar record: record of this gateway's commits.
    :ivar relay: exchange with other gateways on the same database; ``None`` without PostgreSQL.
    :ivar first_number: returns the lowest number of live events of this process; ``None`` if the store decides.
    :ivar spool: queue of entries for PostgreSQL; ``None`` without it.
    :ivar record_file: file of the record; ``None`` if the record is in the file of commits.
    :ivar recovery: service that adds to the record the commits that it lacks; ``None`` if it cannot lack any.
    """

    store: Store
    numbers: EventNumberStore
    record: RecordBook
    relay: "Relay | None" = None
    first_number: Callable[[], int] | None = None
    spool: EntrySpool | None = None
    record_file: "RecordFile | None" = None
    recovery: IService | None = None


@dataclass(frozen=True, slots=True)
class Commits:
    """Commits of scales.

    :ivar record: record of this gateway's commits.
    :ivar states: states of the scales that survive a restart.
    :ivar saving: service that saves them regularly.
    :ivar pool: pool of the one thread that writes them.
    """

    service: CommitService
    record: RecordBook
    states: ArmedStates
    saving: IService
    pool: ThreadPool

    async def close(self) -> None:
        """Save the states of scales, and end the thread."""
        if self.pool.started:
            await self.states.close()
            # Nothing waits for the thread any more.
            threading.Thread(target=self.pool.stop, name="scales end", daemon=True).start()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Sinks of the bus: statistics, raw files and writer.

    :ivar services: services of these sinks, in the order of their start.
    :ivar new_rollup: returns an empty rollup.
    """

    writer: Writer
    raw_log: RawLog
    damage: DamageLog
    rollup: Rollup
    new_rollup: Callable[[], Rollup]
    services: Sequence[IService]


@dataclass(frozen=True, slots=True)
class Web:
    """HTTP: the site, its requests in progress, the clients of live events, and the parts that a reload changes."""

    site: GatewaySite
    traffic: Traffic
    clients: LiveClients
    access: AccessControl
    scale_api: ScaleApi
    scale_list: ScaleListApi
    context: SubscriptionContext
    engine: EngineServer
    sockets: SocketServer
