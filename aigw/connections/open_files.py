"""The limit of open files: every connection is one, and without a free one the daemon can neither accept nor call."""

from __future__ import annotations

import resource

SPARE = 100  # listeners, log, epoll, look-ups, idle connections to providers, connections that are being refused


def needed(connections: int) -> int:
    """The number of open files for ``connections`` clients, each with a connection to a provider."""
    return 2 * connections + SPARE


def raise_limit(connections: int) -> int:
    """Raise the soft limit for ``connections`` clients, as far as the hard limit allows; gives how many of them fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = needed(connections)
    if soft != resource.RLIM_INFINITY and soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= files:
        return connections
    return max(1, (soft - SPARE) // 2)
