"""Check of the files of listeners with TLS."""

import math
import os
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.config.fields import TlsSettings
from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import Plant
from gateway.runtime.tls import WARNING_DAYS


def check_tls(plant: Plant) -> Iterator[Finding]:
    """Load the files of each listener, and look at the end of their validity."""
    settings = plant.settings
    listeners = {"server.tls": settings.server.tls, "daq.tls": settings.daq.tls, "scale.tls": settings.scale.tls}
    listeners |= {f"scales.{scale_id}.tls": line.tls for scale_id, line in settings.scales.items()}
    for key, tls in listeners.items():
        if tls is not None:
            yield from _check_files(plant, key, tls)


def server_context(plant: Plant, tls: TlsSettings) -> ssl.SSLContext:
    """Return the context of a listener.

    :raises OSError: the files cannot be read, or do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # With a password, an encrypted key fails instead of asking at the terminal.
    context.load_cert_chain(plant.path_of(tls.cert), plant.path_of(tls.key), password=lambda: "")
    if tls.client_ca is not None:
        context.load_verify_locations(plant.path_of(tls.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_files(plant: Plant, key: str, tls: TlsSettings) -> Iterator[Finding]:
    paths = {"cert": plant.path_of(tls.cert), "key": plant.path_of(tls.key)}
    if tls.client_ca is not None:
        paths["client_ca"] = plant.path_of(tls.client_ca)
    for name, path in paths.items():
        try:
            Path(path).read_bytes()
        except OSError as problem:
            remedy = f"correct {key}.{name}, or the file's rights"
            yield error(f"{key}.{name}", f"{path} cannot be read: {problem.strerror}", remedy)
            return
    try:
        server_context(plant, tls)
    except ssl.SSLError as problem:
        reason = (problem.reason or "not PEM").replace("_", " ").lower()
        remedy = "use the key, without a password, that the certificate was made for, both in PEM"
        yield error(key, f"{paths['cert']} and {paths['key']} cannot be used: {reason}", remedy)
        return
    if os.stat(paths["key"]).st_mode & (stat.S_IRWXO):
        yield warning(f"{key}.key", f"{paths['key']} can be read by everyone", f"chmod o= {paths['key']}")
    for name in ("cert", "client_ca"):
        if name in paths:
            yield _check_end(f"{key}.{name}", paths[name])


def _check_end(key: str, path: str) -> Finding:
    from cryptography.x509 import load_pem_x509_certificates

    end = min(each.not_valid_after_utc for each in load_pem_x509_certificates(Path(path).read_bytes()))
    days = math.floor((end - datetime.now(UTC)).total_seconds() / 86400)
    if days < 0:
        return error(key, f"{path} has expired on {end:%Y-%m-%d}", "renew it")
    if days < WARNING_DAYS:
        return warning(key, f"{path} expires on {end:%Y-%m-%d}, in {days} days", "renew it")
    return ok(key, f"{path} fits and is valid until {end:%Y-%m-%d}")
