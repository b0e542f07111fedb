"""Two hundred reloads under load: readings that are lost, connections that are dropped, and the time of ``latest``."""

import contextlib
import http.client
import json
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.table import Row
from gateway.auth.tokens import new_token, write_tokens
from tests.support.daemon import Daemon, free_ports, running, until

RELOADS: Final = 200
SCALES: Final = 100
LINES_PER_SECOND: Final = 5
MACHINES: Final = 20
SUBSCRIBERS: Final = 50

#: Seconds of p99 of ``latest``, which the reloads may not exceed.
GOAL: Final = 0.1

_MESSAGE: Final = pickle.dumps(("DataUpdate", {"vib": {"type": "VIB", "data": [0.5] * 30}})) + b"\\o"


def rows(folder: Path) -> list[Row]:
    """All of them."""
    ports = free_ports(SCALES + 1)
    lines = {f"s{number}": {"listen": f"tcp:{port}:interface=127.0.0.1"} for number, port in enumerate(ports[1:])}
    text, token = new_token("load", ("commit",), datetime.now(UTC), None)
    write_tokens(str(folder / "tokens.json"), [token])
    with running(folder, scales=lines, auth={"tokens_file": "tokens.json"}) as daemon:
        with contextlib.closing(Load(daemon, ports[1:], text)) as load:
            time.sleep(2)
            for number in range(RELOADS):
                # Each adds or removes a scale, changes a guard of another, and reads the tokens again.
                extra = {"extra": {"listen": f"tcp:{ports[0]}:interface=127.0.0.1"}} if number % 2 == 0 else {}
                changed = {**lines, "s0": {**lines["s0"], "idle_timeout_sec": 10 + number}, **extra}
                _write(daemon, changed)
                _reload(daemon, number + 1)
            load.stop()
            return load.rows(daemon)


def _write(daemon: Daemon, lines: dict[str, Any]) -> None:
    tree = yaml.safe_load(daemon.config.read_text("utf-8"))
    tree["scales"] = lines
    part = daemon.config.with_suffix(".part")
    part.write_text(yaml.safe_dump(tree), "utf-8")
    part.replace(daemon.config)


def _reload(daemon: Daemon, number: int) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log().count("SIGHUP: the configuration is reloaded") >= number, f"reload {number}")


