"""Several processes of one configuration on one machine: they share its ports, and one PostgreSQL server."""

import json
import os
import select
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websocket

from tests.conftest import ROOT
from tests.support.certificates import Authority
from tests.support.daemon import PATIENCE, TWISTD, Daemon, until, with_constants
from tests.support.frames import fault, frame
from tests.support.postgres import Server
from tests.support.processes import Site, environment_of, others
from tests.system.test_gateways import Polls
from tests.system.test_postgres import is_well
from tests.system.test_recovery import lines, seoul
from tests.system.test_start import refused

#: Connections that the kernel spreads: that one of two processes gets none of them is less likely than a broken disk.
MANY = 40


#: One that waits for a silent server until that speaks again, however long a test takes.
WAITING = with_constants(
    {"gateway.store.postgres.pool.PATIENCE": 10 * PATIENCE, "gateway.store.postgres.pool._MAX_WAIT": 10 * PATIENCE}
)


def open_at(kind: str, *daemons: Daemon) -> list[int]:
    """Connections that each has accepted and not closed."""
    return [int(daemon.metric("cynow_connections", kind=kind)) for daemon in daemons]


def are_open(kind: str, count: int, *daemons: Daemon) -> list[int]:
    """Wait until so many are accepted by all of them together; by each."""
    until(lambda: sum(open_at(kind, *daemons)) == count, f"{count} connections")
    return open_at(kind, *daemons)


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, server.url)
    yield site
    site.end()


# -- what they share


def test_connections_are_spread_and_each_shows_everything(site: Site, server: Server) -> None:
    a, b = site.started("a", "b")
    clients = [daemon.subscribe("scale/*", "machine/*") for daemon in (a, b)]
    scales = site.connections(site.scale_port, MANY)
    assert all(are_open("scale", MANY, a, b))
    for number, scale in enumerate(scales):
        scale.sendall(b"ST,+%08.2f kg\r\n" % number)
    for client in clients:
        # Those of one connection are in order; of two processes there is none.
        weights = sorted(event["data"]["weight"] for event in client.events(MANY, "reading"))
        assert weights == list(map(float, range(MANY)))
    machines = site.connections(site.daq_port, MANY)
    for number, machine in enumerate(machines):
        machine.sendall(frame("name", f"M{number:02}") + fault(number + 1, 0.5))
    assert all(are_open("daq", MANY, a, b))
    for client in clients:
        scores = sorted(event["data"]["score"] for event in client.events(MANY, "anomaly"))
        assert scores == list(map(float, range(1, MANY + 1)))
    listed = {"machine_list": [f"/M{number:02}" for number in range(MANY)]}
    for daemon in (a, b):
        until(lambda daemon=daemon: daemon.get("/sio/machineList")[1] == listed, "every machine")
    found = "SELECT gateway, count(*), count(DISTINCT machine) FROM cynow_anomaly GROUP BY gateway ORDER BY 1"
    until(lambda: sum(row[1] for row in server.sql(found)) == MANY, "every anomaly")
    assert [row[0] for row in server.sql(found)] == ["hall-a", "hall-b"]
    assert sum(row[2] for row in server.sql(found)) == MANY
    site.connections(site.port, MANY)
    # The one that each is asked on is its own.
    until(lambda: sum(open_at("http", a, b)) >= MANY, "HTTP too")
    assert all(count > 2 for count in open_at("http", a, b))


def test_a_commit_on_either_for_any_scale(site: Site, server: Server) -> None:
    a, b = site.started("a", "b")
    a.weigh(b"ST,+00053.26 kg")
    for daemon in (a, b):
        until(daemon.latest_is(53.26), "the weight")
    status, answer, _ = a.commit("CY1", key="k1")
    assert (status, answer["gross_kg"]) == (200, 53.26)
    # The key is known to each, and to who asks on the port that they share.
    assert b.commit("CY1", key="k1")[:2] == (200, answer)
    assert b.commit("CY2", key="k1")[0] == 422
    body = json.dumps({"cylinder_no": "CY1", "event_type": "SHIP"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.port}/api/scale-gateway/commit/", body, {"Idempotency-Key": "k1"}
    )
    for _ in range(10):
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert json.loads(response.read()) == answer
    assert b.commit("CY3")[1]["gross_kg"] == 53.26
    assert server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id") == [("CY1",), ("CY3",)]


