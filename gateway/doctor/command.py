"""Command ``cynow-gateway doctor``: runs every check, one line each."""

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from gateway.commands.check import check_config
from gateway.config.settings import Settings
from gateway.doctor.access import check_access
from gateway.doctor.clock import check_clock
from gateway.doctor.findings import Finding, Level, error, ok, run_check, warning
from gateway.doctor.folders import check_files, check_folders
from gateway.doctor.http import find_gateway
from gateway.doctor.limits import check_limits
from gateway.doctor.listening import check_listening
from gateway.doctor.names import check_names
from gateway.doctor.plant import PATIENCE, Plant
from gateway.doctor.ports import check_ports
from gateway.doctor.scales import MAX_SECONDS, check_scales
from gateway.doctor.tls import check_tls

#: Seconds for a check that reads files of this machine; a few disks or look-ups may be slow.
_LOCAL: Final = 3 * PATIENCE

#: Seconds of listening for scales, if the command line does not say otherwise, and at most.
_LISTEN: Final = 10.0
_MAX_LISTEN: Final = 3600.0


def _check_database(plant: Plant) -> Iterator[Finding]:
    from gateway.doctor.database import check_database  # imports psycopg2

    return check_database(plant)


def _check_push(plant: Plant) -> Iterator[Finding]:
    from gateway.doctor.push import check_push

    return check_push(plant)


def _checks(plant: Plant) -> Iterator[tuple[str, Callable[[Plant], Iterator[Finding]], float]]:
    """Yield the name of each check, its function, and its maximum seconds."""
    yield "ports", check_ports, _LOCAL
    yield "names", check_names, 2 * PATIENCE
    yield "folders", check_folders, _LOCAL
    yield "database files", check_files, 2 * PATIENCE
    yield "clock", check_clock, 2 * PATIENCE
    # A login, statements and a notification, each with its own limit; a URL may have several hosts.
    yield "database", _check_database, 6 * PATIENCE
    yield "fcm", _check_push, 3 * PATIENCE
    yield "tls", check_tls, PATIENCE
    yield "auth", check_access, PATIENCE
    yield "open files", check_limits, PATIENCE
    yield "scales", check_scales, MAX_SECONDS + PATIENCE
    yield "scales", check_listening, plant.listen_seconds + PATIENCE


def examine(
    settings: Settings, folder: str, environment: Mapping[str, str], listen_seconds: float
) -> Iterator[Finding]:
    """Run every check, and yield findings as they come.

    :param folder: base of relative paths.
    """
    gateway = find_gateway(settings)
    if gateway is None:
        yield ok("gateway", "not running")
    else:
        yield ok("gateway", str(gateway).removeprefix("the "))
        for problem in () if gateway.health is None else gateway.health.get("problems", ()):
            yield warning("gateway", f"it reports: {problem}", "see the lines below, and its log")
    plant = Plant(settings, folder, environment, gateway, listen_seconds)
    for name, check, seconds in _checks(plant):
        yield from run_check(name, partial(check, plant), seconds)


def _check_config(path: str | None, folder: str) -> tuple[Settings | None, list[Finding]]:
    checked = check_config(None if path is None else Path(path), os.environ, folder)
    shown = path or "the default configuration"
    findings = [
        (error if problem.is_fatal else warning)(problem.key or "configuration", problem.message, f"correct {shown}")
        for problem in checked.problems
        # The checks of these files say more.
        if problem.key != "auth.tokens_file" and (problem.is_fatal or not problem.key.endswith(".tls.key"))
    ]
    return checked.settings, findings or [ok("configuration", f"{shown} has no problem")]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _MAX_LISTEN:
        raise argparse.ArgumentTypeError(f"not 0 to {_MAX_LISTEN:g}")
    return seconds


def main(arguments: Sequence[str] | None = None, prog: str = "cynow-gateway doctor") -> int:
    """Check everything that the gateway depends on.

    :returns: exit status: 1 if there is an error; warnings do not count.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Check everything that the gateway depends on; one line for each check."
    )
    parser.add_argument("--config", metavar="FILE", help="configuration, a YAML file (default: every key's default)")
    parser.add_argument(
        "--rundir", metavar="DIR", default=".", help="working directory of the gateway (default: this one)"
    )
    parser.add_argument(
        "--listen-seconds",
        metavar="N",
        type=_seconds,
        default=_LISTEN,
        help="seconds to listen for scales that dial the gateway; 0 for not at all (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="show each finding as a JSON object")
    options = parser.parse_args(arguments)
    counts: Counter[Level] = Counter()

    def show(findings: Iterator[Finding] | list[Finding]) -> None:
        for finding in findings:
            counts[finding.level] += 1
            line = json.dumps(dataclasses.asdict(finding), ensure_ascii=False) if options.json else str(finding)
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    folder = os.path.realpath(options.rundir)
    settings, problems = _check_config(options.config, folder)
    show(problems)
    if settings is not None:
        try:
            show(examine(settings, folder, os.environ, options.listen_seconds))
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return 1
    if not options.json:
        totals = [f"{counts[level]} {level}{'' if counts[level] == 1 or level == Level.OK else 's'}" for level in Level]
        sys.stdout.write(f"{', '.join(totals)}\n")
    return 1 if counts[Level.ERROR] else 0
