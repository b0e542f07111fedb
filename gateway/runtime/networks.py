"""Sets of networks that addresses are matched against."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address


class NetworkSet:
    """Networks of the configuration; empty for none.

    An IPv4 address that a socket of IPv6 shows as ``::ffff:192.0.2.7`` is the IPv4 address.
    """

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        known = address_of(address)
        return known is not None and any(known in network for network in self._networks)


@lru_cache(maxsize=1024)
def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address of a text, without the zone of a link-local one; ``None`` if it is not an address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address