def test_an_hour_of_one_sensor_by_two_processes(site: Site, server: Server) -> None:
    """Each brings what came to it, also after a kill: together it is everything, once."""
    began = seoul("2025-12-18 10:30:00")
    a, b = site.started("a", "b", wall=began)
    # The first connection of each: a machine's second one to a process closes the first.
    first: dict[str, socket.socket] = {}
    before = [0, 0]
    while len(first) < 2:
        (connection,) = site.connections(site.daq_port, 1)
        now = are_open("daq", sum(before) + 1, a, b)
        first.setdefault("a" if now[0] > before[0] else "b", connection)
        before = now
    for number, connection in enumerate(first.values()):
        data = {"v": {"type": "VIB", "data": [float(number + 1), -2.0]}}
        connection.sendall(frame("name", "M") + frame("DataUpdate", data))

    def written(daemon: Daemon) -> int:
        return len(lines(daemon.folder, "v")) if (daemon.folder / "data" / "M").exists() else 0

    for daemon in (a, b):
        until(lambda daemon=daemon: written(daemon) == 2, "the lines")
    a.kill()
    b.kill()
    for name in ("a", "b"):
        again = site.process(name, seoul("2025-12-18 11:00:01"))
        site.start(again)
        until(lambda again=again: again.metric("cynow_spool_waiting") == 0, "all is on the server")
    query = "SELECT count, data, minutes FROM cynow_mean WHERE machine = 'M' AND sensor = 'v' AND period = 'hour'"
    # The minute, of which each had a part, counts as two.
    until(lambda: server.sql(query) == [(4, 7 / 4, 2)], "the samples of both")


def test_numbers_of_one_are_none_of_the_others(site: Site) -> None:
    """Who comes back to another process with ``since`` is told the state, not that nothing was missed."""
    a, b = site.started("a", "b")
    a.weigh(*(b"ST,+%08.2f kg" % number for number in range(20)))
    for daemon in (a, b):
        until(daemon.latest_is(19.0), "the weight")
    answers = {}
    for daemon in (a, b):
        client = daemon.subscribe("scale/*")
        client.hear()
        answers[daemon] = client.events(1)[0]["seq"]
    low, high = sorted(answers.values())
    assert high - low > 2**31
    assert high < 2**53, "JavaScript's numbers"
    for daemon, other in ((a, b), (b, a)):
        for since in (answers[other], answers[other] - 5):
            assert _first(daemon, since) == "snapshot"
        assert _first(daemon, answers[daemon] - 1) != "snapshot"
    # They go on above, after a kill too.
    a.kill()
    site.start(a)
    until(others(a, 1), "they hear each other")
    assert answers[a] < a.subscribe("scale/*").events(1)[0]["seq"] < answers[a] + 2**31


def _first(daemon: Daemon, since: int) -> str:
    name: str = daemon.subscribe("scale/*", since=since).events(1)[0]["event"]
    return name


def test_socketio_needs_one_process(site: Site) -> None:
    """A session is one process's: by WebSocket it is one connection, and polls on the shared port may go elsewhere."""
    a, b = site.started("a", "b")
    client = websocket.create_connection(
        f"ws://127.0.0.1:{site.port}/socket.io/?EIO=4&transport=websocket", timeout=PATIENCE
    )
    client.recv()
    client.send("40/sio/M,")
    assert str(client.recv()).startswith("40/sio/M")
    site.connections(site.daq_port, 1)[0].sendall(frame("name", "M") + fault(1.5))
    heard = str(client.recv())
    while not heard.startswith("42/sio/M"):
        client.send("3")
        heard = str(client.recv())
    assert json.loads(heard.removeprefix("42/sio/M,")) == ["anomaly", {"score": 1.5, "threshold": 1.0}]
    client.close()
    polls = Polls(a)
    polls.post("40/sio/M,")
    assert polls.hear("40/sio/M")
    assert b.get(polls._path)[0] == 400


# -- one of them goes and comes


