"""Builder of the look-up of cylinders in the plant's own table."""

import platform
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from gateway.assembly.parts import Runtime
from gateway.config.settings import Settings

if TYPE_CHECKING:
    from gateway.cylinders.lookup import CylinderMaster


def build_cylinders(runtime: Runtime, settings: Settings) -> "CylinderMaster | None":
    """Build the look-up; ``None`` without ``cylinders.query``, or without a database for it."""
    query, url = settings.cylinders.query, settings.cylinders.url or settings.database.url
    if query is None or url is None:
        return None
    # Imported only if it is configured: the driver takes 6 MB.
    from gateway.cylinders.lookup import CylinderMaster
    from gateway.cylinders.plant_table import PlantTable

    name = f"{settings.gateway.name or platform.node()} cylinders"
    key = "database.url" if settings.cylinders.url is None else "cylinders.url"
    table = PlantTable(runtime.reactor, url, name, query, key)
    return CylinderMaster(runtime.reactor, runtime.clock, runtime.counters, settings.cylinders, table)


class CylinderService(Service):
    """Service that is connected to the plant's table while the gateway runs."""

    name = "cylinders"

    def __init__(self, master: "CylinderMaster") -> None:
        self._master = master

    def startService(self) -> None:
        super().startService()
        self._master.start()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        return Deferred.fromCoroutine(self._master.close())
