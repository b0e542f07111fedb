"""The commands and files of the how-to pages, run as the pages tell the reader to."""

import argparse
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import socketio
import websocket
import yaml
from cryptography import x509

from gateway.auth.tokens import new_token, write_tokens
from tests.conftest import ROOT
from tests.support.certificates import Authority, self_signed
from tests.support.daemon import PATIENCE, TWISTD, Daemon, free_ports, running, until
from tests.support.doctor import SCRIPT
from tests.support.postgres import Server

#: Pages written for users, in both languages.
PAGES = sorted(
    [
        *ROOT.glob("*.rst"),
        ROOT / "docs" / "tutorial.rst",
        *(ROOT / "docs" / "howto").glob("*.rst"),
        *(ROOT / "docs" / "ko").glob("*.rst"),
    ]
)

_BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:(?:\1 {4}.*)?\n)+)", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    found = _BLOCK.findall(page.read_text("utf-8") + "\n")
    return [textwrap.dedent(text).strip() + "\n" for _, kind, text in found if kind == language]


# -- configuration


YAML = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", YAML)
def test_yaml_in_page_passes_check(text: str, tmp_path: Path) -> None:
    config = tmp_path / "cynow-gateway.yaml"
    # The files of the pages are made here.
    config.write_text(re.sub(r"/etc/cynow\b|/var/lib/cynow-gateway\b", str(tmp_path), text), "utf-8")
    Authority(tmp_path).issue("gateway")
    write_tokens(str(tmp_path / "tokens.json"), [new_token("hall", ("read",), datetime.now(UTC), None)[1]])
    (tmp_path / "shotblast.secret").write_text("secret\n")
    (tmp_path / "shotblast.secret").chmod(0o600)
    (tmp_path / "database-url").write_text("postgresql://gateway:secret@192.0.2.10/plant\n")
    (tmp_path / "database-url").chmod(0o600)
    checked = subprocess.run(
        [*TWISTD, "--config", str(config), "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)},
    )
    assert (checked.returncode, checked.stderr) == (0, "")


# -- reverse proxy


class Proxy:
    """A running nginx with the configuration file of ``etc/``.

    :ivar scheme: ``http`` or ``https``.
    :ivar host: content of the ``Host`` header.
    :ivar certificate: file with the certificate for TLS.
    :ivar context: TLS settings of a client that trusts it.
    :ivar tls_options: the same, for websocket-client.
    """

    def __init__(self, folder: Path, gateway: Daemon, *, is_tls: bool) -> None:
        (self.port,) = free_ports(1)
        self.gateway = gateway
        self.scheme = "https" if is_tls else "http"
        self.host = f"plant.example:{self.port}"
        self.context = ssl.create_default_context()
        self.certificate, key = _self_signed(folder)
        self.tls_options = {"context": self.context} if is_tls else {}
        site = (ROOT / "etc" / "nginx-cynow-gateway.conf").read_text("utf-8")
        site = _replace(site, "proxy_pass http://127.0.0.1:8080;", f"proxy_pass http://127.0.0.1:{gateway.port};")
        if is_tls:
            self.context.load_verify_locations(self.certificate)
            site = _replace(site, "    listen 80;\n", "")
            site = re.sub(r"^    # (listen 443|ssl_)", r"    \1", site, flags=re.MULTILINE)
            site = _replace(site, "listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;")
            site = _replace(site, "/etc/ssl/certs/plant.example.pem", str(self.certificate))
            site = _replace(site, "/etc/ssl/private/plant.example.key", str(key))
        else:
            site = _replace(site, "listen 80;", f"listen 127.0.0.1:{self.port};")
        (folder / "site.conf").write_text(site, "utf-8")
        self.config = folder / "nginx.conf"
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
        self.config.write_text(
            "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 1024;"
            f"pid {folder}/nginx.pid; error_log {folder}/error.log; events {{ worker_connections 200; }}"
            f"http {{ access_log off; {paths} uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;"
            f" include {folder}/site.conf; }}\n",
            "utf-8",
        )

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, body (parsed if it is JSON) and headers of an answer."""
        with closing(self.connect()) as connection:
            connection.request(method, path, body, {"Host": self.host, **headers})
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content.startswith(b"{") else content, response.headers

    def connect(self) -> http.client.HTTPConnection:
        if self.scheme == "https":
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def websocket(self, path: str, origin: str | None = None) -> websocket.WebSocket:
        url = f"{self.scheme.replace('http', 'ws')}://127.0.0.1:{self.port}{path}"
        return websocket.create_connection(
            url,
            timeout=PATIENCE,
            host=self.host,
            origin=origin,
            suppress_origin=origin is None,
            sslopt=self.tls_options,
        )


def _replace(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate and its key."""
    certificate, key = self_signed("plant.example", x509.IPAddress(IPv4Address("127.0.0.1")))
    (folder / "plant.pem").write_text(certificate, "ascii")
    (folder / "plant.key").write_text(key, "ascii")
    return folder / "plant.pem", folder / "plant.key"


@contextmanager
def _serving(nginx: str, proxy: Proxy) -> Iterator[Proxy]:
    with (proxy.config.parent / "nginx.txt").open("wb") as output:
        process = subprocess.Popen([nginx, "-c", str(proxy.config)], stdout=output, stderr=output)
    try:

        def answers() -> bool:
            assert process.poll() is None, (proxy.config.parent / "nginx.txt").read_text("utf-8")
            try:
                return proxy.request("GET", "/healthz")[0] == 200
            except OSError:
                return False

        until(answers, "nginx answers")
        yield proxy
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.conftest import program

    # Debian has it in /usr/sbin, which the PATH of a user may lack.
    sbin = Path("/usr/sbin/nginx")
    return str(sbin) if sbin.exists() else program("nginx")


@pytest.fixture(scope="module", params=["http", "https"])
def proxy(request: pytest.FixtureRequest, nginx: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A gateway behind nginx, by HTTP and by TLS."""
    folder = tmp_path_factory.mktemp("nginx")
    (page,) = blocks(ROOT / "docs" / "howto" / "reverse-proxy.rst", "yaml")
    settings = yaml.safe_load(page)
    with running(tmp_path_factory.mktemp("gateway"), **settings) as gateway:
        with _serving(nginx, Proxy(folder, gateway, is_tls=request.param == "https")) as serving:
            yield serving


def test_nginx_rest_answers_pass(proxy: Proxy) -> None:
    proxy.gateway.weigh(b"ST , +000053.26 _kg")
    until(proxy.gateway.latest_is(53.26), "the weight")
    status, latest, _ = proxy.request("GET", "/api/scale-gateway/latest/")
    assert (status, latest["weight"]) == (200, 53.26)
    body = b'{"cylinder_no": "CY001", "event_type": "SHIP"}'
    status, answer, _ = proxy.request("POST", "/api/scale-gateway/commit/", body)
    assert (status, answer["gross_kg"]) == (200, 53.26)
    assert proxy.request("POST", "/api/scale-gateway/commit/", bytes(70_000))[0] == 413
    assert b"cynow_scale_readings_total" in proxy.request("GET", "/metrics")[1]


def test_nginx_forwards_host_so_that_origins_are_checked(proxy: Proxy) -> None:
    proxy.gateway.weigh(b"ST , +000053.26 _kg")
    until(proxy.gateway.latest_is(53.26), "the weight")
    body = b'{"cylinder_no": "CY001", "event_type": "SHIP"}'
    own = f"{proxy.scheme}://{proxy.host}"
    assert proxy.request("POST", "/api/scale-gateway/commit/", body, Origin=own)[0] == 200
    foreign = proxy.request("POST", "/api/scale-gateway/commit/", body, Origin="http://evil.example")
    assert (foreign[0], foreign[1]["error"]) == (403, "origin_not_allowed")
    assert proxy.request("GET", "/api/scale-gateway/latest/", Host="evil.example")[0] == 421
    with pytest.raises(websocket.WebSocketBadStatusException):
        proxy.websocket("/ws", origin="http://evil.example")


def test_nginx_upgrades_websockets(proxy: Proxy) -> None:
    with closing(proxy.websocket("/ws", origin=f"{proxy.scheme}://{proxy.host}")) as client:
        client.send(json.dumps({"type": "subscribe", "topics": ["scale/default"]}))
        assert json.loads(client.recv())["type"] == "subscribed"
        assert json.loads(client.recv())["event"] == "snapshot"
        proxy.gateway.weigh(b"ST , +000012.34 _kg")
        while json.loads(client.recv())["data"].get("weight") != 12.34:
            pass


def test_nginx_passes_server_sent_events_at_once(proxy: Proxy) -> None:
    with closing(proxy.connect()) as connection:
        connection.request("GET", "/events?topics=scale/default", headers={"Host": proxy.host})
        response = connection.getresponse()
        assert response.status == 200
        proxy.gateway.weigh(b"ST , +000023.45 _kg")
        # The answer does not end, so a line that waited in a buffer of nginx would never come.
        while b'"weight":23.45' not in response.readline():
            pass


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
def test_nginx_passes_socketio(proxy: Proxy, transports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.certificate))
    with socketio.SimpleClient(websocket_extra_options={"sslopt": proxy.tls_options}) as client:
        client.connect(f"{proxy.scheme}://127.0.0.1:{proxy.port}", namespace="/sio/M", transports=transports)
        assert client.call("initialize", timeout=PATIENCE) is None
        proxy.gateway.daq(b'["name", "M"]\0["FaultDetect", {"score": 1.5, "threshold": 1}]\0')
        assert client.receive(timeout=PATIENCE) == ["anomaly", {"score": 1.5, "threshold": 1.0}]


def test_nginx_keeps_quiet_clients(proxy: Proxy) -> None:
    """Each quiet connection gets a sign of life before the time limit of the proxy."""
    site = (ROOT / "etc" / "nginx-cynow-gateway.conf").read_text("utf-8")
    (limit,) = re.findall(r"proxy_read_timeout (\d+)s;", site)
    with ExitStack() as stack:
        quiet = stack.enter_context(closing(proxy.websocket("/ws")))
        polls = stack.enter_context(closing(proxy.websocket("/socket.io/?EIO=4&transport=websocket")))
        hello = json.loads(polls.recv()[1:])
        polls.send("40/sio/M,")
        assert str(polls.recv()).startswith("40/sio/M,")
        assert int(limit) * 1000 >= 2 * hello["pingInterval"]
        connection = stack.enter_context(closing(proxy.connect()))
        connection.request("GET", "/events?topics=machine/none", headers={"Host": proxy.host})
        response = connection.getresponse()
        while not response.readline().startswith(b":"):
            pass
        assert quiet.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PING
        assert polls.recv() == "2"


# -- PostgreSQL


#: As "manage.py sqlmigrate" prints the table for newer and for older versions of Django.
_DJANGO = """
CREATE TABLE scale_weight_log (id {id} PRIMARY KEY, scale_id varchar(50) NOT NULL, cylinder_no varchar(50) NOT NULL,
    event_type varchar(10) NOT NULL, gross_kg numeric(10, 2) NOT NULL, raw_line text NOT NULL,
    received_at timestamp with time zone NOT NULL, committed_at timestamp with time zone NOT NULL,
    arrival_shipping_no varchar(50) NULL, move_report_no varchar(50) NULL)
"""


class Statements:
    """The statements of the page about PostgreSQL, each run once as they stand."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.blocks = blocks(ROOT / "docs" / "howto" / "postgresql.rst", "sql")

    def run(self, beginning: str, database: str) -> None:
        """Run the block that has a statement with this beginning."""
        (block,) = [block for block in self.blocks if beginning in block]
        for statement in block.split(";\n"):
            if statement.strip():
                self._server.sql(statement, database=database)

    def clean(self, *databases: str) -> None:
        for database in databases:
            self._server.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        self._server.sql("DROP ROLE IF EXISTS gateway")


@pytest.fixture
def statements(server: Server) -> Iterator[Statements]:
    found = Statements(server)
    found.clean("plant", "cynow")
    yield found
    found.clean("plant", "cynow")


def commits_and_anomalies_arrive(gateway: Daemon, cylinder: str) -> None:
    until(lambda: gateway.get("/healthz")[1]["problems"] == [], "PostgreSQL is available")
    gateway.weigh(b"ST , +000053.26 _kg")
    until(gateway.latest_is(53.26), "the weight")
    status, answer, _ = gateway.commit(cylinder, key=cylinder)
    assert (status, answer["gross_kg"]) == (200, 53.26)
    assert gateway.commit(cylinder, key=cylinder)[1] == answer
    gateway.daq(b'["name", "M"]\0["FaultDetect", {"score": 1.5, "threshold": 1}]\0')
    ever = "start=2000-01-01&end=2099-12-31"
    until(lambda: gateway.get(f"/stat/anomaly?machine=M&{ever}")[1], "the anomaly is stored")


def test_postgresql_page_own_database_works(server: Server, statements: Statements, tmp_path: Path) -> None:
    statements.run("CREATE DATABASE plant", "postgres")
    with running(tmp_path, database={"url": server.url_of("plant", "gateway")}) as gateway:
        commits_and_anomalies_arrive(gateway, "CY001")
    assert server.sql("SELECT cylinder_no FROM scale_weight_log", database="plant") == [("CY001",)]


@pytest.mark.parametrize(
    "column", ["bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY", "bigserial NOT NULL"], ids=["identity", "serial"]
)
def test_postgresql_page_database_of_django_works(
    server: Server, statements: Statements, tmp_path: Path, column: str
) -> None:
    server.sql("CREATE DATABASE cynow ENCODING 'UTF8' TEMPLATE template0")
    server.sql("REVOKE ALL ON DATABASE cynow FROM PUBLIC")
    server.sql(_DJANGO.format(id=column), database="cynow")
    statements.run("GRANT CONNECT ON DATABASE cynow", "cynow")
    if "serial" in column:
        statements.run("GRANT USAGE, SELECT ON SEQUENCE", "cynow")
    settings = {"database": {"url": server.url_of("cynow", "gateway")}}
    with running(tmp_path, **settings) as gateway:
        commits_and_anomalies_arrive(gateway, "CY001")
    statements.run("REVOKE CREATE", "cynow")
    with running(tmp_path, **settings) as gateway:
        commits_and_anomalies_arrive(gateway, "CY002")
    with closing(psycopg2.connect(server.url_of("cynow", "gateway"))) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM scale_weight_log")
    assert server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id", database="cynow") == [
        ("CY001",),
        ("CY002",),
    ]


def test_postgresql_page_rights_suffice_for_migrate(server: Server, statements: Statements, tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        gateway.weigh(b"ST , +000053.26 _kg")
        until(gateway.latest_is(53.26), "the weight")
        assert gateway.commit("CY001", key="k")[0] == 200
        gateway.daq(b'["name", "M"]\0["FaultDetect", {"score": 1.5, "threshold": 1}]\0')
        ever = "start=2000-01-01&end=2099-12-31"
        until(lambda: gateway.get(f"/stat/anomaly?machine=M&{ever}")[1], "the anomaly is stored")
    server.sql("CREATE DATABASE cynow ENCODING 'UTF8' TEMPLATE template0")
    server.sql(_DJANGO.format(id="bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY"), database="cynow")
    statements.run("GRANT CONNECT ON DATABASE cynow", "cynow")
    statements.run("GRANT SELECT, UPDATE ON SEQUENCE", "cynow")
    command = [sys.executable, "-m", "gateway.migrate", "--config", str(gateway.config), "--from", str(tmp_path / "db")]
    copied = subprocess.run(
        [*command, "--to", server.url_of("cynow", "gateway")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert copied.returncode == 0, copied
    assert server.sql("SELECT cylinder_no FROM scale_weight_log", database="cynow") == [("CY001",)]


# -- shell commands and their output


_EVER = "start=2000-01-01&end=2099-12-31"


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A gateway with a weight and a machine, as the pages assume."""
    with running(tmp_path_factory.mktemp("plant"), server={"names": ["plant.example"]}) as gateway:
        gateway.scale().sendall(b"ST , +000053.26 _kg\r\n")
        until(gateway.latest_is(53.26), "the weight")
        gateway.daq(
            b'["name", "ShotBlast"]\0["DataUpdate", {"shot_blast_vib1": {"type": "VIB", "data": [1, -2]}}]\0'
            b'["FaultDetect", {"score": 2, "threshold": 1}]\0'
        )
        until(lambda: gateway.get(f"/stat/anomaly/all?{_EVER}")[1], "the anomaly is stored")
        samples = "/api/v1/machines/ShotBlast/samples?sensor=shot_blast_vib1"
        until(lambda: gateway.get(samples)[1].get("points"), "the samples can be read")
        yield gateway


def _curls() -> Iterator[tuple[str, str, str]]:
    """Yield page, command and the first line of output of each ``curl`` command in the pages."""
    for page in PAGES:
        for block in blocks(page, "console"):
            lines = block.splitlines()
            for number, line in enumerate(lines):
                # Those with TLS are tested with certificates of their own.
                if line.startswith("$ curl ") and "--cacert" not in line:
                    command = line[2:].partition(" | ")[0]
                    output = lines[number + 1] if number + 1 < len(lines) else ""
                    yield str(page.relative_to(ROOT)), command, output


def _have_same_keys(real: Any, shown: Any) -> bool:
    if isinstance(real, dict) and isinstance(shown, dict):
        # Keys of "scales" are names.
        return list(real) == list(shown) and all(_have_same_keys(real[key], shown[key]) for key in real)
    if isinstance(real, list) and isinstance(shown, list):
        return not real or not shown or _have_same_keys(real[0], shown[0])
    return isinstance(real, type(shown))


@pytest.mark.parametrize(("page", "command", "output"), list(_curls()))
def test_curl_command_in_page_gives_such_answer(plant: Daemon, page: str, command: str, output: str) -> None:
    options = argparse.ArgumentParser()
    options.add_argument("url")
    options.add_argument("-H", action="append", default=[])
    options.add_argument("-d")
    options.add_argument("-N", action="store_true")
    options.add_argument("-s", action="store_true")
    found = options.parse_args(shlex.split(command)[1:])
    path = re.sub(r"^http://(127\.0\.0\.1:(8080|8000)|plant\.example)", "", found.url)
    assert path.startswith("/"), "a host and port that the gateway has in the pages"
    path = re.sub(r"start=[\d-]+&end=[\d-]+", _EVER, path)
    headers = dict(header.split(": ", 1) for header in found.H)
    if found.N:
        with urllib.request.urlopen(f"http://127.0.0.1:{plant.port}{path}", timeout=PATIENCE) as response:
            assert response.readline().strip().decode() == (output or "retry: 2000")
        return
    body = None if found.d is None else found.d.encode()
    if body is not None and b"reading_id" in body:
        reading_id = plant.get("/api/scale-gateway/latest/")[1]["reading_id"]
        body = re.sub(rb'("reading_id": )"[^"]*"', rb'\1"%b"' % reading_id.encode(), body)
    status, answer, _ = plant.request("GET" if body is None else "POST", path, body, **headers)
    assert status == 200
    if output.startswith(("{", "[")):
        shown = json.loads(output.replace(",...]", "]"))
        assert _have_same_keys(answer, shown), answer


def test_log_lines_in_pages_are_real(tmp_path: Path) -> None:
    pages = ("tutorial.rst", "howto/connect-a-scale.rst", "ko/connect-a-scale.rst")
    shown = {line for page in pages for block in blocks(ROOT / "docs" / page, "text") for line in block.splitlines()}
    with running(tmp_path) as gateway:
        gateway.weigh(b"ST , +000053.26 _kg", b"OL , +9999999E+19")
        until(gateway.latest_is(53.26), "the weight")
        assert gateway.commit("CY001")[0] == 200
    log = _without_details(gateway.log())
    assert not {line for line in shown if _without_details(line) not in log}


def test_daq_program_of_the_page_works(plant: Daemon, tmp_path: Path) -> None:
    program = blocks(ROOT / "docs" / "howto" / "connect-a-daq-program.rst", "python")[0]
    script = tmp_path / "daq.py"
    script.write_text(_replace(program, "8082", str(plant.daq_port)).replace("ShotBlast", "FromThePage"), "utf-8")
    subprocess.run([sys.executable, str(script)], check=True, timeout=PATIENCE)
    anomaly = f"/stat/anomaly?machine=FromThePage&{_EVER}"
    (found,) = until(lambda: plant.get(anomaly)[1], "the anomaly is stored")
    assert (found["score"], found["threshold"]) == (1.5, 1.0)
    samples = "/api/v1/machines/FromThePage/samples?sensor=shot_blast_vib1"
    assert until(lambda: plant.get(samples)[1].get("points"), "the samples can be read")[0]["count"] == 3


def test_backup_of_the_page_can_be_restored(tool: Callable[[str], str], tmp_path: Path) -> None:
    tool("sqlite3")
    state, backup = tmp_path / "state", tmp_path / "backup"
    state.mkdir()
    (script,) = blocks(ROOT / "docs" / "howto" / "backup-and-restore.rst", "sh")
    with running(state) as gateway:
        script = _replace(script, "/var/lib/cynow-gateway", str(state))
        script = _replace(_replace(script, "/srv/backup", str(backup)), "/etc/cynow-gateway.yaml", str(gateway.config))
        gateway.weigh(b"ST , +000053.26 _kg")
        until(gateway.latest_is(53.26), "the weight")
        first = gateway.commit("CY001", key="k")[1]
        gateway.daq(b'["name", "Shot Blast"]\0["FaultDetect", {"score": 2, "threshold": 1}]\0')
        until(lambda: gateway.get(f"/stat/anomaly/all?{_EVER}")[1], "the anomaly is stored")
        subprocess.run(["sh", "-c", script], check=True, timeout=PATIENCE)
        later = gateway.commit("CY002")[1]
    (day,) = backup.glob("2*")
    assert {file.name for file in day.iterdir()} == {"cynow-gateway.sqlite3", "Shot Blast.db", "cynow-gateway.yaml"}
    database = state / "db" / "cynow-gateway.sqlite3"
    database.unlink()
    shutil.copy(day / database.name, database)
    try:
        gateway.start()
        (shown,) = blocks(ROOT / "docs" / "howto" / "backup-and-restore.rst", "text")
        beginning = re.sub(r"\d+", "N", shown.strip())
        problems = [re.sub(r"\d+", "N", problem) for problem in gateway.get("/healthz")[1]["problems"]]
        assert any(problem.startswith(beginning) for problem in problems), problems
        assert gateway.terminate() == 0
        accepting = Daemon(state, [*TWISTD, "--accept-empty-store"])
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT cylinder_no FROM scale_weight_log").fetchall() == [("CY001",)]
    finally:
        gateway.end()
    try:
        accepting.start()
        accepting.weigh(b"ST , +000010.00 _kg")
        until(accepting.latest_is(10.0), "the weight")
        assert accepting.commit("CY001", key="k")[1] == first
        assert accepting.commit("CY003")[1]["id"] > later["id"]
    finally:
        accepting.end()


# -- moves


def test_both_old_apis_are_served_by_own_port(tmp_path: Path) -> None:
    (page,) = blocks(ROOT / "docs" / "howto" / "move-from-scale-gateway.rst", "yaml")
    assert yaml.safe_load(page)["server"]["own_port"] == 8000
    (own_port,) = free_ports(1)
    with running(tmp_path, server={"own_port": own_port}) as gateway:
        gateway.weigh(b"ST , +000053.26 _kg")
        until(gateway.latest_is(53.26), "the weight")
        monitoring_port = gateway.port
        for port in (monitoring_port, own_port):
            gateway.port = port
            assert gateway.get("/api/scale-gateway/latest/")[1]["weight"] == 53.26
            assert gateway.get("/stat/machineList")[1] == {"machine_list": []}


def test_nginx_in_move_page_is_valid(nginx: str, tmp_path: Path) -> None:
    (site,) = blocks(ROOT / "docs" / "howto" / "move-from-scale-gateway.rst", "nginx")
    (port,) = free_ports(1)
    config = tmp_path / "nginx.conf"
    temporary = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
    config.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}} http {{ access_log off; {temporary}"
        f" uwsgi_temp_path {tmp_path}/uwsgi; scgi_temp_path {tmp_path}/scgi;"
        f" {_replace(site, 'listen 8000;', f'listen 127.0.0.1:{port};')} }}\n",
        "utf-8",
    )
    checked = subprocess.run([nginx, "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


# -- troubleshooting


def _without_details(text: str) -> str:
    """Replace the parts of a line that differ each time: addresses, ports, folders and seconds."""
    text = re.sub(r"\d+\.\d+\.\d+\.\d+(:\d+)?", "ADDRESS", text)
    text = re.sub(r"port (is )?\d+", "port", text)
    text = re.sub(r"/\S+/db\b", "FOLDER", text)
    return re.sub(r"retrying in \d+ s", "retrying", text)


def test_lines_of_troubleshoot_page_are_real(server: Server, tmp_path: Path) -> None:
    """Each line that the page shows is written by a gateway in that situation."""
    shown = {
        _without_details(line)
        for page in ("howto", "ko")
        for block in blocks(ROOT / "docs" / page / "troubleshoot.rst", "text")
        for line in block.splitlines()
    }
    dock, dead = free_ports(2)
    gateway = Daemon(
        tmp_path,
        scales={
            "dock-1": {"listen": f"tcp:{dock}:interface=127.0.0.1"},
            "dock-2": {"connect": f"tcp:127.0.0.1:{dead}"},
            "bench": {"serial": "/dev/ttyUSB0"},
        },
        database={"url": server.url_of("nowhere")},
        machines={"ShotBlast": {"secret_file": "secret"}},
    )
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "secret").chmod(0o600)
    tree = yaml.safe_load(gateway.config.read_text("utf-8"))
    del tree["scale"]
    gateway.config.write_text(yaml.safe_dump(tree), "utf-8")
    gateway.scale_port = dock

    def starting_fails(name: str, **changes: Any) -> str:
        config = tmp_path / name
        config.write_text(yaml.safe_dump({**tree, **changes}), "utf-8")
        done = subprocess.run(
            [*TWISTD, "--config", str(config)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        return done.stderr.strip()

    doctor = [str(SCRIPT), "doctor", "--config", str(gateway.config), "--listen-seconds", "0"]
    found = subprocess.run(doctor, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.splitlines()
    try:
        gateway.start()
        scale = gateway.scale()
        scale.sendall(b"ST , +0000\r\nOL , +9999999E+19\r\n")
        gateway.scale().sendall(b"GET / HTTP/1.1\r\n\r\n")
        for frames in (
            b'["name", "Press#1"]\0',
            b'["name", "ShotBlast"]\0',
            b'["name", "Q"]\n["x"]\n',
            b"GET / HTTP/1.1\r\n\r\n",
            b"ST , +000053.26 _kg\r\n",
            b'["name", "P"]\0["Foo", 1]\0["DataUpdate", {"v": {"type": "VIB", "data": [1, null]}}]\0',
        ):
            gateway.daq(frames)
        until(lambda: "sensor 'v'" in gateway.log(), "the sensor is left out")
        for number in range(2):
            gateway.daq(b'["name", "P"]\0')
            takeovers = number + 1
            until(lambda: gateway.metric("cynow_daq_takeovers_total") >= takeovers, "it takes over")  # noqa: B023
        assert gateway.request("POST", "/api/scale-gateway/commit/", b"{}", Origin="http://evil.example")[0] == 403
        until(lambda: any("nowhere" in problem for problem in gateway.get("/healthz")[1]["problems"]), "it refuses")
        found += gateway.get("/healthz")[1]["problems"]
        found.append(starting_fails("port.yaml"))
        ports = free_ports(3)
        server_section = {"port": ports[0], "tcp_port": ports[1]}
        found.append(starting_fails("folder.yaml", server=server_section, scales={"a": {"listen": f"tcp:{ports[2]}"}}))
        found.append(starting_fails("key.yaml", server={"prot": 8080}))
        until(lambda: "this is a line of a scale" in gateway.log(), "the last line")
    finally:
        gateway.end()
    found += re.findall(r"\[[\w.#-]+\] (.*)", gateway.log())
    missing_lines = shown - {_without_details(line) for line in found}
    assert not missing_lines
