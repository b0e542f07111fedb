"""Machines that are bound to their DAQ programs, on a real daemon and by real sockets."""

import json
import pickle
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.daemon import PATIENCE, TWISTD, Daemon, running, until
from tests.support.frames import frame, update

SECRET = "vh3-Kolbenfresser-77"
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"

MACHINES = {
    "Near": {"allow": [f"{HERE}/32", "2001:db8::/32"]},
    "Secret": {"secret_file": "secret"},
    "Both": {"allow": [HERE], "secret_file": "secret"},
    "Certified": {"certificate": "press.plant.example"},
    "진동기": {"secret_file": "secret"},
}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("bound")
    (folder / "secret").write_text(f"{SECRET}\n")
    with running(folder, machines=MACHINES) as daemon:
        yield daemon


def program(daemon: Daemon, sent: bytes, source: str = HERE) -> socket.socket:
    """Return a connection of a DAQ program from an address of the loopback."""
    address = ("127.0.0.1", daemon.daq_port)
    connection = socket.create_connection(address, PATIENCE, source_address=(source, 0))
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def machines(daemon: Daemon) -> list[str]:
    return [name.removeprefix("/") for name in daemon.get("/sio/machineList")[1]["machine_list"]]


def as_json(data: Any) -> bytes:
    return json.dumps(["name", data]).encode() + b"\0"


def with_secret(machine: str, secret: str = SECRET) -> dict[str, str]:
    return {"name": machine, "secret": secret}


