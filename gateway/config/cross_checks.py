"""Checks for configuration keys that are valid alone, but conflict or have no effect.

A problem that would keep the gateway from working anyway is fatal. The others are printed by ``--check`` and logged at
startup, so that an existing file keeps working.
"""

import ipaddress
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.config.cylinder_checks import cylinder_problems
from gateway.config.files import exposed_secrets
from gateway.config.loader import ENVIRONMENT
from gateway.config.origins import normal_origin
from gateway.config.problems import Problem
from gateway.config.scale_checks import scale_problems
from gateway.config.settings import Settings

#: Returns the interface or host, and the port, of a TCP endpoint; ``None`` for another kind of endpoint.
#: The arguments are the kind of line (``listen`` or ``connect``) and the endpoint's text.
AddressOf = Callable[[str, str], tuple[str, int] | None]

#: Keys that affect only serial lines of scales.
_OF_SERIAL: Final = ("baudrate", "bytesize", "parity", "stopbits")

_RANGE: Final = "write a number from {} to 65535"


@dataclass(frozen=True, slots=True)
class _Port:
    """A TCP port that the gateway listens on."""

    key: str
    interface: str
    number: int


class CrossChecks:
    """Cross-checks of one configuration.

    :param environment: environment variables, some of which may override the file.
    :param folder: base folder of relative paths.
    :param broken: keys and sections that are invalid in themselves, and have their defaults in ``settings``; these
        defaults are not checked.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        address_of: AddressOf,
        folder: str = ".",
        broken: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._address_of = address_of
        self._folder = folder
        self._broken = frozenset(broken)
        self._variables = {
            f"{section}.{key}": variable
            for variable, (section, key) in ENVIRONMENT.items()
            if environment.get(variable)
        }

    def problems(self) -> list[Problem]:
        """Return every problem."""
        return [
            *self._port_problems(),
            *self._shared_devices(),
            *self._scale_problems(),
            *self._similar_ids(),
            *self._line_without_effect(),
            *self._serial_keys_without_effect(),
            *self._tls_without_listener(),
            *self._impossible_origins(),
            *self._files_for_folders(),
            *self._machines_without_proof(),
            *(
                []
                if self._is_broken("cylinders", "database.url", "database.url_file")
                else cylinder_problems(self._settings)
            ),
            *exposed_secrets(self._settings, self._folder),
        ]

    def _is_broken(self, *keys: str) -> bool:
        """Return whether one of these keys, its section or a part of it is invalid in itself."""
        return any(
            f"{key}.".startswith(f"{wrong}.") or wrong.startswith(f"{key}.") for key in keys for wrong in self._broken
        )

    def _port_problems(self) -> Iterator[Problem]:
        """Yield a problem for each port that two keys name, and for each that is out of range."""
        ports: list[_Port] = []
        for port in self._ports():
            if isinstance(port, Problem):
                yield port
                continue
            for earlier in ports:
                if port.number and port.number == earlier.number and _overlap(port.interface, earlier.interface):
                    yield Problem(
                        port.key,
                        f"port {port.number}{self._set_by(port.key)} is also that of {earlier.key}"
                        f"{self._set_by(earlier.key)}; choose another",
                    )
                    break
            ports.append(port)

    def _ports(self) -> Iterator[_Port | Problem]:
        server, scale = self._settings.server, self._settings.scale
        for key, number in (("port", server.port), ("tcp_port", server.tcp_port), ("own_port", server.own_port)):
            if number is not None and not self._is_broken(f"server.{key}", "server.host"):
                yield _Port(f"server.{key}", server.host, number)
        for scale_id, line in self._settings.scales.items():
            for kind, text, lowest in (("listen", line.listen, 0), ("connect", line.connect, 1)):
                key = f"scales.{scale_id}.{kind}"
                address = None if text is None else self._address_of(kind, text)
                if address is None:
                    continue
                if not lowest <= address[1] <= 65535:
                    yield Problem(key, f"not a valid port: {address[1]}; {_RANGE.format(1)}")
                elif kind == "listen":
                    yield _Port(key, *address)
        if not self._settings.scales and not self._is_broken("scale", "scales"):
            yield _Port("scale.port", scale.host or server.host, scale.port)

    def _set_by(self, key: str) -> str:
        variable = self._variables.get(key)
        return "" if variable is None else f" (set by {variable})"

    def _shared_devices(self) -> Iterator[Problem]:
        """Yield a problem for each line that two scales share: each would get the other's bytes, or some of them."""
        seen: dict[tuple[str, ...], str] = {}
        for scale_id, line in self._settings.scales.items():
            key = f"scales.{scale_id}"
            device: tuple[str, ...]
            if line.serial is not None:
                device, key = ("serial", os.path.realpath(line.serial)), f"{key}.serial"
            elif line.connect is not None:
                host, port = self._address_of("connect", line.connect) or (line.connect, 0)
                device, key = ("connect", host.lower(), str(port)), f"{key}.connect"
            elif line.listen is not None and self._address_of("listen", line.listen) is None:
                # For a socket in the file system or of systemd, only the texts can be compared.
                device, key = ("listen", line.listen), f"{key}.listen"
            else:
                continue
            earlier = seen.setdefault(device, key)
            if earlier != key:
                yield Problem(
                    key,
                    f"{earlier} has the same line; give each scale a line of its own",
                    is_fatal=device[0] != "connect",
                )

    def _scale_problems(self) -> Iterator[Problem]:
        if not self._is_broken("scale", "scales"):
            yield from scale_problems(self._settings)

    def _similar_ids(self) -> Iterator[Problem]:
        seen: dict[str, str] = {}
        listed = (scale_id for line in self._settings.scales.values() for scale_id in (line.addresses or {}).values())
        for scale_id in dict.fromkeys((*self._settings.scales, *listed)):
            earlier = seen.setdefault(unicodedata.normalize("NFC", scale_id).casefold(), scale_id)
            if earlier != scale_id:
                yield Problem(
                    f"scales.{scale_id}",
                    f"differs from scales.{earlier} by case or by composed letters only; choose names that differ more",
                    is_fatal=False,
                )

    def _line_without_effect(self) -> Iterator[Problem]:
        """Yield a problem for each key of `scale` that `scales` replaces."""
        scale, scales = self._settings.scale, self._settings.scales
        if "scales" in self._broken or not (scales or self._is_broken("scales")):
            return
        defaults = type(scale)()
        for key in ("host", "port"):
            # A value that equals the default may stay: the shipped file lists every key.
            is_said = getattr(scale, key) != getattr(defaults, key) or f"scale.{key}" in self._variables
            if is_said and not self._is_broken(f"scale.{key}"):
                yield Problem(
                    f"scale.{key}",
                    f"has no effect{self._set_by(f'scale.{key}')}: `scales` replaces the line of `scale`; leave it out,"
                    " or write the port into scales.<id>.listen",
                    is_fatal=False,
                )
        if (
            scale.id != defaults.id
            and scale.id not in self._settings.scale_settings()
            and not self._is_broken("scales")
        ):
            yield Problem(
                "scale.id",
                f"has no effect: no scale of `scales` is {scale.id!r}; requests that name no scale mean"
                f" {self._settings.default_scale()!r}",
                is_fatal=False,
            )

    def _serial_keys_without_effect(self) -> Iterator[Problem]:
        for scale_id, line in self._settings.scales.items():
            if line.serial is None:
                for key in _OF_SERIAL:
                    if key in line.model_fields_set:
                        yield Problem(
                            f"scales.{scale_id}.{key}",
                            "has no effect: it is for a serial line; leave it out, or set it in the converter",
                            is_fatal=False,
                        )

    def _impossible_origins(self) -> Iterator[Problem]:
        for origin in self._settings.server.cors_origins:
            try:
                normal_origin(origin)
            except ValueError as error:
                # It may hold a password.
                shown = origin if "@" not in origin else "an entry"
                yield Problem("server.cors_origins", f"{shown!r} matches no origin: {error}", is_fatal=False)

    def _tls_without_listener(self) -> Iterator[Problem]:
        for scale_id, line in self._settings.scales.items():
            if line.tls is not None and line.listen is None:
                text = "only a scale that connects to the gateway (listen) can have TLS; remove it"
                yield Problem(f"scales.{scale_id}.tls", text)

    def _machines_without_proof(self) -> Iterator[Problem]:
        """Yield a problem for each machine whose proofs are missing, or cannot be given."""
        tls = self._settings.daq.tls
        for name, machine in self._settings.machines.items():
            key = f"machines.{name}"
            if self._is_broken(key, "daq.tls"):
                continue
            if machine.certificate is not None and (tls is None or tls.client_ca is None):
                yield Problem(
                    f"{key}.certificate", "no program can present one: set daq.tls with client_ca", is_fatal=False
                )
            is_bound = machine.allow or machine.certificate is not None or machine.secret_file is not None
            if not is_bound and not self._settings.daq.listed_only:
                yield Problem(
                    key, "has no effect: set allow, certificate or secret_file, or daq.listed_only", is_fatal=False
                )

    def _files_for_folders(self) -> Iterator[Problem]:
        settings = self._settings
        for key, path in (
            ("logger.path", settings.logger.path),
            ("database.path", settings.database.path),
            ("data.path", settings.data.path),
        ):
            if path is None:
                continue
            there = os.path.normpath(os.path.join(self._folder, path))
            while not os.path.lexists(there) and os.path.dirname(there) != there:
                there = os.path.dirname(there)
            if os.path.lexists(there) and not os.path.isdir(there) and not self._is_broken(key):
                yield Problem(key, f"{there} is not a folder; choose another path, or move the file away")


def _overlap(one: str, other: str) -> bool:
    """Return whether two interfaces share an address; host names are equal to themselves only."""
    if one == other:
        return True
    first, second = _address(one), _address(other)
    if first is None or second is None:
        known = first or second
        return known is not None and known.is_unspecified
    if first.version == second.version:
        return first == second or first.is_unspecified or second.is_unspecified
    # Linux opens a port of `::` for IPv4 too.
    return (first if first.version == 6 else second).is_unspecified


def _address(interface: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if not interface:
        return ipaddress.IPv4Address(0)
    if interface.lower() == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(interface)
    except ValueError:
        return None
