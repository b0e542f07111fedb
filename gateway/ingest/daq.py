"""DAQ programs: frames in, batches and faults out."""

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus.bus import Bus
from gateway.config.settings import DaqSettings
from gateway.ingest.daq_messages import MachineMessages
from gateway.ingest.holding import HeldConnections
from gateway.ingest.machines import MachineRegistry, TakeoverHistory
from gateway.ingest.transport import peer_of, prepare, set_read_size
from gateway.model.records import Presence
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError
from gateway.wire.frames import NEED_DATA, FrameReader
from gateway.wire.messages import DaqMessage, DataUpdate, Name, split_update
from gateway.wire.other_protocols import ServedPorts

log = Logger()

#: Seconds within which a connection must send the name of its machine.
NAME_TIMEOUT: Final = 60.0

#: Minimum and maximum bytes of one read: at first enough for a usual message; larger if a read was full, up to about
#: 7,000 samples. Much larger buffers would fragment the memory.
_MIN_READ: Final = 4 * 1024
_MAX_READ: Final = 64 * 1024

#: Maximum CPU seconds of a full read; a connection that exceeds it gets smaller reads.
_MAX_READ_SECONDS: Final = 0.03

#: Maximum samples, and maximum messages, processed in one turn of the reactor: about a twentieth of a second.
MAX_TURN_SAMPLES: Final = 65_536
MAX_TURN_MESSAGES: Final = 500

#: Seconds for which a refused connection, or the first one that is taken over, is held unread before it is closed.
HOLD: Final = 1.0

#: Maximum hold when takeovers of a machine repeat, in seconds.
MAX_HOLD: Final = 10.0


class DaqProtocol(Protocol):
    """One connection of one DAQ program.

    :ivar machine: machine that its first frame named; ``None`` before that.
    :ivar is_closing: whether it is being closed; nothing more is read.
    :ivar is_busy: whether received messages are to be processed in a later turn; until then nothing is read.
    """

    transport: Any

    def __init__(self, daq: "DaqFactory", reader: FrameReader) -> None:
        self._daq = daq
        self._reader = reader
        self._name_timeout: IDelayedCall | None = None
        self.machine: str | None = None
        self.peer = ""
        self.is_closing = False
        self.is_busy = False
        self._next_turn: IDelayedCall | None = None
        #: The remaining parts of a large message.
        self._slices: deque[DataUpdate] = deque()
        #: Arrival time of the current read; all its messages have this time.
        self._arrival: datetime | None = None
        self._read_size = _MIN_READ
        self._is_slow = False

    def connectionMade(self) -> None:
        prepare(self.transport, _MIN_READ)
        self.peer = peer_of(self.transport)
        self._name_timeout = self._daq.reactor.callLater(NAME_TIMEOUT, self._time_out)
        self._daq.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._finish()
        self._cancel_name_timeout()
        self._daq.holding.forget(self.transport)
        self._daq.left(self)

    def dataReceived(self, data: bytes) -> None:
        if self.is_closing:
            return
        self._reader.receive_data(data)
        if self.is_busy:
            # Some transports deliver bytes that they read before they were paused.
            return
        self._arrival = self._daq.clock.now()
        if len(data) < self._read_size:
            self._process()
        else:
            began = self._daq.cpu_seconds()
            self._process()
            self._adapt(self._daq.cpu_seconds() - began)

    def _adapt(self, spent: float) -> None:
        """Adapt the size of later reads: larger if this one was quick, the smallest from now on if it was slow.

        :param spent: CPU seconds that a full read took.
        """
        size = self._read_size
        if spent > _MAX_READ_SECONDS:
            self._is_slow = True
            size = _MIN_READ
        elif not self._is_slow and 4 * spent <= _MAX_READ_SECONDS:
            size = min(4 * size, _MAX_READ)
        if size != self._read_size:
            self._read_size = size
            set_read_size(self.transport, size)

    def _process(self, *, to_end: bool = False) -> None:
        """Process the received messages; after many of them, continue in a later turn of the reactor.

        :param to_end: process all of them in this turn.
        """
        reader, slices = self._reader, self._slices
        count = 0
        try:
            while not self.is_closing:
                message = slices.popleft() if slices else reader.next_message()
                if message is NEED_DATA:
                    return
                if isinstance(message, DataUpdate) and message.size > MAX_TURN_SAMPLES:
                    slices.extend(split_update(message, MAX_TURN_SAMPLES))
                    message = slices.popleft()
                self._handle(message)
                count += 1
                if (slices or count == MAX_TURN_MESSAGES) and not to_end:
                    self._continue_later()
                    return
        except WireError as error:
            self.refuse(str(error))

    def _continue_later(self) -> None:
        """Pause reading, and process the remaining messages in a later turn of the reactor."""
        if not self.is_closing:
            self.is_busy = True
            self._daq.steer(self)
            self._next_turn = self._daq.reactor.callLater(0, self._continue)

    def _continue(self, *, to_end: bool = False) -> None:
        self._next_turn = None
        self.is_busy = False
        self._arrival = self._daq.clock.now()
        self._process(to_end=to_end)
        if not self.is_busy:
            self._daq.steer(self)

    def _finish(self) -> None:
        """Process everything received so far in this turn, because the connection ends."""
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._continue(to_end=True)

    def refuse(self, reason: str) -> None:
        """Refuse the connection, but hold it before closing: its program may reconnect endlessly."""
        self._daq.refused(self, reason)
        self.hold(HOLD)

    def hold(self, seconds: float) -> None:
        """Close the connection after some seconds; read nothing more."""
        if self._end():
            self._daq.holding.hold(self.transport, seconds)

    def close(self) -> None:
        """Close the connection now; read nothing more."""
        if self._end():
            self.transport.loseConnection()
        else:
            self._daq.holding.close(self.transport)

    def evict(self, reason: str) -> None:
        """Close the connection at once to admit another one."""
        if not self.is_closing:
            self._daq.refused(self, reason)
        self._end()
        self.transport.abortConnection()

    def _end(self) -> bool:
        """Process the bytes received so far and stop; return false if the connection was already ending."""
        self._finish()
        if self.is_closing:
            return False
        self.is_closing = True
        self._cancel_name_timeout()
        return True

    def unread(self) -> str:
        """Return a description of the unread bytes, as the end of a log line; empty without any, or after a refusal."""
        unfinished = "" if self.is_closing else self._reader.unfinished()
        return f"; {unfinished}" if unfinished else ""

    def _time_out(self) -> None:
        self._daq.refused(self, f"it has not sent its name in {NAME_TIMEOUT:.0f} s{self.unread()}")
        self.close()

    def _cancel_name_timeout(self) -> None:
        if self._name_timeout is not None and self._name_timeout.active():
            self._name_timeout.cancel()

    def _handle(self, message: DaqMessage) -> None:
        if isinstance(message, Name):
            self._cancel_name_timeout()
            self.machine = message.machine
            self._daq.named(self, message.machine)
            # The machine's previous connection may just have processed its remaining messages.
            self._arrival = self._daq.clock.now()
        elif self.machine is not None and self._arrival is not None:
            self._daq.messages.publish(self.machine, self.peer, message, self._arrival)


