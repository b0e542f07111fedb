"""Command that shows the version."""

import argparse
import sys
from collections.abc import Sequence

from gateway import __version__


def main(arguments: Sequence[str] | None = None, prog: str = "cynow-gateway version") -> None:
    """Write the version to the standard output."""
    argparse.ArgumentParser(prog=prog, description="Show the version of the gateway.").parse_args(arguments)
    sys.stdout.write(f"cynow-gateway {__version__}\n")
