"""Hosts and endpoints of the configuration: which can be none, and what is said of them."""

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from gateway.config.endpoints import endpoint_problem, line_problem
from gateway.config.hosts import host_problem
from gateway.config.loader import ConfigError, load
from gateway.runtime.listener import Listener, StartError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "0.0.0.0",
        "::",
        "::1",
        "fe80::1%eth0",
        "localhost",
        "plant.example.",
        "no-such-host.invalid",
        "scale_gateway",
        "서버",
        "1-2.example",
        f"{'a' * 63}.example",
    ],
)
def test_host_problem_of_a_host_is_none(text: str) -> None:
    assert host_problem(text) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not a host!", "not a valid host name: 'not a host!'"),
        ("x y", "not a valid host name"),
        ("*", "0.0.0.0"),
        ("plant/example", "not a valid host name"),
        ("[::1]", "without brackets"),
        ("127.0.0.1:8080", "without brackets and port"),
        ("::zz", "not a valid IPv6 address"),
        ("300.1.1.1", "'300.1.1.1' is not a valid IPv4 address"),
        ("1.2.3", "four decimal numbers"),
        ("10.0.0.07", "four decimal numbers"),
        ("8080", "four decimal numbers"),
        ("a..example", "1 to 63 characters"),
        (".", "four decimal numbers"),
        (f"{'a' * 64}.example", "1 to 63 characters"),
        ("가" * 60, "1 to 63 characters"),
        ("a.b" * 100, "more than 253"),
    ],
)
def test_host_problem_of_what_can_be_no_host_says_why(text: str, said: str) -> None:
    assert said in host_problem(text)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("listen", "tcp", "it lacks the port; expected tcp:PORT"),
        ("listen", "tcp:abc", "'abc' is not a number; expected tcp:PORT"),
        ("listen", "tcp:", "a number is missing"),
        ("listen", "tcp:4001:foo=1", "unknown option foo"),
        ("listen", "4001", "unknown kind of endpoint '4001'; expected tcp:PORT"),
        ("listen", "tcp:4001\\", "a backslash at its end"),
        ("listen", "unix", "it lacks the path; expected unix:PATH"),
        ("listen", "unix:", "it lacks the path; expected unix:PATH"),
        ("listen", "unix:/a:mode=999", "'999' is not an octal number"),
        ("listen", "systemd:domain=INET:index=0", "systemd has passed no such socket"),
        ("connect", "tcp", "it lacks the host and the port; expected tcp:HOST:PORT"),
        ("connect", "tcp:10.0.0.7", "it lacks the port; expected tcp:HOST:PORT"),
        ("connect", "tcp:10.0.0.7:abc", "'abc' is not a number"),
        ("connect", "10.0.0.7:4002", "unknown kind of endpoint '10.0.0.7'; expected tcp:HOST:PORT"),
    ],
)
def test_endpoint_problem_says_what_is_wrong_in_plain_words(kind: str, text: str, said: str) -> None:
    problem = endpoint_problem(kind, text)
    assert problem.startswith("not a valid endpoint: ")
    assert said in problem
    for internal in ("()", "__", "argument", "base"):
        assert internal not in problem


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'OpenSSL'"), NameError("name 'X'")])
@pytest.mark.parametrize(("kind", "text"), [("listen", "ssl:4001"), ("connect", "tls:h:1")])
def test_endpoint_problem_of_tls_that_is_not_installed_names_its_packages(
    monkeypatch: pytest.MonkeyPatch, kind: str, text: str, error: Exception
) -> None:
    def missing(*_: object) -> None:
        raise error

    monkeypatch.setattr("gateway.config.endpoints.serverFromString", missing)
    monkeypatch.setattr("gateway.config.endpoints.clientFromString", missing)
    problem = line_problem(kind, text)
    assert "pip install 'twisted[tls]'" in problem
    assert "serial" not in problem


@pytest.mark.parametrize(
    ("text", "environment", "key"),
    [
        ("server: {host: 'not a host!'}", {}, "server.host"),
        ("server: {host: 300.1.1.1}", {}, "server.host"),
        ("scale: {host: 'x y'}", {}, "scale.host"),
        ("", {"SCALE_GATEWAY_LISTEN_HOST": "x y"}, "scale.host"),
        ("scales: {a: {connect: 'tcp:x y:4001'}}", {}, "scales.a.connect"),
        ("scales: {a: {connect: 'tcp:300.1.1.1:4001'}}", {}, "scales.a.connect"),
        ("scales: {a: {connect: 'tcp::4001'}}", {}, "scales.a.connect"),
        ("scales: {a: {listen: 'tcp:4001:interface=x y'}}", {}, "scales.a.listen"),
    ],
)
def test_a_configured_host_that_can_be_none_is_a_problem(
    tmp_path: Path, text: str, environment: dict[str, str], key: str
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, environment, line_problem)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert all(variable in problem.message for variable in environment)


class FailingEndpoint:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def listen(self, factory: Any) -> "Deferred[Any]":
        return fail(self._error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            CannotListenError("plant", 8080, socket.gaierror(-2, "Name or service not known")),
            "server.host: cannot listen on plant:8080: Name or service not known",
        ),
        (
            CannotListenError("127.0.0.1", 8080, OSError(98, "Address already in use")),
            "server.port: cannot listen on 127.0.0.1:8080: Address already in use",
        ),
        (
            CannotListenError("", "/run/x", OSError(13, "Permission denied")),
            "server.port: cannot listen on /run/x: Permission denied",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "4809", None, b"/nonexist/x.lock"),
            "server.port: cannot listen: the folder /nonexist does not exist; create it",
        ),
        (
            PermissionError(13, "Permission denied", "4809", None, b"/root/x.lock"),
            "server.port: cannot listen on /root/x.lock: Permission denied",
        ),
    ],
)
def test_listen_that_fails_names_the_key_and_the_place(error: Exception, said: str) -> None:
    listener = Listener("server.port", FailingEndpoint(error), Factory(), "server.host")  # type: ignore[arg-type]  # it listens only
    with pytest.raises(StartError) as caught:
        listener.listen()
    assert str(caught.value) == said
