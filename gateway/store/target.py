"""Which database to connect to, and by which addresses."""

import ipaddress
import socket
import threading
from typing import Any, Final

import psycopg2
from psycopg2.extensions import parse_dsn
from twisted.internet.threads import deferToThreadPool

from gateway.store.interface import StoreUnavailable
from gateway.threads import pool_of

#: The operating system's own ways to notice a peer that is gone; they may be set otherwise in the URL.
_KEEPALIVE: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    # It would ask a Kerberos server, and wait.
    "gssencmode": "disable",
}


class Target:
    """A database as ``database.url`` says it.

    :param url: ``postgresql://...``
    :param name: as which the server knows the connection.
    :raises StoreUnavailable: the URL is none.
    """

    def __init__(self, reactor: Any, url: str, name: str) -> None:
        self._reactor = reactor
        try:
            self._arguments: dict[str, str] = {
                "application_name": name[:63],
                **_KEEPALIVE,
                **parse_dsn(url),
                "client_encoding": "UTF8",
            }
        except psycopg2.Error:
            # What it says may quote the password.
            raise StoreUnavailable("it is no URL of PostgreSQL") from None
        self._names = pool_of(1, "names")

    def start(self) -> None:
        self._names.start()

    def close(self) -> None:
        # A name server may be silent: its thread is not waited for.
        threading.Thread(target=self._names.stop, name="names end", daemon=True).start()

    async def arguments(self) -> dict[str, str]:
        """What to connect with: addresses beside the names of hosts, which libpq would look up and block meanwhile."""
        arguments = dict(self._arguments)
        hosts = arguments.get("host", "").split(",")
        if "hostaddr" in arguments or not any(map(_is_name, hosts)) or any(map(_is_local, hosts)):
            return arguments
        ports = arguments.get("port", "").split(",")
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        triples = []
        for host, port in zip(hosts, ports, strict=True):
            found: list[str] = await deferToThreadPool(self._reactor, self._names, _addresses, host)
            triples += [(host, address, port) for address in found]
        for key, values in zip(("host", "hostaddr", "port"), zip(*triples, strict=True), strict=True):
            arguments[key] = ",".join(values)
        return arguments


def _is_name(host: str) -> bool:
    """Whether a host must be looked up: it is no address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _is_local(host: str) -> bool:
    """Whether a host is the folder of a socket, or libpq's own choice."""
    return not host or host.startswith(("/", "@"))


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
