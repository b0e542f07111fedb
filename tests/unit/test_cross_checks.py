"""Keys of the configuration that are wrong together, or without effect."""

from pathlib import Path

import pytest

from gateway.config.cross_checks import CrossChecks
from gateway.config.endpoints import display_address, line_problem, tcp_address
from gateway.config.loader import load
from gateway.tap import Options


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def checks(file: Path, text: str, **environment: str) -> CrossChecks:
    file.write_text(text, "utf-8")
    return CrossChecks(load(file, environment, line_problem), environment, tcp_address, str(file.parent))


def found(file: Path, text: str, **environment: str) -> dict[str, str]:
    """Fatal and other problems, by their keys; what is not fatal begins with a question mark."""
    problems = checks(file, text, **environment).problems()
    return {("" if problem.is_fatal else "?") + problem.key: problem.message for problem in problems}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server: {port: 0, tcp_port: 0, own_port: 0}\nscale: {port: 0}",
        "daq: {tls: {cert: c, key: k, client_ca: a}}\nmachines: {Saw: {certificate: saw.example}}",
        "daq: {listed_only: true}\nmachines: {Saw: {}}",
        "server: {host: 10.0.0.1, port: 4001}\nscale: {host: 10.0.0.2}",
        "server: {host: '::1', port: 4001}\nscale: {host: 0.0.0.0}",
        "server: {port: 4001}\nscales: {a: {listen: 'tcp:4002'}, b: {listen: 'tcp:4003'}}",
        # Its port is not opened.
        "server: {port: 4001}\nscales: {a: {listen: 'tcp:4002'}}",
        "scales: {a: {listen: 'tcp:4001:interface=127.0.0.1'}, b: {listen: 'tcp:4001:interface=10.0.0.1'}}",
        "scales: {a: {listen: 'tcp:0'}, b: {listen: 'tcp:0'}}",
        "scales: {a: {listen: 'unix:/tmp/a'}, b: {listen: 'unix:/tmp/b'}}",
        "scales: {a: {connect: 'tcp:h:4001'}, b: {connect: 'tcp:h:4002'}, c: {connect: 'tcp:i:4001'}}",
        "scales: {a: {serial: /dev/ttyS0, baudrate: 9600}, b: {serial: /dev/ttyS1}}",
        # What the shipped file says of the line that `scales` replaces.
        "scale: {host: null, port: 4001, id: default}\nscales: {a: {listen: 'tcp:4002'}}",
        "scale: {id: a, idle_timeout_sec: 3}\nscales: {a: {listen: 'tcp:4002'}, b: {listen: 'tcp:4003'}}",
        "server: {cors_origins: [http://h:9090/, '*', 'null', file://, HTTP://H]}",
        "scale: {id: dock-1}\nscales: {l: {connect: 'tcp:h:1', addresses: {'01': dock-1}}}",
        "scales: {l: {connect: 'tcp:h:1', addresses: {'01': a}, poll: {command: '@{address}Q'}}, a: {via: l}}",
        "scale: {poll: {command: '@{address}Q'}}\nscales: {l: {connect: 'tcp:h:1', addresses: {'01': a}}}",
    ],
)
def test_cross_checks_of_a_sound_file_find_nothing(file: Path, text: str) -> None:
    assert found(file, text) == {}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("server: {port: 8080, tcp_port: 8080}\nscale: {port: 8080}", {"server.tcp_port", "scale.port"}),
        ("server: {port: 4001}", {"scale.port"}),
        ("scales: {a: {via: l}, b: {listen: 'tcp:1'}}", {"scales.a.via"}),
        ("scales: {a: {via: l}, l: {listen: 'tcp:1'}}", {"scales.a.via"}),
        ("scales: {a: {via: l}, l: {listen: 'tcp:1', addresses: {'01': b}}}", {"scales.a.via"}),
        (
            "scales: {l: {listen: 'tcp:1', addresses: {'01': a}}, a: {listen: 'tcp:2'}}",
            {"scales.l.addresses.01"},
        ),
        ("scales: {l: {listen: 'tcp:1', addresses: {'01': a, '02': a}}}", {"scales.l.addresses.02"}),
        ("scales: {l: {listen: 'tcp:1', addresses: {'01': l}}}", {"scales.l.addresses.01"}),
        (
            "scales: {l: {listen: 'tcp:1', addresses: {'01': a}}, m: {listen: 'tcp:2', addresses: {'01': a}}}",
            {"scales.m.addresses.01"},
        ),
        ("scales: {l: {listen: 'tcp:1', poll: {command: '@{address}Q'}}}", {"scales.l.poll.command"}),
        ("scale: {poll: {at_connect: '@{address}Q'}}", {"scale.poll.at_connect"}),
        (
            "scales: {l: {listen: 'tcp:1', addresses: {'01': a}}, a: {via: l, poll: {}, prefix: x}}",
            {"?scales.a.poll", "?scales.a.prefix"},
        ),
        ("machines: {Saw: {}}", {"?machines.Saw"}),
        ("machines: {Saw: {certificate: saw.example}}", {"?machines.Saw.certificate"}),
        (
            "daq: {tls: {cert: c, key: k}}\nmachines: {Saw: {certificate: saw.example}}",
            {"?machines.Saw.certificate"},
        ),
        ("server: {tcp_port: 8080}", {"server.tcp_port"}),
        ("server: {own_port: 8082}", {"server.own_port"}),
        ("server: {port: 4001}\nscale: {host: 0.0.0.0}", {"scale.port"}),
        ("server: {host: 0.0.0.0, port: 4001}\nscale: {host: 10.0.0.1}", {"scale.port"}),
        ("server: {host: '::', port: 4001}\nscale: {host: 10.0.0.1}", {"scale.port"}),
        ("server: {host: '::', port: 4001}\nscale: {host: '::1'}", {"scale.port"}),
        ("server: {host: '0:0:0:0:0:0:0:1', port: 4001}\nscale: {host: '::1'}", {"scale.port"}),
        ("server: {host: localhost, port: 4001}\nscale: {host: 127.0.0.1}", {"scale.port"}),
        ("server: {host: plant, port: 4001}\nscale: {host: plant}", {"scale.port"}),
        ("server: {host: plant, port: 4001}\nscale: {host: 0.0.0.0}", {"scale.port"}),
        ("scales: {a: {listen: 'tcp:4011'}, b: {listen: 'tcp:4011'}}", {"scales.b.listen"}),
        ("scales: {a: {listen: 'tcp:4011'}, b: {listen: 'tcp:port=4011:interface=127.0.0.1'}}", {"scales.b.listen"}),
        ("scales: {a: {listen: 'tcp6:4011'}, b: {listen: 'tcp:4011'}}", {"scales.b.listen"}),
        ("scales: {a: {listen: 'tcp:4011:interface=\\:\\:1'}, b: {listen: 'tcp6:4011'}}", {"scales.b.listen"}),
        ("scales: {a: {listen: 'tcp:8080'}}", {"scales.a.listen"}),
        ("scales: {a: {listen: 'tcp:08082:interface=127.0.0.1'}}", {"scales.a.listen"}),
        ("scales: {a: {listen: 'unix:/tmp/a'}, b: {listen: 'unix:/tmp/a'}}", {"scales.b.listen"}),
        ("scales: {a: {listen: 'tcp:99999'}}", {"scales.a.listen"}),
        ("scales: {a: {listen: 'tcp:-1'}}", {"scales.a.listen"}),
        ("scales: {a: {listen: 'tcp6:65536'}}", {"scales.a.listen"}),
        ("scales: {a: {connect: 'tcp:192.0.2.7:99999'}}", {"scales.a.connect"}),
        ("scales: {a: {connect: 'tcp:192.0.2.7:0'}}", {"scales.a.connect"}),
        ("scales: {a: {connect: 'tcp:host=192.0.2.7:port=-5'}}", {"scales.a.connect"}),
        ("scales: {a: {serial: /dev/null}, b: {serial: /dev/../dev/null}}", {"scales.b.serial"}),
        # What `--check` says, and the gateway starts with.
        ("scales: {a: {connect: 'tcp:H:4002'}, b: {connect: 'tcp:host=h:port=4002'}}", {"?scales.b.connect"}),
        ("scales: {a: {listen: 'tcp:4011'}, A: {listen: 'tcp:4012'}}", {"?scales.A"}),
        ("scale: {port: 4005}\nscales: {a: {listen: 'tcp:4001'}}", {"?scale.port"}),
        ("scale: {host: 0.0.0.0}\nscales: {a: {listen: 'tcp:4001'}}", {"?scale.host"}),
        ("scale: {id: c}\nscales: {a: {listen: 'tcp:4001'}}", {"?scale.id"}),
        (
            "scales: {a: {listen: 'tcp:1', baudrate: 9, parity: E}, b: {connect: 'tcp:h:1', stopbits: 2, bytesize: 8}}",
            {"?scales.a.baudrate", "?scales.a.parity", "?scales.b.stopbits", "?scales.b.bytesize"},
        ),
        ("server: {cors_origins: http://h:9090/app}", {"?server.cors_origins"}),
        ("server: {cors_origins: [plant.example]}", {"?server.cors_origins"}),
        ("server: {cors_origins: ['http://*.plant.example']}", {"?server.cors_origins"}),
        ("server: {cors_origins: ['']}", {"?server.cors_origins"}),
    ],
)
def test_cross_checks_name_the_key(file: Path, text: str, keys: set[str]) -> None:
    assert set(found(file, text)) == keys


