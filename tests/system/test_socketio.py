"""Socket.IO as its real clients see it, and as who knows the protocol byte by byte does, on a real daemon."""

import http.client
import itertools
import json
import pickle
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
from tests.daemon import PATIENCE, Daemon, running, until
from tests.system.test_recovery import at, seoul, set_clock

CLIENTS = ROOT / "tests" / "clients"

POLLING = "/socket.io/?EIO=4&transport=polling"


def frame(event: str, data: Any) -> bytes:
    return pickle.dumps((event, data)) + b"\\o"


def fault(score: float) -> bytes:
    return frame("FaultDetect", {"score": score, "threshold": 1.0})


class NodeClient:
    """npm's socket.io-client in a process of its own."""

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

    def hear(self, *kinds: str) -> list[Any]:
        """What happens next, of some kinds only where they are given."""
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
    """Starts clients of npm's socket.io-client."""
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
def test_node_clients_follow_machines(daemon: Daemon, node_client: Callable[..., NodeClient], transports: str) -> None:
    # Before the machine has ever connected, and two on one connection.
    client = node_client(daemon, "/sio/ShotBlast,/sio/한글 기계", transports)
    begun = [client.hear() for _ in range(3 if transports == "polling,websocket" else 2)]
    assert {what[1] for what in begun if what[0] == "connect"} == {"/sio/ShotBlast", "/sio/한글 기계"}
    if transports == "polling,websocket":
        assert ["upgrade", "websocket"] in begun
    else:
        assert {what[2] for what in begun} == {transports}
    client.emit("/sio/ShotBlast", "initialize")
    assert client.hear("ack", "event") == ["ack", "/sio/ShotBlast", "initialize"]
    daemon.daq(frame("name", "ShotBlast"), fault(0.5))
    daemon.daq(frame("name", "한글 기계"), fault(2.5))
    heard = sorted([client.hear("event"), client.hear("event")])
    assert heard == [
        ["event", "/sio/ShotBlast", "anomaly", {"score": 0.5, "threshold": 1}],
        ["event", "/sio/한글 기계", "anomaly", {"score": 2.5, "threshold": 1}],
    ]


def test_a_minute_goes_out_as_an_update_and_is_there_for_who_comes_later(
    tmp_path: Path, node_client: Callable[..., NodeClient]
) -> None:
    # The minute of the samples is the one that is meant, and ends when they are there, however long anything takes.
    with at(tmp_path, seoul("2025-12-18 10:00:00")) as daemon:
        daemon.start()
        client = node_client(daemon, "/sio/M", "websocket")
        client.hear("connect")
        set_clock(daemon.folder, seoul("2025-12-18 10:11:00"))
        daemon.daq(frame("name", "M"), frame("DataUpdate", {"v": {"type": "VIB", "data": [-1.0, 2.0]}}))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 2, "the samples")
        set_clock(daemon.folder, seoul("2025-12-18 10:11:59"))
        update = {"sensor_name": "v", "data": 1.5, "time": "2025-12-18 10:12:00.000000"}
        assert client.hear("event") == ["event", "/sio/M", "update", update]
        for argument in ([], [{"any": "argument"}]):
            other = node_client(daemon, "/sio/M", "polling")
            other.hear("connect")
            other.emit("/sio/M", "initialize", *argument)
            assert other.hear("event") == ["event", "/sio/M", "initialize", [update]]


@pytest.mark.parametrize("transports", ["websocket", "polling"])
def test_node_clients_come_back_after_a_kill(
    tmp_path: Path, node_client: Callable[..., NodeClient], transports: str
) -> None:
    with running(tmp_path) as daemon:
        client = node_client(daemon, "/sio/M", transports)
        client.hear("connect")
        daemon.kill()
        assert client.hear("disconnect")[1] == "/sio/M"
        daemon.start()
        client.hear("connect")
        # Through the machine's reconnects too.
        for score in (1.5, 2.5):
            daemon.daq(frame("name", "M"), fault(score))
            assert client.hear("event")[2:] == ["anomaly", {"score": score, "threshold": 1}]


def test_other_namespaces_cannot_be_joined(daemon: Daemon, node_client: Callable[..., NodeClient]) -> None:
    for namespace in ("/random", "/sio/..", "/sio/a/b"):
        client = node_client(daemon, namespace, "websocket")
        assert client.hear() == ["connect_error", namespace, "Invalid namespace"]
    assert node_client(daemon, "/", "websocket").hear()[0] == "connect"


# -- python-socketio


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
def test_python_clients_follow_machines(daemon: Daemon, transports: list[str]) -> None:
    with socketio.SimpleClient() as client:
        client.connect(f"http://127.0.0.1:{daemon.port}", namespace="/sio/M", transports=transports)
        # Acknowledged, with nothing.
        assert client.call("initialize", {"any": "argument"}, timeout=PATIENCE) is None
        daemon.daq(frame("name", "M"), fault(1.5))
        assert client.receive(timeout=PATIENCE) == ["anomaly", {"score": 1.5, "threshold": 1.0}]


