"""The configuration: what loads, and that every problem is said at once, with its key."""

from datetime import date
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactorClock

from gateway.config.fields import TlsSettings
from gateway.config.loader import ENVIRONMENT, ConfigError, load
from gateway.config.scale_settings import SCALE_KEYS, CheckWeighSettings, PollSettings, ScaleConnection
from gateway.config.settings import AuthSettings, MachineSettings, PublishSettings, Settings, tcp_endpoint

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "etc" / "cynow-gateway.yaml"

#: A value of every key that is not its default, as it is written and as it is read.
OTHER: dict[str, tuple[Any, Any]] = {
    "server.host": ("0.0.0.0", "0.0.0.0"),
    "server.port": (8888, 8888),
    "server.tcp_port": (8889, 8889),
    "server.cors_origins": (["https://plant.example"], ("https://plant.example",)),
    "server.names": (["Plant.example"], ("plant.example",)),
    "server.own_port": (8890, 8890),
    "scale.host": ("::1", "::1"),
    "scale.port": (0, 0),
    "scale.id": ("저울 1", "저울 1"),
    "scale.idle_timeout_sec": (2.5, 2.5),
    "scale.commit_max_age_sec": (60, 60.0),
    "scale.line_pattern_lock": (True, True),
    "scale.min_kg": (0.5, Decimal("0.5")),
    "scale.max_kg": (150, Decimal(150)),
    "scale.unit": ("KG", "kg"),
    "scale.require_stable_ms": (500, 500),
    "scale.zero_band_kg": (0.3, Decimal("0.3")),
    "scale.accept": (["gross", "net"], ("gross", "net")),
    "scale.poll": (
        {"command": "@{address}Q\r\n", "interval_ms": 600, "at_connect": "SIR\r\n"},
        PollSettings(command="@{address}Q\r\n", interval_ms=600, at_connect="SIR\r\n"),
    ),
    "scale.prefix": ("0001", "0001"),
    "scale.discard_ms": (500, 500),
    "scale.duplicate_window_sec": (60, 60.0),
    "scale.override": (True, True),
    "scale.commit_when_away": ("Ticket", "ticket"),
    "scale.check_weigh": (
        {"warning_kg": 0.05, "control_kg": 0.1, "every_days": 7, "calibration_due": "2027-06-30", "when_out": "REFUSE"},
        CheckWeighSettings(
            warning_kg=Decimal("0.05"),
            control_kg=Decimal("0.1"),
            every_days=7,
            calibration_due=date(2027, 6, 30),
            when_out="refuse",
        ),
    ),
    "fcm.cred_path": ("/etc/fcm.json", "/etc/fcm.json"),
    "fcm.timeout": (0, 0.0),
    "logger.path": ("/var/log/cynow", "/var/log/cynow"),
    "logger.level": ("WARN", "warn"),
    "logger.keep_days": (7, 7),
    "stat": ({"RPM": "abs", "Temp": "ABS"}, {"vib": "ABS", "rpm": "ABS", "temp": "ABS"}),
    "database.path": ("/srv/db", "/srv/db"),
    "database.url": ("postgresql://cynow@db.example:5433/cynow", "postgresql://cynow@db.example:5433/cynow"),
    "database.spool_mb": (2, 2),
    "database.max_tickets": (3, 3),
    "gateway.name": ("홀 2", "홀 2"),
    "cylinders.query": ("SELECT 1", "SELECT 1"),
    "cylinders.url": ("postgresql://cynow@127.0.0.1/plant", "postgresql://cynow@127.0.0.1/plant"),
    "cylinders.tolerance_kg": (0.5, Decimal("0.5")),
    "cylinders.cache_sec": (60, 60.0),
    "cylinders.cache_size": (5, 5),
    "cylinders.timeout_ms": (100, 100),
    "record.publish_to": (
        {"file": "/mnt/heads", "webhook": "https://hook.example/x", "every_sec": 60},
        PublishSettings(file="/mnt/heads", webhook="https://hook.example/x", every_sec=60.0),
    ),
    "data.path": ("/srv/data", "/srv/data"),
    "data.compress_after_days": (2, 2),
    "data.keep_days": (30, 30),
    "data.min_free_mb": (500, 500),
    "daq.max_frame_bytes": (1000, 1000),
    "daq.max_machines": (1, 1),
    "daq.max_sensors": (2, 2),
    "daq.max_machine_sensors": (2, 2),
    "daq.max_new_sensors_per_minute": (3, 3),
    "limits.connections": (3, 3),
    "limits.subscribers": (4, 4),
    "limits.subscriber_bytes": (5, 5),
    "limits.backlog_events": (1000, 1000),
    "limits.backlog_bytes": (6, 6),
    "limits.body_bytes": (7, 7),
    "timezone": ("Asia/Seoul", "Asia/Seoul"),
    "server.allow": (["10.0.0.0/8", "::1"], (ip_network("10.0.0.0/8"), ip_network("::1/128"))),
    "server.trusted_proxies": ("127.0.0.1", (ip_network("127.0.0.1/32"),)),
    "server.tls": ({"cert": "c", "key": "k"}, TlsSettings(cert="c", key="k")),
    "scale.allow": (["192.0.2.0/24"], (ip_network("192.0.2.0/24"),)),
    "scale.tls": ({"cert": "c", "key": "k", "client_ca": "a"}, TlsSettings(cert="c", key="k", client_ca="a")),
    "logger.format": ("JSON", "json"),
    "daq.allow": (["192.0.2.1"], (ip_network("192.0.2.1/32"),)),
    "daq.tls": ({"cert": "c", "key": "k"}, TlsSettings(cert="c", key="k")),
    "daq.name_timeout_sec": (5, 5.0),
    "daq.listed_only": (True, True),
    "machines": ({"Saw": {"secret_file": "s"}}, {"Saw": MachineSettings(secret_file="s")}),
    "auth": ({"anonymous": "read"}, AuthSettings(anonymous=("read",))),
    "limits.connections_per_address": (8, 8),
    "limits.requests_per_second": (0.5, 0.5),
    "limits.request_burst": (9, 9),
    "limits.head_timeout_sec": (11, 11.0),
    "limits.idle_timeout_sec": (12, 12.0),
    "limits.min_bytes_per_second": (13, 13),
    "limits.grace_sec": (14, 14.0),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def read(file: Path, text: str | bytes, **environment: str) -> Settings:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, environment)