def test_who_is_killed_costs_its_own_connections_only(site: Site) -> None:
    a, b = site.started("a", "b")
    before = site.connections(site.scale_port, MANY)
    at_a, at_b = are_open("scale", MANY, a, b)
    assert at_a
    assert at_b
    a.kill()
    # At once: nobody waits for a process that is no more.
    during = site.connections(site.scale_port, MANY)
    assert are_open("scale", at_b + MANY, b) == [at_b + MANY]
    closed = [each for each in before if select.select([each], [], [], 0)[0]]
    assert len(closed) == at_a
    for each in during:
        each.sendall(b"ST,+00001.00 kg\r\n")
    until(b.latest_is(1.0), "the weight")
    site.start(a)
    until(others(b, 1), "they hear each other")
    site.connections(site.scale_port, MANY)
    at_a, at_b = are_open("scale", len(before) - len(closed) + 2 * MANY, a, b)
    assert at_a, "it has its share again"
    # An end is as good, and says so.
    assert b.terminate() == 0
    site.connections(site.scale_port, MANY)
    assert are_open("scale", at_a + MANY, a) == [at_a + MANY]


def test_who_is_not_ready_gets_no_connection(site: Site, server: Server) -> None:
    a = site.process("a")
    site.start(a)
    until(lambda: is_well(a), "PostgreSQL is there")
    # A process that starts for the first time asks the server how far statistics are, and waits for a silent one.
    server.pause()
    b = site.process("b", twistd=WAITING)
    b.run(env=environment_of(b))
    until(lambda: "server.tcp_port: shares" in b.log(), "it has the ports")
    site.connections(site.scale_port, MANY)
    site.connections(site.daq_port, MANY)
    assert are_open("scale", MANY, a) == [MANY]
    assert are_open("daq", MANY, a) == [MANY]
    assert "the gateway is ready" not in b.log()
    b.kill()
    # One that is less patient is ready when it has waited long enough.
    b = site.process("b")
    site.start(b)
    site.connections(site.daq_port, MANY)
    assert are_open("daq", 2 * MANY, a, b)[1]
    server.resume()


# -- whose the ports are