def test_a_port_of_two_keys_names_both_and_the_variable(file: Path) -> None:
    messages = found(file, "server: {port: 4005}", SCALE_GATEWAY_LISTEN_PORT="4005")
    assert messages == {
        "scale.port": "port 4005 (set by SCALE_GATEWAY_LISTEN_PORT) is also that of server.port; choose another"
    }
    messages = found(file, "scales: {a: {listen: 'tcp:4005'}}", CYNOW_GATEWAY_OWN_PORT="4005")
    assert "server.own_port (set by CYNOW_GATEWAY_OWN_PORT)" in messages["scales.a.listen"]


def test_a_variable_without_effect_is_named_even_where_it_says_the_default(file: Path) -> None:
    messages = found(file, "scales: {a: {listen: 'tcp:4002'}}", SCALE_GATEWAY_LISTEN_PORT="4001")
    assert "set by SCALE_GATEWAY_LISTEN_PORT" in messages["?scale.port"]


def test_an_origin_with_a_password_is_not_repeated(file: Path) -> None:
    messages = found(file, "server: {cors_origins: ['http://cynow:s3cret@h']}")
    assert "s3cret" not in messages["?server.cors_origins"]


def test_a_file_where_a_folder_is_needed_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "here").mkdir()
    messages = found(
        file, "data: {path: in the way}\ndatabase: {path: in the way/below/it}\nlogger: {path: here/new/newer}"
    )
    assert set(messages) == {"data.path", "database.path"}
    assert f"{tmp_path}/in the way is not a folder" in messages["database.path"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        # A port in use twice is said beside a key that is wrong.
        (
            "timezone: Mars/Olympus\nserver: {port: 9000, tcp_port: 9000}",
            ["timezone", "server.tcp_port"],
        ),
        ("scales: {a: {listen: 'tcp:99999'}, b: {listen: nonsense}}", ["scales.b.listen", "scales.a.listen"]),
        # What is wrong has its default here, which nobody has asked for.
        ("server: {port: 70000, tcp_port: 8080}", ["server.port"]),
        ("server: {host: 5, port: 4001}", ["server.host"]),
        ("server: 5\nscale: {port: 8080}", ["server"]),
        ("server: {port: 4001}\nscales: {a: {}}", ["scales.a"]),
        ("server: {port: 4001}\nscales: {a/b: {listen: 'tcp:4002'}}", ["scales.a/b"]),
        ("server: {port: 4001}\nscale: {port: x}", ["scale.port"]),
        ("server: {port: 4001, cors_origins: [5]}", ["server.cors_origins.0", "scale.port"]),
        # So is everything else that does not follow from it.
        ("timezone: Mars/Olympus\nscale: {port: 4005}\nscales: {a: {listen: 'tcp:4001'}}", ["timezone", "scale.port"]),
        ("scale: {port: 4005}\nscales: {a: {listen: nonsense}}", ["scales.a.listen", "scale.port"]),
        ("scale: {id: b}\nscales: {a: {listen: 'tcp:4001'}, b: {listen: nonsense}}", ["scales.b.listen"]),
        ("scale: {port: 4005}\nscales: 5", ["scales"]),
        (
            (
                "stat: 5\nserver: {cors_origins: plant}\nscales:\n  a: {serial: /dev/null}\n  b: {serial: /dev/null}\n"
                "  c: {listen: 'tcp:1', parity: E}\n  C: {listen: 'tcp:2'}"
            ),
            ["stat", "scales.b.serial", "scales.C", "scales.c.parity", "server.cors_origins"],
        ),
        ("timezone: Mars/Olympus\ndata: {path: /dev/null}", ["timezone", "data.path"]),
        ("data: {path: 5}\ndatabase: {path: /dev/null}", ["data.path", "database.path"]),
        ("server: {port: x, share_ports: true}", ["server.port", "server.share_ports"]),
        ("server: {share_ports: true}\ndatabase: {url: x}", ["database.url"]),
        # An unknown key may be meant for any other of its section.
        ("server: {prot: 9000, tcp_port: 8080}\nscale: {port: 8080}", ["server.prot"]),
        ("data: {path: /dev/null}\nserver: {prot: 9000}", ["server.prot", "data.path"]),
        ("servr: {port: 9000}\ndata: {path: /dev/null}", ["servr"]),
        ("server: {names: 'plant.example:8080', port: 9000, tcp_port: 9000}", ["server.names.0", "server.tcp_port"]),
    ],
)
def test_check_prints_what_else_is_wrong_beside_a_wrong_key(
    file: Path, text: str, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text, "utf-8")
    options = Options()
    with pytest.raises(SystemExit) as caught:
        options.parseOptions(["--check", "--config", str(file)])
    assert caught.value.code == 1
    assert [line.partition(": ")[0] for line in capsys.readouterr().err.splitlines()] == keys


