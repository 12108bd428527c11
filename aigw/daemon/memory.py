"""The C library's heap: memory that large bodies need is kept for the next one instead of given back each time.

glibc maps large blocks afresh, or trims the heap as soon as a megabyte of it is free, and the kernel then has to fault
in and clear every page again: measured, over a third of what a relayed answer of 1 MB costs.
"""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD = -3  # malloc.h
TRIM_THRESHOLD = -1
LARGE = 4 * 1024 * 1024  # from here on a block is mapped for itself, and given back whole
KEPT = 16 * 1024 * 1024  # at most this much at the heap's end is kept free


def keep() -> None:
    """Keep up to KEPT bytes; where the C library is another (musl), nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, KEPT)
