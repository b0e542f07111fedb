"""Whole lines in, readings out, for the scale or the scales behind one line."""

from typing import Any, Protocol

from gateway.bus.bus import Bus
from gateway.ingest.line_options import LineOptions, address_of
from gateway.ingest.line_pattern import LinePattern
from gateway.ingest.readings import ScaleReadings
from gateway.ingest.transport import host_of
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog, shown
from gateway.runtime.metrics import Counters
from gateway.weighing.registry import Guards
from gateway.wire.errors import WireError
from gateway.wire.lines import MAX_LINE
from gateway.wire.scale import Fields, parse_line, read_lines


class LineSource(Protocol):
    """A connection, as far as its lines need it.

    :ivar patterns: patterns of its lines by scale, for the lock.
    """

    transport: Any
    peer: str
    patterns: dict[str, LinePattern]


class LineReadings:
    """Readings of the scales behind one line.

    :param name: name of the line: the id of its scale, unless it has addresses.
    :ivar guards: guards that judge the lines; set before the first line.
    """

    def __init__(self, name: str, bus: Bus, clock: WallClock, counters: Counters, warnings: LimitedLog) -> None:
        self.name = name
        self.guards = Guards({})
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._warnings = warnings
        self._rejected = counters.scale_rejected.labels(name)
        self._overlong = counters.scale_overlong.labels(name)
        self._discarded = counters.scale_discarded.labels(name)
        self._by_id: dict[str, ScaleReadings] = {}

    @property
    def scales(self) -> list[ScaleReadings]:
        if not self._by_id:
            # Not before: the name of a line with addresses is not a scale, and has no metrics of one.
            self.use(LineOptions())
        return list(self._by_id.values())

    def use(self, options: LineOptions) -> list[ScaleReadings]:
        """Use other options; return the scales that the line no longer has."""
        before, addresses = self._by_id, options.addresses or {}
        ids = [self.name] if options.addresses is None else addresses.values()
        self._by_id = {
            scale_id: before.get(scale_id)
            or ScaleReadings(scale_id, self._bus, self._clock, self._counters, self.guards.of(scale_id))
            for scale_id in ids
        }
        self._by_address = {address: self._by_id[scale_id] for address, scale_id in addresses.items()}
        #: The only scale; ``None`` on a line with addresses.
        self._only = self._by_id[self.name] if options.addresses is None else None
        self._plain = self._only if options.is_plain else None
        self._options = options
        return [scale for scale_id, scale in before.items() if scale_id not in self._by_id]

    def take(self, source: LineSource, data: bytes) -> None:
        """Process whole lines from one read of a connection, until the connection is being closed."""
        scale = self._plain
        if scale is None:
            self._take_field_lines(source, data)
            return
        transport, publish = source.transport, scale.publish
        scale.last_line = self._clock.monotonic()
        # Lines of one read have the same time.
        now = self._clock.now()
        for line in read_lines(data):
            if transport.disconnecting:
                return
            fields = self._parse(scale, source.peer, line) if isinstance(line, bytes) else line
            if fields is not None:
                publish(*fields, now)

    def _take_field_lines(self, source: LineSource, data: bytes) -> None:
        """Process whole lines of a line with a prefix, addresses, commands or a lock."""
        transport, locked = source.transport, self._options.locked
        now, at = self._clock.now(), self._clock.monotonic()
        for line in read_lines(data):
            if transport.disconnecting:
                return
            found = self._read(source.peer, line, at)
            if found is None:
                continue
            scale, fields = found
            if scale.scale_id in locked and self._is_held(source, scale, fields):
                continue
            scale.publish(*fields, now)

    def _read(self, peer: str, line: Fields | bytes, at: float) -> tuple[ScaleReadings, Fields] | None:
        """Return the scale that sent a line, and the fields of the line.

        :param at: monotonic time of the line, in seconds.
        """
        if isinstance(line, bytes):
            line = self._options.without_prefix(line)
            if self._options.is_answer(line):
                scale = self._only or self._by_address.get(address_of(line) or "")
                if scale is not None and line.strip():
                    scale.last_line = at
                return None
            if len(line) > MAX_LINE:
                self.overlong(peer, line)
                return None
            if not line.strip():
                return None
        scale = self._only or self._addressed(peer, line)
        if scale is None:
            return None
        scale.last_line = at
        fields = self._parse(scale, peer, line) if isinstance(line, bytes) else line
        return None if fields is None else (scale, fields)

    def _addressed(self, peer: str, line: Fields | bytes) -> ScaleReadings | None:
        """Return the scale of a line's address; count and log a line without a listed one."""
        # A line of the most common form begins with its status.
        address = address_of(line) if isinstance(line, bytes) else None
        scale = self._by_address.get(address or "")
        if scale is None:
            self._rejected.inc()
            self._warnings.warn(
                f"address {self.name} {address}",
                "line {name}, {peer}: {problem}: {line}; list each address in scales.{name}.addresses",
                name=self.name,
                peer=peer,
                problem="a line without an address" if address is None else f"address {address} is not listed",
                line=shown(line if isinstance(line, bytes) else line[3].encode()),
            )
        return scale

    def _is_held(self, source: LineSource, scale: ScaleReadings, fields: Fields) -> bool:
        """Return whether the pattern of a line differs from that of the lines before it; count and log it then."""
        _, weight, _, raw, unit = fields
        pattern = source.patterns.get(scale.scale_id)
        if pattern is None:
            pattern = source.patterns[scale.scale_id] = LinePattern()
        if pattern.counts(weight, raw, unit):
            return False
        scale.hold()
        self._warnings.warn(
            f"held {scale.scale_id} {host_of(source.peer)}",
            "scale {scale_id}, {peer}: a line of another width or number of decimals is held until the next line "
            "agrees: {line}",
            scale_id=scale.scale_id,
            peer=source.peer,
            line=shown(raw.encode()),
        )
        return True

    def _parse(self, scale: ScaleReadings, peer: str, line: bytes) -> Fields | None:
        """Parse a line that is not in the most common form; count and log it if it is not a valid reading."""
        if len(line) > MAX_LINE:
            self.overlong(peer, line)
            return None
        # A blank line is ignored.
        if not line.strip():
            return None
        try:
            parsed = parse_line(line)
        except WireError as error:
            scale.reject()
            self._warnings.warn(
                f"line {host_of(peer)}",
                "scale {scale_id}, {peer}: {error}: {line}",
                scale_id=scale.scale_id,
                peer=peer,
                error=error,
                line=shown(line),
            )
            return None
        if parsed.status == "OL":
            self._warnings.warn(f"OL {scale.scale_id}", "scale {scale_id}: overload", scale_id=scale.scale_id)
        return parsed

    def overlong(self, peer: str, line: bytes) -> None:
        """Count and log a line that is too long."""
        self._overlong.inc()
        self._warnings.warn(
            f"line {host_of(peer)}",
            "scale {scale_id}, {peer}: a line of more than {max_line} bytes is skipped: {line}",
            scale_id=self.name,
            peer=peer,
            max_line=MAX_LINE,
            line=shown(line),
        )

    def discard(self, data: bytes) -> None:
        """Count lines, or a part of one, that came too soon after connecting."""
        self._discarded.inc(sum(bool(line.strip()) for line in data.splitlines()))
