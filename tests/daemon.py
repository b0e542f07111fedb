"""A real ``twistd cynow-gateway`` on free ports, and the clients that tests talk to it with."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import websocket
import yaml

T = TypeVar("T")

#: Patience for what must happen, in seconds: a condition is awaited, so that a fast machine does not wait.
PATIENCE = 20.0

TWISTD = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "cynow-gateway"]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, below those that Linux gives to outgoing connections.

    Processes that share the tests have ports of their own: what one of them has found free, no other may take before
    it is used.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (32_000 - 10_000) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = 10_000 + worker * share + random.randrange(share)
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


def until(condition: Callable[[], T | None], what: str) -> T:
    """Wait for a condition to give something true, and give that."""
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.02)


class Daemon:
    """A gateway in a folder.

    :param settings: sections of the configuration that this test needs otherwise.
    """

    def __init__(self, folder: Path, twistd: list[str] | None = None, **settings: Any) -> None:
        self.folder = folder
        self.port, self.daq_port, self.scale_port = free_ports(3)
        self.config = folder / "cynow-gateway.yaml"
        tree: dict[str, Any] = {
            "server": {"port": self.port, "tcp_port": self.daq_port},
            "scale": {"port": self.scale_port},
        }
        for section, value in settings.items():
            tree[section] = {**tree.get(section, {}), **value} if isinstance(value, dict) else value
        self.config.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
        self._twistd = twistd or TWISTD
        self._errors = folder / "stderr.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients = contextlib.ExitStack()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "the daemon was not started"
        return self._process

    def run(self, *, env: dict[str, str] | None = None) -> None:
        """Start the process and do not wait."""
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*self._twistd, "--config", str(self.config)],
                cwd=self.folder,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **(env or {})},
            )

    def start(self, *, env: dict[str, str] | None = None) -> None:
        """Start the process and wait until it answers."""
        self.run(env=env)
        self.start_answers()

    def start_answers(self) -> None:
        """Wait until the process answers."""
        until(self._answers, "the gateway answers")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway has ended:\n{self.log()}")
        with contextlib.suppress(OSError):
            return self.get("/healthz")[0] == 200
        return False

    def log(self) -> str:
        return self._errors.read_text("utf-8")

    def kill(self) -> None:
        """SIGKILL, and what the operating system does after it."""
        self._clients.close()
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """However it stands, the process is gone afterwards."""
        self._clients.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # -- clients

    def get(self, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
        return self.request("GET", path, None, **headers)

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON where it is) and headers, whose names are in lower case."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return _answer(response.status, response.read(), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read(), error.headers)

    def commit(self, cylinder_no: str = "CY001", **fields: Any) -> tuple[int, Any, dict[str, str]]:
        headers = {"Idempotency_Key": fields.pop("key")} if "key" in fields else {}
        body = json.dumps({"cylinder_no": cylinder_no, "event_type": "SHIP", **fields}).encode()
        return self.request("POST", "/api/scale-gateway/commit/", body, **headers)

    def scale(self, port: int | None = None) -> socket.socket:
        """A connection as a scale makes it."""
        return self._clients.enter_context(socket.create_connection(("127.0.0.1", port or self.scale_port), PATIENCE))

    def weigh(self, *lines: bytes) -> None:
        """Send lines of a scale on a connection of their own."""
        with socket.create_connection(("127.0.0.1", self.scale_port), PATIENCE) as scale:
            scale.sendall(b"".join(line + b"\r\n" for line in lines))

    def latest_is(self, weight: float) -> Callable[[], bool]:
        return lambda: self.get("/api/scale-gateway/latest/")[1].get("weight") == weight

    def daq(self, *frames: bytes) -> socket.socket:
        """A connection as a DAQ program makes it, with what it says first."""
        connection = self._clients.enter_context(socket.create_connection(("127.0.0.1", self.daq_port), PATIENCE))
        connection.sendall(b"".join(frames))
        return connection

    def subscribe(self, *topics: str, since: int | None = None) -> "Subscriber":
        subscriber = Subscriber(self.stream())
        subscriber.say({"type": "subscribe", "topics": list(topics), **({} if since is None else {"since": since})})
        return subscriber

    def stream(self, **options: Any) -> websocket.WebSocket:
        """An open WebSocket."""
        client = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws", timeout=PATIENCE, **options)
        self._clients.callback(client.close)
        return client

    def metrics(self, name: str, **labels: str) -> list[float]:
        """The numbers of a name and some labels in ``/metrics``."""
        text = self.get("/metrics")[1].decode()
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        lines = (line.rpartition(" ") for line in text.splitlines())
        return [
            float(value)
            for found, _, value in lines
            if found.partition("{")[0] == name and all(label in found for label in wanted)
        ]

    def metric(self, name: str, **labels: str) -> float:
        """The one number of a name and its labels; 0 where it has not been counted yet."""
        return next(iter(self.metrics(name, **labels)), 0.0)

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Subscriber:
    """A WebSocket that follows topics."""

    def __init__(self, client: websocket.WebSocket) -> None:
        self.client = client

    def say(self, message: Any) -> None:
        self.client.send(json.dumps(message))

    def hear(self) -> Any:
        """The next message."""
        end = time.monotonic() + PATIENCE
        # Pings would keep a simple recv waiting for ever.
        while time.monotonic() < end:
            opcode, data = self.client.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_TEXT:
                return json.loads(data)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
        raise AssertionError("waited in vain for a message")

    def events(self, count: int, *names: str) -> list[Any]:
        """The next events, of some names only where they are given."""
        found: list[Any] = []
        while len(found) < count:
            message = self.hear()
            if message["type"] == "event" and (not names or message["event"] in names):
                found.append(message)
        return found


def _answer(status: int, content: bytes, headers: Any) -> tuple[int, Any, dict[str, str]]:
    lower = {name.lower(): value for name, value in headers.items()}
    is_json = lower.get("content-type", "").startswith("application/json")
    return status, json.loads(content) if is_json else content, lower


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Daemon]:
    """A gateway with settings of its own, for a block."""
    gateway = Daemon(folder, **settings)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.end()
