"""TLS of listeners in memory: files, handshakes, deadlines and changes."""

import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.python.failure import Failure

from gateway.runtime.certificates import Certificates
from gateway.runtime.clock import WallClock, zone_named
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.listener import StartError
from gateway.runtime.metrics import Counters
from gateway.runtime.tls import TlsContext, TlsReports, client_names, load_files
from gateway.runtime.tls_files import TlsError, TlsFiles
from gateway.runtime.tls_layer import HANDSHAKE_SECONDS, MIN_HANDSHAKES
from gateway.runtime.transports import lowest_transport, set_read_size
from tests.support.certificates import Authority
from tests.support.metrics import count_of


class Echo(Protocol):
    """Protocol that sends back what it gets."""

    transport: Any
    made = False
    lost = False

    def connectionMade(self) -> None:
        self.made = True

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - never used
        self.lost = True


class Peer:
    """A client in memory and the gateway's side of its connection."""

    def __init__(self, plant: "Plant", client: ssl.SSLContext) -> None:
        self._clock = plant.clock
        self.below: Any = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 5))
        assert plant.context.layer is not None
        self.transport = plant.context.layer.wrap(self.below.getPeer(), plant.factory.buildProtocol)
        self.transport.makeConnection(self.below)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")

    def exchange(self) -> None:
        """Pass on what both sides have sent."""
        for _ in range(5):
            if data := self._out.read():
                self.transport.dataReceived(data)
            self._clock.advance(0)
            if data := self.below.value():
                self.below.clear()
                self._in.write(data)
            if self.below.disconnecting or self.below.disconnected:
                self.lose()
                return

    def lose(self) -> None:
        if self.transport.connected:
            self.transport.connectionLost(Failure(ConnectionDone()))

    def shake_hands(self) -> None:
        for _ in range(4):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange()
            else:
                break
        self.exchange()

    def say(self, data: bytes) -> bytes:
        self.tls.write(data)
        self.exchange()
        return self.tls.read(65536)

    @property
    def certificate(self) -> dict[str, Any]:
        found = self.tls.getpeercert()
        assert found
        return found