def problems(file: Path, text: str | bytes, **environment: str) -> dict[str, str]:
    """What is wrong, by its key."""
    with pytest.raises(ConfigError) as caught:
        read(file, text, **environment)
    found = caught.value.problems
    assert str(caught.value) == "; ".join(map(str, found))
    assert len({problem.key for problem in found}) == len(found)
    assert all(str(problem).startswith(problem.key) and "\n" not in str(problem) for problem in found)
    return {problem.key: problem.message for problem in found}


def keys_of(model: type[BaseModel]) -> list[str]:
    """Every key of every section."""
    keys = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += [f"{name}.{key}" for key in info.annotation.model_fields]
        else:
            keys.append(name)
    return keys


def value_of(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


# -- what loads


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "{}", "server:\nscale:\nstat:\ntimezone:\n", "null"]
)
def test_an_empty_file_is_all_defaults(file: Path, text: str) -> None:
    assert read(file, text) == load(None, {}) == Settings()


def test_defaults_are_the_contracts() -> None:
    settings = load(None, {})
    assert (settings.server.host, settings.server.port, settings.server.tcp_port) == ("127.0.0.1", 8080, 8082)
    assert settings.server.cors_origins == ()
    assert settings.scale.host is None
    assert (settings.scale.port, settings.scale.id, settings.scale.idle_timeout_sec) == (4001, "default", 10)
    assert settings.scale.commit_max_age_sec is None
    assert (settings.fcm.cred_path, settings.fcm.timeout) == (None, 120)
    assert (settings.logger.path, settings.database.path, settings.data.path) == ("log", "db", "data")
    # Nothing is ever removed by itself.
    assert (settings.data.compress_after_days, settings.data.keep_days, settings.data.min_free_mb) == (None, None, None)
    assert settings.stat == {"vib": "ABS", "temp": "REAL"}
    assert settings.daq.max_frame_bytes == 16 * 1024 * 1024
    assert settings.limits.subscriber_bytes == 1024 * 1024
    assert settings.timezone is None


