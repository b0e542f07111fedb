"""Which database to connect to, and by which addresses."""

import ipaddress
import re
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

    :param url: any URI of libpq, ``postgresql://...``
    :param name: as which the server knows the connection.
    :ivar parameters: of the connection, hosts by their names.
    :ivar turned: how many hosts are tried last instead of first.
    :raises StoreUnavailable: the URL is not valid.
    """

    def __init__(self, reactor: Any, url: str, name: str) -> None:
        self._reactor = reactor
        try:
            self.parameters: dict[str, str] = {
                "application_name": name[:63],
                **_KEEPALIVE,
                **parse_dsn(url),
                "client_encoding": "UTF8",
            }
        except psycopg2.Error:
            # What it says may quote the password.
            raise StoreUnavailable("not a PostgreSQL URL") from None
        self._names = pool_of(1, "names")
        self.turned = 0

    def start(self) -> None:
        self._names.start()

    def close(self) -> None:
        # A name server may be silent: its thread is not waited for.
        threading.Thread(target=self._names.stop, name="names end", daemon=True).start()

    def turn(self, turned: int) -> None:
        """Begin with the next host from now on, for the first one is silent.

        :param turned: as it was when that one was tried: several connections may find it silent.
        """
        if turned == self.turned:
            self.turned += 1

    async def arguments(self) -> dict[str, str]:
        """Return what to connect with: addresses beside the names of hosts, which libpq would look up and block.

        A host whose name is not known is left out, as long as there is another one.

        :raises OSError: no host's name can be looked up.
        """
        arguments = dict(self.parameters)
        hosts = arguments.get("host", "").split(",")
        if "hostaddr" in arguments or (len(hosts) == 1 and (_is_local(hosts[0]) or not _is_name(hosts[0]))):
            return arguments
        ports = arguments.get("port", "").split(",")
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        triples: list[tuple[str, str, str]] = []
        unknown: OSError | None = None
        for host, port in zip(hosts, ports, strict=True):
            if _is_local(host):
                triples.append((host, "", port))
                continue
            try:
                found: list[str] = await deferToThreadPool(self._reactor, self._names, _addresses, host)
            except OSError as error:
                unknown = OSError(f"the name of host {host} cannot be looked up: {error.strerror}")
                continue
            triples += [(host, address, port) for address in found]
        if not triples:
            raise unknown or OSError("database.url names no host")
        first = self.turned % len(triples)
        triples = triples[first:] + triples[:first]
        for key, values in zip(("host", "hostaddr", "port"), zip(*triples, strict=True), strict=True):
            arguments[key] = ",".join(values)
        return arguments


def url_problem(url: str) -> str:
    """Return what libpq has against a URL; nothing where it is sound. No part of the URL is repeated."""
    if not url.startswith(("postgresql://", "postgres://")):
        return _EXPECTED
    try:
        found = parse_dsn(url)
    except psycopg2.Error as error:
        parameter = _UNKNOWN.search(str(error))
        return f"unknown parameter {parameter[1]}" if parameter is not None else _EXPECTED
    for port in filter(None, found.get("port", "").split(",")):
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            return "not a valid port; expected 1 to 65535"
    hosts, ports = found.get("host", "").split(","), found.get("port", "").split(",")
    if len(ports) not in {1, len(hosts)}:
        return f"{len(ports)} ports for {len(hosts)} hosts; expected one for each, or one for all"
    attributes = found.get("target_session_attrs", "any")
    if attributes not in _SESSION_ATTRIBUTES:
        return f"target_session_attrs is not one of {', '.join(_SESSION_ATTRIBUTES)}"
    return ""


_EXPECTED: Final = "not a PostgreSQL URL; expected postgresql://user:password@host:port/database"

_UNKNOWN: Final = re.compile(r'invalid URI query parameter: "(\w+)"')

_SESSION_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


def _is_name(host: str) -> bool:
    """Return whether a host must be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _is_local(host: str) -> bool:
    """Return whether a host is the folder of a socket, or libpq's own choice."""
    return not host or host.startswith(("/", "@"))


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
