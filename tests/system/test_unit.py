"""systemd's units and the drop-in for newer versions of systemd."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

ETC = ROOT / "etc"
DROP_IN = ETC / "systemd-253" / "cynow-gateway.service.d" / "10-notify-reload.conf"
UNITS = ("cynow-gateway.service", "cynow-gateway@.service")


def lines_of(path: Path) -> dict[str, list[str]]:
    """Return the values of a unit by ``[Section] Key``."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section} {key}", []).append(value)
    return found


def verified(systemd_analyze: str, unit: Path) -> tuple[int, str]:
    done = subprocess.run(
        [systemd_analyze, "verify", unit], capture_output=True, text=True, check=False, cwd=unit.parent
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_unit_starts_again_whatever_happened(name: str) -> None:
    unit = lines_of(ETC / name)
    assert unit["[Service] Restart"] == ["always"]
    assert unit["[Unit] StartLimitIntervalSec"] == ["0"]
    assert 1 <= int(unit["[Service] RestartSec"][0]) <= 10


@pytest.mark.parametrize("name", UNITS)
def test_unit_reloads_by_sighup(name: str) -> None:
    unit = lines_of(ETC / name)
    assert unit["[Service] Type"] == ["notify"]
    assert unit["[Service] ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert lines_of(DROP_IN) == {"[Service] Type": ["notify-reload"], "[Service] ExecReload": [""]}


@pytest.mark.parametrize("name", UNITS)
def test_unit_with_its_examples_is_sound(name: str, tool: Callable[[str], str], tmp_path: Path) -> None:
    text, count = re.subn("(?m)^#(?=LoadCredential=)", "", (ETC / name).read_text("utf-8"))
    assert count > 0
    unit = tmp_path / name
    unit.write_text(text, "utf-8")
    assert verified(tool("systemd-analyze"), unit) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_unit_with_the_drop_in_is_sound(name: str, tool: Callable[[str], str], tmp_path: Path) -> None:
    shutil.copy(ETC / name, tmp_path)
    drop_ins = tmp_path / f"{name}.d"
    drop_ins.mkdir()
    shutil.copy(DROP_IN, drop_ins)
    systemd_analyze = tool("systemd-analyze")
    version = re.match(r"systemd (\d+)", subprocess.check_output([systemd_analyze, "--version"], text=True))
    assert version is not None
    status, said = verified(systemd_analyze, tmp_path / name)
    if int(version[1]) < 253:
        # The type is the one line that it does not know.
        assert re.fullmatch(r"\S+: Failed to parse service type, ignoring: notify-reload\n", said)
    else:
        assert (status, said) == (0, "")
