"""The bytes of one held answer, in memory that goes back to the system at once.

The C library keeps freed blocks of such a size for later, and between smaller objects it cannot return them: after 200
held answers of 1 MiB the process stayed 200 MiB larger. So each block is a mapping of its own.
"""

from __future__ import annotations

from collections import deque
from mmap import mmap

BLOCK = 256 * 1024  # bytes; a page of it takes memory when it is used
PIECE = 60 * 1024


class HeldBuffer:
    """First in, first out."""

    def __init__(self) -> None:
        self._blocks: deque[mmap] = deque()
        self._begin = 0  # in the first block
        self._end = BLOCK  # in the last block
        self.size = 0

    def append(self, data: bytes) -> None:
        """Keep ``data`` behind the rest."""
        self.size += len(data)
        at = 0
        while at < len(data):
            if self._end == BLOCK:
                self._blocks.append(mmap(-1, BLOCK))
                self._end = 0
            end = min(BLOCK, self._end + len(data) - at)
            self._blocks[-1][self._end : end] = data[at : at + end - self._end]
            at += end - self._end
            self._end = end

    def first(self, most: int) -> bytes:
        """The first bytes, which are kept."""
        found = bytearray()
        for number, block in enumerate(self._blocks, 1):
            begin, end = self._begin if number == 1 else 0, self._end if number == len(self._blocks) else BLOCK
            found += block[begin : min(end, begin + most - len(found))]
        return bytes(found)

    def take(self, most: int = PIECE) -> bytes:
        """The first bytes, which are not kept any more; empty if there are none."""
        if not self._blocks:
            return b""
        block = self._blocks[0]
        end = min(self._begin + most, BLOCK if len(self._blocks) > 1 else self._end)
        taken = block[self._begin : end]
        self._begin = end
        self.size -= len(taken)
        if not self.size:
            self.clear()
        elif end == BLOCK:
            self._blocks.popleft().close()
            self._begin = 0
        return taken

    def take_all(self) -> bytes:
        """All bytes in one piece, which are not kept any more."""
        return b"".join(iter(lambda: self.take(BLOCK), b""))

    def clear(self) -> None:
        """Keep nothing any more."""
        for block in self._blocks:
            block.close()
        self._blocks.clear()
        self._begin, self._end, self.size = 0, BLOCK, 0
