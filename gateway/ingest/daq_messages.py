"""Messages of machines as records on the bus."""

from datetime import datetime

from gateway.bus.bus import Bus
from gateway.ingest.left_out import LeftOutSensors
from gateway.ingest.machines import MachineRegistry
from gateway.model.records import Batch, Fault
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.wire.messages import DaqMessage, DataUpdate, FaultDetect, InvalidMessage, OmittedSensor


class MachineMessages:
    """Publisher of the messages of all machines; invalid ones are counted, logged and dropped."""

    def __init__(
        self, bus: Bus, machines: MachineRegistry, clock: WallClock, counters: Counters, warnings: LimitedLog
    ) -> None:
        self._bus = bus
        self._machines = machines
        self._warnings = warnings
        self._left_out = LeftOutSensors(counters, warnings, clock.monotonic)
        self._names = counters.daq_messages.labels("name")
        self._updates = counters.daq_messages.labels("DataUpdate")
        self._faults = counters.daq_messages.labels("FaultDetect")
        self._samples = counters.daq_samples
        self._dropped = counters.daq_dropped

    def count_name(self) -> None:
        """Count the name of a machine that was admitted."""
        self._names.inc()

    def problems(self) -> list[str]:
        """Return the problems with left-out sensors, for ``/healthz``."""
        return self._left_out.problems()

    def publish(self, machine: str, peer: str, message: DaqMessage, time: datetime) -> None:
        """Publish the record of a message.

        :param peer: address of the connection, for log lines.
        :param time: time of arrival.
        """
        match message:
            case DataUpdate():
                self._publish_update(machine, peer, message, time)
            case FaultDetect(score=score, threshold=threshold):
                self._faults.inc()
                fault = Fault(machine, score, threshold, time)
                if fault.is_anomaly:
                    self._machines.keep(machine)
                self._bus.publish(fault, time=time)
            case InvalidMessage(left_out=[_, *_] as left_out):
                self._dropped.inc()
                self._left_out.add(machine, peer, left_out)
            case InvalidMessage(reason=reason):
                self._drop(machine, peer, reason)

    def _publish_update(self, machine: str, peer: str, update: DataUpdate, time: datetime) -> None:
        sensors, size = update.sensors, update.size
        admitted, refused = self._machines.admit(machine, sensors)
        left_out: list[OmittedSensor] = [*update.left_out, *refused]
        if admitted is not sensors:
            size = sum(len(sensor.samples) for sensor in admitted.values())
        self._left_out.remove(machine, admitted)
        if left_out:
            self._left_out.add(machine, peer, left_out)
            if not admitted:
                self._dropped.inc()
                return
        self._updates.inc()
        self._samples.inc(size)
        self._bus.publish(Batch(machine, admitted, time), time=time)

    def _drop(self, machine: str, peer: str, reason: str) -> None:
        self._dropped.inc()
        self._warnings.warn(
            f"dropped {machine}",
            "DAQ message of machine {machine}, {peer}, is dropped: {reason}",
            machine=machine,
            peer=peer,
            reason=reason,
        )
