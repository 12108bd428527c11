"""Open files: every connection is one, and a daemon that runs out of them can neither accept nor call."""

from __future__ import annotations

import resource

SPARE = 100  # listeners, log, epoll, look-ups, idle connections to providers, connections that are being refused


def needed(connections: int) -> int:
    """How many open files so many clients take, each with a connection to a provider."""
    return 2 * connections + SPARE


def make_room(connections: int) -> int:
    """Raise our soft limit as far as so many clients need and the hard limit lets; gives how many of them fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed(connections)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    return max(1, (soft - SPARE) // 2)
