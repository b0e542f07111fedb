"""Check of the limit of open files."""

from collections.abc import Iterator
from typing import Final

from gateway.doctor.findings import Finding, ok, warning
from gateway.doctor.plant import Plant
from gateway.doctor.processes import max_open_files

#: Open files that let the connections of a plant and its files be open at once.
_ENOUGH: Final = 4096


def check_limits(plant: Plant) -> Iterator[Finding]:
    """Look at the limit of the running gateway: that of a shell says nothing about the service."""
    for pid in [] if plant.gateway is None else sorted(plant.gateway.pids):
        limit = max_open_files(pid)
        if limit is None:
            continue
        if limit < _ENOUGH:
            yield warning(
                "open files",
                f"process {pid} may open {limit} files",
                "set LimitNOFILE=65536 in the service (ulimit -n)",
            )
        else:
            yield ok("open files", f"process {pid} may open {limit} files")
