"""What test cases of Trial share: folders of their own, and waiting while the reactor runs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.support.daemon import PATIENCE

#: A folder without a disk, where there is one.
_MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None


def new_folder(case: SynchronousTestCase, name: str, *, in_memory: bool = False) -> Path:
    """Make a folder that is gone when the test is over.

    :param name: what is in it.
    :param in_memory: for tests that do not ask what a disk does, and would wait for it a thousand times.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"cynow-{name}-", dir=_MEMORY if in_memory else None))
    case.addCleanup(shutil.rmtree, folder, ignore_errors=True)
    return folder


async def until(condition: Callable[..., Any], what: str) -> None:
    """Wait for a condition to give something true."""
    end = reactor.seconds() + PATIENCE
    while not condition():
        if reactor.seconds() > end:
            raise AssertionError(f"waited in vain: {what}")
        await deferLater(reactor, 0.02)
