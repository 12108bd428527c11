"""Who may see the state of the gateway: every client of the listener for administrators. On other listeners a client
needs a key, or the cookie that a browser got for the key.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Sequence

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import ITransport

from aigw.access.keys import wrong_key
from aigw.admin.session import Cookies
from aigw.errors import Misdirected, Unauthorized, WrongKey
from aigw.server.request import Request
from aigw.settings.callers import Caller

_PORT = re.compile(r":\d*\Z")

AccessCheck = Callable[[Request], None]


def with_key(admins: Sequence[Caller], cookies: Cookies) -> AccessCheck:
    """Allow clients with a key or a cookie of one of ``admins``.

    Raises as ``Keys.admin`` does, WrongKey for a forged cookie too.
    """

    def check(request: Request) -> None:
        request.caller = caller_of(request)

    def caller_of(request: Request) -> Caller:
        try:
            keys = request.site.resource.keys
            return keys.admin(request.header(b"x-api-key"), request.header(b"authorization"))
        except WrongKey:
            raise
        except Unauthorized:
            sent = (request.header(b"cookie") or b"").decode("latin-1")
            caller, forged = cookies.verify(admins, sent, time.time(), request.isSecure()) if sent else (None, 0)
            if forged:
                raise wrong_key(forged) from None
            if caller is None:
                raise
            return caller

    return check


def allow_all(request: Request) -> None:
    """Allow every client."""


def allow_local(request: Request) -> None:
    """Allow every client; on loopback only with a loopback name in ``Host``. Raises Misdirected.

    A page of another site can make its own name resolve to 127.0.0.1, and then sends that name in ``Host``.
    """
    name = _PORT.sub("", (request.header(b"host") or b"").decode("latin-1"))
    if _is_loopback(request.channel.transport.getHost()) and not _is_local_name(name):
        raise Misdirected("This listener is only for this machine; use localhost or its IP address in the URL.")


def is_near(transport: ITransport) -> bool:
    """Whether the client is on this machine, which may use the address of the listener itself."""
    peer, here = transport.getPeer(), transport.getHost()
    if isinstance(peer, IPv4Address | IPv6Address) and isinstance(here, IPv4Address | IPv6Address):
        return peer.host == here.host or _is_loopback(peer)
    return isinstance(peer, UNIXAddress)


def _is_loopback(address: object) -> bool:
    try:
        ip = ipaddress.ip_address(getattr(address, "host", "").partition("%")[0])
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def _is_local_name(name: str) -> bool:
    if name.lower() in ("localhost", ""):  # HTTP/1.0 needs no Host, and browsers do not use it
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
