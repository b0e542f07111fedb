"""``carbon-cache`` in a folder: it receives and caches values, and writes none of them.

It is not asked of this Python, for its plugins would be looked at by every ``twistd``: it has an environment of its
own, and ``CARBON_CACHE`` names its script.
"""

import contextlib
import os
import pickle
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final, Self

from tests.support.daemon import free_ports, until

#: Where the script is looked for: what this variable names, or the search path.
VARIABLE: Final = "CARBON_CACHE"

#: Its writer thread sleeps at its second value for three hours: a value in the cache costs what receiving it costs.
#: Nothing else is on that is not needed: no tags, no figures about itself, no lines of the log for each value.
_CONFIG: Final = """\
[cache]
STORAGE_DIR = {folder}
LOCAL_DATA_DIR = {folder}/whisper
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = {line}
PICKLE_RECEIVER_INTERFACE = 127.0.0.1
PICKLE_RECEIVER_PORT = {pickle}
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = {query}
MAX_CACHE_SIZE = inf
MAX_UPDATES_PER_SECOND = 0.0001
CARBON_METRIC_INTERVAL = 0
ENABLE_TAGS = False
LOG_UPDATES = False
LOG_CACHE_HITS = False
LOG_CACHE_QUEUE_SORTS = False
"""

_SCHEMAS: Final = "[all]\npattern = .*\nretentions = 60s:1d\n"

#: The value that its writer takes before it sleeps.
_FIRST: Final = b"first.value 1 1700000000\n"


def script() -> str | None:
    """The script of an installed ``carbon-cache``; ``None`` where there is none."""
    return shutil.which(os.environ.get(VARIABLE, "carbon-cache.py"))


class CarbonCache:
    """One that runs, for a block.

    :ivar line_port: of its line receiver.
    :ivar pickle_port: of its pickle receiver.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self.line_port, self.pickle_port, self._query_port = free_ports(3)
        config = _CONFIG.format(folder=folder, line=self.line_port, pickle=self.pickle_port, query=self._query_port)
        (folder / "carbon.conf").write_text(config, "utf-8")
        (folder / "storage-schemas.conf").write_text(_SCHEMAS, "utf-8")
        self._folder = folder
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [command, "--nodaemon", "--config", str(folder / "carbon.conf"), "start"],
                cwd=folder,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        until(self._takes_the_first, "carbon-cache takes values")
        until((self._folder / "whisper" / "first" / "value.wsp").exists, "carbon-cache's writer has begun")
        return self

    def _takes_the_first(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError((self._folder / "output.txt").read_text("utf-8"))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.line_port)) as connection:
            connection.sendall(_FIRST)
            return True
        return False

    def __exit__(self, *_: object) -> None:
        # A good end would wait for the writer.
        self.process.kill()
        self.process.wait()

    def count(self, metrics: list[str]) -> int:
        """How many values of some metrics the cache holds."""
        request = pickle.dumps({"type": "cache-query-bulk", "metrics": metrics}, protocol=2)
        with socket.create_connection(("127.0.0.1", self._query_port)) as connection:
            connection.sendall(len(request).to_bytes(4) + request)
            with connection.makefile("rb") as answer:
                found = pickle.loads(answer.read(int.from_bytes(answer.read(4))))
        return sum(map(len, found["datapointsByMetric"].values()))
