"""Last updates of a sensor, computed again from samples that rows already count."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Final

from gateway.model.records import Update
from gateway.raw import lines
from gateway.raw.files import RawFile
from gateway.raw.lines import LineClock
from gateway.stats.rollup import Rollup
from gateway.store.interface import SensorState

#: Maximum further bytes to search backwards for the last updates of a sensor that sends with gaps.
_MAX_SEARCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open raw file.

    :ivar size: size of the content in bytes, decompressed.
    :ivar begin: offset of the first sample that no row counts.
    """

    file: RawFile
    content: io.BufferedIOBase
    size: int
    begin: int


class RecentUpdates:
    """Reader of the last updates before the samples that a recovery reads.

    :param new_rollup: returns a new rollup.
    """

    def __init__(self, zone: tzinfo, new_rollup: Callable[[], Rollup]) -> None:
        self._zone = zone
        self._new_rollup = new_rollup

    def read(self, state: SensorState, open_files: Sequence[OpenFile], count: int) -> list[Update]:
        """Return about this number of the last updates of a sensor, oldest first; fewer if fewer exist."""
        updates: list[Update] = []
        for open_file in reversed(open_files):
            if len(updates) < count:
                updates[:0] = self._read_file(state, open_file, count - len(updates))
        return updates

    def _read_file(self, state: SensorState, open_file: OpenFile, count: int) -> list[Update]:
        last = lines.last_clock(open_file.content, open_file.begin)
        if last is None:
            return []
        until = LineClock(open_file.file.day, self._zone).time(last)
        updates: list[Update] = []
        for minutes in (count, 6 * count, 24 * 60):
            since = until.replace(second=0) - timedelta(minutes=minutes - 1)
            begin = 0
            if since.date() == open_file.file.day:
                begin = lines.offset_of(open_file.content, open_file.begin, line_prefix(since))
            if updates and open_file.begin - begin > _MAX_SEARCH_BYTES:
                break
            updates = self._updates_from(state, open_file, begin)
            if len(updates) >= count or begin == 0:
                break
        return updates

    def _updates_from(self, state: SensorState, open_file: OpenFile, begin: int) -> list[Update]:
        """Return the updates of the samples between an offset and the first sample that no row counts."""
        rollup = self._new_rollup()
        rollup.resume(state.machine, state.sensor, state.type, {})
        clock = LineClock(open_file.file.day, self._zone)
        updates: list[Update] = []
        time = None
        for run in lines.runs(open_file.content, begin):
            if run.end > open_file.begin:
                break
            time = clock.time(run.clock)
            updates += rollup.replay(state.machine, state.sensor, time, run.samples).updates
        # Rows end with an hour, and so does their last minute.
        return updates if time is None else updates + rollup.advance(time + timedelta(days=1)).updates


def line_prefix(time: datetime) -> bytes:
    """Return the beginning of the lines of a second, ``HH:MM:SS,``."""
    return f"{time:%H:%M:%S},".encode()
