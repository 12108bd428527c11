"""Compressed request bodies (``Content-Encoding``): decoded in short steps, with a limit on the decoded size.

gzip and deflate are the standard library's. zstd (Codex sends it) and br are read where the packages of the extra
``compression`` are installed. RFC 9110, 8.4: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Generator
from typing import IO, Protocol, cast

from aigw.errors import BadRequest, TooLarge, UnsupportedCoding

PIECE = 64 * 1024  # bytes that one step makes; about a tenth of a millisecond
KEPT_AT_FIRST = (
    1024 * 1024
)  # a larger body is decoded twice, first only to measure it: a bomb takes time, but no memory
ZSTD_WINDOW = 8 * 1024 * 1024  # RFC 8878, 3.1.1.1.2: the size that a decoder should support
_NONE = frozenset(["", "identity", "none", "utf-8"])

Steps = Generator[None, None, bytearray]


class Decoder(Protocol):
    """Gives the decoded data, about PIECE bytes at a time."""

    def read(self) -> bytes:
        """The next piece; empty at the end. Raises ValueError if the data is corrupt or incomplete."""


class _Zlib:
    """gzip, of one member or many, and deflate, with its header or (as old clients send it) without."""

    def __init__(self, body: bytes | bytearray, wbits: int) -> None:
        self._wbits = wbits
        self._whole = self._left = memoryview(body)
        self._begin()

    def _begin(self) -> None:
        self._decoder = zlib.decompressobj(self._wbits)

    def read(self) -> bytes:
        while True:
            if self._decoder.eof:
                if self._wbits < 16 or not self._left:
                    if self._left:
                        raise ValueError("there is data after its end")
                    return b""
                self._begin()
            given, self._left = self._left[:PIECE], self._left[PIECE:]
            if not given:
                raise ValueError("it is incomplete")
            try:
                made = self._decoder.decompress(given, PIECE)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            unused = len(self._decoder.unconsumed_tail or self._decoder.unused_data)
            if unused:
                self._left = self._whole[len(self._whole) - len(self._left) - unused :]
            if made:
                return made


def _gzip(body: bytes | bytearray) -> Decoder:
    return _Zlib(body, 31)


def _deflate(body: bytes | bytearray) -> Decoder:
    # RFC 1950: the first byte names the method, and both together are a multiple of 31.
    wrapped = len(body) >= 2 and body[0] & 15 == 8 and (body[0] * 256 + body[1]) % 31 == 0
    return _Zlib(body, 15 if wrapped else -15)


_READERS: dict[str, Callable[[bytes | bytearray], Decoder]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}

try:
    import zstandard
except ImportError:
    pass
else:
    # Repeated, so that the compressed bytes are not those of the mark: a block without an end shows them as data.
    _MARK = os.urandom(16) * 16
    _MARK_FRAME = zstandard.compress(_MARK)

    class _Followed:
        """The body, and a frame of ours behind it."""

        def __init__(self, body: bytes | bytearray) -> None:
            self.is_over = False
            self._parts = io.BytesIO(body), io.BytesIO(_MARK_FRAME)

        def read(self, size: int) -> bytes:
            data = self._parts[0].read(size)
            self.is_over = not data
            return data or self._parts[1].read(size)

    class _Zstd:
        """The library reports no error for an incomplete frame. So a frame follows, which an incomplete one swallows:
        its data, which no client can guess, is then not at the end.
        """

        def __init__(self, body: bytes | bytearray) -> None:
            self._source = _Followed(body)
            decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
            source = cast(IO[bytes], self._source)
            self._reader = decoder.stream_reader(source, read_size=PIECE, read_across_frames=True)
            self._held = b""  # the last of the data, which may be the mark

        def read(self) -> bytes:
            try:
                while made := self._reader.read(PIECE):
                    made = self._held + made
                    self._held = made[-len(_MARK) :]
                    if len(made) > len(_MARK):
                        return made[: -len(_MARK)]
            except zstandard.ZstdError as error:
                raise ValueError("it is incomplete" if self._source.is_over else str(error)) from None
            if self._held != _MARK:
                raise ValueError("it is incomplete")
            return b""

    _READERS["zstd"] = _Zstd

try:
    import brotli  # type: ignore[import-untyped]
except ImportError:
    pass
else:

    class _Brotli:
        def __init__(self, body: bytes | bytearray) -> None:
            self._left = memoryview(body)
            self._decoder = brotli.Decompressor()

        def read(self) -> bytes:
            while not self._decoder.is_finished():
                given = b""
                if self._decoder.can_accept_more_data():
                    given, self._left = bytes(self._left[:PIECE]), self._left[PIECE:]
                try:
                    made: bytes = self._decoder.process(given, output_buffer_limit=PIECE)
                except brotli.error as error:
                    raise ValueError(str(error)) from None
                if made:
                    return made
                if not given and not self._left and not self._decoder.is_finished():
                    raise ValueError("it is incomplete")
            if self._left:
                raise ValueError("there is data after its end")
            return b""

    _READERS["br"] = _Brotli

SUPPORTED = tuple(name for name in ("gzip", "deflate", "zstd", "br") if name in _READERS)


def coding_in(header: bytes | None) -> str | None:
    """The coding that a ``Content-Encoding`` names, None for none. Raises UnsupportedCoding for an unknown one."""
    if header is None:
        return None
    named = [each for part in header.decode("latin-1").split(",") if (each := part.strip().lower()) not in _NONE]
    if not named:
        return None
    if len(named) == 1 and named[0] in _READERS:
        return named[0]
    given = ", ".join(named)[:100]
    raise UnsupportedCoding(
        f"The body's Content-Encoding {given!r} is not supported; send one of {', '.join(SUPPORTED)}, or none.",
        headers={"Accept-Encoding": ", ".join(SUPPORTED)},
    )


def decode(body: bytes | bytearray, coding: str, most: int, take: Callable[[int], None]) -> Steps:
    """The body as it was before it was compressed, at most ``most`` bytes.

    ``take`` is called with the size of each piece before it is kept, and may raise. Raises BadRequest for corrupt data,
    TooLarge over the limit.
    """
    size, kept = 0, bytearray()
    reader = _READERS[coding](body)
    while piece := _piece(reader, coding):
        size += len(piece)
        if size > most:
            raise TooLarge(f"The decompressed body is larger than the limit of {most} bytes.")
        if size <= KEPT_AT_FIRST:
            take(len(piece))
            kept += piece
        yield
    if size > KEPT_AT_FIRST:
        take(size - len(kept))
        kept.clear()
        reader = _READERS[coding](body)
        while piece := _piece(reader, coding):
            kept += piece
            yield
    return kept


def _piece(reader: Decoder, coding: str) -> bytes:
    try:
        return reader.read()
    except ValueError as error:
        raise BadRequest(f"The body is not valid {coding}: {str(error)[:200]}.") from None
