"""Addresses in the configuration that cannot be open at the same time."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

_PART = re.compile(r"((?:\\.|[^:\\])*)(?::|\Z)")


class NamedEndpoint(NamedTuple):
    """An endpoint in Twisted's syntax, and the setting that names it."""

    setting: str
    endpoint: str


def overlapping(listeners: Iterable[NamedEndpoint]) -> Iterator[str]:
    """One mistake for each pair of ``listeners`` of which only one can be open."""
    for one, other in combinations(listeners, 2):
        if overlap(one.endpoint, other.endpoint):
            yield (
                f"{other.setting}: {other.endpoint[:80]} has the same address as {one.endpoint[:80]} "
                f"({one.setting}); give one of them another port"
            )


def overlap(one: str, other: str) -> bool:
    """Whether the kernel lets only one of two endpoints listen; False if the endpoints do not show it."""
    first, second = _address(one), _address(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    hosts = first[0], second[0]
    if hosts[0] == hosts[1] or "::" in hosts:  # :: also accepts connections to IPv4 addresses
        return True
    return "0.0.0.0" in hosts and not any(":" in host for host in hosts)


def _address(endpoint: str) -> tuple[str, str | int | None] | None:
    """The host and the port of an endpoint, or the path of a UNIX socket in place of the port; None for any other."""
    kind, *parts = _PART.findall(endpoint)[:-1] or [""]  # the last match is the empty one at the end
    values = {"tcp": ["port", "interface"], "tcp6": ["port", "interface"], "unix": ["address"]}.get(kind)
    if values is None:
        return None
    given: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            name, value = next((each for each in values if each not in given), ""), part
        given[name] = re.sub(r"\\(.)", r"\1", value)
    if kind == "unix":
        return kind, given.get("address")
    port = given.get("port", "")
    if not (port.isascii() and port.isdecimal()) or int(port) == 0:  # 0 is a different port each time
        return None
    return _host(given.get("interface") or ("::" if kind == "tcp6" else "0.0.0.0")), int(port)


def _host(written: str) -> str:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return written
    return str(getattr(address, "ipv4_mapped", None) or address)
