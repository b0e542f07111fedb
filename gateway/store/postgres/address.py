"""Which database to connect to, and by which addresses."""

import ipaddress
import re
import socket
import threading
from typing import Any, Final

import psycopg2
from psycopg2.extensions import parse_dsn
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from gateway.runtime.threads import pool_of
from gateway.store.interface import StoreUnavailable

#: The operating system's own ways to notice a peer that is gone; they may be set otherwise in the URL.
_KEEPALIVE: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    # It would ask a Kerberos server, and wait.
    "gssencmode": "disable",
}

#: Seconds for the look-up of the only host, and of one of several hosts, which is then skipped.
_ALONE: Final = 5.0
_AMONG_OTHERS: Final = 2.0

#: Maximum hosts that are looked up at a time.
_LOOKUPS: Final = 8


class ServerAddress:
    """A database as ``database.url`` says it.

    :param url: any URI of libpq, ``postgresql://...``
    :param name: as which the server knows the connection.
    :ivar parameters: connection parameters, with the names of hosts.
    :ivar turned: number of leading hosts that are tried last instead of first.
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
        #: Threads for look-ups: a name server that is silent for one host must not block the look-up of others.
        self._names = pool_of(min(_LOOKUPS, self.parameters.get("host", "").count(",") + 1), "names")
        #: Waiting callers by host.
        self._lookups: dict[str, list[Deferred[list[str]]]] = {}
        self.turned = 0

    def start(self) -> None:
        self._names.start()

    def close(self) -> None:
        # A name server may be silent: its thread is not waited for.
        threading.Thread(target=self._names.stop, name="names end", daemon=True).start()

    def turn(self, turned: int) -> None:
        """Begin with the next host from now on, because the first one is silent.

        :param turned: value of ``turned`` when that host was tried: several connections may find it silent.
        """
        if turned == self.turned:
            self.turned += 1

    async def arguments(self) -> dict[str, str]:
        """Return the connection parameters, with the hosts' addresses: libpq's own look-up would block.

        A host with a name that is unknown, or not found in time, is left out if there is another host.

        :raises OSError: none of the hosts' names can be looked up.
        """
        arguments = dict(self.parameters)
        known = arguments.get("hostaddr", "").split(",")
        hosts = arguments.get("host", "," * (len(known) - 1)).split(",")
        if len(hosts) == 1 and ("hostaddr" in arguments or _is_local(hosts[0]) or not _is_name(hosts[0])):
            return arguments
        if "hostaddr" not in arguments:
            known = [""] * len(hosts)
        ports = arguments.get("port", "").split(",")
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        if len(known) != len(hosts):
            # The driver reports the mismatch.
            return arguments
        limit = _ALONE if len(hosts) == 1 else _AMONG_OTHERS
        lookups = [
            succeed([address]) if address or _is_local(host) else self._look_up(host, limit)
            for host, address in zip(hosts, known, strict=True)
        ]
        triples: list[tuple[str, str, str]] = []
        unknown = OSError("database.url names no host")
        for host, port, lookup in zip(hosts, ports, lookups, strict=True):
            found = await lookup
            if isinstance(found, OSError):
                unknown = found
            else:
                triples += [(host, address, port) for address in found]
        if not triples:
            raise unknown
        first = self.turned % len(triples)
        triples = triples[first:] + triples[:first]
        for key, values in zip(("host", "hostaddr", "port"), zip(*triples, strict=True), strict=True):
            arguments[key] = ",".join(values)
        return arguments

    def _look_up(self, host: str, limit: float) -> "Deferred[list[str] | OSError]":
        """Look up a host in a thread; fires with its addresses, or with the error.

        Concurrent calls for one host share one look-up.

        :param limit: maximum wait, in seconds.
        """
        done: Deferred[list[str]] = Deferred(lambda cancelled: self._lookups[host].remove(cancelled))
        if host in self._lookups:
            self._lookups[host].append(done)
        else:
            self._lookups[host] = [done]
            deferToThreadPool(self._reactor, self._names, _addresses, host).addBoth(self._looked_up, host)
        return done.addTimeout(limit, self._reactor).addErrback(_unknown, host, limit)

    def _looked_up(self, outcome: "list[str] | Failure", host: str) -> None:
        for done in self._lookups.pop(host):
            if isinstance(outcome, Failure):
                done.errback(Failure(outcome.value))
            else:
                done.callback(outcome)


def url_problem(url: str) -> str:
    """Return libpq's objection to a URL, or an empty string. No part of the URL is repeated."""
    if not url.startswith(("postgresql://", "postgres://")):
        return _EXPECTED
    try:
        found = parse_dsn(url)
    except psycopg2.Error as error:
        # After a slash in a password, the rest of the password looks like parameters.
        parameter = _UNKNOWN.search(str(error)) if "@" not in url.partition("?")[2] else None
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
    """Return whether a host is a name that must be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _is_local(host: str) -> bool:
    """Return whether a host is the folder of a socket, or empty, which leaves the choice to libpq."""
    return not host or host.startswith(("/", "@"))


def _unknown(failure: Failure, host: str, limit: float) -> OSError:
    # UnicodeError is raised for names that cannot be valid host names.
    failure.trap(OSError, UnicodeError, TookTooLong)
    why = f"no answer within {limit:g} s" if failure.check(TookTooLong) else getattr(failure.value, "strerror", None)
    return OSError(f"the name of host {host} cannot be looked up: {why or 'not a valid name'}")


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
