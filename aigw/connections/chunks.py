"""A body in chunks (RFC 9112, section 7.1), read strictly, at a bounded cost for each read.

Twisted's decoder has no limit on framing, and makes one to three calls for each chunk: with chunks of one byte a read
of 64 KiB blocks the event loop for 25 ms. Here framing has a limit, and one turn decodes a limited number of chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

FRAMING = 16 * 1024  # this much framing may be more than the body; also the limit of the trailers
MAX_LINE = 1024
AT_ONCE = 16
PER_TURN = 64
_EXTENSION = rb"(?:;[\t -~\x80-\xff]*)?"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})%s\r\n" % _EXTENSION)
_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,16}%s\r?" % _EXTENSION)


class MalformedChunks(Exception):
    """The body is not a valid sequence of chunks, or has too much framing."""


class BodyTooLong(Exception):
    """With the size of this chunk the body is longer than ``limit``."""


class ChunkedBody:
    """Gives the body without the framing to ``take``, and the data after it to ``finish``.

    ``limit`` is the limit of the body. With ``unread`` there is more to decode, in another turn of the event loop.
    """

    def __init__(self, take: Callable[[bytes], None], finish: Callable[[bytes], None]) -> None:
        self._take = take
        self._finish = finish
        self._buffer = bytearray()
        self._left = 0  # of the chunk that is being read
        self._in_chunk = False
        self._in_trailers = False
        self._body = 0
        self._framing = 0
        self._trailers = 0
        self.limit: float = math.inf
        self.unread = False

    def dataReceived(self, data: bytes) -> None:
        """One read. Raises MalformedChunks or BodyTooLong."""
        self._buffer += data
        if not self.unread:
            self._read(AT_ONCE)

    def go_on(self) -> None:
        """Decode PER_TURN further chunks at most. Raises MalformedChunks or BodyTooLong."""
        self._read(PER_TURN)

    def _read(self, most: int) -> None:
        pieces: list[bytearray] = []
        at, over = 0, False
        self.unread = False
        for _ in range(2 * most):
            if at == len(self._buffer):
                break
            if self._in_trailers:
                size, over = self._trailer(at)
            elif self._in_chunk:
                size = self._chunk(at, pieces)
            else:
                size = self._size(at)
            at += size
            if over or not size:
                break
        else:
            self.unread = True
        del self._buffer[:at]
        if pieces:
            self._take(b"".join(pieces))
        if over:
            self._finish(bytes(self._buffer))

    def _size(self, at: int) -> int:
        """Read the line with the size of a chunk; gives the length of the line, or 0 if it is incomplete."""
        line = _SIZE.match(self._buffer, at, at + MAX_LINE)
        if line is None:
            if len(self._buffer) - at >= MAX_LINE or not _BEGUN.fullmatch(self._buffer, at):
                raise MalformedChunks
            return 0
        self._left = int(line[1], 16)
        if self._body + self._left > self.limit:
            raise BodyTooLong
        self._in_chunk = self._left > 0
        self._in_trailers = not self._in_chunk
        size = line.end() - at
        self._allow(size)
        return size

    def _chunk(self, at: int, pieces: list[bytearray]) -> int:
        """Read the available part of a chunk and the line end after it; gives the length."""
        size = 0
        if self._left:
            piece = self._buffer[at : at + self._left]
            pieces.append(piece)
            size = len(piece)
            self._left -= size
            self._body += size
        if not self._left:
            end = bytes(self._buffer[at + size : at + size + 2])
            if end == b"\r\n":
                self._in_chunk = False
                self._allow(2)
                size += 2
            elif end not in (b"", b"\r"):
                raise MalformedChunks
        return size

    def _trailer(self, at: int) -> tuple[int, bool]:
        """Read a line after the last chunk; gives its length (0: incomplete), and whether it ends the body."""
        end = self._buffer.find(b"\r\n", at)
        size = (len(self._buffer) if end < 0 else end + 2) - at
        if self._trailers + size > FRAMING:
            raise MalformedChunks
        if end < 0:
            return 0, False
        if end > at and not is_trailer(self._buffer[at:end]):
            raise MalformedChunks
        self._trailers += size
        return size, end == at

    def _allow(self, framing: int) -> None:
        self._framing += framing
        if self._framing > FRAMING + self._body:
            raise MalformedChunks


is_trailer = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[^\0\r\n]*").fullmatch
"""Section 7.1.2: a line of a trailer, which has the form of a header."""
