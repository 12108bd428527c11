"""The address under which a client is counted."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


def counts_for(peer: object) -> str | None:
    """The key under which a connection is counted: an IPv4 address or an IPv6 network; None for a Unix socket."""
    host: str | None = getattr(peer, "host", None)
    return host if host is None or ":" not in host else _network(host)


@lru_cache(maxsize=1024)  # called when a connection opens and closes; parsing was a tenth of a connection's cost
def _network(host: str) -> str:
    """The network of an IPv6 address, or the IPv4 address that it maps."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:  # an IPv4 client of a listener for both
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
