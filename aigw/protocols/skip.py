"""Finds the end of a JSON value, and of a large value in short steps.

A parser in C stops the whole process while it reads 32 MiB, even in a thread. So the parser gets pieces, and each piece
is completed to a document: ``[[1,2`` and ``,3],4]`` are checked as ``[[1,2]]`` and ``[[null,3],4]``.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Protocol, TypeVar

import msgspec

T = TypeVar("T")
Steps = Generator[None, None, T]


class ValueDecoder(Protocol):
    """Any msgspec.json.Decoder."""

    def decode(self, data: bytes | memoryview, /) -> object:
        """Raises msgspec.DecodeError, or RecursionError."""


PIECE = 64 * 1024  # bytes, which take a millisecond, rarely ten; a longer number in a large value is refused
MOST_DEPTH = 1000
_SPACE = b" \t\n\r"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SCALAR = bytes(set(range(256)) - set(b'[]{},:"' + _SPACE))
_PART_OF_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
_CLOSES = {ord("["): ord("]"), ord("{"): ord("}")}
_NAME, _VALUE = b'"', b"0"
# The key: the bracket that closes the innermost value, and the last token. The value: what goes before a piece that
# begins there and after a piece that ends there, so that the piece is a document.
_AROUND = {
    b"][": (b"[", b"]"),
    b"],": (b"[null,", b"null]"),
    b"]0": (b"[null", b"]"),
    b"}{": (b"{", b"}"),
    b"},": (b'{"":null,', b'"":null}'),
    b'}"': (b'{""', b":null}"),
    b"}:": (b'{"":', b"null}"),
    b"}0": (b'{"":null', b"}"),
}
_raw = msgspec.json.Decoder(msgspec.Raw)


def without_surrogates(data: bytes) -> bytes:
    """``data`` with another character for each surrogate, because msgspec refuses lone ones and JSON does not.

    The result has the same length, and is valid JSON only if ``data`` is.
    """
    return data.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")


def end_of_value(data: bytes | memoryview, decoder: ValueDecoder = _raw, beyond: bool = False) -> int:
    """The offset of the first byte after the value at the start of ``data`` that is not white space.

    If nothing follows it is the length of ``data``; with ``beyond`` set that is an error. Raises ValueError.
    """
    try:
        try:
            return _end_of_value(data, decoder, beyond)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            written = bytes(data)
            if beyond or b"\\u" not in written:
                raise
        return _end_of_value(without_surrogates(written), decoder)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _end_of_value(data: bytes | memoryview, decoder: ValueDecoder, beyond: bool = False) -> int:
    try:
        decoder.decode(data)
    except msgspec.DecodeError as error:
        trailing = _TRAILING.search(str(error))  # the only way to learn the end of a value without decoding it
        if trailing is None:
            raise
        return int(trailing[1]) - 1
    if beyond:
        raise ValueError("nothing follows it")
    return len(data)


def skip(body: bytes | bytearray, at: int) -> Steps[int]:
    """The offset of what follows the large value that begins at ``at``. Raises ValueError."""
    place = _Place()
    while True:
        piece = bytes(body[at : at + PIECE])
        at += place.take(piece, at + len(piece) == len(body))
        if place.over:
            return at
        yield


class _Place:
    """A place in a value: the brackets that close the open ones, the last token, and whether it is in a string."""

    def __init__(self) -> None:
        self._closing = bytearray()
        self._last = b""
        self._in_string = False
        self.over = False

    def take(self, piece: bytes, is_last: bool) -> int:
        """Check a piece. Gives the number of bytes that were checked, or the end of the value in the piece."""
        before, in_string, alone = self._around(0), self._in_string, not self._closing
        plain = piece.replace(b"\\\\", b"//").replace(b'\\"', b"//") if b"\\" in piece else piece
        parts = plain.split(b'"')
        self._in_string = in_string ^ (len(parts) % 2 == 0)
        size = len(piece)
        if self._in_string:
            escape = _PART_OF_ESCAPE.search(plain, max(0, size - 5))
            size = escape.start() if escape else size
        elif not is_last:
            last = parts[-1]
            parts[-1] = last.rstrip(_SCALAR)
            size -= len(last) - len(parts[-1])
            if not size:
                raise ValueError(f"it has a number of over {PIECE} bytes")
        self.over = (alone and in_string and len(parts) > 1) or self._move_brackets(parts[in_string::2])
        if self.over:
            start = before + (b'"' if in_string else b"")
            return end_of_value(start + piece) - len(start)
        self._move(parts, in_string)
        if is_last:
            raise ValueError("it ends too early")
        start = before + (b'"' if in_string else b"")
        document = start + piece[:size] + (b'"' if self._in_string else b"") + self._around(1)
        if end_of_value(document) != len(document):
            raise ValueError("a bracket or a quote is wrong")
        return size

    def _move_brackets(self, outside: list[bytes]) -> bool:
        """Apply the brackets of a piece, given its parts outside strings. Whether the last open bracket was closed."""
        brackets = b"".join(outside).translate(None, _NO_BRACKETS)
        size = 2 * len(brackets)
        while len(brackets) < size * 7 // 8:  # fast for pairs side by side, slow for nested ones
            size = len(brackets)
            brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        closing = self._closing
        for bracket in brackets:
            if bracket in _CLOSES:
                closing.append(_CLOSES[bracket])
            elif not closing or closing.pop() != bracket:
                raise ValueError("a bracket is wrong")
            elif not closing:
                return True
        if len(closing) > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        return False

    def _move(self, parts: list[bytes], in_string: bool) -> None:
        """Note the last token, given the parts of a piece between quotes."""
        behind = b"" if self._in_string else parts[-1].rstrip(_SPACE)
        if behind:
            self._last = _kind(behind)
            return
        at = len(parts) - (2 if self._in_string else 3)  # the part before the last string
        if at >= in_string:
            self._last = _kind(parts[at].rstrip(_SPACE)) or self._last
        if not self._in_string and len(parts) > 1:  # the last token is a string
            is_name = self._closing[-1:] == b"}" and self._last in (b"{", b",")
            self._last = _NAME if is_name else _VALUE

    def _around(self, side: int) -> bytes:
        """What goes before a piece that begins here (``side`` 0), or after a piece that ends here (``side`` 1)."""
        if not self._closing:
            return b""
        last = self._last
        if side and self._in_string:  # as after that string
            last = _NAME if self._closing[-1:] == b"}" and last in (b"{", b",") else _VALUE
        inner = _AROUND.get(bytes(self._closing[-1:]) + last, (b"", b""))[side]
        outer = self._closing[:-1]
        if side:
            return inner + bytes(outer[::-1])
        return bytes(outer.replace(b"]", b"[").replace(b"}", b'{"":')) + inner


def _kind(behind: bytes) -> bytes:
    """The last token of a part outside strings; empty if the part is."""
    last = behind[-1:]
    return last if last in b"[{,:" else _VALUE
