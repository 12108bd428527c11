"""The heap of the C library: the memory of a large body is kept for the next one instead of returned each time.

glibc maps each large block anew, or trims the heap when a megabyte of it is free, and then the kernel must clear every
page again: measured, more than a third of the cost of relaying an answer of 1 MB.
"""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD = -3  # malloc.h
TRIM_THRESHOLD = -1
LARGE = 4 * 1024 * 1024  # larger blocks are mapped separately, and returned as a whole
KEPT = 16 * 1024 * 1024  # at most this much at the heap's end is kept free


def keep() -> None:
    """Keep up to KEPT bytes; with another C library (musl) nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Give the memory back that the start has used and freed: a megabyte of imports and of the configuration."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
