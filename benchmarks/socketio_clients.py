"""Many Socket.IO clients by WebSocket, in a process of its own that does what a line of JSON tells it.

They are as little Python as possible: Engine.IO 4 and Socket.IO 5 as bytes.
"""

import base64
import json
import os
import select
import socket
import sys
from typing import Final

from benchmarks.crowd import answer, obey_and_read, send_frame

#: Clients that are on their way in at a time.
_AT_ONCE: Final = 20

_TEXT, _PING, _PONG = 1, 9, 10


class _Client:
    """One of them.

    :ivar heard: how many events it has got.
    """

    __slots__ = ("heard", "joined", "rest", "shaken", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.shaken = self.joined = False
        self.heard = 0


class Clients:
    """All of them, in one loop.

    Each event's bytes are held once, and what each client gets as its nth event is compared with these.

    :param namespace: that they join.
    """

    def __init__(self, port: int, count: int, namespace: str) -> None:
        self._port = port
        self._count = count
        self._join_packet = f"40{namespace},".encode()
        self._event = f"42{namespace},".encode()
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._joined = 0
        self._events: list[bytes] = []
        self._heard = 0
        self._different = 0

    def run(self) -> None:
        self._come()
        obey_and_read(self._epoll, self._obey, lambda fd: self._read(self._clients[fd]))

    def _obey(self, order: str) -> None:
        if order == "count":
            answer({"joined": self._joined, "heard": self._heard, "different": self._different})
        elif order == "events":
            # The data of each event, in the order of coming.
            answer([json.loads(event.removeprefix(self._event)) for event in self._events])
            self._events = []
            self._heard = 0
            for client in self._clients.values():
                client.heard = 0

    def _come(self) -> None:
        while len(self._clients) < self._count and len(self._clients) - self._joined < _AT_ONCE:
            sock = socket.create_connection(("127.0.0.1", self._port))
            sock.setblocking(False)
            self._clients[sock.fileno()] = _Client(sock)
            self._epoll.register(sock, select.EPOLLIN)
            key = base64.b64encode(os.urandom(16)).decode()
            sock.send(
                f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
            )

    def _read(self, client: _Client) -> None:
        data = client.sock.recv(256 * 1024)
        if not data:
            raise RuntimeError("the server has closed a connection")
        data = client.rest + data
        pos = 0
        if not client.shaken:
            pos = data.find(b"\r\n\r\n") + 4
            if pos < 4:
                client.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(data.decode())
            client.shaken = True
        # Frames; no server masks, and each packet is shorter than 64 KiB.
        while len(data) - pos >= 2:
            size = data[pos + 1]
            start = pos + 2
            if size == 126:
                start = pos + 4
                size = int.from_bytes(data[pos + 2 : start])
            if len(data) - start < size:
                break
            self._take(client, data[pos] & 0x0F, data[start : start + size])
            pos = start + size
        client.rest = data[pos:]

    def _take(self, client: _Client, opcode: int, packet: bytes) -> None:
        if opcode == _PING:
            send_frame(client.sock, _PONG, packet)
        elif opcode != _TEXT:
            raise RuntimeError("neither a text nor a ping")
        elif packet.startswith(self._event):
            number = client.heard
            client.heard += 1
            self._heard += 1
            if number == len(self._events):
                self._events.append(packet)
            elif packet != self._events[number]:
                self._different += 1
        elif packet.startswith(b"0"):
            send_frame(client.sock, _TEXT, self._join_packet)
        elif packet == b"2":
            send_frame(client.sock, _TEXT, b"3")
        elif packet.startswith(self._join_packet) and not client.joined:
            client.joined = True
            self._joined += 1
            self._come()
        else:
            raise RuntimeError(packet.decode())


if __name__ == "__main__":
    Clients(**json.loads(sys.argv[1])).run()
