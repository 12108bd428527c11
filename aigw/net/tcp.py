"""A peer whose machine or link is lost closes nothing. The kernel finds it: it probes an idle connection, and it ends a
connection whose data is not acknowledged. The probes also keep the connection known to NATs and firewalls.
"""

from __future__ import annotations

import socket
from typing import Any

IDLE_SECONDS = 30  # without data, until the first probe
PROBE_SECONDS = 10
PROBES = 3
# With TCP_USER_TIMEOUT the kernel counts seconds, not probes: it gives an idle client up at 50 s, after two probes, and
# a client whose stream has an event every 15 s within 60 s, although the time begins with the first lost event.
CLIENT_SECONDS = 42.0
# It also ends a connection whose peer is there but takes nothing. A client that does not read has READ_SECONDS.
STALLED_CLIENT_SECONDS = 58.0
PROVIDER_SECONDS = 60.0

_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
_IDLE = getattr(socket, "TCP_KEEPIDLE", None)  # not on every system


def find_lost_peer(of: Any, seconds: float) -> None:
    """Let the kernel probe the peer, and end a connection that acknowledges nothing for so many seconds.

    ``of`` is a transport, TLS or not, or a port, whose accepted connections inherit it. No effect without TCP.
    """
    found = _socket(of)
    if found is None:
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _IDLE is not None:
        found.setsockopt(socket.IPPROTO_TCP, _IDLE, IDLE_SECONDS)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    _limit(found, seconds)


def limit_unacknowledged(of: Any, seconds: float) -> None:
    """Change the seconds of ``find_lost_peer``."""
    found = _socket(of)
    if found is not None:
        _limit(found, seconds)


def _limit(found: socket.socket, seconds: float) -> None:
    if _USER_TIMEOUT is not None:
        found.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, round(seconds * 1000))


def _socket(of: Any) -> socket.socket | None:
    found = getattr(of, "socket", None)  # TLS passes on the one below it
    is_tcp = found is not None and found.family in (socket.AF_INET, socket.AF_INET6)
    return found if is_tcp else None
