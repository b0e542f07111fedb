"""Check of a configuration: for ``--check``, for the start of the daemon, and as a command."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.auth.tokens import TokenFileError, read_tokens
from gateway.config.cross_checks import CrossChecks
from gateway.config.endpoints import line_problem, tcp_address
from gateway.config.listeners import listeners_of, tls_files_of
from gateway.config.loader import ConfigError, load
from gateway.config.problems import Problem
from gateway.config.settings import Settings
from gateway.runtime.clock import zone_named
from gateway.runtime.paths import CREDENTIALS, working_directory
from gateway.runtime.secret_files import SecretFileError, read_secret
from gateway.runtime.tls_files import TlsError


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A configuration and the problems with it.

    :ivar settings: settings; without the invalid values if there are problems, ``None`` if the file cannot be read.
    :ivar problems: every problem; those with ``is_fatal`` keep the gateway from starting.
    """

    settings: Settings | None
    problems: list[Problem]

    @property
    def fatal(self) -> list[Problem]:
        """The problems that keep the gateway from starting."""
        return [problem for problem in self.problems if problem.is_fatal]


def check_config(path: Path | None, environment: Mapping[str, str], folder: str) -> CheckedConfig:
    """Load a configuration and check it, without side effects.

    :param path: YAML file; ``None`` for all defaults.
    :param folder: base of relative paths.
    """
    problems: list[Problem] = []
    broken: frozenset[str] = frozenset()
    settings: Settings | None
    try:
        settings = load(path, environment, check_line, folder)
    except ConfigError as error:
        problems, settings, broken = error.problems, error.rest, error.broken
    if settings is not None:
        known = {problem.key for problem in problems}
        files = [*_token_problems(settings, folder), *_secret_problems(settings, folder)]
        problems = [
            *problems,
            *(problem for problem in files if problem.key not in known and problem.key.partition(".")[0] not in broken),
            *([] if "timezone" in broken else _zone_problems(settings)),
            *CrossChecks(settings, environment, tcp_address, folder, broken).problems(),
        ]
    return CheckedConfig(settings, problems)


def check_with_files(path: Path | None, environment: Mapping[str, str], folder: str) -> CheckedConfig:
    """Check a configuration as :func:`check_config` does, and the certificates that it names."""
    checked = check_config(path, environment, folder)
    return CheckedConfig(checked.settings, [*checked.problems, *_tls_problems(checked.settings, folder)])


def _tls_problems(settings: Settings | None, folder: str) -> Iterator[Problem]:
    listeners = {} if settings is None else listeners_of(settings)
    for key, listener in listeners.items():
        if listener.tls is None:
            continue
        from gateway.runtime.tls_layer import load_credentials  # imports OpenSSL

        tls = listener.tls
        if any(path.startswith(CREDENTIALS) for path in (tls.cert, tls.key, tls.client_ca or "")):
            # That the variable is not set is a problem already.
            continue
        try:
            load_credentials(f"{key}.tls", tls_files_of(tls, folder))
        except TlsError as error:
            yield Problem(error.key, error.message)


def check_line(kind: str, text: str) -> str:
    """Return the problem with the line of a scale or with the URL of a database; an empty string if it is valid.

    :param kind: ``listen``, ``connect``, ``serial`` or ``url``.
    """
    if kind == "url":
        from gateway.store.postgres.address import url_problem  # imports psycopg2

        return url_problem(text)
    return line_problem(kind, text)


def _zone_problems(settings: Settings) -> list[Problem]:
    try:
        zone_named(settings.timezone)
    except (KeyError, ValueError, OSError) as error:
        text = f"cannot detect the system time zone ({error}); set it, for example Asia/Seoul"
        return [Problem("timezone", text)]
    return []


def _token_problems(settings: Settings, folder: str) -> list[Problem]:
    if settings.auth is None:
        return []
    key, path = "auth.tokens_file", os.path.join(folder, settings.auth.tokens_file)
    try:
        tokens = read_tokens(path)
    except FileNotFoundError:
        return [Problem(key, f"{path} does not exist; make a token with: cynow-gateway token add", is_fatal=False)]
    except TokenFileError as error:
        return [Problem(key, str(error))]
    return [] if tokens else [Problem(key, f"{path} has no token; make one: cynow-gateway token add", is_fatal=False)]


def _secret_problems(settings: Settings, folder: str) -> list[Problem]:
    problems = []
    for machine, rule in settings.machines.items():
        if rule.secret_file is not None:
            try:
                read_secret(os.path.join(folder, rule.secret_file))
            except SecretFileError as error:
                problems.append(Problem(f"machines.{machine}.secret_file", str(error)))
    return problems


def write_result(path: str | None, checked: CheckedConfig) -> int:
    """Write every problem to the standard error, or one line to the standard output if the configuration is valid.

    :returns: exit status: 1 if there is a problem.
    """
    for problem in checked.problems:
        sys.stderr.write(f"{problem}\n")
    if checked.problems:
        return 1
    sys.stdout.write(f"{path or 'the default configuration'}: no problem\n")
    return 0


def main(arguments: Sequence[str] | None = None, prog: str = "cynow-gateway check") -> int:
    """Check a configuration as ``twistd cynow-gateway --check`` does.

    :returns: exit status: 1 if there is a problem.
    """
    parser = argparse.ArgumentParser(prog=prog, description="Check a configuration and show every problem.")
    parser.add_argument("--config", metavar="FILE", help="configuration, a YAML file (default: every key's default)")
    path: str | None = parser.parse_args(arguments).config
    checked = check_with_files(None if path is None else Path(path), os.environ, working_directory(None, "."))
    return write_result(path, checked)
