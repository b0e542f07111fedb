"""Console script ``cynow-gateway`` as ``pip`` installs it."""

import subprocess
import sys
from pathlib import Path

from gateway import __version__

SCRIPT = Path(sys.executable).with_name("cynow-gateway")


def run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_script_shows_the_version(tmp_path: Path) -> None:
    assert run("version", cwd=tmp_path) == (0, f"cynow-gateway {__version__}\n", "")


def test_script_checks_a_configuration_without_writing_files(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("server: {prot: 8080}\n", "utf-8")
    status, out, err = run("check", "--config", str(config), cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("server.prot: ")
    assert "port" in err
    assert list(tmp_path.iterdir()) == [config]


def test_script_without_a_command_shows_the_usage(tmp_path: Path) -> None:
    status, out, err = run(cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("usage: cynow-gateway")


def test_script_reports_that_there_is_nothing_to_migrate(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    status, out, err = run("migrate", "--dry-run", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("migrate: ")
    assert "db" in err
