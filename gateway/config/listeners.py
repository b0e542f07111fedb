"""The listeners of a configuration, and who may connect to each."""

import os
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network

from gateway.config.fields import TlsSettings
from gateway.config.settings import Settings
from gateway.runtime.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Access to one listener.

    :ivar kind: ``http``, ``daq`` or ``scale``.
    :ivar allow: networks that may connect; empty for any.
    :ivar proxies: networks of trusted proxies.
    """

    kind: str
    allow: tuple[IPv4Network | IPv6Network, ...]
    tls: TlsSettings | None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()


def scale_key(settings: Settings, scale_id: str) -> str:
    """Return the configuration key of a scale's section."""
    return f"scales.{scale_id}" if settings.scales else "scale"


def listeners_of(settings: Settings) -> dict[str, ListenerSettings]:
    """Return the listeners by the configuration keys of their sections, such as ``server`` and ``scales.dock-1``."""
    server, daq = settings.server, settings.daq
    found = {
        "server": ListenerSettings("http", server.allow, server.tls, server.trusted_proxies),
        "daq": ListenerSettings("daq", daq.allow, daq.tls),
    }
    for scale_id, line in settings.lines().items():
        if line.listen is not None:
            found[scale_key(settings, scale_id)] = ListenerSettings("scale", line.allow or (), line.tls)
    return found


def tls_files_of(tls: TlsSettings, folder: str) -> TlsFiles:
    """Return the absolute paths of the files of a listener.

    :param folder: base of relative paths.
    """
    return TlsFiles(tls.cert, tls.key, tls.client_ca).located(partial(os.path.join, folder))
