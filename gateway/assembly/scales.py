"""The scales of a running gateway, which a reload adds, removes and changes one by one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings
from gateway.ingest.line_options import line_options
from gateway.ingest.readings import ScaleReadings
from gateway.ingest.scale import ScaleFactory
from gateway.live.state import LiveState
from gateway.runtime.listener import Listener, PortDirectory, StartError

log = Logger()


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Connections of one scale.

    :ivar line_age: seconds since the last line; ``None`` before the first line.
    :ivar peers: addresses or devices of the open connections.
    """

    line_age: float | None
    peers: list[str]


@dataclass(frozen=True, slots=True)
class ScaleParts:
    """One line: the factory of its connections, and a listener, or a service that dials or opens a serial line."""

    line: ScaleConnection
    factory: ScaleFactory
    listener: Listener | None
    service: IService | None


#: Keys of a line whose change needs other parts: those that its listener, its service or its device depends on.
_LINE_KEYS: Final = ("listen", "connect", "serial", "baudrate", "bytesize", "parity", "stopbits")

#: Builds the parts of a scale; the factory is that of its open connections, if they stay.
ScaleBuilder = Callable[[Settings, str, ScaleConnection, ScaleFactory | None], ScaleParts]


class Scales(Service):
    """All scales of this gateway.

    :param build: builds the parts of one line.
    :param reactor: clock of the commands to scales.
    """

    name = "scales"

    def __init__(
        self, build: ScaleBuilder, settings: Settings, live: LiveState, ports: PortDirectory, reactor: IReactorTime
    ) -> None:
        self._build = build
        self._live = live
        self._reactor = reactor
        self._ports = ports
        self._has_names = bool(settings.scales)
        self._parts = {scale_id: build(settings, scale_id, line, None) for scale_id, line in settings.lines().items()}
        ports.scale_listeners = self.listeners
        self._use(settings)

    @property
    def listeners(self) -> list[Listener]:
        """Listeners of the scales that connect to the gateway."""
        return [parts.listener for parts in self._parts.values() if parts.listener is not None]

    @property
    def factories(self) -> list[ScaleFactory]:
        return [parts.factory for parts in self._parts.values()]

    def connections(self) -> dict[str, ConnectionState]:
        """Return the connections of every scale of this gateway."""
        return {
            scale.scale_id: ConnectionState(scale.line_age, factory.peers)
            for factory in self.factories
            for scale in factory.scales
        }

    def readings(self) -> list[ScaleReadings]:
        """Return every scale of this gateway, those behind lines with addresses included."""
        return [scale for factory in self.factories for scale in factory.scales]

    def startService(self) -> None:
        super().startService()
        for parts in self._parts.values():
            if parts.service is not None:
                parts.service.startService()

    def stopService(self) -> "Deferred[None]":
        super().stopService()
        services = [parts.service for parts in self._parts.values() if parts.service is not None]
        stopped = gatherResults([maybeDeferred(service.stopService) for service in services], consumeErrors=True)
        return stopped.addCallback(lambda _: None)

    def close(self) -> None:
        """Close the connections of all scales."""
        for factory in self.factories:
            factory.close()

    async def change(self, settings: Settings) -> None:
        """Make the scales as these settings say. A scale whose line stays keeps its listener and its connections.

        :raises StartError: a port cannot be bound; everything is as before.
        """
        before, lines = self._parts, settings.lines()
        # The listeners of `scales` have other configuration keys than that of `scale`.
        is_renamed = bool(settings.scales) != self._has_names
        ended = {
            scale_id: parts
            for scale_id, parts in before.items()
            if is_renamed or _is_other_line(parts, lines.get(scale_id))
        }
        closed = [parts.listener for parts in ended.values() if parts.listener is not None]
        # First, because two scales may exchange their ports.
        await _stop(closed)
        opened: list[Listener] = []
        try:
            build = partial(self._build, settings)
            self._parts = {
                scale_id: self._changed(build, scale_id, line, ended, opened) for scale_id, line in lines.items()
            }
        except Exception:  # whatever it is, the listeners of before must listen again
            await _stop(opened)
            for listener in closed:
                _listen_again(listener)
            raise
        self._has_names = bool(settings.scales)
        self._ports.scale_listeners = self.listeners
        await self._end(ended)
        self._begin(settings)

    def _changed(
        self,
        build: Callable[[str, ScaleConnection, ScaleFactory | None], ScaleParts],
        scale_id: str,
        line: ScaleConnection,
        ended: Mapping[str, ScaleParts],
        opened: list[Listener],
    ) -> ScaleParts:
        """Return the parts of a scale as its line says; new ones are bound, but do not accept yet.

        :param opened: receives the listener, if it is new.
        :raises StartError: its port cannot be bound.
        """
        old = self._parts.get(scale_id)
        if old is not None and scale_id not in ended:
            return replace(old, line=line)
        kept = old.factory if old is not None and _keeps_connections(old.line, line) else None
        parts = build(scale_id, line, kept)
        if parts.listener is not None:
            parts.listener.listen()
            opened.append(parts.listener)
        return parts

    async def _end(self, ended: Mapping[str, ScaleParts]) -> None:
        """End the connections of scales that are gone or have another kind of line."""
        for scale_id, parts in ended.items():
            current = self._parts.get(scale_id)
            if current is not None and current.factory is parts.factory:
                continue
            if parts.service is not None:
                await maybeDeferred(parts.service.stopService)
            parts.factory.close()
            await parts.factory.closed()

    def _begin(self, settings: Settings) -> None:
        """Let new scales connect, and change the options of the others."""
        scales = settings.scale_settings()
        for scale_id, scale in scales.items():
            self._live.set_scale(scale_id, scale.idle_timeout_sec or 0.0)
        # Afterwards, since the presence of a removed scale changes first.
        self._use(settings)
        for scale_id in self._live.own_scales().keys() - scales.keys():
            self._live.remove_scale(scale_id)
        for parts in self._parts.values():
            if parts.listener is not None:
                parts.listener.accept()
            if parts.service is not None and not parts.service.running:
                parts.service.startService()

    def _use(self, settings: Settings) -> None:
        """Give each line its options."""
        scales = settings.scale_settings()
        for name, parts in self._parts.items():
            parts.factory.use(line_options(parts.line, name, scales), self._reactor)


def _is_other_line(parts: ScaleParts, line: ScaleConnection | None) -> bool:
    """Return whether the listener or the service of a scale cannot stay."""
    if line is None or any(getattr(parts.line, key) != getattr(line, key) for key in _LINE_KEYS):
        return True
    # The id of the line becomes that of a scale, or ceases to be one.
    return (parts.line.addresses is None) != (line.addresses is None)


def _keeps_connections(before: ScaleConnection, after: ScaleConnection) -> bool:
    """Return whether the connections of a scale stay open although it listens elsewhere now."""
    has_same_kind = (before.addresses is None) == (after.addresses is None)
    return has_same_kind and before.listen is not None and after.listen is not None


def _listen_again(listener: Listener) -> None:
    try:
        listener.listen()
    except StartError as error:
        # Another program has taken the port meanwhile.
        log.error("{error}; restart the gateway", error=error)
    else:
        listener.accept()


async def _stop(listeners: Iterable[Listener]) -> None:
    stopped = [done for done in (listener.stop() for listener in listeners) if done is not None]
    await gatherResults(stopped, consumeErrors=True)
