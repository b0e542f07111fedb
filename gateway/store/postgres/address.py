"""Database URL and the network addresses of its hosts."""

import ipaddress
import re
import socket
import threading
from typing import Any, Final

import psycopg2
from psycopg2.extensions import parse_dsn
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as LookupTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from gateway.runtime.threads import pool_of
from gateway.store.interface import StoreUnavailable

#: Settings by which the operating system notices a lost peer; the URL may override them.
_KEEPALIVE: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    # Otherwise libpq would ask a Kerberos server, and block.
    "gssencmode": "disable",
}

#: Maximum seconds for the look-up of a single host, and of one of several hosts, which is then skipped.
_MAX_LOOKUP: Final = 5.0
_MAX_LOOKUP_OF_SEVERAL: Final = 2.0

#: Maximum hosts that are looked up at a time.
_MAX_LOOKUPS: Final = 8


class ServerAddress:
    """Database that ``database.url`` names.

    :param url: any URI of libpq, ``postgresql://...``
    :param name: ``application_name`` of the connections.
    :ivar parameters: connection parameters, with the names of hosts.
    :ivar rotation: number of leading hosts that are tried last instead of first.
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
            # The driver's text may quote the password.
            raise StoreUnavailable("not a PostgreSQL URL") from None
        #: Threads for look-ups: a name server that is silent for one host must not block the look-up of others.
        self._threads = pool_of(min(_MAX_LOOKUPS, self.parameters.get("host", "").count(",") + 1), "names")
        #: Waiting callers by host.
        self._lookups: dict[str, list[Deferred[list[str]]]] = {}
        self.rotation = 0

    def start(self) -> None:
        """Start the threads for look-ups."""
        self._threads.start()

    def close(self) -> None:
        """Stop the threads, without waiting for them: a name server may be silent."""
        threading.Thread(target=self._threads.stop, name="names end", daemon=True).start()

    def rotate(self, rotation: int) -> None:
        """Begin with the next host from now on, because the first one is silent.

        :param rotation: value of ``rotation`` when that host was tried: several connections may find it silent.
        """
        if rotation == self.rotation:
            self.rotation += 1

    async def arguments(self) -> dict[str, str]:
        """Return the connection parameters with the hosts' addresses, because libpq's own look-up would block.

        A host that cannot be looked up, or not in time, is left out if there is another host.

        :raises OSError: none of the hosts' names can be looked up.
        """
        arguments = dict(self.parameters)
        addresses = arguments.get("hostaddr", "").split(",")
        hosts = arguments.get("host", "," * (len(addresses) - 1)).split(",")
        if len(hosts) == 1 and ("hostaddr" in arguments or _is_local(hosts[0]) or not _is_name(hosts[0])):
            return arguments
        if "hostaddr" not in arguments:
            addresses = [""] * len(hosts)
        ports = arguments.get("port", "").split(",")
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        if len(addresses) != len(hosts):
            # The driver reports the mismatch.
            return arguments
        limit = _MAX_LOOKUP if len(hosts) == 1 else _MAX_LOOKUP_OF_SEVERAL
        lookups = [
            succeed([address]) if address or _is_local(host) else self._look_up(host, limit)
            for host, address in zip(hosts, addresses, strict=True)
        ]
        triples: list[tuple[str, str, str]] = []
        problem = OSError("database.url names no host")
        for host, port, lookup in zip(hosts, ports, lookups, strict=True):
            result = await lookup
            if isinstance(result, OSError):
                problem = result
            else:
                triples += [(host, address, port) for address in result]
        if not triples:
            raise problem
        first = self.rotation % len(triples)
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
            deferToThreadPool(self._reactor, self._threads, _find_addresses, host).addBoth(self._finish_lookup, host)
        return done.addTimeout(limit, self._reactor).addErrback(_lookup_error, host, limit)

    def _finish_lookup(self, outcome: "list[str] | Failure", host: str) -> None:
        for done in self._lookups.pop(host):
            if isinstance(outcome, Failure):
                done.errback(Failure(outcome.value))
            else:
                done.callback(outcome)


def url_problem(url: str) -> str:
    """Return why libpq would not accept a URL, without any part of it; an empty string if it would."""
    if not url.startswith(("postgresql://", "postgres://")):
        return _EXPECTED
    try:
        parameters = parse_dsn(url)
    except psycopg2.Error as error:
        # After a slash in a password, the rest of the password looks like parameters.
        parameter = _UNKNOWN_PARAMETER.search(str(error)) if "@" not in url.partition("?")[2] else None
        return f"unknown parameter {parameter[1]}" if parameter is not None else _EXPECTED
    for port in filter(None, parameters.get("port", "").split(",")):
        if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            return "not a valid port; expected 1 to 65535"
    hosts, ports = parameters.get("host", "").split(","), parameters.get("port", "").split(",")
    if len(ports) not in {1, len(hosts)}:
        return f"{len(ports)} ports for {len(hosts)} hosts; expected one port for each host, or one for all"
    attributes = parameters.get("target_session_attrs", "any")
    if attributes not in _SESSION_ATTRIBUTES:
        return f"target_session_attrs is not one of {', '.join(_SESSION_ATTRIBUTES)}"
    return ""


_EXPECTED: Final = "not a PostgreSQL URL; expected postgresql://user:password@host:port/database"

_UNKNOWN_PARAMETER: Final = re.compile(r'invalid URI query parameter: "(\w+)"')

_SESSION_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


def _is_name(host: str) -> bool:
    """Return whether a host is a name, which must be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _is_local(host: str) -> bool:
    """Return whether a host is the directory of a Unix socket, or empty, so that libpq chooses."""
    return not host or host.startswith(("/", "@"))


def _lookup_error(failure: Failure, host: str, limit: float) -> OSError:
    # UnicodeError is raised for names that cannot be valid host names.
    failure.trap(OSError, UnicodeError, LookupTimeout)
    why = f"no answer within {limit:g} s" if failure.check(LookupTimeout) else getattr(failure.value, "strerror", None)
    return OSError(f"cannot look up host {host} in database.url: {why or 'not a valid host name'}")


def _find_addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
