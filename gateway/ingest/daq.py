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
from gateway.ingest.machine_rules import MachineRules, Proofs, digest_of, no_client_names
from gateway.ingest.machines import MachineRegistry
from gateway.ingest.read_size import ReadSize
from gateway.ingest.takeovers import HOLD, Takeovers
from gateway.ingest.transport import host_of, peer_of, prepare
from gateway.model.records import Presence
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.transports import set_read_size
from gateway.wire.errors import WireError
from gateway.wire.frames import NEED_DATA, FrameReader
from gateway.wire.messages import DaqMessage, DataUpdate, Name, split_update
from gateway.wire.other_protocols import ServedPorts

log = Logger()

#: Maximum samples, and maximum messages, processed in one turn of the reactor: about a twentieth of a second.
MAX_TURN_SAMPLES: Final = 65_536
MAX_TURN_MESSAGES: Final = 500


class DaqProtocol(Protocol):
    """One connection of one DAQ program.

    :ivar machine: machine that its first frame named; ``None`` before that.
    :ivar proofs: proofs that it may use the name of that machine; ``None`` before that.
    :ivar is_closing: whether it is being closed; nothing more is read.
    :ivar is_busy: whether received messages are to be processed in a later turn; until then nothing is read.
    """

    transport: Any

    def __init__(self, daq: "DaqFactory", reader: FrameReader) -> None:
        self._daq = daq
        self._reader = reader
        self._name_timeout: IDelayedCall | None = None
        self.machine: str | None = None
        self.proofs: Proofs | None = None
        self.peer = ""
        self.is_closing = False
        self.is_busy = False
        self._next_turn: IDelayedCall | None = None
        #: The remaining parts of a large message.
        self._slices: deque[DataUpdate] = deque()
        #: Arrival time of the current read; all its messages have this time.
        self._arrival: datetime | None = None
        self._read = ReadSize()

    def connectionMade(self) -> None:
        prepare(self.transport, self._read.size)
        self.peer = peer_of(self.transport)
        self._name_timeout = self._daq.reactor.callLater(self._daq.name_timeout, self._time_out)
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
        if len(data) < self._read.size:
            self._process()
        else:
            began = self._daq.cpu_seconds()
            self._process()
            if self._read.adapt(self._daq.cpu_seconds() - began):
                set_read_size(self.transport, self._read.size)

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
        self._daq.refused(self, f"it has not sent its name in {self._daq.name_timeout:g} s{self.unread()}")
        self.close()

    def _cancel_name_timeout(self) -> None:
        if self._name_timeout is not None and self._name_timeout.active():
            self._name_timeout.cancel()

    def _handle(self, message: DaqMessage) -> None:
        if isinstance(message, Name):
            self._cancel_name_timeout()
            self.machine = message.machine
            self._daq.named(self, message)
            # The machine's previous connection may just have processed its remaining messages.
            self._arrival = self._daq.clock.now()
        elif self.machine is not None and self._arrival is not None:
            self._daq.messages.publish(self.machine, self.peer, message, self._arrival)


class DaqFactory(Factory):
    """All connections of DAQ programs.

    :param max_connections: maximum open connections, held ones included.
    :ivar machines: registry of the machines and their sensors.
    :ivar find_ports: function that returns the ports where other protocols are served; called at the first connection.
    :ivar name_timeout: seconds within which a connection must send the name of its machine.
    :ivar client_names: function that returns the names in the client certificate of a transport.
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
        self.name_timeout = settings.name_timeout_sec
        self.client_names: Callable[[Any], frozenset[str]] = no_client_names
        self._rules = MachineRules()
        self.find_ports: Callable[[], ServedPorts] = ServedPorts
        self._ports: ServedPorts | None = None
        self.machines = MachineRegistry(settings, clock.monotonic)
        self.messages = MachineMessages(bus, self.machines, clock, counters, warnings)
        self._takeovers = Takeovers(clock.monotonic, counters, warnings)
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
        self._unproven = counters.daq_unproven
        self._pauses = counters.daq_pauses

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
        self.name_timeout = settings.name_timeout_sec
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

    def use_rules(self, rules: MachineRules) -> None:
        """Replace the rules of machines, and refuse connections that do not satisfy them."""
        self._rules = rules
        for machine, protocol in list(self._connected.items()):
            if protocol.proofs is not None and not protocol.is_closing:
                self._refuse_unproven(protocol, machine, protocol.proofs)

    def _refuse_unproven(self, protocol: DaqProtocol, machine: str, proofs: Proofs) -> bool:
        """Refuse a connection if it lacks a proof for its machine; return whether it does."""
        missing = self._rules.missing_proof(machine, proofs)
        if missing is None:
            return False
        self._unproven.labels(missing.proof).inc()
        protocol.refuse(missing.reason)
        return True

    def named(self, protocol: DaqProtocol, name: Name) -> None:
        """Register the machine of a connection, or refuse it."""
        machine = name.machine
        secret = None if name.secret is None else digest_of(name.secret)
        proofs = Proofs(host_of(protocol.peer), self.client_names(protocol.transport), secret)
        if self._refuse_unproven(protocol, machine, proofs):
            return
        protocol.proofs = proofs
        problem = self.machines.enter(machine)
        if problem is not None:
            protocol.refuse(problem)
            return
        self._unnamed.pop(protocol, None)
        self.messages.count_name()
        before = self._connected.get(machine)
        self._connected[machine] = protocol
        if before is not None:
            before.hold(self._takeovers.add(machine, protocol.peer, before.peer))
            return
        self._warnings.info(
            f"presence {machine}", "machine {machine}: connected from {peer}", machine=machine, peer=protocol.peer
        )
        self._bus.publish(Presence("machine", machine, connected=True))

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
