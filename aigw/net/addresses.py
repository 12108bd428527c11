"""Whom an address stands for, where clients are counted."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any


def counts_for(peer: Any) -> str | None:
    """Whom a connection counts for: an IPv4 address or an IPv6 network; nobody on a Unix socket."""
    host: str | None = getattr(peer, "host", None)
    return host if host is None or ":" not in host else _network(host)


@lru_cache(maxsize=1024)  # asked for when one comes and when it goes; parsing was a tenth of a connection's cost
def _network(host: str) -> str:
    """Of an IPv6 address, which may be an IPv4 one in disguise."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:  # an IPv4 client of a listener for both
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
