"""``cynow-gateway doctor`` with one fault at a time, in each group of checks."""

import contextlib
import fcntl
import json
import os
import pwd
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from gateway import __version__
from gateway.auth.tokens import new_token, write_tokens
from tests.support.certificates import self_signed
from tests.support.daemon import free_ports
from tests.support.doctor import LINE, Plant, converter, dialling_scale
from tests.support.google import Answer, playing_google
from tests.support.postgres import Server


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


# -- configuration


def test_configuration_that_cannot_be_read(plant: Plant) -> None:
    plant.tree = {"server": {"prot": 8080}}
    examined = plant.examine()
    assert examined.status == 1
    assert examined.problems()[0] == (
        f"error server.prot unknown key; the nearest known key is server.port -> correct {plant.config}"
    )
    examined = plant.examine("--config", "nowhere.yaml")
    assert examined.status == 1
    assert examined.problems() == [
        "error configuration nowhere.yaml: No such file or directory -> correct nowhere.yaml"
    ]
    assert examined.summary == "0 ok, 0 warnings, 1 error"


def test_warnings_of_the_configuration_are_no_errors(plant: Plant) -> None:
    plant.tree["server"]["cors_origins"] = ["plant.example"]
    examined = plant.examine()
    assert examined.status == 0
    (line,) = examined.problems()
    assert line.startswith("warning server.cors_origins 'plant.example' matches no origin")


