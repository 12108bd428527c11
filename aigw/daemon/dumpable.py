"""Protecting the keys in memory: there is no core file, and no other process of the same user may read the memory.

Root, and a debugger that root runs, still may.
"""

from __future__ import annotations

import ctypes

PR_SET_DUMPABLE = 4  # prctl(2)


def forbid() -> None:
    """Set PR_SET_DUMPABLE to 0; without prctl nothing changes. A change of the user may undo it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
