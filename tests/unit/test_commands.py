"""Console script ``cynow-gateway``: commands, options and exit status."""

import contextlib
import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from gateway import __version__
from gateway.commands.main import COMMANDS, main


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit status, its output and its errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = main(arguments)
        except SystemExit as end:
            status = end.code
    assert status is None or isinstance(status, int)
    return status or 0, out.getvalue(), err.getvalue()


def test_version_is_shown() -> None:
    assert run("version") == (0, f"cynow-gateway {__version__}\n", "")


def test_help_lists_all_commands() -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name, command in COMMANDS.items():
        assert name in out
        assert command.summary in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_its_usage(name: str) -> None:
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: cynow-gateway {name} ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("version", "now"),
        ("check", "--unknown"),
        ("recompute",),
        ("recompute", "--from", "yesterday"),
        ("recompute", "--from", "2025-12-18", "--to", "2025-12-17"),
        ("recompute", "--from", "9999-01-01"),
        ("migrate",),
        ("simulate", "crane"),
    ],
)
def test_wrong_use_has_status_2(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: cynow-gateway")
    assert list(tmp_path.iterdir()) == []


def test_check_of_a_valid_configuration_has_status_0(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("server: {port: 18080}\n", "utf-8")
    assert run("check", "--config", str(config)) == (0, f"{config}: no problem\n", "")


def test_check_of_the_default_configuration_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("check") == (0, "the default configuration: no problem\n", "")


def test_check_shows_every_problem_with_its_key(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("server: {port: -1, tcp_port: none}\n", "utf-8")
    status, out, err = run("check", "--config", str(config))
    assert (status, out) == (1, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["server.port", "server.tcp_port"]


@pytest.mark.parametrize("arguments", [["version"], ["check"]])
def test_commands_without_a_reactor_import_none(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gateway.commands.main import main\n"
        f"assert not main({arguments!r})\n"
        "assert not {'twisted.internet.reactor', 'psycopg2', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_can_be_run_as_modules() -> None:
    for name in ("demo", "simulate", "recompute"):
        assert import_module(f"gateway.{name}").main is import_module(f"gateway.commands.{name}").main
    assert import_module("gateway.migrate.__main__").main is import_module("gateway.migrate.command").main
