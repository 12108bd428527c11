"""Keys stay in this process: no core file holds its memory, and no other process of the same user may read that.

Root still may, and a debugger that root runs.
"""

from __future__ import annotations

import ctypes

PR_SET_DUMPABLE = 4  # prctl(2)


def forbid() -> None:
    """Set PR_SET_DUMPABLE to 0; where there is no prctl nothing changes. A change of the user may undo it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
