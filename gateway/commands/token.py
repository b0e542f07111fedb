"""Command ``cynow-gateway token``: make, list and revoke the tokens of access control."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

from gateway.auth.principal import SCOPES, Scope
from gateway.auth.tokens import MAX_TOKENS, Token, TokenFileError, locked, new_token, read_tokens, write_tokens
from gateway.config.loader import ConfigError, load
from gateway.model.names import name_problem
from gateway.runtime.paths import working_directory

_UNITS: Final = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}

_RELOAD: Final = "a running gateway takes this over on SIGHUP: systemctl reload cynow-gateway"


class _TokenCommandError(Exception):
    """Error that ends the command with status 1; the text is one line for the operator."""


def main(arguments: Sequence[str] | None = None, prog: str = "cynow-gateway token") -> int:
    """Change or show the tokens of a configuration.

    :returns: exit status: 1 if there is a problem.
    """
    options = _parser(prog).parse_args(arguments)
    run: Callable[[argparse.Namespace, str], None] = options.run
    try:
        run(options, _tokens_file(options.config, working_directory(None, options.rundir)))
    except (TokenFileError, _TokenCommandError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Make, list and revoke tokens.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", metavar="FILE", help="configuration, a YAML file that has the section auth")
    config.add_argument(
        "--rundir",
        metavar="DIR",
        default=".",
        help="working directory of the gateway, the base of relative paths (default: the current one)",
    )
    add = commands.add_parser(
        "add", parents=[config], help="make a token, and print it once", description="Make a token, and print it once."
    )
    add.add_argument("name", metavar="NAME", type=_name, help="name of its holder, such as a program or a person")
    add.add_argument(
        "--scope",
        required=True,
        type=_scopes,
        action="extend",
        metavar="SCOPES",
        help=f"rights, with commas between them: {', '.join(SCOPES)}",
    )
    add.add_argument("--expires", type=_lifetime, metavar="TIME", help="time for which it is valid, such as 90d or 12h")
    add.set_defaults(run=_add)
    listing = commands.add_parser("list", parents=[config], help="list the tokens", description="List the tokens.")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", parents=[config], help="revoke a token", description="Revoke a token.")
    revoke.add_argument("name", metavar="NAME", help="name of the token")
    revoke.set_defaults(run=_revoke)
    return parser


def _name(text: str) -> str:
    if problem := name_problem(text):
        raise argparse.ArgumentTypeError(problem)
    return text


def _scopes(text: str) -> tuple[Scope, ...]:
    scopes = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise argparse.ArgumentTypeError(f"unknown scope {unknown[0]!r}; the scopes are {', '.join(SCOPES)}")
    return cast("tuple[Scope, ...]", scopes)


def _lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([dhm])", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90d (days), 12h (hours) or 30m (minutes)")
    return int(match[1]) * _UNITS[match[2]]


def _tokens_file(config: str | None, folder: str) -> str:
    """Return the path of the configured file of tokens."""
    try:
        settings = load(None if config is None else Path(config), os.environ, folder=folder)
    except ConfigError as error:
        if error.rest is None or "auth" in {key.partition(".")[0] for key in error.broken}:
            raise _TokenCommandError(str(error.problems[0])) from error
        settings = error.rest
    if settings.auth is None:
        if config is None:
            raise _TokenCommandError("no configuration is given; name the gateway's with --config FILE")
        raise _TokenCommandError(f"{config}: auth is not configured; add to it: auth: {{tokens_file: FILE}}")
    return os.path.join(folder, settings.auth.tokens_file)


def _read(path: str) -> tuple[Token, ...]:
    try:
        return read_tokens(path)
    except FileNotFoundError:
        return ()


def _add(options: argparse.Namespace, path: str) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with locked(path):
        tokens = _read(path)
        if any(token.name == options.name for token in tokens):
            raise _TokenCommandError(f"there is a token {options.name} already; revoke it, or choose another name")
        if len(tokens) >= MAX_TOKENS:
            raise _TokenCommandError(f"{path} has {MAX_TOKENS} tokens, the maximum; revoke some")
        expires = None if options.expires is None else now + options.expires
        scopes = tuple(dict.fromkeys(options.scope))
        text, token = new_token(options.name, scopes, now, expires)
        write_tokens(path, [*tokens, token])
    until = "" if expires is None else f", until {expires:%Y-%m-%d %H:%M} UTC"
    sys.stdout.write(f"{path}: added {options.name} ({', '.join(scopes)}{until})\n{_RELOAD}\n")
    sys.stdout.write(f"this is the token; it is not shown again:\n{text}\n")


def _list(options: argparse.Namespace, path: str) -> None:
    tokens, now = _read(path), datetime.now(UTC)
    if not tokens:
        sys.stdout.write(f"{path}: no tokens\n")
    width = max((len(token.name) for token in tokens), default=0)
    for token in sorted(tokens, key=lambda token: token.name):
        expires = "never expires" if token.expires is None else f"expires {token.expires:%Y-%m-%d %H:%M} UTC"
        state = "  EXPIRED" if token.has_expired(now) else ""
        line = f"{token.name:{width}}  {','.join(token.scopes):17}  made {token.created:%Y-%m-%d}  {expires}{state}"
        sys.stdout.write(f"{line}\n")


def _revoke(options: argparse.Namespace, path: str) -> None:
    with locked(path):
        tokens = _read(path)
        rest = [token for token in tokens if token.name != options.name]
        if len(rest) == len(tokens):
            raise _TokenCommandError(f"{path} has no token {options.name}")
        write_tokens(path, rest)
    sys.stdout.write(f"{path}: revoked {options.name}\n{_RELOAD}\n")