def test_the_table_of_other_values_is_whole() -> None:
    # Scales, ports that are shared, and the file of the URL have tests of their own.
    assert set(OTHER) == set(keys_of(Settings)) - {"scales", "server.share_ports", "database.url_file"}


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("key", OTHER)
def test_every_key_in_any_case(file: Path, key: str, case: Any) -> None:
    given, expected = OTHER[key]
    tree: Any = given
    for part in reversed(key.split(".")):
        tree = {case(part): tree}
    settings = read(file, yaml.safe_dump(tree, allow_unicode=True))
    assert value_of(settings, key) == expected != value_of(Settings(), key)
    others = [other for other in keys_of(Settings) if other != key]
    assert [value_of(settings, other) for other in others] == [value_of(Settings(), other) for other in others]


def test_the_monitoring_servers_own_file(file: Path) -> None:
    settings = read(
        file,
        """
SERVER:
  HOST: 0.0.0.0
  PORT: 8080
  TCP_PORT: 8082
FCM:
  CRED_PATH: resources/serviceAccountKey.json
  TIMEOUT: 60
LOGGER:
  PATH: log
STAT:
  VIB: ABS
  TEMP: REAL
DATABASE:
  PATH: db
DATA:
  PATH: data
""",
    )
    assert settings.server.host == "0.0.0.0"
    assert settings.fcm.cred_path == "resources/serviceAccountKey.json"
    assert settings.fcm.timeout == 60
    assert settings.stat == {"vib": "ABS", "temp": "REAL"}
    assert settings.model_copy(update={"server": Settings().server, "fcm": Settings().fcm}) == Settings()


#: The guards of the shipped file, which are off by default.
RECOMMENDED: dict[str, Any] = {
    "commit_max_age_sec": 10,
    "line_pattern_lock": True,
    "min_kg": 1,
    "max_kg": 150,
    "unit": "kg",
    "require_stable_ms": 500,
    "zero_band_kg": 0.3,
    "accept": ["gross"],
    "duplicate_window_sec": 60,
    "override": False,
    "commit_when_away": "refuse",
}


def test_the_shipped_file_is_the_defaults_key_for_key_but_for_the_guards() -> None:
    tree = yaml.safe_load(SHIPPED.read_text("utf-8"))
    defaults = Settings().model_dump(mode="json")
    tree["stat"] = {kind.lower(): mode for kind, mode in tree["stat"].items()}
    defaults["scale"] |= RECOMMENDED
    # JSON has no decimals, so that these are text there.
    defaults["cylinders"]["tolerance_kg"] = float(defaults["cylinders"]["tolerance_kg"])
    assert list(tree) == list(defaults), "every section, in the order of the code"
    for section, value in defaults.items():
        assert tree[section] == value
        if isinstance(value, dict) and section not in {"stat", "scale"}:
            assert list(tree[section]) == list(value)
    assert load(SHIPPED, {}) == Settings.model_validate({"scale": RECOMMENDED})


def test_guards_are_off_without_their_keys() -> None:
    scale = Settings().scale
    assert [getattr(scale, key) for key in SCALE_KEYS] == [None] * len(SCALE_KEYS)
    assert set(RECOMMENDED) < SCALE_KEYS


def test_a_byte_order_mark_is_no_part_of_the_first_key(file: Path) -> None:
    assert read(file, b"\xef\xbb\xbfserver: {port: 9}").server.port == 9


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("'*'", ("*",)),
        ("https://plant.example", ("https://plant.example",)),
        ("[http://h:9090/, HTTP://H, 'null', file://]", ("http://h:9090", "http://h", "null", "file://")),
        ("[]", ()),
        ("", ()),
    ],
)
def test_origins_as_text_or_list_are_read_in_their_normal_form(file: Path, text: str, origins: tuple[str, ...]) -> None:
    assert read(file, f"server: {{cors_origins: {text}}}").server.cors_origins == origins


def test_korean_values(file: Path) -> None:
    assert read(file, "data: {path: 데이터}").data.path == "데이터"


# -- what does not


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        (problem,) = caught.value.problems
        assert problem.key == ""
        assert str(problem).startswith(f"{path}: ")


@pytest.mark.parametrize("text", [b"\xff\xfes\x00", "server: {host: 서버}".encode("cp949"), b"data: \x80"])
def test_not_utf_8(file: Path, text: bytes) -> None:
    assert problems(file, text) == {"": f"{file}: not UTF-8"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("server:\n  port: 1\n tcp_port: 2\n", 3),
        ("server: {port: 1\nscale: {}\n", 2),
        ("a: b: c\n", 1),
        ("server:\n\tport: 1\n", 2),
        ('server:\n  host: "x\n', 3),
        ("server: *nobody\n", 1),
        ("\n\nserver: !!python/object:os.system {}\n", 3),
    ],
)
def test_broken_yaml_names_the_line(file: Path, text: str, line: int) -> None:
    (message,) = problems(file, text).values()
    assert message.startswith(f"{file}, line {line}: ")


