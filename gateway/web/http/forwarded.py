"""Addresses of clients behind trusted proxies.

A proxy appends the address that it got a request from to ``X-Forwarded-For``; what stands before it came from outside,
and may be invented. So the client is the right-most address that is not a trusted proxy.
"""

import re
from ipaddress import ip_address
from typing import Final

from gateway.runtime.networks import NetworkSet, plain_host

#: An address, which may have a port: ``192.0.2.7:51022``, ``[2001:db8::7]:51022``. No zone, whose text would be free.
_HOP: Final = re.compile(
    rb"([0-9.]{7,15})(?::[0-9]{1,5})?|\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})"
)


def forwarded_client(peer: str, header: bytes, proxies: NetworkSet) -> str:
    """Return the address of the client of a request that a trusted proxy sent.

    :param peer: address of the proxy, the result if the header has no valid address.
    :param header: content of ``X-Forwarded-For``; of several such headers, joined by commas.
    """
    client = peer
    for hop in reversed(header.split(b",")):
        hop = hop.strip(b" \t")
        if not hop:
            continue
        match = _HOP.fullmatch(hop)
        try:
            address = ip_address("" if match is None else (match[1] or match[2] or match[3]).decode("ascii"))
        except ValueError:
            return peer
        client = plain_host(str(address))
        if client not in proxies:
            return client
    return client
