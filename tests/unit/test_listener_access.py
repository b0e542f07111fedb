"""Admission and TLS of all listeners, built from settings and changed while the gateway runs."""

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from gateway.assembly.listener_access import ListenerAccess
from gateway.assembly.parts import Paths
from gateway.config.listeners import listeners_of
from gateway.config.settings import ServerSettings, Settings
from gateway.runtime.listener import StartError
from gateway.runtime.tls_layer import TlsTransport
from tests.support.certificates import Authority
from tests.support.runtime import make_runtime


def settings_of(folder: Path, **sections: Any) -> Settings:
    cert, key = Authority(folder).issue("gateway")
    # Relative paths are below the folder.
    tls = {"cert": cert.name, "key": key.name}
    return Settings(**{**sections, "daq": {**sections.get("daq", {}), "tls": tls}})


def without_clients(settings: Settings) -> Settings:
    """Return the same settings with networks that exclude everybody."""
    server = settings.server.model_copy(update={"allow": ServerSettings.model_validate({"allow": "10.0.0.1"}).allow})
    return settings.model_copy(update={"server": server})


class Accessed:
    """The listeners of a gateway in a folder."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.access = ListenerAccess(make_runtime(Clock()), settings, Paths.of(settings, str(folder)))
        self.parts = {key: Factory.forProtocol(Protocol) for key in listeners_of(settings)}
        self.factories = {key: self.access.admitting(key, factory) for key, factory in self.parts.items()}
        self.access.open()

    def built(self, key: str, host: str = "192.0.2.1") -> Any:
        return self.factories[key].buildProtocol(IPv4Address("TCP", host, 1))

    def reload(self, settings: Settings) -> None:
        self.access.prepare(settings)()


def test_each_listener_has_the_tls_and_the_networks_of_its_section(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        server={"allow": "192.0.2.0/24"},
        scale={"allow": "198.51.100.0/24"},
        scales={"a": {"listen": "tcp:1"}, "b": {"listen": "tcp:2", "allow": []}, "c": {"connect": "tcp:x:3"}},
    )
    listeners = Accessed(tmp_path, settings)
    assert sorted(listeners.factories) == ["daq", "scales.a", "scales.b", "server"]
    assert isinstance(listeners.built("daq"), TlsTransport)
    assert isinstance(listeners.built("server"), Protocol)
    assert not isinstance(listeners.built("server"), TlsTransport)
    assert listeners.built("server", "198.51.100.1") is None
    assert listeners.built("scales.a") is None
    assert listeners.built("scales.b") is not None


def test_both_ports_of_http_share_their_admission(tmp_path: Path) -> None:
    listeners = Accessed(tmp_path, Settings())
    assert listeners.access.admitting("server", listeners.parts["server"]) is listeners.factories["server"]


def test_new_settings_change_networks_and_tls(tmp_path: Path) -> None:
    listeners = Accessed(tmp_path, Settings())
    assert not isinstance(listeners.built("daq"), TlsTransport)
    listeners.reload(settings_of(tmp_path, daq={"allow": "192.0.2.1"}, limits={"connections_per_address": 1}))
    assert isinstance(listeners.built("daq"), TlsTransport)
    assert listeners.built("daq", "192.0.2.2") is None
    listeners.reload(Settings())
    assert not isinstance(listeners.built("daq", "192.0.2.2"), TlsTransport)


def test_settings_with_a_bad_file_change_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    listeners = Accessed(tmp_path, settings)
    (tmp_path / "gateway.key").write_text("nothing", "ascii")
    with pytest.raises(StartError, match=f"daq.tls.key: {tmp_path}/gateway.key: it holds no valid private key"):
        listeners.reload(without_clients(settings))
    assert isinstance(listeners.built("daq"), TlsTransport)
    assert listeners.built("server") is not None