@pytest.mark.parametrize("text", ["- a", "text", "5", "[]", "? [a]\n: 1", "a: \x01"])
def test_no_mapping(file: Path, text: str) -> None:
    (message,) = problems(file, text).values()
    assert message.startswith(f"{file}: ")


@pytest.mark.parametrize(
    "text",
    [
        # YAML takes these for a date and for numbers, and Python's constructors of them raise a ValueError.
        "scale: {id: 2025-99-99}",
        "server: {port: 0x_}",
        "server: {port: !!int abc}",
        "fcm: {timeout: !!float abc}",
        # Deeper than Python can go.
        "server: " + "[" * 3000,
    ],
    ids=["date", "hexadecimal", "int", "float", "deep"],
)
def test_yaml_that_the_library_stumbles_over(file: Path, text: str) -> None:
    assert problems(file, text)


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("servr: {}", "servr", "server"),
        ("Skale: {}", "skale", "scale"),
        ("time_zone: UTC", "time_zone", "timezone"),
        ("server: {prot: 1}", "server.prot", "server.port"),
        ("SERVER: {TCPPORT: 1}", "server.tcpport", "server.tcp_port"),
        ("scale: {idle_timeout: 1}", "scale.idle_timeout", "scale.idle_timeout_sec"),
        ("scales: {dock-1: {lisen: x}}", "scales.dock-1.lisen", "scales.dock-1.listen"),
        ("scales: {listen: {baud_rate: 1, listen: x}}", "scales.listen.baud_rate", "scales.listen.baudrate"),
        ("limits: {backlog_event: 1000}", "limits.backlog_event", "limits.backlog_events"),
        # A key that stands outside of its section.
        ("tcp_port: 1", "tcp_port", "server.tcp_port"),
        ("max_frame_bytes: 1", "max_frame_bytes", "daq.max_frame_bytes"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, text: str, key: str, nearest: str) -> None:
    assert problems(file, text)[key] == f"unknown key; the nearest known key is {nearest}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('auth: {tokens_file: "a\\0b"}', "auth.tokens_file"),
        ('server: {tls: {cert: "a\\0b", key: b}}', "server.tls.cert"),
        ('scales: {a: {serial: "a\\0b"}}', "scales.a.serial"),
        ('fcm: {cred_path: "a\\0b"}', "fcm.cred_path"),
    ],
)
def test_path_with_a_nul_character_is_a_problem_of_its_key(file: Path, text: str, key: str) -> None:
    assert problems(file, text)[key].startswith("a path has no NUL character")


def test_any_unknown_key_names_some_key(file: Path) -> None:
    found = problems(file, 'zzz: 1\n"": 2\n7: 3\ntrue: 4\nserver: {"": 1, ☃: 2}')
    assert set(found) == {"zzz", "", "7", "true", "server.", "server.☃"}
    known = set(keys_of(Settings)) | set(Settings.model_fields)
    for message in found.values():
        assert message.removeprefix("unknown key; the nearest known key is ") in known


