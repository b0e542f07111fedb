"""SIGHUP: the real daemon changes what it can, and drops no connection that it need not."""

import http.client
import json
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import websocket
import yaml

from gateway.commands.token import main as token_command
from tests.support.certificates import Authority
from tests.support.daemon import PATIENCE, Daemon, free_ports, running, until
from tests.support.frames import frame

LINE = b"ST , +000053.26 _kg\r\n"


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)
        connection.settimeout(PATIENCE)


def close_code(client: websocket.WebSocket) -> int:
    """Wait until the gateway closes a WebSocket."""
    opcode, data = None, b""
    while opcode != websocket.ABNF.OPCODE_CLOSE:
        opcode, data = client.recv_data()
    return int.from_bytes(data[:2], "big")


def latest(daemon: Daemon, scale_id: str) -> Any:
    status, answer, _ = daemon.get(f"/api/scale-gateway/latest/?scale_id={scale_id}")
    return answer["weight"] if status == 200 else answer["error"]


@pytest.fixture
def ports() -> list[int]:
    return free_ports(4)


def test_unchanged_file_changes_nothing(daemon: Daemon) -> None:
    scale, machine = daemon.scale(), daemon.daq(frame("name", "Saw"))
    subscriber = daemon.subscribe("scale/*")
    until(lambda: daemon.get("/healthz")[1]["machines"] == 1, "the machine is connected")
    assert "no key has changed" in daemon.reload()
    scale.sendall(LINE)
    assert subscriber.events(1, "reading")[0]["data"]["weight"] == 53.26
    assert is_open(machine)


@pytest.mark.parametrize(
    ("section", "value", "problem"),
    [
        ("limits", {"connections": 0}, "limits.connections"),
        ("limits", {"connectionz": 1}, "limits.connectionz: unknown key; the nearest known key is limits.connections"),
        ("scales", {"a": {"listen": "tcp:x"}}, "scales.a.listen"),
        ("auth", {"tokens_file": "cynow-gateway.yaml"}, "auth.tokens_file"),
    ],
)
def test_file_with_a_problem_changes_nothing(daemon: Daemon, section: str, value: dict[str, Any], problem: str) -> None:
    scale = daemon.scale()
    daemon.configure(**{section: value}, scale={"idle_timeout_sec": 1000})
    said = daemon.reload()
    assert f"SIGHUP: {problem}" in said
    assert "not reloaded, and nothing has changed" in said
    scale.sendall(LINE)
    until(daemon.latest_is(53.26), "the scale still works")
    assert daemon.get("/metrics")[0] == 200


def test_file_that_is_not_yaml_changes_nothing(daemon: Daemon) -> None:
    daemon.config.write_text("server: [", "utf-8")
    assert "nothing has changed" in daemon.reload()
    daemon.config.unlink()
    assert "No such file" in daemon.reload()
    assert daemon.get("/healthz")[0] == 200


def test_port_of_a_new_scale_that_is_in_use_changes_nothing(tmp_path: Path, ports: list[int]) -> None:
    with (
        running(tmp_path, scales={"a": {"listen": f"tcp:{ports[0]}"}}) as daemon,
        socket.create_server(("0.0.0.0", ports[1])),
    ):
        scale = daemon.scale(ports[0])
        daemon.configure(
            scales={"a": {"listen": f"tcp:{ports[2]}"}, "b": {"listen": f"tcp:{ports[1]}"}}, limits={"body_bytes": 1}
        )
        said = daemon.reload()
        assert f"SIGHUP: scales.b: cannot listen on *:{ports[1]}: Address already in use" in said
        assert "nothing has changed" in said
        scale.sendall(LINE)
        until(lambda: latest(daemon, "a") == 53.26, "the connection of the scale stays")
        daemon.scale(ports[0]).sendall(LINE)
        assert latest(daemon, "b") == "unknown_scale"
        assert daemon.commit(scale_id="a")[0] == 200


def test_scales_are_added_removed_and_changed_one_by_one(tmp_path: Path, ports: list[int]) -> None:
    lines = {name: {"listen": f"tcp:{port}:interface=127.0.0.1"} for name, port in zip("abc", ports, strict=False)}
    with running(tmp_path, scales=lines) as daemon:
        scales = {name: daemon.scale(port) for name, port in zip("abc", ports, strict=False)}
        for scale in scales.values():
            scale.sendall(LINE)
        until(lambda: all(latest(daemon, name) == 53.26 for name in "abc"), "all scales have a weight")
        subscriber = daemon.subscribe("scale/*")
        lines["b"]["listen"] = f"tcp:{ports[3]}:interface=127.0.0.1"
        lines["d"] = {"listen": lines.pop("c")["listen"]}
        daemon.configure(scales={**lines, "a": {**lines["a"], "idle_timeout_sec": 3600}})
        # The section is written anew as a whole.
        tree = yaml.safe_load(daemon.config.read_text("utf-8"))
        tree["scales"].pop("c")
        daemon.config.write_text(yaml.safe_dump(tree), "utf-8")
        said = daemon.reload()
        assert "changed: scales.a, scales.b, scales.c, scales.d" in said
        # The connections of a and b stay, though b listens elsewhere now; c is gone.
        assert [is_open(scale) for scale in scales.values()] == [True, True, False]
        assert latest(daemon, "c") == "unknown_scale"
        assert latest(daemon, "d") == "no_data"
        disconnected = subscriber.events(1, "disconnected")
        assert disconnected[0]["topic"] == "scale/c"
        for name, port in (("a", ports[0]), ("b", ports[3]), ("d", ports[2])):
            daemon.scale(port).sendall(b"ST , +000054.00 _kg\r\n")
            until(lambda name=name: latest(daemon, name) == 54.0, f"{name} has a new weight")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[1]), PATIENCE)
        assert "no key has changed" in daemon.reload()


