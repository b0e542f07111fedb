"""What tests share: tools that may be missing, and real daemons."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
from twisted.trial import util

from tests.support.daemon import Daemon, running

ROOT = Path(__file__).parent.parent

#: Modules of unit tests that start servers or kill processes, or take more than a few seconds.
SLOW = {
    "test_hostile_frames",
    "test_json_reader",
    "test_plot",
    "test_postgres",
    "test_postgres_outcomes",
    "test_postgres_refusals",
    "test_raw_damage",
    "test_recovery",
    "test_rollup",
    "test_scale_damage",
    "test_spool",
    "test_sinks",
    "test_store",
    "test_style",
    "test_store_faults",
    "test_templates",
}


def pytest_configure(config: pytest.Config) -> None:
    """Let nothing fail for want of time but what pytest itself ends."""
    util.DEFAULT_TIMEOUT_DURATION = float(config.getini("timeout"))
    # A busy machine is slow in making examples too.
    health = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=health)
    # The same examples each time: which lines they reach must not change from run to run.
    hypothesis.settings.register_profile(
        "quick", deadline=None, suppress_health_check=health, max_examples=10, derandomize=True
    )
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patient"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ``make test-fast`` leaves out."""
    for item in items:
        if item.path.stem in SLOW or "Postgres" in item.nodeid:
            item.add_marker(pytest.mark.slow)


def program(name: str) -> str:
    """A program that a test needs."""
    return shutil.which(name) or missing(name)


def missing(what: str) -> NoReturn:
    """What a test needs is not there: CI fails, and a user's machine skips the test."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


@pytest.fixture
def tool() -> Callable[[str], str]:
    """Finds a program that a test needs."""
    return program


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running gateway of this test's own."""
    with running(tmp_path) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running gateway for tests that leave no trace which another would trip over."""
    with running(tmp_path_factory.mktemp("gateway"), timezone="Asia/Seoul") as gateway:
        yield gateway


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach and read, as those of pytest cannot be, but not write."""
    folder = Path(tempfile.mkdtemp(prefix="cynow-user-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
