"""The TLS layer of a listener, with OpenSSL: certificates, handshakes and transports."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLServerConnectionCreator,
    IProtocol,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.runtime.tls_files import TlsError, TlsFiles

#: Maximum seconds of a handshake.
HANDSHAKE_SECONDS: Final = 10.0

#: Handshakes that may always be under way at the limit of connections; above it, the oldest ends for a new one.
MIN_HANDSHAKES: Final = 64

#: Suites of TLS 1.2: with forward secrecy and authenticated encryption. Those of TLS 1.3 all have both.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"

#: Maximum bytes of a file in PEM.
_MAX_FILE: Final = 1024 * 1024

#: Beginnings of HTTP requests, and the reason for the log.
_METHODS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI ")
_PLAIN_HTTP: Final = "a plain HTTP request; use https://, this port has TLS"

Build = Callable[[IAddress | None], Any]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Certificate, key and authorities of one listener, ready for connections.

    :ivar expires: end of the certificate's validity.
    """

    context: SSL.Context
    expires: datetime


def load_credentials(key: str, files: TlsFiles, protocols: tuple[bytes, ...] = ()) -> Credentials:
    """Read and check the files of a listener.

    :param key: configuration key of the section.
    :param protocols: names of the protocol for ALPN.
    :raises TlsError: a file is missing or not valid, or the key does not belong to the certificate.
    """
    chain = _certificates(f"{key}.cert", files.cert)
    private = _private_key(f"{key}.key", files.key)
    if private.public_key() != chain[0].public_key():
        raise TlsError(f"{key}.key", f"{files.key} does not belong to the certificate in {files.cert}")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_cipher_list(_CIPHERS)
    # Saves 34 KiB of each connection that is idle.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    try:
        context.use_certificate(chain[0])
        for intermediate in chain[1:]:
            context.add_extra_chain_cert(intermediate)
        context.use_privatekey(private)
    except SSL.Error as error:
        # OpenSSL refuses, for example, keys that are too short.
        raise TlsError(f"{key}.cert", f"{files.cert}: {_reason_of(error)}") from error
    if protocols:
        context.set_alpn_select_callback(lambda _, offered: _choose(protocols, offered))
    if files.client_ca is not None:
        _require_certificates(context, _certificates(f"{key}.client_ca", files.client_ca))
    return Credentials(context, chain[0].not_valid_after_utc)


