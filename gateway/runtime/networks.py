"""Sets of networks that addresses are compared with."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

#: Maximum addresses whose answers are remembered.
_MAX_REMEMBERED: Final = 4096


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address of a text, without a zone, an IPv4-mapped one as IPv4; ``None`` if it is not an address."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def plain_host(host: str) -> str:
    """Return an address in its shortest form, without a zone; an IPv4-mapped one as IPv4, other text unchanged."""
    return host if ":" not in host else str(address_of(host) or host)


class NetworkSet:
    """A set of networks; an IPv4-mapped IPv6 address is compared as IPv4.

    It remembers the answers for recent addresses, because the same clients connect again and again.
    """

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = frozenset(networks)
        self._answers: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSet) and self._networks == other._networks

    def __hash__(self) -> int:
        return hash(self._networks)

    def __contains__(self, host: str) -> bool:
        """Return whether an address, as text, is in one of the networks; false for text that is not an address."""
        answer = self._answers.get(host)
        if answer is None:
            if len(self._answers) >= _MAX_REMEMBERED:
                self._answers.clear()
            answer = self._answers[host] = self._look_up(host)
        return answer

    def _look_up(self, host: str) -> bool:
        if not self._networks:
            return False
        address = address_of(host)
        return address is not None and any(address in network for network in map(_plain_network, self._networks))


def _plain_network(network: Network) -> Network:
    """Return a network of IPv4-mapped addresses as the IPv4 network."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((int(mapped), network.prefixlen - 96))
    return network
