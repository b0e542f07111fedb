"""Clients that commit one weight after the other, each on a connection of its own: a process that a benchmark starts.

``python -m benchmarks.committers '{"port": 8080, "connections": 20, "seconds": 2.0}'`` prints how many commits were
answered and in how many seconds.
"""

import json
import select
import socket
import subprocess
import sys
import time
from typing import Final

_BODY: Final = json.dumps({"cylinder_no": "CY-0001", "event_type": "SHIP"}).encode()

_REQUEST: Final = (
    b"POST /api/scale-gateway/commit/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


def commit_for(port: int, connections: int, seconds: float) -> tuple[int, float]:
    """Let the process commit for so many seconds; the number of commits that were answered, and the seconds of that."""
    options = {"port": port, "connections": connections, "seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.committers", json.dumps(options)]
    count, took = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return count, took


class _Client:
    """One connection, with one request in flight at most."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def ask(self) -> None:
        self.sock.sendall(_REQUEST)

    def hear(self) -> bool:
        """Whether the answer is whole.

        :raises RuntimeError: it is another one than that the weight is committed.
        """
        data = self.sock.recv(65536)
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if data and not found:
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"commit answered {self._buffer!r}")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) < length:
            return False
        if not json.loads(body)["ok"]:
            raise RuntimeError(f"commit answered {body!r}")
        self._buffer = b""
        return True


def _run(port: int, connections: int, seconds: float) -> None:
    clients: dict[int, _Client] = {}
    poll = select.epoll()
    for _ in range(connections):
        client = _Client(port)
        clients[client.sock.fileno()] = client
        poll.register(client.sock, select.EPOLLIN)
    began = time.monotonic()
    for client in clients.values():
        client.ask()
    count, busy = 0, connections
    while busy:
        for fd, _ in poll.poll():
            if clients[fd].hear():
                count += 1
                if time.monotonic() - began < seconds:
                    clients[fd].ask()
                else:
                    busy -= 1
    sys.stdout.write(json.dumps([count, time.monotonic() - began]) + "\n")


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
