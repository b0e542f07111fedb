"""Items of peers, applied to the live state and published to the subscribers of this gateway."""

from datetime import tzinfo
from typing import Any

from gateway.bus.bus import Bus
from gateway.live.state import LOCAL, LiveState
from gateway.model.records import Arrival, Commit, Presence, Reading, Silence, Update
from gateway.relay.protocol import MachineItem, RecordItem, ScaleItem, SensorItem, read_item
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError


class InboundItems:
    """Receiver of the items of peers.

    Nothing received is sent on: items are published as remote records.

    :param zone: configured time zone.
    :param own_token: token of this gateway.
    """

    def __init__(self, bus: Bus, live: LiveState, counters: Counters, zone: tzinfo, own_token: str) -> None:
        self._bus = bus
        self._live = live
        self._counters = counters
        self._zone = zone
        self._own_token = own_token

    def apply(self, token: str, raw_item: Any) -> None:
        """Apply an item of a message.

        :param token: token of its sender.
        :raises WireError: the item is not valid, or there are too many names.
        """
        match read_item(raw_item, self._zone):
            case RecordItem() as item:
                self._counters.relay_received.inc()
                if self._apply_record(token, item):
                    self._bus.publish(item.record, remote=True, time=item.time)
            case ScaleItem() as item:
                self._add_scale(item.presence.name, item.idle_timeout)
                arrival = item.arrival
                if arrival is not None and arrival.gateway == self._own_token:
                    # A peer returns what came from this gateway.
                    arrival = arrival._replace(gateway=LOCAL)
                if item.latest is not None:
                    self._live.note_remote_verdict(item.latest)
                if item.latest is not None and self._live.apply_remote_reading(item.latest, item.age, arrival):
                    self._bus.publish(item.latest, remote=True, time=item.latest.received_at)
                self._apply_presence(token, item.presence)
            case MachineItem() as item:
                self._add_machine(item.presence.name)
                self._apply_presence(token, item.presence)
            case SensorItem() as item:
                # Updates of a known sensor that are new were missed: subscribers get them now.
                for update in self._live.apply_remote_updates(item.updates) or ():
                    self._bus.publish(update, remote=True, time=update.minute_end)

    def forget(self, token: str) -> None:
        """Publish the disconnection of all scales and machines that were connected to one gateway only.

        :param token: token of that gateway.
        """
        for presence in self._live.forget(token):
            self._bus.publish(presence, remote=True)

    def _apply_record(self, token: str, item: RecordItem) -> bool:
        """Apply a record to the live state; return whether it is new to subscribers."""
        live, record = self._live, item.record
        match record:
            case Reading():
                self._add_scale(record.scale_id, item.idle_timeout)
                live.note_remote_verdict(record)
                # A state may have contained it already.
                if record.settled:
                    arrival = None if item.arrived is None else Arrival(token, item.arrived)
                    is_applied = live.apply_remote_reading(record, item.age, arrival)
                    return is_applied or live.latest(record.scale_id) != record
            case Commit():
                live.note_remote_commit(record)
            case Update():
                if record in live.recent(record.machine).get(record.sensor, ()):
                    return False
                live.apply_remote_updates([record])
            case Silence():
                self._add_scale(record.scale_id, item.idle_timeout)
            case Presence():
                if record.source == "scale":
                    self._add_scale(record.name, item.idle_timeout)
                else:
                    self._add_machine(record.name)
                return live.apply_remote_presence(token, record)
        return True

    def _apply_presence(self, token: str, presence: Presence) -> None:
        if self._live.apply_remote_presence(token, presence):
            self._bus.publish(presence, remote=True)

    def _add_scale(self, scale_id: str, idle_timeout: float) -> None:
        if not self._live.apply_remote_scale(scale_id, idle_timeout):
            raise WireError("there are too many names of scales and machines")

    def _add_machine(self, machine: str) -> None:
        if not self._live.apply_remote_machine(machine):
            raise WireError("there are too many names of scales and machines")
