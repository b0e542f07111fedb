"""All parts of an assembled gateway."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.assembly.alerts import Alerts
from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.parts import Commits, Paths, Pipeline, Runtime, StoreParts, Web
from gateway.assembly.scales import Scales
from gateway.ingest.daq import DaqFactory
from gateway.raw.retention import Retention
from gateway.record.publisher import HeadPublisher
from gateway.replay.storage import Storage
from gateway.runtime.disk_space import DiskSpace
from gateway.runtime.listener import Listener
from gateway.runtime.open_access import OpenAccess

if TYPE_CHECKING:
    from gateway.cylinders.lookup import CylinderMaster


@dataclass(frozen=True, slots=True)
class Assembly:
    """All parts that the life cycle, the state for operators and a reload refer to.

    :ivar cylinders: look-up of cylinders; ``None`` without ``cylinders.query``.
    :ivar listeners: returns the current listeners, those of scales included.
    """

    paths: Paths
    runtime: Runtime
    store: StoreParts
    commits: Commits
    publisher: HeadPublisher
    pipeline: Pipeline
    storage: Storage
    retention: Retention
    alerts: Alerts
    web: Web
    cylinders: "CylinderMaster | None"
    daq: DaqFactory
    scales: Scales
    access: ListenerAccess
    listeners: Callable[[], Sequence[Listener]]
    space: DiskSpace
    open_access: OpenAccess
