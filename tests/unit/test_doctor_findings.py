"""Findings, and the bounds of a check's time."""

import threading
from collections.abc import Iterator

import pytest

from gateway.config.settings import Settings
from gateway.doctor.findings import Finding, Level, error, ok, results_in_time, run_check, warning
from gateway.doctor.folders import check_folders
from gateway.doctor.limits import check_limits
from gateway.doctor.plant import Plant, RunningGateway, listening_ports


def test_line_of_a_finding() -> None:
    assert str(ok("names", "all found")) == "ok       names                    all found"
    assert str(error("a key that is longer than its column", "seen\n\x1b[2J", "do this")) == (
        "error    a key that is longer than its column seen  [2J -> do this"
    )


def test_check_that_fails_is_an_error_without_its_text() -> None:
    def check() -> Iterator[Finding]:
        yield ok("port", "free")
        raise ValueError("password=geheim")

    assert list(run_check("ports", check, 60)) == [
        ok("port", "free"),
        error("ports", "the check itself failed: ValueError", "report this as a bug"),
    ]


def test_check_without_an_end_is_an_error() -> None:
    never = threading.Event()

    def check() -> Iterator[Finding]:
        yield ok("port", "free")
        never.wait()

    *findings, last = run_check("ports", check, 0.5)
    assert findings in ([], [ok("port", "free")])
    assert (last.level, last.subject, last.seen) == (Level.ERROR, "ports", "no result within 0.5 s")
    never.set()


def test_results_in_time_do_not_wait_for_one_that_is_silent() -> None:
    never = threading.Event()

    def fail() -> bool:
        raise OSError("no such host")

    found = results_in_time({"silent": never.wait, "bad": fail}, 0.5)
    assert isinstance(found["silent"], TimeoutError)
    assert isinstance(found["bad"], OSError)
    assert results_in_time({"good": lambda: 1}, 60) == {"good": 1}
    never.set()


def test_ports_of_a_configuration() -> None:
    settings = Settings.model_validate(
        {
            "server": {"host": "::", "own_port": 9000},
            "scales": {"a": {"listen": "tcp:4001"}, "b": {"connect": "tcp:10.0.0.7:4002"}, "c": {"listen": "unix:/x"}},
        }
    )
    assert {port.key: str(port) for port in listening_ports(settings)} == {
        "server.port": "[::]:8080",
        "server.tcp_port": "[::]:8082",
        "server.own_port": "[::]:9000",
        "scales.a.listen": "0.0.0.0:4001",
    }


def test_folder_on_a_network(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.mktemp("plant"))
    monkeypatch.setattr("gateway.doctor.folders._file_system_of", lambda path: "nfs4")
    found = [finding for finding in check_folders(Plant(Settings(), folder, {}, None, 0)) if finding.remedy]
    assert [finding.seen for finding in found] == [
        f"{folder}/{name} is on a network file system (nfs4)" for name in ("db", "data")
    ]


def test_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = Plant(Settings(), ".", {}, RunningGateway(frozenset({7, 8, 9}), None), 0)
    limits = {7: 1024, 8: 65536, 9: None}
    monkeypatch.setattr("gateway.doctor.limits.max_open_files", limits.get)
    assert list(check_limits(plant)) == [
        warning("open files", "process 7 may open 1024 files", "set LimitNOFILE=65536 in the service (ulimit -n)"),
        ok("open files", "process 8 may open 65536 files"),
    ]
