"""Google for tests: its token endpoint and, behind a proxy that ends TLS, the host of push messages."""

import contextlib
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.certificates import pem_of, self_signed
from tests.support.daemon import free_ports

HOST = "fcm.googleapis.com"
PROJECT = "plant-of-the-test"
TOKEN = "ya29.token-of-the-test"
KEY_ID = "0123456789abcdef-of-the-test"
EMAIL = "gateway@plant-of-the-test.iam.gserviceaccount.com"

#: What Google says of a failure; it must not get into a log.
EXPLANATION = "explanation-of-the-test"


@dataclass(frozen=True)
class Answer:
    """Answer to a message; 200 is success."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Google:
    """A server on one port, which is the token endpoint and the proxy.

    :ivar answers: what the next messages are answered; then success.
    :ivar token: what a request for a token is answered.
    :ivar hang: nothing is answered while it is set.
    :ivar asked: the messages as they came, each time that they came.
    :ivar asked_at: when that was, monotonic.
    :ivar credentials: the file that it would have given out, in ``folder``.
    """

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.answers: deque[Answer] = deque()
        self.token = Answer()
        self.hang = False
        self.asked: list[dict[str, Any]] = []
        self.asked_at: list[float] = []
        self.tokens = 0
        self.private_key = pem_of(_key())
        self.credentials = folder / "credentials.json"
        self.credentials.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": PROJECT,
                    "private_key_id": KEY_ID,
                    "private_key": self.private_key,
                    "client_email": EMAIL,
                    "token_uri": f"http://127.0.0.1:{self.port}/token",
                }
            ),
            "utf-8",
        )
        self.credentials.chmod(0o600)
        self.tls = _tls(folder)
        self.authority = folder / "authority.pem"
        self._go = threading.Event()
        self._server: _Server | None = None

    def environment(self) -> dict[str, str]:
        """What a process needs to take this for Google."""
        proxy = f"http://127.0.0.1:{self.port}"
        return {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "REQUESTS_CA_BUNDLE": str(self.authority),
        }

    def secrets(self) -> list[str]:
        """What no log may hold."""
        return [TOKEN, KEY_ID, EMAIL, EXPLANATION, *self.private_key.split()[3:-3]]

    @property
    def notifications(self) -> list[tuple[str, str]]:
        """Title and body of the messages as they came."""
        return [(message["notification"]["title"], message["notification"]["body"]) for message in self.asked]

    def start(self) -> None:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """From now on connections are refused, and those that are open are closed."""
        server, self._server = self._server, None
        if server is not None:
            self._go.set()
            server.shutdown()
            server.server_close()
            server.close_connections()

    def wait(self) -> None:
        if self.hang:
            self._go.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, google: Google) -> None:
        self.google = google
        self._connections: list[Any] = []
        super().__init__(("127.0.0.1", google.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request.dup())
        super().process_request(request, client_address)

    def close_connections(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_CONNECT(self) -> None:
        if self.path != f"{HOST}:443":
            # google-auth asks others of Google's hosts too, and does without.
            self.send_error(403)
            self.close_connection = True
            return
        self.send_response(200)
        self.end_headers()
        self.request = self.server.google.tls.wrap_socket(self.request, server_side=True)
        self.setup()
        self.close_connection = False

    def do_POST(self) -> None:
        google = self.server.google
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            google.tokens += 1
            google.wait()
            good: Any = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            self._answer(google.token, good, {"error": "invalid_grant", "error_description": EXPLANATION})
            return
        assert (self.headers["Host"], self.path) == (HOST, f"/v1/projects/{PROJECT}/messages:send")
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        google.asked_at.append(time.monotonic())
        google.asked.append(json.loads(body)["message"])
        google.wait()
        answer = google.answers.popleft() if google.answers else Answer()
        self._answer(
            answer,
            {"name": f"projects/{PROJECT}/messages/{len(google.asked)}"},
            {"error": {"code": answer.status, "message": EXPLANATION, "status": "SOMETHING"}},
        )

    def _answer(self, answer: Answer, good: Any, bad: Any) -> None:
        content = json.dumps(good if answer.status == 200 else bad).encode()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Nothing: the test says what it saw."""


@contextlib.contextmanager
def playing_google(folder: Path) -> Iterator[Google]:
    """Run Google within a block.

    :param folder: folder of its files.
    """
    google = Google(folder)
    google.start()
    try:
        yield google
    finally:
        google.stop()


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _tls(folder: Path) -> ssl.SSLContext:
    """Return the TLS context of the host of push messages; ``authority.pem`` is its own authority."""
    certificate, key = self_signed(HOST, x509.DNSName(HOST))
    chain = folder / "chain.pem"
    chain.write_text(certificate + key, "ascii")
    (folder / "authority.pem").write_text(certificate, "ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