def test_every_problem_at_once(file: Path) -> None:
    found = problems(
        file,
        """
server: {port: 70000, tcp_port: x, prot: 1}
scale: {id: a/b, idle_timeout_sec: 0}
scales: {bad/id: {listen: x}, none: {}, bench: {serial: /dev/ttyS0, bytesize: 9, parity: Q}}
fcm: {timeout: -1}
logger: {level: loud, keep_days: 0}
stat: {VIB: MEAN}
daq: 5
limits: {backlog_events: 999, body_bytes: .nan}
timezone: Mars/Olympus
servr: {}
""",
    )
    assert set(found) == {
        *("server.port", "server.tcp_port", "server.prot", "scale.id", "scale.idle_timeout_sec"),
        *("scales.bad/id", "scales.none", "scales.bench.bytesize", "scales.bench.parity"),
        *("fcm.timeout", "logger.level", "logger.keep_days", "stat.vib", "daq"),
        *("limits.backlog_events", "limits.body_bytes", "timezone", "servr"),
    }
    assert "70000" in found["server.port"]
    assert "'Mars/Olympus'" in found["timezone"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: -1}", "server.port"),
        ("server: {port: 65536}", "server.port"),
        ("server: {port: 80.5}", "server.port"),
        ("server: {port: []}", "server.port"),
        ("server: {host: 5}", "server.host"),
        ("server: {cors_origins: 5}", "server.cors_origins"),
        ("server: {cors_origins: {https://plant.example: 1}}", "server.cors_origins"),
        ("server: {cors_origins: [null]}", "server.cors_origins"),
        ("server: []", "server"),
        ("server: yes", "server"),
        ("scale: {idle_timeout_sec: .inf}", "scale.idle_timeout_sec"),
        ("scale: {idle_timeout_sec: .nan}", "scale.idle_timeout_sec"),
        ("scale: {idle_timeout_sec: 10s}", "scale.idle_timeout_sec"),
        ("scale: {commit_max_age_sec: 0}", "scale.commit_max_age_sec"),
        ("scale: {id: ''}", "scale.id"),
        ("scale: {id: ..}", "scale.id"),
        (f"scale: {{id: {'a' * 51}}}", "scale.id"),
        ("timezone: ''", "timezone"),
        ("timezone: Asia", "timezone"),
        ("timezone: ../../etc/localtime", "timezone"),
        ("timezone: /etc/localtime", "timezone"),
        ('timezone: "a\\0"', "timezone"),
        ("timezone: 9", "timezone"),
        ("daq: {max_frame_bytes: 0}", "daq.max_frame_bytes"),
        ("stat: [VIB]", "stat"),
        ("scales: [x]", "scales"),
    ],
)
def test_wrong_values(file: Path, text: str, key: str) -> None:
    assert set(problems(file, text)) == {key}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {port: 1}\nserver: {port: 2}\n", "line 2: duplicate key server"),
        ("server:\n  port: 1\n  port: 2\n", "line 3: duplicate key port"),
        ("scales:\n  a: {listen: x}\n  a: {listen: y}\n", "line 3: duplicate key a"),
    ],
)
def test_a_key_that_stands_twice(file: Path, text: str, said: str) -> None:
    (message,) = problems(file, text).values()
    assert message == f"{file}, {said}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: 1}\nSERVER: {port: 2}\n", "server"),
        ("server: {port: 1, Port: 2}", "server.port"),
        ("scales: {a: {listen: x, LISTEN: y}}", "scales.a.listen"),
        ("stat: {VIB: ABS, vib: REAL}", "stat.vib"),
    ],
)
def test_a_key_that_stands_twice_in_two_cases(file: Path, text: str, key: str) -> None:
    assert "duplicate key" in problems(file, text)[key]


@pytest.mark.parametrize(
    "text",
    [
        'database: {url: "mysql://cynow:s3cret@db.example/cynow"}',
        'database: {url: "cynow:s3cret@db.example/cynow"}',
        'database: {url: ["postgresql://cynow:s3cret@db.example/cynow"]}',
        'database: {url: {"postgresql://cynow:s3cret@db.example/cynow": 1}}',
        'database: {urll: "postgresql://cynow:s3cret@db.example/cynow"}',
        'database_url: "postgresql://cynow:s3cret@db.example/cynow"',
        # The URL where the section should stand.
        'database: "postgresql://cynow:s3cret@db.example/cynow"',
        'DATABASE: ["postgresql://cynow:s3cret@db.example/cynow"]',
        "database: {url: postgresql://cynow:s3cret@db.example/cynow: x}",
    ],
)
def test_a_password_is_never_repeated(file: Path, text: str) -> None:
    for message in problems(file, text).values():
        assert "s3cret" not in message


# -- the environment


def test_the_environment_overrides_the_file(file: Path) -> None:
    settings = read(
        file,
        "SCALE: {HOST: 10.0.0.1, PORT: 1, IDLE_TIMEOUT_SEC: 2, ID: x}",
        SCALE_GATEWAY_LISTEN_HOST="0.0.0.0",
        SCALE_GATEWAY_LISTEN_PORT="4002",
        SCALE_GATEWAY_IDLE_TIMEOUT_SEC="7.5",
    )
    assert settings.scale.model_dump() == {
        "host": "0.0.0.0",
        "port": 4002,
        "id": "x",
        "idle_timeout_sec": 7.5,
        "allow": (),
        "tls": None,
    } | dict.fromkeys(SCALE_KEYS)


