"""Check of access control: the file of the tokens, secrets of machines, and addresses that others can reach."""

import ipaddress
import os
import stat
from collections.abc import Iterator
from typing import Final

from gateway.auth.tokens import TokenFileError, read_tokens
from gateway.doctor.findings import Finding, Level, error, ok, warning
from gateway.doctor.plant import Plant, listening_ports

#: Advice where there is no token.
_MAKE: Final = "make a token: cynow-gateway token add"


def check_access(plant: Plant) -> Iterator[Finding]:
    """Look at the files with secrets, and at who can reach the ports without one."""
    settings = plant.settings
    if settings.auth is not None:
        yield _check_tokens(plant.path_of(settings.auth.tokens_file))
    elif settings.server.allow or _is_loopback(settings.server.host):
        yield ok("auth", "not set; server.host or server.allow limits who can connect")
    else:
        ports = ", ".join(str(port) for port in listening_ports(settings) if port.key == "server.port")
        yield warning("auth", f"not set: everyone who reaches {ports} can read and commit", "set auth, or server.allow")
    for machine, proofs in settings.machines.items():
        if proofs.secret_file is not None:
            key = f"machines.{machine}.secret_file"
            path = plant.path_of(proofs.secret_file)
            yield _check_secret(key, path, "write the machine's secret into it") or ok(key, f"{path} can be read")
    if settings.database.url_file is not None:
        key, path = "database.url_file", plant.path_of(settings.database.url_file)
        yield _check_secret(key, path, "write the URL into it") or ok(key, f"{path} can be read")


def _check_tokens(path: str) -> Finding:
    key = "auth.tokens_file"
    problem = _check_secret(key, path, _MAKE)
    if problem is not None and problem.level is Level.ERROR:
        return problem
    try:
        tokens = read_tokens(path)
    except TokenFileError as fault:
        return error(key, str(fault), "restore it, or move it away and make new tokens")
    except OSError as fault:
        # It has gone since the check above.
        return error(key, f"{path} cannot be read: {fault.strerror}", _MAKE)
    if problem is None and not tokens:
        return warning(key, f"{path} has no token: only auth.anonymous admits anybody", _MAKE)
    return problem or ok(key, f"{path} can be read")


def _check_secret(key: str, path: str, remedy: str) -> Finding | None:
    """Return the problem with a file that only the gateway should read."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            file.read(1)
    except FileNotFoundError:
        return error(key, f"{path} is missing", remedy)
    except OSError as problem:
        return error(key, f"{path} cannot be read: {problem.strerror}", f"correct {key}, or the file's rights")
    if mode & stat.S_IRWXO:
        return warning(key, f"{path} can be read by everyone on this machine", f"chmod o= {path}")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
