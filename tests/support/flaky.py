"""A network that fails: a proxy between a client and a daemon."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.support.daemon import PATIENCE


class FlakyProxy:
    """Proxy that can lose answers, cut its connections and refuse new ones.

    :ivar heard: bytes that clients have sent.
    :ivar lost_answers: number of connections whose answer will be lost.
    """

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        self.lost_answers = 0
        self._target = port
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._is_cut = True
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        # It wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    client.close()
                    continue
                is_lost = self.lost_answers > 0
                self.lost_answers -= is_lost
                daemon = socket.create_connection(("127.0.0.1", self._target), PATIENCE)
                daemon.settimeout(None)
                self._open |= {client, daemon}
                threading.Thread(target=self._carry, args=(client, daemon), daemon=True).start()
                threading.Thread(target=self._bring, args=(daemon, client, is_lost), daemon=True).start()

    def _carry(self, client: socket.socket, daemon: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.heard += data
                daemon.sendall(data)
        _end(client, daemon)

    def _bring(self, daemon: socket.socket, client: socket.socket, is_lost: bool) -> None:
        with contextlib.suppress(OSError):
            while (data := daemon.recv(65536)) and not is_lost:
                client.sendall(data)
        _end(client, daemon)


def _end(*connections: socket.socket) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def flaky(port: int) -> Iterator[FlakyProxy]:
    """Run a proxy to a port, for a block."""
    proxy = FlakyProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