def test_the_environment_alone() -> None:
    settings = load(None, {"SCALE_GATEWAY_LISTEN_PORT": "4002", "PORT": "1", "SCALE_GATEWAY_LISTEN_HOST": ""})
    assert settings.scale.port == 4002
    assert settings.scale.host is None, "an empty variable is an absent one"
    assert settings.server == Settings().server


def test_the_environment_puts_a_wrong_file_right(file: Path) -> None:
    assert read(file, "scale: {port: x}", SCALE_GATEWAY_LISTEN_PORT="4002").scale.port == 4002
    assert read(file, "scale:\n", SCALE_GATEWAY_LISTEN_PORT="4002").scale.port == 4002


@pytest.mark.parametrize("variable", ["SCALE_GATEWAY_LISTEN_PORT", "SCALE_GATEWAY_IDLE_TIMEOUT_SEC"])
def test_a_wrong_variable_is_named(file: Path, variable: str) -> None:
    section, key = ENVIRONMENT[variable]
    for text in ("abc", "-1", "1e999"):
        found = problems(file, "", **{variable: text})
        assert set(found) == {f"{section}.{key}"}
        message = found[f"{section}.{key}"]
        assert message.endswith(f", set by {variable}")
        assert text in message


def test_a_wrong_section_is_said_whatever_the_environment(file: Path) -> None:
    assert set(problems(file, "scale: 5", SCALE_GATEWAY_LISTEN_PORT="4002")) == {"scale"}


# -- ports that several processes share


SHARING = "server: {share_ports: true}\ndatabase: {url: postgresql://db.example/cynow}\n"


def test_ports_are_shared_over_one_database_only(file: Path) -> None:
    assert read(file, SHARING).server.share_ports is True
    assert load(None, {}).server.share_ports is False
    found = problems(file, "server: {share_ports: true}")
    assert set(found) == {"server.share_ports"}
    assert "database.url" in found["server.share_ports"]
    # The other problems are said first.
    assert set(problems(file, "server: {share_ports: maybe}")) == {"server.share_ports"}


@pytest.mark.parametrize(
    "line", ["tcp:4001", "tcp:4001:interface=127.0.0.1", "tcp6:4001", "systemd:domain=INET:name=a"]
)
def test_a_line_that_processes_can_share(file: Path, line: str) -> None:
    assert read(file, f'{SHARING}scales: {{a: {{listen: "{line}"}}}}').scales["a"].listen == line


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("listen", "unix:/run/scale.sock"),
        ("listen", "ssl:4001"),
        ("connect", "tcp:192.0.2.7:4002"),
        ("serial", "/dev/ttyUSB0"),
    ],
)
def test_a_line_that_they_cannot(file: Path, kind: str, line: str) -> None:
    text = f'scales: {{a: {{listen: "tcp:4001"}}, b: {{{kind}: "{line}"}}}}'
    assert set(problems(file, SHARING + text)) == {f"scales.b.{kind}"}
    assert read(file, text).scales["b"].model_dump()[kind] == line


def test_processes_of_one_file_differ_by_their_environment(file: Path) -> None:
    settings = read(file, SHARING, CYNOW_GATEWAY_NAME="hall-2", CYNOW_GATEWAY_OWN_PORT="18082")
    assert settings.gateway.name == "hall-2"
    assert (settings.server.own_port, settings.server.port) == (18082, 8080)
    found = problems(file, SHARING, CYNOW_GATEWAY_NAME="a/b", CYNOW_GATEWAY_OWN_PORT="x")
    assert found.keys() == {"gateway.name", "server.own_port"}
    assert found["gateway.name"].endswith(", set by CYNOW_GATEWAY_NAME")


# -- scales


def test_scales_of_every_kind(file: Path) -> None:
    settings = read(
        file,
        """
SCALES:
  dock-1: {listen: "tcp:4001"}
  Dock 2: {CONNECT: "tcp:127.0.0.1:4002", idle_timeout_sec: 3}
  저울: {serial: /dev/ttyUSB0, baudrate: 9600, bytesize: 8, parity: n, stopbits: 2, commit_max_age_sec: 5}
  7: {listen: "tcp:4003"}
""",
    )
    assert settings.scales == {
        "dock-1": ScaleConnection(listen="tcp:4001"),
        "Dock 2": ScaleConnection(connect="tcp:127.0.0.1:4002", idle_timeout_sec=3.0),
        "저울": ScaleConnection(
            serial="/dev/ttyUSB0", baudrate=9600, bytesize=8, parity="N", stopbits=2, commit_max_age_sec=5.0
        ),
        "7": ScaleConnection(listen="tcp:4003"),
    }