@pytest.mark.parametrize(
    ("machine", "data", "source", "lack"),
    [
        ("Near", "Near", ELSEWHERE, "its address is not in machines.Near.allow"),
        ("Near", with_secret("Near"), ELSEWHERE, "its address is not in machines.Near.allow"),
        ("Secret", "Secret", HERE, 'this program must send its secret: ("name", {"name": "Secret", "secret": ...})'),
        ("Secret", {"name": "Secret"}, HERE, "this program must send its secret"),
        ("Secret", with_secret("Secret", ""), HERE, "the secret it sent is not that of machines.Secret.secret_file"),
        ("Secret", with_secret("Secret", SECRET[:-1]), HERE, "the secret it sent is not that of"),
        ("Secret", with_secret("Secret", f"{SECRET}\n"), HERE, "the secret it sent is not that of"),
        ("Both", with_secret("Both"), ELSEWHERE, "its address is not in machines.Both.allow"),
        ("Both", "Both", HERE, "this program must send its secret"),
        ("Both", with_secret("Both", "x"), HERE, "the secret it sent is not that of machines.Both.secret_file"),
        ("Certified", "Certified", HERE, "must present a client certificate for 'press.plant.example'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["pickle", "json"])
def test_program_without_a_proof_is_refused_and_takes_nothing_over(
    plant: Daemon, form: str, machine: str, data: Any, source: str, lack: str
) -> None:
    events = plant.subscribe(f"machine/{machine}/samples")
    good = None if machine == "Certified" else program(plant, frame("name", with_secret(machine)))
    if good is not None:
        until(lambda: machine in machines(plant), "the machine's own program")
    refused = plant.metric("cynow_daq_refused_connections_total")
    takeovers = plant.metric("cynow_daq_takeovers_total")
    sent = frame("name", data) if form == "pickle" else as_json(data)
    intruder = program(plant, sent + update("vib1", "VIB", 666.0), source)
    assert is_closed(intruder)
    assert plant.metric("cynow_daq_refused_connections_total") == refused + 1
    assert plant.metric("cynow_daq_takeovers_total") == takeovers
    # A few lines of each kind are logged in a minute.
    assert lack in plant.log() or plant.metric("cynow_log_suppressed_total") > 0
    if good is not None:
        good.sendall(update("vib1", "VIB", 1.0))
        (event,) = events.events(1, "samples")
        assert event["data"] == {"vib1": {"type": "VIB", "data": [1.0]}}
        good.close()
        until(lambda: machine not in machines(plant), "the program has gone")
    else:
        assert machine not in machines(plant)
    intruder.close()


@pytest.mark.parametrize(
    ("machine", "sent"),
    [
        ("Near", frame("name", "Near")),
        ("Near", as_json({"name": "Near"})),
        ("Secret", frame("name", with_secret("Secret"), b"\0", 0)),
        ("Secret", as_json(with_secret("Secret"))),
        ("Secret", json.dumps({"event": "name", "data": with_secret("Secret")}).encode() + b"\0"),
        ("Both", frame("name", with_secret("Both"))),
        ("진동기", as_json(with_secret("\u110c\u1175\u11ab\u1103\u1169\u11bc\u1100\u1175"))),
        ("Unbound", frame("name", "Unbound")),
        ("Unbound", frame("name", with_secret("Unbound", "anything"))),
    ],
)
def test_program_with_its_proofs_is_admitted_and_takes_over(plant: Daemon, machine: str, sent: bytes) -> None:
    first = program(plant, sent)
    until(lambda: machine in machines(plant), "the machine")
    takeovers = plant.metric("cynow_daq_takeovers_total")
    second = program(plant, sent)
    until(lambda: plant.metric("cynow_daq_takeovers_total") == takeovers + 1, "the second connection takes over")
    assert is_closed(first)
    first.close()
    second.close()
    until(lambda: machine not in machines(plant), "the program has gone")


def test_secret_is_never_logged(plant: Daemon) -> None:
    """Send the secret in many wrong ways, to every port."""
    text = json.dumps(["name", with_secret("Secret")])
    wrong = [
        frame("name", with_secret("Secret", f"{SECRET}\n"), b"\0", 0),
        frame("name", {**with_secret("Secret"), "more": 1}),
        frame("name", {"Name": "Secret", "secret": SECRET}),
        frame("name", {"name": "Secret#1", "secret": SECRET}),
        frame("name", {"name": "Secret", "secret": [SECRET]}),
        frame("Name", with_secret("Secret")),
        frame("DataUpdate", with_secret("Secret")),
        pickle.dumps(with_secret("Secret")) + b"\0",
        as_json(["Secret", SECRET]),
        text.replace('["name", ', '"name", ').encode() + b"\0",
        text.replace('"', "'").encode() + b"\0",
        text.replace(f'"{SECRET}"', SECRET).encode() + b"\0",
        f"name: Secret, secret: {SECRET}\r\n".encode(),
        as_json(with_secret("Secret")) + as_json(with_secret("Secret")),
    ]
    for number, sent in enumerate(wrong):
        program(plant, sent, f"127.0.1.{number}").close()
    for number, sent in enumerate(wrong):
        for port in (plant.port, plant.scale_port):
            with socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(f"127.0.2.{number}", 0)) as at:
                at.sendall(sent + b"\r\n\r\n")
    before = plant.log().count("machine Seen: connected")
    program(plant, frame("name", "Seen")).close()
    until(lambda: plant.log().count("machine Seen: connected") > before, "all that came before is handled")
    until(lambda: plant.metric("cynow_connections", kind="daq") == 0, "all DAQ connections have ended")
    log = plant.log()
    assert not [line for line in log.splitlines() if SECRET[:3] in line or SECRET[-4:] in line]
    assert "without other keys" in log


def test_reload_changes_the_rules_and_closes_what_they_do_not_admit(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    with running(tmp_path) as daemon:
        bare = program(daemon, frame("name", "Bare"))
        proven = program(daemon, frame("name", with_secret("Proven")))
        until(lambda: len(machines(daemon)) == 2, "both machines")
        rule = {"secret_file": "secret"}
        daemon.configure(machines={"Bare": rule, "Proven": rule})
        assert "the configuration is reloaded" in daemon.reload()
        assert is_closed(bare)
        until(lambda: machines(daemon) == ["Proven"], "the proven one has stayed")
        # A file that cannot be used changes nothing.
        secret.unlink()
        daemon.configure(machines={})
        daemon.configure(machines={"Other": rule})
        assert "machines.Other.secret_file: cannot read" in daemon.reload()
        assert is_closed(program(daemon, frame("name", "Bare")))
        # The content of the file changes, and the configuration does not.
        secret.write_text("another")
        daemon.configure(machines=None)
        daemon.configure(machines={"Proven": rule})
        daemon.reload()
        assert is_closed(proven)
        bare = program(daemon, frame("name", "Bare"))
        until(lambda: machines(daemon) == ["Bare"], "it has no rule any more")
        secret.write_text("a third one")
        daemon.reload()
        last = program(daemon, frame("name", with_secret("Proven", "a third one")))
        until(lambda: len(machines(daemon)) == 2, "the secret of the file")
        last.close()
        bare.close()
        assert SECRET not in daemon.log()
        assert "third" not in daemon.log()


def test_listed_only_admits_the_listed_machines(tmp_path: Path) -> None:
    with running(tmp_path, machines={"Listed": {}}, daq={"listed_only": True}) as daemon:
        listed = program(daemon, frame("name", "Listed"))
        assert is_closed(program(daemon, frame("name", "Other")))
        assert machines(daemon) == ["Listed"]
        assert daemon.metric("cynow_daq_unproven_connections_total", proof="listed") == 1
        assert "(machine Other) is closed: daq.listed_only is set, and the machine is not in machines" in daemon.log()
        listed.close()


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file or directory"), ("", "is empty; write the secret into it")]
)
def test_gateway_does_not_start_without_a_usable_secret(tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "secret").write_text(content)
        (tmp_path / "secret").chmod(0o600)
    daemon = Daemon(tmp_path, machines={"Secret": {"secret_file": "secret"}})
    for options in ([], ["--check"]):
        run = [*TWISTD, "--config", str(daemon.config), *options]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 1
        assert "machines.Secret.secret_file: " in done.stderr
        assert problem in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_certificate_of_the_client_proves_its_machine(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    tls = {"cert": str(cert), "key": str(key), "client_ca": str(authority.path)}
    clients = {name: authority.issue(name, file=name) for name in ("press.plant.example", "saw.plant.example")}
    with running(tmp_path, daq={"tls": tls}, machines={"Press": {"certificate": "press.plant.example"}}) as daemon:

        def name_as(client: str) -> ssl.SSLSocket:
            context = authority.client(clients[client])
            connection = socket.create_connection(("127.0.0.1", daemon.daq_port), PATIENCE)
            secure = context.wrap_socket(connection, server_hostname="127.0.0.1")
            secure.sendall(frame("name", "Press"))
            return secure

        with name_as("saw.plant.example") as stranger:
            assert is_closed(stranger)
        assert machines(daemon) == []
        with name_as("press.plant.example"):
            until(lambda: machines(daemon) == ["Press"], "the machine is connected")
