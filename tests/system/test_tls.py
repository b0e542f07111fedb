"""TLS on a real daemon, with clients of OpenSSL."""

import contextlib
import json
import socket
import ssl
import subprocess
import time
import urllib.error
from pathlib import Path
from typing import Any, Self

import pytest
import requests
import socketio

from tests.support.certificates import Authority
from tests.support.daemon import PATIENCE, TWISTD, Daemon, until, with_constants
from tests.support.frames import fault, frame
from tests.system.test_slow_peers import DAY, ROWS, is_open, store_anomalies


class TlsPlant:
    """An authority, and a gateway whose listeners all have TLS.

    :param requires: sections whose clients must present a certificate.
    """

    def __init__(
        self, folder: Path, requires: tuple[str, ...] = (), twistd: list[str] | None = None, **settings: Any
    ) -> None:
        self.authority = Authority(folder)
        self.client = self.authority.client()
        cert, key = self.authority.issue("gateway")
        tls = {"cert": str(cert), "key": key.name}
        asking = {**tls, "client_ca": str(self.authority.path)}
        sections: dict[str, Any] = {
            section: {"tls": asking if section in requires else tls} for section in ("server", "daq", "scale")
        }
        self.daemon = Daemon(folder, twistd, **sections, **settings)
        self.daemon.tls = self.client
        self._sockets = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()
        self.daemon.end()

    def connect(self, port: int, client: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        bare = socket.create_connection(("127.0.0.1", port), PATIENCE)
        try:
            secured = (client or self.client).wrap_socket(bare, server_hostname="127.0.0.1")
        except BaseException:
            bare.close()
            raise
        return self._sockets.enter_context(secured)

    def is_refused(self, port: int, client: ssl.SSLContext) -> bool:
        """Return whether the gateway refuses a client; with TLS 1.3 the client learns so with its first read."""
        try:
            with self.connect(port, client) as connection:
                return connection.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            return True


def client_of(authority: Authority, version: ssl.TLSVersion, ciphers: str = "") -> ssl.SSLContext:
    client = authority.client()
    # Otherwise OpenSSL's own level of security would keep it from offering an old version.
    client.set_ciphers(ciphers or "DEFAULT@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    return client


def openssl_client(port: int, *options: str) -> str:
    """Return the output of OpenSSL's own client."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_only_current_versions_and_suites_are_accepted(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        port = plant.daemon.port
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = client_of(plant.authority, version)
            client.set_alpn_protocols(["h2", "http/1.1"])
            connection = plant.connect(port, client)
            assert connection.selected_alpn_protocol() == "http/1.1"
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert plant.is_refused(port, client_of(plant.authority, ssl.TLSVersion.TLSv1_1))
        old = client_of(plant.authority, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA")
        assert plant.is_refused(port, old)
        found = openssl_client(port, "-CAfile", str(plant.authority.path))
        assert "TLSv1.3" in found
        assert "Verify return code: 0 (ok)" in found
        assert "the client offers only TLS before 1.2" in plant.daemon.log()
        assert plant.daemon.metric("cynow_tls_handshake_failures_total", listener="server") == 2
        assert plant.daemon.metric("cynow_tls_certificate_expiry_timestamp_seconds", listener="scale") > time.time()
        assert plant.daemon.get("/healthz")[1]["problems"] == []


def test_clients_without_tls_are_told_apart_in_the_log(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        daemon = plant.daemon
        with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        daemon.weigh(b"ST , +000053.26 _kg")
        until(lambda: "server.tls: TLS handshake with 127.0.0.1:" in daemon.log(), "the line about HTTP")
        assert "a plain HTTP request; use https://, this port has TLS" in daemon.log()
        until(lambda: "scale.tls: TLS handshake with 127.0.0.1:" in daemon.log(), "the line about the scale")
        assert "not TLS; this port has TLS" in daemon.log()
        # Nothing is known of a scale that does not speak TLS.
        assert "scale default: " not in daemon.log()
        assert daemon.get("/api/scale-gateway/latest/")[0] == 404


def test_client_certificates_are_required_where_configured(tmp_path: Path) -> None:
    with TlsPlant(tmp_path, requires=("daq", "scale")) as plant:
        daemon, authority = plant.daemon, plant.authority
        foreign = Authority(tmp_path, "foreign").issue("intruder")
        for port in (daemon.daq_port, daemon.scale_port):
            assert plant.is_refused(port, plant.client)
            assert plant.is_refused(port, authority.client(foreign))
        client = authority.client(authority.issue("press"))
        scale = plant.connect(daemon.scale_port, client)
        scale.sendall(b"ST , +000053.26 _kg\r\n")
        until(daemon.latest_is(53.26), "the weight")
        machine = plant.connect(daemon.daq_port, client)
        machine.sendall(frame("name", "Press") + fault(1.5))
        until(lambda: daemon.get("/sio/machineList")[1] == {"machine_list": ["/Press"]}, "the machine")
        assert "which client_ca requires" in daemon.log()
        assert "an authority that is not in client_ca" in daemon.log()
        # The connections close as those without TLS do.
        machine.close()
        until(lambda: daemon.get("/sio/machineList")[1] == {"machine_list": []}, "the end of the machine")
        refused = plant.connect(daemon.daq_port, client)
        refused.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert refused.recv(1) == b""


def test_keep_alive_is_set_below_tls(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        plant.connect(plant.daemon.scale_port)
        until(lambda: plant.daemon.metric("cynow_connections", kind="scale") == 1, "the scale")
        local = f":{plant.daemon.scale_port:04X}"

        def timers() -> list[str]:
            """Return the timers of the open connections of the port; 02 is keep-alive (proc_net_tcp)."""
            rows = [row.split() for row in Path("/proc/net/tcp").read_text("ascii").splitlines()]
            return [row[5][:2] for row in rows if row[1].endswith(local) and row[3] == "01"]

        # Until the last bytes of the handshake are acknowledged, it is the timer of their retransmission.
        until(lambda: timers() == ["02"], "keep-alive")


def test_live_events_over_tls(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        daemon = plant.daemon
        follower = daemon.subscribe("scale/*")
        assert follower.hear()["type"] == "subscribed"
        scale = plant.connect(daemon.scale_port)
        for number in range(500):
            scale.sendall(b"ST,+%08.2f kg\r\n" % number)
        assert [event["data"]["weight"] for event in follower.events(500, "reading")] == list(map(float, range(500)))
        # A message that is larger than a record of TLS.
        follower.say({"type": "subscribe", "topics": [f"machine/{number:060}" for number in range(500)]})
        follower.client.ping()
        until(lambda: follower.hear().get("type") == "subscribed", "the answer")


@pytest.mark.parametrize("transports", [["polling"], ["websocket"], ["polling", "websocket"]])
def test_socketio_over_tls(tmp_path: Path, transports: list[str]) -> None:
    with TlsPlant(tmp_path) as plant:
        daemon = plant.daemon
        machine = plant.connect(daemon.daq_port)
        machine.sendall(frame("name", "Press"))
        until(lambda: daemon.get("/sio/machineList")[1] == {"machine_list": ["/Press"]}, "the machine")
        session = requests.Session()
        # Otherwise a variable of the environment could name other authorities.
        session.trust_env, session.verify = False, str(plant.authority.path)
        options = {"sslopt": {"ca_certs": str(plant.authority.path)}}
        client = socketio.SimpleClient(http_session=session, websocket_extra_options=options)
        client.connect(f"https://127.0.0.1:{daemon.port}", namespace="/sio/Press", transports=transports)
        machine.sendall(fault(1.5))
        event = client.receive(PATIENCE)
        assert event[0] == "anomaly"
        client.disconnect()


def test_slow_reader_over_tls_is_closed_and_costs_little(tmp_path: Path) -> None:
    with TlsPlant(tmp_path, limits={"grace_sec": 4}) as plant:
        daemon = plant.daemon
        store_anomalies(tmp_path / "db" / "M.db")
        large = f"/stat/anomaly?machine=M&{DAY}"
        until(lambda: len(daemon.get(large)[1]) == ROWS, "the anomalies")
        before = daemon.resident_mib()
        clients = []
        for number in range(60):
            bare = socket.socket()
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            bare.settimeout(PATIENCE)
            bare.connect(("127.0.0.1", daemon.port))
            client = plant.client.wrap_socket(bare, server_hostname="127.0.0.1")
            path = large if number % 2 else "/metrics"
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * (1 if number % 2 else 100))
            clients.append(client)
        largest = before

        def are_closed() -> bool:
            nonlocal largest
            largest = max(largest, daemon.resident_mib())
            return not any(map(is_open, clients))

        until(are_closed, "all are closed")
        assert daemon.metric("cynow_http_slow_connections_total", what="reader") == 60
        assert largest - before < 60
        for client in clients:
            client.close()
        until(lambda: daemon.metric("cynow_connections", kind="http") == 1, "no place is held")
        assert "Traceback" not in daemon.log()


def test_slow_subscriber_over_tls_is_disconnected(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        daemon = plant.daemon
        slow = daemon.stream()
        slow.send('{"type": "subscribe", "topics": ["scale/*"]}')
        scale = plant.connect(daemon.scale_port)
        before = daemon.resident_mib()

        def is_disconnected() -> bool:
            scale.sendall(b"ST,+00000001.00 kg\r\n" * 2000)
            return daemon.metric("cynow_slow_subscribers_total") == 1

        until(is_disconnected, "the end of the slow subscriber")
        assert daemon.resident_mib() - before < 60


def test_large_answer_over_tls_is_complete(tmp_path: Path) -> None:
    with TlsPlant(tmp_path) as plant:
        store_anomalies(tmp_path / "db" / "M.db")
        large = f"/stat/anomaly?machine=M&{DAY}"
        until(lambda: len(plant.daemon.get(large)[1]) == ROWS, "the anomalies")
        client = plant.connect(plant.daemon.port)
        client.sendall(f"GET {large} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])) == ROWS
        # The answer to a refused request arrives as well, and the connection ends.
        client = plant.connect(plant.daemon.port)
        client.sendall(b"NONSENSE\r\n\r\n" + b"x" * 100_000)
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert client.recv(65536) == b""


def test_handshake_that_never_ends_is_closed(tmp_path: Path) -> None:
    constants = {"gateway.runtime.tls_layer.HANDSHAKE_SECONDS": 1.0}
    with TlsPlant(tmp_path, twistd=with_constants(constants)) as plant:
        daemon = plant.daemon
        silent = [daemon.scale(port) for port in (daemon.port, daemon.daq_port, daemon.scale_port)]
        until(lambda: not any(map(is_open, silent)), "all are closed")
        assert daemon.log().count("failed: it was not complete within 1 s") == 3


@pytest.mark.parametrize("kind", ["missing", "mismatch"])
def test_bad_certificate_keeps_the_gateway_from_starting(tmp_path: Path, kind: str) -> None:
    plant = TlsPlant(tmp_path)
    daemon = plant.daemon
    if kind == "missing":
        (tmp_path / "gateway.pem").unlink()
        text = f"server.tls.cert: {tmp_path}/gateway.pem: No such file or directory"
    else:
        plant.authority.issue("other", file="other")
        (tmp_path / "other.key").replace(tmp_path / "gateway.key")
        text = f"server.tls.key: {tmp_path}/gateway.key does not belong to the certificate in {tmp_path}/gateway.pem"
    daemon.run()
    try:
        assert daemon.ended() == 1
        assert daemon.log() == f"cynow-gateway: {text}\n"
    finally:
        daemon.end()
    command = [*TWISTD, "--config", str(daemon.config), "--check"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert text in checked.stderr
    assert checked.stderr.count("\n") == 3


def test_credentials_of_systemd_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    cert, key = Authority(folder).issue("gateway")
    tls = {"cert": f"$CREDENTIALS_DIRECTORY/{cert.name}", "key": f"$CREDENTIALS_DIRECTORY/{key.name}"}
    daemon = Daemon(tmp_path, server={"tls": tls})
    daemon.tls = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    try:
        daemon.start(env={"CREDENTIALS_DIRECTORY": str(folder)})
        daemon.tls = ssl.create_default_context()
        with pytest.raises(urllib.error.URLError):
            daemon.get("/healthz")
    finally:
        daemon.end()


def test_expiring_certificate_is_a_problem(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway", days=5)
    daemon = Daemon(tmp_path, server={"tls": {"cert": str(cert), "key": str(key)}})
    daemon.tls = authority.client()
    try:
        daemon.start()
        (problem,) = daemon.get("/healthz")[1]["problems"]
        assert problem.startswith("server.tls.cert: the certificate expires within 5 days (")
        assert problem in daemon.log()
    finally:
        daemon.end()