def test_a_serial_lines_defaults_are_the_scales(file: Path) -> None:
    line = read(file, "scales: {bench: {serial: /dev/ttyUSB0}}").scales["bench"]
    # A&D's factory setting: 2400 baud, 7 bits, even parity, 1 stop bit.
    assert (line.baudrate, line.bytesize, line.parity, line.stopbits) == (2400, 7, "E", 1)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{baudrate: 2400}",
        "{listen: 'tcp:1', connect: 'tcp:h:1'}",
        "{listen: 'tcp:1', serial: /dev/ttyS0}",
        "{connect: 'tcp:h:1', serial: /dev/ttyS0}",
        "{listen: 'tcp:1', connect: 'tcp:h:1', serial: /dev/ttyS0}",
        "{listen: null, connect: null}",
        "{listen: 'tcp:1', via: line}",
    ],
)
def test_a_scale_is_of_one_kind(file: Path, line: str) -> None:
    found = problems(file, f"scales: {{good: {{listen: 'tcp:2'}}, bad: {line}}}")
    assert found == {"scales.bad": "exactly one of listen, connect, serial and via is needed"}


@pytest.mark.parametrize("line", ["null", "5", "tcp:4001", "[listen]"])
def test_a_scale_is_a_mapping(file: Path, line: str) -> None:
    assert set(problems(file, f"scales: {{a: {line}}}")) == {"scales.a"}


@pytest.mark.parametrize("scale_id", ["a/b", "", "..", "a" * 51, "*"])
def test_a_scales_id_is_a_name(file: Path, scale_id: str) -> None:
    found = problems(file, yaml.safe_dump({"scales": {scale_id: {"listen": "tcp:1"}}}))
    assert set(found) == {f"scales.{scale_id}"}
    assert "1 to 50 letters" in found[f"scales.{scale_id}"]


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("{commit_max_age_sec: -1}", "commit_max_age_sec", "greater than 0"),
        ("{line_pattern_lock: 5}", "line_pattern_lock", "boolean"),
        ("{min_kg: x}", "min_kg", "decimal"),
        ("{min_kg: true}", "min_kg", ""),
        ("{max_kg: .inf}", "max_kg", "finite"),
        ("{unit: stone}", "unit", "'kg', 'g', 't', 'lb' or 'oz'"),
        ("{require_stable_ms: 0}", "require_stable_ms", "greater than or equal to 1"),
        ("{require_stable_ms: 0.5}", "require_stable_ms", "integer"),
        ("{zero_band_kg: 0}", "zero_band_kg", "greater than 0"),
        ("{accept: []}", "accept", "at least 1"),
        ("{accept: [tare]}", "accept.0", "'gross' or 'net'"),
        ("{poll: {interval_ms: 499}}", "poll.interval_ms", "greater than or equal to 500"),
        ("{poll: {command: ''}}", "poll.command", "at least 1 character"),
        ("{poll: {command: 무게}}", "poll.command", "Latin-1"),
        ("{poll: {commands: Q}}", "poll.commands", "the nearest known key is scale.poll.command"),
        ("{prefix: ''}", "prefix", "at least 1 character"),
        ("{discard_ms: 0}", "discard_ms", "greater than or equal to 1"),
        ("{duplicate_window_sec: 0}", "duplicate_window_sec", "greater than 0"),
        ("{override: maybe}", "override", "boolean"),
        ("{commit_when_away: wait}", "commit_when_away", "'refuse' or 'ticket'"),
        ("{check_weigh: {warning_kg: 0}}", "check_weigh.warning_kg", "greater than 0"),
        ("{check_weigh: {every_days: 0}}", "check_weigh.every_days", "greater than or equal to 1"),
        ("{check_weigh: {calibration_due: soon}}", "check_weigh.calibration_due", "date"),
        ("{check_weigh: {when_out: stop}}", "check_weigh.when_out", "'warn' or 'refuse'"),
    ],
)
def test_invalid_key_of_a_guard_is_a_problem_in_scale_and_in_scales(file: Path, text: str, key: str, said: str) -> None:
    found = problems(file, f"scale: {text}")
    assert set(found) == {f"scale.{key}"}
    assert said in found[f"scale.{key}"]
    assert set(problems(file, "scales: {a: {listen: x, ...}}".replace("...", text[1:-1]))) == {f"scales.a.{key}"}