def test_what_is_not_fatal_is_printed_by_check_and_kept_for_the_start(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("scale: {port: 4005}\nscales: {a: {listen: 'tcp:4001'}}", "utf-8")
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(["--check", "--config", str(file)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("scale.port: has no effect")
    options = Options()
    options.parseOptions(["--config", str(file)])
    assert [problem.key for problem in options.warnings] == ["scale.port"]


def test_a_fatal_problem_refuses_the_start_before_anything_is_opened(file: Path) -> None:
    file.write_text("server: {port: 4005, tcp_port: 4005}", "utf-8")
    with pytest.raises(SystemExit, match=r"server\.tcp_port: port 4005 is also that of server\.port"):
        Options().parseOptions(["--config", str(file)])


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp:10.0.0.7:4002", "10.0.0.7:4002"),
        ("tcp:scale.example:4002:timeout=5", "scale.example:4002"),
        ("tcp:host=10.0.0.7:port=4002", "10.0.0.7:4002"),
        ("tcp:4002:host=10.0.0.7", "10.0.0.7:4002"),
        (r"tcp:host=fe80\:\:7:port=4002", "fe80::7:4002"),
        ("unix:/run/scale", "unix:/run/scale"),
    ],
)
def test_display_address_of_tcp_endpoint_is_host_and_port(endpoint: str, address: str) -> None:
    assert display_address(endpoint) == address


def test_tls_of_a_scale_that_is_dialled_is_a_problem(file: Path) -> None:
    text = "scales: {a: {connect: 'tcp:x:1', tls: {cert: c, key: k}}, b: {listen: 'tcp:1', tls: {cert: c, key: k}}}"
    assert found(file, text) == {
        "scales.a.tls": "only a scale that connects to the gateway (listen) can have TLS; remove it"
    }
