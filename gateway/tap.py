"""The ``twistd`` plugin's options and service.

``twistd`` reads this module before it has chosen a reactor, and nothing handles signals until the options are read.
So modules that import the reactor or load slowly are imported within the functions.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from twisted.application.service import IService
from twisted.python import usage

from gateway.runtime.paths import working_directory
from gateway.runtime.signals import Signals

if TYPE_CHECKING:
    from gateway.commands.check import CheckedConfig
    from gateway.config.problems import Problem
    from gateway.config.settings import Settings
    from gateway.runtime.reactor import IReactor


class Options(usage.Options):
    """Options of ``twistd cynow-gateway``.

    :ivar load: reads and checks the configuration.
    :ivar settings: configuration, without fatal problems.
    :ivar warnings: problems that do not keep the gateway from starting.
    """

    synopsis = "[options]"
    longdesc = "Replaces the scale gateway and the monitoring server. See docs/reference/configuration.rst."
    optParameters: ClassVar = [["config", "c", None, "Configuration, a YAML file; by default, every key's default."]]
    optFlags: ClassVar = [
        ["check", None, "Check the configuration, print every problem, and exit."],
        [
            "accept-empty-store",
            None,
            "Start although the file of commits that was here is lost; for one start only.",
        ],
    ]

    load: Callable[[], CheckedConfig]
    settings: Settings
    warnings: list[Problem]

    def __init__(self) -> None:
        super().__init__()
        self.signals = Signals()

    def postOptions(self) -> None:
        """Load and check the configuration.

        :raises SystemExit: after ``--check``, or if the configuration has a fatal problem.
        """
        if self.parent is not None and not self["check"]:
            self.signals.install()
        from gateway.commands.check import check_config, check_with_files, write_result

        # A daemon changes its working directory, and reads the file again on SIGHUP.
        path = None if self["config"] is None else os.path.abspath(self["config"])
        twistd: Mapping[str, Any] = self.parent or {}
        folder = working_directory(None, twistd.get("rundir") or ".")
        config = None if path is None else Path(path)
        self.load = partial(check_config, config, os.environ, folder)
        # The start reads certificates later, as the user and below the root directory that it changes to.
        checked = check_with_files(config, os.environ, folder) if self["check"] else self.load()
        if self["check"]:
            raise SystemExit(write_result(self["config"], checked))
        if checked.fatal or checked.settings is None:
            count = len(checked.problems) - 1
            more = f" (and {count} more: see --check)" if count else ""
            raise SystemExit(f"cynow-gateway: {(checked.fatal or checked.problems)[0]}{more}")
        self.settings = checked.settings
        self.warnings = checked.problems


def makeService(options: Options, reactor: IReactor | None = None) -> IService:
    """Build the gateway.

    :param options: parsed options.
    :param reactor: reactor; ``None`` for the installed one, as ``twistd`` calls it.
    """
    options.signals.begin_start()
    # Almost everything made now lives as long as the process; collecting garbage would take a tenth of the start.
    gc.disable()
    try:
        installed = _installed_reactor() if reactor is None else reactor
        from gateway.assembly.daemon import build_gateway
        from gateway.runtime.process import Process

        process = Process.of(options.parent, options.signals)

        def load() -> tuple[Settings | None, list[Problem]]:
            checked = options.load()
            return checked.settings, checked.problems

        accept_empty = options["accept-empty-store"]
        return build_gateway(installed, options.settings, process, load, options.warnings, accept_empty)
    finally:
        gc.freeze()
        gc.enable()


def _installed_reactor() -> IReactor:
    from twisted.internet import reactor

    installed: Any = reactor
    # Twisted's own clock is the wall clock: when that is set back by an hour, every timer would be an hour late.
    installed.seconds = time.monotonic
    return cast("IReactor", installed)
