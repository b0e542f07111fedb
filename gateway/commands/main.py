"""Console script ``cynow-gateway COMMAND``.

The exit status is 0 if all is well, 1 if a problem was found, and 2 for wrong use.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from gateway import __version__


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the console script.

    :ivar module: module whose ``main(arguments, prog)`` runs the command; imported only then, since some load slowly.
    :ivar summary: line in the list of commands.
    """

    module: str
    summary: str


COMMANDS: Final = {
    "check": Command("gateway.commands.check", "check a configuration and show every problem"),
    "doctor": Command("gateway.doctor.command", "check everything that the gateway depends on"),
    "token": Command("gateway.commands.token", "make, list and revoke the tokens of access control"),
    "recompute": Command("gateway.commands.recompute", "make statistics of past days again from raw files"),
    "migrate": Command("gateway.migrate.command", "copy the embedded store into PostgreSQL"),
    "audit": Command("gateway.commands.audit", "verify the record of commits"),
    "simulate": Command("gateway.commands.simulate", "simulate scales or machines"),
    "demo": Command("gateway.commands.demo", "run the gateway with a simulated scale and a simulated machine"),
    "version": Command("gateway.commands.version", "show the version"),
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run a command.

    :param arguments: arguments; ``None`` for those of the process.
    :returns: exit status; ``None`` if all is well.
    :raises SystemExit: after ``--help``, and for wrong use.
    """
    parser = argparse.ArgumentParser(
        prog="cynow-gateway",
        description="Commands of the CYNOW gateway. The daemon itself: twistd cynow-gateway",
        epilog="cynow-gateway COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"cynow-gateway {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    options, rest = parser.parse_known_args(arguments)
    module = import_module(COMMANDS[options.command].module)
    status: int | None = module.main(rest, f"cynow-gateway {options.command}")
    return status
