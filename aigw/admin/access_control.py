"""Who may look at what the gateway does: on the listener for administrators whoever can connect, elsewhere whoever
has a key, or the cookie that a browser got for one.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import UNIXAddress

from aigw.access.keys import authenticate, wrong_key
from aigw.admin.session import Cookies
from aigw.config.model import Caller
from aigw.errors import Misdirected, Unauthorized, WrongKey
from aigw.server.request import Request

_PORT = re.compile(r":\d*\Z")

AccessCheck = Callable[[Request], None]


def with_key(callers: Sequence[Caller], cookies: Cookies) -> AccessCheck:
    """For whoever has a key, or else a cookie. Raises what ``authenticate`` does, WrongKey for a forged cookie too."""

    def judge(request: Request) -> None:
        request.caller = caller_of(request)

    def caller_of(request: Request) -> Caller:
        try:
            return authenticate(callers, request.header(b"x-api-key"), request.header(b"authorization"))
        except WrongKey:
            raise
        except Unauthorized:
            sent = (request.header(b"cookie") or b"").decode("latin-1")
            caller, forged = cookies.judge(callers, sent, time.time(), request.isSecure()) if sent else (None, 0)
            if forged:
                raise wrong_key(forged) from None
            if caller is None:
                raise
            return caller

    return judge


def everybody(request: Request) -> None:
    """A gate that is open to all."""


def allow_local(request: Request) -> None:
    """Everybody; but on loopback only by a name of loopback. Raises Misdirected.

    A page from elsewhere whose name was made to lead to 127.0.0.1 comes with that name in ``Host``.
    """
    name = _PORT.sub("", (request.header(b"host") or b"").decode("latin-1"))
    if _is_loopback(request.channel.transport.getHost()) and not _is_local_name(name):
        raise Misdirected("This listener is for this machine only: ask for it as localhost or by its address.")


def is_near(transport: Any) -> bool:
    """Whether the other side is on this machine: it may come from the very address that it asks."""
    peer = transport.getPeer()
    return isinstance(peer, UNIXAddress) or _is_loopback(peer) or bool(peer.host == transport.getHost().host)


def _is_loopback(address: Any) -> bool:
    try:
        ip = ipaddress.ip_address(getattr(address, "host", "").partition("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _is_local_name(name: str) -> bool:
    if name.lower() in ("localhost", ""):  # HTTP/1.0 needs no Host, and no browser speaks it
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
