"""A real Prometheus server that scrapes a gateway."""

import contextlib
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import program
from tests.support.daemon import PATIENCE, free_ports, until


class PrometheusServer:
    """A server on a free port of the loopback.

    :param config: file of its configuration, beside which it keeps its data.
    """

    def __init__(self, config: Path) -> None:
        (self.port,) = free_ports(1)
        self._config = config
        self._log = config.with_name("prometheus.txt")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            program("prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._config.with_name('prometheus')}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._config.parent)
        until(self._answers, "Prometheus answers")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text("utf-8")
        with contextlib.suppress(OSError):
            self._get("/-/ready")
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
            content: bytes = answer.read()
            return content

    def api(self, path: str, **arguments: str) -> Any:
        """Return the data of an answer of its API; an answer with an error fails."""
        query = urllib.parse.urlencode(arguments)
        answer = json.loads(self._get(f"/api/v1/{path}?{query}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the current result of an expression."""
        found: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return found


@contextlib.contextmanager
def scraping(config: Path) -> Iterator[PrometheusServer]:
    """A running server, for a block."""
    server = PrometheusServer(config)
    try:
        server.start()
        yield server
    finally:
        server.stop()