def test_wrong_use(plant: Plant) -> None:
    done = subprocess.run(plant.command("--listen-seconds", "-1"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not 0 to 3600" in done.stderr


def test_findings_as_json(plant: Plant) -> None:
    examined = subprocess.run(
        plant.command("--json", "--listen-seconds", "0"),
        cwd=plant.folder,
        env=plant.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    findings = [json.loads(line) for line in examined.stdout.splitlines()]
    assert {"level": "ok", "subject": "gateway", "seen": "not running", "remedy": ""} in findings


# -- ports and names


def test_address_of_another_machine(plant: Plant) -> None:
    plant.tree["server"]["host"] = "192.0.2.7"
    plant.tree["scale"]["host"] = "127.0.0.1"
    assert plant.examine().of("server.port") == [
        f"error 192.0.2.7:{plant.port}: not an address of this machine -> correct server.host; 0.0.0.0 is every address"
    ]


def test_unknown_host_names(plant: Plant) -> None:
    plant.tree["server"]["names"] = ["gateway.invalid"]
    plant.tree["scales"] = {"dock-2": {"connect": "tcp:scale.invalid:4002"}}
    plant.tree["database"] = {"url": "postgresql://gateway:geheim@db.invalid/plant"}
    del plant.tree["scale"]
    examined = plant.examine()
    for level, key, host in (
        ("warning", "server.names", "gateway.invalid"),
        ("error", "scales.dock-2.connect", "scale.invalid"),
        ("error", "database.url", "db.invalid"),
    ):
        line = examined.of(key)[0]
        assert line.startswith(f"{level} cannot look up {host}: ")
        assert line.endswith(f" -> correct {key}, or add the name to /etc/hosts or to the name server")
    assert "geheim" not in examined.text


# -- folders and clock


def test_folder_locked_by_another_process(plant: Plant) -> None:
    (plant.folder / "data").mkdir()
    folder = os.open(plant.folder / "data", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    (problem,) = plant.examine().problems()
    assert problem.startswith(f"error data.path {plant.folder}/data is locked by process {os.getpid()} (")
    assert problem.endswith(") -> stop that gateway, or give each its own data.path")
    os.close(folder)
    assert plant.examine().problems() == []


def test_folder_without_rights(plant: Plant, tool: Callable[[str], str]) -> None:
    (plant.folder / "data").mkdir(mode=0o555)
    # Root may write everywhere, unless it gives up that right.
    rights = (tool("setpriv"), "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    (problem,) = plant.examine("--listen-seconds", "0", prefix=rights).problems()
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert problem == (
        f"error data.path {user} may not write to {plant.folder}/data -> chown {user} {plant.folder}/data, or run"
        " doctor as its user"
    )


def test_old_monitoring_server(plant: Plant) -> None:
    path = plant.folder / "monitoring.lock"
    path.touch()
    assert plant.examine().of("monitoring.lock") == [
        f"ok {path} is left over; the old monitoring server is not running"
    ]
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (line,) = plant.examine().of("monitoring.lock")
    assert line.startswith(f"error {path} is locked by process {os.getpid()} (")
    assert line.endswith("): the old monitoring server is running -> stop it")


def test_little_space(plant: Plant, tool: Callable[[str], str]) -> None:
    unshare = (tool("unshare"), "--map-root-user", "--mount", "sh", "-c")
    allowed = subprocess.run([*unshare, f"mount -t tmpfs none {plant.folder}"], capture_output=True)
    if allowed.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {allowed.stderr.decode().strip()}")
    plant.tree["data"] = {"path": "disk/data"}
    (plant.folder / "disk").mkdir()
    for options, expected in (
        ("size=32m", "error {}: only 32.0 MiB free -> make room on that disk"),
        ("size=512m", "warning {}: only 512.0 MiB free -> make room on that disk"),
        ("size=512m,ro", "error {} is on a file system that is read-only -> mount it for writing"),
    ):
        script = f'mount -t tmpfs -o {options} none {plant.folder}/disk && exec "$@"'
        examined = plant.examine("--listen-seconds", "0", prefix=(*unshare, script, "sh"))
        assert examined.of("data.path") == [expected.format(plant.folder / "disk")]


def test_lost_file_of_commits(plant: Plant) -> None:
    (plant.folder / "db").mkdir()
    (plant.folder / "db" / "cynow-gateway.sqlite3-wal").write_bytes(b"commits")
    path = plant.folder / "db" / "cynow-gateway.sqlite3"
    assert plant.examine().problems() == [
        (
            f"error database.path {path} is missing, although a gateway has written it -> restore the file from a"
            " backup before the gateway starts"
        )
    ]


def test_clock_without_ntp(plant: Plant) -> None:
    (plant.folder / "bin" / "timedatectl").write_text("#!/bin/sh\necho no\n", "ascii")
    examined = plant.examine()
    assert examined.problems() == [
        (
            "warning clock not synchronised by NTP; times of arrival may be wrong -> run chrony or systemd-timesyncd:"
            " timedatectl set-ntp true"
        )
    ]
    assert examined.status == 0


# -- PostgreSQL


def database_lines(plant: Plant, url: str) -> list[str]:
    plant.tree["database"] = {"url": url}
    examined = plant.examine()
    assert "geheim" not in examined.text
    return [line for line in examined.problems() if " database" in line]


def test_server_that_does_not_run(plant: Plant) -> None:
    (port,) = free_ports(1)
    (line,) = database_lines(plant, f"postgresql://gateway:geheim@127.0.0.1:{port}/plant")
    assert line.startswith("error database.url no connection: ")
    assert "Connection refused" in line
    assert line.endswith(" -> start the server, open its firewall, or correct database.url")


def test_server_that_does_not_answer(plant: Plant) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (line,) = database_lines(plant, f"postgresql://gateway:geheim@127.0.0.1:{silent.getsockname()[1]}/plant")
    assert "timeout expired" in line


def test_database_with_another_encoding(plant: Plant, server: Server) -> None:
    server.sql("DROP DATABASE IF EXISTS latin")
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    (line,) = database_lines(plant, server.url_of("latin"))
    assert line.startswith("error database encoding database latin has the encoding LATIN1, but the gateway needs UTF8")
    assert "CREATE DATABASE cynow_utf8 ENCODING 'UTF8'" in line


def test_role_without_rights(plant: Plant, server: Server) -> None:
    server.sql("DO $$ BEGIN CREATE ROLE clerk LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    url = server.url_of("postgres", "clerk")
    assert database_lines(plant, url) == [
        (
            "error database schema the schema is at step 0 of 3, and this role may not create tables -> GRANT USAGE,"
            ' CREATE ON SCHEMA public TO "clerk";'
        )
    ]
    for step in (1, 2, 3):
        (script,) = Path(__file__).parents[2].glob(f"gateway/store/postgres/schema/{step:02}_*.sql")
        server.sql(script.read_text("utf-8"))
    server.sql("CREATE TABLE cynow_schema (step integer); INSERT INTO cynow_schema VALUES (1), (2), (3)")
    server.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk")
    server.sql("GRANT ALL ON cynow_anomaly, cynow_applied, cynow_commit, cynow_idempotency TO clerk")
    assert database_lines(plant, url) == [
        (
            "error database rights this role lacks INSERT, UPDATE, DELETE on cynow_machine -> GRANT INSERT, UPDATE,"
            ' DELETE ON TABLE cynow_machine TO "clerk";'
        )
    ]
    server.sql("DROP TABLE cynow_sensor")
    assert database_lines(plant, url) == [
        (
            "error database schema at step 3, but without cynow_sensor -> restore the tables, or put their schema"
            " into the role's search_path"
        )
    ]
    server.sql("INSERT INTO cynow_schema VALUES (99)")
    assert database_lines(plant, url) == [
        (
            "error database schema the schema is at step 99, but this version knows only 3 -> install the newer"
            " version of the gateway"
        )
    ]


@contextlib.contextmanager
def without_notifications(server: Server) -> Iterator[int]:
    """Run a proxy before a server within a block, which loses notifications as a pool of transactions does."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def filter_messages(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), source.makefile("rb") as messages:
            while head := messages.read(5):
                body = messages.read(struct.unpack("!xI", head)[0] - 4)
                if not head.startswith(b"A"):
                    target.sendall(head + body)
        target.close()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.create_connection(("127.0.0.1", server.port))
                for function, ends in ((pass_on, (client, upstream)), (filter_messages, (upstream, client))):
                    threading.Thread(target=function, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_notifications_that_are_lost(plant: Plant, server: Server) -> None:
    with without_notifications(server) as port:
        url = server.url.replace(str(server.port), str(port)) + "?sslmode=disable"
        assert database_lines(plant, url) == [
            (
                "error database notify a notification did not arrive -> connect to PostgreSQL itself, or set"
                " pool_mode = session in PgBouncer"
            )
        ]


def test_url_in_a_file(plant: Plant, server: Server) -> None:
    path = plant.folder / "database.url"
    plant.tree["database"] = {"url_file": str(path)}
    path.write_text(f"{server.url}\n", "utf-8")
    path.chmod(0o644)
    examined = plant.examine()
    assert examined.of("database notify") == ["ok notifications arrive"]
    assert f"warning database.url_file {path} can be read by everyone on this machine -> chmod o= {path}" in (
        examined.problems()
    )
    assert "geheim" not in examined.text


# -- push messages


def test_credentials_that_cannot_be_used(plant: Plant, tmp_path: Path) -> None:
    with playing_google(tmp_path) as google:
        plant.tree["fcm"] = {"cred_path": str(google.credentials)}
        plant.environment.update(google.environment())
        google.token = Answer(400)
        assert plant.examine().of("fcm.cred_path") == [
            (
                "error Google refuses the credentials: RefreshError -> check the clock, or download"
                " a new key: Firebase console, project settings, service accounts"
            )
        ]
        google.stop()
        examined = plant.examine()
        assert examined.of("fcm.cred_path") == [
            (
                "warning Google gave no access token: TransportError -> check the network: the gateway"
                " needs https to oauth2.googleapis.com and fcm.googleapis.com"
            )
        ]
        assert not any(secret in examined.text for secret in google.secrets())
        for content, reason in (("{", "is not JSON"), ('{"type": "user"}', "is not the key of a service account")):
            google.credentials.write_text(content, "ascii")
            (line,) = plant.examine().of("fcm.cred_path")
            assert line.startswith(f"error {google.credentials} {reason} -> download a new key")


# -- TLS and access


def test_files_of_tls(plant: Plant) -> None:
    certificate, key = self_signed("plant.example", x509.DNSName("plant.example"))
    _, other_key = self_signed("plant.example", x509.DNSName("plant.example"))
    cert_path, key_path = plant.folder / "cert.pem", plant.folder / "key.pem"
    plant.tree["server"]["tls"] = {"cert": "cert.pem", "key": "key.pem"}
    assert plant.examine().of("server.tls.cert") == [
        f"error {cert_path} cannot be read: No such file or directory -> correct server.tls.cert, or the file's rights"
    ]
    cert_path.write_text(certificate, "ascii")
    key_path.write_text(other_key, "ascii")
    assert plant.examine().of("server.tls")[0] == (
        f"error {cert_path} and {key_path} cannot be used: key values mismatch -> use the key, without a password, that"
        " the certificate was made for, both in PEM"
    )
    key_path.write_text(key, "ascii")
    key_path.chmod(0o600)
    (line,) = plant.examine().of("server.tls.cert")
    assert line.startswith(f"warning {cert_path} expires on ")
    assert line.endswith(", in 0 days -> renew it")


def test_gateway_that_anyone_can_reach(plant: Plant) -> None:
    plant.tree["server"]["host"] = "0.0.0.0"
    assert plant.examine().problems() == [
        (
            f"warning auth not set: everyone who reaches 0.0.0.0:{plant.port} can read and commit -> set auth, or"
            " server.allow"
        )
    ]
    plant.tree["server"]["allow"] = ["10.0.0.0/8"]
    assert plant.examine().problems() == []


def test_file_of_tokens(plant: Plant) -> None:
    plant.tree["auth"] = {"tokens_file": "tokens.json"}
    path = plant.folder / "tokens.json"
    make = "make a token: cynow-gateway token add"
    assert plant.examine().problems() == [f"error auth.tokens_file {path} is missing -> {make}"]
    for content, reason in (("{", "not a file of tokens: "), ('{"tokens": 1}', "not a file of tokens: tokens: ")):
        path.write_text(content, "ascii")
        path.chmod(0o644)
        (problem,) = plant.examine().problems()
        assert problem.startswith(f"error auth.tokens_file {path}: {reason}")
    path.write_text("{}", "ascii")
    path.chmod(0o600)
    assert plant.examine().problems() == [
        f"warning auth.tokens_file {path} has no token: only auth.anonymous admits anybody -> {make}"
    ]
    write_tokens(str(path), [new_token("hall", ("read",), datetime.now(UTC), None)[1]])
    path.chmod(0o644)
    assert plant.examine().problems() == [
        f"warning auth.tokens_file {path} can be read by everyone on this machine -> chmod o= {path}"
    ]
    path.chmod(0o600)
    assert plant.examine().problems() == []


# -- scales


def scale_problems(plant: Plant, port: int, *arguments: str) -> list[str]:
    plant.tree["scales"] = {"dock-2": {"connect": f"tcp:127.0.0.1:{port}"}}
    plant.tree.pop("scale", None)
    examined = plant.examine(*arguments)
    return [line.removeprefix("error scales.dock-2.connect ") for line in examined.problems()]


def test_converter_that_is_off(plant: Plant) -> None:
    (port,) = free_ports(1)
    assert scale_problems(plant, port) == [
        (
            f"cannot connect to 127.0.0.1:{port}: connection refused -> switch the converter on, or correct"
            " scales.dock-2.connect"
        )
    ]


def test_converter_that_has_another_client(plant: Plant) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with contextlib.suppress(OSError):
                server.accept()[0].close()

        threading.Thread(target=refuse, daemon=True).start()
        port = server.getsockname()[1]
        assert scale_problems(plant, port) == [
            (
                f"127.0.0.1:{port} closed the connection without a line -> look whether another program is connected:"
                " many converters have room for one"
            )
        ]


def test_lines_that_are_no_readings(plant: Plant) -> None:
    with converter(b"ST , +0000\r\n", b"\xff\x00garbage\r\n", b"US,GS, 1 kg\r\n"[:6] + b"\r\n") as port:
        (line,) = scale_problems(plant, port)
    assert line == (
        f"127.0.0.1:{port}: 'ST , +0000': not a reading of a scale; '\\xff\\x00garbage': not a reading of a scale;"
        " 'US,GS,': not a reading of a scale -> set the scale to A&D's standard format; torn lines mean a wrong baud"
        " rate or parity"
    )


def test_bytes_without_an_end_of_a_line(plant: Plant) -> None:
    with converter(b"\x00\x80" * 1000) as port:
        (line,) = scale_problems(plant, port)
    assert line == (
        f"127.0.0.1:{port} sent 2000 bytes, and no end of a line -> set baud rate, parity and the end of lines (CR"
        " LF) of scale and converter"
    )


def test_serial_line(plant: Plant) -> None:
    host, device = os.openpty()
    path = os.ttyname(device)
    plant.tree["scales"] = {"bench": {"serial": path, "parity": "N", "bytesize": 8}}
    del plant.tree["scale"]
    process = subprocess.Popen(
        plant.command("--listen-seconds", "0"),
        cwd=plant.folder,
        env=plant.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        # What comes before the device is open is discarded.
        os.write(host, LINE)
        select.select([], [], [], 0.05)
    assert process.stdout is not None
    (line,) = [line for line in process.stdout if "scales.bench" in line]
    process.stdout.close()
    assert line.startswith(f"ok       scales.bench.serial      {path}: ")
    assert "= ST 53.26 kg gross" in line
    os.close(device)
    os.close(host)
    plant.tree["scales"]["bench"]["serial"] = "/dev/nowhere"
    assert plant.examine().of("scales.bench.serial") == [
        (
            "error /dev/nowhere cannot be opened: no such file or directory -> plug it in, correct"
            " scales.bench.serial, or add the user to the group of the device (usually dialout)"
        )
    ]


def test_scale_that_does_not_dial(plant: Plant) -> None:
    examined = plant.examine("--listen-seconds", "0.2")
    assert examined.problems() == [
        (
            f"warning scale.port no scale has connected to 127.0.0.1:{plant.scale_port} within 0.2 s -> switch the"
            " scale on, let its converter dial this address and port, and open the firewall"
        )
    ]
    assert examined.status == 0


def test_browser_on_the_port_of_a_scale(plant: Plant) -> None:
    with dialling_scale(plant.scale_port, b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"):
        (line,) = plant.examine("--listen-seconds", "10").problems()
    assert line.startswith("error scale.port 127.0.0.1:")
    assert line.endswith(" sends an HTTP request -> connect a scale; HTTP is served on server.port")


# -- a gateway that runs


@contextlib.contextmanager
def answering(port: int, status: int, latest: Any) -> Iterator[list[str | None]]:
    """Answer as a gateway within a block; give the tokens of the requests for a weight."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_health = self.path == "/healthz"
            if not is_health:
                tokens.append(self.headers["Authorization"])
            health = {
                "ok": False,
                "problems": ["the disk is full"],
                "version": __version__,
                "scales": {"default": True},
                "machines": 0,
            }
            self.send_response(200 if is_health else status)
            self.end_headers()
            self.wfile.write(json.dumps(health if is_health else latest).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Nothing."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield tokens
    finally:
        server.shutdown()
        server.server_close()


def test_gateway_that_wants_a_token(plant: Plant) -> None:
    with answering(plant.port, 401, {"ok": False}) as tokens:
        examined = plant.examine()
        assert "warning gateway it reports: the disk is full -> see the lines below, and its log" in examined.problems()
        assert examined.of("scale.port")[-1] == (
            "warning the running gateway refuses to show the weight (401) -> set CYNOW_GATEWAY_TOKEN to a token that"
            " may read"
        )
        plant.environment["CYNOW_GATEWAY_TOKEN"] = "secret-of-the-test"
        examined = plant.examine()
        assert examined.of("scale.port")[-1] == (
            "warning the running gateway refuses to show the weight (401) -> check the token in CYNOW_GATEWAY_TOKEN"
        )
    assert tokens == [None, "Bearer secret-of-the-test"]
    assert "secret-of-the-test" not in examined.text


def test_gateway_without_a_weight(plant: Plant) -> None:
    with answering(plant.port, 404, {"ok": False, "error": "no_data"}):
        examined = plant.examine()
    assert examined.of("scale.port") == [
        (
            f"warning 127.0.0.1:{plant.scale_port} is free, although the running gateway {__version__} has other"
            " ports of this configuration -> restart the gateway, so that it reads this configuration"
        ),
        (
            "warning connected; the running gateway has no stable weight of it -> check power, cable and address of the"
            " scale, and the gateway's log"
        ),
    ]