class Plant:
    """A listener with TLS, and an authority."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.clock.advance(datetime.now(UTC).timestamp())
        self.counters = Counters()
        wall = WallClock(zone_named("UTC"), self.clock.seconds, self.clock.seconds)
        log = LimitedLog(Logger("gateway.runtime.tls"), wall, self.counters)
        self.room = 1000
        self.context = TlsContext(
            self.clock, "daq", "daq.tls", TlsReports(wall, self.counters, log), (b"http/1.1",), lambda: self.room
        )
        self.authority = Authority(folder)
        self.folder = folder
        self.protocols: list[Echo] = []
        self.factory = Factory.forProtocol(self.build)

    def build(self) -> Echo:
        self.protocols.append(Echo())
        return self.protocols[-1]

    def files(self, name: str = "gateway", *, client_ca: Path | None = None, days: float = 90) -> TlsFiles:
        cert, key = self.authority.issue(name, days=days)
        return TlsFiles(str(cert), str(key), None if client_ca is None else str(client_ca))

    def use(self, files: TlsFiles | None) -> None:
        """Read files, and use them for new connections."""
        self.context.use(load_files(self.context.key, files, self.context.protocols))

    def connect(self, client: ssl.SSLContext | None = None) -> Peer:
        return Peer(self, client or self.authority.client())

    def failures(self) -> float:
        return count_of(self.counters.tls_failures.labels("daq"))


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


def common_name(certificate: dict[str, Any]) -> str:
    return next(str(value) for part in certificate["subject"] for name, value in part if name == "commonName")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_of_a_current_version_is_served(plant: Plant, version: ssl.TLSVersion) -> None:
    plant.use(plant.files())
    client = plant.authority.client()
    client.minimum_version = client.maximum_version = version
    client.set_alpn_protocols(["h2", "http/1.1"])
    peer = plant.connect(client)
    peer.shake_hands()
    assert peer.say(b"one") == b"one"
    assert peer.tls.selected_alpn_protocol() == "http/1.1"
    assert client_names(peer.transport) == frozenset()
    assert plant.failures() == 0


def test_protocol_is_built_after_the_handshake(plant: Plant) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    assert plant.protocols == []
    peer.shake_hands()
    assert plant.protocols[0].made
    assert plant.context.layer is not None
    assert not plant.context.layer.handshakes
    assert not plant.clock.getDelayedCalls()


@pytest.mark.parametrize("is_silent", [True, False])
def test_handshake_that_does_not_end_is_closed_at_the_deadline(plant: Plant, is_silent: bool) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    if not is_silent:
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        peer.exchange()
    with capturedLogs() as events:
        plant.clock.advance(HANDSHAKE_SECONDS - 0.1)
        assert not peer.below.disconnected
        plant.clock.advance(0.2)
        peer.lose()
    assert peer.below.disconnected
    assert plant.failures() == 1
    assert [formatEvent(event) for event in events] == [
        "daq.tls: TLS handshake with 192.0.2.1:5 failed: it was not complete within 10 s"
    ]


def test_at_the_limit_of_connections_the_oldest_handshake_ends_for_a_new_one(plant: Plant) -> None:
    plant.use(plant.files())
    peers = [plant.connect() for _ in range(MIN_HANDSHAKES)]
    plant.room = 0
    peers.append(plant.connect())
    assert [peer.below.disconnected for peer in peers] == [True] + [False] * MIN_HANDSHAKES
    assert plant.context.layer is not None
    assert len(plant.context.layer.handshakes) == MIN_HANDSHAKES


def test_connection_that_the_factory_refuses_is_closed_after_the_handshake(plant: Plant) -> None:
    plant.use(plant.files())
    plant.factory.buildProtocol = lambda _: None  # type: ignore[method-assign,assignment]  # a refusal
    peer = plant.connect()
    peer.shake_hands()
    assert peer.below.disconnected
    assert plant.failures() == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "a plain HTTP request; use https://, this port has TLS"),
        (b"POST /api HTTP/1.1\r\n\r\n", "a plain HTTP request; use https://, this port has TLS"),
        (b"ST , +000053.26 _kg\r\n", "not TLS; this port has TLS"),
        (b"\x80\x05\x95" + b"x" * 50, "not TLS; this port has TLS"),
        (b"", "the connection was closed before it was complete"),
    ],
)
def test_other_protocol_is_named_in_the_log(plant: Plant, data: bytes, reason: str) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    with capturedLogs() as events:
        if data:
            peer.transport.dataReceived(data)
        peer.lose()
    (text,) = [formatEvent(event) for event in events]
    assert text.endswith(f"failed: {reason}")
    assert plant.failures() == 1
    assert plant.protocols == []


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n"])
def test_http_without_tls_is_answered_where_http_is_served(plant: Plant, data: bytes) -> None:
    plant.context.plain_answer = lambda: b"HTTP/1.1 400 Bad Request\r\n\r\n"
    plant.use(plant.files())
    peer = plant.connect()
    peer.transport.dataReceived(data)
    assert peer.below.value() == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert peer.below.disconnecting
    peer.lose()
    assert plant.failures() == 1
    other = plant.connect()
    other.shake_hands()
    assert other.say(b"one") == b"one"


def failure_of(plant: Plant, client: ssl.SSLContext) -> str:
    """Return the log line about the handshake of a client, which must fail."""
    peer = plant.connect(client)
    with capturedLogs() as events:
        try:
            peer.shake_hands()
        except ssl.SSLError:
            peer.exchange()
        peer.lose()
    (text,) = [formatEvent(event) for event in events]
    assert plant.protocols == []
    return text.partition(" failed: ")[2]


def test_client_that_does_not_trust_the_certificate_is_named(plant: Plant) -> None:
    plant.use(plant.files())
    reason = failure_of(plant, Authority(plant.folder, "other").client())
    assert reason.startswith("the client does not trust the certificate (")


def test_client_with_old_cipher_suites_is_refused(plant: Plant) -> None:
    plant.use(plant.files())
    client = plant.authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    assert failure_of(plant, client) == "the client offers no cipher suite that the gateway accepts"


def test_client_without_a_certificate_is_refused_where_one_is_required(plant: Plant) -> None:
    plant.use(plant.files(client_ca=plant.authority.path))
    assert failure_of(plant, plant.authority.client()) == ("the client sent no certificate, which client_ca requires")


def test_client_with_a_certificate_of_another_authority_is_refused(plant: Plant) -> None:
    plant.use(plant.files(client_ca=plant.authority.path))
    foreign = Authority(plant.folder, "foreign").issue("press")
    assert failure_of(plant, plant.authority.client(foreign)) == (
        "the client's certificate was refused: it was issued by an authority that is not in client_ca"
    )


def test_client_with_an_expired_certificate_is_refused(plant: Plant) -> None:
    plant.use(plant.files(client_ca=plant.authority.path))
    expired = plant.authority.issue("old", days=-1)
    assert failure_of(plant, plant.authority.client(expired)) == (
        "the client's certificate was refused: it has expired"
    )


def test_names_of_a_verified_client_are_returned(plant: Plant) -> None:
    plant.use(plant.files(client_ca=plant.authority.path))
    peer = plant.connect(plant.authority.client(plant.authority.issue("press-1", ["press.example", "press-1"])))
    peer.shake_hands()
    assert client_names(plant.protocols[0].transport) == {"press-1", "press.example"}


def test_plain_transport_has_no_names() -> None:
    assert client_names(StringTransport()) == frozenset()


def test_renewed_certificate_is_used_for_new_connections_only(plant: Plant) -> None:
    plant.use(plant.files("first"))
    before = plant.connect()
    before.shake_hands()
    assert common_name(before.certificate) == "first"
    plant.use(plant.files("second"))
    after = plant.connect()
    after.shake_hands()
    assert common_name(after.certificate) == "second"
    assert before.say(b"goes on") == b"goes on"


def test_tls_can_be_switched_off_and_on(plant: Plant) -> None:
    plant.use(plant.files())
    plant.use(None)
    assert plant.context.layer is None
    assert plant.context.problem is None
    plant.use(None)
    plant.use(plant.files())
    peer = plant.connect()
    peer.shake_hands()
    assert peer.say(b"one") == b"one"


def bad(plant: Plant, kind: str) -> tuple[TlsFiles, str]:
    """Return files that cannot be used, and the beginning of the error."""
    good = plant.files("good")
    other = plant.files("other")
    path = str(plant.folder / "bad")
    match kind:
        case "missing":
            return TlsFiles(path, good.key), f"daq.tls.cert: {path}: No such file or directory"
        case "missing key":
            return TlsFiles(good.cert, path), f"daq.tls.key: {path}: No such file or directory"
        case "mismatch":
            return TlsFiles(good.cert, other.key), f"daq.tls.key: {other.key} does not belong to the certificate in"
        case "swapped":
            return TlsFiles(good.key, good.cert), f"daq.tls.cert: {good.key}: it holds no certificate in PEM"
        case "key":
            return TlsFiles(good.cert, good.cert), f"daq.tls.key: {good.cert}: it holds no valid private key in PEM"
        case "damaged":
            text = Path(good.cert).read_text("ascii")
            Path(path).write_text(text[:200] + text[300:], "ascii")
            return TlsFiles(path, good.key), f"daq.tls.cert: {path}: not a valid certificate"
        case "encrypted":
            command = ["openssl", "pkey", "-in", good.key, "-aes256", "-passout", "pass:x", "-out", path]
            subprocess.run(command, check=True)
            return TlsFiles(good.cert, path), f"daq.tls.key: {path}: the key is encrypted"
        case "folder":
            return TlsFiles(str(plant.folder), good.key), f"daq.tls.cert: {plant.folder}: Is a directory"
        case _:
            Path(path).write_text("nothing", "ascii")
            return TlsFiles(good.cert, good.key, path), f"daq.tls.client_ca: {path}: it holds no certificate"


BAD = ["missing", "missing key", "mismatch", "swapped", "key", "damaged", "encrypted", "folder", "client_ca"]


@pytest.mark.parametrize("kind", BAD)
def test_file_that_cannot_be_used_is_named_and_changes_nothing(plant: Plant, kind: str) -> None:
    plant.use(plant.files("first"))
    files, message = bad(plant, kind)
    with pytest.raises(TlsError) as raised:
        plant.use(files)
    assert str(raised.value).startswith(message)
    assert str(raised.value).startswith(f"{raised.value.key}: ")
    peer = plant.connect()
    peer.shake_hands()
    assert common_name(peer.certificate) == "first"


def test_expiry_is_a_metric_a_warning_and_a_problem(plant: Plant) -> None:
    with capturedLogs() as events:
        plant.use(plant.files(days=30))
    assert events == []
    assert plant.context.problem is None
    expires = count_of(plant.counters.tls_expiry.labels("daq"))
    assert abs(expires - plant.clock.seconds() - 30 * 86_400) < 60
    plant.clock.advance(25.5 * 86_400)
    text = "daq.tls.cert: the certificate expires within 5 days ("
    assert plant.context.problem is not None
    assert plant.context.problem.startswith(text)
    plant.clock.advance(4 * 86_400)
    assert "within 1 day (" in str(plant.context.problem)
    plant.clock.advance(86_400)
    assert str(plant.context.problem).startswith("daq.tls.cert: the certificate has expired (")


def test_certificates_warn_at_the_start_and_once_a_day(plant: Plant) -> None:
    wall = WallClock(zone_named("UTC"), plant.clock.seconds, plant.clock.seconds)
    certificates = Certificates(plant.clock, wall, plant.counters)
    certificates.add("daq", (), lambda: 1)
    certificates.add("server", (), lambda: 1)
    with capturedLogs() as events:
        certificates.open({"daq": plant.files(days=10), "server": None})
        certificates.startService()
        assert len(events) == 1
        plant.clock.pump([3600] * 25)
    certificates.stopService()
    assert len(events) == 2
    assert len(certificates.problems()) == 1
    assert not plant.clock.getDelayedCalls()


def test_start_with_a_bad_file_names_its_key(plant: Plant) -> None:
    wall = WallClock(zone_named("UTC"), plant.clock.seconds, plant.clock.seconds)
    certificates = Certificates(plant.clock, wall, plant.counters)
    certificates.add("daq", (), lambda: 1)
    files, message = bad(plant, "mismatch")
    with pytest.raises(StartError, match=message):
        certificates.open({"daq": files})


def test_closing_sends_everything_and_does_not_wait_for_the_client(plant: Plant) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    peer.shake_hands()
    transport = plant.protocols[0].transport
    transport.registerProducer(plant.protocols[0], True)
    transport.write(b"last")
    transport.loseConnection()
    assert peer.below.disconnecting
    peer.exchange()
    assert peer.tls.read(10) == b"last"
    assert peer.tls.read(10) == b""
    assert plant.protocols[0].lost
    # These do nothing after the end.
    transport.loseConnection()
    transport.abortConnection()
    transport.loseWriteConnection()
    transport.unregisterProducer()


def test_half_close_goes_on_reading_until_the_client_closes(plant: Plant) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    peer.shake_hands()
    transport = plant.protocols[0].transport
    transport.write(b"last")
    transport.loseWriteConnection()
    peer.exchange()
    assert not peer.below.disconnecting
    assert peer.tls.read(10) == b"last"
    peer.tls.write(b"more")
    peer.exchange()
    assert not plant.protocols[0].lost
    peer.tls.unwrap()
    peer.exchange()
    assert plant.protocols[0].lost


def test_size_of_reads_is_that_of_the_socket_below(plant: Plant) -> None:
    plant.use(plant.files())
    peer = plant.connect()
    set_read_size(peer.transport, 1234)
    assert lowest_transport(peer.transport) is peer.below
    assert peer.below.bufferSize == 1234


def test_paths_are_below_the_base_folder() -> None:
    files = TlsFiles("a.pem", "/b.key", "c.pem").located(lambda path: f"/base/{path}" if path[0] != "/" else path)
    assert files == TlsFiles("/base/a.pem", "/b.key", "/base/c.pem")