@pytest.mark.parametrize("limits", ["min_kg: 150, max_kg: 1", "min_kg: 5, max_kg: 5"])
def test_min_kg_is_below_max_kg(file: Path, limits: str) -> None:
    assert problems(file, f"scale: {{{limits}}}") == {"scale": "min_kg is not below max_kg"}
    assert problems(file, f"scales: {{a: {{listen: x, {limits}}}}}") == {"scales.a": "min_kg is not below max_kg"}


def test_guards_of_a_scale_are_those_of_all_scales_unless_it_has_its_own(file: Path) -> None:
    settings = read(
        file,
        """
scale: {min_kg: 1, max_kg: 150, zero_band_kg: 0.3, override: true}
scales:
  dock-1: {listen: x}
  dock-2: {listen: y, max_kg: 300, zero_band_kg: null, override: false}
""",
    )
    first, second = settings.scale_settings().values()
    limits = Decimal(1), Decimal(150), Decimal("0.3"), True
    assert (first.min_kg, first.max_kg, first.zero_band_kg, first.override) == limits
    limits_of_second = Decimal(1), Decimal(300), None, False
    assert (second.min_kg, second.max_kg, second.zero_band_kg, second.override) == limits_of_second


def test_scales_that_share_a_line_have_keys_of_their_own(file: Path) -> None:
    settings = read(
        file,
        """
scale: {max_kg: 150}
scales:
  line: {connect: "tcp:127.0.0.1:4002", addresses: {"01": dock-1, "02": dock-2}}
  dock-1: {via: line, max_kg: 300}
""",
    )
    assert list(settings.lines()) == ["line"]
    assert {name: scale.max_kg for name, scale in settings.scale_settings().items()} == {"dock-1": 300, "dock-2": 150}
    assert settings.default_scale() == "dock-1"


@pytest.mark.parametrize("addresses", ["{}", "{1: dock}", '{"001": dock}', '{"0x": dock}', '{"01": a/b}', "[dock]"])
def test_addresses_are_two_digits_with_scales(file: Path, addresses: str) -> None:
    found = problems(file, f"scales: {{line: {{listen: x, addresses: {addresses}}}}}")
    assert all(key.startswith("scales.line") for key in found)


def test_the_one_scale_of_a_small_plant(file: Path) -> None:
    settings = read(file, "server: {host: 10.0.0.1}\nscale: {id: dock, port: 4005, commit_max_age_sec: 60}")
    assert settings.lines() == {
        "dock": ScaleConnection(
            listen="tcp:4005:backlog=1024:interface=10.0.0.1",
            idle_timeout_sec=10.0,
            commit_max_age_sec=60.0,
            allow=(),
        )
    }
    assert settings.default_scale() == "dock"
    settings = read(file, "server: {host: 10.0.0.1}\nscale: {host: 10.0.0.2}")
    assert settings.lines()["default"].listen == "tcp:4001:backlog=1024:interface=10.0.0.2"


def test_scales_replace_the_one_scales_line_and_take_its_times(file: Path) -> None:
    settings = read(
        file,
        "scale: {idle_timeout_sec: 4, commit_max_age_sec: 60}\n"
        "scales: {b: {listen: x}, a: {listen: y, idle_timeout_sec: 2, commit_max_age_sec: 1}}",
    )
    assert settings.lines() == {
        "b": ScaleConnection(listen="x", idle_timeout_sec=4.0, commit_max_age_sec=60.0, allow=()),
        "a": ScaleConnection(listen="y", idle_timeout_sec=2.0, commit_max_age_sec=1.0, allow=()),
    }
    assert settings.default_scale() == "b", "the first of the file"


def test_scale_id_chooses_the_default_among_scales(file: Path) -> None:
    scales = "scales: {b: {listen: x}, a: {listen: y}, default: {listen: z}}"
    assert read(file, f"scale: {{id: a}}\n{scales}").default_scale() == "a"
    assert read(file, scales).default_scale() == "default"
    assert read(file, f"scale: {{id: c}}\n{scales}").default_scale() == "b"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "fe80::1%eth0"])
def test_an_endpoint_is_what_twisted_reads(host: str) -> None:
    reactor = MemoryReactorClock()
    serverFromString(reactor, tcp_endpoint(host, 4001)).listen(None)
    ((port, _, _, interface),) = reactor.tcpServers
    assert (port, interface) == (4001, host)