class Load:
    """Scales, machines, subscribers, commits and requests of ``latest``, each in a thread or process of its own."""

    def __init__(self, daemon: Daemon, ports: list[int], token: str) -> None:
        self._token = token
        self._port = daemon.port
        self._going = True
        self.sent = self.received = self.dropped = self.commits = self.refused = 0
        self._scales = [socket.create_connection(("127.0.0.1", port)) for port in ports]
        self._machines = [socket.create_connection(("127.0.0.1", daemon.daq_port)) for _ in range(MACHINES)]
        for number, machine in enumerate(self._machines):
            machine.sendall(pickle.dumps(("name", f"m{number}")) + b"\\o")
        self._subscribers = [self._subscriber() for _ in range(SUBSCRIBERS)]
        self._times, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("spawn")
        self._probe = context.Process(target=_probe, args=(self._port, token, sender))
        self._probe.start()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._read, self._commit)]
        for thread in self._threads:
            thread.start()

    def _subscriber(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self._port))
        head = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        client.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += client.recv(1)
        text = json.dumps({"type": "subscribe", "topics": ["scale/*"]}).encode()
        client.sendall(bytes([0x81, 0x80 | len(text)]) + struct.pack(">I", 0) + text)
        return client

    def _send(self) -> None:
        began, turn = time.monotonic(), 0
        while self._going:
            for number, scale in enumerate(self._scales):
                scale.sendall(b"ST , +%09.2f _kg\r\n" % (turn % 1000 + number / 100))
                self.sent += 1
            if turn % LINES_PER_SECOND == 0:
                for machine in self._machines:
                    machine.sendall(_MESSAGE)
            turn += 1
            time.sleep(max(0.0, began + turn / LINES_PER_SECOND - time.monotonic()))

    def _read(self) -> None:
        """Count the readings that the subscribers get, and the connections that end."""
        rest = dict.fromkeys(self._subscribers, b"")
        others = [*self._scales, *self._machines]
        while self._going or select.select(list(rest), [], [], 2)[0]:
            for connection in select.select([*rest, *others], [], [], 0.1)[0]:
                data = connection.recv(2**16)
                if not data:
                    self.dropped += 1
                    rest.pop(connection, None)
                    others = [other for other in others if other is not connection]
                elif connection in rest:
                    rest[connection] = self._take_frames(connection, rest[connection] + data)

    def _take_frames(self, connection: socket.socket, data: bytes) -> bytes:
        """Count the readings among whole frames, and answer pings; return the rest."""
        begin = 0
        while len(data) >= begin + 4:
            size, head = data[begin + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[begin + 2 : begin + 4], "big"), 4
            if len(data) < begin + head + size:
                break
            payload = data[begin + head : begin + head + size]
            self.received += b'"event":"reading"' in payload
            if data[begin] == 0x89:
                connection.sendall(bytes([0x8A, 0x80 | size]) + struct.pack(">I", 0) + payload)
            begin += head + size
        return data[begin:]

    def _commit(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {"Authorization": f"Bearer {self._token}"}
        while self._going:
            body = json.dumps({"cylinder_no": f"C{self.commits}", "event_type": "SHIP", "scale_id": "s1"})
            connection.request("POST", "/api/scale-gateway/commit/", body, headers)
            answer = connection.getresponse()
            answer.read()
            self.commits += answer.status == 200
            self.refused += answer.status != 200
            time.sleep(0.05)
        connection.close()

    def stop(self) -> None:
        """End the load, and wait until all of it has arrived."""
        self._going = False
        for thread in self._threads:
            thread.join()

    def rows(self, daemon: Daemon) -> list[Row]:
        """What has come of it."""
        headers = {"Authorization": f"Bearer {self._token}"}
        text = daemon.get("/metrics", **headers)[1].decode()
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("cynow_scale_readings_total{")
        )
        os.kill(self._probe.pid or 0, signal.SIGTERM)
        times = sorted(self._times.recv())
        p99 = times[int(0.99 * len(times))]
        lost = self.sent - counted
        missing = self.sent * SUBSCRIBERS - self.received
        return [
            Row(
                f"{RELOADS} reloads: {self.sent} readings of {SCALES} scales, {SUBSCRIBERS} subscribers",
                f"{lost:.0f} lost, {missing} not delivered",
                "0 lost",
                lost == 0 and missing == 0,
            ),
            Row(
                f"{RELOADS} reloads: connections of {SCALES} scales, {MACHINES} machines, {SUBSCRIBERS} subscribers",
                f"{self.dropped} dropped; {self.commits} commits, {self.refused} refused",
                "0 dropped",
                self.dropped == 0 and self.refused == 0,
            ),
            Row(
                f"{RELOADS} reloads: p99 of {len(times)} requests of latest",
                f"{1000 * p99:.1f} ms (median {1000 * times[len(times) // 2]:.1f} ms, maximum {1000 * times[-1]:.1f})",
                f"under {1000 * GOAL:.0f} ms",
                p99 < GOAL,
            ),
        ]

    def close(self) -> None:
        """End everything."""
        self._going = False
        self._probe.terminate()
        for connection in (*self._scales, *self._machines, *self._subscribers):
            connection.close()


def _probe(port: int, token: str, results: Connection) -> None:
    """Ask for ``latest`` a hundred times a second until SIGTERM, and send the seconds of each."""
    times: list[float] = []
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}"}
    while not ended.is_set():
        began = time.perf_counter()
        connection.request("GET", "/api/scale-gateway/latest/?scale_id=s1", headers=headers)
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
        time.sleep(0.01)
    results.send(times)