def _read(key: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        hint = "; the user of the gateway must be able to read it" if isinstance(error, PermissionError) else ""
        raise TlsError(key, f"{path}: {os.strerror(error.errno or 0)}{hint}") from error


def _certificates(key: str, path: str) -> list[x509.Certificate]:
    text = _read(key, path)
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise TlsError(key, f"{path}: it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise TlsError(key, f"{path}: not a valid certificate: {str(error).partition(chr(10))[0]}") from error


def _private_key(key: str, path: str) -> Any:
    text = _read(key, path)
    try:
        # Without a password, an encrypted key is an error; OpenSSL would ask for it at the terminal.
        private = load_pem_private_key(text, None)
    except TypeError as error:
        raise TlsError(key, f"{path}: the key is encrypted; store it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TlsError(key, f"{path}: it holds no valid private key in PEM") from error
    if not isinstance(private, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey):
        raise TlsError(key, f"{path}: not an RSA, EC, Ed25519 or Ed448 key")
    return private


def _choose(protocols: tuple[bytes, ...], offered: list[bytes]) -> Any:
    return next((name for name in protocols if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)


def _require_certificates(context: SSL.Context, authorities: list[x509.Certificate]) -> None:
    """Require a certificate of one of these authorities of each client."""
    store = context.get_cert_store()
    if store is None:
        raise RuntimeError("the context has no store of certificates")
    # An intermediate authority may be trusted without its root.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
        context.add_client_ca(authority)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _note_verification)
    # A resumed session would not be verified again.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)


def _note_verification(connection: SSL.Connection, _: object, error: int, __: int, ok: int) -> bool:
    if not ok:
        connection.set_app_data(error)
    return bool(ok)


class TlsTransport(BufferingTLSTransport):
    """TLS transport that closes connections as a TCP transport does."""

    factory: "TlsLayer"
    transport: Any

    def makeConnection(self, transport: Any) -> None:
        if self.factory.plain_answer is not None:
            # Only for the first read: later ones go to the method of the class.
            vars(self)["dataReceived"] = self._receive_first
        super().makeConnection(transport)

    def _receive_first(self, data: bytes) -> None:
        del self.dataReceived
        handshake, answer = self.wrappedProtocol, self.factory.plain_answer
        if answer is None or not data.startswith(_METHODS) or not isinstance(handshake, _Handshake):
            self.dataReceived(data)
        elif handshake.refuse(_PLAIN_HTTP):
            self.transport.write(answer())
            self.transport.loseConnection()

    def loseConnection(self) -> None:
        """Send everything, and close; do not wait for the client to confirm it."""
        if not self.connected:
            return
        # Otherwise nothing would be closed while a producer, such as a WebSocket, is registered.
        self.unregisterProducer()
        super().loseConnection()
        self.transport.loseConnection()

    def loseWriteConnection(self) -> None:
        """Send everything, then tell the client that nothing follows; go on reading until it closes."""
        if self.connected:
            super().loseConnection()

    def abortConnection(self) -> None:
        if self.connected:
            super().abortConnection()

    def unregisterProducer(self) -> None:
        if self.connected:
            super().unregisterProducer()


@implementer(IOpenSSLServerConnectionCreator)
class TlsLayer(TLSMemoryBIOFactory):
    """Builder of the TLS transports of one listener.

    The protocol above is built once the handshake has succeeded, so nothing is known of a client before it.

    :param report: called with the address and the reason of each handshake that fails.
    :param room: returns how many more connections the listener's limit allows, handshakes included.
    :param plain_answer: returns the answer to an HTTP request without TLS.
    :ivar credentials: certificate for new connections.
    """

    protocol = TlsTransport

    def __init__(
        self,
        reactor: Any,
        credentials: Credentials,
        report: Callable[[Any, str], None],
        room: Callable[[], int],
        plain_answer: Callable[[], bytes] | None = None,
    ) -> None:
        super().__init__(self, False, Factory(), reactor)
        self.reactor = reactor
        self.credentials = credentials
        self.report = report
        self._room = room
        self.plain_answer = plain_answer
        #: Handshakes that are under way, the oldest first.
        self.handshakes: dict[_Handshake, None] = {}

    def wrap(self, address: IAddress | None, build: Build) -> TlsTransport:
        """Return the transport of a new connection.

        :param build: builds the protocol above it, or returns ``None`` to close the connection.
        """
        if len(self.handshakes) >= MIN_HANDSHAKES and self._room() <= 0:
            next(iter(self.handshakes)).end("limits.connections is reached, and a newer connection takes its place")
        return TlsTransport(self, _Handshake(self, address, build))

    def serverConnectionForTLS(self, _: object) -> SSL.Connection:
        # Connections that are open go on with the credentials that they began with.
        return SSL.Connection(self.credentials.context, None)


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Protocol of a connection until its handshake has succeeded."""

    transport: Any

    def __init__(self, layer: TlsLayer, address: IAddress | None, build: Build) -> None:
        self._layer = layer
        self._address = address
        self._build = build
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._layer.handshakes[self] = None
        seconds = HANDSHAKE_SECONDS
        self._deadline = self._layer.reactor.callLater(seconds, self.end, f"it was not complete within {seconds:g} s")

    def handshakeCompleted(self) -> None:
        if not self._finish():
            return
        protocol: IProtocol | None = self._build(self._address)
        if protocol is None:
            self.transport.abortConnection()
            return
        self.transport.wrappedProtocol = protocol
        protocol.makeConnection(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.refuse(_failure_reason(reason.value, self.transport.getHandle().get_app_data()))

    def end(self, reason: str) -> None:
        """Close the connection before its handshake is complete."""
        if self.refuse(reason):
            self.transport.abortConnection()

    def refuse(self, reason: str) -> bool:
        """Count and log a handshake that fails; return false if it had ended before."""
        is_open = self._finish()
        if is_open:
            self._layer.report(self._address, reason)
        return is_open

    def _finish(self) -> bool:
        """Stop the deadline; return false if the handshake had ended before."""
        if self._deadline is None:
            return False
        if self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        del self._layer.handshakes[self]
        return True


#: Reasons of OpenSSL, or the beginnings of them, and the texts for an operator.
_REASONS: Final = (
    ("http request", _PLAIN_HTTP),
    ("https proxy request", _PLAIN_HTTP),
    ("peer did not return a certificate", "the client sent no certificate, which client_ca requires"),
    ("unsupported protocol", "the client offers only TLS before 1.2"),
    ("no shared cipher", "the client offers no cipher suite that the gateway accepts"),
    ("no suitable signature algorithm", "the client accepts no signature of the gateway's kind of key"),
    ("wrong version number", "not TLS; this port has TLS"),
    ("unknown protocol", "not TLS; this port has TLS"),
    ("packet length too long", "not TLS; this port has TLS"),
    ("record layer failure", "not TLS; this port has TLS"),
)

#: What clients say that do not accept the gateway's certificate.
_NOT_TRUSTED: Final = ("unknown ca", "bad certificate", "certificate unknown", "certificate expired")

#: Results of OpenSSL's verification of a certificate.
_VERIFICATIONS: Final = {
    9: "it is not valid yet",
    10: "it has expired",
    18: "it is self-signed, and not in client_ca",
    19: "it was issued by an authority that is not in client_ca",
    20: "it was issued by an authority that is not in client_ca",
    21: "it was issued by an authority that is not in client_ca",
    26: "it is not a certificate for clients",
    79: "its authority is not valid",
}


def _reason_of(error: SSL.Error) -> str:
    """Return OpenSSL's own text of an error."""
    details = error.args[0] if error.args and isinstance(error.args[0], list | tuple) else ()
    texts = [str(detail[-1]) for detail in details if detail]
    return next((text for text in texts if text), "") or str(error) or type(error).__name__


def _failure_reason(error: BaseException | None, verification: Any) -> str:
    """Return why a handshake failed.

    :param verification: OpenSSL's result of a certificate that was refused; ``None`` if there was none.
    """
    if not isinstance(error, SSL.Error):
        return "the connection was closed before it was complete"
    if isinstance(verification, int):
        why = _VERIFICATIONS.get(verification, f"OpenSSL's verification error {verification}")
        return f"the client's certificate was refused: {why}"
    text = _reason_of(error)
    for beginning, reason in _REASONS:
        if text.startswith(beginning):
            return reason
    if "alert" in text and any(reason in text for reason in _NOT_TRUSTED):
        return f"the client does not trust the certificate ({text})"
    return text
