"""Bytes in pieces of a size that can be written at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def joined(parts: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The parts in order, as many together as are at most ``most`` bytes; a longer part is a piece of its own."""
    together: list[bytes] = []
    size = 0
    for part in parts:
        if together and size + len(part) > most:
            yield b"".join(together)
            together, size = [], 0
        together.append(part)
        size += len(part)
    if together:
        yield b"".join(together)
