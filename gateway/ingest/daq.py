"""DAQ programs: frames in, batches and faults out."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.bus import Bus
from gateway.clock import WallClock
from gateway.counters import Counters
from gateway.ingest.transport import peer_of, prepare, read_by
from gateway.logs import LimitedLog
from gateway.model import Batch, Fault, Presence, SensorBatch
from gateway.wire.errors import WireError
from gateway.wire.frames import FrameReader
from gateway.wire.messages import DataUpdate, FaultDetect, Message, Misshapen, Name

log = Logger()

#: A connection has so many seconds to say which machine it is.
NAME_TIMEOUT: Final = 60.0

#: What is read of a connection before the others have their turn, in bytes: at first room for a usual message, and
#: more where that was full, up to some 7,000 samples. A buffer that is much too large would leave holes in the memory.
_LEAST_READ: Final = 4 * 1024
_MOST_READ: Final = 64 * 1024

#: Samples that are dealt with in one turn of the reactor: about a twentieth of a second.
SLICE: Final = 65_536


def slices(update: DataUpdate) -> Iterator[DataUpdate]:
    """A message as several of at most :data:`SLICE` samples, in order; mostly it is one."""
    sensors: dict[str, SensorBatch] = {}
    room = SLICE
    for name, sensor in update.sensors.items():
        samples = sensor.samples
        start = 0
        while len(samples) - start > room:
            yield DataUpdate({**sensors, name: SensorBatch(sensor.type, samples[start : start + room])}, SLICE)
            start += room
            sensors = {}
            room = SLICE
        sensors[name] = SensorBatch(sensor.type, samples[start:]) if start else sensor
        room -= len(samples) - start
    yield DataUpdate(sensors, SLICE - room)


class DaqProtocol(Protocol):
    """One connection of one DAQ program.

    :ivar machine: what its first frame said.
    """

    transport: Any

    def __init__(self, daq: "DaqFactory", reader: FrameReader) -> None:
        self._daq = daq
        self._reader = reader
        self._name_timeout: IDelayedCall | None = None
        self.machine: str | None = None
        self.peer = ""
        self.closing = False
        #: In the middle of a message that takes more than one turn.
        self.busy = False
        self._early = b""
        self._next: IDelayedCall | None = None
        self._left: tuple[list[DataUpdate], Iterator[Message]] = ([], iter(()))
        #: When what is being read came: all of one read has one time.
        self._arrival: datetime | None = None
        self._in_hurry = False
        self._read_size = _LEAST_READ

    def connectionMade(self) -> None:
        prepare(self.transport, _LEAST_READ)
        self.peer = peer_of(self.transport)
        self._name_timeout = self._daq.reactor.callLater(NAME_TIMEOUT, self.refuse, "it said no name in time")
        self._daq.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._hurry()
        self._stop_waiting()
        self._daq.left(self)

    def dataReceived(self, data: bytes) -> None:
        if self.busy:
            # Some transports give what they have read already.
            self._early += data
        elif not self.closing:
            if len(data) == self._read_size < _MOST_READ:
                self._read_size *= 4
                read_by(self.transport, self._read_size)
            self._arrival = self._daq.clock.now()
            self._go_through(self._reader.feed(data))

    def _go_through(self, messages: Iterator[Message]) -> None:
        try:
            for message in messages:
                if isinstance(message, DataUpdate) and message.size > SLICE:
                    pieces = slices(message)
                    self._received(next(pieces))
                    if self._put_off(list(pieces), messages):
                        return
                else:
                    self._received(message)
                if self.closing:
                    return
        except WireError as error:
            self.refuse(str(error))

    def _put_off(self, pieces: list[DataUpdate], messages: Iterator[Message]) -> bool:
        """Go on with what is left when everybody else has had a turn; nothing is read before that."""
        if self._in_hurry:
            for piece in pieces:
                self._received(piece)
            return False
        if not pieces or self.closing:
            return False
        self.busy = True
        self._left = (pieces, messages)
        self._daq.steer(self)
        self._next = self._daq.reactor.callLater(0, self._go_on)
        return True

    def _go_on(self) -> None:
        pieces, messages = self._left
        self._next = None
        self.busy = False
        self._arrival = self._daq.clock.now()
        self._received(pieces[0])
        if self._put_off(pieces[1:], messages) or self.closing:
            return
        self._go_through(messages)
        if not self.busy and not self.closing:
            early, self._early = self._early, b""
            self._daq.steer(self)
            self.dataReceived(early)

    def _hurry(self) -> None:
        """Deal with what has been received before the end, in this one turn."""
        if self._next is not None:
            self._next.cancel()
            self._in_hurry = True
            self._go_on()

    def refuse(self, reason: str) -> None:
        """Close the connection for what it sent."""
        self._daq.refused(self, reason)
        self.close()

    def close(self) -> None:
        """Close the connection; what it still sends is not read."""
        self._hurry()
        self.closing = True
        self._stop_waiting()
        self.transport.loseConnection()

    def _stop_waiting(self) -> None:
        if self._name_timeout is not None and self._name_timeout.active():
            self._name_timeout.cancel()

    def _received(self, message: Message) -> None:
        if isinstance(message, Name):
            self._stop_waiting()
            self.machine = message.machine
            self._daq.named(self, message.machine)
            # Who was connected before may have had something left, which has come by now.
            self._arrival = self._daq.clock.now()
        elif self.machine is not None and self._arrival is not None:
            self._daq.message(self, self.machine, message, self._arrival)


class DaqFactory(Factory):
    """All connections of DAQ programs.

    :param most: connections that may be open at a time.
    :param most_machines: machines that may be known at a time; a connection of one more is closed.
    :param most_sensors: sensors of all machines that may be known; a frame that brings one more is dropped.
    :param most_machine_sensors: the same, of one machine.
    """

    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        bus: Bus,
        clock: WallClock,
        counters: Counters,
        warnings: LimitedLog,
        *,
        max_frame_bytes: int,
        most: int,
        most_machines: int,
        most_sensors: int,
        most_machine_sensors: int,
    ) -> None:
        self.reactor = reactor
        self._bus = bus
        self.clock = clock
        self._warnings = warnings
        self._max_frame_bytes = max_frame_bytes
        self._most = most
        self._most_machines = most_machines
        self._most_sensors = most_sensors
        self._most_machine_sensors = most_machine_sensors
        self._open: set[DaqProtocol] = set()
        #: The one connection of each machine that is connected.
        self._speaking: dict[str, DaqProtocol] = {}
        #: Every machine that has said its name, and its sensors.
        self._machines: dict[str, set[str]] = {}
        self._sensors = 0
        self._paused = False
        self._connections = counters.connections.labels("daq")
        self._connections_refused = counters.connections_refused.labels("daq")
        self._messages = {event: counters.daq_messages.labels(event) for event in ("name", "DataUpdate", "FaultDetect")}
        self._samples = counters.daq_samples
        self._dropped = counters.daq_dropped
        self._refused = counters.daq_refused
        self._pauses = counters.daq_pauses

    def buildProtocol(self, addr: IAddress | None) -> DaqProtocol | None:
        if len(self._open) >= self._most:
            self._connections_refused.inc()
            self._warnings.warn("connections", "DAQ: too many connections")
            return None
        return DaqProtocol(self, FrameReader(self._max_frame_bytes))

    def close(self) -> None:
        """Close every connection."""
        for protocol in list(self._open):
            protocol.close()

    def pause(self, paused: bool) -> None:
        """Read nothing more for now, or go on: the senders wait, by TCP's own means."""
        self._paused = paused
        if paused:
            self._pauses.inc()
            log.warn("the store is behind: DAQ connections are paused")
        for protocol in self._open:
            self.steer(protocol)

    def steer(self, protocol: DaqProtocol) -> None:
        """Let a connection be read, or not for now."""
        if self._paused or protocol.busy:
            protocol.transport.pauseProducing()
        else:
            protocol.transport.resumeProducing()

    # -- what its connections say

    def joined(self, protocol: DaqProtocol) -> None:
        self._open.add(protocol)
        self._connections.inc()
        if self._paused:
            self.steer(protocol)

    def left(self, protocol: DaqProtocol) -> None:
        self._open.remove(protocol)
        self._connections.dec()
        machine = protocol.machine
        if machine is not None and self._speaking.get(machine) is protocol:
            del self._speaking[machine]
            self._warnings.info(f"presence {machine}", "machine {machine} is disconnected", machine=machine)
            self._bus.publish(Presence("machine", machine, connected=False))

    def named(self, protocol: DaqProtocol, machine: str) -> None:
        if machine not in self._machines and len(self._machines) >= self._most_machines:
            protocol.refuse("more machines than daq.max_machines")
            return
        self._messages["name"].inc()
        self._machines.setdefault(machine, set())
        before = self._speaking.get(machine)
        self._speaking[machine] = protocol
        if before is not None:
            self._warnings.info(
                f"presence {machine}", "machine {machine}: {peer} takes over", machine=machine, peer=protocol.peer
            )
            before.close()
            return
        self._warnings.info(
            f"presence {machine}", "machine {machine} is connected from {peer}", machine=machine, peer=protocol.peer
        )
        self._bus.publish(Presence("machine", machine, connected=True))

    def message(self, protocol: DaqProtocol, machine: str, message: Message, time: datetime) -> None:
        match message:
            case DataUpdate(sensors=sensors, size=size):
                if not self._admit(machine, sensors):
                    self._drop(protocol, machine, "more sensors than daq.max_sensors or daq.max_machine_sensors")
                    return
                self._messages["DataUpdate"].inc()
                self._samples.inc(size)
                self._bus.publish(Batch(machine, sensors, time), time=time)
            case FaultDetect(score=score, threshold=threshold):
                self._messages["FaultDetect"].inc()
                self._bus.publish(Fault(machine, score, threshold, time), time=time)
            case Misshapen(reason=reason):
                self._drop(protocol, machine, reason)

    def refused(self, protocol: DaqProtocol, reason: str) -> None:
        self._refused.inc()
        self._warnings.warn(
            f"refused {protocol.peer.rpartition(':')[0]}",
            "DAQ connection of {peer} (machine {machine}) is closed: {reason}",
            peer=protocol.peer,
            machine=protocol.machine,
            reason=reason,
        )

    def _drop(self, protocol: DaqProtocol, machine: str, reason: str) -> None:
        self._dropped.inc()
        self._warnings.warn(
            f"dropped {machine}",
            "DAQ message of machine {machine}, {peer}, is dropped: {reason}",
            machine=machine,
            peer=protocol.peer,
            reason=reason,
        )

    def _admit(self, machine: str, sensors: Mapping[str, object]) -> bool:
        """Take new sensors into account, unless they are too many."""
        known = self._machines[machine]
        if sensors.keys() <= known:
            return True
        new = sensors.keys() - known
        if self._sensors + len(new) > self._most_sensors or len(known) + len(new) > self._most_machine_sensors:
            return False
        known |= new
        self._sensors += len(new)
        return True