def test_reloads_under_load_lose_no_reading_and_drop_no_connection(tmp_path: Path) -> None:
    ports = free_ports(6)
    lines = {f"s{port}": {"listen": f"tcp:{port}:interface=127.0.0.1"} for port in ports[:5]}
    with running(tmp_path, scales=lines) as daemon:
        scales = [daemon.scale(port) for port in ports[:5]]
        subscriber = daemon.subscribe("scale/*")
        sent = 0
        for number in range(10):
            extra = {"extra": {"listen": f"tcp:{ports[5]}:interface=127.0.0.1"}} if number % 2 == 0 else {}
            tree = yaml.safe_load(daemon.config.read_text("utf-8"))
            tree["scales"] = {**lines, **extra}
            daemon.config.write_text(yaml.safe_dump(tree), "utf-8")
            begin = len(daemon.log())
            daemon.process.send_signal(signal.SIGHUP)
            for scale in scales * 20:
                scale.sendall(LINE)
                sent += 1
            until(lambda begin=begin: "changed: scales.extra" in daemon.log()[begin:], "it is reloaded")
        until(lambda: sum(daemon.metrics("cynow_scale_readings_total")) == sent, "all readings are counted")
        assert len(subscriber.events(sent, "reading")) == sent
        assert all(map(is_open, scales))


def test_two_scales_exchange_their_ports(tmp_path: Path, ports: list[int]) -> None:
    def lines(first: int, second: int) -> dict[str, Any]:
        return {"a": {"listen": f"tcp:{first}"}, "b": {"listen": f"tcp:{second}"}}

    with running(tmp_path, scales=lines(ports[0], ports[1])) as daemon:
        daemon.configure(scales=lines(ports[1], ports[0]))
        assert "changed: scales.a, scales.b" in daemon.reload()
        daemon.scale(ports[1]).sendall(LINE)
        until(lambda: latest(daemon, "a") == 53.26, "a has the port of b")


def test_scale_that_is_dialled_is_dialled_elsewhere(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
        running(tmp_path, scales={"a": {"connect": f"tcp:127.0.0.1:{first.getsockname()[1]}"}}) as daemon,
    ):
        first.settimeout(PATIENCE)
        second.settimeout(PATIENCE)
        old, _ = first.accept()
        daemon.configure(scales={"a": {"connect": f"tcp:127.0.0.1:{second.getsockname()[1]}"}})
        daemon.reload()
        old.settimeout(PATIENCE)
        assert old.recv(1) == b""
        new, _ = second.accept()
        new.sendall(LINE)
        until(lambda: latest(daemon, "a") == 53.26, "the new converter is heard")


def test_keys_that_take_a_restart_are_named_and_others_change(daemon: Daemon) -> None:
    subscriber = daemon.subscribe("scale/*")
    daemon.configure(
        server={"port": free_ports(1)[0], "cors_origins": ["http://hall.example"]},
        timezone="Asia/Seoul",
        limits={"body_bytes": 10},
    )
    said = daemon.reload()
    assert "changed: server.cors_origins, limits.body_bytes" in said
    assert "restart the gateway to change server.port, timezone" in said
    status, _, headers = daemon.get("/healthz", Origin="http://hall.example")
    assert (status, headers["access-control-allow-origin"]) == (200, "http://hall.example")
    assert daemon.commit()[0] == 413
    daemon.weigh(LINE.strip())
    assert subscriber.events(1, "reading")
    # Again: what takes a restart still does.
    assert "restart the gateway to change server.port, timezone" in daemon.reload()


def test_file_of_the_log_is_reopened_too(daemon: Daemon) -> None:
    log = daemon.folder / "log" / "cynow-gateway.log"
    log.rename(log.with_suffix(".old"))
    daemon.reload()
    until(log.exists, "the log has a new file")


