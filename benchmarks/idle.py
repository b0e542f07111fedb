"""Start and idle memory of the daemon."""

import socket
import statistics
import time
from pathlib import Path

from benchmarks.table import Row
from tests.daemon import Daemon


def idle(folder: Path) -> list[Row]:
    """Seconds from the start of the process to its first open port, and MiB resident when it has nothing to do."""
    starts, sizes = [], []
    for number in range(5):
        (folder / str(number)).mkdir()
        daemon = Daemon(folder / str(number))
        began = time.monotonic()
        daemon.run()
        while socket.socket().connect_ex(("127.0.0.1", daemon.scale_port)) != 0:
            time.sleep(0.005)
        starts.append(time.monotonic() - began)
        daemon.start_answers()
        time.sleep(1)
        sizes.append(daemon.resident_mib())
        daemon.end()
    start, size = statistics.median(starts), statistics.median(sizes)
    return [
        Row("start to listening, median of 5", f"{start:.2f} s", "under 2 s", start < 2),
        Row("resident at idle, median of 5", f"{size:.1f} MiB", "under 80 MB (76.3 MiB)", size * 2**20 < 80e6),
    ]
