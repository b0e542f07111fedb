"""Check that the host names in the configuration can be looked up."""

import ipaddress
import socket
from collections.abc import Iterator
from functools import partial

from gateway.config.endpoints import tcp_address
from gateway.doctor.findings import Finding, error, ok, results_in_time, warning
from gateway.doctor.plant import PATIENCE, Plant, listening_ports
from gateway.doctor.urls import database_hosts


def check_names(plant: Plant) -> Iterator[Finding]:
    """Look up every host name, all at once."""
    hosts = [(key, host) for key, host in _hosts(plant) if _is_name(host)]
    if not hosts:
        yield ok("names", "the configuration has addresses only; nothing to look up")
        return
    lookups = {host: partial(_look_up, host) for _, host in hosts}
    found = results_in_time(lookups, PATIENCE)
    for key, host in dict.fromkeys(hosts):
        addresses = found[host]
        if not isinstance(addresses, Exception):
            yield ok(key, f"{host} is {', '.join(addresses[:4])}")
            continue
        reason = getattr(addresses, "strerror", None) or str(addresses) or "not a valid host name"
        seen = f"cannot look up {host}: {reason}"
        remedy = f"correct {key}, or add the name to /etc/hosts or to the name server"
        # Clients look up the names of the gateway, and may ask another name server.
        yield (warning if key == "server.names" else error)(key, seen, remedy)


def _hosts(plant: Plant) -> Iterator[tuple[str, str]]:
    """Yield the key and the host of each connection."""
    settings = plant.settings
    for port in listening_ports(settings):
        yield port.host_key, port.host
    for scale_id, line in settings.lines().items():
        address = None if line.connect is None else tcp_address("connect", line.connect)
        if address is not None:
            yield plant.scale_key(scale_id), address[0]
    for host in database_hosts(plant):
        yield "database.url", host
    for name in settings.server.names:
        yield "server.names", name


def _is_name(host: str) -> bool:
    if not host or host.startswith(("/", "@", "[")):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
