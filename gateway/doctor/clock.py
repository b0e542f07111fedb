"""Check of the clock: its date, its synchronisation and its time zone."""

import ctypes
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import PATIENCE, Plant
from gateway.runtime.clock import zone_named

_YEARS: Final = range(2025, 2100)

#: State of ``adjtimex(2)`` for a clock that is not synchronised, and bytes that hold its structure on every machine.
_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512

_SYNCHRONISE: Final = "run chrony or systemd-timesyncd: timedatectl set-ntp true"


def check_clock(plant: Plant) -> Iterator[Finding]:
    """Look at the wall clock."""
    now = datetime.fromtimestamp(time.time(), UTC)
    if now.year not in _YEARS:
        yield error("clock", f"the clock shows {now:%Y-%m-%d %H:%M} UTC", f"set it, and {_SYNCHRONISE}")
    try:
        zone = zone_named(plant.settings.timezone)
    except (KeyError, ValueError, OSError):
        yield error("timezone", "cannot detect the system time zone", "set timezone, for example Asia/Seoul")
    else:
        yield ok("timezone", f"{zone}; it is {now.astimezone(zone):%Y-%m-%d %H:%M:%S %z} there")
    is_synchronised = _is_synchronised()
    if is_synchronised is None:
        yield warning("clock", "cannot find out whether the clock is synchronised", "look at chronyc tracking")
    elif is_synchronised:
        yield ok("clock", "synchronised by NTP")
    else:
        yield warning("clock", "not synchronised by NTP; times of arrival may be wrong", _SYNCHRONISE)


def _is_synchronised() -> bool | None:
    """Return whether NTP keeps the clock right; ``None`` if the system does not say."""
    program = shutil.which("timedatectl")
    if program is not None:
        command = [program, "show", "-p", "NTPSynchronized", "--value"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            done = None
        # Without systemd, as in a container, it fails.
        if done is not None and done.returncode == 0 and done.stdout.strip() in {"yes", "no"}:
            return done.stdout.strip() == "yes"
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)
