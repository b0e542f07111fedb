"""Check of the ports that the gateway listens on."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import Final

from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import ListeningPort, Plant, listening_ports
from gateway.doctor.processes import described, holders_of_port, is_gateway, users_of_port

_REASONS: Final = {
    errno.EACCES: (
        "this user has no right to listen on it",
        "choose a port above 1023 for {key}, or give the service AmbientCapabilities=CAP_NET_BIND_SERVICE",
    ),
    errno.EADDRNOTAVAIL: ("not an address of this machine", "correct {host_key}; 0.0.0.0 is every address"),
    errno.EAFNOSUPPORT: ("this machine has no addresses of that kind", "correct {host_key}"),
}


def check_ports(plant: Plant) -> Iterator[Finding]:
    """Bind each port for a moment, or name the program that has it."""
    for port in listening_ports(plant.settings):
        if port.number == 0:
            yield ok(port.key, "any free port")
            continue
        try:
            bound = bind(port, is_shared=plant.settings.server.share_ports)
        except socket.gaierror as problem:
            yield error(port.key, f"cannot look up {port.host}: {problem.strerror}", f"correct {port.host_key}")
        except OSError as problem:
            yield _refused(plant, port, problem)
        else:
            bound.close()
            yield _free(plant, port)


def bind(port: ListeningPort, *, is_shared: bool = False) -> socket.socket:
    """Return a socket bound to a port as the gateway would bind it.

    :raises OSError: the port cannot be bound.
    """
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    (*_, address), *_ = socket.getaddrinfo(
        port.host or None, port.number, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _free(plant: Plant, port: ListeningPort) -> Finding:
    if plant.gateway is None:
        return ok(port.key, f"{port} is free")
    if plant.settings.server.share_ports:
        return ok(port.key, f"{port} can be shared with {plant.gateway}")
    return warning(
        port.key,
        f"{port} is free, although {plant.gateway} has other ports of this configuration",
        "restart the gateway, so that it reads this configuration",
    )


def _refused(plant: Plant, port: ListeningPort, problem: OSError) -> Finding:
    if problem.errno != errno.EADDRINUSE:
        number = problem.errno or 0
        reason, remedy = _REASONS.get(number, (os.strerror(number).lower(), "correct {key}"))
        return error(port.key, f"{port}: {reason}", remedy.format(key=port.key, host_key=port.host_key))
    pids = holders_of_port(port.number)
    if plant.gateway is not None and (pids <= plant.gateway.pids or any(map(is_gateway, pids))):
        return ok(port.key, f"{port} is used by {plant.gateway}")
    if pids:
        by = described(pids)
    else:
        users = users_of_port(port.number)
        by = f"a program of user {', '.join(users)}" if users else "another program"
    return error(port.key, f"{port} is in use by {by}", f"end that program, or change {port.key}")
