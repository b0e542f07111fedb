"""Clients that commit one weight after the other, each on a connection of its own: a process that a benchmark starts.

``python -m benchmarks.committers '{"port": 8080, "connections": 20, "seconds": 2.0}'`` prints how many commits were
answered and in how many seconds.

With ``scale_ports`` each client has a scale of its own, ``dock-0`` and so on, which is emptied and loaded by two lines
before each commit of a new cylinder. Lines and commits come on different connections, so a commit may overtake its
lines; a scale that is not ready is asked again, and only commits that were taken count.
"""

import json
import select
import socket
import subprocess
import sys
import time
from typing import Final

_HEAD: Final = (
    b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)

#: Tells the cylinders of several runs apart.
_RUN: Final = time.time_ns()

_LINES: Final = b"ST,+00000.00 kg\r\nST,+00053.26 kg\r\n"


def commit_for(port: int, connections: int, seconds: float, scale_ports: list[int] | None = None) -> tuple[int, float]:
    """Let the process commit for so many seconds; the number of commits that were answered, and the seconds of that."""
    options = {"port": port, "connections": connections, "seconds": seconds, "scale_ports": scale_ports}
    command = [sys.executable, "-m", "benchmarks.committers", json.dumps(options)]
    count, took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return count, took


class _Client:
    """One connection, with one request in flight at most.

    :param number: number of the client.
    :param scale_port: port of its scale; ``None`` for the default scale, whose weight stays.
    """

    def __init__(self, port: int, number: int, scale_port: int | None) -> None:
        self._number, self._count = number, 0
        self._scale = None if scale_port is None else socket.create_connection(("127.0.0.1", scale_port))
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def ask(self) -> None:
        fields = {"cylinder_no": "CY-0001", "event_type": "SHIP"}
        if self._scale is not None:
            self._scale.sendall(_LINES)
            self._count += 1
            fields |= {"cylinder_no": f"CY-{self._number}-{self._count}-{_RUN}", "scale_id": f"dock-{self._number}"}
        body = json.dumps(fields).encode()
        self.sock.sendall(_HEAD % (len(body), body))

    def hear(self) -> int | None:
        """Return the commits that the answer tells of, 0 for a scale that was not ready; ``None`` if it is not whole.

        :raises RuntimeError: it is another one than that the weight is committed.
        """
        data = self.sock.recv(65536)
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if data and not found:
            return None
        is_early = self._scale is not None and head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 409 "))
        if not is_early and not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"commit answered {self._buffer!r}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return None
        if not is_early and not json.loads(body)["ok"]:
            raise RuntimeError(f"commit answered {body!r}")
        self._buffer = b""
        if is_early and json.loads(body)["error"] not in ("not_rearmed", "unstable", "no_stable_weight"):
            raise RuntimeError(f"commit answered {body!r}")
        return int(not is_early)


def _run(port: int, connections: int, seconds: float, scale_ports: list[int] | None = None) -> None:
    clients: dict[int, _Client] = {}
    poll = select.epoll()
    for number in range(connections):
        client = _Client(port, number, None if scale_ports is None else scale_ports[number])
        clients[client.sock.fileno()] = client
        poll.register(client.sock, select.EPOLLIN)
    began = time.monotonic()
    for client in clients.values():
        client.ask()
    count, busy = 0, connections
    while busy:
        for fd, _ in poll.poll():
            heard = clients[fd].hear()
            if heard is not None:
                count += heard
                if time.monotonic() - began < seconds:
                    clients[fd].ask()
                else:
                    busy -= 1
    sys.stdout.write(json.dumps([count, time.monotonic() - began]) + "\n")


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
