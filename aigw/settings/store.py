"""Where several gateways keep the counts of their limits together: a Valkey or Redis, by its URL."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import unquote

import msgspec

from aigw.secret import Secret
from aigw.settings.schema import Written

SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}  # whether it is over TLS
PORT, SENTINEL_PORT = 6379, 26379
SHORTEST_HIDDEN = 8  # characters; hiding a shorter text would hide too much of the log
MOST_INSTANCES = 1000

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_PATH = re.compile(r"(?:/([0-9]{1,5})?)?(?:\?sentinel=([A-Za-z0-9._-]+))?")
_RIGHT = "write valkey://host:6379/0, or valkey://:${NAME}@host:6379/0 with a password"


class StoreAddress(msgspec.Struct, frozen=True):
    """A Valkey or Redis. ``hosts`` are those of its sentinels if ``sentinel`` is set, the name of what they watch."""

    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    secure: bool = False
    user: str | None = None
    password: Secret | None = None
    sentinel: str | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What no log may show."""
        return (self.password,) if self.password is not None and len(self.password) >= SHORTEST_HIDDEN else ()

    def __str__(self) -> str:
        """Its hosts, for an operator."""
        return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)


def _store(value: object) -> StoreAddress:
    scheme, found, rest = str(value).strip().partition("://")
    if not isinstance(value, str) or not found or scheme.lower() not in SCHEMES:
        raise ValueError(f"is not the URL of a store; {_RIGHT}; valkeys:// is with TLS")
    if find_spec("txredisapi") is None:
        raise ValueError("needs the package txredisapi; run pip install 'aigw[store]', or remove the setting")
    secure = SCHEMES[scheme.lower()]
    user_and_password, has_user, place = rest.rpartition("@")
    hosts, path = re.fullmatch(r"([^/?]*)(.*)", place, re.DOTALL).groups()  # type: ignore[union-attr]  # it always does
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError(f"has something else than the number of a database behind the host; {_RIGHT}")
    database, sentinel = match.groups()
    listed = [_HOST.fullmatch(each) for each in hosts.split(",")]
    usual = SENTINEL_PORT if sentinel else PORT
    places = [(each[1].strip("[]"), int(each[2] or usual)) for each in listed if each is not None]
    if len(places) != len(listed) or not all(0 < port < 65536 for _, port in places):
        raise ValueError(f"has no host, or one that is none; {_RIGHT}")
    if len(places) > 1 and not sentinel:
        raise ValueError("has several hosts; write their sentinels, valkey://host1:26379,host2:26379/0?sentinel=NAME")
    if sentinel and secure:
        raise ValueError("has sentinels and TLS, which cannot be used together; write valkey:// or one host")
    user, has_password, password = user_and_password.partition(":")
    if has_user and not (has_password and password):
        raise ValueError(f"has an empty password; {_RIGHT}")
    known = Secret(unquote(password)) if has_user else None
    return StoreAddress(tuple(places), int(database or 0), secure, unquote(user) or None, known, sentinel)


def _instances(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_INSTANCES:
        raise ValueError(f"is not a number of gateways; write a number from 1 to {MOST_INSTANCES}")
    return value


StoreUrl = Annotated[StoreAddress | None, Written(_store, secret=True)]
"""``valkey://[user:password@]host[:port][/database]``; ``redis`` is the same, ``valkeys`` and ``rediss`` with TLS."""
Instances = Annotated[int, Written(_instances)]
"""How many gateways share a store, 1 to 1000."""
