"""What loads the gateway with live events, each a process of its own that does what a line of JSON tells it.

``subscribers`` are many WebSockets and as little Python as possible for each, ``sender`` writes the same bytes to bare
sockets, and ``device`` is a scale and a machine whose every line and frame is numbered.
"""

import base64
import json
import os
import pickle
import random
import re
import resource
import select
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

#: Subscribers that are on their way in at a time: a crowd that comes at once is not what is measured.
_AT_ONCE: Final = 20

_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_COMPRESSED: Final = 0x40

#: Events that come of no message of the device.
_NOT_SENT: Final = re.compile(rb'"event":"(?:snapshot|update|connected)"')

#: A client has to mask; this mask changes nothing.
_MASK: Final = b"\0\0\0\0"


class Helper:
    """One of these processes, or of another module's; it ends with this one at the latest."""

    def __init__(self, kind: str, module: str = "benchmarks.crowd", **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, kind, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Without an order to wait for it ends, unless it is in the middle of one.
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def tell(self, order: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"order": order, **fields}) + "\n")

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended")
        return json.loads(line)

    def ask(self, order: str, **fields: Any) -> Any:
        self.tell(order, **fields)
        return self.hear()


def paced(count: int, rate: float) -> Iterator[int]:
    """So many numbers, so many a second."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield number


def _orders() -> Iterator[dict[str, Any]]:
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def answer(value: Any) -> None:
    """Answer an order."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def obey_and_read(epoll: select.epoll, obey: Callable[[str], None], read: Callable[[int], None]) -> None:
    """Do what orders say, and read sockets, by their numbers, until no more orders can come."""
    epoll.register(sys.stdin, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd != sys.stdin.fileno():
                read(fd)
                continue
            # Not readline: it would keep a second line to itself.
            lines = os.read(fd, 64 * 1024)
            if not lines:
                return
            for line in lines.splitlines():
                obey(json.loads(line)["order"])


# -- subscribers


class _Member:
    """One subscriber.

    :ivar heard: how many events it has got.
    :ivar code: with which the gateway closed; 0 where it only went away.
    """

    __slots__ = ("code", "heard", "rest", "settled", "shaken", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        self.shaken = self.settled = False
        self.heard = 0
        self.code = 0


class _Subscribers:
    """All of them, in one loop.

    Each event's bytes are held once, and what each member gets as its nth event is compared with these: all of them
    have got everything in the same order where nothing differs and none has heard less.

    :param topics: what they subscribe to; none, where they are bare sockets that frames are written to.
    :param offer: their ``Sec-WebSocket-Extensions``.
    :param stuck: they read nothing after the answer to their subscription.
    """

    def __init__(self, port: int, count: int, topics: list[str], offer: str = "", stuck: bool = False) -> None:
        self._port = port
        self._count = count
        self._topics = topics
        self._offer = offer
        self._stuck = stuck
        self._epoll = select.epoll()
        self._members: dict[int, _Member] = {}
        self._settled = 0
        self._events: list[bytes] = []
        self._times: list[int] = []
        self._last: list[float] = []
        self._different = 0
        self._codes: Counter[int] = Counter()

    def run(self) -> None:
        self._join()
        obey_and_read(self._epoll, self._obey, lambda fd: self._read(self._members[fd]))

    def _obey(self, order: str) -> None:
        if order == "count":
            heard = [member.heard for member in self._members.values()]
            answer(
                {
                    "open": len(self._members),
                    "settled": self._settled,
                    "heard": min(heard, default=0),
                    "different": self._different,
                    "codes": self._codes,
                }
            )
        elif order == "first":
            answer(self._events[0].decode())
        elif order == "events":
            # Of each event, in the order of coming: its number and when the last one got it.
            answer([[number_of(json.loads(event)), last] for event, last in zip(self._events, self._last, strict=True)])
            self._events, self._times, self._last = [], [], []
            for member in self._members.values():
                member.heard = 0
        elif order == "read":
            for fd in self._members:
                self._epoll.modify(fd, select.EPOLLIN)
        elif order == "join":
            self._settled = 0
            self._join()

    def _join(self) -> None:
        while len(self._members) < self._count and len(self._members) - self._settled < _AT_ONCE:
            sock = socket.socket()
            if self._stuck:
                # What the operating system holds for them is not the gateway's, and there is much of it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", self._port))
            sock.setblocking(False)
            self._members[sock.fileno()] = member = _Member(sock)
            self._epoll.register(sock, select.EPOLLIN)
            if self._topics:
                key = base64.b64encode(os.urandom(16)).decode()
                offer = f"Sec-WebSocket-Extensions: {self._offer}\r\n" if self._offer else ""
                sock.send(
                    f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\n"
                    f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                    f"{offer}\r\n".encode()
                )
            else:
                member.shaken = member.settled = True
                self._settled += 1

    def _read(self, member: _Member) -> None:
        try:
            data = member.sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._epoll.unregister(member.sock)
            del self._members[member.sock.fileno()]
            member.sock.close()
            self._codes[member.code] += 1
            return
        data = member.rest + data
        pos = 0
        if not member.shaken:
            pos = data.find(b"\r\n\r\n") + 4
            if pos < 4:
                member.rest = data
                return
            self._shake(member, data[:pos])
        # Frames; no server masks.
        while len(data) - pos >= 2:
            size = data[pos + 1]
            start = pos + 2
            if size == 126:
                start = pos + 4
                size = int.from_bytes(data[pos + 2 : start])
            elif size == 127:
                start = pos + 10
                size = int.from_bytes(data[pos + 2 : start])
            if len(data) - start < size:
                break
            self._take(member, data[pos] & 0x0F, data[start : start + size])
            pos = start + size
        member.rest = data[pos:]

    def _shake(self, member: _Member, head: bytes) -> None:
        """The gateway agrees to talk WebSocket."""
        if not head.startswith(b"HTTP/1.1 101 ") or bool(self._offer) != (b"permessage-deflate" in head):
            raise RuntimeError(head.decode())
        member.shaken = True
        text = json.dumps({"type": "subscribe", "topics": self._topics}).encode()
        if self._offer:
            # As a browser does it, however short it is; the gateway asked for a window of 10 bits.
            compressor = zlib.compressobj(wbits=-10)
            text = (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        send_frame(member.sock, _TEXT | (_COMPRESSED if self._offer else 0), text)

    def _take(self, member: _Member, opcode: int, text: bytes) -> None:
        if opcode == _PING:
            send_frame(member.sock, _PONG, text)
        elif opcode == _CLOSE:
            member.code = int.from_bytes(text[:2])
            send_frame(member.sock, _CLOSE, text[:2])
        elif not member.settled:
            # The answer to its subscription, compressed where that was agreed upon.
            if not self._offer and not text.startswith(b'{"type":"subscribed"'):
                raise RuntimeError(text.decode())
            member.settled = True
            self._settled += 1
            if self._stuck:
                self._epoll.modify(member.sock, 0)
            self._join()
        elif not self._offer and not self._stuck and not _NOT_SENT.search(text, 0, 120):
            self._count_event(member, text)

    def _count_event(self, member: _Member, text: bytes) -> None:
        number = member.heard
        member.heard += 1
        if number == len(self._events):
            self._events.append(text)
            self._times.append(0)
            self._last.append(0.0)
        elif text != self._events[number]:
            self._different += 1
        self._times[number] += 1
        if self._times[number] == self._count:
            self._last[number] = time.monotonic()


def send_frame(sock: socket.socket, opcode: int, text: bytes) -> None:
    """Send a client's frame of less than 64 KiB."""
    length = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
    try:
        sock.send(bytes([0x80 | opcode]) + length + _MASK + text)
    except ConnectionError:
        # It will be read that it is closed.
        return


def number_of(event: Any) -> int:
    """The number that the device gave what became this event; -1 where it gave none."""
    data: dict[str, Any] = event["data"]
    number: float
    if event["event"] == "reading":
        number = 100 * data["weight"]
        return round(number)
    if event["event"] == "anomaly":
        number = data["score"]
        return round(number)
    if event["event"] == "samples":
        number = next(iter(data.values()))["data"][0]
        return round(number)
    return -1


# -- what they are sent


def _send_bare(port: int, count: int) -> None:
    """Write frames to so many bare sockets, and answer when that is done."""
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        answer("listening")
        members = [listening.accept()[0] for _ in range(count)]
    for order in _orders():
        frame = bytes.fromhex(order["frame"])
        for _ in paced(order["count"], order["rate"]):
            for member in members:
                if member.send(frame) != len(frame):
                    raise RuntimeError("a socket took less than a frame")
        answer("sent")


class _Device:
    """A machine, and a scale where its port is given.

    :param sensors: of the machine, each with so many samples in a message; the first of all is the message's number.
    :param faults: a fault detection comes in place of every so many-th message of samples.
    """

    def __init__(
        self, port: int, machine: str, sensors: list[str], samples: int = 1, faults: int = 0, scale_port: int = 0
    ) -> None:
        self._daq = socket.create_connection(("127.0.0.1", port))
        self._daq.sendall(_frame("name", machine))
        self._scale = socket.create_connection(("127.0.0.1", scale_port)) if scale_port else None
        chance = random.Random(machine)
        self._data: dict[str, Any] = {
            sensor: {"type": "VIB", "data": [chance.gauss(0.0, 1.0) for _ in range(samples)]} for sensor in sensors
        }
        self._first = self._data[sensors[0]]["data"]
        self._faults = faults
        self._number = 0

    def run(self) -> None:
        """Send so many events, and answer when each of them was sent; the numbers go on from order to order."""
        for order in _orders():
            first = self._number
            times = []
            for _ in paced(order["count"], order["rate"]):
                times.append(time.monotonic())
                self._send()
                self._number += 1
            answer({"first": first, "times": times})

    def _send(self) -> None:
        number = self._number
        if self._scale is not None and number % 2:
            self._scale.sendall(b"ST , %+010.2f _kg\r\n" % (number / 100))
        elif self._faults and number % self._faults == self._faults - 1:
            self._daq.sendall(_frame("FaultDetect", {"score": float(number), "threshold": 0.0}))
        else:
            self._first[0] = float(number)
            self._daq.sendall(_frame("DataUpdate", self._data))


def _frame(event: str, data: Any) -> bytes:
    return pickle.dumps((event, data)) + b"\\o"


def _main(kind: str, options: dict[str, Any]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if kind == "subscribers":
        _Subscribers(**options).run()
    elif kind == "sender":
        _send_bare(**options)
    else:
        _Device(**options).run()


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