def test_sighup_during_the_start_reloads_after_it(tmp_path: Path) -> None:
    gateway = Daemon(tmp_path)
    try:
        gateway.run()
        until(lambda: "is starting" in gateway.log() or gateway.process.poll() is not None, "it starts")
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP: the configuration is reloaded" in gateway.log(), "it reloads")
        assert gateway.get("/healthz")[0] == 200
    finally:
        gateway.end()


# -- TLS and networks


def tls_to(port: int, authority: Authority) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    return authority.client().wrap_socket(connection, server_hostname="127.0.0.1")


def test_certificate_is_read_again_and_open_connections_stay(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway.example")
    with running(tmp_path, daq={"tls": {"cert": str(cert), "key": str(key)}}) as daemon:
        old = tls_to(daemon.daq_port, authority)
        old.sendall(frame("name", "Saw"))
        until(lambda: daemon.get("/healthz")[1]["machines"] == 1, "the machine is connected")
        before = old.getpeercert(binary_form=True)
        authority.issue("gateway.example")
        daemon.reload()
        new = tls_to(daemon.daq_port, authority)
        assert new.getpeercert(binary_form=True) != before
        old.sendall(frame("DataUpdate", {"vib": {"type": "VIB", "data": [1.0]}}))
        until(lambda: daemon.metric("cynow_daq_samples_total") == 1, "the old connection still works")
        key.write_text("not a key", "utf-8")
        assert "SIGHUP: daq.tls.key:" in daemon.reload()
        tls_to(daemon.daq_port, authority).close()
        new.close()
        old.close()


def test_connection_of_a_scale_that_became_an_entry_of_scales_is_still_held_to_allow(daemon: Daemon) -> None:
    scale = daemon.scale()
    scale.sendall(LINE)
    until(lambda: latest(daemon, "default") == 53.26, "the scale is connected")
    line = {"listen": f"tcp:{daemon.scale_port}:interface=127.0.0.1"}
    daemon.configure(scale=None, scales={"default": line})
    daemon.reload()
    assert is_open(scale)
    daemon.configure(scales={"default": {**line, "allow": ["192.0.2.0/24"]}})
    daemon.reload()
    until(lambda: not is_open(scale), "the scale is closed")


def test_connections_that_are_no_longer_allowed_are_closed_and_no_others(daemon: Daemon) -> None:
    scale, machine = daemon.scale(), daemon.daq(frame("name", "Saw"))
    until(lambda: daemon.get("/healthz")[1]["machines"] == 1, "the machine is connected")
    daemon.configure(daq={"allow": ["192.0.2.0/24"]})
    daemon.reload()
    until(lambda: not is_open(machine), "the DAQ program is closed")
    assert is_open(scale)
    daemon.configure(daq={"allow": []})
    daemon.reload()
    daemon.daq(frame("name", "Saw"))
    until(lambda: daemon.get("/healthz")[1]["machines"] == 1, "the machine is connected again")


# -- access control


def add_token(daemon: Daemon, capsys: pytest.CaptureFixture[str], name: str, scope: str) -> str:
    assert token_command(["add", name, "--scope", scope, "--config", str(daemon.config)]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_revoked_token_ends_its_live_connections_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running(tmp_path, auth={"anonymous": []}) as daemon:
        first, second = (add_token(daemon, capsys, name, "read") for name in ("first", "second"))
        daemon.reload()
        url = f"ws://127.0.0.1:{daemon.port}/ws"
        clients = {
            token: websocket.create_connection(url, timeout=PATIENCE, header=[f"Authorization: Bearer {token}"])
            for token in (first, second)
        }
        stream = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
        stream.request("GET", "/events?topics=scale/*", headers={"Authorization": f"Bearer {first}"})
        events = stream.getresponse()
        assert events.status == 200
        assert token_command(["revoke", "first", "--config", str(daemon.config)]) == 0
        daemon.reload()
        assert close_code(clients[first]) == 4401
        # The stream ends.
        while events.readline():
            pass
        clients[second].send(json.dumps({"type": "subscribe", "topics": ["scale/*"]}))
        assert json.loads(clients[second].recv())["type"] == "subscribed"
        assert daemon.get("/metrics", Authorization=f"Bearer {first}")[0] == 401
        assert daemon.get("/metrics", Authorization=f"Bearer {second}")[0] == 200
        for client in clients.values():
            client.close()


def test_access_control_that_is_turned_on_ends_open_connections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as daemon:
        subscriber = daemon.subscribe("scale/*")
        scale = daemon.scale()
        daemon.configure(auth={"tokens_file": str(tmp_path / "tokens.json")})
        token = add_token(daemon, capsys, "admin", "admin")
        daemon.reload()
        assert close_code(subscriber.client) == 4401
        assert is_open(scale)
        assert daemon.get("/metrics")[0] == 401
        assert daemon.get("/metrics", Authorization=f"Bearer {token}")[0] == 200
        daemon.configure(auth=None)
        daemon.reload()
        assert daemon.get("/metrics")[0] == 200
