"""Which hosts are called without a proxy: those of NO_PROXY, and this machine."""

from __future__ import annotations

import ipaddress
import re
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NoProxy:
    """NO_PROXY: entries between commas or spaces. One that is none of the known forms matches nothing.

    ``host``, ``.suffix``, ``*.suffix``, an IP address or a network in CIDR notation, each also with ``:port``; ``*``
    matches all. A host matches itself only; a suffix the names below it only. An address matches a provider whose URL
    has an address, because names are looked up by the proxy.
    """

    def __init__(self, written: str) -> None:
        self._entries = [_entry(text) for text in re.split(r"[\s,]+", written) if text]

    def has(self, host: str, port: int) -> bool:
        """Whether the host, in lower case, is to be called without a proxy."""
        name, address = host.rstrip("."), address_of(host)
        return any(
            entry_port in (None, port) and _matches(pattern, name, address) for pattern, entry_port in self._entries
        )


def _entry(text: str) -> tuple[str | Network, int | None]:
    if (network := _network(text)) is not None:
        return network, None
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port):
        return _name(text), None
    return _network(host) or _name(host), int(port)


def _name(text: str) -> str:
    text = text.removeprefix("*" if text.startswith("*.") else "")
    dot = "." if text.startswith(".") else ""  # IDNA takes no empty label
    return (dot + in_ascii(text[len(dot) :])).rstrip(".")


def _matches(pattern: str | Network, name: str, address: Address | None) -> bool:
    if pattern == "*":
        return True
    if not isinstance(pattern, str):
        return address is not None and address in pattern
    if address is not None:
        return False
    return name.endswith(pattern) and name != pattern if pattern.startswith(".") else name == pattern


def _network(text: str) -> Network | None:
    host, slash, bits = text.partition("/")
    address = address_of(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if address is None or (slash and not bits.isdecimal()):
        return None
    try:
        return ipaddress.ip_network(f"{address}/{bits}" if slash else str(address), strict=False)
    except ValueError:
        return None


def is_this_machine(host: str) -> bool:
    """Whether the host is this machine by its name or address; such a provider is never called through a proxy."""
    address = address_of(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    name = host.rstrip(".")
    return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3


def in_ascii(host: str) -> str:
    """A host in lower case, an international name in its ASCII form; empty if it has none."""
    try:
        return host.encode("idna").decode().lower() if not host.isascii() else host.lower()
    except UnicodeError:
        return ""


def address_of(host: str) -> Address | None:
    """The address that a host is, also as the resolver reads it (``127.1``)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[0-9][0-9a-fx.]*", host.lower()):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
