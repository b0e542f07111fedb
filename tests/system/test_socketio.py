"""Socket.IO with its own clients and byte by byte, on a real daemon."""

import http.client
import itertools
import json
import subprocess
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import quote

import pytest
import socketio
import websocket

from tests.conftest import ROOT, missing
from tests.support.daemon import PATIENCE, Daemon, running, until
from tests.support.frames import fault, frame
from tests.system.test_recovery import at, seoul, set_clock

CLIENTS = ROOT / "tests" / "clients"

POLLING = "/socket.io/?EIO=4&transport=polling"


class NodeClient:
    """npm's socket.io-client in a separate process."""

    def __init__(self, node: str, port: int, namespaces: str, transports: str) -> None:
        self._process = subprocess.Popen(
            [node, "client.js", f"http://127.0.0.1:{port}", namespaces, transports],
            cwd=CLIENTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._lines: Queue[list[Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def emit(self, namespace: str, event: str, *data: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([namespace, event, *data]) + "\n")

    def next_events(self, *kinds: str) -> list[Any]:
        """Return the next event, or the next one of some kinds."""
        while True:
            try:
                found = self._lines.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"waited in vain for {kinds}") from None
            if not kinds or found[0] in kinds:
                return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def node_client(tool: Callable[[str], str]) -> Iterator[Callable[..., NodeClient]]:
    """Yield a function that starts clients of npm's socket.io-client."""
    node = tool("node")
    if not (CLIENTS / "node_modules" / "socket.io-client").is_dir():
        missing("npm's socket.io-client, which make test installs,")
    clients: list[NodeClient] = []

    def start(daemon: Daemon, namespaces: str, transports: str) -> NodeClient:
        clients.append(NodeClient(node, daemon.port, namespaces, transports))
        return clients[-1]

    yield start
    for client in clients:
        client.end()


# -- npm's socket.io-client


@pytest.mark.parametrize("transports", ["websocket", "polling", "polling,websocket"])
def test_node_clients_receive_events_of_machines(
    daemon: Daemon, node_client: Callable[..., NodeClient], transports: str
) -> None:
    # Before the machine has ever connected, with two namespaces.
    client = node_client(daemon, "/sio/ShotBlast,/sio/한글 기계", transports)
    begun = [client.next_events() for _ in range(3 if transports == "polling,websocket" else 2)]
    assert {what[1] for what in begun if what[0] == "connect"} == {"/sio/ShotBlast", "/sio/한글 기계"}
    if transports == "polling,websocket":
        assert ["upgrade", "websocket"] in begun
    else:
        assert {what[2] for what in begun} == {transports}
    client.emit("/sio/ShotBlast", "initialize")
    assert client.next_events("ack", "event") == ["ack", "/sio/ShotBlast", "initialize"]
    daemon.daq(frame("name", "ShotBlast"), fault(0.5))
    daemon.daq(frame("name", "한글 기계"), fault(2.5))
    heard = sorted([client.next_events("event"), client.next_events("event")])
    assert heard == [
        ["event", "/sio/ShotBlast", "anomaly", {"score": 0.5, "threshold": 1}],
        ["event", "/sio/한글 기계", "anomaly", {"score": 2.5, "threshold": 1}],
    ]


def test_update_of_a_minute_is_sent_and_kept_for_later_clients(
    tmp_path: Path, node_client: Callable[..., NodeClient]
) -> None:
    # The minute of the samples ends after they have arrived, however long that takes.
    with at(tmp_path, seoul("2025-12-18 10:00:00")) as daemon:
        daemon.start()
        client = node_client(daemon, "/sio/M", "websocket")
        client.next_events("connect")
        set_clock(daemon.folder, seoul("2025-12-18 10:11:00"))
        daemon.daq(frame("name", "M"), frame("DataUpdate", {"v": {"type": "VIB", "data": [-1.0, 2.0]}}))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 2, "the samples")
        set_clock(daemon.folder, seoul("2025-12-18 10:11:59"))
        update = {"sensor_name": "v", "data": 1.5, "time": "2025-12-18 10:12:00.000000"}
        assert client.next_events("event") == ["event", "/sio/M", "update", update]
        for argument in ([], [{"any": "argument"}]):
            other = node_client(daemon, "/sio/M", "polling")
            other.next_events("connect")
            other.emit("/sio/M", "initialize", *argument)
            assert other.next_events("event") == ["event", "/sio/M", "initialize", [update]]


@pytest.mark.parametrize("transports", ["websocket", "polling"])
def test_node_clients_reconnect_after_a_kill(
    tmp_path: Path, node_client: Callable[..., NodeClient], transports: str
) -> None:
    with running(tmp_path) as daemon:
        client = node_client(daemon, "/sio/M", transports)
        client.next_events("connect")
        daemon.kill()
        assert client.next_events("disconnect")[1] == "/sio/M"
        daemon.start()
        client.next_events("connect")
        # Through the machine's reconnects too.
        for score in (1.5, 2.5):
            daemon.daq(frame("name", "M"), fault(score))
            assert client.next_events("event")[2:] == ["anomaly", {"score": score, "threshold": 1}]


def test_unknown_namespace_is_refused(daemon: Daemon, node_client: Callable[..., NodeClient]) -> None:
    for namespace in ("/random", "/sio/..", "/sio/a/b"):
        client = node_client(daemon, namespace, "websocket")
        assert client.next_events() == ["connect_error", namespace, "Invalid namespace"]
    assert node_client(daemon, "/", "websocket").next_events()[0] == "connect"


# -- python-socketio


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
def test_python_clients_receive_events_of_machines(daemon: Daemon, transports: list[str]) -> None:
    with socketio.SimpleClient() as client:
        client.connect(f"http://127.0.0.1:{daemon.port}", namespace="/sio/M", transports=transports)
        # Acknowledged without values.
        assert client.call("initialize", {"any": "argument"}, timeout=PATIENCE) is None
        daemon.daq(frame("name", "M"), fault(1.5))
        assert client.receive(timeout=PATIENCE) == ["anomaly", {"score": 1.5, "threshold": 1.0}]


# -- byte by byte


class Polls:
    """Client by long-polling."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        status, content, self.headers = daemon.get(POLLING)
        assert status == 200
        assert content[:1] == b"0"
        self.hello = json.loads(content[1:])
        self.path = f"{POLLING}&sid={self.hello['sid']}"

    def post(self, *packets: str) -> int:
        return self._daemon.request("POST", self.path, "\x1e".join(packets).encode(), Content_Type="text/plain")[0]

    def poll(self) -> tuple[int, list[str]]:
        status, content, _ = self._daemon.get(self.path)
        return status, content.decode().split("\x1e") if status == 200 else []


def open_pipe(daemon: Daemon, path: str = "/socket.io/?EIO=4&transport=websocket") -> websocket.WebSocket:
    return websocket.create_connection(f"ws://127.0.0.1:{daemon.port}{path}", timeout=PATIENCE)


def text_from(pipe: websocket.WebSocket) -> str:
    text = pipe.recv()
    assert isinstance(text, str)
    return text


def test_open_packet_has_the_settings(shared_daemon: Daemon) -> None:
    polls = Polls(shared_daemon)
    sid = polls.hello.pop("sid")
    assert len(sid) >= 20
    assert polls.hello == {
        "upgrades": ["websocket"],
        "pingInterval": 25000,
        "pingTimeout": 20000,
        "maxPayload": 64 * 1024,
    }
    assert polls.headers["content-type"] == "text/plain; charset=UTF-8"
    pipe = open_pipe(shared_daemon)
    assert json.loads(pipe.recv()[1:])["upgrades"] == []
    pipe.close()


@pytest.mark.parametrize(
    ("method", "query", "code"),
    [
        ("GET", "transport=polling", 5),
        ("GET", "EIO=3&transport=polling", 5),
        ("GET", "EIO=4", 0),
        ("GET", "EIO=4&transport=carrier-pigeon", 0),
        ("GET", "EIO=4&transport=polling&sid=nobody", 1),
        ("POST", "EIO=4&transport=polling", 2),
        ("PUT", "EIO=4&transport=polling", 2),
        ("GET", "EIO=4&transport=websocket", 3),
    ],
)
def test_invalid_request_is_refused(shared_daemon: Daemon, method: str, query: str, code: int) -> None:
    status, content, _ = shared_daemon.request(method, f"/socket.io/?{query}", b"" if method != "GET" else None)
    assert (status, content["code"]) == (400, code)


def test_polling_client_receives_events_of_a_machine(daemon: Daemon) -> None:
    polls = Polls(daemon)
    assert polls.post("40/sio/M,") == 200
    status, (packet,) = polls.poll()
    assert (status, packet[:9]) == (200, "40/sio/M,")
    assert set(json.loads(packet[9:])) == {"sid"}
    daemon.daq(frame("name", "M"), fault(1.5))
    assert polls.poll() == (200, ['42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'])
    # Several packets at once, one of which asks for an acknowledgement.
    assert polls.post("41/sio/M,", "40/sio/N,", '42/sio/N,7["initialize",1,null]') == 200
    status, packets = polls.poll()
    assert [packet[:9] for packet in packets] == ["40/sio/N,", "43/sio/N,"]
    assert packets[1] == "43/sio/N,7[]"
    assert polls.post("1") == 200
    assert polls.poll()[0] == 400


@pytest.mark.parametrize(
    "packets",
    [
        ("abc",),
        ("4abc",),
        ("42",),
        ("42{}",),
        ('42abc["initialize"]',),
        ("40/sio/M,", "42/sio/M,{}"),
        ("40/sio/M,", '452-/sio/M,["initialize",{"_placeholder":true,"num":0}]', '42/sio/M,["initialize"]'),
        ("40/sio/M,", '451-/sio/M,["initialize",{"_placeholder":true,"num":1}]', "bAAAA"),
    ],
)
def test_invalid_packet_closes_the_session(shared_daemon: Daemon, packets: tuple[str, ...]) -> None:
    before = shared_daemon.metric("cynow_websocket_errors_total")
    polls = Polls(shared_daemon)
    assert polls.post(*packets) == 400
    assert polls.poll()[0] == 400
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 1
    # By WebSocket too.
    pipe = open_pipe(shared_daemon)
    pipe.recv()
    for packet in packets:
        if packet.startswith("b"):
            pipe.send_binary(b"\0")
        else:
            pipe.send(packet)
    while pipe.connected and pipe.recv_data(control_frame=True)[0] != websocket.ABNF.OPCODE_CLOSE:
        pass
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 2


#: Packets that the old server ignored, and whether they are counted.
IGNORED = [
    (("2",), False),
    (("2probe",), False),
    (("2x",), False),
    (("0",), False),
    (("5",), False),
    (("6",), False),
    (("7",), True),
    (("9x",), True),
    (("4",), True),
    (("47",), True),
    (("48[]",), True),
    (("42[]",), True),
    (("42[1]",), True),
    (('42["connect"]',), True),
    (('42["initialize"]',), True),
    (("43/sio/M,1[]",), True),
    (("41/sio/M,",), True),
    (("44/sio/M,{}",), True),
    (("40/sio/M,xx",), True),
    (("40/sio/M,", "43/sio/M,1[]"), False),
    (("40/sio/M,", "43/sio/M,1{}"), True),
    (("40/sio/M,", "43/sio/M,1xx"), True),
    (("40/sio/M,", "42/sio/M,[]"), True),
    (("40/sio/M,", '41/sio/M,{"a":1}'), False),
    (("40/sio/M,", '42/sio/O,["initialize"]'), True),
    (("40/sio/M,", '451-/sio/O,["initialize",{"_placeholder":true,"num":0}]', "bAAAA"), True),
    (("40/sio/M,", '45/sio/M,["initialize"]'), True),
    (("40/sio/M,", '4511-/sio/M,["initialize"]'), True),
    (("40/sio/M,", "bAAAA"), True),
    (("bAAAA",), True),
    (("40/sio/M,[]",), False),
    (('40/sio/M,"x"',), False),
    (("40/sio/M,", "40/sio/M,"), True),
]


@pytest.mark.parametrize(("packets", "is_counted"), IGNORED)
def test_packet_that_the_old_server_ignored_keeps_the_session(
    shared_daemon: Daemon, packets: tuple[str, ...], is_counted: bool
) -> None:
    before = shared_daemon.metric("cynow_websocket_errors_total")
    polls = Polls(shared_daemon)
    assert polls.post(*packets, "40/sio/N,") == 200
    heard: list[str] = []
    while not heard or not heard[-1].startswith("40/sio/N,"):
        status, found = polls.poll()
        assert status == 200
        heard += found
    assert polls.post("1") == 200
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + is_counted
    # By WebSocket too.
    pipe = open_pipe(shared_daemon)
    pipe.recv()
    for packet in packets:
        if packet.startswith("b"):
            pipe.send_binary(b"\0\0\0")
        else:
            pipe.send(packet)
    pipe.send("40/sio/N,")
    while not str(pipe.recv()).startswith("40/sio/N,"):
        pass
    pipe.close()
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 2 * is_counted


def test_polled_packet_that_is_not_base64_is_ignored(shared_daemon: Daemon) -> None:
    before = shared_daemon.metric("cynow_websocket_errors_total")
    polls = Polls(shared_daemon)
    for body in ("bA", "b!!!!"):
        assert polls.post(body, "40/sio/N,") == 200
    assert polls.poll()[1][0].startswith("40/sio/N,")
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 3


def test_empty_polling_request_is_accepted(shared_daemon: Daemon) -> None:
    polls = Polls(shared_daemon)
    assert polls.post("") == 200
    assert polls.post("40/sio/N,") == 200
    assert polls.poll()[1][0].startswith("40/sio/N,")


def test_second_connect_is_an_error_for_its_namespace_only(daemon: Daemon) -> None:
    pipe = open_pipe(daemon)
    pipe.recv()
    for namespace in ("/sio/M", "/sio/N"):
        pipe.send(f"40{namespace},")
        assert text_from(pipe).startswith(f"40{namespace},")
    pipe.send("40/sio/M,")
    assert pipe.recv() == '44/sio/M,{"message":"Unable to connect"}'
    # Both stay open, and each receives an event once.
    daemon.daq(frame("name", "M"), fault(1.5))
    assert pipe.recv() == '42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'
    daemon.daq(frame("name", "N"), fault(2.5))
    assert pipe.recv() == '42/sio/N,["anomaly",{"score":2.5,"threshold":1.0}]'
    # A client that has left may join again.
    pipe.send("41/sio/M,")
    pipe.send("40/sio/M,")
    assert text_from(pipe).startswith('40/sio/M,{"sid"')
    pipe.close()


@pytest.mark.parametrize(
    "connect",
    [
        "40/sio/M?token=a",
        "40/sio/M?token=a,",
        "40/sio/M?token=a,b",
        "40/sio/M?token=a,b,",
        "40/sio/M?token=a,5",
        "40/sio/M?token=,,",
        "40/sio/M?",
        "40/sio/M?a=/b?c=d,e&f=,",
        '40/sio/M?token=a,b,{"token":"x"}',
    ],
)
def test_query_after_a_namespace_is_ignored(daemon: Daemon, connect: str) -> None:
    pipe = open_pipe(daemon)
    pipe.recv()
    pipe.send(connect)
    assert text_from(pipe).startswith('40/sio/M,{"sid"')
    pipe.send('42/sio/M?token=a,b,7["initialize"]')
    assert pipe.recv() == "43/sio/M,7[]"
    daemon.daq(frame("name", "M"), fault(1.5))
    assert pipe.recv() == '42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'
    pipe.close()


def test_decomposed_name_is_the_same_machine(daemon: Daemon) -> None:
    apart = unicodedata.normalize("NFD", "진동기")
    pipe = open_pipe(daemon)
    pipe.recv()
    pipe.send(f"40/sio/{apart},")
    assert text_from(pipe).startswith(f"40/sio/{apart},")
    daemon.daq(frame("name", "진동기"), fault(1.5))
    assert pipe.recv() == f'42/sio/{apart},["anomaly",{{"score":1.5,"threshold":1.0}}]'
    pipe.close()


def test_binary_arguments_are_accepted(shared_daemon: Daemon) -> None:
    pipe = open_pipe(shared_daemon)
    pipe.recv()
    pipe.send("40/sio/M,")
    pipe.recv()
    pipe.send('452-/sio/M,3["initialize",{"_placeholder":true,"num":1},[{"_placeholder":true,"num":0}]]')
    pipe.send_binary(b"\1\2")
    pipe.send_binary(b"\3")
    assert pipe.recv() == "43/sio/M,3[]"
    pipe.close()


def test_percent_encoded_name_is_accepted(daemon: Daemon) -> None:
    pipe = open_pipe(daemon)
    pipe.recv()
    namespace = f"/sio/{quote('한글 기계')}"
    pipe.send(f"40{namespace}?token=x,")
    assert text_from(pipe).startswith(f"40{namespace},")
    daemon.daq(frame("name", "한글 기계"), fault(1.5))
    assert pipe.recv() == f'42{namespace},["anomaly",{{"score":1.5,"threshold":1.0}}]'
    pipe.close()


def test_second_poll_closes_the_session(daemon: Daemon) -> None:
    polls = Polls(daemon)
    answers: Queue[tuple[int, list[str]]] = Queue()
    threading.Thread(target=lambda: answers.put(polls.poll()), daemon=True).start()
    until(lambda: daemon.metric("cynow_connections", kind="http") == 2, "the first poll")
    assert polls.poll()[0] == 400
    assert answers.get(timeout=PATIENCE) == (200, ["1"])
    until(lambda: daemon.metric("cynow_connections", kind="socketio") == 0, "the session has gone")


def test_upgrade_loses_nothing(daemon: Daemon) -> None:
    """Events at any moment of the upgrade arrive once and in order."""
    machine = daemon.daq(frame("name", "M"))
    scores = itertools.count()
    for step in range(4):
        polls = Polls(daemon)
        polls.post("40/sio/M,")
        polls.poll()
        first = next(scores)
        machine.sendall(fault(first))
        heard: list[str] = []
        if step == 0:
            heard += polls.poll()[1]
        pipe = open_pipe(daemon, f"/socket.io/?EIO=4&transport=websocket&sid={polls.hello['sid']}")
        pipe.send("2probe")
        assert pipe.recv() == "3probe"
        machine.sendall(fault(next(scores)))
        if step != 1:
            heard += polls.poll()[1]
        pipe.send("5")
        machine.sendall(fault(next(scores)))
        last = f'42/sio/M,["anomaly",{{"score":{float(first + 2)},"threshold":1.0}}]'
        while last not in heard:
            heard.append(text_from(pipe))
        assert [json.loads(text[9:])[1]["score"] for text in heard if text.startswith("42")] == [
            first,
            first + 1,
            first + 2,
        ]
        # Further polls and WebSockets are refused.
        assert polls.poll()[0] == 400
        other = open_pipe(daemon, f"/socket.io/?EIO=4&transport=websocket&sid={polls.hello['sid']}")
        assert other.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_CLOSE
        pipe.close()
        until(lambda: daemon.metric("cynow_connections", kind="socketio") == 0, "the session has gone")


def test_client_that_does_not_poll_costs_at_most_its_bound(tmp_path: Path) -> None:
    with running(tmp_path, limits={"subscriber_bytes": 10_000}) as daemon:
        polls = Polls(daemon)
        polls.post("40/sio/M,")
        machine = daemon.daq(frame("name", "M"))
        for number in range(2000):
            machine.sendall(fault(number))
        until(lambda: daemon.metric("cynow_slow_subscribers_total") == 1, "it is closed")
        assert polls.poll()[0] == 400


def test_shutdown_closes_sessions(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        polls = Polls(daemon)
        polling = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        polling.request("GET", polls.path)
        pipe = open_pipe(daemon)
        pipe.recv()
        # Each answer comes in a later turn of the reactor, and the poll arrived before all of them.
        for _ in range(2):
            daemon.get("/healthz")
        assert daemon.terminate() == 0
        answer = polling.getresponse()
        assert (answer.status, answer.read()) == (200, b"1")
        opcode, content = pipe.recv_data(control_frame=True)
        assert (opcode, int.from_bytes(content[:2])) == (websocket.ABNF.OPCODE_CLOSE, 1001)


def test_foreign_page_cannot_open_a_websocket(tmp_path: Path) -> None:
    server = {"cors_origins": ["http://friend.example"], "names": ["plant.example"]}
    with running(tmp_path, server=server) as daemon:
        for path in ("/ws", "/socket.io/?EIO=4&transport=websocket"):
            url = f"ws://127.0.0.1:{daemon.port}{path}"
            for origin in ("http://foe.example", "null", "http://127.0.0.1", "http://friend.example.foe"):
                with pytest.raises(websocket.WebSocketBadStatusException) as caught:
                    websocket.create_connection(url, timeout=PATIENCE, origin=origin)
                assert caught.value.status_code == 403
            for origin in (
                "http://friend.example",
                f"http://127.0.0.1:{daemon.port}",
                f"https://127.0.0.1:{daemon.port}",
            ):
                websocket.create_connection(url, timeout=PATIENCE, origin=origin).close()
            websocket.create_connection(url, timeout=PATIENCE, suppress_origin=True).close()
            # URLs omit the default port.
            for host in ("plant.example", "plant.example:80"):
                for origin in ("http://plant.example", "http://plant.example:80", "HTTP://Plant.example"):
                    websocket.create_connection(url, timeout=PATIENCE, origin=origin, host=host).close()
        # They do not count as clients by polling either.
        for path in (POLLING, "/events?topics=*/*"):
            assert daemon.get(path, Origin="http://foe.example")[0] == 403
        assert daemon.get(POLLING, Origin="http://friend.example")[0] == 200