def holding(port: int, shared: bool, user: int | None = None) -> "subprocess.Popen[str]":
    """Another program, which listens there."""
    text = f"""
import os, socket
{f"os.setuid({user})" if user is not None else ""}
each = socket.socket()
each.setsockopt(socket.SOL_SOCKET, socket.{"SO_REUSEPORT" if shared else "SO_REUSEADDR"}, 1)
each.bind(("127.0.0.1", {port}))
each.listen()
print("listening", flush=True)
input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "listening\n"
    return other


@pytest.mark.parametrize("port", ["port", "daq_port", "scale_port"])
def test_a_port_of_another_program(tmp_path: Path, port: str) -> None:
    site = Site(tmp_path, "postgresql://cynow@127.0.0.1:1/none")
    number = getattr(site, port)
    with holding(number, shared=False) as other:
        line = refused(site.process("a"))
        other.kill()
    assert str(number) in line
    assert "in use" in line
    site.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_port_of_another_user(tmp_path: Path) -> None:
    site = Site(tmp_path, "postgresql://cynow@127.0.0.1:1/none")
    with holding(site.daq_port, shared=True, user=65534) as other:
        line = refused(site.process("a"))
        other.kill()
    assert f"server.tcp_port: cannot listen on 127.0.0.1:{site.daq_port}" in line
    site.end()


def test_nobody_else_gets_a_port_before_it_listens(site: Site, server: Server) -> None:
    server.pause()
    a = site.process("a", twistd=WAITING)
    with socket.socket() as early, socket.socket() as late:
        for other in (early, late):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Who is bound and does not listen keeps nobody from it, and this gateway keeps it.
        early.bind(("127.0.0.1", site.daq_port))
        a.run(env=environment_of(a))
        until(lambda: "scale.port: shares" in a.log(), "it has the ports")
        with pytest.raises(OSError, match="in use"):
            early.listen()
        with pytest.raises(OSError, match="in use"):
            late.bind(("127.0.0.1", site.port))
        assert "the gateway is ready" not in a.log()
        server.resume()
        a.start_answers()
        site.connections(site.daq_port, 1)
        are_open("daq", 1, a)


def test_who_shares_no_more_has_the_ports_at_once(site: Site, server: Server, tmp_path: Path) -> None:
    """What is left of its connections keeps them from nobody."""
    (a,) = site.started("a")
    connections = site.connections(site.daq_port, 3)
    are_open("daq", 3, a)
    # The gateway closes them: what is left is on its side.
    assert a.terminate() == 0
    assert [each.recv(1) for each in connections] == [b""] * 3
    (tmp_path / "alone").mkdir()
    alone = Daemon(
        tmp_path / "alone",
        server={"port": site.port, "tcp_port": site.daq_port},
        scale={"port": site.scale_port},
        database={"url": server.url},
    )
    alone.port = site.port
    try:
        alone.start()
    finally:
        alone.end()


# -- socket activation


def activated(daemon: Daemon, listening: socket.socket) -> None:
    """Start it as systemd does, with a socket that listens."""
    # Systemd's own work, in the process that becomes the gateway: the first socket is number 3.
    text = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid())"
    text += "; os.execv(sys.argv[2], sys.argv[2:])"
    number = str(listening.fileno())
    with (daemon.folder / "stderr.txt").open("ab") as errors:
        daemon._process = subprocess.Popen(
            [sys.executable, "-c", text, number, *TWISTD, "--config", str(daemon.config)],
            cwd=daemon.folder,
            stdout=errors,
            stderr=errors,
            pass_fds=[listening.fileno()],
            env={**os.environ, **environment_of(daemon), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "dock"},
        )
    daemon.start_answers()


@pytest.mark.parametrize("which", ["name=dock", "index=0"])
def test_a_scale_on_a_socket_of_systemd(server: Server, tmp_path: Path, which: str) -> None:
    """Two processes have one socket; while neither runs, who connects waits."""
    site = Site(tmp_path, server.url, scales={"dock": {"listen": f"systemd:domain=INET:{which}"}})
    with socket.create_server(("127.0.0.1", site.scale_port), backlog=100) as listening:
        early = site.connections(site.scale_port, 1)
        early[0].sendall(b"ST,+00001.00 kg\r\n")
        a, b = site.process("a"), site.process("b")
        activated(a, listening)
        until(lambda: a.get("/api/scale-gateway/latest/")[1].get("weight") == 1.0, "who waited")
        activated(b, listening)
        until(others(b, 1), "they hear each other")
        until(b.latest_is(1.0), "the weight")
        a.kill()
        late = site.connections(site.scale_port, 1)
        late[0].sendall(b"ST,+00002.00 kg\r\n")
        until(b.latest_is(2.0), "the other has it")
    site.end()


# -- systemd's unit


def test_the_unit_of_each_process_is_sound(tool: Callable[[str], str], tmp_path: Path) -> None:
    path = ROOT / "etc" / "cynow-gateway@.service"
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_units_differ_where_they_must() -> None:
    one, each = (
        set((ROOT / "etc" / name).read_text("utf-8").splitlines())
        for name in ("cynow-gateway.service", "cynow-gateway@.service")
    )
    # One user, or the kernel would refuse the second the ports; a name, a port and a folder for each.
    assert {line for line in each - one if not line.startswith(("#", "Description="))} == {
        "Environment=CYNOW_GATEWAY_NAME=%H-%i",
        "Environment=CYNOW_GATEWAY_OWN_PORT=1808%i",
        "User=cynow-gateway",
        "StateDirectory=cynow-gateway-%i",
        "WorkingDirectory=%S/cynow-gateway-%i",
    }


def test_shared_ports_and_own_ports_have_tls(site: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    tree = json.loads(site.config.read_text("utf-8"))
    for section in ("server", "daq", "scale"):
        tree.setdefault(section, {})["tls"] = {"cert": str(cert), "key": str(key)}
    site.config.write_text(json.dumps(tree), "utf-8")
    daemons = [site.process(name) for name in ("a", "b")]
    for daemon in daemons:
        daemon.tls = authority.client()
        site.start(daemon)
        until(lambda daemon=daemon: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is there")
    scales = [
        authority.client().wrap_socket(scale, server_hostname="127.0.0.1")
        for scale in site.connections(site.scale_port, MANY)
    ]
    assert all(are_open("scale", MANY, *daemons))
    scales[-1].sendall(b"ST,+00000007.00 kg\r\n")
    for daemon in daemons:
        until(daemon.latest_is(7.0), "the weight")
    with urllib.request.urlopen(
        f"https://127.0.0.1:{site.port}/healthz", timeout=PATIENCE, context=authority.client()
    ) as answer:
        assert answer.status == 200
    for scale in scales:
        scale.close()