class DaqFactory(Factory):
    """All connections of DAQ programs.

    :param max_connections: maximum open connections, held ones included.
    :ivar machines: registry of the machines and their sensors.
    :ivar find_ports: function that returns the ports where other protocols are served; called at the first connection.
    :ivar cpu_seconds: CPU time of the reactor's thread.
    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        settings: DaqSettings,
        max_connections: int,
    ) -> None:
        self.reactor = reactor
        self._bus = bus
        self.clock = clock
        self.cpu_seconds = time.thread_time
        self._warnings = warnings
        self._max_frame_bytes = settings.max_frame_bytes
        self._max_connections = max_connections
        self.find_ports: Callable[[], ServedPorts] = ServedPorts
        self._ports: ServedPorts | None = None
        self.machines = MachineRegistry(settings, clock.monotonic)
        self.messages = MachineMessages(bus, self.machines, clock, counters, warnings)
        self._takeovers = TakeoverHistory(clock.monotonic)
        self.holding = HeldConnections(reactor)
        self._open: set[DaqProtocol] = set()
        #: Open connections without a name yet, the oldest first.
        self._unnamed: dict[DaqProtocol, None] = {}
        #: Open connections that are being closed in favour of others.
        self._evicted: set[DaqProtocol] = set()
        #: The current connection of each connected machine.
        self._connected: dict[str, DaqProtocol] = {}
        self._paused = False
        self._connections = counters.connections.labels("daq")
        self._connections_refused = counters.connections_refused.labels("daq")
        self._refused = counters.daq_refused
        self._pauses = counters.daq_pauses
        self._taken_over = counters.daq_takeovers

    def buildProtocol(self, addr: IAddress | None) -> DaqProtocol | None:
        if len(self._open) - len(self._evicted) >= self._max_connections and not self._evict_unnamed():
            self._connections_refused.inc()
            self._warnings.warn(
                "connections",
                "DAQ: connection refused: limits.connections ({max_connections}) is reached",
                max_connections=self._max_connections,
            )
            return None
        if self._ports is None:
            # Port numbers are known only once connections arrive.
            self._ports = self.find_ports()
        return DaqProtocol(self, FrameReader(self._max_frame_bytes, self._ports))

    def update(self, settings: DaqSettings, max_connections: int) -> None:
        """Change the limits, those of frames for new connections; scales may have other ports now."""
        self._max_frame_bytes, self._max_connections = settings.max_frame_bytes, max_connections
        self.machines.update(settings)
        self._ports = None

    def _evict_unnamed(self) -> bool:
        """Close the oldest connection without a name; return whether there was one."""
        protocol = next(iter(self._unnamed), None)
        if protocol is None:
            return False
        del self._unnamed[protocol]
        self._evicted.add(protocol)
        protocol.evict(f"limits.connections ({self._max_connections}) is reached, and it has not sent its name")
        return True

    def close(self) -> None:
        """Close every connection."""
        for protocol in list(self._open):
            protocol.close()

    def problems(self) -> list[str]:
        """Return the problems with refused machines and left-out sensors, for ``/healthz``."""
        return [*self.machines.problems(), *self.messages.problems()]

    def pause(self, paused: bool) -> None:
        """Pause or resume reading from all connections; TCP's flow control makes the senders wait."""
        self._paused = paused
        if paused:
            self._pauses.inc()
            log.warn("DAQ: reading is paused: too many entries wait for the store")
        for protocol in self._open:
            self.steer(protocol)

    def steer(self, protocol: DaqProtocol) -> None:
        """Resume or pause reading of a connection; one that is ending is never read."""
        if protocol.is_closing:
            return
        if self._paused or protocol.is_busy:
            protocol.transport.pauseProducing()
        else:
            protocol.transport.resumeProducing()

    # -- events of the connections

    def joined(self, protocol: DaqProtocol) -> None:
        """Register a connection that was made."""
        self._open.add(protocol)
        self._unnamed[protocol] = None
        self._connections.inc()
        if self._paused:
            self.steer(protocol)

    def left(self, protocol: DaqProtocol) -> None:
        """Forget a connection that has ended."""
        self._open.remove(protocol)
        self._unnamed.pop(protocol, None)
        self._evicted.discard(protocol)
        self._connections.dec()
        machine = protocol.machine
        unread = protocol.unread()
        if machine is None and unread:
            self._warnings.warn(
                f"refused {protocol.peer.rpartition(':')[0]}",
                "DAQ connection of {peer}: closed before it sent a machine's name{unread}",
                peer=protocol.peer,
                unread=unread,
            )
        if machine is not None and self._connected.get(machine) is protocol:
            del self._connected[machine]
            self.machines.leave(machine)
            self._warnings.info(
                f"presence {machine}", "machine {machine}: disconnected{unread}", machine=machine, unread=unread
            )
            self._bus.publish(Presence("machine", machine, connected=False))

    def named(self, protocol: DaqProtocol, machine: str) -> None:
        """Register the machine of a connection, or refuse it."""
        problem = self.machines.enter(machine)
        if problem is not None:
            protocol.refuse(problem)
            return
        self._unnamed.pop(protocol, None)
        self.messages.count_name()
        before = self._connected.get(machine)
        self._connected[machine] = protocol
        if before is not None:
            self._take_over(machine, before, protocol)
            return
        self._warnings.info(
            f"presence {machine}", "machine {machine}: connected from {peer}", machine=machine, peer=protocol.peer
        )
        self._bus.publish(Presence("machine", machine, connected=True))

    def _take_over(self, machine: str, before: DaqProtocol, protocol: DaqProtocol) -> None:
        """Hold the connection of a machine that a new one replaces; longer if this repeats."""
        self._taken_over.inc()
        count = self._takeovers.add(machine)
        fields = {"machine": machine, "peer": protocol.peer, "before": before.peer, "count": count}
        text = "machine {machine}: {peer} takes over from {before}"
        if count == 1:
            self._warnings.info(f"presence {machine}", text, **fields)
        else:
            text += ", takeover {count} in a row; if two programs send under one name, give each its own name"
            self._warnings.warn(f"takeover {machine}", text, **fields)
        before.hold(min(HOLD * 2 ** min(count - 1, 10), MAX_HOLD))

    def refused(self, protocol: DaqProtocol, reason: str) -> None:
        """Count and log a connection that is closed by the gateway."""
        self._refused.inc()
        self._warnings.warn(
            f"refused {protocol.peer.rpartition(':')[0]}",
            "DAQ connection of {peer}{machine} is closed: {reason}",
            peer=protocol.peer,
            machine="" if protocol.machine is None else f" (machine {protocol.machine})",
            reason=reason,
        )