# -- byte by byte


class Polls:
    """A client by long-polling."""

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


def piped(daemon: Daemon, path: str = "/socket.io/?EIO=4&transport=websocket") -> websocket.WebSocket:
    return websocket.create_connection(f"ws://127.0.0.1:{daemon.port}{path}", timeout=PATIENCE)


def test_hello(shared_daemon: Daemon) -> None:
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
    pipe = piped(shared_daemon)
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
def test_wrong_requests(shared_daemon: Daemon, method: str, query: str, code: int) -> None:
    status, content, _ = shared_daemon.request(method, f"/socket.io/?{query}", b"" if method != "GET" else None)
    assert (status, content["code"]) == (400, code)


def test_a_machine_by_polling(daemon: Daemon) -> None:
    polls = Polls(daemon)
    assert polls.post("40/sio/M,") == 200
    status, (packet,) = polls.poll()
    assert (status, packet[:9]) == (200, "40/sio/M,")
    assert set(json.loads(packet[9:])) == {"sid"}
    daemon.daq(frame("name", "M"), fault(1.5))
    assert polls.poll() == (200, ['42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'])
    # Several packets at once, of which one waits for an answer.
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
def test_what_is_no_packet_ends_the_session(shared_daemon: Daemon, packets: tuple[str, ...]) -> None:
    before = shared_daemon.metric("cynow_websocket_errors_total")
    polls = Polls(shared_daemon)
    assert polls.post(*packets) == 400
    assert polls.poll()[0] == 400
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 1
    # By WebSocket too.
    pipe = piped(shared_daemon)
    pipe.recv()
    for packet in packets:
        if packet.startswith("b"):
            pipe.send_binary(b"\0")
        else:
            pipe.send(packet)
    while pipe.connected and pipe.recv_data(control_frame=True)[0] != websocket.ABNF.OPCODE_CLOSE:
        pass
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 2


