"""A real ``twistd cynow-gateway`` on free ports, and the clients that tests talk to it with."""

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import websocket
import yaml

T = TypeVar("T")

#: Patience for what must happen, in seconds: a condition is awaited, so that only a failure takes so long. A minute of
#: the wall clock ends within it, and pytest's own limit of a test is a multiple of it.
PATIENCE = 90.0

#: Seconds within which the gateway promises to end, and to say that it cannot start.
END = 5.0

TWISTD = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", "cynow-gateway"]

#: Blocks of ports below those that Linux gives to outgoing connections.
_BLOCK = 400
_BLOCKS = range(10_000, 32_000, _BLOCK)


@functools.cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """Take a block of ports for this process, and return its ports in turns, without end.

    The process that is bound to the first port has the block, among all runs of the tests on this machine: a port that
    one process has found free, no other takes before it is used.
    """
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        guard = socket.socket()
        try:
            guard.bind(("127.0.0.1", first))
        except OSError:
            guard.close()
        else:
            return guard, itertools.cycle(range(first + 1, first + _BLOCK))
    raise AssertionError("every block of ports has its process")


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on, those that were given out longest ago first."""
    found: list[int] = []
    for port in itertools.islice(_block()[1], 10 * _BLOCK):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"{count} free ports are wanted, and there are {len(found)}")


def with_constants(constants: dict[str, float]) -> list[str]:
    """Return ``twistd`` with other constants of the gateway, for a test that its own time limits would hurry.

    :param constants: by ``module.NAME``.
    """
    code = []
    for constant, value in constants.items():
        module, _, name = constant.rpartition(".")
        code.append(f"import {module} as module; assert hasattr(module, {name!r}); module.{name} = {value!r}")
    code.append("from twisted.scripts.twistd import run; run()")
    return [sys.executable, "-c", "\n".join(code), *TWISTD[1:]]


def until(condition: Callable[..., T | None], what: str) -> T:
    """Wait for a condition to give something true, and give that."""
    end = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain: {what}")
        time.sleep(0.02)


def assert_same(found: Sequence[object], expected: Sequence[object]) -> None:
    """Compare long lists and show the first difference; to find all of them takes pytest and unittest many minutes."""
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        assert one == other, f"item {number}"
    assert len(found) == len(expected)


class Stopwatch:
    """Seconds that pass, without those in which this process or its children had to wait for a processor.

    So a promise of so many seconds is held against the gateway also on a machine that does much else.
    """

    def __init__(self) -> None:
        self._before = _waited_for_processors()
        self._latest = dict(self._before)
        self._began = time.monotonic()

    def look(self) -> None:
        """Note how long they have waited, before one that ends takes that with it."""
        self._latest |= _waited_for_processors()

    def seconds(self) -> float:
        passed = time.monotonic() - self._began
        self.look()
        return passed - sum(waited - self._before.get(task, 0.0) for task, waited in self._latest.items())


def _waited_for_processors() -> dict[str, float]:
    """Return the seconds that each thread of this process and its children was ready to run and did not, so far."""
    found: dict[str, float] = {}
    processes = [str(os.getpid())]
    for process in processes:
        tasks: list[Path] = []
        # A process or a thread may have ended meanwhile.
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{process}/task").iterdir())
        for task in tasks:
            with contextlib.suppress(OSError):
                found[task.name] = int((task / "schedstat").read_text("ascii").split()[1]) / 1e9
                processes += (task / "children").read_text("ascii").split()
    return found


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
        #: The clients' TLS, for a gateway whose HTTP has it.
        self.tls: ssl.SSLContext | None = None

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

    def configure(self, **settings: Any) -> None:
        """Write sections of the configuration file anew; ``None`` removes one."""
        tree = yaml.safe_load(self.config.read_text("utf-8"))
        for section, value in settings.items():
            if value is None:
                tree.pop(section, None)
            else:
                tree[section] = {**tree.get(section, {}), **value} if isinstance(value, dict) else value
        self.config.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")

    def reload(self) -> str:
        """SIGHUP, and wait until it has been handled; the log lines about it."""
        begin = len(self.log())
        self.process.send_signal(signal.SIGHUP)

        def is_said() -> bool:
            return "SIGHUP: the configuration is" in self.log()[begin:]

        until(is_said, "the configuration is reloaded, or is not")
        return self.log()[begin:]

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait until the process has ended, which it has been told to: as soon as is promised; the exit status."""
        watch = Stopwatch()

        def is_over() -> bool:
            watch.look()
            return self.process.poll() is not None

        until(is_over, "the gateway ends")
        seconds = watch.seconds()
        assert seconds < END, f"it has ended after {seconds:.1f} s:\n{self.log()}"
        return self.process.returncode

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
            f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}{path}",
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE, context=self.tls) as response:
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
        scheme = "ws" if self.tls is None else "wss"
        if self.tls is not None:
            options["sslopt"] = {"context": self.tls}
        client = websocket.create_connection(f"{scheme}://127.0.0.1:{self.port}/ws", timeout=PATIENCE, **options)
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
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.end()
