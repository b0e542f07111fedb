"""Watch for scales that are connected, but send no lines."""

from collections.abc import Callable, Iterable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gateway.bus.bus import Bus
from gateway.ingest.readings import ScaleReadings
from gateway.model.records import Silence
from gateway.runtime.clock import WallClock

log = Logger()

#: Seconds between two looks at the scales.
INTERVAL: Final = 1.0


class SilenceWatch(Service):
    """A service that publishes when a connected scale falls silent, and when its next line has come.

    :param scales: returns the scales of this gateway, at most as many as are configured.
    :param idle_timeout: returns the seconds without a line after which a scale is silent.
    """

    name = "silence"

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        clock: WallClock,
        scales: Callable[[], Iterable[ScaleReadings]],
        idle_timeout: Callable[[str], float],
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._scales = scales
        self._idle_timeout = idle_timeout
        #: Silent scales, and the time of the last line of each.
        self._silent: dict[ScaleReadings, float | None] = {}
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._looking.start(INTERVAL, now=False)

    def stopService(self) -> None:
        super().stopService()
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        try:
            self._compare()
        except Exception:  # the watch must live on
            log.failure("cannot look for silent scales")

    def _compare(self) -> None:
        now, scales = self._clock.monotonic(), list(self._scales())
        for gone in self._silent.keys() - set(scales):
            del self._silent[gone]
        for scale in scales:
            if scale in self._silent:
                if scale.last_line != self._silent[scale]:
                    del self._silent[scale]
                    self._bus.publish(Silence(scale.scale_id, is_silent=False))
            elif scale.is_connected:
                since = max(scale.connected_at, scale.last_line or 0.0)
                if now - since >= self._idle_timeout(scale.scale_id):
                    self._silent[scale] = scale.last_line
                    self._bus.publish(Silence(scale.scale_id, is_silent=True))
