"""Admission of connections by the addresses of their peers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocolFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.runtime.networks import NetworkSet, plain_host
from gateway.runtime.tls import TlsContext

#: Maximum connections at a time that are told that their address has too many; others are closed at once.
_MAX_TOLD: Final = 100

_NO_NETWORKS: Final = NetworkSet()


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """Rules of one listener.

    :ivar allow: networks that may connect; empty for any.
    :ivar proxies: networks of trusted proxies, which may always connect, and as often as they like.
    :ivar per_address: maximum connections of one address.
    :ivar connections: maximum connections; the factory enforces it, and here it bounds TLS handshakes.
    """

    allow: NetworkSet = _NO_NETWORKS
    proxies: NetworkSet = _NO_NETWORKS
    per_address: int = 5000
    connections: int = 20_000


class Admission:
    """Rules of one listener, and its open connections by address.

    :param kind: label of the metrics: ``http``, ``daq`` or ``scale``.
    :param key: configuration key of the section with ``allow``, for log lines.
    """

    def __init__(self, kind: str, key: str, counters: Counters, warnings: LimitedLog, rules: AdmissionRules) -> None:
        self.key = key
        self._rules = rules
        self._warnings = warnings
        self._refused = counters.connections_refused.labels(kind)
        self._not_allowed = counters.connections_refused.labels("not_allowed")
        #: Open connections, and the addresses of their peers; ``None`` for sockets in the file system.
        self._open: dict[Any, str | None] = {}
        #: Numbers of open connections, by address.
        self._counts: dict[str, int] = {}

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def room(self) -> int:
        """Connections until the limit of the listener."""
        return self._rules.connections - len(self._open)

    def count_of(self, host: str) -> int:
        """Return the number of open connections of an address."""
        return self._counts.get(plain_host(host), 0)

    def update(self, rules: AdmissionRules) -> None:
        """Use other rules, and close the connections of addresses that are no longer allowed."""
        self._rules = rules
        for transport, host in list(self._open.items()):
            if host is not None and not self._is_allowed(host):
                self._refuse_address(host, f"{host} is disconnected")
                transport.abortConnection()

    def adopt(self, before: "Admission") -> None:
        """Take over the open connections of a listener that has this key now; no others may have been made."""
        self._open, self._counts = before._open, before._counts

    def _is_allowed(self, host: str) -> bool:
        rules = self._rules
        return not rules.allow or host in rules.allow or host in rules.proxies

    def is_allowed(self, host: str) -> bool:
        """Return whether an address may connect; count and log it otherwise."""
        allowed = self._is_allowed(host)
        if not allowed:
            self._refuse_address(host, f"connection of {host} refused")
        return allowed

    def _refuse_address(self, host: str, what: str) -> None:
        self._not_allowed.inc()
        self._warnings.warn(
            f"not_allowed {self.key} {host}",
            "{key}.allow: {what}: its address is not in one of these networks",
            key=self.key,
            what=what,
        )

    def excess(self, host: str) -> str | None:
        """Return, if an address has as many connections as it may, the limit as text for a log line."""
        limit = self._rules.per_address
        if self._counts.get(host, 0) < limit or host in self._rules.proxies:
            return None
        return f"limits.connections_per_address ({limit}) is reached"

    def refuse_excess(self, host: str, limit: str) -> None:
        """Count and log a connection that is closed because its address has too many."""
        self._refused.inc()
        self._warnings.warn(
            f"per_address {self.key} {host}",
            "{key}: connection of {host} refused: {limit}",
            key=self.key,
            host=host,
            limit=limit,
        )

    def track(self, transport: Any, host: str | None, ended: Callable[[], None] | None = None) -> None:
        """Count a connection until its transport has lost it, whatever protocols use it until then.

        :param ended: called when the transport has lost it.
        """
        self._open[transport] = host
        if host is not None:
            self._counts[host] = self._counts.get(host, 0) + 1
        connection_lost: Callable[[Failure], None] = transport.connectionLost

        def lost(reason: Failure) -> None:
            if transport in self._open:
                # The attribute refers to the transport, which could not be freed at once otherwise.
                del transport.connectionLost
                self._forget(transport)
                if ended is not None:
                    ended()
            connection_lost(reason)

        transport.connectionLost = lost

    def _forget(self, transport: Any) -> None:
        host = self._open.pop(transport)
        if host is None:
            return
        count = self._counts[host] - 1
        if count:
            self._counts[host] = count
        else:
            del self._counts[host]


@implementer(IProtocolFactory, ILoggingContext)
class AdmittingFactory:
    """A factory that admits connections by their address, and adds TLS if the listener has it.

    The end of a connection is noticed at its transport: a wrapper around its protocol would cost some time for each
    read, and an HTTP connection may get another protocol.

    :param refuse: builds the protocol that tells a client that its address has too many connections; by default it is
        closed at once. Its arguments are the address and the limit.
    """

    noisy = False

    def __init__(
        self,
        factory: Any,
        admission: Admission,
        tls: TlsContext | None = None,
        refuse: Callable[[IAddress | None, str], Any] | None = None,
    ) -> None:
        self.factory = factory
        self._admission = admission
        self._tls = tls
        self._refuse = refuse
        #: Connections that are being told.
        self._told = 0

    def doStart(self) -> None:
        self.factory.doStart()

    def doStop(self) -> None:
        self.factory.doStop()

    def logPrefix(self) -> str:
        return type(self.factory).__name__

    def buildProtocol(self, addr: IAddress | None) -> Any:
        admission = self._admission
        # A socket in the file system has no host.
        host: str | None = getattr(addr, "host", None)
        if host is not None:
            host = plain_host(host)
            if not admission.is_allowed(host):
                return None
            limit = admission.excess(host)
            if limit is not None:
                return self._tell(addr, host, limit)
        return self._built(addr, host, self.factory.buildProtocol)

    def _tell(self, addr: IAddress | None, host: str, limit: str) -> Any:
        """Refuse a connection of an address that has too many; return the protocol that says so, if any."""
        refuse = self._refuse
        if refuse is None or self._told >= _MAX_TOLD:
            self._admission.refuse_excess(host, limit)
            return None
        return self._built(addr, host, lambda addr: refuse(addr, limit), is_told=True)

    def _built(
        self, addr: IAddress | None, host: str | None, build: Callable[[Any], Any], is_told: bool = False
    ) -> Any:
        layer = None if self._tls is None else self._tls.layer
        protocol = build(addr) if layer is None else layer.wrap(addr, build)
        if protocol is None:
            return None
        make_connection = protocol.makeConnection

        def made(transport: Any) -> None:
            del protocol.makeConnection
            if is_told:
                self._told += 1
            self._admission.track(transport, host, self._has_been_told if is_told else None)
            make_connection(transport)

        vars(protocol)["makeConnection"] = made
        return protocol

    def _has_been_told(self) -> None:
        self._told -= 1