#: What the old server ignored, and whether that is counted.
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
def test_what_the_old_server_ignored_ends_nothing(
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
    pipe = piped(shared_daemon)
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


def test_a_polled_packet_that_is_not_base64_is_ignored(shared_daemon: Daemon) -> None:
    before = shared_daemon.metric("cynow_websocket_errors_total")
    polls = Polls(shared_daemon)
    for body in ("bA", "b!!!!"):
        assert polls.post(body, "40/sio/N,") == 200
    assert polls.poll()[1][0].startswith("40/sio/N,")
    assert shared_daemon.metric("cynow_websocket_errors_total") == before + 3


def test_an_empty_polling_request_holds_no_packet(shared_daemon: Daemon) -> None:
    polls = Polls(shared_daemon)
    assert polls.post("") == 200
    assert polls.post("40/sio/N,") == 200
    assert polls.poll()[1][0].startswith("40/sio/N,")


def test_a_second_connect_is_an_error_for_that_namespace_only(daemon: Daemon) -> None:
    pipe = piped(daemon)
    pipe.recv()
    for namespace in ("/sio/M", "/sio/N"):
        pipe.send(f"40{namespace},")
        assert pipe.recv().startswith(f"40{namespace},")
    pipe.send("40/sio/M,")
    assert pipe.recv() == '44/sio/M,{"message":"Unable to connect"}'
    # Both live on, and each hears an event once.
    daemon.daq(frame("name", "M"), fault(1.5))
    assert pipe.recv() == '42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'
    daemon.daq(frame("name", "N"), fault(2.5))
    assert pipe.recv() == '42/sio/N,["anomaly",{"score":2.5,"threshold":1.0}]'
    # Who has left may come back.
    pipe.send("41/sio/M,")
    pipe.send("40/sio/M,")
    assert pipe.recv().startswith('40/sio/M,{"sid"')
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
def test_a_query_behind_a_namespace_is_no_part_of_its_name(daemon: Daemon, connect: str) -> None:
    pipe = piped(daemon)
    pipe.recv()
    pipe.send(connect)
    assert pipe.recv().startswith('40/sio/M,{"sid"')
    pipe.send('42/sio/M?token=a,b,7["initialize"]')
    assert pipe.recv() == "43/sio/M,7[]"
    daemon.daq(frame("name", "M"), fault(1.5))
    assert pipe.recv() == '42/sio/M,["anomaly",{"score":1.5,"threshold":1.0}]'
    pipe.close()


def test_a_name_whose_marks_stand_apart_is_the_same_machine(daemon: Daemon) -> None:
    apart = unicodedata.normalize("NFD", "진동기")
    pipe = piped(daemon)
    pipe.recv()
    pipe.send(f"40/sio/{apart},")
    assert pipe.recv().startswith(f"40/sio/{apart},")
    daemon.daq(frame("name", "진동기"), fault(1.5))
    assert pipe.recv() == f'42/sio/{apart},["anomaly",{{"score":1.5,"threshold":1.0}}]'
    pipe.close()


def test_binary_arguments_are_allowed(shared_daemon: Daemon) -> None:
    pipe = piped(shared_daemon)
    pipe.recv()
    pipe.send("40/sio/M,")
    pipe.recv()
    pipe.send('452-/sio/M,3["initialize",{"_placeholder":true,"num":1},[{"_placeholder":true,"num":0}]]')
    pipe.send_binary(b"\1\2")
    pipe.send_binary(b"\3")
    assert pipe.recv() == "43/sio/M,3[]"
    pipe.close()


def test_a_name_may_be_escaped_as_in_a_url(daemon: Daemon) -> None:
    pipe = piped(daemon)
    pipe.recv()
    namespace = f"/sio/{quote('한글 기계')}"
    pipe.send(f"40{namespace}?token=x,")
    assert pipe.recv().startswith(f"40{namespace},")
    daemon.daq(frame("name", "한글 기계"), fault(1.5))
    assert pipe.recv() == f'42{namespace},["anomaly",{{"score":1.5,"threshold":1.0}}]'
    pipe.close()


def test_a_second_poll_ends_the_session(daemon: Daemon) -> None:
    polls = Polls(daemon)
    answers: Queue[tuple[int, list[str]]] = Queue()
    threading.Thread(target=lambda: answers.put(polls.poll()), daemon=True).start()
    until(lambda: daemon.metric("cynow_connections", kind="http") == 2, "the first poll")
    assert polls.poll()[0] == 400
    assert answers.get(timeout=PATIENCE) == (200, ["1"])
    until(lambda: daemon.metric("cynow_connections", kind="socketio") == 0, "the session has gone")


def test_upgrade_loses_nothing(daemon: Daemon) -> None:
    """Events at any moment of it come once and in order."""
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
        pipe = piped(daemon, f"/socket.io/?EIO=4&transport=websocket&sid={polls.hello['sid']}")
        pipe.send("2probe")
        assert pipe.recv() == "3probe"
        machine.sendall(fault(next(scores)))
        if step != 1:
            heard += polls.poll()[1]
        pipe.send("5")
        machine.sendall(fault(next(scores)))
        last = f'42/sio/M,["anomaly",{{"score":{float(first + 2)},"threshold":1.0}}]'
        while last not in heard:
            heard.append(pipe.recv())
        assert [json.loads(text[9:])[1]["score"] for text in heard if text.startswith("42")] == [
            first,
            first + 1,
            first + 2,
        ]
        # Polling is over, and so are further WebSockets.
        assert polls.poll()[0] == 400
        other = piped(daemon, f"/socket.io/?EIO=4&transport=websocket&sid={polls.hello['sid']}")
        assert other.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_CLOSE
        pipe.close()
        until(lambda: daemon.metric("cynow_connections", kind="socketio") == 0, "the session has gone")


def test_who_does_not_poll_costs_its_bound_and_no_more(tmp_path: Path) -> None:
    with running(tmp_path, limits={"subscriber_bytes": 10_000}) as daemon:
        polls = Polls(daemon)
        polls.post("40/sio/M,")
        machine = daemon.daq(frame("name", "M"))
        for number in range(2000):
            machine.sendall(fault(number))
        until(lambda: daemon.metric("cynow_slow_subscribers_total") == 1, "it is closed")
        assert polls.poll()[0] == 400


def test_the_end_of_the_daemon_closes_sessions(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        polls = Polls(daemon)
        polling = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        polling.request("GET", polls.path)
        pipe = piped(daemon)
        pipe.recv()
        # Each answer comes in a later turn of the reactor, and the poll was there before all of them.
        for _ in range(2):
            daemon.get("/healthz")
        assert daemon.terminate() == 0
        answer = polling.getresponse()
        assert (answer.status, answer.read()) == (200, b"1")
        opcode, content = pipe.recv_data(control_frame=True)
        assert (opcode, int.from_bytes(content[:2])) == (websocket.ABNF.OPCODE_CLOSE, 1001)


def test_foreign_pages_open_no_websocket(tmp_path: Path) -> None:
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
            # URLs leave out the usual port.
            for host in ("plant.example", "plant.example:80"):
                for origin in ("http://plant.example", "http://plant.example:80", "HTTP://Plant.example"):
                    websocket.create_connection(url, timeout=PATIENCE, origin=origin, host=host).close()
        # They hold no place by polling either.
        for path in (POLLING, "/events?topics=*/*"):
            assert daemon.get(path, Origin="http://foe.example")[0] == 403
        assert daemon.get(POLLING, Origin="http://friend.example")[0] == 200
