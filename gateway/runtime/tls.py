"""TLS of listeners, and the names in certificates of clients.

OpenSSL is imported only by a gateway that uses TLS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

if TYPE_CHECKING:
    from gateway.runtime.clock import WallClock
    from gateway.runtime.limited_log import LimitedLog
    from gateway.runtime.metrics import Counters
    from gateway.runtime.tls_files import TlsFiles
    from gateway.runtime.tls_layer import Credentials, TlsLayer

log = Logger()

#: Days before the end of a certificate at which warnings begin.
WARNING_DAYS: Final = 21

_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class TlsReports:
    """Log and metrics of the TLS of all listeners."""

    clock: WallClock
    counters: Counters
    warnings: LimitedLog


class TlsContext:
    """TLS of one listener; it can be changed, switched on and switched off while connections are open.

    :param listener: value of the label of metrics.
    :param key: configuration key of the section, such as ``server.tls``.
    :param protocols: names of the protocol for ALPN, if it has any.
    :param room: returns how many more connections the listener's limit allows, handshakes included.
    :ivar plain_answer: returns the answer to an HTTP request without TLS; ``None`` if there is no HTTP.
    :ivar layer: layer that new connections get; ``None`` without TLS.
    """

    def __init__(
        self,
        reactor: Any,
        listener: str,
        key: str,
        reports: TlsReports,
        protocols: tuple[bytes, ...] = (),
        room: Callable[[], int] = lambda: 1,
    ) -> None:
        self.listener = listener
        self.key = key
        self.layer: TlsLayer | None = None
        self.plain_answer: Callable[[], bytes] | None = None
        self._reactor = reactor
        self._reports = reports
        self.protocols = protocols
        self._room = room
        self._failures = reports.counters.tls_failures.labels(listener)

    def use(self, credentials: Credentials | None) -> None:
        """Use what :func:`load_files` returned for new connections; open ones stay as they are."""
        gauge = self._reports.counters.tls_expiry
        if credentials is None:
            if self.layer is not None:
                gauge.remove(self.listener)
            self.layer = None
            return
        if self.layer is None:
            from gateway.runtime.tls_layer import TlsLayer

            self.layer = TlsLayer(self._reactor, credentials, self._report, self._room, self.plain_answer)
        else:
            self.layer.credentials = credentials
        gauge.labels(self.listener).set(credentials.expires.timestamp())
        self.warn_of_expiry()

    @property
    def problem(self) -> str | None:
        """The problem of a certificate that has expired, or will do so soon; otherwise ``None``."""
        if self.layer is None:
            return None
        expires = self.layer.credentials.expires
        left = (expires - datetime.fromtimestamp(self._reports.clock.wall(), UTC)).total_seconds()
        if left >= WARNING_DAYS * _DAY:
            return None
        when = f"{expires:%Y-%m-%d %H:%M} UTC"
        days = math.ceil(left / _DAY)
        state = f"has expired ({when})" if left <= 0 else f"expires within {days} day{'s'[: days - 1]} ({when})"
        return f"{self.key}.cert: the certificate {state}; renew it, then reload the gateway (SIGHUP)"

    def warn_of_expiry(self) -> None:
        """Log a warning if the certificate has expired, or will do so soon."""
        if (problem := self.problem) is not None:
            log.warn("{problem}", problem=problem)

    def _report(self, peer: Any, reason: str) -> None:
        """Count and log a failed handshake."""
        self._failures.inc()
        host, port = getattr(peer, "host", None), getattr(peer, "port", None)
        self._reports.warnings.warn(
            f"handshake {self.listener} {host}",
            "{key}: TLS handshake with {peer} failed: {reason}",
            key=self.key,
            peer=f"{host}:{port}" if host is not None else str(peer),
            reason=reason,
        )


def load_files(key: str, files: TlsFiles | None, protocols: tuple[bytes, ...] = ()) -> Credentials | None:
    """Read and check the files of a listener; this may be called in any thread, and changes nothing.

    :param key: configuration key of the section, such as ``server.tls``.
    :param protocols: names of the protocol for ALPN, if it has any.
    :raises TlsError: a file is missing or not valid, or the key does not belong to the certificate.
    """
    if files is None:
        return None
    from gateway.runtime.tls_layer import load_credentials

    return load_credentials(key, files, protocols)


def client_names(transport: Any) -> frozenset[str]:
    """Return the common name and the DNS names in the verified certificate of a client.

    Without TLS, or if clients need no certificate (``client_ca``), it is empty.
    """
    get_certificate = getattr(transport, "getPeerCertificate", None)
    certificate = None if get_certificate is None else get_certificate()
    if certificate is None:
        return frozenset()
    from cryptography import x509

    found = certificate.to_cryptography()
    names = {str(name.value) for name in found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)}
    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        # A certificate may have extensions that cannot be parsed, although OpenSSL accepts it.
        return frozenset(names)
    return frozenset(names.union(alternatives.get_values_for_type(x509.DNSName)))
